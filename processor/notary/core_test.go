package notary

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// simulated is an installation in memory: its topics, and whoever leads.
type simulated struct {
	t interface {
		Helper()
		Fatal(args ...any)
	}
	heads  map[ledger.ChainID]*chain // what the processor has
	ledger [testPartitions][][]byte
	state  map[string][]byte
	// checkpoints has a nil between two records, where Kafka has a marker.
	checkpoints []*kgo.Record
	keys        keys

	chains *chains
	log    *rootLog
	now    time.Time
}

// seal puts n more leaves on a chain of its own, with its genesis where it has none.
func (s *simulated) seal(workspace uint64, lane uint32, n int) {
	s.t.Helper()
	ws, incarnation := [16]byte(fillBytes(16, workspace, 2)), [16]byte(fillBytes(16, workspace, 3))
	p := event.Partition(ws, lane, testPartitions)
	id := ledger.NewChainID(ws, incarnation, lane)
	c, ok := s.heads[id]
	if !ok {
		c = &chain{workspace: ws, incarnation: incarnation, lane: lane, lanes: testPartitions}
		c.head.Chain = id
		s.heads[id] = c
		leaf := ledger.Genesis(ws, incarnation, lane, testPartitions, recordedAt, 0)
		s.append(c, p, leaf)
	}
	for range n {
		s.append(c, p, ledger.Leaf{
			Kind: ledger.KindEvent, ID: [16]byte(fillBytes(16, c.head.Size, workspace)), RecordedAt: recordedAt + int64(c.head.Size),
			Partition: uint16(p), Offset: c.head.Size, FieldCount: 1, BodyRoot: ledger.Hash(fillBytes(32, c.head.Size)),
		})
	}
}

func (s *simulated) append(c *chain, p int32, leaf ledger.Leaf) {
	s.t.Helper()
	hash, node := c.head.Append(&leaf)
	m := &recordpb.Sealed{
		Chain: leaf.Chain[:], Sequence: leaf.Sequence, Previous: leaf.Previous[:], LeafHash: hash[:], Node: join(node),
		Partition: uint32(leaf.Partition), Offset: leaf.Offset,
		Event: &recordpb.Event{
			Kind: recordpb.Kind(leaf.Kind), Workspace: c.workspace[:], Incarnation: c.incarnation[:], Lane: c.lane, Lanes: c.lanes,
			RecordedAt: leaf.RecordedAt, FieldCount: uint32(leaf.FieldCount), BodyRoot: leaf.BodyRoot[:],
		},
	}
	if leaf.Kind != ledger.KindGenesis {
		m.Event.Id = leaf.ID[:]
	}
	value, err := proto.Marshal(m)
	if err != nil {
		s.t.Fatal(err)
	}
	s.ledger[p] = append(s.ledger[p], value)
}

// takeOver restores from the topics.
func (s *simulated) takeOver() {
	s.t.Helper()
	r := newRestorer(testOrigin, testPartitions)
	if len(s.state) > 0 {
		for key, value := range s.state {
			if err := r.state([]byte(key), value); err != nil {
				s.t.Fatal(err)
			}
		}
		if err := r.resume(); err != nil {
			s.t.Fatal(err)
		}
		for _, record := range s.checkpoints[r.tailFrom(1):] {
			if record == nil {
				continue
			}
			if err := r.tail.checkpoints(record.Key, record.Value); err != nil {
				s.t.Fatal(err)
			}
		}
		if err := r.finish(); err != nil {
			s.t.Fatal(err)
		}
	}
	s.chains, s.log = r.chains, r.log
}

// take takes in up to n records of each partition.
func (s *simulated) take(n int) {
	s.t.Helper()
	for p := range s.ledger {
		for range n {
			at := s.chains.positions[p]
			if at >= uint64(len(s.ledger[p])) {
				break
			}
			if err := s.chains.take(int32(p), at, s.ledger[p][at]); err != nil {
				s.t.Fatal(err)
			}
		}
	}
}

// commit commits an entry: an epoch, or a key change.
func (s *simulated) commit(key *keyPair) {
	s.t.Helper()
	s.now = s.now.Add(time.Second)
	e := &ledger.Entry{Time: s.now}
	l := &leader{log: s.log}
	var changed *chains
	if key == nil {
		e.Epoch, changed = s.chains.epoch(), s.chains
	} else {
		by := key
		if s.log.head.Size > 0 {
			by = s.keys.find(s.log.key)
		}
		signed, err := note.Sign(&note.Note{Text: ledger.KeyChangeText(testOrigin, s.log.head.Size, key.verifier)}, by)
		if err != nil {
			s.t.Fatal(err)
		}
		e.Key = &ledger.KeyChange{VerifierKey: key.verifier, Signature: string(signed)}
	}
	m, err := s.log.record(e)
	if err != nil {
		s.t.Fatal(err)
	}
	offset := int64(len(s.checkpoints))
	value, err := encode(m)
	if err != nil {
		s.t.Fatal(err)
	}
	s.checkpoints = append(s.checkpoints, &kgo.Record{Key: []byte(entryKey + strconv.FormatUint(e.Index, 10)), Value: value, Offset: offset}, nil)
	for _, r := range l.state(e, m, offset, changed) {
		if s.state[r.key], err = encode(r.m); err != nil {
			s.t.Fatal(err)
		}
	}
	if _, err := s.log.append(m, offset); err != nil {
		s.t.Fatal(err)
	}
	if changed != nil {
		s.chains.settle()
	}
}

// readBlock is leader.readBlock.
func (s *simulated) readBlock(_ context.Context, number uint64) ([]ledger.Hash, error) {
	t := tail{first: number * blockEntries}
	var from int64
	if number > 0 {
		from = s.log.blocks[number-1].offset + 1
	}
	for _, r := range s.checkpoints[from : s.log.blocks[number].offset+1] {
		if r == nil {
			continue
		}
		if err := t.checkpoints(r.Key, r.Value); err != nil {
			return nil, err
		}
	}
	return t.hashes, nil
}

// Whatever the schedule: what a take-over restores is what the one before had, every root continues every earlier one, and the map of
// the newest epoch is that of the chains up to its positions.
func TestSchedules(t *testing.T) {
	var all keys
	for range 4 {
		k, err := generateKey(testOrigin)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, k)
	}
	rapid.Check(t, func(t *rapid.T) {
		s := &simulated{t: t, heads: make(map[ledger.ChainID]*chain), state: make(map[string][]byte), keys: all, now: time.Unix(1e9, 0)}
		s.takeOver()
		s.commit(all[0])
		var seen []*ledger.Checkpoint
		stated := 1
		t.Repeat(map[string]func(*rapid.T){
			"seal": func(t *rapid.T) {
				s.seal(rapid.Uint64Range(0, 3).Draw(t, "workspace"), rapid.Uint32Range(0, testPartitions-1).Draw(t, "lane"),
					rapid.SampledFrom([]int{1, 1, 2, 260}).Draw(t, "leaves"))
			},
			"epoch": func(t *rapid.T) {
				s.take(rapid.SampledFrom([]int{1, 10, 1000}).Draw(t, "records"))
				s.commit(nil)
			},
			"idle": func(t *rapid.T) {
				for range rapid.SampledFrom([]int{1, 20, 256}).Draw(t, "epochs") {
					s.commit(nil)
				}
			},
			"key": func(*rapid.T) {
				if stated < len(all) {
					s.commit(all[stated])
					stated++
				}
			},
			"crash": func(t *rapid.T) {
				if rapid.Bool().Draw(t, "in the middle of an epoch") {
					s.take(5)
				}
				s.takeOver()
			},
			"check": func(t *rapid.T) {
				now := s.log.checkpoint()
				blocks := make(map[uint64][]ledger.Hash)
				read := func(ctx context.Context, number uint64) ([]ledger.Hash, error) {
					var err error
					if blocks[number] == nil {
						blocks[number], err = s.readBlock(ctx, number)
					}
					return blocks[number], err
				}
				for i := 0; i < len(seen); i += 1 + len(seen)/8 {
					if err := s.log.extends(t.Context(), seen[i], func(ctx context.Context, size uint64) ([]ledger.Hash, error) {
						return s.log.prove(ctx, size, read)
					}); err != nil {
						t.Fatal(err)
					}
				}
				seen = append(seen, now)
				r := &simulated{t: t, state: s.state, checkpoints: s.checkpoints}
				r.takeOver()
				if r.log.head.Root() != s.log.head.Root() || r.log.key != s.log.key || !r.log.time.Equal(s.log.time) {
					t.Fatal("what a take-over restores is not the root log")
				}
				if len(r.log.blocks) != len(s.log.blocks) || fmt.Sprint(r.log.levels) != fmt.Sprint(s.log.levels) {
					t.Fatal("what a take-over restores are not the nodes")
				}
				if e := s.log.epoch; e != nil {
					s.checkMap(e)
				}
			},
		})
	})
}

// checkMap recomputes an epoch's map from the records before its positions.
func (s *simulated) checkMap(e *ledger.Epoch) {
	s.t.Helper()
	heads := make(map[ledger.ChainID]*ledger.Head)
	for p, next := range e.Positions {
		for _, value := range s.ledger[p][:next] {
			var r sealed
			if err := r.decode(value); err != nil {
				s.t.Fatal(err)
			}
			if heads[r.leaf.Chain] == nil {
				heads[r.leaf.Chain] = new(ledger.Head)
			}
			heads[r.leaf.Chain].AppendHash(r.hash)
		}
	}
	var tree ledger.Map
	for id, h := range heads {
		tree.Set(id, h.Size, h.Root())
	}
	if tree.Root() != e.MapRoot {
		s.t.Fatal("the map root is not that of the leaves before the positions")
	}
}

// Level 2 of the root log: nodes of 65,536 entries, and proofs that need them.
func TestLongRootLog(t *testing.T) {
	key, err := generateKey(testOrigin)
	if err != nil {
		t.Fatal(err)
	}
	s := &simulated{t: t, heads: make(map[ledger.ChainID]*chain), state: make(map[string][]byte), keys: keys{key}, now: time.Unix(1e9, 0)}
	s.takeOver()
	s.commit(key)
	var seen []*ledger.Checkpoint
	for range 66_000 {
		s.commit(nil)
		if s.log.head.Size%9973 == 0 || s.log.head.Size == 65_536 {
			seen = append(seen, s.log.checkpoint())
		}
	}
	s.takeOver()
	if len(s.log.levels) != 2 || len(s.log.levels[1]) != 1 || len(s.log.recent) >= 2*blockEntries {
		t.Errorf("%d levels, %d hashes in memory", len(s.log.levels), len(s.log.recent))
	}
	for _, c := range seen {
		if err := s.log.extends(t.Context(), c, func(ctx context.Context, size uint64) ([]ledger.Hash, error) {
			return s.log.prove(ctx, size, s.readBlock)
		}); err != nil {
			t.Error(err)
		}
	}
}

// The last 300 entries before the end are key changes: the newest epoch is found further back.
func TestEpochFarBack(t *testing.T) {
	r := newRestorer(testOrigin, testPartitions)
	r.log.blocks = make([]block, 10)
	for i := range r.log.blocks {
		r.log.blocks[i].offset = int64(1000 * (i + 1))
	}
	for blocks, want := range map[uint64]int64{1: 9001, 4: 6001, 16: 0} {
		if got := r.tailFrom(blocks); got != want {
			t.Errorf("%d blocks are read from offset %d, want %d", blocks, got, want)
		}
	}
}

func TestConfigRefused(t *testing.T) {
	good := Config{KeyFile: "k", LockFile: "l"}
	good.Kafka.Brokers, good.Kafka.TopicPrefix = []string{"127.0.0.1:9"}, "x."
	good.Layout.Prefix, good.Layout.Partitions = "x.", 4
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		want   string
		change func(*Config)
	}{
		{"no broker", func(c *Config) { c.Kafka.Brokers = nil }},
		{"topic prefix", func(c *Config) { c.Layout.Prefix = "y." }},
		{"0 partitions", func(c *Config) { c.Layout.Partitions = 0 }},
		{"DSN", func(c *Config) { c.ClickHouse.DSN = "x" }},
		{"key file", func(c *Config) { c.KeyFile = "" }},
		{"lock file", func(c *Config) { c.LockFile = "" }},
		{"instance", func(c *Config) { c.Instance = "a b" }},
		{"epoch interval", func(c *Config) { c.EpochInterval = time.Millisecond }},
		{"idle interval", func(c *Config) { c.IdleInterval = time.Second }},
		{"epoch time", func(c *Config) { c.EpochTime = time.Millisecond }},
		{"epoch leaves", func(c *Config) { c.EpochLeaves = -1 }},
		{"witness timeout", func(c *Config) { c.WitnessTimeout = time.Hour }},
		{"transaction timeout", func(c *Config) { c.TransactionTimeout = time.Hour }},
		{"session timeout", func(c *Config) { c.SessionTimeout = time.Millisecond }},
		{"take-over timeout", func(c *Config) { c.TakeOverTimeout = -1 }},
		{"fetch bytes", func(c *Config) { c.FetchBytes = 1 }},
	} {
		cfg := good
		tt.change(&cfg)
		if err := cfg.Validate(); err == nil || !bytes.Contains([]byte(err.Error()), []byte(tt.want)) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	s := &simulated{t: f, heads: make(map[ledger.ChainID]*chain)}
	s.seal(1, 1, 256)
	for _, values := range s.ledger {
		for i, v := range values {
			if i < 2 || i > 253 {
				f.Add(v)
			}
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r sealed
		if err := r.decode(b); err != nil {
			return
		}
		// Whatever it takes, the generated code takes too, and finds the same.
		m := new(recordpb.Sealed)
		if err := proto.Unmarshal(b, m); err != nil {
			t.Skip("text that is not UTF-8: the processor refuses it, and it is in no leaf")
		}
		e := m.GetEvent()
		l := &r.leaf
		var id [16]byte
		copy(id[:], e.GetId())
		got := []any{
			l.Chain[:], l.Sequence, l.Previous[:], r.hash[:], l.Generation, l.Partition, l.Offset, l.Kind, l.ID, r.workspace[:],
			r.incarnation[:], r.lane, r.lanes, l.RecordedAt, l.FieldCount, l.BodyRoot[:], len(r.node),
		}
		want := []any{
			m.GetChain(), m.GetSequence(), m.GetPrevious(), m.GetLeafHash(), uint16(m.GetGeneration()), uint16(m.GetPartition()),
			m.GetOffset(), ledger.Kind(e.GetKind()), id, e.GetWorkspace(), e.GetIncarnation(), e.GetLane(), e.GetLanes(),
			e.GetRecordedAt(), uint16(e.GetFieldCount()), e.GetBodyRoot(), len(m.GetNode()),
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got  %v\nwant %v", got, want)
		}
	})
}

func FuzzState(f *testing.F) {
	c := &chain{}
	c.head.Chain = ledger.NewChainID(c.workspace, c.incarnation, 0)
	c.head.AppendHash(ledger.Hash{})
	value, err := proto.Marshal(c.message(1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(hex.EncodeToString(c.head.Chain[:])), value)
	f.Add([]byte("partition/3"), []byte{8, 1})
	f.Add([]byte("node/1/0"), []byte{8, 1})
	f.Add([]byte("log"), []byte{8, 1})
	f.Add([]byte("key/0"), []byte{8, 1})
	f.Fuzz(func(t *testing.T, key, value []byte) {
		r := newRestorer(testOrigin, testPartitions)
		err := r.state(key, value)
		if err == nil {
			err = r.resume()
		}
		var h *haltError
		if err != nil && !errors.As(err, &h) {
			t.Errorf("not a halt: %v", err)
		}
		tail := tail{}
		if err := tail.checkpoints(key, value); err != nil && !errors.As(err, &h) {
			t.Errorf("not a halt: %v", err)
		}
	})
}
