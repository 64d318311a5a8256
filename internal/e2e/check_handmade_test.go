package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// handmade is a small installation, made without any service, that a test spoils before it is checked. Everything is
// of one workspace; lanes and partitions are equally many, so each chain has a partition of its own.
type handmade struct {
	// inputs and sealed are by partition; an input's index is its offset, and so is a sealed record's.
	inputs map[int32][]*recordpb.Event
	sealed map[int32][]*recordpb.Sealed
	// chainHeads and partitionHeads hold one record each.
	chainHeads     map[int32]*recordpb.ChainHead
	partitionHeads map[int32]*recordpb.PartitionHead
	dead           []inputPosition
	committed      map[int32]int64
	// acks maps event ids to what was sent.
	acks map[[16]byte][]byte
	// leaves and events are what the tables hold.
	leaves, events []*tableRow
}

type tableRow struct {
	sealed       *recordpb.Sealed
	partition    int32
	ledgerOffset int
	body         string
}

const handmadeLanes = 4

var (
	handmadeWorkspace   = [16]byte{1, 2, 3}
	handmadeIncarnation = [16]byte{9, 8, 7}
)

// makeEvents returns accepted events by partition, one of which appears again as a retry, with what was acknowledged.
func makeEvents(t *testing.T, n int) *handmade {
	t.Helper()
	h := &handmade{inputs: map[int32][]*recordpb.Event{}, acks: map[[16]byte][]byte{}}
	for i := range n {
		id := [16]byte{15: byte(i), 14: byte(i >> 8), 0: 1}
		actor := fmt.Sprint("eng_", i%7)
		sent := fmt.Sprintf(`{"action":"config.changed","actor_id":%q,"metadata":{"a/b":"~","n":%d}}`, actor, i)
		body := strings.Replace(sent, `}}`, `},"occurred_at":"2026-03-01T12:00:00.000000Z"}`, 1)
		ev := &recordpb.Event{
			Id: id[:], Keyed: i%3 == 0, Kind: recordpb.Kind_KIND_EVENT, Workspace: handmadeWorkspace[:],
			Incarnation: handmadeIncarnation[:], Lanes: handmadeLanes, Lane: event.Lane("", "", actor, handmadeLanes),
			RecordedAt: 1_772_366_400_000_000 + int64(i)*1_000, Seed: id[:], ActorId: actor,
		}
		h.acks[id] = []byte(sent)
		setBody(t, ev, body)
		p := event.Partition(handmadeWorkspace, ev.GetLane(), handmadeLanes)
		h.inputs[p] = append(h.inputs[p], ev)
		if i == n/2 {
			retry := proto.CloneOf(ev)
			retry.Keyed, ev.Keyed = true, true
			retry.RecordedAt += 5_000_000
			h.inputs[p] = append(h.inputs[p], retry)
		}
	}
	return h
}

func setBody(t *testing.T, ev *recordpb.Event, body string) {
	t.Helper()
	root, count, err := bodyRoot([16]byte(ev.GetSeed()), []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	ev.Body, ev.BodyRoot, ev.FieldCount = []byte(body), root[:], uint32(count)
}

// seal does what the processor does, but for what leave says to leave out and twice to take for new although its id is
// in the ledger.
func (h *handmade) seal(leave, twice func(*recordpb.Event) bool) {
	h.sealed, h.chainHeads = map[int32][]*recordpb.Sealed{}, map[int32]*recordpb.ChainHead{}
	h.partitionHeads, h.committed = map[int32]*recordpb.PartitionHead{}, map[int32]int64{}
	h.leaves, h.events = nil, nil
	for p, inputs := range h.inputs {
		first := inputs[0]
		id := ledger.NewChainID(handmadeWorkspace, handmadeIncarnation, first.GetLane())
		head := ledger.Head{Chain: id}
		record := &recordpb.PartitionHead{Next: uint64(len(inputs)), Genesis: 1}
		add := func(ev *recordpb.Event, leaf ledger.Leaf) {
			hash, node := head.Append(&leaf)
			sealed := &recordpb.Sealed{
				Event: ev, Chain: id[:], Sequence: leaf.Sequence, Previous: leaf.Previous[:], LeafHash: hash[:],
				Node: flatten(node), Partition: uint32(leaf.Partition), Offset: leaf.Offset,
			}
			row := &tableRow{sealed: sealed, partition: p, ledgerOffset: len(h.sealed[p]), body: string(ev.GetBody())}
			h.sealed[p] = append(h.sealed[p], sealed)
			h.leaves = append(h.leaves, row)
			if leaf.Kind != ledger.KindGenesis {
				other := *row
				h.events = append(h.events, &other)
			}
			record.Leaves++
			record.LastChain, record.LastLeafHash = id[:], hash[:]
		}
		genesis := ledger.Genesis(handmadeWorkspace, handmadeIncarnation, first.GetLane(), handmadeLanes, first.GetRecordedAt(), 0)
		add(&recordpb.Event{
			Kind: recordpb.Kind_KIND_GENESIS, Workspace: first.GetWorkspace(), Incarnation: first.GetIncarnation(),
			Lane: first.GetLane(), Lanes: handmadeLanes, RecordedAt: first.GetRecordedAt(), BodyRoot: genesis.BodyRoot[:],
		}, genesis)
		seen := map[string]bool{}
		for offset, ev := range inputs {
			if (seen[string(ev.GetId())] && !twice(ev)) || leave(ev) {
				record.Duplicates++
				continue
			}
			seen[string(ev.GetId())] = true
			add(ev, ledger.Leaf{
				Kind: ledger.KindEvent, ID: [16]byte(ev.GetId()), RecordedAt: ev.GetRecordedAt(), Partition: uint16(p),
				Offset: uint64(offset), FieldCount: uint16(ev.GetFieldCount()), BodyRoot: ledger.Hash(ev.GetBodyRoot()),
			})
		}
		record.TotalLeaves, record.LastLedgerOffset = record.GetLeaves(), record.GetLeaves()-1
		root := head.Root()
		h.chainHeads[p] = &recordpb.ChainHead{
			Chain: id[:], Workspace: handmadeWorkspace[:], Incarnation: handmadeIncarnation[:], Lane: first.GetLane(),
			Lanes: handmadeLanes, Size: head.Size, Root: root[:], LastLeafHash: head.LastLeafHash[:], Range: flatten(head.Range),
		}
		h.partitionHeads[p] = record
		h.committed[p] = int64(len(inputs))
	}
}

// start writes the installation to a new broker and a new database.
func (h *handmade) start(t *testing.T) (in installation, ackLog string) {
	t.Helper()
	cluster := kafkatest.Start(t)
	var records []*kgo.Record
	add := func(topic string, p int32, key []byte, at int64, value proto.Message, headers ...kgo.RecordHeader) {
		b, err := proto.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, &kgo.Record{
			Topic: topic, Partition: p, Key: key, Value: b, Timestamp: time.UnixMicro(at), Headers: headers,
		})
	}
	for p, inputs := range h.inputs {
		for _, ev := range inputs {
			add(schemas.TopicEvents, p, event.RecordKey(handmadeWorkspace, ev.GetLane()), ev.GetRecordedAt(), ev)
		}
	}
	for p, sealed := range h.sealed {
		for _, s := range sealed {
			ev := s.GetEvent()
			add(schemas.TopicLedger, p, event.RecordKey(handmadeWorkspace, ev.GetLane()), ev.GetRecordedAt(), s)
		}
	}
	for p, head := range h.chainHeads {
		add(schemas.TopicHeads, p, hex.AppendEncode(nil, head.GetChain()), 1, head)
	}
	for p, head := range h.partitionHeads {
		add(schemas.TopicHeads, p, fmt.Append(nil, "partition/", p), 1, head)
	}
	for _, d := range h.dead {
		add(schemas.TopicDLQ, 0, nil, 1, &recordpb.Event{},
			kgo.RecordHeader{Key: schemas.DLQHeaderPartition, Value: fmt.Append(nil, d.partition)},
			kgo.RecordHeader{Key: schemas.DLQHeaderOffset, Value: fmt.Append(nil, d.offset)})
	}
	cluster.Produce(t, records...)
	offsets := kadm.Offsets{}
	for p, next := range h.committed {
		offsets.AddOffset(cluster.Config.Topic(schemas.TopicEvents), p, next, -1)
	}
	adm := kadm.NewClient(cluster.Client(t))
	if err := adm.CommitAllOffsets(t.Context(), cluster.Config.Group(schemas.GroupSeal), offsets); err != nil {
		t.Fatal(err)
	}

	server := clickhousetest.Start(t)
	conn := server.Conn(t)
	h.insert(t, conn, "leaves", "leaf_hash", h.leaves, func(r *tableRow) any { return r.sealed.GetLeafHash() })
	h.insert(t, conn, "events", "body", h.events, func(r *tableRow) any { return r.body })

	var log strings.Builder
	for id, sent := range h.acks {
		fmt.Fprintf(&log, "%s %x 2026-03-01T12:00:00Z\n", uuid(id), sha256.Sum256(sent))
	}
	ackLog = filepath.Join(t.TempDir(), "acks")
	if err := os.WriteFile(ackLog, []byte(log.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return installation{brokers: cluster.Config.Brokers, prefix: cluster.Config.TopicPrefix, clickhouse: conn}, ackLog
}

// insert fills the columns that both tables have, and one of the table's own.
func (h *handmade) insert(t *testing.T, conn driver.Conn, table, column string, rows []*tableRow, own func(*tableRow) any) {
	t.Helper()
	batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO "+table+` (part, workspace, chain, sequence, id, kind,
		recorded_at, input_offset, ledger_partition, ledger_offset, `+column+")")
	if err != nil {
		t.Fatal(err)
	}
	defer batch.Close()
	for _, r := range rows {
		ev := r.sealed.GetEvent()
		id := [16]byte{}
		copy(id[:], ev.GetId()) // none in a genesis
		if err := batch.Append(uint32(202603), handmadeWorkspace[:], r.sealed.GetChain(), r.sealed.GetSequence(), id[:],
			uint8(ev.GetKind()), time.UnixMicro(ev.GetRecordedAt()), r.sealed.GetOffset(), uint16(r.partition),
			uint64(r.ledgerOffset), own(r)); err != nil {
			t.Fatal(err)
		}
	}
	if err := batch.Send(); err != nil {
		t.Fatal(err)
	}
}
