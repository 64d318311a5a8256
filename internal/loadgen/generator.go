// Package loadgen makes realistic events from a seed and posts them, keeping a log of every acknowledgement, so that
// a test or a measurement can say afterwards what was promised and compare it with what is there.
package loadgen

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"strconv"
	"time"
)

// Config chooses a stream of events. The same Config makes the same stream, byte for byte.
type Config struct {
	// Seed names the stream. Idempotency keys contain it: two streams sent to one workspace need different seeds.
	Seed uint64
	// KeyedPercent is the share of events with an idempotency key, 0 to 100.
	KeyedPercent int
	// PastPercent is the share of events with an occurred_at, up to 30 days before Now, 0 to 100. The others have
	// none, so that they occur when they are accepted.
	PastPercent int
	// Now is what PastPercent counts from; whole microseconds, UTC.
	Now time.Time
	// Resources, Actors and Sessions say how many there are to choose from; the first ones are chosen most (Zipf).
	// Defaults 2,000, 1,000 and 5,000.
	Resources, Actors, Sessions int
}

// Validate reports what is wrong with the configuration.
func (c *Config) Validate() error {
	if c.KeyedPercent < 0 || c.KeyedPercent > 100 || c.PastPercent < 0 || c.PastPercent > 100 {
		return errors.New("keyed and past percent must be 0 to 100")
	}
	if c.PastPercent > 0 && c.Now.IsZero() {
		return errors.New("past events need a time to count from")
	}
	if c.Resources < 0 || c.Actors < 0 || c.Sessions < 0 {
		return errors.New("resources, actors and sessions must be positive")
	}
	return nil
}

// Generator makes events. It is for one goroutine at a time.
type Generator struct {
	cfg       Config
	rand      *rand.Rand
	resources *rand.Zipf
	actors    *rand.Zipf
	sessions  *rand.Zipf
	count     uint64
}

// New returns a generator at the start of its stream.
func New(cfg Config) (*Generator, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	defaultTo := func(n *int, value int) {
		if *n == 0 {
			*n = value
		}
	}
	defaultTo(&cfg.Resources, 2_000)
	defaultTo(&cfg.Actors, 1_000)
	defaultTo(&cfg.Sessions, 5_000)
	r := rand.New(rand.NewPCG(cfg.Seed, 0x1e3a_77b1)) //nolint:gosec // a stream must be reproducible from its seed
	zipf := func(n int) *rand.Zipf { return rand.NewZipf(r, 1.1, 8, uint64(n-1)) }
	return &Generator{
		cfg:       cfg,
		rand:      r,
		resources: zipf(cfg.Resources),
		actors:    zipf(cfg.Actors),
		sessions:  zipf(cfg.Sessions),
	}, nil
}

// Append appends the next event's JSON, about 450 bytes without a newline, and reports whether it has an idempotency
// key. The JSON is in canonical form (RFC 8785) and needs no normalisation, so that the body that is stored for it
// differs from it by a default occurred_at at most.
func (g *Generator) Append(b []byte) (body []byte, keyed bool) {
	n := g.count
	g.count++
	kind := g.pickKind()
	actor := &actorTypes[g.rand.IntN(len(actorTypes))]
	if kind.actor != nil {
		actor = kind.actor
	}
	actorNumber := g.actors.Uint64()
	resource := g.resources.Uint64()

	b = append(b, `{"action":"`...)
	b = append(b, pick(g, kind.actions)...)
	b = append(b, `","actor_id":"`...)
	b = append(b, actor.prefix...)
	b = strconv.AppendUint(b, actorNumber, 10)
	b = append(b, `","actor_name":"`...)
	b = append(b, actorNames[actorNumber%uint64(len(actorNames))]...)
	b = append(b, `","actor_type":"`...)
	b = append(b, actor.name...)
	if keyed = g.rand.IntN(100) < g.cfg.KeyedPercent; keyed {
		b = append(b, `","idempotency_key":"`...)
		b = strconv.AppendUint(b, g.cfg.Seed, 16)
		b = append(b, '-')
		b = strconv.AppendUint(b, n, 10)
	}
	if actor.hasAddress {
		b = append(b, `","ip_address":"10.`...)
		b = strconv.AppendUint(b, actorNumber>>8&0xff, 10)
		b = append(b, '.')
		b = strconv.AppendUint(b, actorNumber&0xff, 10)
		b = append(b, '.')
		b = strconv.AppendUint(b, 1+g.rand.Uint64N(250), 10)
	}
	b = append(b, `","metadata":{`...)
	b = kind.metadata(g, b, resource)
	b = append(b, '}')
	if g.rand.IntN(100) < g.cfg.PastPercent {
		ago := time.Duration(g.rand.Int64N(int64(30*24*time.Hour/time.Microsecond))) * time.Microsecond
		b = append(b, `,"occurred_at":"`...)
		b = g.cfg.Now.Add(-ago).UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z")
		b = append(b, '"')
	}
	b = append(b, `,"resource":"`...)
	b = append(b, kind.resource...)
	b = append(b, `","resource_id":"`...)
	b = appendResourceID(b, kind.resource, resource)
	if kind.resource == "service" {
		b = append(b, `","resource_name":"Service `...)
		b = appendResourceID(b, kind.resource, resource)
	}
	if actor.hasSession {
		b = append(b, `","session_id":"sess_`...)
		b = strconv.AppendUint(b, 0x10000000+g.sessions.Uint64(), 16)
	}
	b = append(b, '"')
	if kind.targets {
		b = append(b, `,"targets":[{"id":"`...)
		b = append(b, "usr_"...)
		b = strconv.AppendUint(b, g.actors.Uint64(), 10)
		b = append(b, `","type":"user"}]`...)
	}
	b = append(b, `,"tenant_id":"tenant_`...)
	b = strconv.AppendUint(b, resource%97, 10)
	b = append(b, '"')
	if actor.hasAddress {
		b = append(b, `,"user_agent":"immutable-cli/2.4 (linux; amd64)"`...)
	}
	return append(b, '}'), keyed
}

func (g *Generator) pickKind() *kind {
	n := g.rand.IntN(100)
	for i := range kinds {
		if n -= kinds[i].percent; n < 0 {
			return &kinds[i]
		}
	}
	return &kinds[0]
}

func pick(g *Generator, from []string) string { return from[g.rand.IntN(len(from))] }

func appendResourceID(b []byte, resource string, n uint64) []byte {
	switch resource {
	case "service":
		b = append(b, serviceNames[n%uint64(len(serviceNames))]...)
		if n >= uint64(len(serviceNames)) {
			b = append(b, '-')
			b = strconv.AppendUint(b, n/uint64(len(serviceNames)), 10)
		}
		return b
	case "secret":
		b = append(b, "production/database/"...)
	case "incident":
		b = append(b, "inc_"...)
	default:
		b = append(b, "grp_"...)
	}
	return strconv.AppendUint(b, n, 10)
}

// appendHex appends 40 random hexadecimal digits, a commit's name.
func (g *Generator) appendHex(b []byte) []byte {
	var raw [24]byte
	for i := 0; i < len(raw); i += 8 {
		binary.LittleEndian.PutUint64(raw[i:], g.rand.Uint64())
	}
	return hex.AppendEncode(b, raw[:20])
}
