package event

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/schemas/recordpb"
)

// metadata of an event and where flags find secrets in it; values of rules are told elsewhere.
func TestSensitiveValues(t *testing.T) {
	tests := []struct{ name, metadata, flags string }{
		{"password", `{"password":"hunter2"}`, "password"},
		{"any text is a password", `{"password":"correct horse battery staple","passwd":"swordfish","db_pwd":"123456"}`, "db_pwd passwd password"},
		{"token", `{"token":"f3a9c1","apiKey":"0a1b-2c3d"}`, "apiKey token"},
		{"one word", `{"secret":"swordfish"}`, "secret"},
		{"nested", `{"db":{"auth":{"password":"hunter2"}},"list":[{"a":1},{"token":"f3a9c1"}]}`, "db.auth.password list[1].token"},
		{"in an array", `{"passwords":["a1b2",["c3d4","***"],7]}`, "passwords[0] passwords[1][0]"},
		{"value of an object", `{"db.password":{"old":"hunter1","new":"hunter2","by":"ann"}}`, "db.password.new db.password.old"},
		{"config_key", `{"config_key":"db.password","old_value":"hunter1","new_value":"hunter2","reason":"x1y2"}`, "new_value old_value"},
		{
			"config_key, other values",
			`{"a":{"config_key":"API_KEY","value":"x1y2"},"b":{"key":"x-secret","previous_value":"x1y2"},"c":{"field":"password","before":"hunter1","after":"hunter2"}}`,
			"a.value b.previous_value c.after c.before",
		},
		{"config_key comes last", `{"old_value":"hunter1","zone":"x","config_key":"db.password"}`, "old_value"},
		{"environment", `{"env":[{"name":"DB_PASSWORD","value":"hunter2"},{"name":"LEVEL","value":"info"}]}`, "env[0].value"},
		{"JSON patch", `{"patch":[{"op":"replace","path":"/db/password","value":"hunter2"}]}`, "patch[0].value"},
		{"config_key of another object", `{"config_key":"db.password","change":{"old_value":"hunter1"}}`, ""},
		{"config_key that names nothing sensitive", `{"config_key":"rate_limit.requests_per_minute","old_value":"1000","new_value":"x1y2"}`, ""},
		{"config_key of a rule about passwords", `{"config_key":"password.min_length","old_value":"8","new_value":"12"}`, ""},
		{"config_key that is an object", `{"config_key":{"a":"db.password"},"old_value":"hunter1"}`, ""},
		{"not text", `{"password":true,"token":5,"secret":null,"api_key":{},"credentials":[]}`, ""},
		{"empty", `{"password":"","token":"  "}`, ""},
		{"masked", `{"password":"***","token":"****f3a9","secret":"•••••","api_key":"[REDACTED]","passwd":"<hidden>","auth_token":"xxxxxxxx","access_key":"imk…3f2a"}`, ""},
		{
			"reference", `{"password":"vault:secret/data/db#password","token":"arn:aws:secretsmanager:eu-west-1:1:secret:x","secret":"op://vault/item",
			"api_key":"${API_KEY}","passwd":"$DB_PASSWORD","auth_token":"{{ .Values.token }}","access_key":"projects/1/secrets/X1/versions/2",
			"ssh_key":"ssh-ed25519 AAAAC3Nz","signing_key":"SHA256:` + mixed(43) + `","master_key":"https://x.vault.azure.net/secrets/M1"}`, "",
		},
		{"state", `{"password":"changed","token":"Expired","secret":"rotated","api_key":"none"}`, ""},
		{"number", `{"password":"12","token":"4096","max_tokens":"100000","secret":"-1.5"}`, ""},
		{"what it is called", `{"secret":"production/database/primary-2026","token":"refresh_token","credential":"database_credential","api_key":"Payments (live)"}`, ""},
		{"words", `{"secret":"correct-horse","api_key":"payments","config_key":"x.token","new_value":"fiddling-otter-8"}`, "api_key new_value secret"},
		{"enumeration", `{"secret_type":"database_credential","secret_path":"production/database/primary","token_type":"Bearer1"}`, ""},
		{"path", `{"password":"/run/secrets/db1","pwd":"/home/ci1"}`, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, e := build(t, testWorkspace(), Input{JSON: []byte(with(`"metadata":` + tt.metadata))})
			var want []string
			for path := range strings.FieldsSeq(tt.flags) {
				want = append(want, "possible_secret:metadata."+path)
			}
			if diff := cmp.Diff(want, e.Flags); diff != "" {
				t.Errorf("flags (-want +got):\n%s", diff)
			}
		})
	}
}

// The member of metadata that is named as the resource says what it is called, and fills resource_id.
func TestSecretThatTheEventIsAbout(t *testing.T) {
	for _, order := range []string{`"resource":"api_key",%s`, `%s,"resource":{"type":"api_key"}`} {
		for value, want := range map[string][]string{
			"payments": nil, "payments-live-2": nil, "f3a9c1d0": {"possible_secret:metadata.api_key"}, "12345678-x": {"possible_secret:metadata.api_key"},
		} {
			members := fmt.Sprintf(order, `"metadata":{"api_key":"`+value+`","a":{"b":1}}`)
			_, e := build(t, testWorkspace(), Input{JSON: []byte(with(members))})
			if diff := cmp.Diff(want, e.Flags); diff != "" || e.ResourceId != value {
				t.Errorf("%s: resource_id %q, flags (-want +got):\n%s", members, e.ResourceId, diff)
			}
		}
	}
	_, e := build(t, testWorkspace(), Input{JSON: []byte(with(`"resource":"token","metadata":{"a":{"token":"fiddling-otter-8"},"password":"payments"}`))})
	if diff := cmp.Diff([]string{"possible_secret:metadata.a.token", "possible_secret:metadata.password"}, e.Flags); diff != "" {
		t.Errorf("flags (-want +got):\n%s", diff)
	}
}

// planted is an event with one secret in every place that may have one, and where flags say they are.
func planted(secret string) (sent string, where []string) {
	s := `"` + secret + `"`
	return `{"actor":{"id":` + s + `,"name":` + s + `,"type":` + s + `},"action":` + s + `,"action_category":` + s + `,
			"resource":{"type":` + s + `,"id":` + s + `,"name":` + s + `},"session_id":` + s + `,"tenant_id":` + s + `,"user_agent":` + s + `,
			"targets":[{"type":"t"},{"type":` + s + `,"id":` + s + `,"name":` + s + `,"metadata":{"a":[{"b":` + s + `}]}}],
			"metadata":{"top":` + s + `,"deep":{"a":{"b":[1,["x",` + s + `]]}}}}`,
		[]string{
			"action", "action_category", "actor_id", "actor_name", "actor_type", "metadata.deep.a.b[1][1]", "metadata.top", "resource", "resource_id",
			"resource_name", "session_id", "targets[1].id", "targets[1].metadata.a[0].b", "targets[1].name", "targets[1].type", "tenant_id", "user_agent",
		}
}

func TestSecretPolicies(t *testing.T) {
	secret := "gh" + "p_" + mixed(36)
	sent, where := planted(secret)

	t.Run("flag", func(t *testing.T) {
		_, e := build(t, testWorkspace(), Input{JSON: []byte(sent)})
		var want []string
		for _, path := range where {
			want = append(want, "possible_secret:"+path)
		}
		if diff := cmp.Diff(want, e.Flags); diff != "" {
			t.Errorf("flags (-want +got):\n%s", diff)
		}
		var body struct{ Flags []string }
		if err := json.Unmarshal(e.Body, &body); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, body.Flags); diff != "" {
			t.Errorf("flags in the body (-want +got):\n%s", diff)
		}
		if n := bytes.Count(e.Body, []byte(secret)); n != len(where) {
			t.Errorf("the secret is in the body %d times, want %d", n, len(where))
		}
	})
	t.Run("redact", func(t *testing.T) {
		ws := testWorkspace()
		ws.SecretPolicy = SecretsRedact
		r, e := build(t, ws, Input{JSON: []byte(sent), IdempotencyKey: "k"})
		if bytes.Contains(r.Value, []byte(secret)) || bytes.Contains(r.Key, []byte(secret)) {
			t.Errorf("the secret is in the record %s", e)
		}
		if n := bytes.Count(e.Body, []byte(`"[REDACTED:github-token]"`)); n != len(where) {
			t.Errorf("redacted %d times, want %d: %s", n, len(where), e.Body)
		}
		for _, column := range []string{
			e.ActorId, e.ActorName, e.ActorType, e.Action, e.ActionCategory, e.Resource, e.ResourceId, e.ResourceName, e.SessionId,
			e.TenantId, e.UserAgent, e.TargetTypes[1], e.TargetIds[1], e.MetadataValues[2], e.MetadataValues[3],
		} {
			if column != "[REDACTED:github-token]" {
				t.Errorf("a column has %q", column)
			}
		}
		if e.Flags != nil {
			t.Errorf("flags %q", e.Flags)
		}
		// The id tells nothing of the secret: with another in its place it is the same.
		other, _ := planted("gh" + "o_" + mixed(40))
		if r2, _ := build(t, ws, Input{JSON: []byte(other), IdempotencyKey: "k"}); r2.ID != r.ID {
			t.Error("the id depends on what was redacted")
		}
		asRedacted, _ := planted("[REDACTED:github-token]")
		if r2, _ := build(t, ws, Input{JSON: []byte(asRedacted), IdempotencyKey: "k"}); r2.ID != r.ID {
			t.Error("the id is not that of the redacted event")
		}
	})
	t.Run("reject", func(t *testing.T) {
		ws := testWorkspace()
		ws.SecretPolicy = SecretsReject
		e := buildErrorIn(t, ws, Input{JSON: []byte(sent)})
		if e.Code != CodeValidation {
			t.Errorf("got %v", e)
		}
		var got []string
		for _, d := range e.Details {
			got = append(got, d.Field)
			if !strings.Contains(d.Message, "(github-token)") {
				t.Errorf("message %q does not name the rule", d.Message)
			}
		}
		slices.Sort(got)
		want := slices.Clone(where)
		for i, path := range want {
			for flat, nested := range map[string]string{
				"actor_id": "actor.id", "actor_name": "actor.name", "actor_type": "actor.type",
				"resource": "resource.type", "resource_id": "resource.id", "resource_name": "resource.name",
			} {
				if path == flat {
					want[i] = nested
				}
			}
		}
		slices.Sort(want)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("fields (-want +got):\n%s", diff)
		}
		if text := fmt.Sprintf("%+v %s", *e, e); strings.Contains(text, secret) {
			t.Errorf("the secret is in the error: %s", text)
		}
	})
	t.Run("sensitive name", func(t *testing.T) {
		ws := testWorkspace()
		ws.SecretPolicy = SecretsRedact
		raw := []byte(with(`"metadata":{"config_key":"db.password","old_value":"hunter1","new_value":"vault:secret/db"}`))
		r, e := build(t, ws, Input{JSON: raw})
		want := body(t, `,"metadata":{"config_key":"db.password","old_value":"[REDACTED:sensitive-key]","new_value":"vault:secret/db"}`)
		if diff := cmp.Diff(want, string(e.Body)); diff != "" || bytes.Contains(r.Value, []byte("hunter1")) {
			t.Errorf("body (-want +got):\n%s", diff)
		}
	})
}

// JSON has many spellings of one text.
func TestSecretInEscapes(t *testing.T) {
	secret := "gh" + "p_" + mixed(36)
	ws := testWorkspace()
	ws.SecretPolicy = SecretsRedact
	for _, spelling := range []string{`\u0067h` + secret[2:], "gh" + `p\u005f` + secret[4:], `\"` + secret + `\n`} {
		r, e := build(t, ws, Input{JSON: []byte(with(`"metadata":{"pass\u0077ord":"h\u0075nter2","a":"` + spelling + `"}`))})
		want := body(t, `,"metadata":{"a":"[REDACTED:github-token]","password":"[REDACTED:sensitive-key]"}`)
		if string(e.Body) != want || bytes.Contains(r.Value, []byte(secret)) || bytes.Contains(r.Value, []byte("hunter2")) {
			t.Errorf("%s: got %s", spelling, e.Body)
		}
	}
}

// What stands in the record although nobody sent it there.
func TestSecretInFilledResourceID(t *testing.T) {
	secret := "gh" + "p_" + mixed(36)
	raw := []byte(with(`"resource":"service","metadata":{"service":"` + secret + `"}`))
	ws := testWorkspace()
	_, e := build(t, ws, Input{JSON: raw})
	if diff := cmp.Diff([]string{"possible_secret:metadata.service", "possible_secret:resource_id"}, e.Flags); diff != "" {
		t.Errorf("flags (-want +got):\n%s", diff)
	}
	ws.SecretPolicy = SecretsRedact
	r, e := build(t, ws, Input{JSON: raw})
	if e.ResourceId != "[REDACTED:github-token]" || bytes.Contains(r.Value, []byte(secret)) {
		t.Errorf("resource_id %q", e.ResourceId)
	}
}

// Keys and names cannot be replaced: two different ones could become one.
func TestSecretsThatCannotBeRedacted(t *testing.T) {
	secret := "gh" + "p_" + mixed(36)
	tests := []struct {
		name, json, header, flag, field string
	}{
		{"idempotency key", with(`"idempotency_key":"` + secret + `"`), "", "idempotency_key", "idempotency_key"},
		{"idempotency key of the header", with(`"actor":null`), secret, "idempotency_key", "idempotency_key"},
		{"name", with(`"metadata":{"a":{"` + secret + `":1}}`), "", "metadata.a.[REDACTED:github-token]", "metadata.a.[REDACTED:github-token]"},
		{"name in a target", with(`"targets":[{"type":"t","metadata":{"` + secret + `":1}}]`), "", "targets[0].metadata.[REDACTED:github-token]", "targets[0].metadata.[REDACTED:github-token]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ws := testWorkspace()
			in := Input{JSON: []byte(tt.json), IdempotencyKey: tt.header, RecordedAt: testTime}
			if _, e := build(t, ws, in); len(e.Flags) != 1 || e.Flags[0] != "possible_secret:"+tt.flag {
				t.Errorf("flags %q, want %q", e.Flags, tt.flag)
			}
			for _, ws.SecretPolicy = range []SecretPolicy{SecretsRedact, SecretsReject} {
				e := buildErrorIn(t, ws, in)
				if len(e.Details) != 1 || e.Details[0].Field != tt.field || !strings.Contains(e.Message, "(github-token)") {
					t.Errorf("%s: got %+v", ws.SecretPolicy, *e)
				}
				if strings.Contains(fmt.Sprintf("%+v", e), secret) {
					t.Errorf("%s: the secret is in the error %v", ws.SecretPolicy, e)
				}
			}
		})
	}
}

// Errors repeat names, which may be secrets of somebody who mistook one for the other.
func TestErrorShowsNoSecretNames(t *testing.T) {
	secret := "gh" + "p_" + mixed(36)
	for _, raw := range []string{
		with(`"` + secret + `":1`), with(`"metadata":{"` + secret + `":{"a":1,"a":2}}`), with(`"metadata":{"x":{"` + secret + `":1e400}}`),
		with(`"actor":{"` + secret + `":1}`), with(`"targets":[{"` + secret + `":1}]`),
	} {
		if e := buildError(t, Input{JSON: []byte(raw)}); strings.Contains(fmt.Sprintf("%+v", e), secret) || len(e.Details) == 0 {
			t.Errorf("%s: got %v", raw, e)
		}
	}
}

func TestFlagsAreBounded(t *testing.T) {
	var members []string
	for i := range 45 {
		members = append(members, fmt.Sprintf(`"k%02d":{"password":["hunter1","%s"]}`, i, strings.Repeat("hunter2", 10)))
	}
	flags := func(members []string) []string {
		t.Helper()
		_, e := build(t, testWorkspace(), Input{JSON: []byte(with(`"user_agent":"gh` + `p_` + mixed(36) + `","metadata":{` + strings.Join(members, ",") + `}`))})
		return e.Flags
	}
	got := flags(members)
	if len(got) != MaxFlags || !slices.IsSorted(got) || got[0] != "possible_secret:metadata.k00.password[0]" {
		t.Errorf("flags %q", got)
	}
	slices.Reverse(members)
	if diff := cmp.Diff(got, flags(members)); diff != "" {
		t.Errorf("flags depend on the order of members:\n%s", diff)
	}
	if long := flags([]string{`"` + strings.Repeat("é", 100) + `":{"` + strings.Repeat("b", 200) + `":{"password":"hunter2"}}`}); len(long[0]) > 350 {
		t.Errorf("a flag has %d bytes", len(long[0]))
	}
}

// FuzzSecrets holds every policy to what it promises, whatever the event.
func FuzzSecrets(f *testing.F) {
	for _, tt := range ruleCases {
		text, err := json.Marshal(tt.good[0])
		if err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(with(`"metadata":{"a":[{"b":` + string(text) + `}]},"resource_name":` + string(text))))
	}
	f.Add([]byte(with(`"resource":"secret","metadata":{"config_key":"db.password","old_value":"a\"b","secret":{"value":["x1"]},"name":"gh` + `p_` + mixed(40) + `","data":"y2"}`)))
	f.Add([]byte(with(`"metadata":{"token=a1b2c3":"x","key":"token","to":"bearer a1b2c3d4"}`)))
	f.Add([]byte(fullEvent))
	f.Fuzz(func(t *testing.T, raw []byte) {
		b, decode := NewBuilder(), func(r Record) *recordpb.Event {
			var e recordpb.Event
			if err := proto.Unmarshal(r.Value, &e); err != nil {
				t.Fatal(err)
			}
			return &e
		}
		flagging, redacting, rejecting := testWorkspace(), testWorkspace(), testWorkspace()
		redacting.SecretPolicy, rejecting.SecretPolicy = SecretsRedact, SecretsReject
		r, err := b.Build(flagging, Input{JSON: raw, RecordedAt: testTime})
		if err != nil {
			return
		}
		flagged := decode(r)
		if n := len(flagged.Flags); n > MaxFlags || !slices.IsSorted(flagged.Flags) || len(slices.Compact(flagged.Flags)) != n {
			t.Errorf("flags %q", flagged.Flags)
		}
		if _, err := b.Build(rejecting, Input{JSON: raw, RecordedAt: testTime}); (err == nil) != (len(flagged.Flags) == 0) {
			t.Errorf("flags %q, and rejecting says %v", flagged.Flags, err)
		}
		if r, err = b.Build(redacting, Input{JSON: raw, RecordedAt: testTime}); err != nil {
			return // Names and keys are not redacted, and what is redacted may be longer.
		}
		clean := decode(r)
		if again, err := canonical(clean.Body); err != nil || !bytes.Equal(again, clean.Body) {
			t.Fatalf("body %s becomes %s, %v", clean.Body, again, err)
		}
		for _, ws := range []*Workspace{flagging, redacting, rejecting} {
			r, err := b.Build(ws, Input{JSON: clean.Body, RecordedAt: testTime})
			if err != nil {
				t.Fatalf("%s, built again: %v", clean.Body, err)
			}
			if e := decode(r); e.Flags != nil || !bytes.Equal(e.Body, clean.Body) {
				t.Errorf("%s, built again: %s", clean.Body, e.Body)
			}
		}
		for _, values := range [][]string{clean.MetadataValues, clean.TargetIds, clean.TargetTypes, {clean.ResourceId, clean.ActorName, clean.UserAgent}} {
			for _, v := range values {
				if rule := secretIn([]byte(v)); rule != "" {
					t.Errorf("%q in a column is told by %s", v, rule)
				}
			}
		}
	})
}

func BenchmarkScan(b *testing.B) {
	secret := "gh" + "p_" + mixed(36)
	dirty, _ := planted(secret)
	for name, raw := range map[string]string{"clean": string(readFixture(b, "events/1-deployment.started.json")), "secrets": dirty} {
		b.Run(name, func(b *testing.B) {
			builder, ws := NewBuilder(), testWorkspace()
			if err := builder.tape.parse([]byte(raw)); err != nil {
				b.Fatal(err)
			}
			builder.reset(ws, &Input{})
			b.ReportAllocs()
			before := cpuTime(b)
			for b.Loop() {
				builder.scanObject(userAgent, 0, namesNothing)
				builder.flags, builder.columns = builder.flags[:0], [numFields]column{}
			}
			b.ReportMetric(float64((cpuTime(b)-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
		})
	}
}
