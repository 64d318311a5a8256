package event

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// with returns a good event with more members, which are JSON.
func with(members string) string {
	return `{"actor_id":"a","action":"x.y","occurred_at":"2026-09-30T02:00:00Z",` + members + `}`
}

// body returns the body with members, in canonical form; those of with come first where the names allow.
func body(t *testing.T, members string) string {
	t.Helper()
	want, err := canonical([]byte(`{"actor_id":"a","action":"x.y","occurred_at":"2026-09-30T02:00:00.000000Z"` + members + `}`))
	if err != nil {
		t.Fatal(err)
	}
	return string(want)
}

// keys returns n members of an object, JSON, without braces.
func keys(n int) string {
	var s []string
	for i := range n {
		s = append(s, fmt.Sprintf(`"k%d":%d`, i, i))
	}
	return strings.Join(s, ",")
}

// nested returns a value that is depth containers deep, objects and arrays in turn.
func nested(depth int) string {
	open, end := "", ""
	for i := range depth {
		if i%2 == 0 {
			open, end = open+`{"a":`, "}"+end
		} else {
			open, end = open+`[`, "]"+end
		}
	}
	return open + `1` + end
}

func TestNormalise(t *testing.T) {
	long := strings.Repeat("é", MaxTextCharacters)
	tests := []struct{ name, members, want string }{
		{"nothing more", `"actor":null`, ``},
		{"all flat", `"actor_name":"n","actor_type":"t","action_category":"c","resource":"r","resource_id":"i","resource_name":"rn",` +
			`"session_id":"s","tenant_id":"te","user_agent":"u","version":3,"idempotency_key":"k","ip_address":"192.0.2.1"`, ``},
		{"absent", `"actor_name":null,"actor_type":"","metadata":{},"targets":[],"resource":null,"version":null,"ip_address":""`, `-`},
		{"metadata null", `"metadata":null,"targets":null`, `-`},
		{"version 0", `"version":0`, ``},
		{"version 1.0", `"version":1.0`, `"version":1`},
		{"largest version", `"version":9007199254740991`, ``},
		{"resource object", `"resource":{"type":"r","id":"i","name":"n"}`, `"resource":"r","resource_id":"i","resource_name":"n"`},
		{"resource object, parts absent", `"resource":{"type":"r","id":null,"name":""}`, `"resource":"r"`},
		{"resource in both forms", `"resource":{"type":"r","id":"i"},"resource_id":"i"`, `"resource":"r","resource_id":"i"`},
		{"both forms, one absent", `"resource":{"type":"r","id":null},"resource_id":"i"`, `"resource":"r","resource_id":"i"`},
		{"actor object", `"actor":{"id":"a","name":"n","type":"t"}`, `"actor_name":"n","actor_type":"t"`},
		{"IPv4 in IPv6", `"ip_address":"::ffff:192.0.2.1"`, `"ip_address":"192.0.2.1"`},
		{"IPv6", `"ip_address":"2001:DB8:0::1"`, `"ip_address":"2001:db8::1"`},
		{"255 characters of two bytes", `"actor_name":"` + long + `"`, ``},
		{"escapes", `"user_agent":"a\"\n\u0041"`, `"user_agent":"a\"\nA"`},
		{"metadata as sent", `"metadata":{"z":null,"a":"","b":{},"c":[],"d":[1.0,true,{"y":1,"x":2}]}`, ``},
		{"50 keys", `"metadata":{` + keys(50) + `}`, ``},
		{"eight levels", `"metadata":` + nested(8), ``},
		{"names of 1 and 255 bytes", `"metadata":{"a":1,"` + strings.Repeat("b", 255) + `":1}`, ``},
		{
			"targets", `"targets":[{"type":"t","name":"n","id":"i","metadata":{"b":null,"a":1}},{"id":null,"name":"","metadata":{},"type":"u"}]`,
			`"targets":[{"type":"t","name":"n","id":"i","metadata":{"b":null,"a":1}},{"type":"u"}]`,
		},
		{"target metadata of eight levels", `"targets":[{"type":"t","metadata":` + nested(8) + `}]`, ``},
		{"resource_id of 1024 characters", `"resource_id":"` + strings.Repeat("x", 1024) + `"`, ``},
		{"resource_id from the resource's name", `"resource":"r","metadata":{"r_id":"b","r":"a"}`, `"resource":"r","resource_id":"a","metadata":{"r":"a","r_id":"b"}`},
		{"resource_id from _id", `"resource":"r","metadata":{"r":1,"r_path":"c","r_id":"b"}`, `"resource":"r","resource_id":"b","metadata":{"r":1,"r_id":"b","r_path":"c"}`},
		{"resource_id from _path", `"resource":{"type":"r"},"metadata":{"r":"","r_path":"c"}`, `"resource":"r","resource_id":"c","metadata":{"r":"","r_path":"c"}`},
		{"resource_id is there", `"resource":"r","resource_id":"i","metadata":{"r":"a"}`, ``},
		{"resource_id without resource", `"metadata":{"r":"a","_id":"b"}`, ``},
		{"resource_id that would be too long", `"resource":"r","metadata":{"r":"` + strings.Repeat("x", 1025) + `"}`, ``},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := tt.want
			switch want {
			case "":
				want = body(t, ","+tt.members)
				want = strings.ReplaceAll(want, `"actor":null,`, "")
			case "-":
				want = body(t, "")
			default:
				want = body(t, ","+want)
			}
			_, e := build(t, testWorkspace(), Input{JSON: []byte(with(tt.members))})
			if diff := cmp.Diff(want, string(e.Body)); diff != "" {
				t.Errorf("body (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNormaliseRequired(t *testing.T) {
	tests := []struct{ name, json, want string }{
		{"time defaults to recorded_at", `{"actor_id":"a","action":"b"}`, `{"action":"b","actor_id":"a","occurred_at":"2026-09-30T03:00:00.123456Z"}`},
		{"time is truncated", `{"actor_id":"a","action":"b","occurred_at":"2026-09-30T04:00:00.9999999+02:00"}`, `{"action":"b","actor_id":"a","occurred_at":"2026-09-30T02:00:00.999999Z"}`},
		{"24 hours ahead", `{"actor_id":"a","action":"b","occurred_at":"2026-10-01T03:00:00.123456Z"}`, `{"action":"b","actor_id":"a","occurred_at":"2026-10-01T03:00:00.123456Z"}`},
		{"10 years back", `{"actor_id":"a","action":"b","occurred_at":"2016-09-30T03:00:00.123456Z"}`, `{"action":"b","actor_id":"a","occurred_at":"2016-09-30T03:00:00.123456Z"}`},
		{"numeric actor", `{"actor_id":1e3,"action":"b","occurred_at":"2026-09-30T02:00:00Z"}`, `{"action":"b","actor_id":"1000","occurred_at":"2026-09-30T02:00:00.000000Z"}`},
		{"numeric actor in both forms", `{"actor":{"id":7},"actor_id":"7","action":"b","occurred_at":"2026-09-30T02:00:00Z"}`, `{"action":"b","actor_id":"7","occurred_at":"2026-09-30T02:00:00.000000Z"}`},
		{"action with a colon", `{"actor_id":"a b","action":"s3:PutObject","occurred_at":"2026-09-30T02:00:00Z"}`, `{"action":"s3:PutObject","actor_id":"a b","occurred_at":"2026-09-30T02:00:00.000000Z"}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, e := build(t, testWorkspace(), Input{JSON: []byte(tt.json)})
			if string(e.Body) != tt.want {
				t.Errorf("got %s, want %s", e.Body, tt.want)
			}
		})
	}
}

// buildError returns the error of an input that must be refused.
func buildError(t *testing.T, in Input) *Error {
	t.Helper()
	return buildErrorIn(t, testWorkspace(), in)
}

func buildErrorIn(t *testing.T, ws *Workspace, in Input) *Error {
	t.Helper()
	in.RecordedAt = testTime
	_, err := NewBuilder().Build(ws, in)
	e, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatalf("%.200s: got error %v, want an *Error", in.JSON, err)
	}
	return e
}

func TestRefuse(t *testing.T) {
	tests := []struct{ name, json, field, message string }{
		{"array", `[]`, "", "must be a JSON object, not an array"},
		{"string", `"a"`, "", "must be a JSON object, not a string"},
		{"null", `null`, "", "must be a JSON object, not null"},
		{"no actor", `{"action":"b"}`, "actor_id", "is required"},
		{"empty actor", `{"action":"b","actor_id":""}`, "actor_id", "is required"},
		{"no action", `{"actor_id":"b","action":null}`, "action", "is required"},
		{"actor that is a boolean", `{"actor_id":true,"action":"b"}`, "actor_id", "must be a string, not a boolean"},
		{"action that is a number", `{"actor_id":"b","action":5}`, "action", "must be a string, not a number"},
		{"space in action", `{"actor_id":"b","action":"a b"}`, "action", "must not contain spaces"},
		{"no-break space in action", `{"actor_id":"b","action":"a\u00a0b"}`, "action", "printable"},
		{"control character in actor", `{"actor_id":"a\u0007","action":"b"}`, "actor_id", "printable"},
		{"text direction in actor", `{"actor_id":"a\u202eb","action":"b"}`, "actor_id", "printable"},
		{"action of 256", `{"actor_id":"b","action":"` + strings.Repeat("x", 256) + `"}`, "action", "at most 255 characters"},
		{"unknown", with(`"resorce":"x"`), "resorce", "is not a field of an event; known are action, action_category, actor"},
		{"unknown null", with(`"foo":null`), "foo", "is not a field"},
		{"an event's id", with(`"id":"x"`), "id", "is not a field"},
		{"actor string", with(`"actor":"x"`), "actor", "must be an object {id, name, type}, not a string"},
		{"unknown in actor", with(`"actor":{"email":"x"}`), "actor.email", "is not known; the object is {id, name, type}"},
		{"unknown in resource", with(`"resource":{"kind":"x"}`), "resource.kind", "is not known"},
		{"array as resource", with(`"resource":["x"]`), "resource", "must be a string, not an array"},
		{"resource id number", with(`"resource":{"id":5}`), "resource.id", "must be a string, not a number"},
		{"conflict", with(`"resource":{"id":"x"},"resource_id":"y"`), "resource_id", "twice, flat and nested"},
		{"conflict of actors", with(`"actor":{"id":"x"}`), "actor.id", "twice, flat and nested"},
		{"duplicate", with(`"tenant_id":"a","tenant_id":"b"`), "tenant_id", "is there twice"},
		{"resource_name of 256", with(`"resource_name":"` + strings.Repeat("x", 256) + `"`), "resource_name", "at most 255"},
		{"resource_id of 1025", with(`"resource_id":"` + strings.Repeat("x", 1025) + `"`), "resource_id", "at most 1024"},
		{"no address", with(`"ip_address":"example.org"`), "ip_address", "IPv4 or IPv6"},
		{"address and port", with(`"ip_address":"192.0.2.1:80"`), "ip_address", "IPv4 or IPv6"},
		{"zone", with(`"ip_address":"fe80::1%eth0"`), "ip_address", "without a zone"},
		{"negative version", with(`"version":-1`), "version", "must be an integer from 0"},
		{"fraction", with(`"version":1.5`), "version", "must be an integer"},
		{"version string", with(`"version":"1"`), "version", "must be an integer"},
		{"version 2^53", with(`"version":9007199254740992`), "version", "must be an integer"},
		{"version 1e20", with(`"version":1e20`), "version", "must be an integer"},
		{"ancient", `{"actor_id":"a","action":"b","occurred_at":"2016-09-30T03:00:00.123455Z"}`, "occurred_at", "10 years back"},
		{"future", `{"actor_id":"a","action":"b","occurred_at":"2026-10-01T03:00:00.123457Z"}`, "occurred_at", "24 hours ahead"},
		{"no zone", `{"actor_id":"a","action":"b","occurred_at":"2026-09-30T03:00:00"}`, "occurred_at", "RFC 3339"},
		{"comma", `{"actor_id":"a","action":"b","occurred_at":"2026-09-30T03:00:00,5Z"}`, "occurred_at", "RFC 3339"},
		{"hour of one digit", `{"actor_id":"a","action":"b","occurred_at":"2026-09-30T3:00:00.0Z"}`, "occurred_at", "RFC 3339"},
		{"offset of 24 hours", `{"actor_id":"a","action":"b","occurred_at":"2026-09-30T03:00:00+24:00"}`, "occurred_at", "RFC 3339"},
		{"offset of 60 minutes", `{"actor_id":"a","action":"b","occurred_at":"2026-09-30T03:00:00-01:60"}`, "occurred_at", "RFC 3339"},
		{"leap second", `{"actor_id":"a","action":"b","occurred_at":"2026-09-30T03:00:60Z"}`, "occurred_at", "RFC 3339"},
		{"lower case", `{"actor_id":"a","action":"b","occurred_at":"2026-09-30t03:00:00z"}`, "occurred_at", "RFC 3339"},
		{"no such day", `{"actor_id":"a","action":"b","occurred_at":"2026-09-31T03:00:00Z"}`, "occurred_at", "RFC 3339"},
		{"epoch", `{"actor_id":"a","action":"b","occurred_at":1790000000}`, "occurred_at", "must be a string"},
		{"metadata array", with(`"metadata":[1]`), "metadata", "must be an object, not an array"},
		{"51 keys", with(`"metadata":{` + keys(51) + `}`), "metadata", "has 51 keys; the most is 50"},
		{"empty name", with(`"metadata":{"":1}`), "metadata.", "name of 0 bytes"},
		{"name of 256 bytes", with(`"metadata":{"a":{"` + strings.Repeat("x", 256) + `":1}}`), "metadata.a." + strings.Repeat("x", 256), "name of 256 bytes"},
		{"nine levels", with(`"metadata":` + nested(9)), "metadata.a[0].a[0].a[0].a[0]", "deeper than 8 levels"},
		{"metadata of 64 KiB and a bit", with(`"metadata":{"a":"` + strings.Repeat("x", 64<<10) + `"}`), "metadata", "more than 65536 bytes"},
		{"metadata that grows to 64 KiB", with(`"metadata":{"a":[` + strings.Repeat("1e20,", 4000) + `1]}`), "metadata", "more than 65536 bytes"},
		{"entries", with(`"metadata":{"a":{"` + strings.Repeat("x", 200) + `":[` + strings.Repeat("1,", 2000) + `1]}}`), "metadata", "long names"},
		{"2^53+1", with(`"metadata":{"a":[9007199254740993]}`), "metadata.a[0]", "send it as a string"},
		{"targets object", with(`"targets":{"type":"a"}`), "targets", "must be an array"},
		{"target string", with(`"targets":["a"]`), "targets[0]", "must be an object"},
		{"51 targets", with(`"targets":[` + strings.Repeat(`{"type":"a"},`, 50) + `{"type":"a"}]`), "targets", "has 51 elements; the most is 50"},
		{"target without type", with(`"targets":[{"type":"a"},{"id":"a"}]`), "targets[1]", "needs a type"},
		{"unknown in target", with(`"targets":[{"type":"a","kind":"b"}]`), "targets[0].kind", "is not known"},
		{"target id number", with(`"targets":[{"type":"a","id":5}]`), "targets[0].id", "must be a string"},
		{"target name of 256", with(`"targets":[{"type":"a","name":"` + strings.Repeat("x", 256) + `"}]`), "targets[0].name", "at most 255"},
		{"target metadata array", with(`"targets":[{"type":"a","metadata":[]}]`), "targets[0].metadata", "must be an object"},
		{"target metadata of nine levels", with(`"targets":[{"type":"a","metadata":` + nested(9) + `}]`), "targets[0].metadata.a[0].a[0].a[0].a[0]", "deeper than 8"},
		{"target metadata of 64 KiB", with(`"targets":[{"type":"a","metadata":{"a":"` + strings.Repeat("x", 64<<10) + `"}}]`), "targets[0].metadata", "more than 65536"},
		{"idempotency key of 256", with(`"idempotency_key":"` + strings.Repeat("x", 256) + `"`), "idempotency_key", "at most 255"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := buildError(t, Input{JSON: []byte(tt.json)})
			if e.Code != CodeValidation || len(e.Details) != 1 {
				t.Fatalf("got %s with details %v, want %s with one", e.Code, e.Details, CodeValidation)
			}
			if d := e.Details[0]; d.Field != tt.field && !strings.HasPrefix(d.Field, tt.field[:min(len(tt.field), 255)]) || !strings.Contains(d.Message, tt.message) {
				t.Errorf("got %q %q, want %q %q", d.Field, d.Message, tt.field, tt.message)
			}
			if !strings.Contains(e.Message, tt.message) {
				t.Errorf("message %q lacks %q", e.Message, tt.message)
			}
		})
	}
}

func TestRefuseBySize(t *testing.T) {
	fits := []byte(with(`"metadata":{"a":1}`))
	fits = append(fits, strings.Repeat(" ", MaxEventBytes-len(fits))...)
	build(t, testWorkspace(), Input{JSON: fits})
	if e := buildError(t, Input{JSON: append(fits, ' ')}); e.Code != CodeTooLarge {
		t.Errorf("got %s, want %s", e.Code, CodeTooLarge)
	}
}

func TestRefuseAllAtOnce(t *testing.T) {
	e := buildError(t, Input{JSON: []byte(`{"action":"a b","foo":1,"version":1e400,"metadata":{"a":1,"a":2},"ip_address":"x"}`)})
	want := []string{"version", "metadata.a", "action", "foo", "version", "ip_address", "actor_id"}
	var got []string
	for _, d := range e.Details {
		got = append(got, d.Field)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("fields (-want +got):\n%s", diff)
	}
	if !strings.HasSuffix(e.Message, "(and 6 more)") {
		t.Errorf("message %q does not count the others", e.Message)
	}

	e = buildError(t, Input{JSON: []byte(`{"metadata":{"a":[` + strings.Repeat("1e400,", 100) + `1]}}`)})
	if len(e.Details) != MaxDetails || !strings.HasSuffix(e.Message, "(and 101 more)") {
		t.Errorf("got %d details and %q, want %d and 101 more", len(e.Details), e.Message, MaxDetails)
	}
}

// A message repeats names, which may be long, but no values, which may be secret.
func TestErrorShowsNoValues(t *testing.T) {
	e := buildError(t, Input{JSON: []byte(`{"actor_id":["hunter2"],"action":"hunter2 ","ip_address":"hunter2","` +
		strings.Repeat("é", 4000) + `":1,"idempotency_key":"` + strings.Repeat("hunter2", 50) + `"}`)})
	text, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "hunter2") {
		t.Errorf("a value is in %s", text)
	}
	if len(text) > 2500 {
		t.Errorf("the error has %d bytes", len(text))
	}
}

func TestIdempotencyHeader(t *testing.T) {
	inBody, _ := build(t, testWorkspace(), Input{JSON: []byte(with(`"idempotency_key":"k\""`))})
	both, _ := build(t, testWorkspace(), Input{JSON: []byte(with(`"idempotency_key":"k\""`)), IdempotencyKey: `k"`})
	inHeader, e := build(t, testWorkspace(), Input{JSON: []byte(with(`"actor":null`)), IdempotencyKey: `k"`})
	if inBody.ID != both.ID || inBody.ID != inHeader.ID {
		t.Errorf("ids differ: %x %x %x", inBody.ID, both.ID, inHeader.ID)
	}
	if want := body(t, `,"idempotency_key":"k\""`); string(e.Body) != want || inHeader.IdempotencyKey != `k"` {
		t.Errorf("got %s, want %s", e.Body, want)
	}
	for name, in := range map[string]Input{
		"differs":  {JSON: []byte(with(`"idempotency_key":"k"`)), IdempotencyKey: "other"},
		"UTF-8":    {JSON: []byte(with(`"actor":null`)), IdempotencyKey: "\xff"},
		"at most ": {JSON: []byte(with(`"actor":null`)), IdempotencyKey: strings.Repeat("x", 256)},
	} {
		if e := buildError(t, in); len(e.Details) != 1 || e.Details[0].Field != FieldIdempotencyKey || !strings.Contains(e.Message, name) {
			t.Errorf("%s: got %v", name, e)
		}
	}
}

func TestKeepResourceIDEmpty(t *testing.T) {
	ws := testWorkspace()
	ws.KeepResourceIDEmpty = true
	_, e := build(t, ws, Input{JSON: readFixture(t, "events-sdk/1-deployment.started.json")})
	if e.ResourceId != "" || strings.Contains(string(e.Body), `"resource_id"`) {
		t.Errorf("resource_id %q was filled in", e.ResourceId)
	}
}
