package processor

import (
	"crypto/sha256"
	"encoding/binary"

	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// testPartitions is the number of partitions that kafkatest makes.
const testPartitions = 4

// testLanes of every workspace of these tests.
const testLanes = 4

// recordedAt is the time of the first event, in microseconds: the year 2100. What is older than the topics' retention, a
// real broker deletes under the test.
const recordedAt = 4_102_444_800_000_000

// fill returns n bytes that depend on the numbers.
func fill(n int, numbers ...uint64) []byte {
	var b []byte
	for _, x := range numbers {
		b = binary.BigEndian.AppendUint64(b, x)
	}
	sum := sha256.Sum256(b)
	return sum[:n]
}

// newEvent returns event number n of a workspace's lane, as ingest would have made it.
func newEvent(workspace uint64, lane uint32, n uint64, keyed bool) *recordpb.Event {
	return &recordpb.Event{
		Id: fill(16, workspace, uint64(lane), n, 1), Keyed: keyed, Kind: recordpb.Kind_KIND_EVENT,
		Workspace: fill(16, workspace, 2), Incarnation: fill(16, workspace, 3), Lane: lane, Lanes: testLanes,
		RecordedAt: recordedAt + int64(n)*1000, Seed: fill(16, workspace, n, 4),
		Body:       []byte(`{"action":"deploy","actor_id":"ci","version":1}`),
		FieldCount: 3, BodyRoot: fill(32, workspace, n, 5), OccurredAt: 1_790_000_000_000_000,
		ActorId: "ci", Action: "deploy", Resource: "service", ResourceId: "api-gateway",
		TargetTypes: []string{"pod", "node"}, TargetIds: []string{"a", ""}, Flags: []string{"x"},
		MetadataKeys: []string{"old_value", "new_value"}, MetadataValues: []string{"1", "é"},
		RequestId: "r-1",
	}
}

// failer is what helpers need of a test or of a property.
type failer interface {
	Helper()
	Fatal(args ...any)
}

func marshal(tb failer, m proto.Message) []byte {
	tb.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func partitionOf(e *recordpb.Event) int32 {
	return event.Partition([16]byte(e.GetWorkspace()), e.GetLane(), testPartitions)
}

func keyOf(e *recordpb.Event) []byte { return event.RecordKey([16]byte(e.GetWorkspace()), e.GetLane()) }

// laneOn returns the lane of a workspace that is on a partition.
func laneOn(workspace uint64, partition int32) uint32 {
	for lane := range uint32(testLanes) {
		if event.Partition([16]byte(fill(16, workspace, 2)), lane, testPartitions) == partition {
			return lane
		}
	}
	panic("as many lanes as partitions: one is on each")
}
