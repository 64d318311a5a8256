package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// redacted is the answer to a redaction.
type redacted struct {
	RedactionID string `json:"redaction_id"`
	Chain       string `json:"chain"`
	ClickHouse  string `json:"clickhouse"`
	Paths       []string
}

// redact redacts fields of an event and waits until ClickHouse has erased them.
func (s *stack) redact(t *testing.T, id string, paths ...string) (answer redacted) {
	t.Helper()
	body := fmt.Appendf(nil, `{"paths":["%s"],"reason":"asked for by its owner"}`, strings.Join(paths, `","`))
	eventually(t, startLimit, func() error {
		status, _, text, err := s.do(t.Context(), http.MethodPost, readURL+"/events/"+id+"/redact", nil, body)
		if err != nil || status != http.StatusOK {
			return fmt.Errorf("redact: %d %s: %w", status, text, err)
		}
		var got struct{ Data redacted }
		if err := json.Unmarshal(text, &got); err != nil {
			return err
		}
		if answer = got.Data; answer.ClickHouse != "rewritten" && answer.ClickHouse != "gone" {
			return fmt.Errorf("redact: %s", text)
		}
		return nil
	})
	return answer
}

// TestRedactionEverywhere redacts values the whole way, with a kill and a rebuild between, and then looks for them wherever
// an installation shows anything, but for Kafka, which keeps them until their time is over.
func TestRedactionEverywhere(t *testing.T) {
	long(t)
	s := up(t)
	// Their lanes are those of their resources.
	ids := make([]string, 8)
	for i := range ids {
		ids[i] = s.post(t, fmt.Appendf(nil, `{"actor_id":"actor-4711-%d","action":"card.blocked","resource":"card","resource_id":"card-%d",
			"session_id":"kept-%d","metadata":{"pin":"4711-%d","kept":%d},"targets":[{"type":"card","id":"4711-%d"}]}`, i, i, i, i, i, i))
	}
	eventually(t, startLimit, func() error {
		var p page
		if err := s.tryGet(t.Context(), "/events", url.Values{"action": {"card.blocked"}}, &p); err != nil || len(p.Data) != len(ids) {
			return fmt.Errorf("%d events: %w", len(p.Data), err)
		}
		return nil
	})
	chains := map[string]bool{}
	for i, id := range ids {
		if i == len(ids)/2 {
			// The redaction is accepted, and everything dies before it is carried out, or while it is.
			body := []byte(`{"paths":["/metadata/pin"],"reason":"asked for by its owner"}`)
			if status, _, answer, err := s.do(t.Context(), http.MethodPost, readURL+"/events/"+id+"/redact", nil, body); status != 200 || err != nil {
				t.Fatalf("%d %s %v", status, answer, err)
			}
			s.kill(t)
			s.start()
			s.ready(t)
		}
		answer := s.redact(t, id, "/actor_id", "/metadata/pin", "/targets")
		var target, redaction struct {
			Data struct {
				Action    string
				Metadata  map[string]any
				Redacted  []string
				Integrity struct {
					Chain  string
					Sealed bool
				}
			}
		}
		s.get(t, "/events/"+id, nil, &target)
		eventually(t, startLimit, func() error { return s.tryGet(t.Context(), "/events/"+answer.RedactionID, nil, &redaction) })
		if !target.Data.Integrity.Sealed || !slices.Equal(target.Data.Redacted, []string{"/actor_id", "/metadata/pin", "/targets"}) {
			t.Errorf("redacted is %+v", target)
		}
		if redaction.Data.Action != "event.redacted" || redaction.Data.Metadata["event_id"] != id ||
			redaction.Data.Integrity.Chain != target.Data.Integrity.Chain || answer.Chain != target.Data.Integrity.Chain {
			t.Errorf("the redaction is %+v, its target in chain %s", redaction, target.Data.Integrity.Chain)
		}
		chains[answer.Chain] = true
	}
	if len(chains) < 2 {
		t.Errorf("all in %d lane", len(chains))
	}
	s.check(t, len(ids))
	s.isNowhere(t, ids)

	s.stop(t)
	if err := os.RemoveAll(filepath.Join(s.data, "clickhouse")); err != nil {
		t.Fatal(err)
	}
	s.cli(t, "rebuild", "--data="+s.data)
	s.start()
	s.ready(t)
	s.check(t, len(ids))
	s.isNowhere(t, ids)
	s.stop(t)
}

// isNowhere looks for what was redacted.
func (s *upStack) isNowhere(t *testing.T, ids []string) {
	t.Helper()
	shown := map[string]string{}
	ask := func(path string, query url.Values) {
		status, _, body, err := s.do(t.Context(), http.MethodGet, readURL+path+"?"+query.Encode(), nil, nil)
		if err != nil || status != http.StatusOK {
			t.Fatalf("GET %s: %d %s %v", path, status, body, err)
		}
		shown[path+"?"+query.Encode()] = string(body)
	}
	ask("/events", url.Values{"limit": {"1000"}})
	ask("/events", url.Values{"action": {"card.*"}, "order": {"asc"}})
	for i, id := range ids {
		ask("/events/"+id, nil)
		ask("/events", url.Values{"session_id": {fmt.Sprintf("kept-%d", i)}})
		ask("/events", url.Values{"metadata[kept]": {fmt.Sprint(i)}})
		for _, guess := range []url.Values{
			{"actor_id": {fmt.Sprintf("actor-4711-%d", i)}}, {"metadata[pin]": {fmt.Sprintf("4711-%d", i)}}, {"target_id": {fmt.Sprintf("4711-%d", i)}},
		} {
			var p page
			s.get(t, "/events", guess, &p)
			if len(p.Data) != 0 || p.Pagination.Total == nil || *p.Pagination.Total != 0 {
				t.Errorf("%s finds %+v", guess.Encode(), p)
			}
		}
	}
	status, _, metrics, err := s.do(t.Context(), http.MethodGet, "http://"+queryHost+"/metrics", nil, nil)
	if err != nil || status != http.StatusOK {
		t.Fatal(status, err)
	}
	shown["/metrics"] = string(metrics)
	log, err := os.ReadFile(s.process.log)
	if err != nil {
		t.Fatal(err)
	}
	shown["the log"] = string(log)

	conn := s.clickhouse(t)
	defer conn.Close()
	rows, err := conn.Query(t.Context(), `SELECT concat(database, '.', name) FROM system.tables WHERE database = currentDatabase()
		OR database = 'system' AND (name LIKE '%log' OR name IN ('mutations', 'processes', 'query_cache', 'errors'))`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	tables := 0
	for rows.Next() {
		var table string
		if err := rows.Scan(&table); err != nil {
			t.Fatal(err)
		}
		var found uint64
		// In two halves: the question is a query itself, and may be written down.
		err := conn.QueryRow(t.Context(), "SELECT count() FROM "+table+" WHERE position(toString(tuple(*)), concat('47', '11-')) > 0").Scan(&found)
		if err != nil {
			t.Fatalf("%s: %v", table, err)
		}
		if tables++; found > 0 {
			t.Errorf("it is in %d rows of %s", found, table)
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	if tables < 5 {
		t.Errorf("only %d tables were searched", tables)
	}
	for where, text := range shown {
		if i := strings.Index(text, "4711-"); i >= 0 {
			t.Errorf("%s shows it: ...%s", where, text[max(0, i-80):min(len(text), i+40)])
		}
	}
}
