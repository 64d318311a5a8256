package query

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// roots is the map of all chains as the newest epoch has it that a checkpoint covers, made of the topic notary_state. It needs
// about 1 KB for each chain.
type roots struct {
	topic   string
	opts    []kgo.Opt
	metrics *metrics
	logger  *slog.Logger

	mu sync.RWMutex
	// serving is what proofs are made of, and current what they are made up to; nil while there is none.
	serving *chainMap
	current *snapshot
	// reading is what the topic is being read into; nil until it has been read to its end once. It becomes serving when a
	// checkpoint covers it.
	reading *chainMap
	// broken is why serving must not be used; nil while all is well.
	broken error
	// newest is when the newest checkpoint was published; zero while none is known.
	newest time.Time
	// seen is what current was made of.
	seen basis
}

// basis is what decides up to where the map can be brought.
type basis struct {
	m *chainMap
	// size and witnesses are the newest checkpoint's; entries are those of the root log that it covers and m knows.
	size, entries uint64
	witnesses     uint16
}

// snapshot is a signed checkpoint and an epoch that it covers: what all proofs have in common.
type snapshot struct {
	checkpoint checkpointRow
	index      uint64 // of the epoch
	epoch      *ledger.Entry
	text       string // of the epoch
	logProof   string
	keys       []ledger.BundleKey
	trust      *ledger.Trust // of the log's own first key: what it serves is checked by it
}

// chainMap is the state of all chains at one epoch, and what has changed since.
type chainMap struct {
	tree       ledger.Map
	chains     map[ledger.ChainID]*chainRoot
	workspaces map[[16]byte][]*chainRoot // in the order of their incarnations and lanes
	epoch      uint64                    // whose map tree is
	known      bool                      // whether it is any epoch's
	positions  []uint64                  // of epoch, where it is an older one

	// pending are changes after epoch, in the order of their epochs.
	pending []change
	// floor is the first epoch that the map can be brought to: of those before it not all changes are known.
	floor uint64
	// entered is the size of the root log of the last transaction, complete that of the last one of which everything was read.
	entered, complete uint64
}

// chainRoot is a chain at the map's epoch.
type chainRoot struct {
	chain                  ledger.ChainID
	workspace, incarnation [16]byte
	lane, lanes            uint32
	size                   uint64
	root                   ledger.Hash
}

type change struct {
	epoch uint64
	chainRoot
}

func newRoots(cfg kafka.Config, logger *slog.Logger) (*roots, error) {
	opts, err := cfg.Options(logger)
	if err != nil {
		return nil, err
	}
	return &roots{topic: cfg.Topic(schemas.TopicNotaryState), opts: opts, logger: logger}, nil
}

// restartWait is between an error of Kafka's and the next attempt.
const restartWait = time.Second

// run follows the topic until ctx ends, from its beginning again where Kafka reports an error. What was known before is served
// meanwhile.
func (r *roots) run(ctx context.Context) {
	for {
		err := r.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		r.metrics.mapRestarts.Inc()
		r.logger.WarnContext(ctx, "notary state is read again", "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(restartWait):
		}
	}
}

// follow reads with one client, and returns at the first error.
func (r *roots) follow(ctx context.Context) error {
	cl, err := kgo.NewClient(append(slices.Clone(r.opts),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{r.topic: {0: kgo.NewOffset().AtStart()}}),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // they say that a transaction has been read
		kgo.FetchMaxWait(250*time.Millisecond),
		kgo.FetchMaxBytes(4<<20),
		kgo.FetchMaxPartitionBytes(4<<20),
		kgo.DisableFetchSessions(),
		kgo.DisableClientMetrics(),
	)...)
	if err != nil {
		return fmt.Errorf("opening a reader of the notary's state: %w", err)
	}
	defer cl.Close()
	admin := kadm.NewClient(cl)
	start, end, err := kafka.Bounds(ctx, admin, admin.ListEndOffsets, r.topic, 0)
	if err != nil {
		return err
	}
	// To the end of this moment it belongs to nobody else; compaction may have taken away which transaction a record is of.
	m := &chainMap{chains: map[ledger.ChainID]*chainRoot{}, workspaces: map[[16]byte][]*chainRoot{}}
	for next := start; next < end; {
		if next, err = r.poll(ctx, cl, next, func(rec *kgo.Record) { r.take(ctx, m, rec) }); err != nil {
			return err
		}
	}
	m.complete = m.entered
	m.collapse()
	r.mu.Lock()
	r.reading = m
	r.mu.Unlock()
	for next := end; ; {
		if next, err = r.poll(ctx, cl, next, func(rec *kgo.Record) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.take(ctx, m, rec)
		}); err != nil {
			return err
		}
	}
}

func (r *roots) poll(ctx context.Context, cl *kgo.Client, next int64, take func(*kgo.Record)) (int64, error) {
	fetches := cl.PollFetches(ctx)
	for rec := range fetches.RecordsAll() {
		take(rec)
		next = rec.Offset + 1
	}
	if err := fetches.Err(); err != nil {
		return next, fmt.Errorf("reading %s: %w", r.topic, err)
	}
	return next, nil
}

// take takes in one record. What cannot be read is passed over: the map's root will tell.
func (r *roots) take(ctx context.Context, m *chainMap, rec *kgo.Record) {
	if rec.Attrs.IsControl() {
		m.complete = m.entered
		r.metrics.mapSize.Set(float64(m.complete))
		return
	}
	if err := m.take(rec); err != nil {
		r.metrics.mapRecords.Inc()
		r.logger.ErrorContext(ctx, "record of the notary's state cannot be read", "offset", rec.Offset, "error", err)
	}
}

func (m *chainMap) take(rec *kgo.Record) error {
	switch key := string(rec.Key); {
	case rec.Value == nil, strings.Contains(key, "/"): // of no chain: positions, nodes and keys
		return nil
	case key == "log":
		var l recordpb.NotaryLog
		if err := proto.Unmarshal(rec.Value, &l); err != nil {
			return fmt.Errorf("decoding the log: %w", err)
		}
		m.entered = l.GetSize()
		return nil
	}
	var n recordpb.NotaryChain
	if err := proto.Unmarshal(rec.Value, &n); err != nil {
		return fmt.Errorf("decoding a chain: %w", err)
	}
	h := n.GetHead()
	if len(h.GetChain()) != 16 || len(h.GetWorkspace()) != 16 || len(h.GetIncarnation()) != 16 || len(h.GetRoot()) != 32 {
		return errors.New("decoding a chain: an id or a hash has another length")
	}
	m.pending = append(m.pending, change{n.GetEpoch(), chainRoot{
		ledger.ChainID(h.GetChain()), [16]byte(h.GetWorkspace()), [16]byte(h.GetIncarnation()), h.GetLane(), h.GetLanes(),
		h.GetSize(), ledger.Hash(h.GetRoot()),
	}})
	if len(m.pending) > 4*len(m.chains)+10_000 {
		m.collapse()
	}
	return nil
}

// collapse keeps the newest change of each chain only, so that what waits for a checkpoint grows with the chains and not with
// time. From then on the map can only be brought to the last of their epochs.
func (m *chainMap) collapse() {
	newest := make(map[ledger.ChainID]change, len(m.chains))
	for _, c := range m.pending {
		newest[c.chain] = c
		m.floor = max(m.floor, c.epoch)
	}
	m.pending = m.pending[:0:0]
	for _, c := range newest {
		m.pending = append(m.pending, c)
	}
	slices.SortFunc(m.pending, func(a, b change) int { return cmp.Compare(a.epoch, b.epoch) })
}

// advance brings the map to an epoch, not before floor.
func (m *chainMap) advance(epoch uint64) {
	n := 0
	for ; n < len(m.pending) && m.pending[n].epoch <= epoch; n++ {
		c := m.pending[n].chainRoot
		m.tree.Set(c.chain, c.size, c.root)
		if known := m.chains[c.chain]; known != nil {
			*known = c
			continue
		}
		m.chains[c.chain] = &c
		of := append(m.workspaces[c.workspace], &c)
		slices.SortFunc(of, compareChains)
		m.workspaces[c.workspace] = of
	}
	m.pending = slices.Clone(m.pending[n:])
	m.epoch, m.known = epoch, true
}

var errMapUnknown = errors.New("the map of all chains is not known")

// use calls with the newest epoch that a checkpoint covers. f keeps nothing of the map.
func (r *roots) use(f func(*snapshot, *chainMap)) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if err := r.usable(); err != nil {
		return err
	}
	f(r.current, r.serving)
	return nil
}

// useAt calls with the map of all chains where it is that of an epoch.
func (r *roots) useAt(epoch uint64, f func(*chainMap)) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.usable() != nil || r.serving.epoch != epoch {
		return false
	}
	f(r.serving)
	return true
}

// chainsOf returns what a workspace has at the newest epoch that a checkpoint covers, each with its proof in the map. The slice is
// the caller's.
func (r *roots) chainsOf(workspace [16]byte) (at *snapshot, list []provenChain, err error) {
	err = r.use(func(newest *snapshot, m *chainMap) { at, list = newest, m.of(workspace) })
	return at, list, err
}

// of returns the chains of a workspace, each with its proof.
func (m *chainMap) of(workspace [16]byte) (list []provenChain) {
	for _, c := range m.workspaces[workspace] {
		list = append(list, provenChain{*c, m.tree.Prove(c.chain)})
	}
	return list
}

// one returns a chain with its proof; nil where the workspace has no such chain.
func (m *chainMap) one(workspace [16]byte, chain ledger.ChainID) *provenChain {
	c := m.chains[chain]
	if c == nil || c.workspace != workspace {
		return nil
	}
	return &provenChain{*c, m.tree.Prove(chain)}
}

// absent returns the lanes of an incarnation of a workspace that have no chain, each with the proof.
func (m *chainMap) absent(workspace, incarnation [16]byte, lanes uint32) []absentLane {
	list := []absentLane{}
	for lane := range lanes {
		id := ledger.NewChainID(workspace, incarnation, lane)
		if m.chains[id] == nil {
			list = append(list, absentLane{lane, id, m.tree.Prove(id)})
		}
	}
	return list
}

// provenChain is a chain in the map of a snapshot's epoch.
type provenChain struct {
	chainRoot
	proof ledger.MapProof
}

// usable is called with the lock held.
func (r *roots) usable() error {
	switch {
	case r.broken != nil:
		return fmt.Errorf("%w: %w", errMapUnknown, r.broken)
	case r.serving == nil || r.current == nil:
		return errMapUnknown
	}
	return nil
}

// age is that of the newest checkpoint, in seconds; -1 while none is known.
func (r *roots) age() float64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.newest.IsZero() {
		return -1
	}
	return max(0, time.Since(r.newest).Seconds())
}
