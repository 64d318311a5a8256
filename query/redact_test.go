package query

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/ledger"
)

const withPIN = `{"actor_id":"4711","action":"card.blocked","session_id":"s-4711","targets":[{"type":"card","id":"4711"}],
	"metadata":{"pin":"4711","deep":{"pin":4711},"deep.pin":"4711","kept":"k"}}`

func (r *rig) redact(t tenant, id, paths, reason string) answer {
	return r.change(t, http.MethodPost, "/api/v1/events/"+id+"/redact", `{"paths":`+paths+`,"reason":"`+reason+`"}`)
}

// rewrite does to a row what the ClickHouse writer does.
func (r *rig) rewrite(t tenant, id string, paths ...string) {
	r.tb.Helper()
	raw := uuid.MustParse(id)
	var c event.Content
	var seed, disclosure string
	err := r.conn.QueryRow(r.tb.Context(), "SELECT body, seed, disclosure FROM events WHERE workspace = ? AND id = ?",
		string(t.workspace.ID[:]), string(raw[:])).Scan(&c.Body, &seed, &disclosure)
	if err != nil {
		r.tb.Fatal(err)
	}
	copy(c.Seed[:], seed)
	if disclosure != "" {
		if c.Disclosure, err = ledger.ParseDisclosure([]byte(disclosure)); err != nil {
			r.tb.Fatal(err)
		}
	}
	left, err := c.Redact(paths)
	if err != nil {
		r.tb.Fatal(err)
	}
	stored, err := ledger.EncodeDisclosure(left.Disclosure)
	if err != nil {
		r.tb.Fatal(err)
	}
	columns, err := event.ColumnsOf(left.Body)
	if err != nil {
		r.tb.Fatal(err)
	}
	const actorID, sessionID = 0, 8
	keys := make([]string, len(columns.MetadataKeys))
	for i, key := range columns.MetadataKeys {
		keys[i] = string(key)
	}
	err = r.conn.Exec(r.tb.Context(), `ALTER TABLE events UPDATE body = ?, disclosure = ?, seed = unhex('00000000000000000000000000000000'),
		actor_id = ?, session_id = ?, metadata = mapFilter((k, v) -> has(?, k) AND v != ?, metadata) WHERE id = ? SETTINGS mutations_sync = 1`,
		string(left.Body), string(stored), string(columns.Text[actorID]), string(columns.Text[sessionID]), keys, "none", string(raw[:]))
	if err != nil {
		r.tb.Fatal(err)
	}
}

// finds returns how many events a filter finds, by page and by total.
func (r *rig) finds(t tenant, query url.Values) (page int, total uint64) {
	r.tb.Helper()
	p := r.page(t, query)
	if p.Pagination.Total == nil {
		r.tb.Fatalf("%v: no total", query)
	}
	return len(p.Data), *p.Pagination.Total
}

func TestRedact(t *testing.T) {
	r := newRig(t)
	admin := r.newTenant("team", control.ScopeAdmin, control.ScopeRead)
	sent := r.newLoader(admin).add(withPIN, withPIN)
	id := sent[0].id
	if !slices.Contains([]int{200}, r.get(admin, "/api/v1/events/"+id, nil).status) {
		t.Fatal("the event is not there")
	}
	// Each filter finds both before, and of the redacted one only what was not redacted of it.
	filters := []struct {
		query url.Values
		after int
	}{
		{values("actor_id", "4711"), 1},
		{values("actor_id", "4711", "action", "card.*"), 1},
		{values("metadata[pin]", "4711"), 1},
		{values("metadata[deep.pin]", "4711"), 1},
		{values("session_id", "s-4711"), 2},
		{values("metadata[kept]", "k"), 2},
		{values("target_id", "4711"), 2},
		{values("target_type", "card", "target_id", "4711"), 2},
		{values("action", "card.blocked"), 2},
		{values(), 2},
	}
	check := func(when string) {
		t.Helper()
		for _, f := range filters {
			want := f.after
			if when == "before" {
				want = 2
			}
			if page, total := r.finds(admin, f.query); page != want || total != uint64(want) {
				t.Errorf("%s: %s finds %d of %d, want %d", when, f.query.Encode(), page, total, want)
			}
		}
	}
	check("before")

	began := time.Now()
	a := r.redact(admin, id, `["/actor_id","/metadata/pin","/metadata/deep"]`, "a customer's number")
	report := data[redactionReport](r, a, http.StatusOK)
	recorded := time.UnixMicro(sent[0].recordedAt)
	until := func(days int) *string {
		text := event.FormatTime(recorded.Add(time.Duration(days) * 24 * time.Hour))
		return &text
	}
	want := redactionReport{
		EventID: id, Paths: []string{"/actor_id", "/metadata/deep", "/metadata/pin"}, RedactionID: report.RedactionID,
		Chain: sent[0].leaf.Chain, KafkaUntil: keptUntil{until(14), until(37)}, ClickHouse: "pending", Receivers: []string{},
	}
	if diff := gocmp.Diff(want, report); diff != "" || uuid.MustParse(report.RedactionID).Time() == 0 {
		t.Errorf("(-want +got):\n%s", diff)
	}
	t.Logf("answered after %v", time.Since(began))
	check("at once")

	// What is shown of it.
	shown := r.get(admin, "/api/v1/events/"+id, nil)
	type view struct {
		ActorID  *string         `json:"actor_id"`
		Actor    map[string]any  `json:"actor"`
		Session  string          `json:"session_id"`
		Metadata json.RawMessage `json:"metadata"`
		Redacted []string        `json:"redacted"`
		Sealed   json.RawMessage `json:"integrity"`
	}
	got := data[view](r, shown, http.StatusOK)
	if got.ActorID != nil || got.Actor["id"] != nil || got.Session != "s-4711" || string(got.Metadata) != `{"deep.pin":"4711","kept":"k"}` ||
		!slices.Equal(got.Redacted, want.Paths) || !strings.Contains(string(got.Sealed), `"sealed":true`) {
		t.Errorf("shown is %s", shown.body)
	}
	for _, page := range data[[]view](r, r.get(admin, "/api/v1/events", values("order", "asc", "limit", "1")), http.StatusOK) {
		if page.ActorID != nil || string(page.Metadata) != string(got.Metadata) {
			t.Errorf("on the page it is %+v", page)
		}
	}
	if other := r.get(admin, "/api/v1/events/"+sent[1].id, nil); !strings.Contains(string(other.body), `"redacted":[],"integrity"`) ||
		!strings.Contains(string(other.body), `"pin":"4711"`) {
		t.Errorf("the other event is %s", other.body)
	}

	// Again, and further.
	again := data[redactionReport](r, r.redact(admin, id, `["/metadata/pin"]`, "again"), http.StatusOK)
	if diff := gocmp.Diff(report, again); diff != "" {
		t.Errorf("again (-first +second):\n%s", diff)
	}
	further := data[redactionReport](r, r.redact(admin, id, `["/targets","/metadata/deep.pin","/actor_id"]`, "more"), http.StatusOK)
	if len(further.Paths) != 5 || further.RedactionID == report.RedactionID {
		t.Errorf("further: %+v", further)
	}
	for i := range filters {
		if strings.Contains(filters[i].query.Encode(), "target_") {
			filters[i].after = 1
		}
	}
	check("further")

	// ClickHouse does the first, then both.
	r.rewrite(admin, id, "/actor_id", "/metadata/pin", "/metadata/deep")
	if got := data[redactionReport](r, r.redact(admin, id, `["/metadata/pin"]`, "again"), http.StatusOK); got.ClickHouse != "pending" {
		t.Errorf("half done is %s", got.ClickHouse)
	}
	check("half done")
	if err := r.conn.Exec(t.Context(), "ALTER TABLE events UPDATE target_ids = [], target_types = [] WHERE disclosure != '' SETTINGS mutations_sync = 1"); err != nil {
		t.Fatal(err)
	}
	r.rewrite(admin, id, "/targets", "/metadata/deep.pin")
	r.eventually("the redaction counts as done", func() bool { return len(r.service.erasures.pending()) == 0 })
	rewritten := data[redactionReport](r, r.redact(admin, id, `["/metadata/pin"]`, "again"), http.StatusOK)
	if rewritten.ClickHouse != "rewritten" || rewritten.ClickHouseUntil == nil {
		t.Fatalf("rewritten is %+v", rewritten)
	}
	var seconds uint64
	err := r.conn.QueryRow(t.Context(), "SELECT sum(toUInt64(value)) FROM system.merge_tree_settings "+
		"WHERE name IN ('old_parts_lifetime', 'max_cleanup_delay_period')").Scan(&seconds)
	if err != nil || seconds < 60 {
		t.Fatal(seconds, err)
	}
	at, err := time.Parse(time.RFC3339, *rewritten.ClickHouseUntil)
	if removed := at.Add(-time.Duration(seconds) * time.Second); err != nil || removed.Before(began.Truncate(time.Second)) || removed.After(time.Now()) {
		t.Errorf("the files are there until %s, %v, %d s after they went out of use; it was rewritten after %v", at, err, seconds, began)
	}
	check("rewritten")
	for _, statement := range []string{
		"ALTER TABLE events MODIFY SETTING old_parts_lifetime = 0, cleanup_delay_period = 0, cleanup_delay_period_random_add = 0, max_cleanup_delay_period = 1",
		"DETACH TABLE events SYNC", // so that the cleanup does not wait for its next turn
		"ATTACH TABLE events",
	} {
		if err := r.conn.Exec(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	asked := 5.0
	r.eventually("the files are gone", func() bool {
		got := data[redactionReport](r, r.redact(admin, id, `["/metadata/pin"]`, "again"), http.StatusOK)
		asked++
		return got.ClickHouse == "gone" && got.ClickHouseUntil == nil
	})
	if n := r.labelled("immutable_query_requests_total", endpointRedact); n != asked {
		t.Errorf("%v requests counted", n)
	}
	if strings.Contains(r.log.String(), "4711") {
		t.Errorf("the log has the value:\n%s", r.log)
	}
}

// A reason is not compared with what was redacted before, which the row may still have: a refusal would tell a guess that is right from one that is
// not. With what is not redacted yet it is.
func TestReasonIsNoOracle(t *testing.T) {
	r := newRig(t)
	admin := r.newTenant("team", control.ScopeAdmin, control.ScopeRead)
	id := r.newLoader(admin).add(withPIN)[0].id
	const right, wrong = "4709 4710 4711 4712", "1000 1001 1002 1003"
	r.refused(r.redact(admin, id, `["/metadata/pin"]`, right), http.StatusUnprocessableEntity, "reason repeats a value")
	report := data[redactionReport](r, r.redact(admin, id, `["/metadata/pin"]`, "a PIN"), http.StatusOK)
	guess := func(when string) {
		t.Helper()
		for _, reason := range []string{wrong, right, "4711"} {
			got := data[redactionReport](r, r.redact(admin, id, `["/metadata/pin"]`, reason), http.StatusOK)
			got.ClickHouse, got.ClickHouseUntil = report.ClickHouse, nil
			if diff := gocmp.Diff(report, got); diff != "" {
				t.Errorf("%s, with the reason %q (-first +now):\n%s", when, reason, diff)
			}
		}
		refused := [2]string{}
		for i, reason := range []string{wrong, right} {
			a := r.redact(admin, id, `["/metadata/pin","/action"]`, reason)
			r.refused(a, http.StatusUnprocessableEntity, `"paths[1]"`)
			refused[i] = strings.ReplaceAll(string(a.body), a.header.Get("X-Request-Id"), "")
		}
		if refused[0] != refused[1] {
			t.Errorf("%s, a refusal tells them apart: %s and %s", when, refused[0], refused[1])
		}
	}
	guess("the row has it")
	r.refused(r.redact(admin, id, `["/metadata/pin","/actor_id"]`, right), http.StatusUnprocessableEntity, "reason repeats a value")

	// An instance that has not read of it waits until it has.
	view, err := control.NewView(control.ViewConfig{Kafka: r.kafka.Config, MasterKey: control.MasterKey{1}}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	behind := &Service{view: view}
	of := control.EventID{Workspace: admin.workspace.ID, Event: uuid.MustParse(id)}
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if erased, err := behind.redacted(short, of); err == nil {
		t.Errorf("before it has read anything, redacted is %q", erased)
	}
	run(t, view.Run)
	if erased, err := behind.redacted(t.Context(), of); err != nil || !slices.Equal(erased, []string{"/metadata/pin"}) {
		t.Errorf("redacted is %q, %v", erased, err)
	}
	r.rewrite(admin, id, "/metadata/pin")
	guess("the row no longer has it")
	r.kafka.Fake.Close()
	r.refused(r.redact(admin, id, `["/metadata/pin"]`, "a PIN"), http.StatusServiceUnavailable, "Nothing was changed")
}

// The idempotency key of a redacted event is burned, also when it is redacted itself, and stays so when the row no longer
// has it.
func TestRedactBurnsTheKey(t *testing.T) {
	r := newRig(t)
	admin := r.newTenant("team", control.ScopeAdmin, control.ScopeRead)
	const event = `{"actor_id":"a","action":"b","idempotency_key":"order \"1\"","metadata":{"pin":"4711","more":"m"}}`
	sent := r.newLoader(admin).add(event, withPIN)
	burned := func(want bool) {
		t.Helper()
		r.eventually("the key counts as it should", func() bool {
			return r.view.Redactions().Burned(admin.workspace, `order "1"`) == want
		})
	}
	burned(false)
	if data[redactionReport](r, r.redact(admin, sent[1].id, `["/metadata/pin"]`, "r"), http.StatusOK).IdempotencyKeyBurned {
		t.Error("an event without a key has a burned one")
	}
	burned(false)
	for _, path := range []string{"/idempotency_key", "/metadata/pin"} {
		if !data[redactionReport](r, r.redact(admin, sent[0].id, `["`+path+`"]`, "r"), http.StatusOK).IdempotencyKeyBurned {
			t.Errorf("%s: the key is not burned", path)
		}
		burned(true)
		r.rewrite(admin, sent[0].id, path)
	}
	if got := data[redactionReport](r, r.redact(admin, sent[0].id, `["/metadata/more"]`, "r"), http.StatusOK); !got.IdempotencyKeyBurned {
		t.Error("a later redaction no longer knows of the key")
	}
	if b := r.view.Redactions(); !b.Burned(admin.workspace, `order "1"`) {
		t.Error("the key can be used again")
	}
}

// A part that went out of use counts where it had blocks of the part in use, and not otherwise.
func TestPartsThatMayHoldIt(t *testing.T) {
	r := newRig(t)
	admin := r.newTenant("team", control.ScopeAdmin, control.ScopeRead)
	l := r.newLoader(admin)
	dataPart := func(s stored) string {
		t.Helper()
		found, err := r.service.target(t.Context(), admin.workspace.ID, uuid.MustParse(s.id))
		if err != nil || found == nil {
			t.Fatal(found, err)
		}
		return found.dataPart
	}
	first := l.add(withPIN)[0]
	if state, until := r.service.files(t.Context(), dataPart(first)); state != erasureGone || until != nil {
		t.Errorf("before anything was rewritten: %s", state)
	}
	old := dataPart(first)
	r.rewrite(admin, first.id, "/metadata/pin")
	second := l.add(withPIN)[0]
	if state, until := r.service.files(t.Context(), dataPart(first)); state != erasureRewritten || until == nil {
		t.Errorf("rewritten: %s", state)
	}
	if state, until := r.service.files(t.Context(), dataPart(second)); state != erasureGone || until != nil {
		t.Errorf("a part of later blocks: %s", state)
	}
	for _, part := range []string{old, "none"} {
		if state, until := r.service.files(t.Context(), part); state != erasureRewritten || until != nil {
			t.Errorf("%s, which is not in use: %s", part, state)
		}
	}
	part := dataPart(second)
	r.stop()
	if state, until := r.service.files(t.Context(), part); state != erasureRewritten || until != nil {
		t.Errorf("stopped: %s", state)
	}
}

func TestRedactRefuses(t *testing.T) {
	r := newRig(t)
	admin, other := r.newTenant("team", control.ScopeAdmin), r.newTenant("other", control.ScopeAdmin)
	l := r.newLoader(admin)
	sent := l.add(withPIN, withPIN)
	const path = `["/metadata/pin"]`
	r.refused(r.redact(other, sent[0].id, path, "r"), http.StatusNotFound, "no event with this id")
	r.refused(r.redact(admin, uuid.NewString(), path, "r"), http.StatusNotFound, "no event with this id")
	r.refused(r.redact(admin, "nonsense", path, "r"), http.StatusNotFound, "no event with this id")
	r.refused(r.redact(r.tenant, sent[0].id, path, "r"), http.StatusForbidden, "scope admin")
	for paths, want := range map[string]struct {
		status int
		text   string
	}{
		`["/action"]`:                {422, `"field":"paths[0]"`},
		`["/user_agent"]`:            {422, "It has: /actor_id, /metadata/deep, /metadata/deep.pin, /metadata/kept, /metadata/pin, /session_id, /targets."},
		`["/metadata"]`:              {422, "is not a field of this event"},
		`["/metadata/pin/x"]`:        {422, "is not a field of this event"},
		`[]`:                         {422, `"field":"paths"`},
		`7`:                          {422, `"field":"paths"`},
		`["/metadata/pin"],"also":1`: {422, "Known are: paths, reason"},
	} {
		r.refused(r.redact(admin, sent[0].id, paths, "r"), want.status, want.text)
	}
	r.refused(r.redact(admin, sent[0].id, path, ""), 422, `"field":"reason"`)
	r.refused(r.redact(admin, sent[0].id, path, "PIN was 4711"), 422, "reason repeats a value")
	r.refused(r.redact(admin, sent[0].id, `["/metadata/deep"]`, `{\"pin\":4711}`), 422, "reason repeats a value")
	r.refused(r.change(admin, http.MethodPost, "/api/v1/events/"+sent[0].id+"/redact?x=1", `{}`), 400, "not a parameter")
	if came, _ := r.view.Redactions().Since(0); len(came) != 0 {
		t.Errorf("%d events were redacted", len(came))
	}

	// What a proof of a redaction rests on stays.
	if err := r.conn.Exec(t.Context(), "ALTER TABLE events UPDATE kind = 3 WHERE id = unhex(?) SETTINGS mutations_sync = 1",
		strings.ReplaceAll(sent[1].id, "-", "")); err != nil {
		t.Fatal(err)
	}
	r.refused(r.redact(admin, sent[1].id, path, "r"), http.StatusConflict, "reports a redaction")

	// Rows that are not ours, or are broken.
	exec := func(statement string) {
		t.Helper()
		if err := r.conn.Exec(t.Context(), statement+" SETTINGS mutations_sync = 1"); err != nil {
			t.Fatal(err)
		}
	}
	exec("ALTER TABLE events UPDATE chain = unhex('00000000000000000000000000000001') WHERE kind = 2")
	r.refused(r.redact(admin, sent[0].id, path, "r"), http.StatusInternalServerError, "on our side")
	exec("ALTER TABLE events UPDATE body = '{' WHERE kind = 2")
	r.refused(r.redact(admin, sent[0].id, path, "r"), http.StatusInternalServerError, "on our side")
	exec("ALTER TABLE events UPDATE disclosure = '{' WHERE kind = 2")
	r.refused(r.redact(admin, sent[0].id, path, "r"), http.StatusInternalServerError, "on our side")
	r.stop()
	r.refused(r.redact(admin, sent[0].id, path, "r"), http.StatusServiceUnavailable, "Nothing was changed")
}

// A row that cannot be masked is not shown at all.
func TestEventThatCannotBeMasked(t *testing.T) {
	r := newRig(t)
	admin := r.newTenant("team", control.ScopeAdmin, control.ScopeRead)
	sent := r.newLoader(admin).add(withPIN)
	data[redactionReport](r, r.redact(admin, sent[0].id, `["/metadata/pin"]`, "r"), http.StatusOK)
	for _, body := range []string{"4711", `{"metadata":{"pin":4711},"metadata":{"pin":4711}}`} {
		if err := r.conn.Exec(t.Context(), "ALTER TABLE events UPDATE body = ? WHERE true SETTINGS mutations_sync = 1", body); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{"/api/v1/events", "/api/v1/events/" + sent[0].id} {
			if a := r.get(admin, path, nil); a.status != http.StatusInternalServerError || strings.Contains(string(a.body), "4711") {
				t.Errorf("%s: %d %s", path, a.status, a.body)
			}
		}
	}
	if strings.Contains(r.log.String(), "4711") || !strings.Contains(r.log.String(), sent[0].id) {
		t.Errorf("log:\n%s", r.log)
	}
}

func TestFilterLooksAt(t *testing.T) {
	req, err := parsePage("actor_id=a&target_type=t&metadata[a.b]=1&metadata[x/y~z]=2&action=*")
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		"/actor_id": true, "/targets": true, "/metadata/a": true, "/metadata/a.b": true, "/metadata/x~1y~0z": true,
		"/metadata/a.b.c": false, "/metadata/b": false, "/session_id": false, "/metadata/actor_id": false, "/idempotency_key": false,
		"/user_agent": false, "/flags": false,
	} {
		if got := req.looksAt(path); got != want {
			t.Errorf("%s: %t", path, got)
		}
	}
}

func TestErasuresSettle(t *testing.T) {
	r := newRig(t, func(c *Config) { c.AbsentAfter = time.Hour })
	admin := r.newTenant("team", control.ScopeAdmin, control.ScopeRead)
	id := control.EventID{Workspace: admin.workspace.ID, Event: [16]byte{7}}
	for _, path := range []string{"/metadata/pin", "/tenant_id"} {
		if _, err := r.writer.RedactEvent(t.Context(), "cli:test", control.Redactable{EventID: id}, []string{path}, "r"); err != nil {
			t.Fatal(err)
		}
	}
	r.eventually("it is known", func() bool {
		known, err := r.view.Redactions().Lookup(id)
		return err == nil && known != nil && known.Version == 2
	})
	e := newErasures(r.view.Redactions(), 10*time.Minute)
	req, err := parsePage("tenant_id=t")
	if err != nil {
		t.Fatal(err)
	}
	concealed := func() int {
		ids, err := e.concealed(id.Workspace, &req.filter)
		if err != nil {
			t.Fatal(err)
		}
		return len(ids)
	}
	ids := eventIDs{id.Event}
	half := `[{"path":"/action","salt":"00000000000000000000000000000000"},{"path":"/metadata/pin","commitment":"` + strings.Repeat("0", 64) +
		`"},{"path":"/tenant_id","salt":"00000000000000000000000000000000"}]`
	done := strings.Replace(half, `"/tenant_id","salt":"`+strings.Repeat("0", 32), `"/tenant_id","commitment":"`+strings.Repeat("0", 64), 1)
	for _, step := range []struct {
		name string
		rows map[[16]byte]string
		at   time.Duration
		want int
	}{
		{"untouched", map[[16]byte]string{id.Event: ""}, 0, 1},
		{"half", map[[16]byte]string{id.Event: half}, 0, 1},
		{"absent", nil, 0, 1},
		{"absent for nine minutes", nil, 9 * time.Minute, 1},
		{"back", map[[16]byte]string{id.Event: ""}, 9 * time.Minute, 1},
		{"absent again", nil, 10 * time.Minute, 1},
		{"absent for nine minutes again", nil, 19 * time.Minute, 1},
		{"absent for ten minutes", nil, 20 * time.Minute, 0},
	} {
		if step.name == "untouched" && concealed() != 1 {
			t.Error("not concealed at start")
		}
		e.settle(id.Workspace, ids, step.rows, epoch.Add(step.at))
		if got := concealed(); got != step.want {
			t.Errorf("%s: %d concealed", step.name, got)
		}
	}
	e = newErasures(r.view.Redactions(), 10*time.Minute)
	if other, err := parsePage("session_id=s"); err != nil || concealed() != 1 {
		t.Error(err)
	} else if ids, err := e.concealed(id.Workspace, &other.filter); len(ids) != 0 || err != nil {
		t.Errorf("a filter of other fields: %d, %v", len(ids), err)
	}
	if ids, err := e.concealed([16]byte{9}, &req.filter); len(ids) != 0 || err != nil {
		t.Errorf("another workspace: %d, %v", len(ids), err)
	}
	e.settle(id.Workspace, ids, map[[16]byte]string{id.Event: done}, epoch)
	if got := concealed(); got != 0 {
		t.Errorf("done: %d concealed", got)
	}
	e = newErasures(r.view.Redactions(), 10*time.Minute)
	e.most = 0
	if _, err := e.concealed(id.Workspace, &req.filter); err == nil {
		t.Error("too many, and no error")
	}
	r.service.erasures.most = 0
	r.refused(r.get(admin, "/api/v1/events", values("tenant_id", "t")), http.StatusServiceUnavailable, "Redactions are being carried out")
}

// While ClickHouse is away it is asked again, and said so.
func TestErasuresWithoutClickHouse(t *testing.T) {
	r := newRig(t)
	admin := r.newTenant("team", control.ScopeAdmin)
	if err := r.conn.Exec(t.Context(), "RENAME TABLE events TO gone"); err != nil {
		t.Fatal(err)
	}
	id := control.EventID{Workspace: admin.workspace.ID, Event: [16]byte{7}}
	if _, err := r.writer.RedactEvent(t.Context(), "cli:test", control.Redactable{EventID: id}, []string{"/tenant_id"}, "r"); err != nil {
		t.Fatal(err)
	}
	r.eventually("it is counted", func() bool { return r.counter("immutable_query_redaction_check_errors_total") > 0 })
	r.eventually("it is logged", func() bool { return strings.Contains(r.log.String(), "asking which redactions were carried out") })
}
