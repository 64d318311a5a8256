package control

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	by       = "cli:test"
	deadline = 60 * time.Second
)

var testMaster = MasterKey{1, 2, 3}

func newTestWriter(tb testing.TB, c *kafkatest.Cluster) *Writer {
	tb.Helper()
	w, err := NewWriter(WriterConfig{
		Kafka: c.Config, MasterKey: testMaster, Partitions: c.Layout.Partitions, Timeout: time.Minute,
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	return w
}

// startView runs a view until the test ends.
func startView(tb testing.TB, c *kafkatest.Cluster, master MasterKey) *View {
	tb.Helper()
	v, _ := runView(tb, ViewConfig{Kafka: c.Config, MasterKey: master})
	return v
}

// runView runs a view until stop is called or the test ends; both wait for it.
func runView(tb testing.TB, cfg ViewConfig) (v *View, stop func()) {
	tb.Helper()
	v, err := NewView(cfg, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := v.Run(ctx); err != nil {
			tb.Error(err)
		}
	}()
	stop = func() {
		cancel()
		<-done
	}
	tb.Cleanup(stop)
	return v, stop
}

func readyView(tb testing.TB, c *kafkatest.Cluster) *View {
	tb.Helper()
	v := startView(tb, c, testMaster)
	eventually(tb, "the view is ready", func() bool { return v.Ready(tb.Context()) == nil })
	return v
}

// eventually waits for a condition.
func eventually(tb testing.TB, what string, condition func() bool) {
	tb.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	limit := time.After(deadline)
	for !condition() {
		select {
		case <-tick.C:
		case <-limit:
			tb.Fatalf("never came true: %s", what)
		}
	}
}

func createWorkspace(tb testing.TB, w *Writer, name string) *Workspace {
	tb.Helper()
	ws, err := w.CreateWorkspace(tb.Context(), by, NewWorkspace{Name: name})
	if err != nil {
		tb.Fatal(err)
	}
	return ws
}

func createKey(tb testing.TB, w *Writer, ws *Workspace) (*Key, string) {
	tb.Helper()
	key, secret, err := w.CreateKey(tb.Context(), by, NewKey{Workspace: ws.ID, Name: "key", Scopes: []Scope{ScopeRead}})
	if err != nil {
		tb.Fatal(err)
	}
	return key, secret
}

// committed returns everything that is committed on a topic. Nothing else may be writing to it.
func committed(tb testing.TB, c *kafkatest.Cluster, topic string) []*kgo.Record {
	tb.Helper()
	cl := c.Client(tb, kgo.ConsumeTopics(c.Config.Topic(topic)), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(), kgo.FetchMaxWait(10*time.Millisecond))
	defer cl.Close()
	ctx, cancel := context.WithTimeout(tb.Context(), deadline)
	defer cancel()
	left := map[int32]int64{}
	ends, err := kadm.NewClient(cl).ListEndOffsets(ctx, c.Config.Topic(topic))
	if err != nil {
		tb.Fatal(err)
	}
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[o.Partition] = o.Offset
		}
	})
	var records []*kgo.Record
	for len(left) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			tb.Fatalf("%v, left %v", err, left)
		}
		for r := range fetches.RecordsAll() {
			if !r.Attrs.IsControl() {
				records = append(records, r)
			}
			if r.Offset+1 >= left[r.Partition] {
				delete(left, r.Partition)
			}
		}
	}
	return records
}

// checkTopics compares the two topics: each change of an object has exactly one event, which says the same, and each
// event has its change; the versions of an object are 1, 2, 3 and so on. It returns the actions, sorted.
func checkTopics(tb testing.TB, c *kafkatest.Cluster) []string {
	tb.Helper()
	var changes, events, actions []string
	versions, hashes := map[string]uint64{}, map[string]string{}
	for _, r := range committed(tb, c, schemas.TopicConfig) {
		var pb recordpb.Config
		if err := proto.Unmarshal(r.Value, &pb); err != nil {
			tb.Fatal(err)
		}
		if pb.GetVersion() != versions[string(r.Key)]+1 {
			tb.Errorf("%s: version %d after %d", r.Key, pb.GetVersion(), versions[string(r.Key)])
		}
		versions[string(r.Key)] = pb.GetVersion()
		kind, id, workspace := "workspace", pb.GetWorkspace().GetId(), pb.GetWorkspace().GetId()
		action := "updated"
		if pb.GetRedaction() != nil {
			kind, id, workspace = "event", pb.GetRedaction().GetEvent(), pb.GetRedaction().GetWorkspace()
		}
		if pb.GetKey() != nil {
			kind, id, workspace = "api_key", pb.GetKey().GetId(), pb.GetKey().GetWorkspace()
		}
		switch {
		case pb.GetRedaction() != nil:
			action = "redacted"
		case pb.GetVersion() == 1:
			action = "created"
		case pb.GetDeleted() && kind == "workspace":
			action = "deleted"
		case pb.GetDeleted():
			action = "revoked"
		case string(pb.GetKey().GetHash()) != hashes[string(r.Key)]:
			action = "rolled"
		}
		hashes[string(r.Key)] = string(pb.GetKey().GetHash())
		action = kind + "." + action
		actions = append(actions, action)
		changes = append(changes, fmt.Sprintf("%s %s of %x by %s at %d", action, uuid.UUID(id), workspace,
			pb.GetChangedBy(), pb.GetChangedAt()))
	}
	for _, r := range committed(tb, c, schemas.TopicEvents) {
		var pb recordpb.Event
		if err := proto.Unmarshal(r.Value, &pb); err != nil {
			tb.Fatal(err)
		}
		workspace := [16]byte(pb.GetWorkspace())
		if want := event.Partition(workspace, pb.GetLane(), c.Layout.Partitions); r.Partition != want {
			tb.Errorf("an event of lane %d is in partition %d, want %d", pb.GetLane(), r.Partition, want)
		}
		if want := event.RecordKey(workspace, pb.GetLane()); string(r.Key) != string(want) {
			tb.Errorf("an event is under %s, want %s", r.Key, want)
		}
		events = append(events, fmt.Sprintf("%s %s of %x by %s at %d", pb.GetAction(), pb.GetResourceId(), workspace,
			pb.GetActorId(), pb.GetRecordedAt()))
	}
	slices.Sort(changes)
	slices.Sort(events)
	if diff := cmp.Diff(changes, events); diff != "" {
		tb.Errorf("changes and events differ:\n%s", diff)
	}
	slices.Sort(actions)
	return actions
}
