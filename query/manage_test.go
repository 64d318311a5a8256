package query

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"getimmutable.dev/immutable/control"
)

// change sends a JSON body, with an If-Match where there is one, and returns what came back.
func (r *rig) change(t tenant, method, path, body string, ifMatch ...string) answer {
	r.tb.Helper()
	req, err := http.NewRequestWithContext(r.tb.Context(), method, r.url+path, strings.NewReader(body))
	if err != nil {
		r.tb.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+t.token)
	req.Header.Set("Content-Type", "application/json")
	req.Header["If-Match"] = ifMatch
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		r.tb.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		r.tb.Fatal(err)
	}
	return answer{res.StatusCode, res.Header, text}
}

// data returns the object, or list, of an answer that must have a status.
func data[T any](r *rig, a answer, status int) T {
	r.tb.Helper()
	var body struct {
		Data T `json:"data"`
	}
	if a.status != status {
		r.tb.Fatalf("%d %s, want %d", a.status, a.body, status)
	}
	if err := json.Unmarshal(a.body, &body); err != nil {
		r.tb.Fatal(err)
	}
	return body.Data
}

// refused checks the status of an answer, and that it names what must be changed.
func (r *rig) refused(a answer, status int, text string) {
	r.tb.Helper()
	if a.status != status || !strings.Contains(string(a.body), text) {
		r.tb.Errorf("%d %s, want %d and %q", a.status, a.body, status, text)
	}
}

const allScopes = `["events:write","events:read","admin"]`

func TestManageKeys(t *testing.T) {
	r := newRig(t)
	admin := r.newTenant("team", control.ScopeAdmin)
	created := r.change(admin, http.MethodPost, "/api/v1/keys", `{"name":"ci","scopes":["events:read","admin"],
		"expires_at":"2126-01-02T03:04:05+01:00","allowed_cidrs":["127.0.0.9/8"],"rate_limit":{"per_second":5,"burst":9}}`)
	key := data[apiKey](r, created, http.StatusCreated)
	token := key.Token
	if !strings.HasPrefix(token, "imk_sk_") || *key.ExpiresAt != "2126-01-02T02:04:05.000000Z" ||
		!strings.Contains(string(created.body), `"last_used_at":null`) || key.AllowedCIDRs[0].String() != "127.0.0.0/8" || *key.RateLimit != (rateLimit{5, 9}) || key.Version != 1 ||
		created.header.Get("ETag") != `"1"` || created.header.Get("Cache-Control") != "no-store" {
		t.Errorf("%s", created.body)
	}
	path := "/api/v1/keys/" + key.ID
	ci := tenant{admin.workspace, token}
	// What was made is seen at once, and works.
	shown := r.do(token, http.MethodGet, path)
	if got := data[apiKey](r, shown, http.StatusOK); got.LastUsedAt == nil || got.Token != "***"+token[len(token)-4:] || got.Name != "ci" {
		t.Errorf("%s", shown.body)
	}
	if list := data[[]apiKey](r, r.do(token, http.MethodGet, "/api/v1/keys"), http.StatusOK); len(list) != 2 {
		t.Errorf("%+v", list)
	}

	patched := r.change(ci, http.MethodPatch, path, `{"name":"cd","expires_at":null,"allowed_cidrs":null,"rate_limit":null}`, `"1"`)
	if got := data[apiKey](r, patched, http.StatusOK); got.Name != "cd" || got.ExpiresAt != nil ||
		len(got.AllowedCIDRs) != 0 || got.RateLimit != nil || len(got.Scopes) != 2 || patched.header.Get("ETag") != `"2"` {
		t.Errorf("%s", patched.body)
	}
	r.refused(r.change(ci, http.MethodPatch, path, `{"name":"x"}`, `"1"`), http.StatusConflict, "version 2, not 1")
	r.refused(r.change(ci, http.MethodDelete, path, "", `W/"1"`), http.StatusConflict, "version 2, not 1")
	r.refused(r.change(ci, http.MethodPatch, path, `{"name":"x"}`, `1`), http.StatusBadRequest, "If-Match")

	for body, want := range map[string]struct {
		status int
		text   string
	}{
		`{"name":"x","scopes":[]}`:                                   {422, `"field":"scopes"`},
		`{"name":"x","scopes":["events:read","all"]}`:                {422, `"field":"scopes[1]"`},
		`{"name":"x","scopes":7}`:                                    {422, `"field":"scopes"`},
		`{"scopes":["admin"]}`:                                       {422, `"field":"name"`},
		`{"name":"x","scopes":["admin"],"secret":"imk_sk_mine"}`:     {422, "Known are: name, scopes"},
		`{"name":"x","scopes":["admin"],"expires_at":"2020-01-01"}`:  {422, `"field":"expires_at"`},
		`{"name":"x","scopes":["admin"],"allowed_cidrs":["::1"]}`:    {422, `"field":"allowed_cidrs[0]"`},
		`{"name":"x","scopes":["admin"],"rate_limit":{"burst":1}}`:   {422, `"field":"rate_limit.burst"`},
		`{"name":"x","scopes":["admin"],"rate_limit":{"per_s":1}}`:   {422, `"field":"rate_limit.per_s"`},
		`{"name":"x","scopes":["admin"],"workspace_id":"elsewhere"}`: {404, "no workspace"},
		`{"name":"x","name":"y"}`:                                    {400, "twice"},
		`{"name":`:                                                   {400, "not valid JSON"},
		`[]`:                                                         {400, "JSON object"},
		`{"name":"` + strings.Repeat("x", maxManageBytes) + `"}`:     {413, "at most 65536 bytes"},
	} {
		r.refused(r.change(admin, http.MethodPost, "/api/v1/keys", body), want.status, want.text)
	}
	r.refused(r.do(token, http.MethodGet, path+"?limit=1"), http.StatusBadRequest, "limit")

	if got := data[deleted](r, r.change(ci, http.MethodDelete, path, "", `"2"`), http.StatusOK); got.ID != key.ID || !got.Deleted {
		t.Errorf("%+v", got)
	}
	r.refused(r.do(token, http.MethodGet, path), http.StatusUnauthorized, "revoked")
	r.refused(r.do(admin.token, http.MethodGet, path), http.StatusNotFound, "revoked")
	r.refused(r.change(admin, http.MethodDelete, path, ""), http.StatusNotFound, "revoked")
	r.refused(r.change(admin, http.MethodPatch, path, "{}"), http.StatusNotFound, "revoked")
}

// Pages of a list show everything once, whatever is created and deleted between them.
func TestLists(t *testing.T) {
	r := newRig(t)
	operator := r.newTenant("operators", control.ScopeAdmin)
	r.service.cfg.OperatorWorkspace = "operators"
	other := r.newTenant("other", control.ScopeAdmin)
	type entry struct{ ID string }
	type list struct {
		Data       []entry
		Pagination pagination
	}
	get := func(who tenant, target string) (l list) {
		t.Helper()
		a := r.do(who.token, http.MethodGet, target)
		if err := json.Unmarshal(a.body, &l); err != nil || a.status != http.StatusOK {
			t.Fatalf("%s: %d %s", target, a.status, a.body)
		}
		return l
	}
	for path, body := range map[string]string{
		"/api/v1/keys":       `{"name":"%d","scopes":["admin"]}`,
		"/api/v1/workspaces": `{"name":"%d"}`,
	} {
		create := func(i int) string {
			return data[entry](r, r.change(operator, http.MethodPost, path, fmt.Sprintf(body, i)), http.StatusCreated).ID
		}
		var want []string
		for _, e := range get(operator, path).Data { // those of the test itself
			want = append(want, e.ID)
		}
		for i := range 5 {
			want = append(want, create(i))
		}
		first := get(operator, path+"?limit=4")
		if first.Pagination.Total != len(want) || len(first.Data) != 4 {
			t.Fatalf("%s: %+v", path, first)
		}
		// What the cursor stands on goes, and one comes.
		got, cursor := first.Data, *first.Pagination.NextCursor
		data[deleted](r, r.change(operator, http.MethodDelete, path+"/"+got[3].ID, ""), http.StatusOK)
		want = append(want, create(5))
		for next := &cursor; next != nil; {
			page := get(operator, path+"?limit=2&cursor="+*next)
			got = append(got, page.Data...)
			next = page.Pagination.NextCursor
			if page.Pagination.HasMore != (next != nil) {
				t.Errorf("%s: %+v", path, page)
			}
		}
		ids := make([]string, len(got))
		for i, e := range got {
			ids[i] = e.ID
		}
		if diff := gocmp.Diff(want, ids); diff != "" {
			t.Errorf("%s (-created +listed):\n%s", path, diff)
		}

		elsewhere := map[string]string{"/api/v1/keys": "/api/v1/workspaces", "/api/v1/workspaces": "/api/v1/keys"}[path]
		r.refused(r.do(operator.token, http.MethodGet, elsewhere+"?cursor="+cursor), http.StatusBadRequest, "begin again")
		r.refused(r.do(other.token, http.MethodGet, path+"?cursor="+cursor), http.StatusBadRequest, "begin again")
		r.refused(r.do(operator.token, http.MethodGet, path+"?cursor=x"), http.StatusBadRequest, "begin again")
		r.refused(r.do(operator.token, http.MethodGet, path+"?limit=1&limit=2"), http.StatusBadRequest, "more than once")
		r.refused(r.do(operator.token, http.MethodGet, path+"?order=asc"), http.StatusBadRequest, "Known are: limit, cursor.")
		r.refused(r.do(operator.token, http.MethodGet, path+"?limit=1001"), http.StatusUnprocessableEntity, "from 1 to 1000")
		r.refused(r.do(operator.token, http.MethodGet, path+"?cursor="), http.StatusUnprocessableEntity, "must not be empty")
	}
}

func TestRollKey(t *testing.T) {
	r := newRig(t)
	admin := r.newTenant("team", control.ScopeAdmin)
	created := data[apiKey](r, r.change(admin, http.MethodPost, "/api/v1/keys", `{"name":"ci","scopes":["admin"]}`), http.StatusCreated)
	if created.FormerTokens == nil || len(created.FormerTokens) != 0 {
		t.Errorf("%+v", created)
	}
	path := "/api/v1/keys/" + created.ID
	roll := path + "/roll"

	// A key may roll itself.
	answer := r.change(tenant{token: created.Token}, http.MethodPost, roll, `{"overlap_seconds":604800}`, `"1"`)
	first := data[apiKey](r, answer, http.StatusOK)
	if !strings.HasPrefix(first.Token, "imk_sk_") || first.Token == created.Token || first.Version != 2 ||
		answer.header.Get("ETag") != `"2"` || answer.header.Get("Cache-Control") != "no-store" {
		t.Errorf("%s", answer.body)
	}
	// Both texts work at once, and show the end of each and no more.
	for _, token := range []string{created.Token, first.Token} {
		shown := r.do(token, http.MethodGet, path)
		got := data[apiKey](r, shown, http.StatusOK)
		if got.Token != "***"+first.Token[len(first.Token)-4:] || len(got.FormerTokens) != 1 ||
			got.FormerTokens[0].Token != "***"+created.Token[len(created.Token)-4:] {
			t.Errorf("%s", shown.body)
		}
		until, err := time.Parse(time.RFC3339, got.FormerTokens[0].Until)
		if left := time.Until(until); err != nil || left > control.MaxOverlap || left < control.MaxOverlap-time.Minute {
			t.Errorf("%s", shown.body)
		}
	}

	for body, want := range map[string]struct {
		status int
		text   string
	}{
		`{"overlap_seconds":604801}`:        {422, `"field":"overlap_seconds"`},
		`{"overlap_seconds":-1}`:            {422, `"field":"overlap_seconds"`},
		`{"overlap_seconds":1.5}`:           {422, `"field":"overlap_seconds"`},
		`{"overlap_seconds":9300000000000}`: {422, `"field":"overlap_seconds"`},
		`{"overlap_seconds":"24h"}`:         {422, `"field":"overlap_seconds"`},
		`{"overlap":1}`:                     {422, "Known are: overlap_seconds"},
		``:                                  {400, "JSON"},
	} {
		r.refused(r.change(admin, http.MethodPost, roll, body), want.status, want.text)
	}
	r.refused(r.change(admin, http.MethodPost, roll, `{}`, `"1"`), http.StatusConflict, "version 2, not 1")
	r.refused(r.change(admin, http.MethodPost, "/api/v1/keys/nonsense/roll", `{}`), http.StatusNotFound, "no API key")
	other := r.newTenant("other", control.ScopeAdmin)
	r.refused(r.change(other, http.MethodPost, roll, `{}`), http.StatusNotFound, "no API key")

	// Without an overlap the texts before end with the answer.
	last := data[apiKey](r, r.change(admin, http.MethodPost, roll, `{}`), http.StatusOK)
	if len(last.FormerTokens) != 0 || last.Version != 3 {
		t.Errorf("%+v", last)
	}
	r.refused(r.do(created.Token, http.MethodGet, path), http.StatusUnauthorized, "not known")
	r.refused(r.do(first.Token, http.MethodGet, path), http.StatusUnauthorized, "not known")
	data[apiKey](r, r.do(last.Token, http.MethodGet, path), http.StatusOK)

	for range 4 {
		data[apiKey](r, r.change(admin, http.MethodPost, roll, `{"overlap_seconds":60}`), http.StatusOK)
	}
	r.refused(r.change(admin, http.MethodPost, roll, `{"overlap_seconds":60}`), http.StatusConflict, "overlap of 0")
}

// Of two who have read the same version, one changes it and the other is told.
func TestConcurrentPatches(t *testing.T) {
	r := newRig(t)
	admin := r.newTenant("team", control.ScopeAdmin)
	key := data[apiKey](r, r.change(admin, http.MethodPost, "/api/v1/keys", `{"name":"k","scopes":["admin"]}`), http.StatusCreated)
	for round, path := range []string{"/api/v1/keys/" + key.ID, "/api/v1/settings"} {
		bodies := [][]string{
			{`{"name":"n1"}`, `{"name":"n2"}`}, {`{"secret_policy":"redact"}`, `{"secret_policy":"reject"}`},
		}[round]
		var statuses [2]int
		var both sync.WaitGroup
		for i := range statuses {
			both.Go(func() {
				statuses[i] = r.change(admin, http.MethodPatch, path, bodies[i], `"1"`).status
			})
		}
		both.Wait()
		if statuses != [2]int{200, 409} && statuses != [2]int{409, 200} {
			t.Errorf("%s: %v", path, statuses)
		}
		now := data[struct{ Version uint64 }](r, r.do(admin.token, http.MethodGet, path), http.StatusOK)
		if now.Version != 2 {
			t.Errorf("%s: version %d", path, now.Version)
		}
	}
}

func TestManageWorkspaces(t *testing.T) {
	r := newRig(t)
	operator := r.tenant
	_, secret, err := r.writer.CreateKey(t.Context(), "cli:test", control.NewKey{
		Workspace: operator.workspace.ID, Name: "operator", Scopes: []control.Scope{control.ScopeAdmin},
	})
	if err != nil {
		t.Fatal(err)
	}
	operator.token = secret
	r.eventually("the key is known", func() bool { return r.do(secret, http.MethodGet, "/api/v1/keys").status == http.StatusOK })

	made := data[workspace](r, r.change(operator, http.MethodPost, "/api/v1/workspaces",
		`{"name":"team","lanes":2,"settings":{"secret_policy":"redact"}}`), http.StatusCreated)
	if made.Lanes != 2 || made.Settings.SecretPolicy != "redact" || made.Settings.RateLimit != nil {
		t.Errorf("%+v", made)
	}
	r.refused(r.change(operator, http.MethodPost, "/api/v1/workspaces", `{"name":"team"}`), http.StatusConflict, "choose another name")
	r.refused(r.change(operator, http.MethodPost, "/api/v1/workspaces", `{"name":"x","lanes":99}`), 422, `"field":"lanes"`)
	// Its first key comes from the operator; from then on it has its own.
	first := data[apiKey](r, r.change(operator, http.MethodPost, "/api/v1/keys",
		`{"name":"first","scopes":`+allScopes+`,"workspace_id":"`+made.ID+`"}`), http.StatusCreated)
	team := tenant{token: first.Token}
	own := "/api/v1/workspaces/" + made.ID
	other := "/api/v1/workspaces/" + uuid.UUID(operator.workspace.ID).String()

	for who, want := range map[string]int{operator.token: 2, team.token: 1} {
		if list := data[[]workspace](r, r.do(who, http.MethodGet, "/api/v1/workspaces"), http.StatusOK); len(list) != want {
			t.Errorf("%+v, want %d", list, want)
		}
	}
	got := data[ownSettings](r, r.change(team, http.MethodPatch, "/api/v1/settings",
		`{"keep_resource_id_empty":true,"secret_policy":null}`, `"1"`), http.StatusOK)
	if !got.KeepResourceIDEmpty || got.SecretPolicy != "flag" || got.Version != 2 {
		t.Errorf("%+v", got)
	}
	patched := data[workspace](r, r.change(operator, http.MethodPatch, own, `{"settings":{"rate_limit":{"per_second":10}}}`), http.StatusOK)
	if *patched.Settings.RateLimit != (rateLimit{10, 0}) || !patched.Settings.KeepResourceIDEmpty || patched.Version != 3 {
		t.Errorf("%+v", patched)
	}
	// A workspace does not decide how much of the installation it may use, whichever way it asks.
	for _, value := range []string{"null", `{"per_second":1000}`, `{"per_second":10}`} {
		body := `{"secret_policy":"reject","rate_limit":` + value + `}`
		r.refused(r.change(team, http.MethodPatch, "/api/v1/settings", body), http.StatusForbidden, "ask the operator")
		r.refused(r.change(team, http.MethodPatch, own, `{"settings":`+body+`}`), http.StatusForbidden, "ask the operator")
	}
	kept := data[ownSettings](r, r.do(team.token, http.MethodGet, "/api/v1/settings"), http.StatusOK)
	if *kept.RateLimit != (rateLimit{10, 0}) || kept.SecretPolicy != "flag" || kept.Version != 3 {
		t.Errorf("%+v", kept)
	}
	r.refused(r.change(team, http.MethodPatch, "/api/v1/settings", `{"secret_policy":"burn"}`), 422, `"field":"secret_policy"`)
	r.refused(r.change(team, http.MethodPatch, own, `{"name":"x"}`), 422, "Known are: settings")
	r.refused(r.do(team.token, http.MethodGet, other), http.StatusNotFound, "no workspace")
	r.refused(r.change(team, http.MethodPatch, other, `{"settings":{}}`), http.StatusNotFound, "no workspace")
	r.refused(r.change(team, http.MethodDelete, other, ""), http.StatusNotFound, "no workspace")
	r.refused(r.change(team, http.MethodPost, "/api/v1/workspaces", `{"name":"mine"}`), http.StatusForbidden, "operator")
	r.refused(r.change(team, http.MethodDelete, own, ""), http.StatusForbidden, "operator")
	r.refused(r.change(operator, http.MethodDelete, other, ""), http.StatusConflict, "operators' workspace")
	r.refused(r.change(operator, http.MethodDelete, own, "", `"1"`), http.StatusConflict, "version 3, not 1")
	data[deleted](r, r.change(operator, http.MethodDelete, own, "", `"3"`), http.StatusOK)
	r.refused(r.do(team.token, http.MethodGet, own), http.StatusUnauthorized, "deleted")
	r.refused(r.do(operator.token, http.MethodGet, own), http.StatusNotFound, "no workspace")
}

func TestChangeErrors(t *testing.T) {
	r := newRig(t)
	for _, test := range []struct {
		err    error
		status int
		text   string
	}{
		{fmt.Errorf("%w: trying", control.ErrBusy), 503, "Nothing was changed"},
		{fmt.Errorf("%w: trying", control.ErrUnknownOutcome), 503, "not known whether the change was made"},
		{errors.New("kafka is away"), 503, "Nothing was changed"},
		{fmt.Errorf("%w: it was sealed under another", control.ErrMasterKey), 500, ""},
		{fmt.Errorf("%w: the name is taken", control.ErrConflict), 409, "The name is taken."},
	} {
		e := r.service.classifyChange(test.err)
		if test.status == 500 {
			if e != nil {
				t.Errorf("%v: %v", test.err, e)
			}
			continue
		}
		if e.Status != test.status || !strings.Contains(e.Message, test.text) || e.Status == 503 && e.RetryAfter == 0 {
			t.Errorf("%v: %+v", test.err, e)
		}
	}
	if got := r.labelled("immutable_query_unavailable_total", reasonUnknown); got != 1 {
		t.Errorf("%v answers of unknown outcome were counted", got)
	}
	for range maxChanges {
		r.service.changes <- struct{}{}
	}
	admin := r.newTenant("team", control.ScopeAdmin)
	r.refused(r.change(admin, http.MethodPatch, "/api/v1/settings", "{}"), 503, "Nothing was changed")
}
