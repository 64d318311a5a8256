package e2e_test

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"getimmutable.dev/immutable/control"
)

// TestAccess holds every endpoint of the description to who may use it: nobody without a good key, no key from elsewhere
// or without the scope, and no key of another workspace.
func TestAccess(t *testing.T) {
	a := newAPI(t)
	all := []control.Scope{control.ScopeWrite, control.ScopeRead, control.ScopeAdmin}
	var home, away *control.Workspace
	for _, ws := range a.view.Workspaces() {
		switch ws.Name {
		case "main":
			home = ws
		case "limited":
			away = ws
		}
	}
	create := func(name string, n control.NewKey) *control.Key {
		n.Name = name
		k, secret, err := a.writer.CreateKey(t.Context(), "cli:test", n)
		a.must(err)
		a.tokens[name] = secret
		a.must(a.view.Await(t.Context(), func() bool { _, ok := a.view.Key(n.Workspace, k.ID); return ok }))
		return k
	}
	create("owner", control.NewKey{Workspace: home.ID, Scopes: all})
	create("foreign", control.NewKey{Workspace: away.ID, Scopes: all})
	create("elsewhere", control.NewKey{
		Workspace: home.ID, Scopes: all, AllowedCIDRs: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
	})
	for _, scope := range all {
		create("without "+string(scope), control.NewKey{
			Workspace: home.ID, Scopes: slices.DeleteFunc(slices.Clone(all), func(s control.Scope) bool { return s == scope }),
		})
	}
	revoked := create("revoked", control.NewKey{Workspace: home.ID, Scopes: all})
	a.must(a.writer.RevokeKey(t.Context(), "cli:test", home.ID, revoked.ID, 0))
	expiry := time.Now().Add(100 * time.Millisecond)
	create("expired", control.NewKey{Workspace: home.ID, Scopes: all, ExpiresAt: expiry})
	a.eventually(func() bool {
		_, gone := a.view.Key(home.ID, revoked.ID)
		return !gone && time.Now().After(expiry)
	})
	object := uuid.UUID(create("object", control.NewKey{Workspace: home.ID, Scopes: all}).ID).String()

	// What belongs to home, for every endpoint with an id, and a body that it would take.
	own := map[string]struct{ id, body string }{
		"GET " + byID:         {storedID, ""},
		"GET " + proofOf:      {storedID, ""},
		"GET " + anchor:       {"1", ""},
		"GET " + anchorVerify: {"1", ""},
		"POST " + redact:      {redactableID, `{"paths":["/actor_id"],"reason":"r"}`},
		"GET " + keyByID:      {object, ""},
		"PATCH " + keyByID:    {object, `{"name":"taken over"}`},
		"DELETE " + keyByID:   {object, ""},
		"POST " + keyRoll:     {object, `{"overlap_seconds":60}`},
		"GET " + workspace:    {uuid.UUID(home.ID).String(), ""},
		"PATCH " + workspace:  {uuid.UUID(home.ID).String(), `{"settings":{"rate_limit":null}}`},
		"DELETE " + workspace: {uuid.UUID(home.ID).String(), ""},
	}
	// What the owner is answered: the foreign key's 404 has no other cause than whose key it is.
	allowed := map[string]int{
		"DELETE " + workspace: http.StatusConflict,
		// There is no notary here, and so no checkpoint; those that there are, are everybody's.
		"GET " + proofOf: http.StatusServiceUnavailable, "GET " + anchor: http.StatusNotFound, "GET " + anchorVerify: http.StatusNotFound,
	}
	for path, item := range a.doc.Paths.Map() {
		for method, operation := range item.Operations() {
			if operation.Security != nil && len(*operation.Security) == 0 {
				continue
			}
			name := method + " " + path
			_, rest, ok := strings.Cut(operation.Description, "Scope `")
			scope, _, closed := strings.Cut(rest, "`")
			if !ok || !closed {
				t.Errorf("%s: the description names no scope", name)
				continue
			}
			c := call{method: method, path: path}
			o, known := own[name]
			if strings.Contains(path, "{") && !known {
				t.Errorf("%s has an id: add it to the table", name)
				continue
			}
			c.id = o.id
			for key, status := range map[string]int{
				"": 401, "revoked": 401, "expired": 401, "elsewhere": 403, "without " + scope: 403,
			} {
				c.key, c.status = key, status
				a.send(c)
			}
			delete(own, name)
			if !known {
				continue
			}
			// The foreign key tries first: had it any effect, the owner would notice.
			send := func(key string, status int) {
				c.key, c.status, c.body = key, status, text(o.body)
				c.header = http.Header{"Content-Type": {"application/json"}}
				a.send(c)
			}
			send("foreign", http.StatusNotFound)
			if status, ok := allowed[name]; ok {
				send("owner", status)
			} else if name != "DELETE "+keyByID { // last, or the others would find nothing
				send("owner", http.StatusOK)
			}
		}
	}
	for name := range own {
		t.Errorf("%s is in the table, but not in the description", name)
	}
	a.send(call{method: http.MethodDelete, path: keyByID, id: object, key: "owner", status: http.StatusOK})
}
