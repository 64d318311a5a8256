package processor

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// makeInput returns n records of a partition: events of a few chains, repeated ids, records that cannot be sealed,
// markers and gaps.
func makeInput(tb failer, seed uint64, n int, number int32) []input {
	tb.Helper()
	rng := rand.New(rand.NewPCG(seed, 1))
	var (
		all    []input
		sent   [][]byte
		offset uint64
	)
	for i := range n {
		offset += max(0, rng.Uint64N(20)-min(18, rng.Uint64N(20))) % 3
		in := input{offset: offset, key: []byte("key")}
		switch pick := rng.Uint64N(100); {
		case pick < 2:
			in.marker = true
		case pick < 5:
			in.value = []byte("poison")
		case pick < 15 && len(sent) > 0:
			// Near repeats are in the window, far ones are not.
			in.value = sent[len(sent)-1-int(rng.Uint64N(uint64(len(sent))))]
		default:
			workspace := rng.Uint64N(5)
			e := newEvent(workspace, laneOn(workspace, number), uint64(i), pick < 70)
			in.key, in.value = keyOf(e), marshal(tb, e)
			sent = append(sent, in.value)
		}
		all = append(all, in)
		offset++
	}
	return all
}

// sink is what a partition's topics hold: leaves by ledger offset, with a marker after each transaction.
type sink struct {
	leaves []sinkLeaf
	heads  []state
	dedup  []state
	end    uint64
}

type sinkLeaf struct {
	sealed
	offset uint64
}

// run seals input in one transaction; its outcome is for the caller to decide.
func (s *step) run(tb failer, out *sink, in []input) (commit func()) {
	tb.Helper()
	var leaves []sinkLeaf
	offset := out.end
	for i := range in {
		records, _ := s.seal(in[i])
		for _, r := range records {
			leaves = append(leaves, sinkLeaf{sealed: r, offset: offset})
			offset++
		}
	}
	records, err := s.finish(func(leaf uint64) uint64 { return leaves[leaf].offset })
	if err != nil {
		tb.Fatal(err)
	}
	out.end = offset + 1
	return func() {
		out.leaves = append(out.leaves, leaves...)
		for _, r := range records {
			if r.topic == schemas.TopicDedup {
				out.dedup = append(out.dedup, r)
			} else {
				out.heads = append(out.heads, r)
			}
		}
		s.publish()
	}
}

// restore takes a partition over from what is in the sink.
func (out *sink) restore(number int32, dedupLeaves int, committed uint64) (*partition, error) {
	r := newRestorer(newPartition(number, testPartitions, dedupLeaves))
	for _, s := range out.heads {
		if err := r.heads(s.key, s.value); err != nil {
			return nil, err
		}
	}
	for _, s := range out.dedup {
		if err := r.dedup(s.key, s.value, s.recordedAt); err != nil {
			return nil, err
		}
	}
	next := &committed
	if committed == 0 && len(out.heads) == 0 {
		next = nil
	}
	from, err := r.done(next)
	if err != nil {
		return nil, err
	}
	for _, l := range out.leaves {
		if l.offset >= from {
			if err := r.ledger(l.offset, l.value); err != nil {
				return nil, err
			}
		}
	}
	return r.finish(0)
}

// comparePartitions says where two states of a partition differ.
func comparePartitions(a, b *partition) string {
	for _, p := range []*partition{a, b} {
		if err := p.window.check(); err != nil {
			return err.Error()
		}
	}
	return cmp.Diff(a, b, cmp.AllowUnexported(partition{}, chain{}, lineage{}, window{}, block{}), cmpopts.EquateEmpty(),
		cmpopts.IgnoreFields(window{}, "index"))
}

// check says whether the index has each id of the ring once, at its place, and nothing else.
func (w *window) check() error {
	n := 0
	for slot := range w.ring {
		b := &w.ring[slot]
		for i := range b.size() {
			id, found := b.at(i), 0
			w.index.find(hashOf(&id), func(place uint32) bool {
				if place == uint32(slot)*blockLeaves+i {
					found++
				}
				return false
			})
			if n++; found != 1 {
				return fmt.Errorf("id %d of block %d is in the index %d times", i, b.number, found)
			}
		}
	}
	if used := len(slices.DeleteFunc(slices.Clone(w.index.slots), func(e uint64) bool { return e == 0 })); n != used || n != w.index.used {
		return fmt.Errorf("%d ids, %d in the index, which counts %d", n, used, w.index.used)
	}
	return nil
}

// TestIndex compares with a map, also where many ids have one hash.
func TestIndex(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var x index
		want := map[uint32]uint32{} // hashes by place
		next := uint32(0)
		for range rapid.IntRange(0, 300).Draw(t, "steps") {
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0:
				for place := range want {
					x.remove(want[place], place)
					delete(want, place)
					break
				}
			case 1:
				if rapid.IntRange(0, 40).Draw(t, "clear") == 0 {
					x.clear()
					clear(want)
				}
			default:
				// The last slots and the first, in tables of every size.
				want[next] = rapid.SampledFrom([]uint32{0, 1, 61, 62, 63, 64, 127, 1 << 20, 1<<32 - 2, 1<<32 - 1}).Draw(t, "hash")
				x.add(want[next], next)
				next++
			}
			if x.used != len(want) {
				t.Fatalf("%d places, want %d", x.used, len(want))
			}
			for place, hash := range want {
				if !x.find(hash, func(p uint32) bool { return p == place }) {
					t.Fatalf("place %d is not found", place)
				}
			}
		}
		for _, hash := range []uint32{0, 2, 63, 128} {
			x.find(hash, func(place uint32) bool {
				if h, ok := want[place]; !ok || h != hash {
					t.Fatalf("place %d is found by hash %d", place, hash)
				}
				return false
			})
		}
	})
}

func TestSealingIsAFunctionOfStateAndInput(t *testing.T) {
	const number, dedupLeaves = 2, 2 * blockLeaves
	rapid.Check(t, func(t *rapid.T) {
		in := makeInput(t, rapid.Uint64().Draw(t, "seed"), rapid.IntRange(1, 5000).Draw(t, "records"), number)

		var one, many sink
		plain := newPartition(number, testPartitions, dedupLeaves)
		s := new(step)
		for i := range in {
			s.begin(plain, new(arena))
			s.run(t, &one, in[i:i+1])()
		}

		p := newPartition(number, testPartitions, dedupLeaves)
		for rest := in; len(rest) > 0; {
			n := rapid.IntRange(1, min(len(rest), 2500)).Draw(t, "transaction")
			s.begin(p, new(arena))
			commit := s.run(t, &many, rest[:n])
			switch rapid.IntRange(0, 3).Draw(t, "outcome") {
			case 0: // aborted: sealed again from the same state
			case 1: // aborted, and another processor takes over
				restored, err := many.restore(number, dedupLeaves, p.next)
				if err != nil {
					t.Fatalf("taking over: %v", err)
				}
				p = restored
			default:
				commit()
				rest = rest[n:]
			}
		}
		if len(one.leaves) != len(many.leaves) {
			t.Fatalf("%d leaves, %d in other transactions", len(one.leaves), len(many.leaves))
		}
		for i := range one.leaves {
			if !bytes.Equal(one.leaves[i].value, many.leaves[i].value) {
				t.Fatalf("leaf %d differs", i)
			}
		}
		restored, err := many.restore(number, dedupLeaves, p.next)
		if err != nil {
			t.Fatalf("taking over: %v", err)
		}
		if diff := comparePartitions(p, restored); diff != "" {
			t.Fatalf("state and what is restored differ (-state +restored):\n%s", diff)
		}
		for _, l := range many.leaves {
			m := new(recordpb.Sealed)
			if err := proto.Unmarshal(l.value, m); err != nil {
				t.Fatalf("a sealed record does not decode: %v", err)
			}
			if !bytes.Equal(marshal(t, m), l.value) {
				t.Fatalf("a sealed record is not encoded as protobuf would: %v", m)
			}
		}
	})
}

func TestDuplicatesOfTheWindowOnly(t *testing.T) {
	const number, dedupLeaves = 0, blockLeaves
	p := newPartition(number, testPartitions, dedupLeaves)
	lane := laneOn(1, number)
	var out sink
	var offset uint64
	s := new(step)
	send := func(e *recordpb.Event) (duplicate bool) {
		s.begin(p, new(arena))
		before := p.leaves
		s.run(t, &out, []input{{offset: offset, key: keyOf(e), value: marshal(t, e)}})()
		offset++
		return p.leaves == before
	}
	first := newEvent(1, lane, 0, true)
	if send(first) { // leaves 0, the genesis, and 1
		t.Fatal("the first event is a duplicate")
	}
	for n := range uint64(2*blockLeaves - 2) {
		if n == 500 || n == blockLeaves || n == 2*blockLeaves-3 {
			if !send(first) {
				t.Fatalf("the event is sealed again after %d others", n)
			}
		}
		send(newEvent(1, lane, n+1, false))
	}
	// 2,000 leaves: the open block is 2, the window block 1, the first event in block 0.
	if send(first) {
		t.Fatal("the event is a duplicate, though its leaf has left the window")
	}
	// An id is looked for whoever made it: a copy of a record without a key is one, too.
	if !send(newEvent(1, lane, 2*blockLeaves-2, false)) {
		t.Fatal("an event without a key is sealed twice")
	}
}

func TestDeadRecords(t *testing.T) {
	const number = 1
	lane := laneOn(1, number)
	for _, tt := range []struct {
		name   string
		change func(*recordpb.Event)
		want   string
	}{
		{"does not decode", func(e *recordpb.Event) { e.Id = nil }, "missing"},
		{"other partition", func(e *recordpb.Event) { e.Lane = (e.GetLane() + 1) % testLanes }, "belongs on partition"},
		{"other number of lanes", func(e *recordpb.Event) { e.Lanes = testLanes + 1 }, "5 lanes"},
		{"too large", func(e *recordpb.Event) { e.Body = make([]byte, maxRecordBytes) }, "sealed it would have"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := new(step)
			s.begin(newPartition(number, testPartitions, blockLeaves), new(arena))
			good, bad, after := newEvent(1, lane, 1, true), newEvent(1, lane, 2, true), newEvent(1, lane, 3, true)
			tt.change(bad)
			for i, e := range []*recordpb.Event{good, bad, after} {
				records, dead := s.seal(input{offset: uint64(i), key: keyOf(e), value: marshal(t, e)})
				if isBad := e == bad; isBad != (dead != nil) || isBad != (len(records) == 0) {
					t.Fatalf("record %d: %d leaves, dead: %v", i, len(records), dead)
				} else if isBad && !strings.Contains(dead.Error(), tt.want) {
					t.Errorf("dead because %q, want %q", dead, tt.want)
				}
			}
			if got, want := s.counts, (counts{next: 3, leaves: 3, genesis: 1, dead: 1}); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

func TestTakingOverRefusesWhatDoesNotFit(t *testing.T) {
	const number, dedupLeaves = 3, 3 * blockLeaves
	in := makeInput(t, 7, 5500, number)
	fresh := func() (*sink, uint64) {
		var out sink
		p := newPartition(number, testPartitions, dedupLeaves)
		s := new(step)
		for chunk := range slices.Chunk(in, 700) {
			s.begin(p, new(arena))
			s.run(t, &out, chunk)()
		}
		return &out, p.next
	}
	change := func(m proto.Message, s *state, f func()) {
		if err := proto.Unmarshal(s.value, m); err != nil {
			t.Fatal(err)
		}
		f()
		s.value = marshal(t, m)
	}
	for _, tt := range []struct {
		name string
		do   func(out *sink, next *uint64)
		want string // "" agrees
	}{
		{"nothing", func(*sink, *uint64) {}, ""},
		{"committed offset behind", func(_ *sink, next *uint64) { *next-- }, "the group committed"},
		{"committed offset ahead", func(_ *sink, next *uint64) { *next++ }, "the group committed"},
		{"heads lost", func(out *sink, _ *uint64) { out.heads = nil }, "heads has no record"},
		{"heads one transaction old", func(out *sink, _ *uint64) {
			last := slices.IndexFunc(out.heads, func(s state) bool { return string(s.key) == partitionKey(number) })
			out.heads = out.heads[:last+1]
		}, "the group committed"},
		{"a chain's head lost", func(out *sink, _ *uint64) {
			key := string(out.heads[0].key)
			out.heads = slices.DeleteFunc(out.heads, func(s state) bool { return string(s.key) == key })
		}, "the chains in heads have"},
		{"a chain's head edited", func(out *sink, _ *uint64) {
			m := new(recordpb.ChainHead)
			change(m, &out.heads[0], func() { m.Range[0] ^= 1 })
		}, "does not follow"},
		{"a chain's head of another partition", func(out *sink, _ *uint64) {
			m := new(recordpb.ChainHead)
			change(m, &out.heads[0], func() { m.Lane++ })
		}, "is not the one of its workspace"},
		{"ledger cut", func(out *sink, _ *uint64) { out.leaves = out.leaves[:len(out.leaves)-1] }, "where there is none"},
		{"ledger ahead", func(out *sink, _ *uint64) {
			last := out.leaves[len(out.leaves)-1]
			last.offset++
			out.leaves = append(out.leaves, last)
		}, "ledger has a leaf at offset"},
		{"last leaf replaced", func(out *sink, _ *uint64) {
			out.leaves[len(out.leaves)-1].sealed = out.leaves[len(out.leaves)-2].sealed
		}, "heads says"},
		{"a leaf missing", func(out *sink, _ *uint64) {
			out.leaves = slices.Delete(out.leaves, len(out.leaves)-3, len(out.leaves)-2)
		}, "there must be"},
		{"newest block lost", func(out *sink, _ *uint64) { out.dedup = out.dedup[:len(out.dedup)-1] }, "dedup lacks block"},
		{"a block in the middle lost", func(out *sink, _ *uint64) {
			out.dedup = slices.Delete(out.dedup, len(out.dedup)-2, len(out.dedup)-1)
		}, "dedup lacks block"},
		{"oldest block gone", func(out *sink, _ *uint64) { out.dedup = out.dedup[len(out.dedup)-2:] }, ""},
		{"a block edited", func(out *sink, _ *uint64) {
			m := new(recordpb.DedupBlock)
			change(m, &out.dedup[0], func() { m.Ids = m.Ids[1:] })
		}, "malformed"},
		{"no protobuf", func(out *sink, _ *uint64) { out.heads[0].value = []byte("{}") }, "is no ChainHead"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, next := fresh()
			tt.do(out, &next)
			_, err := out.restore(number, dedupLeaves, next)
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}
