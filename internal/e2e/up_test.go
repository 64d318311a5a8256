package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"getimmutable.dev/immutable/internal/loadgen"
)

// TestUp uses one installation as a user would from the first start on. The parts build on each other.
func TestUp(t *testing.T) {
	long(t)
	s := up(t)
	posted := 0
	t.Run("fixtures", func(t *testing.T) { posted += postFixtures(t, s, "events") })
	t.Run("fixtures of the clients", func(t *testing.T) { posted += postFixtures(t, s, "events-sdk") })
	t.Run("unknown paths", func(t *testing.T) { unknownPaths(t, s) })
	t.Run("revoked key", func(t *testing.T) { revokedKey(t, s.stack, "--data="+s.data) })
	t.Run("changes in the ledger", func(t *testing.T) { changesInLedger(t, s) })
	t.Run("second start on the same data", func(t *testing.T) {
		p := start(t, "second-up", nil, s.binary, "up", "--addr=127.0.0.1:0", "--data="+s.data)
		if state := p.wait(t, startLimit); state.ExitCode() != 1 || !strings.Contains(p.tail(20), s.data) {
			t.Errorf("ended with %v:\n%s", state, p.tail(20))
		}
	})
	t.Run("pages while a writer inserts", func(t *testing.T) { walkWhileWriting(t, s) })
	t.Run("clickhouse down", func(t *testing.T) { clickhouseDown(t, s) })
	t.Run("stop under load and start again", func(t *testing.T) {
		loaded := time.Now().UTC().Truncate(time.Second)
		l := s.startLoad(t, loadgen.Config{Seed: 901, KeyedPercent: 100}, loadgen.ClientConfig{}, 1_000_000)
		l.acknowledges(t, 3_000)
		began := time.Now()
		s.stop(t)
		stopped := time.Since(began)
		began = time.Now()
		s.start()
		s.ready(t)
		t.Logf("stopped in %v under load, ready again in %v", stopped, time.Since(began))
		// The next writing down is a minute away: it was the stop's.
		if used := lastUsed(t, s, "up"); used.Before(loaded) {
			t.Errorf("the key was last used at %v, but the load used it from %v on", used, loaded)
		}
		l.acknowledges(t, 1_000)
		l.quit(t)
	})
	if t.Failed() {
		return
	}
	// The events posted by hand come before the load in time, but for its past ones.
	var got page
	s.get(t, "/events", url.Values{"resource_id": {"api-gateway"}, "session_id": {"sess_b2c3d4e5"}}, &got)
	if len(got.Data) != 2 {
		t.Errorf("after the restart there are %d of the 2 configuration changes", len(got.Data))
	}
	t.Logf("check: %s", s.check(t, posted+26_000))
}

// postFixtures posts the five bodies as they are and reads the history of one resource.
func postFixtures(t *testing.T, s *upStack, folder string) (posted int) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(root, "schemas/testdata/fixtures", folder, "*.json"))
	if err != nil || len(paths) != 5 {
		t.Fatalf("%d fixtures: %v", len(paths), err)
	}
	type sent struct {
		id   string
		body map[string]any
	}
	var gateway []sent // newest first
	for _, path := range paths {
		body, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		ev := sent{id: s.post(t, body)}
		if err := json.Unmarshal(body, &ev.body); err != nil {
			t.Fatal(err)
		}
		service := ev.body["metadata"].(map[string]any)["service"]
		if ev.body["resource_id"] == "api-gateway" || service == "api-gateway" {
			gateway = append([]sent{ev}, gateway...)
		}
	}
	var got page
	eventually(t, 2*time.Second, func() error {
		query := url.Values{"resource_id": {"api-gateway"}, "limit": {"20"}}
		if err := s.tryGet(t.Context(), "/events", query, &got); err != nil {
			return err
		}
		if len(got.Data) < len(gateway) || got.Data[0]["id"] != gateway[0].id {
			return fmt.Errorf("the newest event is not readable yet: %d events", len(got.Data))
		}
		return nil
	})
	for i, want := range gateway {
		checkShape(t, got.Data[i], want.id, want.body)
	}
	var one struct {
		Data map[string]any `json:"data"`
	}
	s.get(t, "/events/"+gateway[0].id, nil, &one)
	if diff := cmp.Diff(got.Data[0], one.Data); diff != "" {
		t.Errorf("GET /events/{id} differs from the page (-page +event):\n%s", diff)
	}
	return len(paths)
}

// checkShape compares an event as read with what was sent: metadata as it was, the other names flat and nested.
func checkShape(t *testing.T, got map[string]any, id string, sent map[string]any) {
	t.Helper()
	want := map[string]any{
		"id": id, "action": sent["action"], "session_id": sent["session_id"], "metadata": sent["metadata"],
		"actor_id": sent["actor_id"], "actor_name": sent["actor_name"], "actor_type": sent["actor_type"],
		"resource_id": "api-gateway", "resource_name": sent["resource_name"], "resource_type": sent["resource"],
		"actor":    map[string]any{"id": sent["actor_id"], "name": sent["actor_name"], "type": sent["actor_type"]},
		"resource": map[string]any{"type": sent["resource"], "id": "api-gateway", "name": sent["resource_name"]},
		"targets":  []any{}, "tenant_id": nil, "ip_address": nil, "user_agent": nil, "idempotency_key": nil,
	}
	for name, value := range want {
		field, ok := got[name]
		if diff := cmp.Diff(value, field); diff != "" || !ok {
			t.Errorf("event %s, %s (-sent +read):\n%s", id, name, diff)
		}
	}
	integrity, _ := got["integrity"].(map[string]any)
	if hash, _ := integrity["event_hash"].(string); len(hash) != 64 || integrity["sealed"] != true {
		t.Errorf("event %s, integrity: %v", id, integrity)
	}
	for _, name := range []string{"occurred_at", "created_at"} {
		text, _ := got[name].(string)
		if at, err := time.Parse("2006-01-02T15:04:05.000000Z", text); err != nil || time.Since(at).Abs() > time.Minute {
			t.Errorf("event %s, %s: %q", id, name, text)
		}
	}
}

func unknownPaths(t *testing.T, s *upStack) {
	t.Helper()
	for _, tc := range []struct {
		method, path, code string
		status             int
	}{
		{http.MethodGet, "/nowhere", "not_found", 404},
		{http.MethodPost, "/api/v1/nowhere", "not_found", 404},
		{http.MethodDelete, "/api/v1/events", "", 405},
	} {
		status, header, body, err := s.do(t.Context(), tc.method, "http://"+queryHost+tc.path, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		var answer struct{ Error, Message string }
		if err := json.Unmarshal(body, &answer); err != nil || status != tc.status || answer.Error == "" || answer.Message == "" ||
			(tc.code != "" && answer.Error != tc.code) || !strings.HasPrefix(header.Get("Content-Type"), "application/json") {
			t.Errorf("%s %s: %d %s %s", tc.method, tc.path, status, header.Get("Content-Type"), body)
		}
	}
}

// walkWhileWriting reads every page while events go in before, between and after what the first page began with.
func walkWhileWriting(t *testing.T, s *upStack) {
	t.Helper()
	config := loadgen.Config{Seed: 601, KeyedPercent: 30, PastPercent: 60, Now: time.Now().UTC().Truncate(time.Microsecond)}
	before := s.startLoad(t, config, loadgen.ClientConfig{}, 2_000)
	before.finish(t)
	snapshot := map[string]bool{}
	if err := loadgen.ReadAckLog(before.acks, func(a loadgen.Ack) error { snapshot[a.ID] = false; return nil }); err != nil {
		t.Fatal(err)
	}
	s.readable(t, before.acks)

	config.Seed++
	writer := s.startLoad(t, config, loadgen.ClientConfig{Format: loadgen.Single, Concurrency: 2}, 1_000_000)
	writer.acknowledges(t, 1)
	began := writer.Stats().Acknowledged()
	seen := map[string]bool{}
	query := url.Values{"limit": {"50"}, "total": {"false"}}
	var last string
	pages := 0
	for {
		var got page
		s.get(t, "/events", query, &got)
		pages++
		for _, ev := range got.Data {
			id, occurred := ev["id"].(string), ev["occurred_at"].(string)
			if seen[id] {
				t.Fatalf("page %d shows event %s again", pages, id)
			}
			seen[id] = true
			if last != "" && occurred > last {
				t.Fatalf("page %d: event %s of %s comes after one of %s", pages, id, occurred, last)
			}
			last = occurred
			if _, ok := snapshot[id]; ok {
				snapshot[id] = true
			}
		}
		if !got.Pagination.HasMore {
			break
		}
		query.Set("cursor", got.Pagination.NextCursor)
	}
	written := writer.Stats().Acknowledged() - began
	writer.quit(t)
	for id, shown := range snapshot {
		if !shown {
			t.Errorf("event %s was there before the first page, and no page shows it", id)
		}
	}
	if written == 0 || len(seen) < len(snapshot) {
		t.Errorf("%d events were written during the walk, %d read", written, len(seen))
	}
	t.Logf("%d pages with %d events, while %d events were accepted", pages, len(seen), written)
}

// readable waits until the API shows the last acknowledged event of a log.
func (s *stack) readable(t *testing.T, acks string) {
	t.Helper()
	ids := map[string]bool{}
	if err := loadgen.ReadAckLog(acks, func(a loadgen.Ack) error { ids[a.ID] = true; return nil }); err != nil {
		t.Fatal(err)
	}
	conn := s.clickhouse(t)
	defer conn.Close()
	eventually(t, time.Minute, func() error {
		rows, err := conn.Query(t.Context(), "SELECT lower(hex(id)) FROM events")
		if err != nil {
			return err
		}
		defer rows.Close()
		found := 0
		for rows.Next() {
			var id string
			if err := rows.Scan(&id); err != nil {
				return err
			}
			if ids[id[:8]+"-"+id[8:12]+"-"+id[12:16]+"-"+id[16:20]+"-"+id[20:]] {
				found++
			}
		}
		if found < len(ids) {
			return fmt.Errorf("%d of %d events readable", found, len(ids))
		}
		return rows.Err()
	})
}

// clickhouseDown stops the embedded ClickHouse, first so that it hangs, then for good.
func clickhouseDown(t *testing.T, s *upStack) {
	t.Helper()
	pid, err := s.process.child("chdb-server")
	if err != nil {
		t.Fatal(err)
	}
	l := s.startLoad(t, loadgen.Config{Seed: 701, KeyedPercent: 100}, loadgen.ClientConfig{}, 20_000)
	l.acknowledges(t, 500)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	l.acknowledges(t, 4_000)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	l.acknowledges(t, 4_000)
	l.finish(t)
	t.Logf("while clickhouse was down: %+v", l.Stats())
	s.ready(t)
	if again, err := s.process.child("chdb-server"); err != nil || again == pid {
		t.Errorf("clickhouse is process %d, which was killed: %v", again, err)
	}
	s.readable(t, l.acks)
}
