package query

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/prometheus/client_golang/prometheus"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
)

func TestMain(m *testing.M) { os.Exit(clickhousetest.Main(m)) }

// deadline is for what a test waits for; it is never reached when all is well.
const deadline = 30 * time.Second

// epoch is when the first event of a test was accepted.
var epoch = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// rig is query behind a real server, in front of a real ClickHouse, with a workspace and a key.
type rig struct {
	tb      testing.TB
	db      *clickhousetest.Server
	conn    driver.Conn
	kafka   *kafkatest.Cluster
	service *Service
	reg     *prometheus.Registry
	writer  *control.Writer
	view    *control.View
	url     string
	log     *lockedBuffer
	cfg     Config
	stop    context.CancelFunc // ends Service.Run
	tenant
}

// tenant is a workspace with a key that may read it.
type tenant struct {
	workspace *control.Workspace
	token     string
}

func newRig(tb testing.TB, change ...func(*Config)) *rig {
	tb.Helper()
	db := clickhousetest.Start(tb)
	// A loaded machine must not turn totals into nulls.
	kafka := kafkatest.Start(tb)
	cfg := Config{
		Kafka: kafka.Config, ClickHouse: db.Config(), CountTimeout: 4 * time.Second, CheckpointInterval: 20 * time.Millisecond,
	}
	for _, f := range change {
		f(&cfg)
	}
	r := &rig{tb: tb, db: db, conn: db.Conn(tb), kafka: kafka, reg: prometheus.NewRegistry(), log: new(lockedBuffer)}
	logger := slog.New(slog.NewTextHandler(r.log, nil))
	var err error
	r.view, err = control.NewView(control.ViewConfig{Kafka: kafka.Config, MasterKey: control.MasterKey{1}}, r.reg, logger)
	if err != nil {
		tb.Fatal(err)
	}
	run(tb, r.view.Run)
	r.writer, err = control.NewWriter(control.WriterConfig{
		Kafka: kafka.Config, MasterKey: control.MasterKey{1}, Partitions: kafka.Layout.Partitions, Timeout: time.Minute,
	}, logger)
	if err != nil {
		tb.Fatal(err)
	}
	r.cfg = cfg
	r.serve()
	r.tenant = r.newTenant("default")
	return r
}

// serve runs a service behind an address of its own.
func (r *rig) serve() {
	r.tb.Helper()
	logger := slog.New(slog.NewTextHandler(r.log, nil))
	var err error
	if r.service, err = New(r.cfg, r.view, r.writer, r.reg, logger); err != nil {
		r.tb.Fatal(err)
	}
	r.stop = run(r.tb, r.service.Run)
	r.eventually("the service runs", func() bool {
		runs := r.service.running.TryRLock()
		if runs {
			r.service.running.RUnlock()
		}
		return runs
	})
	server := httptest.NewServer(httpserver.NewRouter(logger, r.service.Routes()...))
	r.tb.Cleanup(server.Close)
	r.tb.Cleanup(http.DefaultClient.CloseIdleConnections)
	r.url = server.URL
}

// restart ends the service and runs another in its place.
func (r *rig) restart() {
	r.tb.Helper()
	r.stop()
	r.reg = prometheus.NewRegistry()
	r.serve()
}

// exec runs a statement.
func (r *rig) exec(ctx context.Context, statement string, args ...any) {
	r.tb.Helper()
	if err := r.conn.Exec(ctx, statement, args...); err != nil {
		r.tb.Fatalf("%s: %v", statement, err)
	}
}

// run runs f until the test ends, or until the function it returns is called; both wait for it.
func run(tb testing.TB, f func(context.Context) error) (stop context.CancelFunc) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f(ctx); err != nil {
			tb.Errorf("running: %v", err)
		}
	}()
	stop = func() {
		cancel()
		<-done
	}
	tb.Cleanup(stop)
	return stop
}

func (r *rig) newTenant(name string, scopes ...control.Scope) tenant {
	r.tb.Helper()
	if len(scopes) == 0 {
		scopes = []control.Scope{control.ScopeRead}
	}
	ctx := r.tb.Context()
	ws, err := r.writer.CreateWorkspace(ctx, "cli:test", control.NewWorkspace{Name: name})
	if err != nil {
		r.tb.Fatal(err)
	}
	_, secret, err := r.writer.CreateKey(ctx, "cli:test", control.NewKey{Workspace: ws.ID, Name: "key", Scopes: scopes})
	if err != nil {
		r.tb.Fatal(err)
	}
	r.eventually("the key is known", func() bool {
		_, err := r.view.Authenticate(secret, netip.Addr{}, time.Now(), scopes[0])
		return err == nil
	})
	return tenant{ws, secret}
}

// eventually waits for a condition.
func (r *rig) eventually(what string, condition func() bool) {
	r.tb.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	limit := time.After(deadline)
	for !condition() {
		select {
		case <-tick.C:
		case <-limit:
			r.tb.Fatalf("never came true: %s", what)
		}
	}
}

// answer is what the server said.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// get asks as the tenant's key.
func (r *rig) get(t tenant, path string, query url.Values) answer {
	r.tb.Helper()
	return r.do(t.token, http.MethodGet, path+"?"+query.Encode())
}

func (r *rig) do(token, method, target string) answer {
	r.tb.Helper()
	req, err := http.NewRequestWithContext(r.tb.Context(), method, r.url+target, http.NoBody)
	if err != nil {
		r.tb.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		r.tb.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		r.tb.Fatal(err)
	}
	kind := res.Header.Get("Content-Type")
	if (kind == kindJSON || res.StatusCode != http.StatusOK) && !json.Valid(body) && method != http.MethodHead {
		r.tb.Fatalf("%s %s: %d is no JSON: %s", method, target, res.StatusCode, body)
	}
	return answer{res.StatusCode, res.Header, body}
}

// page is an answer to GET /events, as far as tests look into it.
type page struct {
	Data []struct {
		ID        string `json:"id"`
		Integrity struct {
			EventHash *string `json:"event_hash"`
			Previous  *string `json:"previous_event_hash"`
			Chain     string  `json:"chain"`
			Sequence  uint64  `json:"sequence"`
			Sealed    bool    `json:"sealed"`
		} `json:"integrity"`
	} `json:"data"`
	Pagination struct {
		HasMore    bool    `json:"has_more"`
		NextCursor *string `json:"next_cursor"`
		Total      *uint64 `json:"total"`
	} `json:"pagination"`
}

func (p page) ids() []string {
	ids := make([]string, len(p.Data))
	for i, e := range p.Data {
		ids[i] = e.ID
	}
	return ids
}

// page gets a page, which must be a 200.
func (r *rig) page(t tenant, query url.Values) page {
	r.tb.Helper()
	a := r.get(t, "/api/v1/events", query)
	if a.status != http.StatusOK {
		r.tb.Fatalf("GET /events?%s: %d %s", query.Encode(), a.status, a.body)
	}
	var p page
	if err := json.Unmarshal(a.body, &p); err != nil {
		r.tb.Fatal(err)
	}
	if p.Pagination.HasMore != (p.Pagination.NextCursor != nil) {
		r.tb.Fatalf("has_more is %t but next_cursor is %v", p.Pagination.HasMore, p.Pagination.NextCursor)
	}
	return p
}

// walk gets every page and returns the ids in the order they came.
func (r *rig) walk(t tenant, query url.Values) []string {
	r.tb.Helper()
	query = url.Values(http.Header(query).Clone())
	if query == nil {
		query = url.Values{}
	}
	ids := []string{}
	for {
		p := r.page(t, query)
		ids = append(ids, p.ids()...)
		if !p.Pagination.HasMore {
			return ids
		}
		query.Set("cursor", *p.Pagination.NextCursor)
	}
}

// lockedBuffer is a log that a test reads.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// counter returns the sum of a counter over its labels.
func (r *rig) counter(name string) float64 { return r.labelled(name, "") }

// labelled returns the sum of those children of a counter that have the label's value; "" is any.
func (r *rig) labelled(name, value string) float64 {
	r.tb.Helper()
	families, err := r.reg.Gather()
	if err != nil {
		r.tb.Fatal(err)
	}
	var sum float64
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetValue() == value {
					sum += m.GetCounter().GetValue()
				}
			}
			if value == "" {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// long skips a test of more than a second or two in a short run.
func long(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes more than a second or two")
	}
}
