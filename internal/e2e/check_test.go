package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/loadgen"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
)

// installation says where the checker finds what it checks.
type installation struct {
	brokers []string
	prefix  string
	// clickhouse is nil where only topics are to be checked.
	clickhouse driver.Conn
}

// report is what a check found. Its counts let a test demand that something was checked at all.
type report struct {
	Inputs       int // records of the events topic
	Leaves       int // genesis leaves among them
	Chains       int
	Duplicates   int // inputs left out because their id is in the ledger
	Dead         int
	Acknowledged int // distinct ids in the acknowledgement logs
	Checkpoints  int // signed, and true
	faults       []string
	faultCount   int
}

func (r *report) String() string {
	return fmt.Sprintf("%d inputs, %d leaves in %d chains, %d duplicates, %d dead, %d acknowledged events, %d checkpoints, %d faults",
		r.Inputs, r.Leaves, r.Chains, r.Duplicates, r.Dead, r.Acknowledged, r.Checkpoints, r.faultCount)
}

const maxFaultsPrinted = 20

// fault notes something that contradicts a guarantee, naming the event, chain or sequence.
func (r *report) fault(format string, args ...any) {
	r.faultCount++
	if len(r.faults) < maxFaultsPrinted {
		r.faults = append(r.faults, fmt.Sprintf(format, args...))
	}
}

func (r *report) err() error {
	if r.faultCount == 0 {
		return nil
	}
	return fmt.Errorf("%s:\n%s", r, strings.Join(r.faults, "\n"))
}

// input is a record of the events topic.
type input struct {
	offset int64
	id     [16]byte
	value  uint64 // hash of the record's bytes
	sealed bool
}

// leaf is a place in a chain, as the ledger topic has it.
type leaf struct {
	hash         ledger.Hash
	id           [16]byte
	body         uint64 // hash of the body
	bodyRoot     ledger.Hash
	ledgerOffset int64
	inputOffset  int64
	recordedAt   int64
	inLeaves     uint8 // rows of the table
	inEvents     uint8
}

// chain is what the ledger topic says of one chain, recomputed.
type chain struct {
	head      ledger.Head
	partition int32
	workspace [16]byte
	leaves    []leaf
}

// promise is an acknowledged event.
type promise struct {
	body [32]byte // SHA-256 of what was sent
	kept bool
}

// check holds the state of one pass over an installation.
type check struct {
	report
	in       installation
	cl       *kgo.Client
	adm      *kadm.Client
	hash     maphash.Seed
	promises map[[16]byte]*promise
	inputs   map[int32][]input
	chains   map[ledger.ChainID]*chain
	// ids is where each event's leaf is: partition, then input offset.
	ids map[[16]byte]inputPosition
	// epochs are those of the root log, in order.
	epochs []*ledger.Epoch
	// tails is the last record of each ledger partition.
	tails map[int32]tail
}

type inputPosition struct {
	partition int32
	offset    int64
}

type tail struct {
	count     uint64
	offset    int64
	chain     ledger.ChainID
	leafHash  ledger.Hash
	genesises uint64
}

// checkInstallation waits until everything on the events topic is sealed and in the tables, then recomputes all of it
// and compares: every acknowledged event is there once, with the content that was sent; sequences are dense from
// genesis; links, leaf hashes, nodes, roots and body roots are what they must be; each partition record's equation
// holds; tables and topics agree. Its error is that of the check itself: ctx ended while it waited, or nothing could
// be read. What is wrong with the installation is in the report.
func checkInstallation(ctx context.Context, in installation, ackLogs ...string) (*report, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(in.brokers...), kgo.MetadataMinAge(10*time.Millisecond))
	if err != nil {
		return nil, fmt.Errorf("connecting to kafka: %w", err)
	}
	defer cl.Close()
	c := &check{
		in: in, cl: cl, adm: kadm.NewClient(cl), hash: maphash.MakeSeed(),
		promises: map[[16]byte]*promise{}, inputs: map[int32][]input{}, chains: map[ledger.ChainID]*chain{},
		ids: map[[16]byte]inputPosition{}, tails: map[int32]tail{},
	}
	for _, path := range ackLogs {
		if err := loadgen.ReadAckLog(path, c.addPromise); err != nil {
			return nil, err
		}
	}
	c.Acknowledged = len(c.promises)
	// However much there is to read, nothing may stand still for as long as this.
	wait := func(condition func(context.Context) error) func(context.Context) error {
		return func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
			defer cancel()
			return condition(ctx)
		}
	}
	// The order matters: what is read later covers what was read before.
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"reading events", c.readEvents},
		{"waiting for the processor", wait(c.waitSealed)},
		{"reading checkpoints", c.readCheckpoints},
		{"reading the ledger", c.readLedger},
		{"comparing epochs", c.compareEpochs},
		{"reading dead letters", c.readDLQ},
		{"comparing inputs", c.compareInputs},
		{"reading heads", c.readHeads},
		{"waiting for the tables", wait(c.waitStored)},
		{"reading the tables", c.readTables},
	} {
		if err := step.do(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", step.what, err)
		}
	}
	for id, p := range c.promises {
		if !p.kept {
			c.fault("event %s: acknowledged, and not in the ledger", uuid(id))
		}
	}
	c.Chains = len(c.chains)
	return &c.report, nil
}

// mustHold fails the test unless the installation holds what it promised and at least min leaves.
func mustHold(t *testing.T, in installation, minLeaves int, ackLogs ...string) *report {
	t.Helper()
	r, err := checkInstallation(t.Context(), in, ackLogs...)
	if err != nil {
		t.Fatalf("checking the installation: %v", err)
	}
	if err := r.err(); err != nil {
		t.Fatal(err)
	}
	if r.Leaves < minLeaves {
		t.Fatalf("%s: want at least %d leaves", r, minLeaves)
	}
	return r
}

func (c *check) addPromise(a loadgen.Ack) error {
	id, err := parseUUID(a.ID)
	if err != nil {
		c.fault("acknowledged id %q: %v", a.ID, err)
		return nil
	}
	if p, ok := c.promises[id]; ok && p.body != a.SHA256 {
		c.fault("event %s: acknowledged for two different bodies", a.ID)
	}
	c.promises[id] = &promise{body: a.SHA256}
	return nil
}

// defaultTime is what ingest adds to an event that says no time.
var defaultTime = regexp.MustCompile(`,"occurred_at":"[^"]*"`)

// keep compares a sealed body with what was acknowledged under its id. Events of the load generator are in canonical
// form, so that a stored body is what was sent, but for the time that ingest sets where there is none.
func (c *check) keep(id [16]byte, body []byte) {
	p, ok := c.promises[id]
	if !ok {
		return
	}
	p.kept = true
	if sha256.Sum256(body) != p.body && sha256.Sum256(defaultTime.ReplaceAll(body, nil)) != p.body {
		c.fault("event %s: its body differs from what was acknowledged: %s", uuid(id), body)
	}
}

func (c *check) compareInputs(context.Context) error {
	for p, inputs := range c.inputs {
		for i := range inputs {
			in := &inputs[i]
			if in.sealed {
				continue
			}
			first, ok := c.ids[in.id]
			if ok && first.partition == p && first.offset < in.offset {
				c.Duplicates++
				continue
			}
			c.fault("event %s: accepted at events/%d/%d, and not in the ledger", uuid(in.id), p, in.offset)
		}
	}
	return nil
}

func uuid(id [16]byte) string {
	s := hex.EncodeToString(id[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

func parseUUID(s string) (id [16]byte, err error) {
	if len(s) != 36 {
		return id, errors.New("not a UUID")
	}
	if _, err := hex.Decode(id[:], []byte(strings.ReplaceAll(s, "-", ""))); err != nil || uuid(id) != s {
		return id, errors.New("not a UUID in lower case")
	}
	return id, nil
}

func (c *check) topic(name string) string { return c.in.prefix + name }

// committed returns the offsets that the processor's group has committed, by partition of events.
func (c *check) committed(ctx context.Context) (map[int32]int64, error) {
	offsets, err := c.adm.FetchOffsets(ctx, c.in.prefix+schemas.GroupSeal)
	if err != nil {
		return nil, fmt.Errorf("fetching the processor's offsets: %w", err)
	}
	committed := map[int32]int64{}
	for p, o := range offsets[c.topic(schemas.TopicEvents)] {
		committed[p] = o.At
	}
	return committed, nil
}
