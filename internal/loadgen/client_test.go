package loadgen

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is an ingest that keeps what it accepted by idempotency key and can fail on the way in and on the way out.
type server struct {
	mu     sync.Mutex
	stored map[string][32]byte // by id
	posts  int
	fail   func(post int, w http.ResponseWriter) (done bool) // before storing
	lose   func(post int) bool                               // the answer, after storing
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.posts++
	if r.Header.Get("Authorization") != "Bearer imk_sk_test" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if s.fail != nil && s.fail(s.posts, w) {
		return
	}
	var events []json.RawMessage
	body, _ := io.ReadAll(r.Body)
	switch {
	case r.URL.Path == "/api/v1/events":
		events = []json.RawMessage{body}
	case r.Header.Get("Content-Type") == "application/x-ndjson":
		for sc := bufio.NewScanner(bytes.NewReader(body)); sc.Scan(); {
			events = append(events, bytes.Clone(sc.Bytes()))
		}
	default:
		var batch struct{ Events []json.RawMessage }
		if err := json.Unmarshal(body, &batch); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		events = batch.Events
	}
	type item struct {
		ID     string `json:"id,omitempty"`
		Status string `json:"status"`
	}
	var items []item
	for _, ev := range events {
		var keyed struct {
			Key string `json:"idempotency_key"`
		}
		if json.Unmarshal(ev, &keyed) != nil {
			items = append(items, item{Status: "rejected"})
			continue
		}
		id := keyed.Key
		if id == "" {
			id = fmt.Sprint("v7-", len(s.stored))
		}
		status := "queued"
		if _, ok := s.stored[id]; ok {
			status = "duplicate"
		}
		s.stored[id] = sha256.Sum256(ev)
		items = append(items, item{ID: id, Status: status})
	}
	if s.lose != nil && s.lose(s.posts) {
		panic(http.ErrAbortHandler)
	}
	w.WriteHeader(http.StatusAccepted)
	if r.URL.Path == "/api/v1/events" {
		_ = json.NewEncoder(w).Encode(items[0])
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"events": items})
}

// run posts events to srv and returns the counts and what the log says.
func run(t *testing.T, srv *server, cfg ClientConfig, gen Config, events int) (Stats, map[string][32]byte, error) {
	t.Helper()
	srv.stored = map[string][32]byte{}
	hs := httptest.NewServer(srv)
	defer hs.Close()
	path := filepath.Join(t.TempDir(), "acks")
	acks, err := OpenAckLog(path)
	if err != nil {
		t.Fatal(err)
	}
	defer acks.Close()
	cfg.BaseURL = hs.URL + "/api/v1"
	if cfg.APIKey == "" {
		cfg.APIKey = "imk_sk_test"
	}
	client, err := NewClient(cfg, newGenerator(t, gen), acks)
	if err != nil {
		t.Fatal(err)
	}
	runErr := client.Run(t.Context(), events)
	logged := map[string][32]byte{}
	var lines int64
	if err := ReadAckLog(path, func(a Ack) error {
		lines++
		if time.Since(a.At) > time.Minute {
			t.Errorf("acknowledged at %v", a.At)
		}
		logged[a.ID] = a.SHA256
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if stats := client.Stats(); stats.Acknowledged() != lines {
		t.Errorf("%d acknowledged, %d lines in the log", stats.Acknowledged(), lines)
	}
	return client.Stats(), logged, runErr
}

func TestClientSettlesEveryEvent(t *testing.T) {
	answer := func(status int) func(int, http.ResponseWriter) bool {
		return func(post int, w http.ResponseWriter) bool {
			if post%3 != 1 {
				return false
			}
			if post == 4 {
				w.Header().Set("Retry-After", "0")
			}
			w.WriteHeader(status)
			return true
		}
	}
	lose := func(post int) bool { return post%3 == 1 }
	const events = 1_030
	for _, tc := range []struct {
		name   string
		cfg    ClientConfig
		server *server
		keyed  int
		// want is checked with the number of attempts taken out.
		want Stats
		// tries says that some attempts failed.
		tries bool
	}{
		{"single", ClientConfig{Format: Single, Concurrency: 8}, &server{}, 30, Stats{Queued: events}, false},
		{"batch", ClientConfig{}, &server{}, 30, Stats{Queued: events}, false},
		{"ndjson", ClientConfig{Format: NDJSON, EventsPerRequest: 64}, &server{}, 30, Stats{Queued: events}, false},
		{"503 with keys", ClientConfig{}, &server{fail: answer(503)}, 100, Stats{Queued: events}, true},
		{"500 with keys", ClientConfig{}, &server{fail: answer(500)}, 100, Stats{Queued: events}, true},
		{"429 without keys", ClientConfig{}, &server{fail: answer(429)}, 0, Stats{Queued: events}, true},
		{
			"503 without keys",
			ClientConfig{Concurrency: 1, EventsPerRequest: 103},
			&server{fail: answer(503)},
			0,
			Stats{Queued: 6 * 103, Unknown: 4 * 103},
			true,
		},
		{
			"lost answer with keys",
			ClientConfig{Concurrency: 1, EventsPerRequest: 103},
			&server{lose: lose},
			100,
			Stats{Queued: 5 * 103, Duplicates: 5 * 103},
			true,
		},
		{
			"lost answer without keys",
			ClientConfig{Concurrency: 1, EventsPerRequest: 103},
			&server{lose: lose},
			0,
			Stats{Queued: 6 * 103, Unknown: 4 * 103},
			true,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			stats, logged, err := run(t, tc.server, tc.cfg, Config{Seed: 3, KeyedPercent: tc.keyed}, events)
			if err != nil {
				t.Fatal(err)
			}
			if tries := stats.Unavailable+stats.RateLimited+stats.Failed > 0; tries != tc.tries {
				t.Errorf("failed attempts: %v, want %v", stats, tc.tries)
			}
			stats.Unavailable, stats.RateLimited, stats.Failed = 0, 0, 0
			if diff := cmp.Diff(tc.want, stats); diff != "" {
				t.Errorf("counts (-want +got):\n%s", diff)
			}
			for id, sum := range logged {
				if tc.server.stored[id] != sum {
					t.Errorf("%s was acknowledged and is not stored as sent", id)
				}
			}
		})
	}
}

func TestClientStopsWhereGoingOnIsPointless(t *testing.T) {
	stats, _, err := run(t, &server{}, ClientConfig{APIKey: "imk_sk_other"}, Config{}, 10)
	if err == nil || stats.Acknowledged() != 0 {
		t.Errorf("error %v, counts %+v", err, stats)
	}
}

func TestAckLogLeavesOutACutLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "acks")
	sum := fmt.Sprintf("%x", sha256.Sum256(nil))
	whole := "a " + sum + " 2026-01-02T03:04:05.6Z\n"
	for name, tc := range map[string]struct {
		text string
		want int
		ok   bool
	}{
		"empty":      {"", 0, true},
		"cut":        {whole + "b " + sum[:20], 1, true},
		"two words":  {"a " + sum + "\n", 0, false},
		"short hash": {"a 00 2026-01-02T03:04:05.6Z\n", 0, false},
		"bad time":   {"a " + sum + " yesterday\n", 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			lines := 0
			err := ReadAckLog(path, func(Ack) error { lines++; return nil })
			if lines != tc.want || (err == nil) != tc.ok {
				t.Errorf("%d lines, error %v", lines, err)
			}
		})
	}
}
