package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"getimmutable.dev/immutable/internal/loadgen"
)

// TestWorkspaces loads a hundred workspaces at once, one of them with 90 % of the traffic. All send the same events with the
// same idempotency keys, and each reads its own and no other.
func TestWorkspaces(t *testing.T) {
	long(t)
	s := up(t)
	const workspaces, quiet = 100, 5
	keys, loads := make([]string, workspaces), make([]*load, workspaces)
	for i := range workspaces {
		keys[i] = s.newWorkspace(t, fmt.Sprint("team-", i))
	}
	operator := s.key
	for i := range workspaces {
		s.key = keys[i]
		n := quiet
		if i == 0 {
			n = 9 * quiet * (workspaces - 1)
		}
		loads[i] = s.startLoad(t, loadgen.Config{Seed: 801, KeyedPercent: 100}, loadgen.ClientConfig{Concurrency: 1}, n)
	}
	var all int
	for i, l := range loads {
		l.finish(t)
		var want []string
		if err := loadgen.ReadAckLog(l.acks, func(a loadgen.Ack) error {
			want = append(want, a.ID)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		slices.Sort(want)
		all += len(want)
		s.key = keys[i]
		eventually(t, time.Minute, func() error {
			got, err := s.ownEvents(t)
			if err != nil {
				return err
			}
			if diff := cmp.Diff(want, got); diff != "" {
				return fmt.Errorf("workspace %d (-acknowledged, +shown): %.2000s", i, diff)
			}
			return nil
		})
	}
	s.key = operator
	t.Logf("%d events of %d workspaces; check: %s", all, workspaces, s.check(t, all))
}

// newWorkspace makes a workspace with a key, as an operator, and returns the key.
func (s *stack) newWorkspace(t *testing.T, name string) string {
	t.Helper()
	create := func(path, body string) (id, token string) {
		t.Helper()
		status, _, answer, err := s.do(t.Context(), http.MethodPost, readURL+path, nil, []byte(body))
		if err != nil || status != http.StatusCreated {
			t.Fatalf("POST %s: %d %s, %v", path, status, answer, err)
		}
		var made struct{ Data struct{ ID, Token string } }
		if err := json.Unmarshal(answer, &made); err != nil {
			t.Fatal(err)
		}
		return made.Data.ID, made.Data.Token
	}
	id, _ := create("/workspaces", fmt.Sprintf(`{"name":%q}`, name))
	_, token := create("/keys", fmt.Sprintf(`{"name":"first","scopes":["events:write","events:read"],"workspace_id":%q}`, id))
	return token
}

// ownEvents returns the sorted ids of all events that the key can read, but for those that say how the workspace was made.
func (s *stack) ownEvents(t *testing.T) (ids []string, err error) {
	t.Helper()
	query := url.Values{"limit": {"100"}, "total": {"false"}}
	for {
		var p page
		if err := s.tryGet(t.Context(), "/events", query, &p); err != nil {
			return nil, err
		}
		for _, ev := range p.Data {
			if ev["action"] != "workspace.created" && ev["action"] != "api_key.created" {
				ids = append(ids, fmt.Sprint(ev["id"]))
			}
		}
		if !p.Pagination.HasMore {
			slices.Sort(ids)
			return ids, nil
		}
		query.Set("cursor", p.Pagination.NextCursor)
	}
}
