package e2e

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/google/go-cmp/cmp"

	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
)

// redacted is the answer to a redaction.
type redacted struct {
	RedactionID string `json:"redaction_id"`
	Chain       string `json:"chain"`
	ClickHouse  string `json:"clickhouse"`
	Paths       []string
	text        string // all of it
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
		answer = got.Data
		if answer.text = string(text); answer.ClickHouse != "rewritten" && answer.ClickHouse != "gone" {
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
	s := newUp(t, immutable(t), t.TempDir())
	s.start(manyEpochs)
	s.ready(t)
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
	a := s.audited(t)
	secrets := []string{"4711-"}
	for _, id := range ids {
		text, r := a.proof(t, id)
		proof, err := ledger.ParseBundle(text)
		if err != nil || proof.Seed == nil || len(r.Faults) > 0 || !strings.Contains(r.Event.Body, "4711-") {
			t.Fatalf("before it is redacted %s is proven by %+v: %v", text, r, err)
		}
		// With it the values can be guessed from what commits to them.
		secrets = append(secrets, hex.EncodeToString(proof.Seed[:]))
	}
	shown := s.refusedRedactions(t, ids[0])
	chains := map[string]bool{}
	for i, id := range ids {
		if i == len(ids)/2 {
			// The redaction is accepted, and everything dies before it is carried out, or while it is.
			body := []byte(`{"paths":["/metadata/pin"],"reason":"asked for by its owner"}`)
			if status, _, answer, err := s.do(t.Context(), http.MethodPost, readURL+"/events/"+id+"/redact", nil, body); status != 200 || err != nil {
				t.Fatalf("%d %s %v", status, answer, err)
			}
			s.kill(t)
			s.start(manyEpochs)
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
		shown["the redaction of "+id] = answer.text
		shown["a redaction of that redaction, "+id] = s.refused(t, answer.RedactionID, `{"paths":["/resource_id"],"reason":"none"}`, http.StatusConflict)
	}
	if len(chains) < 2 {
		t.Errorf("all in %d lane", len(chains))
	}
	maps.Copy(shown, s.refusedRedactions(t, ids[0]))
	leaves := s.check(t, 2*len(ids)).Leaves
	s.isNowhere(t, ids, secrets, shown)
	a.redacted(t, ids, leaves)

	s.stop(t)
	if err := os.RemoveAll(filepath.Join(s.data, "clickhouse")); err != nil {
		t.Fatal(err)
	}
	s.cli(t, "rebuild", "--data="+s.data)
	s.start()
	s.ready(t)
	if again := s.check(t, leaves).Leaves; again != leaves {
		t.Errorf("%d leaves, %d after it was rebuilt", leaves, again)
	}
	s.isNowhere(t, ids, secrets, shown)
	a.redacted(t, ids, leaves)
	s.stop(t)
}

// refusedRedactions returns the answers to redactions of an event that must be refused. Two give reasons that repeat values of it.
func (s *stack) refusedRedactions(t *testing.T, id string) map[string]string {
	t.Helper()
	shown := map[string]string{}
	for body, want := range map[string]int{
		`{"paths":["/metadata/pin"],"reason":"asked`:                                        http.StatusBadRequest,
		`{"paths":["/metadata/pin"]}`:                                                       http.StatusUnprocessableEntity,
		`{"paths":["/metadata/pin/0","/nothing"],"reason":"asked for by its owner"}`:        http.StatusUnprocessableEntity,
		`{"paths":["/metadata/pin","/action"],"reason":"asked for by its owner"}`:           http.StatusUnprocessableEntity,
		`{"paths":["/metadata/pin","/session_id"],"reason":"of the session kept-0"}`:        http.StatusUnprocessableEntity,
		`{"paths":["/metadata/pin","/session_id"],"reason":"of the session kept-0, 47110"}`: http.StatusUnprocessableEntity,
	} {
		shown["redact "+body] = s.refused(t, id, body, want)
	}
	return shown
}

// refused returns the answer to a redaction, whose status must be want.
func (s *stack) refused(t *testing.T, id, body string, want int) string {
	t.Helper()
	status, _, answer, err := s.do(t.Context(), http.MethodPost, readURL+"/events/"+id+"/redact", nil, []byte(body))
	if err != nil || status != want {
		t.Errorf("redact %s: %d %s %v, want %d", body, status, answer, err, want)
	}
	return string(answer)
}

// redacted verifies the installation in every way, and wants each of the events to be redacted, and nothing else.
func (a *auditor) redacted(t *testing.T, ids []string, leaves int) {
	t.Helper()
	want := map[string]int{}
	for _, id := range ids {
		want[id] = 1
	}
	for what, got := range map[string]map[string]int{"ledger": a.api(t, leaves), "clickhouse": a.tables(t, leaves)} {
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("verify %s finds REDACTED at (-want +got):\n%s", what, diff)
		}
	}
	for _, id := range ids {
		_, r := a.proof(t, id)
		var erased []string
		for _, f := range r.Event.Fields {
			if f.Value == nil {
				erased = append(erased, f.Path)
			}
		}
		if !slices.Equal(erased, []string{"/actor_id", "/metadata/pin", "/targets"}) || !maps.Equal(redactedIn(t, r), map[string]int{id: len(erased)}) {
			t.Errorf("verify event %s: %v are erased, found is %v", id, erased, r.Faults)
		}
	}
}

// isNowhere looks for secrets in what was shown, and in all that the API, the log and the tables show now.
func (s *upStack) isNowhere(t *testing.T, ids, secrets []string, shown map[string]string) {
	t.Helper()
	shown = maps.Clone(shown)
	for _, path := range s.paths(t, ids) {
		shown[path] = string(s.read(t, path))
	}
	s.asksEverything(t, shown)
	for i := range ids {
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
		for _, secret := range secrets {
			if i := strings.Index(text, secret); i >= 0 {
				t.Errorf("%s shows it: ...%s", where, text[max(0, i-80):min(len(text), i+40)])
			}
		}
	}
}

// paths returns what there is to read of an installation with these events.
func (s *stack) paths(t *testing.T, ids []string) []string {
	t.Helper()
	const v1 = "/api/v1"
	paths := []string{
		v1 + "/events?limit=1000", v1 + "/events?action=card.*&order=asc", v1 + "/verify", v1 + "/anchors", v1 + "/ledger/chains", v1 + "/ledger/checkpoint",
		v1 + "/ledger/key", v1 + "/keys", v1 + "/settings", v1 + "/workspaces", "/livez", "/readyz", "/metrics",
	}
	for i, id := range ids {
		paths = append(paths, v1+"/events/"+id, v1+"/events/"+id+"/proof", fmt.Sprintf(v1+"/events?session_id=kept-%d", i),
			fmt.Sprintf(v1+"/events?metadata[kept]=%d", i))
	}
	var chains struct {
		Data struct{ Chains []struct{ Chain string } }
	}
	if err := json.Unmarshal(s.read(t, v1+"/ledger/chains"), &chains); err != nil || len(chains.Data.Chains) == 0 {
		t.Errorf("no chains: %v", err)
	}
	for _, c := range chains.Data.Chains {
		paths = append(paths, v1+"/ledger/leaves?chain="+c.Chain)
	}
	var list, anchors struct{ Data []struct{ ID string } }
	for _, path := range []string{"/keys", "/workspaces"} {
		s.get(t, path, nil, &list)
		for _, one := range list.Data {
			paths = append(paths, v1+path+"/"+one.ID)
		}
	}
	s.get(t, "/anchors", nil, &anchors)
	for _, one := range anchors.Data {
		paths = append(paths, v1+"/anchors/"+one.ID, v1+"/anchors/"+one.ID+"/verify")
	}
	// An anchor's id is its size, and the newest comes first.
	tile := "000"
	if size, err := strconv.Atoi(anchors.Data[0].ID); err != nil || size < 256 {
		tile = fmt.Sprintf("000.p/%d", size)
	}
	return append(paths, v1+"/ledger/tile/0/"+tile, v1+"/ledger/tile/entries/"+tile)
}

// asksEverything fails the test where the API is described with something to read that was not asked for.
func (s *stack) asksEverything(t *testing.T, asked map[string]string) {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(schemas.OpenAPI)
	if err != nil {
		t.Fatal(err)
	}
	for template, item := range doc.Paths.Map() {
		pattern := regexp.MustCompile("^" + regexp.MustCompile(`\{\w+\}`).ReplaceAllString(template, "[^/?]+") + `($|\?|\.p/)`)
		if item.Get != nil && !slices.ContainsFunc(slices.Collect(maps.Keys(asked)), pattern.MatchString) {
			t.Errorf("GET %s was not asked", template)
		}
	}
}
