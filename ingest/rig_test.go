package ingest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(brokerEnv); dir != "" {
		if err := serveBroker(dir); err != nil {
			log.Fatal(err)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

const (
	onePath   = "/api/v1/events"
	batchPath = "/api/v1/events/batch"
	// deadline is for what a test waits for; it is never reached when all is well.
	deadline = 30 * time.Second
	// valid is an event that nothing is wrong with.
	valid = `{"actor_id":"ci","action":"deployment.started","resource":"service","resource_id":"api"}`
)

// rig is ingest behind a real server, in front of a real broker, with a workspace and a key.
type rig struct {
	tb        testing.TB
	kafka     *kafkatest.Cluster
	service   *Service
	registry  *prometheus.Registry // the service's metrics
	view      *control.View
	writer    *control.Writer
	workspace *control.Workspace
	token     string
	url       string
	stop      context.CancelFunc // ends Service.Run
	stopped   chan struct{}
	seen      map[uuid.UUID]*kgo.Record // of the events topic
	reader    *kgo.Client
}

// with returns the same rig for a subtest.
func (r *rig) with(tb testing.TB) *rig {
	tb.Helper()
	sub := *r
	sub.tb = tb
	return &sub
}

// run runs f until the test ends, or until the function it returns is called, and waits for it.
func run(tb testing.TB, f func(context.Context) error) (stop context.CancelFunc, stopped chan struct{}) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	stopped = make(chan struct{})
	go func() {
		defer close(stopped)
		if err := f(ctx); err != nil {
			tb.Errorf("run: %v", err)
		}
	}()
	tb.Cleanup(func() { cancel(); <-stopped })
	return cancel, stopped
}

func newRig(tb testing.TB, cluster *kafkatest.Cluster, change func(*Config)) *rig {
	tb.Helper()
	logger := slog.New(slog.DiscardHandler)
	master := control.MasterKey{1}
	r := &rig{tb: tb, kafka: cluster, seen: make(map[uuid.UUID]*kgo.Record)}
	var err error
	r.view, err = control.NewView(control.ViewConfig{Kafka: cluster.Config, MasterKey: master}, prometheus.NewRegistry(), logger)
	if err != nil {
		tb.Fatal(err)
	}
	r.writer, err = control.NewWriter(
		control.WriterConfig{Kafka: cluster.Config, MasterKey: master, Partitions: cluster.Layout.Partitions}, logger)
	if err != nil {
		tb.Fatal(err)
	}
	r.workspace, err = r.writer.CreateWorkspace(tb.Context(), "cli:test", control.NewWorkspace{Name: "default"})
	if err != nil {
		tb.Fatal(err)
	}
	run(tb, r.view.Run)
	_, r.token = r.key(control.NewKey{})

	cfg := Config{Kafka: cluster.Config, Partitions: cluster.Layout.Partitions}
	if change != nil {
		change(&cfg)
	}
	r.registry = prometheus.NewRegistry()
	r.service, err = New(cfg, r.view, r.registry, logger)
	if err != nil {
		tb.Fatal(err)
	}
	r.stop, r.stopped = run(tb, r.service.Run)
	server, err := httpserver.New(httpserver.Config{Addr: "127.0.0.1:0"},
		httpserver.NewRouter(logger, r.service.Routes()...), logger)
	if err != nil {
		tb.Fatal(err)
	}
	if err := server.Listen(); err != nil {
		tb.Fatal(err)
	}
	run(tb, server.Run)
	r.url = "http://" + server.Addr()
	tb.Cleanup(http.DefaultClient.CloseIdleConnections)
	r.reader = r.kafka.Client(r.tb, kgo.ConsumeTopics(r.kafka.Config.Topic(schemas.TopicEvents)),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(50*time.Millisecond))
	r.eventually("ready", func() bool { return r.service.Ready(tb.Context()) == nil })
	return r
}

// key creates a key of the rig's workspace, with the scope events:write if it names none, and waits until the view
// knows it.
func (r *rig) key(k control.NewKey) (*control.Key, string) {
	r.tb.Helper()
	k.Workspace, k.Name = r.workspace.ID, "test"
	if k.Scopes == nil {
		k.Scopes = []control.Scope{control.ScopeWrite}
	}
	key, token, err := r.writer.CreateKey(r.tb.Context(), "cli:test", k)
	if err != nil {
		r.tb.Fatal(err)
	}
	r.eventually("a new key in the view", func() bool {
		for _, known := range r.view.Keys(r.workspace.ID) {
			if known.ID == key.ID {
				return true
			}
		}
		return false
	})
	return key, token
}

// eventually waits until ok.
func (r *rig) eventually(what string, ok func() bool) {
	r.tb.Helper()
	timeout := time.After(deadline)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-timeout:
			r.tb.Fatalf("not after %s: %s", deadline, what)
		}
	}
}

// response is an answer, read to its end.
type response struct {
	code   int
	header http.Header
	body   string
}

// post sends body with the rig's key. headers are pairs; an empty value removes one.
func (r *rig) post(path string, body io.Reader, headers ...string) response {
	r.tb.Helper()
	return r.send(r.request(http.MethodPost, path, body, headers...))
}

func (r *rig) request(method, path string, body io.Reader, headers ...string) *http.Request {
	r.tb.Helper()
	req, err := http.NewRequestWithContext(r.tb.Context(), method, r.url+path, body)
	if err != nil {
		r.tb.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+r.token)
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(headers); i += 2 {
		if req.Header.Set(headers[i], headers[i+1]); headers[i+1] == "" {
			req.Header.Del(headers[i])
		}
	}
	return req
}

func (r *rig) send(req *http.Request) response {
	r.tb.Helper()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		r.tb.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		r.tb.Fatal(err)
	}
	if res.Header.Get("Content-Type") != "application/json" || res.Header.Get("X-Request-Id") == "" {
		r.tb.Errorf("%d without a JSON content type or a request id: %v", res.StatusCode, res.Header)
	}
	return response{res.StatusCode, res.Header, strings.TrimSuffix(string(body), "\n")}
}

// want checks an answer, byte for byte.
func (r *rig) want(got response, code int, body string) {
	r.tb.Helper()
	if got.code != code {
		r.tb.Errorf("%d, want %d: %s", got.code, code, got.body)
	} else if diff := cmp.Diff(body, got.body); diff != "" {
		r.tb.Errorf("%d: (-want +got)\n%s", code, diff)
	}
}

// item is one event's part of an answer.
type item struct {
	ID      string              `json:"id"`
	Status  string              `json:"status"`
	Index   *int                `json:"index"`
	Error   string              `json:"error"`
	Message string              `json:"message"`
	Details []httpserver.Detail `json:"details"`
}

// queued checks that the answer is a 202 for one event, and returns its record.
func (r *rig) queued(got response) *recordpb.Event {
	r.tb.Helper()
	var it item
	r.accepted(got, &it)
	if it.Status != statusQueued {
		r.tb.Fatalf("status %q", it.Status)
	}
	return r.record(it.ID)
}

// batch checks that the answer is a 202 for n events, and returns what it says of each. The record of each queued one
// has been checked.
func (r *rig) batch(got response, n int) []item {
	r.tb.Helper()
	var answer struct{ Events []item }
	r.accepted(got, &answer)
	if len(answer.Events) != n {
		r.tb.Fatalf("%d items, want %d", len(answer.Events), n)
	}
	for i, it := range answer.Events {
		switch it.Status {
		case statusQueued:
			r.record(it.ID)
		case statusRejected:
			if it.Index == nil || *it.Index != i {
				r.tb.Errorf("item %d has another index: %+v", i, it)
			}
		}
	}
	return answer.Events
}

func (r *rig) accepted(got response, v any) {
	r.tb.Helper()
	if got.code != http.StatusAccepted {
		r.tb.Fatalf("%d: %s", got.code, got.body)
	}
	dec := json.NewDecoder(strings.NewReader(got.body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		r.tb.Fatal(err)
	}
}

// record returns the event with this id from the topic, where it must be, after checking what surrounds it.
func (r *rig) record(id string) *recordpb.Event {
	r.tb.Helper()
	want, err := uuid.Parse(id)
	if err != nil {
		r.tb.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(r.tb.Context(), deadline)
	defer cancel()
	for r.seen[want] == nil {
		fetches := r.reader.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			r.tb.Fatalf("event %s is not on the topic: %v", id, err)
		}
		fetches.EachRecord(func(rec *kgo.Record) {
			var e recordpb.Event
			if err := proto.Unmarshal(rec.Value, &e); err != nil {
				r.tb.Fatalf("partition %d, offset %d: %v", rec.Partition, rec.Offset, err)
			}
			if r.seen[uuid.UUID(e.Id)] != nil && !e.Keyed {
				r.tb.Errorf("event %x is on the topic twice", e.Id)
			}
			r.seen[uuid.UUID(e.Id)] = rec
		})
	}
	rec := r.seen[want]
	var e recordpb.Event
	if err := proto.Unmarshal(rec.Value, &e); err != nil {
		r.tb.Fatal(err)
	}
	if p := event.Partition(r.workspace.ID, e.Lane, r.kafka.Layout.Partitions); rec.Partition != p {
		r.tb.Errorf("lane %d is on partition %d, want %d", e.Lane, rec.Partition, p)
	}
	if key := event.RecordKey(r.workspace.ID, e.Lane); !bytes.Equal(rec.Key, key) {
		r.tb.Errorf("key %q, want %q", rec.Key, key)
	}
	if got := rec.Timestamp.UnixMilli(); got != e.RecordedAt/1000 {
		r.tb.Errorf("time stamp %d, want %d", got, e.RecordedAt/1000)
	}
	if !bytes.Equal(e.Workspace, r.workspace.ID[:]) || !bytes.Equal(e.Incarnation, r.workspace.Incarnation[:]) {
		r.tb.Error("the record is of another workspace")
	}
	return &e
}

// records returns how many records there are on the events topic.
func (r *rig) records() (n int64) {
	for _, p := range r.kafka.Fake.PartitionInfos(r.kafka.Config.Topic(schemas.TopicEvents)) {
		n += p.HighWatermark
	}
	return n
}

// value returns what a counter or gauge stands at.
func value(tb testing.TB, m prometheus.Metric) float64 {
	tb.Helper()
	var out dto.Metric
	if err := m.Write(&out); err != nil {
		tb.Fatal(err)
	}
	return out.GetCounter().GetValue() + out.GetGauge().GetValue()
}

// moved runs f and checks by how much a counter moves.
func moved(tb testing.TB, m prometheus.Metric, by float64, f func()) {
	tb.Helper()
	before := value(tb, m)
	f()
	if got := value(tb, m) - before; got != by {
		tb.Errorf("the counter moved by %g, want %g", got, by)
	}
}

func batchOf(events ...string) io.Reader {
	return strings.NewReader(`{"events":[` + strings.Join(events, ",") + `]}`)
}

var errTest = errors.New("the disk is nearly full")
