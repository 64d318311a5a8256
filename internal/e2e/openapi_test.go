package e2e_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/ingest"
	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/query"
	"getimmutable.dev/immutable/schemas"
)

// api is the HTTP API in front of a real Kafka and a real ClickHouse, beside its own description.
type api struct {
	t      *testing.T
	doc    *openapi3.T
	routes []httpserver.Route
	url    string
	writer *control.Writer
	view   *control.View
	// stopped serves the routes of a query service that does not run, nor knows any key.
	stopped string
	// misconfigured serves the routes of a query service that changes what is configured under another master key.
	misconfigured string
	// tokens by what they may do: read, write, nothing (admin of the operators' workspace), team (admin
	// of another), limited (writes, at a rate), damaged (reads a
	// workspace whose only event cannot be shown).
	tokens map[string]string
	admit  func() error // is ingest's Admit, and its readiness
	kafka  *kafkatest.Cluster
	db     *clickhousetest.Server
	// produced are the answers seen, "GET /api/v1/events 200".
	produced map[string]bool
}

var errRefused = errors.New("the disk is full")

func admitted() error { return nil }

const (
	storedID     = "01020304-0506-0708-090a-0b0c0d0e0f10"
	redactableID = "01020304-0506-0708-090a-0b0c0d0e0f11"
	redactionID  = "01020304-0506-0708-090a-0b0c0d0e0f12"
)

func newAPI(t *testing.T) *api {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(schemas.OpenAPI)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	a := &api{t: t, doc: doc, tokens: map[string]string{}, produced: map[string]bool{}, admit: admitted}
	logger := slog.New(slog.DiscardHandler)
	kafka, db, reg := kafkatest.Start(t), clickhousetest.Start(t), prometheus.NewRegistry()
	a.kafka, a.db = kafka, db
	master := control.MasterKey{1}
	view, err := control.NewView(control.ViewConfig{Kafka: kafka.Config, MasterKey: master}, reg, logger)
	a.must(err)
	a.run(view.Run)
	writes, err := ingest.New(ingest.Config{
		Kafka: kafka.Config, Partitions: kafka.Layout.Partitions, BodyTimeout: 300 * time.Millisecond,
		Admit: func() error { return a.admit() },
	}, view, reg, logger)
	a.must(err)
	a.run(writes.Run)
	writer, err := control.NewWriter(control.WriterConfig{
		Kafka: kafka.Config, MasterKey: master, Partitions: kafka.Layout.Partitions, Timeout: time.Minute,
	}, logger)
	a.must(err)
	a.writer, a.view = writer, view
	config := query.Config{Kafka: kafka.Config, ClickHouse: db.Config(), OperatorWorkspace: "main", BodyTimeout: 300 * time.Millisecond}
	reads, err := query.New(config, view, writer, reg, logger)
	a.must(err)
	a.run(reads.Run)
	a.routes = slices.Concat(writes.Routes(), reads.Routes(),
		httpserver.HealthRoutes(reg, httpserver.Check{Name: "ingest", Ready: func(context.Context) error { return a.admit() }}))
	server := httptest.NewServer(httpserver.NewRouter(logger, a.routes...))
	t.Cleanup(server.Close)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	a.url = server.URL
	unread, err := control.NewView(control.ViewConfig{Kafka: kafka.Config, MasterKey: master}, nil, logger)
	a.must(err)
	idle, err := query.New(config, unread, writer, prometheus.NewRegistry(), logger)
	a.must(err)
	stopped := httptest.NewServer(httpserver.NewRouter(logger, idle.Routes()...))
	t.Cleanup(stopped.Close)
	a.stopped = stopped.URL
	other, err := control.NewWriter(control.WriterConfig{
		Kafka: kafka.Config, MasterKey: control.MasterKey{2}, Partitions: kafka.Layout.Partitions, Timeout: time.Minute,
	}, logger)
	a.must(err)
	wrong, err := query.New(config, view, other, prometheus.NewRegistry(), logger)
	a.must(err)
	misconfigured := httptest.NewServer(httpserver.NewRouter(logger, wrong.Routes()...))
	t.Cleanup(misconfigured.Close)
	a.misconfigured = misconfigured.URL

	main := a.workspace(writer, "main", control.Settings{})
	limited := a.workspace(writer, "limited", control.Settings{RateLimit: control.Limit{PerSecond: 0.001, Burst: 1}})
	damaged := a.workspace(writer, "damaged", control.Settings{})
	a.key(writer, view, main, "write", control.ScopeWrite)
	a.key(writer, view, main, "read", control.ScopeRead)
	a.key(writer, view, main, "nothing", control.ScopeAdmin)
	a.key(writer, view, limited, "limited", control.ScopeWrite)
	a.key(writer, view, limited, "team", control.ScopeAdmin)
	a.key(writer, view, damaged, "damaged", control.ScopeRead)
	a.eventually(func() bool { return writes.Ready(t.Context()) == nil && reads.Ready(t.Context()) == nil })

	body, err := os.ReadFile("../../schemas/testdata/fixtures/events/1-deployment.started.json")
	a.must(err)
	// None of these is on a partition that the topic has: a writer would miss its record there.
	insert := func(ws *control.Workspace, body string) {
		conn := db.Conn(t)
		a.must(conn.Exec(t.Context(), `INSERT INTO events (part, workspace, id, kind, occurred_at, recorded_at, body, sequence, ledger_partition)
			VALUES (202601, ?, unhex(?), 2, '2026-01-01 00:00:00', '2026-01-01 00:00:00', ?, 1, 1000)`,
			string(ws.ID[:]), strings.ReplaceAll(storedID, "-", ""), body))
		a.must(conn.Exec(t.Context(), "INSERT INTO leaves (part, workspace, sequence, ledger_partition) VALUES (202601, ?, 0, 1000), (202601, ?, 1, 1000)",
			string(ws.ID[:]), string(ws.ID[:])))
	}
	insert(main, string(body))
	insert(damaged, "{")
	chain := ledger.NewChainID(main.ID, main.Incarnation, 0)
	for id, kind := range map[string]ledger.Kind{redactableID: ledger.KindEvent, redactionID: ledger.KindRedaction} {
		a.must(db.Conn(t).Exec(t.Context(), `INSERT INTO events (part, workspace, id, kind, occurred_at, recorded_at, body, chain, sequence, ledger_partition)
			VALUES (202601, ?, unhex(?), ?, '2026-01-01 00:00:00', '2026-01-01 00:00:00', ?, ?, 1, 1000)`, string(main.ID[:]),
			strings.ReplaceAll(id, "-", ""), uint8(kind), `{"action":"x","actor_id":"a","metadata":{"pin":"4711"}}`, string(chain[:])))
	}
	return a
}

func (a *api) must(err error) {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
}

// run runs f until the test ends, and waits for it.
func (a *api) run(f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	a.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			a.t.Error(err)
		}
	})
}

func (a *api) eventually(condition func() bool) {
	a.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for !condition() {
		select {
		case <-tick.C:
		case <-limit:
			a.t.Fatal("never came true")
		}
	}
}

func (a *api) workspace(w *control.Writer, name string, settings control.Settings) *control.Workspace {
	a.t.Helper()
	ws, err := w.CreateWorkspace(a.t.Context(), "cli:test", control.NewWorkspace{Name: name, Settings: settings})
	a.must(err)
	return ws
}

func (a *api) key(w *control.Writer, view *control.View, ws *control.Workspace, name string, scope control.Scope) {
	a.t.Helper()
	_, secret, err := w.CreateKey(a.t.Context(), "cli:test",
		control.NewKey{Workspace: ws.ID, Name: name, Scopes: []control.Scope{scope}})
	a.must(err)
	a.tokens[name] = secret
	a.eventually(func() bool {
		_, err := view.Authenticate(secret, netip.Addr{}, time.Now(), scope)
		return err == nil
	})
}

// call is a request and the status that it must have.
type call struct {
	url          string // default api.url
	method, path string // path as in the description
	id           string // for {id} and {index}
	query        string
	key          string // of api.tokens; "" sends none
	header       http.Header
	body         io.Reader
	status       int
}

// send makes a request and holds the answer to the description.
func (a *api) send(c call) (body []byte) {
	a.t.Helper()
	target := cmp.Or(c.url, a.url) + strings.NewReplacer("{id}", c.id, "{level}", "0", "{index}", c.id).Replace(c.path)
	if c.query != "" {
		target += "?" + c.query
	}
	req, err := http.NewRequestWithContext(a.t.Context(), c.method, target, c.body)
	a.must(err)
	req.Header = c.header.Clone()
	if req.Header == nil {
		req.Header = http.Header{}
	}
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+a.tokens[c.key])
	}
	res, err := http.DefaultClient.Do(req)
	a.must(err)
	defer func() { _ = res.Body.Close() }()
	body, err = io.ReadAll(res.Body)
	a.must(err)
	name := c.method + " " + c.path
	if res.StatusCode != c.status {
		a.t.Errorf("%s?%s: %d %s, want %d", name, c.query, res.StatusCode, body, c.status)
		return body
	}
	item := a.doc.Paths.Value(c.path)
	operation := item.GetOperation(c.method)
	a.produced[name+" "+strconv.Itoa(res.StatusCode)] = true
	err = openapi3filter.ValidateResponse(a.t.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{
			Request: req, Route: &routers.Route{Spec: a.doc, Path: c.path, PathItem: item, Method: c.method, Operation: operation},
		},
		Status: res.StatusCode, Header: res.Header, Body: io.NopCloser(bytes.NewReader(body)),
		Options: &openapi3filter.Options{IncludeResponseStatus: true},
	})
	if err != nil {
		a.t.Errorf("%s: the answer is not as described: %v\n%s", name, err, body)
	}
	if id := res.Header.Get("X-Request-Id"); id == "" {
		a.t.Errorf("%s: no X-Request-Id", name)
	}
	return body
}

// TestOpenAPI holds the handlers to schemas/openapi.yaml, and the file to the handlers.
func TestOpenAPI(t *testing.T) {
	a := newAPI(t)
	a.compareRoutes()
	a.answers()
	a.parameters()
	a.newEvents()
	a.manage()
	a.ledger()
	for path, item := range a.doc.Paths.Map() {
		for method, operation := range item.Operations() {
			for status := range operation.Responses.Map() {
				if name := method + " " + path + " " + status; !a.produced[name] {
					t.Errorf("no request led to %s", name)
				}
			}
		}
	}
}

// compareRoutes: every route is described, and everything described has a route.
func (a *api) compareRoutes() {
	var described, served []string
	for path, item := range a.doc.Paths.Map() {
		for method := range item.Operations() {
			described = append(described, method+" "+path)
		}
	}
	for _, r := range a.routes {
		served = append(served, r.Method+" "+strings.ReplaceAll(r.Pattern, "...}", "}"))
	}
	slices.Sort(described)
	slices.Sort(served)
	if diff := gocmp.Diff(described, served); diff != "" {
		a.t.Errorf("paths (-described +served):\n%s", diff)
	}
}

const (
	events  = "/api/v1/events"
	batch   = "/api/v1/events/batch"
	byID    = "/api/v1/events/{id}"
	valid   = `{"actor_id":"ci","action":"deployment.started"}`
	another = `{"actor_id":"ci","action":"deployment.finished"}`
)

func text(s string) io.Reader { return strings.NewReader(s) }

// answers produces every documented answer.
func (a *api) answers() {
	get := func(path, query, key string, status int) []byte {
		return a.send(call{method: http.MethodGet, path: path, id: storedID, query: query, key: key, status: status})
	}
	post := func(path, key, body string, status int, header ...string) []byte {
		h := http.Header{"Content-Type": {"application/json"}}
		for i := 0; i < len(header); i += 2 {
			h.Set(header[i], header[i+1])
		}
		return a.send(call{method: http.MethodPost, path: path, key: key, header: h, body: text(body), status: status})
	}
	for path, one := range map[string]func(event string) string{
		events: func(event string) string { return event },
		batch:  func(event string) string { return `{"events":[` + event + `]}` },
	} {
		post(path, "write", one(valid), 202)
		post(path, "write", "{", 400)
		post(path, "", one(valid), 401)
		post(path, "read", one(valid), 403)
		post(path, "write", one(`{"metadata":{"x":"`+strings.Repeat("x", 9<<20)+`"}}`), 413)
		post(path, "write", one(valid), 415, "Content-Type", "text/plain")
		post(path, "write", one(valid), 415, "Content-Encoding", "br")
		a.admit = func() error { return errRefused }
		post(path, "write", one(valid), 503)
		a.admit = func() error { panic("a mistake of ours") }
		post(path, "write", one(valid), 500)
		a.admit = admitted
		slow, hold := io.Pipe()
		a.send(call{
			method: http.MethodPost, path: path, key: "write", header: http.Header{"Content-Type": {"application/json"}},
			body: slow, status: 408,
		})
		_ = hold.Close()
	}
	post(events, "write", `{"action":1,"nonsense":2}`, 422)
	post(batch, "write", `{"events":[]}`, 422)
	post(batch, "write", `{"events":[`+valid+`,{"actor_id":"x"},`+another+`]}`, 202)
	post(batch, "write", valid+"\n"+another+"\n", 202, "Content-Type", "application/x-ndjson")
	post(events, "write", valid, 202, "Idempotency-Key", "k")
	post(events, "write", valid, 202, "Idempotency-Key", "k")
	post(events, "write", another, 409, "Idempotency-Key", "k")
	post(events, "limited", valid, 202)
	post(events, "limited", valid, 429)
	post(batch, "limited", `{"events":[`+valid+`]}`, 429)

	if body := get(events, "", "read", 200); !bytes.Contains(body, []byte(storedID)) {
		a.t.Errorf("the stored event is not on the page: %s", body)
	}
	get(byID, "", "read", 200)
	a.send(call{method: http.MethodGet, path: byID, id: "nonsense", key: "read", status: 404})
	get(events, "limit=0", "read", 422)
	for _, path := range []string{events, byID} {
		get(path, "nonsense=1", "read", 400)
		get(path, "", "", 401)
		get(path, "", "nothing", 403)
		get(path, "", "damaged", 500)
		a.send(call{url: a.stopped, method: http.MethodGet, path: path, id: storedID, key: "read", status: 503})
	}
	get("/livez", "", "", 200)
	get("/readyz", "", "", 200)
	get("/metrics", "", "", 200)
	a.admit = func() error { return errRefused }
	get("/readyz", "", "", 503)
	a.admit = admitted
}

// parameters: every documented parameter is accepted, and the service knows no other.
func (a *api) parameters() {
	example := map[string]string{
		"limit": "10", "order": "asc", "total": "false", "metadata": "v",
		"from": "2026-01-01T00:00:00Z", "to": "2026-01-01T00:00:00Z",
		"recorded_from": "2026-01-01T00:00:00Z", "recorded_to": "2026-01-01T00:00:00Z",
	}
	get := func(q url.Values, status int) []byte {
		return a.send(call{method: http.MethodGet, path: events, query: q.Encode(), key: "read", status: status})
	}
	var described []string
	for _, p := range a.doc.Paths.Value(events).Get.Parameters {
		name := p.Value.Name
		if p.Value.Style == "deepObject" {
			name += "[key]"
		}
		described = append(described, name)
		if name == "cursor" { // its examples come from pages
			continue
		}
		value, ok := example[p.Value.Name]
		if !ok {
			value = "x"
		}
		get(url.Values{name: {value}}, 200)
		repeated := 400
		if p.Value.Schema.Value.Type.Is("array") || p.Value.Schema.Value.Type.Is("object") {
			repeated = 200
		}
		get(url.Values{name: {value, value}}, repeated)
	}
	var refusal struct {
		Details []struct{ Message string }
	}
	a.must(json.Unmarshal(get(url.Values{"nonsense": {"x"}}, 400), &refusal))
	_, list, _ := strings.Cut(refusal.Details[0].Message, "Known are: ")
	known := strings.Split(strings.TrimSuffix(list, "."), ", ")
	slices.Sort(described)
	slices.Sort(known)
	if diff := gocmp.Diff(described, known); diff != "" {
		a.t.Errorf("parameters (-described +known):\n%s", diff)
	}
}

// newEvents: what the description calls an event is accepted, and the fields are those that the service knows.
func (a *api) newEvents() {
	schema := a.doc.Components.Schemas["NewEvent"].Value
	accepted := []string{
		valid,
		`{"actor":{"id":7,"name":"n","type":"t"},"action":"x","resource":{"type":"t","id":"i","name":"n"},"version":0,
		 "targets":[{"type":"t","id":"i","name":"n","metadata":{"a":[1,null]}}],"metadata":{"a":{"b":1.5}},"ip_address":"::1",
		 "occurred_at":null,"tenant_id":"t","session_id":"s","user_agent":"u","action_category":"c","idempotency_key":"k2"}`,
	}
	fixtures, err := filepath.Glob("../../schemas/testdata/fixtures/events*/*.json")
	a.must(err)
	for _, path := range fixtures {
		b, err := os.ReadFile(path)
		a.must(err)
		accepted = append(accepted, string(b))
	}
	if len(fixtures) != 10 {
		a.t.Fatalf("%d fixtures, want 10", len(fixtures))
	}
	refused := []string{
		`{"actor_id":"a"}`, `{"action":"x"}`, `{"actor_id":"a","action":"a b"}`, `{"actor_id":"a","action":"x","nonsense":1}`,
		`{"actor_id":"a","action":"x","version":-1}`, `{"actor_id":"a","action":"x","metadata":[]}`,
		`{"actor_id":"a","action":"x","targets":[{"id":"x"}]}`, `{"actor_id":"a","action":"x","resource_name":1}`,
		`{"actor_id":"a","action":"x","session_id":"` + strings.Repeat("x", 256) + `"}`,
	}
	check := func(body string, status int) []byte {
		var value any
		a.must(json.Unmarshal([]byte(body), &value))
		if err := schema.VisitJSON(value, openapi3.EnableJSONSchema2020()); (err == nil) != (status == 202) {
			a.t.Errorf("%s: the description says %v, the answer should be %d", body, err, status)
		}
		return a.send(call{
			method: http.MethodPost, path: events, key: "write", header: http.Header{"Content-Type": {"application/json"}},
			body: text(body), status: status,
		})
	}
	for _, body := range accepted {
		check(body, 202)
	}
	for _, body := range refused {
		check(body, 422)
	}
	answer := string(check(`{"actor_id":"a","action":"x","nonsense":1}`, 422))
	for name := range schema.Properties {
		if !strings.Contains(answer, name) {
			a.t.Errorf("field %s is described, but not known: %s", name, answer)
		}
	}
}
