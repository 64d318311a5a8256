package e2e_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
)

const (
	keys       = "/api/v1/keys"
	keyByID    = "/api/v1/keys/{id}"
	keyRoll    = "/api/v1/keys/{id}/roll"
	settings   = "/api/v1/settings"
	workspaces = "/api/v1/workspaces"
	workspace  = "/api/v1/workspaces/{id}"
	redact     = "/api/v1/events/{id}/redact"
)

// list holds the parameters of a list to its description, as those of GET /events are.
func (a *api) list(path string) {
	example := map[string]string{"limit": "1", "cursor": ""}
	var page struct {
		Pagination struct {
			NextCursor string `json:"next_cursor"`
		}
	}
	a.must(json.Unmarshal(a.send(call{method: http.MethodGet, path: path, query: "limit=1", key: "nothing", status: 200}), &page))
	example["cursor"] = page.Pagination.NextCursor
	var described []string
	for _, p := range a.doc.Paths.Value(path).Get.Parameters {
		name := p.Value.Name
		described = append(described, name)
		a.send(call{method: http.MethodGet, path: path, query: name + "=" + example[name], key: "nothing", status: 200})
		a.send(call{method: http.MethodGet, path: path, query: name + "=", key: "nothing", status: 422})
	}
	refusal := a.send(call{method: http.MethodGet, path: path, query: "nonsense=x", key: "nothing", status: 400})
	if known := "Known are: " + strings.Join(described, ", ") + "."; !strings.Contains(string(refusal), known) {
		a.t.Errorf("%s: %s, want %q", path, refusal, known)
	}
}

// manage produces every documented answer of the endpoints that manage.
func (a *api) manage() {
	do := func(method, path, id, key, body string, status int, header ...string) (shown struct{ ID, Token string }) {
		h := http.Header{"Content-Type": {"application/json"}}
		for i := 0; i < len(header); i += 2 {
			h.Set(header[i], header[i+1])
		}
		answer := a.send(call{method: method, path: path, id: id, key: key, header: h, body: text(body), status: status})
		var found struct {
			Data json.RawMessage
		}
		a.must(json.Unmarshal(answer, &found))
		_ = json.Unmarshal(found.Data, &shown) // a list has neither
		return shown
	}
	const newKey = `{"name":"k","scopes":["admin"],"expires_at":"2126-01-01T00:00:00Z","allowed_cidrs":["::/0","0.0.0.0/0"],
		"rate_limit":{"per_second":1.5,"burst":3}}`
	key := do(http.MethodPost, keys, "", "nothing", newKey, 201)
	ws := do(http.MethodPost, workspaces, "", "nothing", `{"name":"third","lanes":1,"settings":{"secret_policy":"reject"}}`, 201)
	do(http.MethodPost, keys, "", "nothing", `{"name":"k","scopes":["admin"],"workspace_id":"`+ws.ID+`"}`, 201)
	do(http.MethodPost, keys, "", "team", `{"name":"k","scopes":["admin"],"workspace_id":"`+ws.ID+`"}`, 404)
	do(http.MethodPost, workspaces, "", "nothing", `{"name":"third"}`, 409)
	do(http.MethodPost, workspaces, "", "team", `{"name":"fourth"}`, 403)
	do(http.MethodDelete, workspace, ws.ID, "team", "", 404)

	for path, id := range map[string]string{
		keys: "", keyByID: key.ID, keyRoll: key.ID, settings: "", workspaces: "", workspace: ws.ID, redact: redactableID,
	} {
		for method := range a.doc.Paths.Value(path).Operations() {
			if method == http.MethodGet {
				do(method, path, id, "nothing", "", 200)
			}
			if method == http.MethodGet && (path == keys || path == workspaces) {
				a.list(path)
			}
			a.send(call{method: method, path: path, id: id, query: "nonsense=1", key: "nothing", status: 400})
			a.send(call{method: method, path: path, id: id, status: 401})
			a.send(call{method: method, path: path, id: id, key: "read", status: 403})
			a.send(call{url: a.stopped, method: method, path: path, id: id, key: "nothing", status: 503})
			if strings.Contains(path, "{id}") {
				do(method, path, "nonsense", "nothing", "{}", 404)
			}
			if method == http.MethodPatch || method == http.MethodPost {
				do(method, path, id, "nothing", "{}", 415, "Content-Type", "text/plain")
				do(method, path, id, "nothing", `{"name":"`+strings.Repeat("x", 64<<10)+`"}`, 413)
				do(method, path, id, "nothing", `{"nonsense":1}`, 422)
				do(method, path, id, "nothing", "{", 400)
			}
		}
	}
	for path, bodies := range map[string]map[string]string{
		keys:       {http.MethodPost: newKey},
		keyByID:    {http.MethodPatch: `{"name":"x"}`, http.MethodDelete: ""},
		keyRoll:    {http.MethodPost: `{}`},
		redact:     {http.MethodPost: `{"paths":["/actor_id"],"reason":"r"}`},
		settings:   {http.MethodPatch: `{"rate_limit":null}`},
		workspaces: {http.MethodPost: `{"name":"fifth"}`},
		workspace:  {http.MethodPatch: `{"settings":{"rate_limit":null}}`, http.MethodDelete: ""},
	} {
		for method, body := range bodies {
			id := key.ID
			switch path {
			case workspace:
				id = ws.ID
			case redact:
				id = redactableID
			}
			c := call{method: method, path: path, id: id, key: "nothing", header: http.Header{"Content-Type": {"application/json"}}}
			c.url, c.body, c.status = a.misconfigured, text(body), 500
			if path == redact { // which reads the event first: one whose row is not the ledger's
				c.url, c.id = "", storedID
			}
			a.send(c)
			if body == "" {
				continue
			}
			slow, hold := io.Pipe()
			c.url, c.body, c.status = "", slow, 408
			a.send(c)
			_ = hold.Close()
		}
	}
	const erase = `{"paths":["/actor_id","/metadata/pin"],"reason":"a customer's number"}`
	do(http.MethodPost, redact, redactableID, "nothing", erase, 200)
	do(http.MethodPost, redact, redactionID, "nothing", erase, 409)
	do(http.MethodPost, redact, redactableID, "team", erase, 404)
	a.send(call{method: http.MethodGet, path: byID, id: redactableID, key: "read", status: 200})
	rolled := do(http.MethodPost, keys, "", "nothing", newKey, 201)
	do(http.MethodPost, keyRoll, rolled.ID, "nothing", `{"overlap_seconds":604800}`, 200, "If-Match", `"1"`)
	do(http.MethodGet, keyByID, rolled.ID, "nothing", "", 200)
	do(http.MethodPost, keyRoll, rolled.ID, "nothing", "{}", 409, "If-Match", `"99"`)
	do(http.MethodPost, keyRoll, rolled.ID, "nothing", "{}", 400, "If-Match", "99")
	for path, id := range map[string]string{keyByID: key.ID, settings: "", workspace: ws.ID} {
		body := `{"rate_limit":null}`
		if path == workspace {
			body = `{"settings":` + body + `}`
		}
		do(http.MethodPatch, path, id, "nothing", body, 200)
		do(http.MethodPatch, path, id, "nothing", body, 409, "If-Match", `"99"`)
		do(http.MethodPatch, path, id, "nothing", body, 400, "If-Match", "99")
		if path != settings {
			do(http.MethodDelete, path, id, "nothing", "", 409, "If-Match", `"99"`)
			do(http.MethodDelete, path, id, "nothing", "", 200, "If-Match", `"2"`)
		}
	}
}
