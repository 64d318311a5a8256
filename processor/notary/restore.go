package notary

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// Keys of the checkpoints topic and of notary_state.
const (
	entryKey      = "entry/"      // index
	checkpointKey = "checkpoint/" // size
	partitionKey  = "partition/"  // number
	nodeKey       = "node/1/"     // number of the block
	statedKey     = "key/"        // index of the entry
	logKey        = "log"
)

// restorer makes chains and root log of what the last leader left. Records are given in the order of their offsets: those of
// notary_state, then after resume those of the end of checkpoints.
type restorer struct {
	chains *chains
	log    *rootLog

	records int // of notary_state
	summary *recordpb.NotaryLog
	nodes   map[uint64]block
	stated  map[uint64]*recordpb.LogEntry

	// tail are the entries of the end of checkpoints.
	tail tail
}

// tail is what was read of the checkpoints topic.
type tail struct {
	first   uint64 // index of the first entry
	entries int
	last    *recordpb.LogEntry
	epoch   *ledger.Epoch // the newest
	time    time.Time
	hashes  []ledger.Hash
	// signed is the newest signed checkpoint, witnessed the newest that enough witnesses have cosigned; nil: none was read.
	signed, witnessed *recordpb.SignedCheckpoint
}

func newRestorer(origin string, partitions int32) *restorer {
	return &restorer{
		chains: newChains(partitions), log: &rootLog{origin: origin},
		nodes: make(map[uint64]block), stated: make(map[uint64]*recordpb.LogEntry),
	}
}

// state takes in a record of notary_state. Later ones replace earlier ones of the same key.
func (r *restorer) state(key, value []byte) error {
	r.records++
	name := string(key)
	number := func(prefix string, below uint64) (uint64, bool) {
		text, ok := strings.CutPrefix(name, prefix)
		n, err := strconv.ParseUint(text, 10, 64)
		return n, ok && err == nil && n < below
	}
	if n, ok := number(partitionKey, uint64(len(r.chains.positions))); ok {
		m := new(recordpb.NotaryPartition)
		err := decode(m, key, value)
		r.chains.positions[n] = m.GetNext()
		return err
	}
	if n, ok := number(nodeKey, ledger.MaxIndex); ok {
		m := new(recordpb.NotaryNode)
		if err := decode(m, key, value); err != nil {
			return err
		}
		b := block{offset: int64(m.GetOffset())}
		r.nodes[n] = b
		if err := fill(b.root[:], m.GetHash()); err != nil {
			return disagree("the record %q: %w", key, err)
		}
		r.nodes[n] = b
		return nil
	}
	if n, ok := number(statedKey, ledger.MaxIndex); ok {
		m := new(recordpb.LogEntry)
		r.stated[n] = m
		return decode(m, key, value)
	}
	if name == logKey {
		r.summary = new(recordpb.NotaryLog)
		return decode(r.summary, key, value)
	}
	m := new(recordpb.NotaryChain)
	if err := decode(m, key, value); err != nil {
		return err
	}
	c, err := restoreChain(m.GetHead())
	if err != nil {
		return disagree("the record %q: %w", key, err)
	}
	if name != hex.EncodeToString(c.head.Chain[:]) {
		return disagree("the record %q is that of chain %x", key, c.head.Chain)
	}
	r.chains.add(c)
	return nil
}

// resume ends the records of notary_state and restores the root log but for what is in memory of its end.
func (r *restorer) resume() error {
	l := r.log
	if r.summary == nil {
		return disagree("notary_state has %d records and none of the root log", r.records)
	}
	l.head.Size = r.summary.GetSize()
	var err error
	if l.head.Range, err = split(r.summary.GetRange(), l.head.Size); err == nil {
		err = fill(l.head.LastLeafHash[:], r.summary.GetLastEntryHash())
	}
	if err != nil {
		return disagree("the root log in notary_state: %w", err)
	}
	for n := range l.head.Size / blockEntries {
		b, ok := r.nodes[n]
		if !ok {
			return disagree("notary_state lacks node %d of the root log", n)
		}
		l.complete(b)
	}
	if int(l.head.Size/blockEntries) != len(r.nodes) {
		return disagree("notary_state has %d nodes of a root log of %d entries", len(r.nodes), l.head.Size)
	}
	for _, index := range slices.Sorted(maps.Keys(r.stated)) {
		e, err := ledger.ParseEntry(r.stated[index].GetEntry())
		if err == nil && (e.Key == nil || e.Index != index) {
			err = fmt.Errorf("entry %d is not key change %d", e.Index, index)
		}
		if err != nil {
			return disagree("a key change in notary_state: %w", err)
		}
		if err := l.mine(e); err != nil {
			return err
		}
		if err := l.stateKey(e); err != nil {
			return disagree("a key change in notary_state: %w", err)
		}
	}
	if len(l.keys) == 0 || l.keyIndex != r.summary.GetLastKey() {
		return disagree("the last key change in notary_state is entry %d, of %d; it must be %d",
			l.keyIndex, len(l.keys), r.summary.GetLastKey())
	}
	return nil
}

// tailFrom returns where to read the checkpoints topic from to have the last blocks complete blocks and the open one, and
// prepares for that.
func (r *restorer) tailFrom(blocks uint64) (offset int64) {
	complete := uint64(len(r.log.blocks))
	skipped := complete - min(complete, blocks)
	r.tail = tail{first: skipped * blockEntries}
	if skipped == 0 {
		return 0
	}
	return r.log.blocks[skipped-1].offset + 1
}

// checkpoints takes in a record of the checkpoints topic.
func (t *tail) checkpoints(key, value []byte) error {
	switch {
	case bytes.HasPrefix(key, []byte(entryKey)):
		m := new(recordpb.LogEntry)
		if err := decode(m, key, value); err != nil {
			return err
		}
		e, err := ledger.ParseEntry(m.GetEntry())
		if err != nil {
			return disagree("the record %q: %w", key, err)
		}
		hash := ledger.EntryHash(m.GetEntry())
		if want := t.first + uint64(t.entries); e.Index != want || string(key) != entryKey+strconv.FormatUint(want, 10) {
			return disagree("the record %q on checkpoints is entry %d, it must be %d", key, e.Index, want)
		}
		t.entries++
		t.hashes = append(t.hashes, hash)
		t.last, t.time = m, e.Time
		if e.Epoch != nil {
			t.epoch = e.Epoch
		}
	case bytes.HasPrefix(key, []byte(checkpointKey)):
		m := new(recordpb.SignedCheckpoint)
		if err := decode(m, key, value); err != nil {
			return err
		}
		t.signed = m
		if m.GetQuorum() {
			t.witnessed = m
		}
	default:
		return disagree("the record %q is not one of checkpoints", key)
	}
	return nil
}

// finish compares the end of checkpoints with what notary_state says.
func (r *restorer) finish() error {
	l, t := r.log, &r.tail
	if have := t.first + uint64(t.entries); have != l.head.Size || t.last == nil {
		return disagree("checkpoints has %d entries, notary_state is of %d", have, l.head.Size)
	}
	// The hashes of the end and the nodes before it must make the root that the last entry's record has.
	blocks := t.first / blockEntries
	head := ledger.Head{}
	for _, b := range l.blocks[:blocks] {
		head.AppendHash(b.root)
	}
	head.Size *= blockEntries
	for i, hash := range t.hashes {
		node := head.AppendHash(hash)
		if len(node) > 0 && node[0] != l.blocks[blocks+uint64(i)/blockEntries].root {
			return disagree("entries %d to %d make root %x, notary_state says otherwise", head.Size-blockEntries, head.Size-1, node[0])
		}
	}
	root := head.Root()
	switch {
	case !bytes.Equal(root[:], t.last.GetRoot()) || t.last.GetSize() != l.head.Size:
		return disagree("checkpoints states root %x at size %d, its entries and notary_state make %x at %d",
			t.last.GetRoot(), t.last.GetSize(), root, l.head.Size)
	case l.head.Root() != root || l.head.LastLeafHash != head.LastLeafHash:
		return disagree("notary_state makes root %x, checkpoints %x at size %d", l.head.Root(), root, l.head.Size)
	}
	l.time, l.epoch = t.time, t.epoch
	l.recent, l.recentFrom = t.hashes, t.first
	l.trim()
	return r.chains.agree(l.epoch)
}

// add puts a restored chain in its place.
func (s *chains) add(c *chain) {
	s.by[c.head.Chain] = c
	c.partition = event.Partition(c.workspace, c.lane, int32(len(s.positions)))
	s.tree.Set(c.head.Chain, c.head.Size, c.head.Root())
}

// agree compares restored chains with the newest epoch, nil where there is none.
func (s *chains) agree(e *ledger.Epoch) error {
	if e == nil {
		e = &ledger.Epoch{Positions: make([]uint64, len(s.positions))}
	}
	switch {
	case uint64(s.tree.Len()) != e.Chains:
		return disagree("the newest epoch is of %d chains, there are %d", e.Chains, s.tree.Len())
	case s.tree.Root() != e.MapRoot:
		return disagree("the newest epoch has map root %x, the chains make %x", e.MapRoot, s.tree.Root())
	case !slices.Equal(s.positions, e.Positions):
		return disagree("the newest epoch comes to ledger offsets %d, notary_state says %d", e.Positions, s.positions)
	}
	return nil
}

func disagree(format string, args ...any) error { return halt(haltState, format, args...) }

func decode(m proto.Message, key, value []byte) error {
	if err := proto.Unmarshal(value, m); err != nil {
		return disagree("the record %q is no %s: %w", key, m.ProtoReflect().Descriptor().Name(), err)
	}
	return nil
}
