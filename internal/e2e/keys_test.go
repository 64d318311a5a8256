package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"
)

// revokedKey creates a key, uses it in every service that takes one, and revokes it. target says which installation the
// command line means.
func revokedKey(t *testing.T, s *stack, target ...string) {
	t.Helper()
	const name = "short-lived"
	secret := s.cli(t, "keys", "create", "--name="+name, target)
	var id string
	for line := range strings.Lines(s.cli(t, "keys", "list", target)) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[2] == name {
			id = fields[0]
		}
	}
	event := []byte(`{"actor_id":"e2e","action":"key.used"}`)
	use := map[string]func() (int, error){
		"ingest": func() (int, error) { return s.statusWith(t, secret, http.MethodPost, writeURL+"/events", event) },
		"query":  func() (int, error) { return s.statusWith(t, secret, http.MethodGet, readURL+"/events?limit=1", nil) },
	}
	want := map[string]int{"ingest": http.StatusAccepted, "query": http.StatusOK}
	for service, do := range use {
		eventually(t, 5*time.Second, func() error { return expect(service, do, want[service]) })
	}
	s.cli(t, "keys", "revoke", id, target)
	revoked := time.Now()
	for service, do := range use {
		eventually(t, time.Second-time.Since(revoked), func() error { return expect(service, do, http.StatusUnauthorized) })
		t.Logf("%s refuses the key %v after it was revoked", service, time.Since(revoked).Round(time.Millisecond))
	}
}

// keyRow returns the columns of `keys list` for the key of a name.
func keyRow(t *testing.T, s *upStack, name string) []string {
	t.Helper()
	for line := range strings.Lines(s.cli(t, "keys", "list", "--data="+s.data)) {
		if columns := regexp.MustCompile(` {2,}`).Split(line, -1); columns[2] == name {
			return columns
		}
	}
	t.Fatalf("there is no key %s", name)
	return nil
}

// lastUsed returns when the key of a name was last used, as the command line shows it.
func lastUsed(t *testing.T, s *upStack, name string) time.Time {
	t.Helper()
	text := keyRow(t, s, name)[7]
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// changesInLedger makes changes over HTTP and finds each as an event that says who made it, in which request.
func changesInLedger(t *testing.T, s *upStack) {
	t.Helper()
	author := "key:" + keyRow(t, s, "up")[0]
	change := func(method, path, body, requestID string) string {
		t.Helper()
		header := http.Header{"X-Request-Id": {requestID}}
		status, _, answer, err := s.do(t.Context(), method, readURL+path, header, []byte(body))
		var changed struct{ Data struct{ ID string } }
		if err = errors.Join(err, json.Unmarshal(answer, &changed)); err != nil || status >= 300 {
			t.Fatalf("%s %s: %d %s: %v", method, path, status, answer, err)
		}
		return changed.Data.ID
	}
	id := change(http.MethodPost, "/keys", `{"name":"reported","scopes":["events:read"]}`, "change-1")
	change(http.MethodPatch, "/keys/"+id, `{"name":"renamed"}`, "change-2")
	change(http.MethodPost, "/keys/"+id+"/roll", `{}`, "change-3")
	change(http.MethodDelete, "/keys/"+id, "", "change-4")
	var got page
	eventually(t, 10*time.Second, func() error {
		query := url.Values{"resource": {"api_key"}, "resource_id": {id}, "order": {"asc"}}
		if err := s.tryGet(t.Context(), "/events", query, &got); err != nil {
			return err
		}
		if len(got.Data) < 4 {
			return fmt.Errorf("%d of 4 changes are readable", len(got.Data))
		}
		return nil
	})
	for i, action := range []string{"created", "updated", "rolled", "revoked"} {
		ev := got.Data[i]
		metadata, _ := ev["metadata"].(map[string]any)
		if ev["action"] != "api_key."+action || ev["actor_id"] != author || ev["actor_type"] != "api_key" ||
			metadata["request_id"] != fmt.Sprint("change-", i+1) {
			t.Errorf("change %d: %v", i+1, ev)
		}
	}
}

func expect(service string, do func() (int, error), want int) error {
	status, err := do()
	if err == nil && status != want {
		err = fmt.Errorf("%s answers with status %d, want %d", service, status, want)
	}
	return err
}

// statusWith sends a request with another key than the stack's.
func (s *stack) statusWith(t *testing.T, key, method, target string, body []byte) (int, error) {
	t.Helper()
	header := http.Header{"Authorization": {"Bearer " + key}}
	status, _, _, err := s.do(t.Context(), method, target, header, body)
	return status, err
}
