package verifier

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// chain is a chain at the newest epoch.
type chain struct {
	ledger.ChainIdentity

	id   ledger.ChainID
	size uint64
	root ledger.Hash
	// epoch is the index of the last one that changed it.
	epoch uint64
}

// notaryState is what the topic notary_state says, as far as it has been read. It needs about 700 bytes for each chain.
type notaryState struct {
	// next is the offset to read on from, noOffset before the first time.
	next   int64
	chains map[ledger.ChainID]*chain
	tree   ledger.Map
	log    ledger.Head // of the root log
}

const noOffset = -1

func newNotaryState() *notaryState {
	return &notaryState{next: noOffset, chains: map[ledger.ChainID]*chain{}}
}

// anchor is the newest epoch, and with state what is signed of each chain.
type anchor struct {
	*notaryState

	epoch *ledger.Entry // nil while there is none
}

// partition of the ledger topic that has the chain's leaves.
func (a *anchor) partition(c *chain) int32 {
	return event.Partition(c.Workspace, c.Lane, int32(len(a.epoch.Epoch.Positions)))
}

// anchors reads the notary's topics.
type anchors struct {
	state, checkpoints string // names of topics
	opts               []kgo.Opt
	logger             *slog.Logger
	timeout            time.Duration
	current            *notaryState
}

var (
	// errNotYet: one topic has come further than the other.
	errNotYet = errors.New("the newest entry of the root log is not readable yet")
	// errMap: what notary_state has of the chains is not what the newest epoch states.
	errMap = errors.New("the chains in notary_state do not make the map of the newest epoch")
	// errState: a record of notary_state cannot be read.
	errState = errors.New("notary_state cannot be read")
)

// read brings the chains to the newest epoch, which must state the root of their map. A map that differs is read anew from the beginning once: what
// was compacted away in the middle may explain it.
func (r *anchors) read(ctx context.Context, admin *kadm.Client) (*anchor, error) {
	if r.current == nil {
		r.current = newNotaryState()
	}
	a, err := r.settled(ctx, admin)
	if err != nil {
		r.current = nil // whatever is wrong with it, the next one begins anew
	}
	if errors.Is(err, errMap) || errors.Is(err, errState) {
		r.current = newNotaryState()
		if a, err = r.settled(ctx, admin); err != nil {
			r.current = nil
		}
	}
	return a, err
}

// settled tries until both topics have come equally far.
func (r *anchors) settled(ctx context.Context, admin *kadm.Client) (*anchor, error) {
	const attempts, wait = 50, 100 * time.Millisecond
	for i := 1; ; i++ {
		a, err := r.attempt(ctx, admin)
		if !errors.Is(err, errNotYet) || i == attempts {
			return a, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

func (r *anchors) attempt(ctx context.Context, admin *kadm.Client) (*anchor, error) {
	s := r.current
	if err := r.readState(ctx, admin, s); err != nil {
		return nil, err
	}
	a := &anchor{notaryState: s}
	if s.log.Size == 0 {
		return a, nil
	}
	e, err := r.newestEpoch(ctx, admin, &s.log)
	if e == nil || err != nil {
		return a, err
	}
	if e.Epoch.MapRoot != s.tree.Root() || e.Epoch.Chains != uint64(len(s.chains)) || s.tree.Len() != len(s.chains) {
		return nil, fmt.Errorf("%w, entry %d", errMap, e.Index)
	}
	a.epoch = e
	return a, nil
}

// readState reads on to the end of what is committed.
func (r *anchors) readState(ctx context.Context, admin *kadm.Client, s *notaryState) error {
	start, end, err := kafka.Bounds(ctx, admin, admin.ListCommittedOffsets, r.state, 0)
	if err != nil {
		return err
	}
	if s.next == noOffset {
		s.next = start
	}
	if s.next > end || s.next < start {
		return fmt.Errorf("%w: it goes from offset %d to %d, and was read to %d", errState, start, end, s.next)
	}
	var bad error
	err = r.readSpan(ctx, kafka.Span{Topic: r.state, From: s.next, To: end}, func(rec *kgo.Record) {
		if err := s.take(rec); err != nil && bad == nil {
			bad = fmt.Errorf("%w: offset %d: %w", errState, rec.Offset, err)
		}
	})
	if err == nil {
		err = bad
	}
	if err != nil {
		return fmt.Errorf("reading the notary's state: %w", err)
	}
	s.next = end
	return nil
}

func (r *anchors) readSpan(ctx context.Context, span kafka.Span, use func(*kgo.Record)) error {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	return kafka.Read(ctx, []kafka.Span{span}, func(rec *kgo.Record) bool {
		use(rec)
		return true
	}, append(slices.Clone(r.opts), kgo.FetchMaxBytes(4<<20), kgo.FetchMaxPartitionBytes(4<<20))...)
}

// take takes in a record of notary_state.
func (s *notaryState) take(rec *kgo.Record) error {
	key := string(rec.Key)
	if key == "log" {
		var m recordpb.NotaryLog
		if err := proto.Unmarshal(rec.Value, &m); err != nil {
			return err
		}
		head := ledger.Head{Size: m.GetSize()}
		if len(m.GetLastEntryHash()) != 32 || len(m.GetRange())%32 != 0 {
			return errors.New("a hash of the root log has another length")
		}
		head.LastLeafHash = ledger.Hash(m.GetLastEntryHash())
		for b := m.GetRange(); len(b) > 0; b = b[32:] {
			head.Range = append(head.Range, ledger.Hash(b[:32]))
		}
		if err := head.Check(); err != nil {
			return err
		}
		s.log = head
		return nil
	}
	if rec.Value == nil || strings.Contains(key, "/") {
		return nil // of the notary alone
	}
	var m recordpb.NotaryChain
	if err := proto.Unmarshal(rec.Value, &m); err != nil {
		return err
	}
	h := m.GetHead()
	if len(h.GetWorkspace()) != 16 || len(h.GetIncarnation()) != 16 || len(h.GetRange())%32 != 0 {
		return errors.New("an id or a hash of a chain has another length")
	}
	c := &chain{
		ChainIdentity: ledger.ChainIdentity{
			Workspace: [16]byte(h.GetWorkspace()), Incarnation: [16]byte(h.GetIncarnation()), Lane: h.GetLane(), Lanes: h.GetLanes(),
		},
		size: h.GetSize(), epoch: m.GetEpoch(),
	}
	head := ledger.Head{Size: c.size}
	for b := h.GetRange(); len(b) > 0; b = b[32:] {
		head.Range = append(head.Range, ledger.Hash(b[:32]))
	}
	if err := head.Check(); err != nil {
		return err
	}
	c.id, c.root = c.Chain(), head.Root()
	if key != hex.EncodeToString(c.id[:]) || c.size == 0 {
		return fmt.Errorf("the record %.40q is of chain %x with %d leaves", key, c.id, c.size)
	}
	s.chains[c.id] = c
	s.tree.Set(c.id, c.size, c.root)
	return nil
}

// tailRecords of the topic checkpoints are read for the newest epoch, and twice as many where it is not among them.
const tailRecords = 128

// newestEpoch reads the newest epoch of the root log that has this state; nil while it has none.
func (r *anchors) newestEpoch(ctx context.Context, admin *kadm.Client, log *ledger.Head) (*ledger.Entry, error) {
	start, end, err := kafka.Bounds(ctx, admin, admin.ListCommittedOffsets, r.checkpoints, 0)
	if err != nil {
		return nil, err
	}
	for n := int64(tailRecords); ; n *= 2 {
		var newest *ledger.Entry
		var last ledger.Hash
		var bad error
		from := max(start, end-n)
		err := r.readSpan(ctx, kafka.Span{Topic: r.checkpoints, From: from, To: end}, func(rec *kgo.Record) {
			if !strings.HasPrefix(string(rec.Key), "entry/") {
				return
			}
			e, hash, err := readEntry(rec.Value)
			switch {
			case err != nil:
				bad = errors.Join(bad, fmt.Errorf("offset %d: %w", rec.Offset, err))
			case e.Index >= log.Size:
			default:
				if e.Epoch != nil {
					newest = e
				}
				if e.Index+1 == log.Size {
					last = hash
				}
			}
		})
		if err == nil {
			err = bad
		}
		switch {
		case err != nil:
			return nil, fmt.Errorf("reading the topic of checkpoints: %w", err)
		case last != log.LastLeafHash:
			return nil, fmt.Errorf("%w: entry %d", errNotYet, log.Size-1)
		case newest != nil, from == start:
			return newest, nil
		}
	}
}

func readEntry(value []byte) (*ledger.Entry, ledger.Hash, error) {
	var m recordpb.LogEntry
	if err := proto.Unmarshal(value, &m); err != nil {
		return nil, ledger.Hash{}, err
	}
	e, err := ledger.ParseEntry(m.GetEntry())
	return e, ledger.EntryHash(m.GetEntry()), err
}

func newAnchors(cfg *Config, opts []kgo.Opt, logger *slog.Logger) *anchors {
	return &anchors{
		state: cfg.Kafka.Topic(schemas.TopicNotaryState), checkpoints: cfg.Kafka.Topic(schemas.TopicCheckpoints), opts: opts, logger: logger,
		timeout: cfg.RunTimeout,
	}
}
