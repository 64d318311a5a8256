package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/query"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// clientPatience is when the published clients give up.
const clientPatience = 5 * time.Second

// management is the management API in front of a Kafka that can go away and come back.
type management struct {
	*api
	kafka  *kafkatest.Cluster
	folder string // of Kafka's data
	// keyID and workspaceID are what changes are tried on.
	keyID, workspaceID string
}

// newManagement leaves topics out that are named without their prefix.
func newManagement(t *testing.T, without ...string) *management {
	t.Helper()
	m := &management{api: &api{t: t, tokens: map[string]string{}}, folder: t.TempDir()}
	m.kafka = kafkatest.Start(t, kfake.DataDir(m.folder))
	for _, topic := range without {
		_, err := kadm.NewClient(m.kafka.Client(t)).DeleteTopic(t.Context(), m.kafka.Config.Topic(topic))
		m.must(err)
	}
	logger := slog.New(slog.DiscardHandler)
	var err error
	m.view, err = control.NewView(control.ViewConfig{Kafka: m.kafka.Config, MasterKey: control.MasterKey{1}}, nil, logger)
	m.must(err)
	m.run(m.view.Run)
	m.writer, err = control.NewWriter(control.WriterConfig{
		Kafka: m.kafka.Config, MasterKey: control.MasterKey{1}, Partitions: m.kafka.Layout.Partitions, Timeout: query.ChangeTimeout,
	}, logger)
	m.must(err)
	// Nothing is read from ClickHouse here.
	service, err := query.New(query.Config{Kafka: m.kafka.Config, ClickHouse: clickhouse.Config{DSN: "clickhouse://127.0.0.1:1/x"}},
		m.view, m.writer, prometheus.NewRegistry(), logger)
	m.must(err)
	server := httptest.NewServer(httpserver.NewRouter(logger, service.Routes()...))
	t.Cleanup(server.Close)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	m.url = server.URL

	operators := m.workspace(m.writer, "default", control.Settings{})
	m.key(m.writer, m.view, operators, "operator", control.ScopeAdmin)
	key, _, err := m.writer.CreateKey(t.Context(), "cli:test",
		control.NewKey{Workspace: operators.ID, Name: "victim", Scopes: []control.Scope{control.ScopeRead}})
	m.must(err)
	m.keyID = uuid.UUID(key.ID).String()
	m.workspaceID = uuid.UUID(m.workspace(m.writer, "victim", control.Settings{}).ID).String()
	return m
}

// change is one of the requests that change something.
type change struct{ method, path, body string }

func (m *management) changes() []change {
	key, workspace := "/api/v1/keys/"+m.keyID, "/api/v1/workspaces/"+m.workspaceID
	return []change{
		{http.MethodPost, "/api/v1/keys", `{"name":"new","scopes":["events:read"]}`},
		{http.MethodPatch, key, `{"name":"renamed"}`},
		{http.MethodPost, key + "/roll", `{}`},
		{http.MethodDelete, key, ""},
		{http.MethodPatch, "/api/v1/settings", `{"secret_policy":"reject"}`},
		{http.MethodPost, "/api/v1/workspaces", `{"name":"new"}`},
		{http.MethodPatch, workspace, `{"settings":{"secret_policy":"reject"}}`},
		{http.MethodDelete, workspace, ""},
	}
}

// do returns what came of a request, and how long it took.
func (m *management) do(c change) (status int, header http.Header, body string, took time.Duration) {
	req, err := http.NewRequestWithContext(m.t.Context(), c.method, m.url+c.path, strings.NewReader(c.body))
	if err != nil {
		m.t.Error(err)
		return 0, nil, "", 0
	}
	req.Header.Set("Authorization", "Bearer "+m.tokens["operator"])
	began := time.Now()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		m.t.Error(err)
		return 0, nil, "", 0
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		m.t.Error(err)
	}
	return res.StatusCode, res.Header, string(text), time.Since(began)
}

// unavailable makes a change, which must be a 503 in time that says what may have happened.
func (m *management) unavailable(c change, says string) {
	status, header, body, took := m.do(c)
	var answer struct{ Error, Message string }
	if err := json.Unmarshal([]byte(body), &answer); err != nil || status != http.StatusServiceUnavailable || answer.Error != "unavailable" ||
		!strings.Contains(answer.Message, says) {
		m.t.Errorf("%s %s: %d %s, want a 503 with %q", c.method, c.path, status, body, says)
	}
	if seconds, err := strconv.Atoi(header.Get("Retry-After")); err != nil || seconds < 1 {
		m.t.Errorf("%s %s: Retry-After is %q", c.method, c.path, header.Get("Retry-After"))
	}
	if took > clientPatience {
		m.t.Errorf("%s %s: answered after %v", c.method, c.path, took)
	}
}

// configured is what the config topic says.
func (m *management) configured() *control.Snapshot {
	m.t.Helper()
	snapshot, err := m.writer.Snapshot(m.t.Context())
	m.must(err)
	return snapshot
}

// reported returns the changes that the ledger will tell of: "api_key.created victim".
func (m *management) reported() (list []string) {
	m.t.Helper()
	topic := m.kafka.Config.Topic(schemas.TopicEvents)
	cl := m.kafka.Client(m.t, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(), kgo.FetchMaxWait(10*time.Millisecond))
	defer cl.Close()
	ctx, cancel := context.WithTimeout(m.t.Context(), 30*time.Second)
	defer cancel()
	ends, err := kadm.NewClient(cl).ListEndOffsets(ctx, topic)
	m.must(err)
	left := map[int32]int64{}
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[o.Partition] = o.Offset
		}
	})
	for len(left) > 0 {
		fetches := cl.PollFetches(ctx)
		m.must(fetches.Err())
		for r := range fetches.RecordsAll() {
			if !r.Attrs.IsControl() {
				var e recordpb.Event
				m.must(proto.Unmarshal(r.Value, &e))
				list = append(list, e.GetAction()+" "+e.GetResourceName())
			}
			if r.Offset+1 >= left[r.Partition] {
				delete(left, r.Partition)
			}
		}
	}
	slices.Sort(list)
	return list
}

// TestLastUseNotKnown: where the topic of last uses cannot be read, nobody is told that a key was never used, and all the rest
// works.
func TestLastUseNotKnown(t *testing.T) {
	for _, known := range []bool{true, false} {
		var without []string
		if !known {
			without = []string{schemas.TopicKeyUsage}
		}
		m := newManagement(t, without...)
		used, never := change{method: http.MethodGet, path: "/api/v1/keys"}, change{method: http.MethodGet, path: "/api/v1/keys/" + m.keyID}
		if known {
			m.eventually(func() bool { _, known := m.view.LastUsed([16]byte{}); return known })
		}
		if status, _, body, _ := m.do(used); status != http.StatusOK || strings.Contains(body, `"last_used_at":"2`) != known {
			t.Errorf("known %t: %d %s", known, status, body)
		}
		if status, _, body, _ := m.do(never); status != http.StatusOK || strings.Contains(body, `"last_used_at":null`) != known ||
			strings.Contains(body, "last_used_at") != known {
			t.Errorf("known %t: %d %s", known, status, body)
		}
		if status, _, body, _ := m.do(m.changes()[1]); status != http.StatusOK {
			t.Errorf("known %t: %d %s", known, status, body)
		}
	}
}

// TestChangesWithoutKafka: while Kafka is away every change is refused in time, and none of them is made, in part or
// later. When it is back they are.
func TestChangesWithoutKafka(t *testing.T) {
	t.Parallel() // mostly it waits
	m := newManagement(t)
	before, told := m.configured(), m.reported()
	_, port, err := net.SplitHostPort(m.kafka.Config.Brokers[0])
	m.must(err)
	m.kafka.Fake.Close()
	var all sync.WaitGroup
	for _, c := range m.changes() {
		all.Go(func() { m.unavailable(c, "Nothing was changed") })
	}
	all.Wait()
	if status, _, body, _ := m.do(change{http.MethodGet, "/api/v1/keys", ""}); status != http.StatusOK {
		t.Errorf("what is configured can still be read: %d %s", status, body)
	}

	number, err := strconv.Atoi(port)
	m.must(err)
	m.kafka.Fake, err = kfake.NewCluster(kfake.NumBrokers(1), kfake.Ports(number), kfake.DataDir(m.folder))
	m.must(err)
	t.Cleanup(m.kafka.Fake.Close)
	if diff := gocmp.Diff(before, m.configured()) + gocmp.Diff(told, m.reported()); diff != "" {
		t.Errorf("what was refused left something behind:\n%s", diff)
	}
	for _, c := range m.changes() {
		if status, _, body, _ := m.do(c); status >= 300 {
			t.Errorf("%s %s, sent again: %d %s", c.method, c.path, status, body)
		}
	}
	if n := len(m.reported()) - len(told); n != len(m.changes()) {
		t.Errorf("%d of %d changes are reported", n, len(m.changes()))
	}
}

// TestChangeOfUnknownOutcome: Kafka goes away while a change is committed, before or after it takes effect. The answer
// says that this is not known, and what is there afterwards is the change with its event, or neither.
func TestChangeOfUnknownOutcome(t *testing.T) {
	t.Parallel()
	for _, effective := range []bool{true, false} {
		t.Run("committed "+strconv.FormatBool(effective), func(t *testing.T) {
			t.Parallel() // mostly it waits
			m := newManagement(t)
			before, told := m.configured(), m.reported()
			back := m.leaveAtCommit(effective)
			m.unavailable(m.changes()[0], "not known whether the change was made")
			back()
			after := m.configured()
			made := len(after.Keys) - len(before.Keys)
			if made != 0 && made != 1 || effective != (made == 1) {
				t.Errorf("%d keys were made", made)
			}
			if made == 1 {
				told = append(told, "api_key.created new")
				slices.Sort(told)
			}
			if diff := gocmp.Diff(told, m.reported()); diff != "" {
				t.Errorf("the events are not those of the changes:\n%s", diff)
			}
		})
	}
}

// leaveAtCommit has Kafka answer nobody from the next EndTxn on, which takes effect or not, until back is called.
func (m *management) leaveAtCommit(effective bool) (back func()) {
	var met, away, over atomic.Bool
	fake := m.kafka.Fake
	fake.Control(func(r kmsg.Request) (kmsg.Response, error, bool) {
		if over.Load() {
			return nil, nil, false
		}
		fake.KeepControl()
		end, ends := r.(*kmsg.EndTxnRequest)
		if ends && !met.Swap(true) {
			if effective {
				same := *end
				versions := kversion.Stable()
				versions.SetMaxKeyVersion(end.Key(), end.Version)
				cl := m.kafka.Client(m.t, kgo.MaxVersions(versions))
				fake.SleepControl(func() {
					resp, err := same.RequestWith(m.t.Context(), cl)
					if err == nil {
						err = kerr.ErrorForCode(resp.ErrorCode)
					}
					if err != nil {
						m.t.Errorf("end the transaction: %v", err)
					}
				})
			}
			away.Store(true)
		}
		if away.Load() {
			return nil, errors.New("away"), true
		}
		return nil, nil, false
	})
	return func() { over.Store(true) }
}

// TestChangesWithoutAnswers: a Kafka that takes requests and answers none holds nobody up for longer than one that is away.
func TestChangesWithoutAnswers(t *testing.T) {
	t.Parallel()
	for name, at := range map[string]kmsg.Key{
		"at the first request": kmsg.ApiVersions, "before the transaction": kmsg.InitProducerID, "at the commit": kmsg.EndTxn,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // mostly it waits
			m := newManagement(t)
			before, told := m.configured(), m.reported()
			var frozen atomic.Bool
			thaw := make(chan struct{})
			m.kafka.Fake.Control(func(r kmsg.Request) (kmsg.Response, error, bool) {
				select {
				case <-thaw:
					return nil, nil, false
				default:
				}
				m.kafka.Fake.KeepControl()
				if r.Key() == int16(at) {
					frozen.Store(true)
				}
				if frozen.Load() {
					m.kafka.Fake.SleepControl(func() { <-thaw })
					return nil, errors.New("nobody waits for this any more"), true
				}
				return nil, nil, false
			})
			says := "Nothing was changed"
			if at == kmsg.EndTxn {
				says = "not known whether the change was made"
			}
			m.unavailable(m.changes()[0], says)
			close(thaw)
			if diff := gocmp.Diff(before, m.configured()) + gocmp.Diff(told, m.reported()); diff != "" {
				t.Errorf("what was refused left something behind:\n%s", diff)
			}
		})
	}
}
