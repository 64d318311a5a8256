package e2e

import (
	"fmt"
	"net/http"
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

// lastUsed returns when the key of a name was last used, as the command line shows it.
func lastUsed(t *testing.T, s *upStack, name string) time.Time {
	t.Helper()
	for line := range strings.Lines(s.cli(t, "keys", "list", "--data="+s.data)) {
		if columns := regexp.MustCompile(` {2,}`).Split(line, -1); columns[2] == name {
			at, err := time.Parse(time.RFC3339, columns[7])
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			return at
		}
	}
	t.Fatalf("there is no key %s", name)
	return time.Time{}
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
