package query

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/column"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/internal/notarytest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// stored is an event that was put into ClickHouse.
type stored struct {
	id         string
	occurredAt int64
	recordedAt int64
	leaf       ledger.Leaf
	json       string // as it was sent
}

// loader seals events as the processor does and writes them as the ClickHouse writer does.
type loader struct {
	rig   *rig
	build *event.Builder
	// workspace is the tenant's, as the builder sees it.
	workspace *event.Workspace
	heads     map[uint32]*ledger.Head
	clock     time.Time
	offset    uint64
	kind      ledger.Kind // of what is added, where it is no event
}

func (r *rig) newLoader(t tenant) *loader {
	return &loader{
		rig: r, workspace: t.workspace.ForEvents(), build: event.NewBuilder(), heads: map[uint32]*ledger.Head{}, clock: epoch,
	}
}

// add stores events, a millisecond after one another, leaves before events.
func (l *loader) add(bodies ...string) []stored {
	tb, ctx := l.rig.tb, l.rig.tb.Context()
	tb.Helper()
	events, err := l.rig.conn.PrepareBatch(ctx, "INSERT INTO events")
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = events.Close() }() // an insert left open would stand in the way of dropping the tables
	leaves, err := l.rig.conn.PrepareBatch(ctx, "INSERT INTO leaves")
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = leaves.Close() }()
	part := uint32(l.clock.Year()*100 + int(l.clock.Month()))
	list := make([]stored, len(bodies))
	for i, body := range bodies {
		l.clock = l.clock.Add(time.Millisecond)
		rec, err := l.build.Build(l.workspace, event.Input{JSON: []byte(body), RecordedAt: l.clock})
		if err != nil {
			tb.Fatalf("building %s: %v", body, err)
		}
		var e recordpb.Event
		if err := proto.Unmarshal(rec.Value, &e); err != nil {
			tb.Fatal(err)
		}
		if l.kind != 0 {
			e.Kind = recordpb.Kind(l.kind)
		}
		head, ok := l.heads[e.GetLane()]
		if !ok {
			genesis := ledger.Genesis([16]byte(e.GetWorkspace()), [16]byte(e.GetIncarnation()), e.GetLane(), e.GetLanes(), e.GetRecordedAt(), 0)
			head = &ledger.Head{Chain: genesis.Chain}
			l.heads[e.GetLane()] = head
			_, node := head.Append(&genesis)
			appendLeaf(tb, leaves, part, &e, &genesis, node, l.offset)
			l.offset++
		}
		leaf := ledger.Leaf{
			Kind: ledger.Kind(e.GetKind()), ID: rec.ID, RecordedAt: e.GetRecordedAt(), Offset: l.offset,
			FieldCount: uint16(e.GetFieldCount()), BodyRoot: ledger.Hash(e.GetBodyRoot()),
		}
		l.offset++
		_, node := head.Append(&leaf)
		appendLeaf(tb, leaves, part, &e, &leaf, node, leaf.Offset)
		metadata := pairs{e.GetMetadataKeys(), e.GetMetadataValues()}
		if err := events.Append(
			part, e.GetWorkspace(), e.GetId(), uint8(e.GetKind()), time.UnixMicro(e.GetOccurredAt()), time.UnixMicro(e.GetRecordedAt()),
			e.GetAction(), e.GetActionCategory(), e.GetActorId(), e.GetActorName(), e.GetActorType(),
			e.GetResource(), e.GetResourceId(), e.GetResourceName(), e.GetSessionId(), e.GetTenantId(), e.GetIpAddress(), e.GetUserAgent(),
			e.GetTargetTypes(), e.GetTargetIds(), e.GetFlags(), metadata, e.GetBody(),
			leaf.Chain[:], leaf.Sequence, e.GetSeed(), "", uint16(0), uint16(0), leaf.Offset, uint16(0), leaf.Offset,
		); err != nil {
			tb.Fatal(err)
		}
		list[i] = stored{
			id: uuid.UUID(rec.ID).String(), occurredAt: e.GetOccurredAt(), recordedAt: e.GetRecordedAt(), leaf: leaf, json: body,
		}
	}
	if err := leaves.Send(); err != nil {
		tb.Fatal(err)
	}
	if err := events.Send(); err != nil {
		tb.Fatal(err)
	}
	return list
}

func appendLeaf(
	tb testing.TB, batch driver.Batch, part uint32, e *recordpb.Event, leaf *ledger.Leaf, node []ledger.Hash, ledgerOffset uint64,
) {
	tb.Helper()
	hash := leaf.Hash()
	var nodes []byte
	for _, h := range node {
		nodes = append(nodes, h[:]...)
	}
	if err := batch.Append(
		part, e.GetWorkspace(), leaf.Chain[:], leaf.Sequence, hash[:], nodes, leaf.ID[:], uint8(leaf.Kind), time.UnixMicro(leaf.RecordedAt),
		leaf.Generation, leaf.Partition, leaf.Offset, uint16(0), ledgerOffset, e.GetIncarnation(), e.GetLane(), e.GetLanes(),
	); err != nil {
		tb.Fatal(err)
	}
}

// chains are those of the loader's workspace, as an epoch finds them.
func (l *loader) chains() (list []notarytest.Chain) {
	for _, lane := range slices.Sorted(maps.Keys(l.heads)) {
		list = append(list, notarytest.Chain{
			Head: l.heads[lane].Clone(), Workspace: l.workspace.ID, Incarnation: l.workspace.Incarnation, Lane: lane, Lanes: l.workspace.Lanes,
		})
	}
	return list
}

// pairs is a Map(String, String) in which a key can come several times (clickhouse-go: column.IterableOrderedMap).
type pairs struct{ keys, values []string }

func (p pairs) Put(any, any) {}

func (p pairs) Iterator() column.MapIterator { return &pairIterator{pairs: p, at: -1} }

type pairIterator struct {
	pairs
	at int
}

func (i *pairIterator) Next() bool { i.at++; return i.at < len(i.keys) }
func (i *pairIterator) Key() any   { return i.keys[i.at] }
func (i *pairIterator) Value() any { return i.values[i.at] }
