package processor

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// This checker recomputes everything that sealing promises from the committed records of the topics, with another
// Merkle implementation than the one under test.

// report is what the topics come to, when nothing is wrong with them.
type report struct {
	Inputs, Leaves, Chains, Duplicates, Dead, Skipped uint64
	Transactions                                      int
	// Next input offset of each partition.
	Next map[int32]uint64
}

// wantTotals compares what the topics come to with the input that a test wrote.
func (r report) wantTotals(tb testing.TB, inputs, duplicates, dead int) {
	tb.Helper()
	want := fmt.Sprintf("%d inputs: %d sealed, %d duplicates, %d dead", inputs, inputs-duplicates-dead, duplicates, dead)
	got := fmt.Sprintf("%d inputs: %d sealed, %d duplicates, %d dead", r.Inputs, r.Leaves-r.Chains, r.Duplicates, r.Dead)
	if got != want {
		tb.Errorf("got %s, want %s", got, want)
	}
}

// readTopic returns the committed records of a topic up to its high watermarks, those of a partition in order.
func readTopic(tb testing.TB, c *kafkatest.Cluster, topic string) []*kgo.Record {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 30*time.Second)
	defer cancel()
	name := c.Config.Topic(topic)
	ends, err := kadm.NewClient(c.Client(tb)).ListEndOffsets(ctx, name)
	if err != nil || ends.Error() != nil {
		tb.Fatalf("listing offsets: %v", errors.Join(err, ends.Error()))
	}
	left := make(map[int32]bool)
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[o.Partition] = true
		}
	})
	cl := c.Client(tb, kgo.ConsumeTopics(name), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(100*time.Millisecond))
	defer cl.Close()
	var records []*kgo.Record
	for len(left) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			tb.Fatalf("reading %s: %v", topic, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			end, _ := ends.Lookup(name, r.Partition)
			if r.Offset >= end.Offset-1 { // behind it, where that is an aborted record
				delete(left, r.Partition)
			}
			if r.Offset < end.Offset && !r.Attrs.IsControl() {
				records = append(records, r)
			}
		})
	}
	return records
}

// checkTopics checks everything on a cluster's topics, of which heads must not have been compacted.
func checkTopics(tb testing.TB, c *kafkatest.Cluster, dedupLeaves int) report {
	tb.Helper()
	byPartition := func(topic string) map[int32][]*kgo.Record {
		m := make(map[int32][]*kgo.Record)
		for _, r := range readTopic(tb, c, topic) {
			m[r.Partition] = append(m[r.Partition], r)
		}
		return m
	}
	// The outputs before the input: what arrives meanwhile is input that is not sealed yet.
	out := map[string]map[int32][]*kgo.Record{}
	for _, topic := range []string{schemas.TopicHeads, schemas.TopicLedger, schemas.TopicDedup, schemas.TopicEvents} {
		out[topic] = byPartition(topic)
	}
	dead := make(map[string]*kgo.Record) // partition/offset
	for _, r := range readTopic(tb, c, schemas.TopicDLQ) {
		h := make(map[string]string)
		for _, header := range r.Headers {
			h[header.Key] = string(header.Value)
		}
		at := h[schemas.DLQHeaderPartition] + "/" + h[schemas.DLQHeaderOffset]
		if dead[at] != nil || h[schemas.DLQHeaderTopic] != c.Config.Topic(schemas.TopicEvents) || h[schemas.DLQHeaderError] == "" {
			tb.Errorf("dlq: input %s: twice, or headers %v", at, h)
		}
		dead[at] = r
	}
	total := report{Next: make(map[int32]uint64)}
	for number := range c.Layout.Partitions {
		k := &partitionCheck{
			number: number, dedupBlocks: uint64(dedupLeaves / blockLeaves), events: out[schemas.TopicEvents][number],
			ledger: out[schemas.TopicLedger][number], heads: out[schemas.TopicHeads][number],
			dedup: out[schemas.TopicDedup][number], dead: dead, report: &total,
		}
		if err := k.check(); err != nil {
			tb.Errorf("partition %d: %v", number, err)
		}
	}
	if len(dead) > 0 {
		tb.Errorf("dlq has %d records that no partition accounts for", len(dead))
	}
	return total
}

// partitionCheck is the checking of one partition's records.
type partitionCheck struct {
	number                       int32
	dedupBlocks                  uint64
	events, ledger, heads, dedup []*kgo.Record
	dead                         map[string]*kgo.Record // by partition/offset; check removes those that it has met
	report                       *report

	chains map[string]*checkedChain
	bySeal map[int64]*kgo.Record // ledger record by input offset
	blocks []recordpb.DedupBlock // as the ledger makes them, complete ones and the open one
}

type checkedChain struct {
	tree     *compact.Range
	last     []byte
	size     uint64
	headSize uint64 // of the last head met
	roots    map[uint64]string
	lasts    map[uint64]string
}

// newPartitionCheck is for what the ledger alone says.
func newPartitionCheck(number int32) *partitionCheck {
	return &partitionCheck{number: number, chains: make(map[string]*checkedChain), bySeal: make(map[int64]*kgo.Record)}
}

func (k *partitionCheck) check() error {
	k.chains, k.bySeal = make(map[string]*checkedChain), make(map[int64]*kgo.Record)
	for i, r := range k.ledger {
		if err := k.leaf(i, r); err != nil {
			return fmt.Errorf("ledger offset %d: %w", r.Offset, err)
		}
	}
	next, err := k.checkHeads()
	if err != nil {
		return fmt.Errorf("heads: %w", err)
	}
	if err := k.checkInput(next); err != nil {
		return fmt.Errorf("input: %w", err)
	}
	if err := k.checkDedup(); err != nil {
		return fmt.Errorf("dedup: %w", err)
	}
	k.report.Leaves += uint64(len(k.ledger))
	k.report.Chains += uint64(len(k.chains))
	k.report.Next[k.number] = next
	return nil
}

// leaf checks the i-th record of the ledger.
func (k *partitionCheck) leaf(i int, r *kgo.Record) error {
	m := new(recordpb.Sealed)
	if err := proto.Unmarshal(r.Value, m); err != nil {
		return err
	}
	e := m.GetEvent()
	id := hex.EncodeToString(m.GetChain())
	c := k.chains[id]
	if c == nil {
		c = &checkedChain{
			tree: (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0),
			last: make([]byte, 32), roots: make(map[uint64]string), lasts: make(map[uint64]string),
		}
		k.chains[id] = c
	}
	leaf := ledger.Leaf{
		Chain:    ledger.NewChainID([16]byte(e.GetWorkspace()), [16]byte(e.GetIncarnation()), e.GetLane()),
		Sequence: c.size, Previous: ledger.Hash(c.last), Kind: ledger.Kind(e.GetKind()), RecordedAt: e.GetRecordedAt(),
		Generation: uint16(m.GetGeneration()), Partition: uint16(m.GetPartition()), Offset: m.GetOffset(),
		FieldCount: uint16(e.GetFieldCount()), BodyRoot: [32]byte(e.GetBodyRoot()),
	}
	if c.size == 0 {
		genesis := ledger.Genesis([16]byte(e.GetWorkspace()), [16]byte(e.GetIncarnation()), e.GetLane(), e.GetLanes(),
			e.GetRecordedAt(), generation)
		if leaf != genesis {
			return fmt.Errorf("genesis is %+v, want %+v", leaf, genesis)
		}
	} else {
		leaf.ID = [16]byte(e.GetId())
		if e.GetKind() == recordpb.Kind_KIND_GENESIS || int32(m.GetPartition()) != k.number {
			return fmt.Errorf("kind %s, partition %d", e.GetKind(), m.GetPartition())
		}
		if k.bySeal[int64(m.GetOffset())] != nil {
			return fmt.Errorf("input offset %d is sealed a second time", m.GetOffset())
		}
		k.bySeal[int64(m.GetOffset())] = r
	}
	hash := leaf.Hash()
	var node []byte
	if err := c.tree.Append(hash[:], func(id compact.NodeID, h []byte) {
		if id.Level > 0 && id.Level%8 == 0 {
			node = append(node, h...)
		}
	}); err != nil {
		return err
	}
	want := &recordpb.Sealed{
		Event: e, Chain: leaf.Chain[:], Sequence: leaf.Sequence, Previous: leaf.Previous[:], LeafHash: hash[:], Node: node,
		Generation: uint32(leaf.Generation), Partition: uint32(leaf.Partition), Offset: leaf.Offset,
	}
	if !proto.Equal(m, want) {
		return fmt.Errorf("got  %v\nwant %v", m, want)
	}
	if r.Timestamp.UnixMilli() != e.GetRecordedAt()/1000 || !bytes.Equal(r.Key, keyOf(e)) {
		return fmt.Errorf("key %s, time stamp %s", r.Key, r.Timestamp)
	}
	c.size++
	c.last = hash[:]
	root, err := c.tree.GetRootHash(nil)
	if err != nil {
		return err
	}
	c.roots[c.size], c.lasts[c.size] = string(root), string(c.last)

	if i%blockLeaves == 0 {
		k.blocks = append(k.blocks, recordpb.DedupBlock{Block: uint64(len(k.blocks))})
	}
	b := &k.blocks[len(k.blocks)-1]
	b.LastLedgerOffset = uint64(r.Offset)
	if leaf.Kind != ledger.KindGenesis {
		b.Ids = append(b.Ids, e.GetId()...)
	}
	return nil
}

// checkHeads checks every transaction's records, of which the partition's is the last, and returns the next input offset.
func (k *partitionCheck) checkHeads() (next uint64, err error) {
	var leaves uint64
	for _, r := range k.heads {
		if string(r.Key) != partitionKey(k.number) {
			if err := k.chainHead(r); err != nil {
				return 0, err
			}
			continue
		}
		m := new(recordpb.PartitionHead)
		if err := proto.Unmarshal(r.Value, m); err != nil {
			return 0, err
		}
		leaves += m.GetLeaves()
		if m.GetFirst() != next || m.GetTotalLeaves() != leaves || m.GetNext() < next ||
			m.GetNext()-m.GetFirst() != m.GetLeaves()-m.GetGenesis()+m.GetDuplicates()+m.GetDead()+m.GetSkipped() {
			return 0, fmt.Errorf("at offset %d, after %d leaves and input offset %d: %v", r.Offset, leaves, next, m)
		}
		if leaves > 0 {
			if leaves > uint64(len(k.ledger)) {
				return 0, fmt.Errorf("heads comes to %d leaves, the ledger has %d", leaves, len(k.ledger))
			}
			last := k.ledger[leaves-1]
			sealed := new(recordpb.Sealed)
			if err := proto.Unmarshal(last.Value, sealed); err != nil {
				return 0, err
			}
			if m.GetLastLedgerOffset() != uint64(last.Offset) || !bytes.Equal(m.GetLastChain(), sealed.GetChain()) ||
				!bytes.Equal(m.GetLastLeafHash(), sealed.GetLeafHash()) {
				return 0, fmt.Errorf("last leaf is at offset %d, heads says %v", last.Offset, m)
			}
		}
		next = m.GetNext()
		k.report.Transactions++
		k.report.Duplicates += m.GetDuplicates()
		k.report.Dead += m.GetDead()
		k.report.Skipped += m.GetSkipped()
	}
	if leaves != uint64(len(k.ledger)) {
		return 0, fmt.Errorf("heads comes to %d leaves, the ledger has %d", leaves, len(k.ledger))
	}
	for id, c := range k.chains {
		if c.headSize != c.size {
			return 0, fmt.Errorf("chain %s: the head is at size %d of %d", id, c.headSize, c.size)
		}
	}
	return next, nil
}

func (k *partitionCheck) chainHead(r *kgo.Record) error {
	m := new(recordpb.ChainHead)
	if err := proto.Unmarshal(r.Value, m); err != nil {
		return err
	}
	c := k.chains[string(r.Key)]
	switch {
	case c == nil || !bytes.Equal(m.GetChain(), []byte(mustHex(string(r.Key)))):
		return fmt.Errorf("%q has the head of chain %x", r.Key, m.GetChain())
	case m.GetSize() <= c.headSize || c.roots[m.GetSize()] != string(m.GetRoot()) ||
		c.lasts[m.GetSize()] != string(m.GetLastLeafHash()):
		return fmt.Errorf("chain %s at size %d, after %d: root or last leaf is not that of the ledger", r.Key, m.GetSize(), c.headSize)
	}
	restored, err := restoreChain(m)
	if err != nil {
		return err
	}
	if err := restored.head.Check(); err != nil {
		return err
	}
	c.headSize = m.GetSize()
	return nil
}

func mustHex(s string) string {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// checkInput says whether each committed input record below next became exactly one of a leaf, a duplicate, a dead letter.
func (k *partitionCheck) checkInput(next uint64) error {
	seen := make(map[string]uint64) // id -> leaf number
	leafOf := make(map[int64]uint64)
	for i, r := range k.ledger {
		m := new(recordpb.Sealed)
		if err := proto.Unmarshal(r.Value, m); err != nil {
			return err
		}
		if m.GetSequence() > 0 {
			leafOf[int64(m.GetOffset())] = uint64(i)
		}
	}
	var duplicates, dead uint64
	sealed := maps.Clone(k.bySeal)
	for _, r := range k.events {
		if uint64(r.Offset) >= next {
			continue
		}
		k.report.Inputs++
		at := strconv.Itoa(int(k.number)) + "/" + strconv.FormatInt(r.Offset, 10)
		if d := k.dead[at]; d != nil {
			if !bytes.Equal(d.Key, r.Key) || !bytes.Equal(d.Value, r.Value) {
				return fmt.Errorf("offset %d is on the dlq with other content", r.Offset)
			}
			delete(k.dead, at)
			dead++
			continue
		}
		e := new(recordpb.Event)
		if err := proto.Unmarshal(r.Value, e); err != nil {
			return fmt.Errorf("offset %d: %w", r.Offset, err)
		}
		if l := sealed[r.Offset]; l != nil {
			if !bytes.Equal(eventOf(l.Value), r.Value) {
				return fmt.Errorf("offset %d is not sealed verbatim", r.Offset)
			}
			delete(sealed, r.Offset)
			seen[string(e.GetId())] = leafOf[r.Offset]
			continue
		}
		if _, ok := seen[string(e.GetId())]; !ok {
			return fmt.Errorf("offset %d is neither sealed nor a duplicate", r.Offset)
		}
		duplicates++
	}
	if len(sealed) > 0 {
		return fmt.Errorf("offsets %v are sealed, but are no committed input", slices.Sorted(maps.Keys(sealed)))
	}
	var said, saidDead uint64
	for _, r := range k.heads {
		if string(r.Key) == partitionKey(k.number) {
			m := new(recordpb.PartitionHead)
			if err := proto.Unmarshal(r.Value, m); err != nil {
				return err
			}
			said += m.GetDuplicates()
			saidDead += m.GetDead()
		}
	}
	if said != duplicates || saidDead != dead {
		return fmt.Errorf("heads says %d duplicates, %d dead; they are %d and %d", said, saidDead, duplicates, dead)
	}
	return nil
}

// eventOf returns the bytes of field 1 of a recordpb.Sealed.
func eventOf(b []byte) []byte {
	_, _, n := protowire.ConsumeTag(b)
	v, _ := protowire.ConsumeBytes(b[n:])
	return v
}

func (k *partitionCheck) checkDedup() error {
	for i, r := range k.dedup {
		got := new(recordpb.DedupBlock)
		if err := proto.Unmarshal(r.Value, got); err != nil {
			return err
		}
		if want := strconv.FormatUint(uint64(i)%k.dedupBlocks, 10); string(r.Key) != want {
			return fmt.Errorf("record %d has key %s, want %s", i, r.Key, want)
		}
		if diff := cmp.Diff(&k.blocks[i], got, protocmp()); diff != "" {
			return fmt.Errorf("block %d (-want +got):\n%s", i, diff)
		}
	}
	if complete := len(k.ledger) / blockLeaves; len(k.dedup) != complete {
		return fmt.Errorf("%d blocks for %d leaves", len(k.dedup), len(k.ledger))
	}
	return nil
}

func protocmp() cmp.Option {
	return cmp.Comparer(func(a, b *recordpb.DedupBlock) bool { return proto.Equal(a, b) })
}
