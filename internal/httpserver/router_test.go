package httpserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

func write(text string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		WriteJSON(w, http.StatusOK, map[string]string{"from": text})
	})
}

func testRoutes() []Route {
	return []Route{
		{Method: "GET", Pattern: "/api/v1/events", Handler: write("list")},
		{Method: "POST", Pattern: "/api/v1/events", Handler: write("post")},
		{Method: "POST", Pattern: "/api/v1/events/batch", Handler: write("batch")},
		{Method: "DELETE", Pattern: "/api/v1/keys/{id}", Handler: write("delete")},
		{Method: "GET", Pattern: "/sub/", Handler: write("sub")},
	}
}

func TestRouterAnswersEverythingInJSON(t *testing.T) {
	srv := httptest.NewServer(NewRouter(slog.New(slog.DiscardHandler), testRoutes()...))
	t.Cleanup(srv.Close)
	client := srv.Client()
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	for _, tc := range []struct {
		method, path string
		status       int
		body, allow  string // body: a value that the JSON answer holds
	}{
		{"GET", "/api/v1/events", 200, "list", ""},
		{"POST", "/api/v1/events", 200, "post", ""},
		{"HEAD", "/api/v1/events", 200, "", ""},
		{"GET", "/api/v1/event", 404, "not_found", ""},
		{"GET", "/", 404, "not_found", ""},
		{"HEAD", "/nothing", 404, "", ""},
		{"GET", "//api/v1/events", 404, "not_found", ""},       // the mux would redirect
		{"GET", "/api/../api/v1/events", 404, "not_found", ""}, // the mux would redirect
		{"GET", "/sub", 404, "not_found", ""},                  // the mux would redirect
		{"GET", "/sub/x", 200, "sub", ""},
		{"PUT", "/api/v1/events", 405, "method_not_allowed", "GET, HEAD, POST"},
		{"DELETE", "/api/v1/events/batch", 405, "method_not_allowed", "POST"},
		{"GET", "/api/v1/keys/1", 405, "method_not_allowed", "DELETE"},
		{"BREW", "/api/v1/keys/1", 405, "method_not_allowed", "DELETE"},
	} {
		t.Run(tc.method+" "+tc.path, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), tc.method, srv.URL+tc.path, http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tc.status {
				t.Errorf("status %d, want %d", resp.StatusCode, tc.status)
			}
			if got := resp.Header.Get("Allow"); got != tc.allow {
				t.Errorf("Allow %q, want %q", got, tc.allow)
			}
			if got := resp.Header.Get("Content-Type"); got != "application/json" {
				t.Errorf("Content-Type %q", got)
			}
			if resp.Header.Get("X-Request-Id") == "" {
				t.Error("no X-Request-Id")
			}
			if tc.method == "HEAD" {
				if len(body) != 0 {
					t.Errorf("HEAD with a body: %q", body)
				}
				return
			}
			var object map[string]any
			if err := json.Unmarshal(body, &object); err != nil {
				t.Fatalf("not a JSON object: %v: %q", err, body)
			}
			if object["from"] != tc.body && object["error"] != tc.body {
				t.Errorf("body %s, want %q", body, tc.body)
			}
		})
	}
}

func TestRouterRequestID(t *testing.T) {
	var seen string
	h := NewRouter(slog.New(slog.DiscardHandler), Route{
		Method: "GET", Pattern: "/", Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			seen = RequestID(r.Context())
		}),
	})
	for _, tc := range []struct {
		sent string
		kept bool
	}{
		{"abc-DEF_1.2", true},
		{strings.Repeat("x", 64), true},
		{strings.Repeat("x", 65), false},
		{"", false},
		{"two words", false},
		{"evil\nline", false},
		{"ünïcode", false},
	} {
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/", http.NoBody)
		r.Header["X-Request-Id"] = []string{tc.sent}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		got := w.Header().Get("X-Request-Id")
		if got != seen {
			t.Errorf("%q: the handler saw %q, the client %q", tc.sent, seen, got)
		}
		if (got == tc.sent) != tc.kept || len(got) < 20 && !tc.kept {
			t.Errorf("%q: answered %q, want it kept: %v", tc.sent, got, tc.kept)
		}
	}
	if got := RequestID(t.Context()); got != "" {
		t.Errorf("outside of a router: %q", got)
	}
}

func TestRouterPanic(t *testing.T) {
	var log bytes.Buffer
	srv := httptest.NewServer(NewRouter(slog.New(slog.NewJSONHandler(&log, nil)),
		Route{Method: "GET", Pattern: "/early", Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Etag", "half-done")
			panic("a secret of ours")
		})},
		Route{Method: "GET", Pattern: "/late", Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte("{"))
			_ = http.NewResponseController(w).Flush()
			panic("too late")
		})},
	))
	t.Cleanup(srv.Close)

	resp, err := get(t, srv, "/early")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != http.StatusInternalServerError || resp.Header.Get("Etag") != "" || resp.Header.Get("X-Request-Id") == "" {
		t.Errorf("got %d, %v", resp.StatusCode, resp.Header)
	}
	if !strings.Contains(string(body), `"error":"internal"`) || strings.Contains(string(body), "secret") {
		t.Errorf("body %s", body)
	}
	if !strings.Contains(log.String(), "a secret of ours") || !strings.Contains(log.String(), "router_test.go") {
		t.Errorf("the log has no panic with its stack: %s", log.String())
	}

	resp, err = get(t, srv, "/late")
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	if err == nil {
		t.Error("half an answer looked like a whole one")
	}
}

func get(t *testing.T, srv *httptest.Server, path string) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	return srv.Client().Do(req)
}

func TestWriteError(t *testing.T) {
	cause := errors.New("dial tcp 10.0.0.7: refused")
	for _, tc := range []struct {
		name       string
		err        error
		status     int
		body       string
		retryAfter string
		logged     bool
	}{
		{
			"details", ValidationFailed("Fix it.", Detail{"action", "is required"}), 422,
			`{"error":"validation_failed","message":"Fix it.","details":[{"field":"action","message":"is required"}]}`, "", false,
		},
		{"no details", NotFound("No such event."), 404, `{"error":"not_found","message":"No such event."}`, "", false},
		{
			"wrapped", fmt.Errorf("reading: %w", TooLarge("At most 256 KiB.")), 413,
			`{"error":"too_large","message":"At most 256 KiB."}`, "", false,
		},
		{
			"retry after is rounded up", Unavailable("Try again.", 1200*time.Millisecond, cause), 503,
			`{"error":"unavailable","message":"Try again."}`, "2", true,
		},
		{
			"rate limited", RateLimited("Slow down.", time.Nanosecond), 429,
			`{"error":"rate_limited","message":"Slow down."}`, "1", false,
		},
		{
			"anything else", cause, 500,
			`{"error":"internal","message":"Something went wrong on our side; the request id identifies it."}`, "", true,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var log bytes.Buffer
			h := NewRouter(slog.New(slog.NewJSONHandler(&log, nil)), Route{
				Method: "GET", Pattern: "/{$}",
				Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { WriteError(w, r, tc.err) }),
			})
			w := httptest.NewRecorder()
			r := httptest.NewRequestWithContext(t.Context(), "GET", "/", http.NoBody)
			r.Header.Set("X-Request-Id", "the-id")
			h.ServeHTTP(w, r)
			if w.Code != tc.status {
				t.Errorf("status %d, want %d", w.Code, tc.status)
			}
			if diff := cmp.Diff(tc.body+"\n", w.Body.String()); diff != "" {
				t.Error(diff)
			}
			if got := w.Header().Get("Retry-After"); got != tc.retryAfter {
				t.Errorf("Retry-After %q, want %q", got, tc.retryAfter)
			}
			logged := strings.Contains(log.String(), cause.Error()) && strings.Contains(log.String(), "the-id")
			if logged != tc.logged {
				t.Errorf("log: %q", log.String())
			}
		})
	}
}

func TestUnavailableIsLoggedOnceASecond(t *testing.T) {
	var log bytes.Buffer
	h := NewRouter(slog.New(slog.NewJSONHandler(&log, nil)), Route{
		Method: "GET", Pattern: "/{$}",
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			WriteError(w, r, Unavailable("Kafka is away.", time.Second, errors.New("no broker")))
		}),
	})
	for range 100 {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), "GET", "/", http.NoBody))
	}
	if n := strings.Count(log.String(), "no broker"); n < 1 || n > 10 {
		t.Errorf("%d lines for 100 answers", n)
	}
}

func TestClientThatLeftIsNotLogged(t *testing.T) {
	logged := func(ctx context.Context) string {
		var log bytes.Buffer
		h := NewRouter(slog.New(slog.NewJSONHandler(&log, nil)), Route{
			Method: "GET", Pattern: "/{$}",
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				WriteError(w, r, Unavailable("Kafka is away.", time.Second, fmt.Errorf("wait: %w", context.Canceled)))
			}),
		})
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "GET", "/", http.NoBody))
		return log.String()
	}
	ctx, leave := context.WithCancel(t.Context())
	if logged(ctx) == "" {
		t.Error("nothing is logged while the client is there")
	}
	leave()
	if log := logged(ctx); log != "" {
		t.Errorf("logged although the client left: %s", log)
	}
}

func TestHealth(t *testing.T) {
	reg := prometheus.NewRegistry()
	prometheus.WrapRegistererWith(nil, reg).MustRegister(prometheus.NewCounter(
		prometheus.CounterOpts{Name: "immutable_test_things_total", Help: "Things."}))
	var kafka error
	h := NewRouter(slog.New(slog.DiscardHandler), append(HealthRoutes(reg,
		Check{Name: "kafka", Ready: func(context.Context) error { return kafka }},
		Check{Name: "clickhouse", Ready: func(context.Context) error { return nil }},
	), DebugRoutes()...)...)
	do := func(path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", path, http.NoBody))
		return w
	}
	for path, want := range map[string]string{
		"/livez":                             `{"status":"live"}`,
		"/readyz":                            `{"status":"ready"}`,
		"/metrics":                           "immutable_test_things_total 0",
		"/debug/pprof/":                      "full goroutine stack dump",
		"/debug/pprof/goroutine?debug=1":     "TestHealth",
		"/debug/pprof/cmdline":               ".test",
		"/debug/pprof/symbol":                "num_symbols",
		"/debug/pprof/allocs?debug=1&gc=1":   "heap profile",
		"/debug/pprof/threadcreate?debug=1":  "threadcreate profile",
		"/debug/pprof/mutex?debug=1&x=1%2C2": "mutex",
	} {
		if w := do(path); w.Code != 200 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %.200s, want %q", path, w.Code, w.Body, want)
		}
	}
	kafka = errors.New("no broker answers")
	w := do("/readyz")
	want := `{"error":"unavailable","message":"Not ready.","details":[{"field":"kafka","message":"no broker answers"}]}`
	if w.Code != 503 || w.Body.String() != want+"\n" {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
	if w := do("/livez"); w.Code != 200 {
		t.Errorf("alive whatever else is not: %d", w.Code)
	}
}

// TestFailuresAreTraced holds that the log line of a 5xx names the request and its trace.
func TestFailuresAreTraced(t *testing.T) {
	const traceID = "4bf92f3577b34da6a3ce929d0e0e4736"
	for header, want := range map[string]string{
		"00-" + traceID + "-00f067aa0ba902b7-01": traceID,
		"00-" + traceID + "-0000000000000000-01": "", // no parent
		"nonsense":                               "",
	} {
		var log bytes.Buffer
		h := NewRouter(slog.New(slog.NewJSONHandler(&log, nil)), Route{
			Method: "POST", Pattern: "/x", Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				WriteError(w, r, errors.New("kafka is away"))
			}),
		})
		r := httptest.NewRequestWithContext(t.Context(), "POST", "/x", strings.NewReader("payload"))
		r.Header.Set("Traceparent", header)
		r.Header.Set("X-Request-Id", "req-1")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if id := w.Header().Get("X-Request-Id"); id != "req-1" {
			t.Errorf("X-Request-Id of the answer is %q", id)
		}
		var line struct {
			RequestID string `json:"request_id"`
			TraceID   string `json:"trace_id"`
			Error     string `json:"error"`
		}
		if err := json.Unmarshal(log.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		if line.RequestID != "req-1" || line.TraceID != want || line.Error != "kafka is away" {
			t.Errorf("traceparent %q: logged %s", header, &log)
		}
	}
}
