package query

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/event"
)

var update = flag.Bool("update", false, "write the golden files of testdata")

// golden compares got with a file of testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs (-want +got), run with -update where that is meant:\n%s", path, diff)
	}
}

func values(pairs ...string) url.Values {
	q := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		q.Add(pairs[i], pairs[i+1])
	}
	return q
}

// fixtures are the five events that everybody knows.
func fixtures(t *testing.T) []string {
	t.Helper()
	names, err := filepath.Glob("../schemas/testdata/fixtures/events/*.json")
	if err != nil || len(names) != 5 {
		t.Fatalf("fixtures: %v, %v", names, err)
	}
	bodies := make([]string, len(names))
	for i, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		bodies[i] = string(b)
	}
	return bodies
}

func TestFixtures(t *testing.T) {
	r := newRig(t)
	sent := r.newLoader(r.tenant).add(fixtures(t)...)

	got := r.page(r.tenant, values("resource_id", "api-gateway", "limit", "20"))
	want := []string{sent[4].id, sent[1].id, sent[0].id} // newest first
	if diff := cmp.Diff(want, got.ids()); diff != "" {
		t.Errorf("events of api-gateway (-want +got):\n%s", diff)
	}
	if total := got.Pagination.Total; total == nil || *total != 3 {
		t.Errorf("total = %v, want 3", total)
	}
	a := r.get(r.tenant, "/api/v1/events", nil)
	var all struct {
		Data []struct {
			Metadata json.RawMessage `json:"metadata"`
		} `json:"data"`
	}
	if err := json.Unmarshal(a.body, &all); err != nil {
		t.Fatal(err)
	}
	for i, e := range all.Data {
		var want struct {
			Metadata any `json:"metadata"`
		}
		var got any
		if err := json.Unmarshal([]byte(sent[4-i].json), &want); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(e.Metadata, &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want.Metadata, got); diff != "" {
			t.Errorf("metadata of event %d (-sent +read):\n%s", i, diff)
		}
	}
}

// full has every field; its metadata holds what a JSON library could damage.
const full = `{"actor_id":"u_1","actor_name":"Zoë \"Q\"","actor_type":"user","action":"order.refunded","action_category":"billing",
 "resource":"order","resource_id":"o/1","resource_name":"Order 1","tenant_id":"acme","session_id":"s1","ip_address":"2001:DB8::1",
 "user_agent":"curl/8","idempotency_key":"k-1","version":0,"occurred_at":"2026-10-31T23:59:59.1+02:00",
 "targets":[{"type":"invoice","id":"i-1","metadata":{"n":1.50}},{"type":"user"}],
 "metadata":{"z":1e3,"a":{"b":[1,"1",true,null,{}]},"html":"<&>\u2028","emoji":"\ud83d\ude00","big":9007199254740991,"neg":-0.5,"empty":"","": "x"}}`

func TestBothShapes(t *testing.T) {
	r := newRig(t)
	body := strings.Replace(full, `,"": "x"`, "", 1)
	sent := r.newLoader(r.tenant).add(body, `{"actor_id":"u_2","action":"x"}`)
	for i, name := range []string{"event-full.json", "event-bare.json"} {
		a := r.get(r.tenant, "/api/v1/events/"+sent[i].id, nil)
		if a.status != http.StatusOK {
			t.Fatalf("%d %s", a.status, a.body)
		}
		own, previous := sent[i].leaf.Hash(), sent[i].leaf.Previous
		known := strings.NewReplacer(
			sent[i].id, "<id>", hex.EncodeToString(own[:]), "<event hash>", hex.EncodeToString(previous[:]), "<previous event hash>",
			hex.EncodeToString(sent[i].leaf.Chain[:]), "<chain>",
		).Replace(string(a.body))
		var pretty bytes.Buffer
		if err := json.Indent(&pretty, []byte(known), "", "  "); err != nil {
			t.Fatal(err)
		}
		golden(t, name, pretty.Bytes())

		// The list shows the same.
		var one, list struct{ Data json.RawMessage }
		if err := json.Unmarshal(a.body, &one); err != nil {
			t.Fatal(err)
		}
		all := r.get(r.tenant, "/api/v1/events", values("order", "asc", "actor_id", fmt.Sprintf("u_%d", i+1)))
		if err := json.Unmarshal(all.body, &list); err != nil {
			t.Fatal(err)
		}
		if got, want := string(list.Data), "["+string(one.Data)+"]"; got != want {
			t.Errorf("the list has\n%s\nthe event is\n%s", got, want)
		}
	}
}

func TestPagesWithTies(t *testing.T) {
	r := newRig(t)
	l := r.newLoader(r.tenant)
	var sent []stored
	for batch := range 4 { // several parts
		var bodies []string
		for i := range 60 {
			// 16 different times, so that pages end among events of the same time.
			bodies = append(bodies, fmt.Sprintf(`{"actor_id":"a","action":"x.y","occurred_at":"2026-11-01T10:00:00.%06dZ","metadata":{"b":%d}}`,
				i%16, batch))
		}
		sent = append(sent, l.add(bodies...)...)
	}
	byTime := func(a, b stored) int {
		if a.occurredAt != b.occurredAt {
			return int(a.occurredAt - b.occurredAt)
		}
		return strings.Compare(a.id, b.id)
	}
	slices.SortFunc(sent, byTime)
	want := make([]string, len(sent))
	for i, e := range sent {
		want[i] = e.id
	}
	for _, limit := range []string{"1000", "240", "239", "100", "25", "7"} {
		if diff := cmp.Diff(want, r.walk(r.tenant, values("order", "asc", "limit", limit))); diff != "" {
			t.Errorf("asc, %s a page (-want +got):\n%s", limit, diff)
		}
		newest := slices.Clone(want)
		slices.Reverse(newest)
		if diff := cmp.Diff(newest, r.walk(r.tenant, values("limit", limit, "total", "false"))); diff != "" {
			t.Errorf("desc, %s a page (-want +got):\n%s", limit, diff)
		}
	}
	p := r.page(r.tenant, values("total", "false"))
	if len(p.Data) != defaultPageEvents || p.Pagination.Total != nil {
		t.Errorf("%d events, total %v; want %d and null", len(p.Data), p.Pagination.Total, defaultPageEvents)
	}
}

// TestWalkWhileWriting: no event twice, and none missing of those that were there at the first page.
func TestWalkWhileWriting(t *testing.T) {
	long(t)
	r := newRig(t)
	l := r.newLoader(r.tenant)
	// Times in no relation to the order of writing: new events land before, on and behind the cursor.
	n := 0
	bodies := func(count int) []string {
		list := make([]string, count)
		for i := range list {
			n++
			list[i] = fmt.Sprintf(`{"actor_id":"a","action":"x","occurred_at":"2026-11-01T10:00:00.%06dZ"}`, n*7919%1000)
		}
		return list
	}
	for _, order := range []string{"desc", "asc"} {
		before := l.add(bodies(300)...)
		ctx, cancel := context.WithCancel(t.Context())
		var writer sync.WaitGroup
		written := 0
		// Not without end: a walk over times that fill faster than it reads would have none either.
		writer.Go(func() {
			for written < 300 && ctx.Err() == nil {
				l.add(bodies(10)...) //nolint:contextcheck // ctx ends the loop, not an insert
				written += 10
			}
		})
		got := r.walk(r.tenant, values("order", order, "limit", "10"))
		cancel()
		writer.Wait()
		if written == 0 {
			t.Fatal("nothing was written during the walk")
		}
		seen := map[string]bool{}
		for _, id := range got {
			if seen[id] {
				t.Errorf("%s: event %s came twice", order, id)
			}
			seen[id] = true
		}
		for _, e := range before {
			if !seen[e.id] {
				t.Errorf("%s: event %s of the first page's time never came", order, e.id)
			}
		}
	}
}

func TestCursor(t *testing.T) {
	r := newRig(t)
	other := r.newTenant("other")
	for _, tn := range []tenant{r.tenant, other} {
		l := r.newLoader(tn)
		l.add(`{"actor_id":"a","action":"x.1"}`, `{"actor_id":"a","action":"x.2"}`, `{"actor_id":"b","action":"x.3"}`)
	}
	first := values("limit", "1", "actor_id", "a", "metadata[k]", "v")
	first.Del("metadata[k]")
	cursor := *r.page(r.tenant, first).Pagination.NextCursor
	with := func(pairs ...string) url.Values {
		q := values("limit", "1", "actor_id", "a", "cursor", cursor)
		for i := 0; i < len(pairs); i += 2 {
			q.Set(pairs[i], pairs[i+1])
		}
		return q
	}
	// The size of a page and whether it counts are no part of the filter; nor is the order of its values.
	for _, q := range []url.Values{with(), with("limit", "5"), with("total", "false")} {
		if got := r.page(r.tenant, q); len(got.Data) != 1 {
			t.Errorf("%v: %d events, want the second one", q, len(got.Data))
		}
	}
	raw, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil {
		t.Fatal(err)
	}
	flipped := func(i int) string {
		b := bytes.Clone(raw)
		b[i] ^= 1
		return base64.RawURLEncoding.EncodeToString(b)
	}
	bad := map[string]url.Values{
		"other value":    with("actor_id", "b"),
		"more filters":   with("action", "x.*"),
		"other order":    with("order", "asc"),
		"other times":    with("from", "2026-01-01T00:00:00Z"),
		"metadata":       with("metadata[k]", "v"),
		"no base64":      with("cursor", "***"),
		"padding":        with("cursor", cursor+"="),
		"too short":      with("cursor", cursor[:20]),
		"too long":       with("cursor", cursor+cursor),
		"trailing bits":  with("cursor", cursor[:len(cursor)-1]+"_"),
		"sql":            with("cursor", "' OR 1=1 --"),
		"of another age": with("cursor", flipped(0)),
	}
	for i := range raw {
		bad["bit of byte "+strconv.Itoa(i)] = with("cursor", flipped(i))
	}
	for name, q := range bad {
		if a := r.get(r.tenant, "/api/v1/events", q); a.status != http.StatusBadRequest {
			t.Errorf("%s: %d %s, want a 400", name, a.status, a.body)
		}
	}
	if a := r.get(other, "/api/v1/events", with()); a.status != http.StatusBadRequest {
		t.Errorf("in another workspace: %d %s, want a 400", a.status, a.body)
	}
}

// TestIsolation: nothing of another workspace is ever seen.
func TestIsolation(t *testing.T) {
	r := newRig(t)
	other := r.newTenant("other")
	mine := r.newLoader(r.tenant).add(`{"actor_id":"a","action":"x","metadata":{"k":"v"}}`)
	theirs := r.newLoader(other).add(`{"actor_id":"a","action":"x","metadata":{"k":"v"}}`)
	for _, q := range []url.Values{
		nil, values("actor_id", "a"), values("action", "*"), values("metadata[k]", "v"), values("order", "asc"),
		values("from", "2020-01-01T00:00:00Z", "to", "2030-01-01T00:00:00Z"),
		values("actor_id", "a' OR '1'='1"), values("actor_id", "a", "actor_id", "') OR 1=1 OR ('"),
	} {
		for _, tn := range []struct {
			tenant
			want string
		}{{r.tenant, mine[0].id}, {other, theirs[0].id}} {
			p := r.page(tn.tenant, q)
			for _, id := range p.ids() {
				if id != tn.want {
					t.Errorf("%v: saw %s", q, id)
				}
			}
			if p.Pagination.Total == nil || *p.Pagination.Total != uint64(len(p.Data)) {
				t.Errorf("%v: total is %v of %d", q, p.Pagination.Total, len(p.Data))
			}
		}
	}
	for _, c := range []struct {
		tenant
		id   string
		want int
	}{
		{r.tenant, mine[0].id, http.StatusOK},
		{other, theirs[0].id, http.StatusOK},
		{r.tenant, strings.ToUpper(mine[0].id), http.StatusOK},
		{r.tenant, theirs[0].id, http.StatusNotFound},
		{other, mine[0].id, http.StatusNotFound},
		{r.tenant, "00000000-0000-0000-0000-000000000000", http.StatusNotFound},
		{r.tenant, "nonsense", http.StatusNotFound},
		{r.tenant, "%27%20OR%201=1", http.StatusNotFound},
		{r.tenant, strings.ReplaceAll(mine[0].id, "-", ""), http.StatusNotFound},
		{r.tenant, "urn:uuid:" + mine[0].id, http.StatusNotFound},
		{r.tenant, "%7B" + mine[0].id + "%7D", http.StatusNotFound},
	} {
		if a := r.do(c.token, http.MethodGet, "/api/v1/events/"+c.id); a.status != c.want {
			t.Errorf("GET /events/%s: %d %s, want %d", c.id, a.status, a.body, c.want)
		}
	}
}

func TestScopes(t *testing.T) {
	r := newRig(t)
	writer := r.newTenant("writer", control.ScopeWrite)
	for _, path := range []string{"/api/v1/events", "/api/v1/events/00000000-0000-0000-0000-000000000000"} {
		for token, want := range map[string]int{
			"": http.StatusUnauthorized, "imk_sk_wrong": http.StatusUnauthorized, writer.token: http.StatusForbidden,
		} {
			if a := r.do(token, http.MethodGet, path); a.status != want {
				t.Errorf("%s: %d %s, want %d", path, a.status, a.body, want)
			}
		}
	}
}

// TestMissingLeaf: an event whose leaf was taken away is shown, and not as sealed.
func TestMissingLeaf(t *testing.T) {
	r := newRig(t)
	sent := r.newLoader(r.tenant).add(
		`{"actor_id":"a","action":"1"}`, `{"actor_id":"a","action":"2"}`, `{"actor_id":"a","action":"3"}`)
	remove := "ALTER TABLE leaves DELETE WHERE sequence = 2 SETTINGS mutations_sync = 2"
	if err := r.conn.Exec(t.Context(), remove); err != nil {
		t.Fatal(err)
	}
	p := r.page(r.tenant, values("order", "asc"))
	if got, want := fmt.Sprint(p.Data[0].Integrity.Sealed, p.Data[1].Integrity.Sealed, p.Data[2].Integrity.Sealed), "true false false"; got != want {
		t.Errorf("sealed: %s, want %s", got, want)
	}
	if p.Data[1].Integrity.EventHash != nil || p.Data[1].Integrity.Previous == nil ||
		p.Data[2].Integrity.EventHash == nil || p.Data[2].Integrity.Previous != nil {
		t.Errorf("hashes: %+v", p.Data)
	}
	if got := r.counter("immutable_query_missing_leaves_total"); got != 2 {
		t.Errorf("missing leaves counted: %v, want 2", got)
	}
	if log := r.log.String(); !strings.Contains(log, "leaf is missing") || !strings.Contains(log, sent[1].id) {
		t.Errorf("log: %s", log)
	}
}

// TestPageBytes: a page that would be too large has fewer events, and the walk misses none.
func TestPageBytes(t *testing.T) {
	r := newRig(t, func(c *Config) { c.MaxPageBytes = 1 << 20 })
	l := r.newLoader(r.tenant)
	var bodies []string
	for i := range 250 {
		bodies = append(bodies, fmt.Sprintf(`{"actor_id":"a","action":"x","metadata":{"i":%d,"text":%q}}`, i, strings.Repeat("y", 10_000)))
	}
	l.add(bodies...)
	p := r.page(r.tenant, values("limit", "1000"))
	if len(p.Data) != smallPageEvents || !p.Pagination.HasMore || *p.Pagination.Total != 250 {
		t.Errorf("%d events, %+v; want %d of 250", len(p.Data), p.Pagination, smallPageEvents)
	}
	if got := len(r.walk(r.tenant, values("limit", "1000"))); got != 250 {
		t.Errorf("the walk found %d, want 250", got)
	}
	if r.counter("immutable_query_short_pages_total") < 2 {
		t.Error("short pages are not counted")
	}
}

// TestTotal: null where counting would read too many rows, exact where the primary key alone says it.
func TestTotal(t *testing.T) {
	r := newRig(t, func(c *Config) { c.MaxCountRows = 3000 })
	l := r.newLoader(r.tenant)
	bodies := make([]string, 10_000)
	for i := range bodies {
		bodies[i] = fmt.Sprintf(`{"actor_id":"a%d","action":"x"}`, i%10)
	}
	l.add(bodies...)
	if p := r.page(r.tenant, nil); p.Pagination.Total == nil || *p.Pagination.Total != 10_000 {
		t.Errorf("total without a filter: %v, want 10000", p.Pagination.Total)
	}
	if p := r.page(r.tenant, values("actor_id", "a1")); p.Pagination.Total != nil || len(p.Data) != 25 {
		t.Errorf("total of a filter that reads everything: %v, want null", *p.Pagination.Total)
	}
	if got := r.counter("immutable_query_totals_skipped_total"); got != 1 {
		t.Errorf("totals skipped: %v, want 1", got)
	}
	at := event.FormatTime(epoch.Add(1_000_000_000)) // a second after the first: 1,000 events
	if p := r.page(r.tenant, values("actor_id", "a1", "to", at)); p.Pagination.Total == nil || *p.Pagination.Total != 100 {
		t.Errorf("total of a short time: %v, want 100", p.Pagination.Total)
	}
}
