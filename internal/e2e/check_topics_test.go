package e2e

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// read calls each for every committed record of a topic, in the order of each partition, up to the high watermarks of the
// moment when it was called. It waits for the end of transactions that are open below them: Kafka shows a group's committed
// offset before the markers of the same transaction are in every partition that it wrote.
func (c *check) read(ctx context.Context, topic string, each func(*kgo.Record)) error {
	starts, err := c.adm.ListStartOffsets(ctx, topic)
	if err != nil {
		return fmt.Errorf("listing offsets of %s: %w", topic, err)
	}
	ends, err := c.adm.ListEndOffsets(ctx, topic)
	if err != nil {
		return fmt.Errorf("listing offsets of %s: %w", topic, err)
	}
	if err := errors.Join(starts.Error(), ends.Error()); err != nil {
		return fmt.Errorf("listing offsets of %s: %w", topic, err)
	}
	from, open := map[int32]kgo.Offset{}, map[int32]int64{}
	for p, end := range ends[topic] {
		if start := starts[topic][p].Offset; start < end.Offset {
			from[p] = kgo.NewOffset().At(start)
			open[p] = end.Offset
		}
	}
	if len(open) == 0 {
		return nil
	}
	// Control records are kept, because the last offset before the end is often a transaction's marker.
	cl, err := kgo.NewClient(
		kgo.SeedBrokers(c.in.brokers...),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(),
		kgo.FetchMaxWait(100*time.Millisecond),
	)
	if err != nil {
		return fmt.Errorf("connecting to kafka: %w", err)
	}
	defer cl.Close()
	for len(open) > 0 {
		pollCtx, cancel := context.WithTimeout(ctx, time.Minute)
		fetches := cl.PollFetches(pollCtx)
		err := pollCtx.Err()
		cancel()
		if err != nil {
			return fmt.Errorf("%s: not read to the end, %v left: %w", topic, open, err)
		}
		if errs := fetches.Errors(); len(errs) > 0 {
			return fmt.Errorf("fetching %s/%d: %w", errs[0].Topic, errs[0].Partition, errs[0].Err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			end, ok := open[r.Partition]
			if !ok || r.Offset >= end {
				delete(open, r.Partition)
				return
			}
			if !r.Attrs.IsControl() {
				each(r)
			}
			if r.Offset == end-1 {
				delete(open, r.Partition)
			}
		})
	}
	return nil
}

func (c *check) readEvents(ctx context.Context) error {
	return c.read(ctx, c.topic(schemas.TopicEvents), func(r *kgo.Record) {
		c.Inputs++
		in := input{offset: r.Offset, value: maphash.Bytes(c.hash, r.Value)}
		var ev recordpb.Event
		// A poison record stays an input with a zero id: it must turn up among the dead letters.
		if proto.Unmarshal(r.Value, &ev) == nil && len(ev.GetId()) == 16 {
			in.id = [16]byte(ev.GetId())
		}
		c.inputs[r.Partition] = append(c.inputs[r.Partition], in)
	})
}

// input returns the record of the events topic at a position, or nil.
func (c *check) input(partition int32, offset int64) *input {
	inputs := c.inputs[partition]
	i := sort.Search(len(inputs), func(i int) bool { return inputs[i].offset >= offset })
	if i < len(inputs) && inputs[i].offset == offset {
		return &inputs[i]
	}
	return nil
}

// waitSealed waits until the processor has committed past every input.
func (c *check) waitSealed(ctx context.Context) error {
	return poll(ctx, func() error {
		committed, err := c.committed(ctx)
		if err != nil {
			return err
		}
		for p, inputs := range c.inputs {
			if last := inputs[len(inputs)-1].offset; committed[p] <= last {
				return fmt.Errorf("events/%d: committed %d of %d", p, committed[p], last+1)
			}
		}
		return nil
	})
}

func (c *check) readLedger(ctx context.Context) error {
	return c.read(ctx, c.topic(schemas.TopicLedger), func(r *kgo.Record) {
		c.Leaves++
		where := fmt.Sprintf("ledger/%d/%d", r.Partition, r.Offset)
		var sealed recordpb.Sealed
		if err := proto.Unmarshal(r.Value, &sealed); err != nil {
			c.fault("%s: %v", where, err)
			return
		}
		ev := sealed.GetEvent()
		if len(sealed.GetChain()) != 16 || len(sealed.GetLeafHash()) != 32 || len(sealed.GetPrevious()) != 32 ||
			len(ev.GetWorkspace()) != 16 || len(ev.GetIncarnation()) != 16 {
			c.fault("%s: a field has the wrong size", where)
			return
		}
		c.checkLeaf(r, &sealed)
	})
}

// checkLeaf recomputes a leaf from its event and its chain's state, and adds it.
func (c *check) checkLeaf(r *kgo.Record, sealed *recordpb.Sealed) {
	ev := sealed.GetEvent()
	workspace, incarnation := [16]byte(ev.GetWorkspace()), [16]byte(ev.GetIncarnation())
	id := ledger.ChainID(sealed.GetChain())
	where := fmt.Sprintf("chain %x, sequence %d (ledger/%d/%d)", id, sealed.GetSequence(), r.Partition, r.Offset)
	if want := ledger.NewChainID(workspace, incarnation, ev.GetLane()); want != id {
		c.fault("%s: its lane's chain is %x", where, want)
	}
	if want := event.RecordKey(workspace, ev.GetLane()); !bytes.Equal(want, r.Key) {
		c.fault("%s: record key %q, want %q", where, r.Key, want)
	}
	ch, ok := c.chains[id]
	if !ok {
		ch = &chain{head: ledger.Head{Chain: id}, partition: r.Partition, workspace: workspace}
		c.chains[id] = ch
	}
	if ch.partition != r.Partition {
		c.fault("%s: the chain began on partition %d", where, ch.partition)
	}
	if sealed.GetSequence() != ch.head.Size {
		c.fault("%s: want sequence %d", where, ch.head.Size)
	}
	if previous := ledger.Hash(sealed.GetPrevious()); previous != ch.head.LastLeafHash {
		c.fault("%s: previous is %x, want %x", where, previous, ch.head.LastLeafHash)
	}

	want := ledger.Genesis(workspace, incarnation, ev.GetLane(), ev.GetLanes(), ev.GetRecordedAt(),
		uint16(sealed.GetGeneration()))
	row := leaf{ledgerOffset: r.Offset, recordedAt: ev.GetRecordedAt()}
	t := c.tails[r.Partition]
	if ev.GetKind() == recordpb.Kind_KIND_GENESIS {
		t.genesises++
		if ch.head.Size > 0 {
			c.fault("%s: a genesis inside the chain", where)
		}
	} else {
		if ch.head.Size == 0 {
			c.fault("%s: the chain does not begin with a genesis", where)
		}
		want = ledger.Leaf{
			Kind: ledger.Kind(ev.GetKind()), RecordedAt: ev.GetRecordedAt(), Generation: uint16(sealed.GetGeneration()),
			Partition: uint16(sealed.GetPartition()), Offset: sealed.GetOffset(), FieldCount: uint16(ev.GetFieldCount()),
		}
		c.checkEvent(where, sealed, r, &want)
		row.bodyRoot = want.BodyRoot
		row.id, row.body, row.inputOffset = want.ID, maphash.Bytes(c.hash, ev.GetBody()), int64(want.Offset)
	}
	hash, nodes := ch.head.Append(&want)
	if got := ledger.Hash(sealed.GetLeafHash()); got != hash {
		c.fault("%s: leaf hash %x, recomputed %x", where, got, hash)
	}
	if node := flatten(nodes); !bytes.Equal(node, sealed.GetNode()) {
		c.fault("%s: node %x, recomputed %x", where, sealed.GetNode(), node)
	}
	row.hash = hash
	ch.leaves = append(ch.leaves, row)
	c.tails[r.Partition] = tail{
		count: t.count + 1, offset: r.Offset, chain: id, leafHash: hash, genesises: t.genesises,
	}
}

// checkEvent compares a sealed event with its input, its own body and what was acknowledged, and completes want.
func (c *check) checkEvent(where string, sealed *recordpb.Sealed, r *kgo.Record, want *ledger.Leaf) {
	ev := sealed.GetEvent()
	if len(ev.GetId()) != 16 || len(ev.GetSeed()) != 16 || len(ev.GetBodyRoot()) != 32 {
		c.fault("%s: a field has the wrong size", where)
		return
	}
	want.ID, want.BodyRoot = [16]byte(ev.GetId()), ledger.Hash(ev.GetBodyRoot())
	where += ", event " + uuid(want.ID)
	position := inputPosition{r.Partition, int64(sealed.GetOffset())}
	if first, ok := c.ids[want.ID]; ok {
		c.fault("%s: sealed twice, from events/%d/%d and events/%d/%d", where,
			first.partition, first.offset, position.partition, position.offset)
	} else {
		c.ids[want.ID] = position
	}
	if in := c.input(int32(sealed.GetPartition()), position.offset); in == nil {
		// Inputs that came after the events topic was read are nobody's fault.
		if known := c.inputs[r.Partition]; len(known) > 0 && position.offset <= known[len(known)-1].offset {
			c.fault("%s: no record at events/%d/%d", where, sealed.GetPartition(), position.offset)
		}
	} else {
		in.sealed = true
		if in.value != maphash.Bytes(c.hash, rawEvent(r.Value)) {
			c.fault("%s: differs from the record at events/%d/%d", where, sealed.GetPartition(), position.offset)
		}
	}
	if sealed.GetPartition() != uint32(r.Partition) {
		c.fault("%s: sealed from partition %d to partition %d", where, sealed.GetPartition(), r.Partition)
	}
	// A redaction is in the lane of the event that it is about.
	lane := event.Lane(ev.GetResource(), ev.GetResourceId(), ev.GetActorId(), ev.GetLanes())
	if lane != ev.GetLane() && ev.GetKind() != recordpb.Kind_KIND_REDACTION {
		c.fault("%s: lane %d, want %d", where, ev.GetLane(), lane)
	}
	if r.Timestamp.UnixMilli() != ev.GetRecordedAt()/1000 {
		c.fault("%s: record time stamp %v, recorded at %v", where, r.Timestamp, time.UnixMicro(ev.GetRecordedAt()))
	}
	root, count, err := bodyRoot([16]byte(ev.GetSeed()), ev.GetBody())
	if err != nil {
		c.fault("%s: body: %v", where, err)
	} else if root != [32]byte(want.BodyRoot) || count != int(ev.GetFieldCount()) {
		c.fault("%s: body root %x of %d fields, recomputed %x of %d", where, want.BodyRoot, ev.GetFieldCount(), root, count)
	}
	c.keep(want.ID, ev.GetBody())
}

func flatten(nodes []ledger.Hash) (b []byte) {
	for i := range nodes {
		b = append(b, nodes[i][:]...)
	}
	return b
}

// rawEvent returns the bytes of field 1 of a Sealed, which are those of the events record.
func rawEvent(sealed []byte) []byte {
	for len(sealed) > 0 {
		number, kind, n := protowire.ConsumeTag(sealed)
		if n < 0 {
			return nil
		}
		if number == 1 && kind == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(sealed[n:])
			return value
		}
		skip := protowire.ConsumeFieldValue(number, kind, sealed[n:])
		if skip < 0 {
			return nil
		}
		sealed = sealed[n+skip:]
	}
	return nil
}

// bodyRoot recomputes the body root of docs/design/ledger-spec.md from a canonical body.
func bodyRoot(seed [16]byte, body []byte) (root [32]byte, count int, err error) {
	type field struct{ path, value string }
	var fields []field
	escape := strings.NewReplacer("~", "~0", "/", "~1")
	dec := jsontext.NewDecoder(bytes.NewReader(body))
	var members func(prefix string, split bool) error
	members = func(prefix string, split bool) error {
		if tok, err := dec.ReadToken(); err != nil || tok.Kind() != '{' {
			return fmt.Errorf("not an object: %w", err)
		}
		for dec.PeekKind() == '"' {
			tok, err := dec.ReadToken()
			if err != nil {
				return fmt.Errorf("reading a name: %w", err)
			}
			name := tok.String()
			if split && name == "metadata" {
				if err := members("/metadata/", false); err != nil {
					return err
				}
				continue
			}
			value, err := dec.ReadValue()
			if err != nil {
				return fmt.Errorf("reading a value: %w", err)
			}
			fields = append(fields, field{prefix + escape.Replace(name), string(value)})
		}
		_, err := dec.ReadToken()
		return err
	}
	if err := members("/", true); err != nil {
		return root, 0, err
	}
	slices.SortFunc(fields, func(a, b field) int { return strings.Compare(a.path, b.path) })
	commitments := make([][32]byte, len(fields))
	for i, f := range fields {
		commitments[i] = ledger.Commitment(seed, []byte(f.path), []byte(f.value))
	}
	return ledger.BodyRoot(commitments), len(fields), nil
}

// readDLQ marks the inputs that were given up as accounted for.
func (c *check) readDLQ(ctx context.Context) error {
	return c.read(ctx, c.topic(schemas.TopicDLQ), func(r *kgo.Record) {
		headers := map[string]string{}
		for _, h := range r.Headers {
			headers[h.Key] = string(h.Value)
		}
		partition, err1 := strconv.ParseInt(headers[schemas.DLQHeaderPartition], 10, 32)
		offset, err2 := strconv.ParseInt(headers[schemas.DLQHeaderOffset], 10, 64)
		in := c.input(int32(partition), offset)
		if err := errors.Join(err1, err2); err != nil || in == nil || in.sealed {
			c.fault("dead letter at dlq/%d/%d: from events/%d/%d, which is sealed or not there: %v",
				r.Partition, r.Offset, partition, offset, err)
			return
		}
		c.Dead++
		in.sealed = true
	})
}

// readHeads compares the heads topic with the chains that were recomputed from the ledger, and adds up the partition
// records, which must account for every input offset.
func (c *check) readHeads(ctx context.Context) error {
	committed, err := c.committed(ctx)
	if err != nil {
		return err
	}
	heads, partitions := map[ledger.ChainID]*recordpb.ChainHead{}, map[int32]*recordpb.PartitionHead{}
	err = c.read(ctx, c.topic(schemas.TopicHeads), func(r *kgo.Record) {
		where := fmt.Sprintf("heads/%d/%d, key %s", r.Partition, r.Offset, r.Key)
		if number, ok := strings.CutPrefix(string(r.Key), "partition/"); ok {
			head := &recordpb.PartitionHead{}
			if err := proto.Unmarshal(r.Value, head); err != nil || number != strconv.Itoa(int(r.Partition)) {
				c.fault("%s: not the record of this partition: %v", where, err)
				return
			}
			c.checkPartitionRecord(where, r.Partition, head, partitions[r.Partition])
			partitions[r.Partition] = head
			return
		}
		head := &recordpb.ChainHead{}
		if err := proto.Unmarshal(r.Value, head); err != nil || hex.EncodeToString(head.GetChain()) != string(r.Key) ||
			len(head.GetChain()) != 16 {
			c.fault("%s: not the record of this chain: %v", where, err)
			return
		}
		heads[ledger.ChainID(head.GetChain())] = head
	})
	if err != nil {
		return err
	}
	for id, ch := range c.chains {
		c.checkHead(id, ch, heads[id])
		delete(heads, id)
	}
	for id, head := range heads {
		c.fault("chain %x: a head of size %d, and no leaf in the ledger", id, head.GetSize())
	}
	for p, t := range c.tails {
		head := partitions[p]
		switch {
		case head == nil:
			c.fault("heads/%d: no partition record", p)
		case head.GetTotalLeaves() != t.count || head.GetLastLedgerOffset() != uint64(t.offset) ||
			!bytes.Equal(head.GetLastChain(), t.chain[:]) || !bytes.Equal(head.GetLastLeafHash(), t.leafHash[:]):
			c.fault("heads/%d: the partition record says %d leaves, the last at %d of chain %x with hash %x; "+
				"the ledger has %d, the last at %d of chain %x with hash %x", p,
				head.GetTotalLeaves(), head.GetLastLedgerOffset(), head.GetLastChain(), head.GetLastLeafHash(),
				t.count, t.offset, t.chain, t.leafHash)
		}
	}
	for p, head := range partitions {
		if int64(head.GetNext()) != committed[p] {
			c.fault("heads/%d: the partition record's next is %d, the group has committed %d", p, head.GetNext(), committed[p])
		}
	}
	return nil
}

// checkPartitionRecord checks a record against its own equation, the one before it and the inputs it answers for.
func (c *check) checkPartitionRecord(where string, p int32, head, before *recordpb.PartitionHead) {
	delivered := head.GetLeaves() - head.GetGenesis() + head.GetDuplicates() + head.GetDead()
	if head.GetNext()-head.GetFirst() != delivered+head.GetSkipped() {
		c.fault("%s: next %d - first %d is not leaves %d - genesis %d + duplicates %d + dead %d + skipped %d", where,
			head.GetNext(), head.GetFirst(), head.GetLeaves(), head.GetGenesis(), head.GetDuplicates(), head.GetDead(),
			head.GetSkipped())
	}
	if before == nil {
		before = &recordpb.PartitionHead{}
		if head.GetFirst() > 0 {
			// Compaction has taken the records before it.
			before.Next, before.TotalLeaves = head.GetFirst(), head.GetTotalLeaves()-head.GetLeaves()
		}
	}
	if head.GetFirst() != before.GetNext() || head.GetTotalLeaves() != before.GetTotalLeaves()+head.GetLeaves() {
		c.fault("%s: first %d and %d leaves in total, %d of them new, do not follow next %d and %d leaves in total", where,
			head.GetFirst(), head.GetTotalLeaves(), head.GetLeaves(), before.GetNext(), before.GetTotalLeaves())
	}
	inputs := c.inputs[p]
	if len(inputs) == 0 || inputs[len(inputs)-1].offset < int64(head.GetNext())-1 {
		return
	}
	at := func(offset uint64) int {
		return sort.Search(len(inputs), func(i int) bool { return inputs[i].offset >= int64(offset) })
	}
	if n := at(head.GetNext()) - at(head.GetFirst()); uint64(n) != delivered {
		c.fault("%s: accounts for %d inputs from %d to %d, there are %d", where, delivered, head.GetFirst(), head.GetNext(), n)
	}
}

func (c *check) checkHead(id ledger.ChainID, ch *chain, head *recordpb.ChainHead) {
	if head == nil {
		c.fault("chain %x: no head", id)
		return
	}
	root := ch.head.Root()
	if head.GetSize() != ch.head.Size || !bytes.Equal(head.GetRoot(), root[:]) ||
		!bytes.Equal(head.GetLastLeafHash(), ch.head.LastLeafHash[:]) || !bytes.Equal(head.GetRange(), flatten(ch.head.Range)) {
		c.fault("chain %x: the head says size %d, root %x, last leaf hash %x; recomputed size %d, root %x, last leaf hash %x",
			id, head.GetSize(), head.GetRoot(), head.GetLastLeafHash(), ch.head.Size, root, ch.head.LastLeafHash)
	}
	if !bytes.Equal(head.GetWorkspace(), ch.workspace[:]) {
		c.fault("chain %x: the head names workspace %x, the leaves %x", id, head.GetWorkspace(), ch.workspace)
	}
}

// poll calls condition until it returns nil. When ctx ends first, its error says what was missing.
func poll(ctx context.Context, condition func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := condition()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-tick.C:
		}
	}
}
