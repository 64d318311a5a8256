package query

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"getimmutable.dev/immutable/internal/httpserver"
)

// refusal takes an answer to bad input apart.
func refusal(t *testing.T, err error) (status int, message string, details []httpserver.Detail) {
	t.Helper()
	e, ok := errors.AsType[*httpserver.Error](err)
	if !ok {
		t.Fatalf("%v, want an *httpserver.Error", err)
	}
	return e.Status, e.Message, e.Details
}

// written shows a statement with its values.
func (s *statement) written() string {
	var b strings.Builder
	b.WriteString(s.text.String())
	for _, a := range s.args {
		named := a.(driver.NamedValue)
		fmt.Fprintf(&b, "\n-- %s = %v", named.Name, named.Value)
	}
	return b.String() + "\n"
}

func TestStatements(t *testing.T) {
	workspace := [16]byte{0xab, 15: 0xcd}
	request := func(q url.Values) *pageRequest {
		req, err := parsePage(q.Encode())
		if err != nil {
			t.Fatal(err)
		}
		return &req
	}
	everything := values(
		"action", "user", "action", "deployment.*", "action", `100%_\`, "action_category", "c", "actor_id", "a2", "actor_id", "a1",
		"actor_id", "a1", "actor_type", "t", "resource", "r", "resource_id", "api-gateway", "tenant_id", "acme", "session_id", "s",
		"target_type", "invoice", "target_id", "i-1", "metadata[b.c]", "2", "metadata[b.c]", "1", "metadata[a]", "it's",
		"from", "2026-01-01T00:00:00Z", "to", "2026-01-02T00:00:00.000001Z",
		"recorded_from", "2026-01-03T00:00:00Z", "recorded_to", "2026-01-04T00:00:00Z",
	)
	after := &position{at: 1_767_225_600_000_001, id: [16]byte{1, 15: 2}}
	second := limits{timeout: 4 * time.Second}
	oldest := request(values("order", "asc"))
	for name, s := range map[string]*statement{
		"page-first.sql":      pageStatement(workspace, request(nil), nil, 25, second),
		"page-after.sql":      pageStatement(workspace, request(nil), after, 25, second),
		"page-oldest.sql":     pageStatement(workspace, oldest, after, 1000, limits{timeout: 4 * time.Second, bytes: 32 << 20}),
		"page-everything.sql": pageStatement(workspace, request(everything), after, 25, second),
		"page-targets.sql":    pageStatement(workspace, request(values("target_type", "user")), nil, 25, second),
		"count.sql": countStatement(workspace, &request(everything).filter,
			limits{timeout: 250 * time.Millisecond, rows: 500_000}),
		"event.sql":  eventStatement(workspace, [16]byte{1, 15: 2}, second),
		"leaves.sql": leavesStatement(workspace, leafKeys{{[16]byte{0xff, 15: 0x27}, 7}, {[16]byte{1}, 6}}, second),
	} {
		golden(t, name, []byte(s.written()))
		if !strings.Contains(s.text.String(), " WHERE workspace = unhex({p0:String})\n") {
			t.Errorf("%s is not confined to a workspace", name)
		}
	}
}

// TestIndexes: the conditions are ones that the tables' indexes understand.
func TestIndexes(t *testing.T) {
	r := newRig(t)
	r.newLoader(r.tenant).add(`{"actor_id":"a","action":"x","resource":"r","resource_id":"i","session_id":"s","metadata":{"k":"v"}}`)
	for _, c := range []struct{ query, index string }{
		{"actor_id=a", "actor_id_bloom"},
		{"resource_id=a&resource_id=b", "resource_id_bloom"},
		{"session_id=a", "session_id_bloom"},
		{"metadata[k]=a", "metadata_keys_bloom"},
		{"metadata[k]=a&metadata[k]=b", "metadata_values_bloom"},
		{"recorded_from=2026-01-01T00:00:00Z", "recorded_at_minmax"},
	} {
		req, err := parsePage(c.query)
		if err != nil {
			t.Fatal(err)
		}
		s := pageStatement(r.workspace.ID, &req, &position{at: 1}, 25, limits{timeout: time.Second})
		plan := r.explain(s)
		if !strings.Contains(plan, c.index) {
			t.Errorf("%s does not use %s:\n%s", c.query, c.index, plan)
		}
		for _, key := range []string{"workspace in", "occurred_at in"} {
			if !strings.Contains(plan, key) {
				t.Errorf("%s does not use the primary key (%s):\n%s", c.query, key, plan)
			}
		}
	}
	leaves := leavesStatement(r.workspace.ID, leafKeys{{[16]byte{1}, 6}, {[16]byte{1}, 7}}, limits{timeout: time.Second})
	if plan := r.explain(leaves); !strings.Contains(plan, "(chain, sequence) in 2-element set") {
		t.Errorf("leaves are not found by their primary key:\n%s", plan)
	}
}

func (r *rig) explain(s *statement) string {
	r.tb.Helper()
	rows, err := r.conn.Query(r.tb.Context(), "EXPLAIN indexes = 1 "+s.text.String(), s.args...)
	if err != nil {
		r.tb.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	var plan strings.Builder
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			r.tb.Fatal(err)
		}
		plan.WriteString(line + "\n")
	}
	if err := rows.Err(); err != nil {
		r.tb.Fatal(err)
	}
	return plan.String()
}
