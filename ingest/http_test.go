package ingest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
)

func TestFixtures(t *testing.T) {
	r := newRig(t, kafkatest.Start(t), nil)
	names := map[string]string{ // what each is found by
		"1-deployment.started.json": "api-gateway", "2-config.changed.json": "api-gateway",
		"3-secret.rotated.json": "production/database/primary", "4-incident.created.json": "inc_8f3a2c1d",
		"5-deployment.rollback.json": "api-gateway",
	}
	for _, folder := range []string{"events", "events-sdk"} {
		files, err := filepath.Glob("../schemas/testdata/fixtures/" + folder + "/*.json")
		if err != nil || len(files) != len(names) {
			t.Fatalf("%d files in %s, error %v", len(files), folder, err)
		}
		for _, file := range files {
			t.Run(folder+"/"+filepath.Base(file), func(t *testing.T) {
				text, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				before := time.Now().UnixMicro()
				e := r.queued(r.post(onePath, bytes.NewReader(text)))
				if e.RecordedAt < before || e.RecordedAt > time.Now().UnixMicro() || e.OccurredAt != e.RecordedAt {
					t.Errorf("recorded at %d, occurred at %d, sent after %d", e.RecordedAt, e.OccurredAt, before)
				}
				if want := names[filepath.Base(file)]; e.ResourceId != want {
					t.Errorf("resource_id is %q, want %q", e.ResourceId, want)
				}
				var sent, kept map[string]any
				if err := json.Unmarshal(text, &sent); err != nil {
					t.Fatal(err)
				}
				if err := json.Unmarshal(e.Body, &kept); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(sent["metadata"], kept["metadata"]); diff != "" {
					t.Errorf("metadata is not as sent: (-sent +kept)\n%s", diff)
				}
				if e.Keyed || uuid.UUID(e.Id).Version() != 7 {
					t.Errorf("id %s of an event without a key", uuid.UUID(e.Id))
				}
			})
		}
	}
}

func TestOrigin(t *testing.T) {
	r := newRig(t, kafkatest.Start(t), nil)
	const traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for _, c := range []struct{ sent, kept string }{
		{traceparent, traceparent},
		{"", ""},
		{"00-00000000000000000000000000000000-00f067aa0ba902b7-01", ""},
		{"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", ""},
		{"ff" + traceparent[2:], ""},
		{strings.ToUpper(traceparent), ""},
		{traceparent + "-x", ""},
		{"00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01", ""},
	} {
		got := r.post(onePath, strings.NewReader(valid), "Traceparent", c.sent, "X-Request-Id", "req-1")
		e := r.queued(got)
		if e.RequestId != "req-1" || e.Traceparent != c.kept || got.header.Get("X-Request-Id") != "req-1" {
			t.Errorf("traceparent %q: kept %q, request id %q", c.sent, e.Traceparent, e.RequestId)
		}
	}
}

// TestContentTypes holds what is taken for JSON; what is not is among TestRefusals.
func TestContentTypes(t *testing.T) {
	r := newRig(t, kafkatest.Start(t), nil)
	for _, contentType := range []string{
		"", "application/json", "application/json; charset=utf-8", `Application/JSON;charset="UTF-8"`,
	} {
		r.queued(r.post(onePath, strings.NewReader(valid), "Content-Type", contentType))
		r.batch(r.post(batchPath, batchOf(valid), "Content-Type", contentType), 1)
	}
	r.batch(r.post(batchPath, strings.NewReader(valid), "Content-Type", "application/x-ndjson; charset=utf-8"), 1)
}

// TestRefusals holds every answer to a request that writes nothing, but for those of full queues and of Kafka.
func TestRefusals(t *testing.T) {
	admit := error(nil)
	r := newRig(t, kafkatest.Start(t), func(c *Config) { c.Admit = func() error { return admit } })
	_, reader := r.key(control.NewKey{Scopes: []control.Scope{control.ScopeRead}})
	_, elsewhere := r.key(control.NewKey{AllowedCIDRs: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	revoked, token := r.key(control.NewKey{})
	if err := r.writer.RevokeKey(t.Context(), "cli:test", r.workspace.ID, revoked.ID, 0); err != nil {
		t.Fatal(err)
	}
	r.eventually("the key is revoked", func() bool {
		return r.post(onePath, strings.NewReader("{}"), "Authorization", "Bearer "+token).code == http.StatusUnauthorized
	})
	written := r.records()

	for _, c := range []struct {
		name, method, path, body string
		headers                  []string
		code                     int
		want                     string
	}{
		{
			name: "no key", body: valid, headers: []string{"Authorization", ""}, code: 401,
			want: `{"error":"unauthenticated","message":"No API key: send it in the header Authorization: Bearer imk_sk_..."}`,
		},
		{
			name: "unknown key", body: valid, headers: []string{"Authorization", "Bearer imk_sk_nobody"}, code: 401,
			want: `{"error":"unauthenticated","message":"This API key is not known: check that it was copied whole and is one of this installation's."}`,
		},
		{
			name: "revoked key", body: valid, headers: []string{"Authorization", "Bearer " + token}, code: 401,
			want: `{"error":"unauthenticated","message":"This API key was revoked: use another key."}`,
		},
		{
			name: "another scope", body: valid, headers: []string{"Authorization", "Bearer " + reader}, code: 403,
			want: `{"error":"forbidden","message":"This API key does not have the scope events:write: use a key that has it."}`,
		},
		{
			name: "another address", body: valid, headers: []string{"Authorization", "Bearer " + elsewhere}, code: 403,
			want: `{"error":"forbidden","message":"This API key may not be used from the address 127.0.0.1: use an allowed one, or a key that allows it."}`,
		},
		{
			name: "unknown path", path: "/api/v1/event", body: valid, code: 404,
			want: `{"error":"not_found","message":"There is nothing at this path; see the API's documentation for the paths that exist."}`,
		},
		{
			name: "method", method: http.MethodDelete, path: batchPath, code: 405,
			want: `{"error":"method_not_allowed","message":"This path does not answer DELETE; it answers POST."}`,
		},
		{
			name: "content type", body: valid, headers: []string{"Content-Type", "text/plain"}, code: 415,
			want: `{"error":"unsupported_media_type","message":"Content-Type must be application/json, in UTF-8."}`,
		},
		{
			name: "charset", body: valid, headers: []string{"Content-Type", "application/json; charset=latin1"}, code: 415,
			want: `{"error":"unsupported_media_type","message":"Content-Type must be application/json, in UTF-8."}`,
		},
		{
			name: "lines at the endpoint for one", body: valid, headers: []string{"Content-Type", mediaNDJSON}, code: 415,
			want: `{"error":"unsupported_media_type","message":"Content-Type must be application/json, in UTF-8."}`,
		},
		{
			name: "content type of a batch", path: batchPath, body: valid, headers: []string{"Content-Type", "text/csv"}, code: 415,
			want: `{"error":"unsupported_media_type","message":"Content-Type must be application/json or application/x-ndjson, in UTF-8."}`,
		},
		{
			name: "content encoding", body: valid, headers: []string{"Content-Encoding", "br"}, code: 415,
			want: `{"error":"unsupported_media_type","message":"Content-Encoding must be gzip or zstd, or left out."}`,
		},
		{
			name: "two content encodings", body: valid, headers: []string{"Content-Encoding", "gzip, zstd"}, code: 415,
			want: `{"error":"unsupported_media_type","message":"Content-Encoding must be gzip or zstd, or left out."}`,
		},
		{
			name: "300 KiB", body: `{"actor_id":"` + strings.Repeat("a", 300<<10) + `"}`, code: 413,
			want: `{"error":"too_large","message":"The body must be at most 262144 bytes."}`,
		},
		{
			name: "batch of 9 MiB", path: batchPath, body: strings.Repeat(" ", 9<<20), code: 413,
			want: `{"error":"too_large","message":"The body must be at most 8388608 bytes."}`,
		},
		{
			name: "key of a batch", path: batchPath, body: `{"events":[` + valid + `]}`,
			headers: []string{"Idempotency-Key", "k"}, code: 422,
			want: `{"error":"validation_failed","message":"The header Idempotency-Key is for single events: give each event of a batch its own idempotency_key."}`,
		},
		{
			name: "batch of nothing", path: batchPath, body: `{"events":[]}`, code: 422,
			want: `{"error":"validation_failed","message":"events must hold 1 to 1000 events.","details":[{"field":"events","message":"must hold 1 to 1000 events"}]}`,
		},
		{
			name: "batch of 1,001", path: batchPath, code: 422,
			body: `{"events":[` + strings.Repeat(valid+",", 1000) + valid + `]}`,
			want: `{"error":"validation_failed","message":"events must hold 1 to 1000 events.","details":[{"field":"events","message":"must hold 1 to 1000 events"}]}`,
		},
		{
			name: "batch of no events", path: batchPath, body: `{}`, code: 422,
			want: `{"error":"validation_failed","message":"events must hold 1 to 1000 events.","details":[{"field":"events","message":"must hold 1 to 1000 events"}]}`,
		},
		{
			name: "batch that is an array", path: batchPath, body: `[` + valid + `]`, code: 422,
			want: `{"error":"validation_failed","message":"A batch is an object {\"events\":[...]}."}`,
		},
		{
			name: "events is an object", path: batchPath, body: `{"events":` + valid + `}`, code: 422,
			want: `{"error":"validation_failed","message":"events must be an array of events.","details":[{"field":"events","message":"must be an array of events"}]}`,
		},
		{
			name: "unknown field of a batch", path: batchPath, body: `{"events":[` + valid + `],"dry_run":true}`, code: 422,
			want: `{"error":"validation_failed","message":"dry_run is not a field of a batch, which has one: events.","details":[{"field":"dry_run","message":"is not a field of a batch, which has one: events"}]}`,
		},
		{
			name: "events twice", path: batchPath, body: `{"events":[` + valid + `],"\u0065vents":[]}`, code: 422,
			want: `{"error":"validation_failed","message":"events is there twice.","details":[{"field":"events","message":"is there twice"}]}`,
		},
		{
			name: "batch cut short", path: batchPath, body: `{"events":[` + valid, code: 400,
			want: fmt.Sprintf(`{"error":"invalid_json","message":"The batch is not valid JSON: see byte %d."}`, len(valid)+11),
		},
		{
			name: "batch with a comma too many", path: batchPath, body: `{"events":[` + valid + `,]}`, code: 400,
			want: fmt.Sprintf(`{"error":"invalid_json","message":"The batch is not valid JSON: see byte %d."}`, len(valid)+11),
		},
		{
			name: "batch with an event that is no JSON after one that is", path: batchPath, code: 400,
			body: `{"events":[` + valid + `,{"a":1]}]}`,
			want: fmt.Sprintf(`{"error":"invalid_json","message":"The batch is not valid JSON: see byte %d."}`, len(valid)+18),
		},
		{
			name: "batch with an end after its end", path: batchPath, body: `{"events":[` + valid + `]}]`, code: 400,
			want: fmt.Sprintf(`{"error":"invalid_json","message":"The batch is not valid JSON: see byte %d."}`, len(valid)+13),
		},
		{
			name: "unknown field of a batch that is no JSON", path: batchPath, body: `{"a":1,"b":}`, code: 400,
			want: `{"error":"invalid_json","message":"The batch is not valid JSON: see byte 11."}`,
		},
		{
			name: "empty batch", path: batchPath, code: 400,
			want: `{"error":"invalid_json","message":"The batch is not valid JSON: see byte 0."}`,
		},
		{
			name: "blank lines", path: batchPath, body: "\n\r\n \n", headers: []string{"Content-Type", mediaNDJSON}, code: 422,
			want: `{"error":"validation_failed","message":"A batch holds 1 to 10000 events, one a line."}`,
		},
		{
			name: "10,001 lines", path: batchPath, body: strings.Repeat("{}\n", 10_001),
			headers: []string{"Content-Type", mediaNDJSON}, code: 422,
			want: `{"error":"validation_failed","message":"A batch holds 1 to 10000 events, one a line."}`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := r.with(t)
			path, method := c.path, c.method
			if path == "" {
				path = onePath
			}
			if method == "" {
				method = http.MethodPost
			}
			count := func() {
				r.want(r.send(r.request(method, path, strings.NewReader(c.body), c.headers...)), c.code, c.want)
			}
			if c.code == 404 || c.code == 405 {
				count()
				return
			}
			endpoint := map[string]string{onePath: endpointEvent, batchPath: endpointBatch}[path]
			moved(t, r.service.metrics.requests.WithLabelValues(endpoint, fmt.Sprint(c.code)), 1, count)
		})
	}

	t.Run("not admitted", func(t *testing.T) {
		r := r.with(t)
		admit = errTest
		defer func() { admit = nil }()
		body := &neverRead{}
		req := r.request(http.MethodPost, onePath, body)
		req.ContentLength = 1 << 10
		req.Header.Set("Expect", "100-continue")
		got := r.send(req)
		r.want(got, 503, `{"error":"unavailable","message":"the disk is nearly full"}`)
		if got.header.Get("Retry-After") != "1" || body.read {
			t.Errorf("Retry-After %q, body read: %t", got.header.Get("Retry-After"), body.read)
		}
	})
	t.Run("chunked and too large", func(t *testing.T) {
		r := r.with(t)
		r.want(r.post(onePath, io.MultiReader(strings.NewReader(strings.Repeat(" ", 300<<10)))), 413,
			`{"error":"too_large","message":"The body must be at most 262144 bytes."}`)
	})
	if n := r.records(); n != written {
		t.Errorf("%d records were written by requests that were refused", n-written)
	}
}

// neverRead is a body that notes whether it was read.
type neverRead struct{ read bool }

func (b *neverRead) Read([]byte) (int, error) { b.read = true; return 0, io.EOF }

// TestBadEvents sends each event that must be refused alone, and then among good ones.
func TestBadEvents(t *testing.T) {
	r := newRig(t, kafkatest.Start(t), nil)
	with := func(fields string) string { return valid[:len(valid)-1] + "," + fields + "}" }
	keys := make([]string, 51)
	for i := range keys {
		keys[i] = fmt.Sprintf(`"k%d":%d`, i, i)
	}
	ahead := time.Now().Add(25 * time.Hour).UTC().Format(time.RFC3339)
	for _, c := range []struct {
		name, text string
		code       int
		error      string
		field      string // of the first detail; "" for none
	}{
		{"51 metadata keys", with(`"metadata":{` + strings.Join(keys, ",") + `}`), 422, "validation_failed", "metadata"},
		{"duplicate names", with(`"session_id":"a","session_id":"b"`), 422, "validation_failed", "session_id"},
		{"duplicate names, escaped", with(`"metadata":{"a":1,"\u0061":2}`), 422, "validation_failed", "metadata.a"},
		{"2^53+1", with(`"metadata":{"n":9007199254740993}`), 422, "validation_failed", "metadata.n"},
		{"1e400", with(`"metadata":{"n":1e400}`), 422, "validation_failed", "metadata.n"},
		{"lone surrogate", with(`"metadata":{"s":"\ud800"}`), 422, "validation_failed", "metadata.s"},
		{"invalid UTF-8", with("\"metadata\":{\"s\":\"\xff\"}"), 400, "invalid_json", ""},
		{"array for an object", with(`"metadata":[]`), 422, "validation_failed", "metadata"},
		{"an array", `[]`, 422, "validation_failed", ""},
		{"a number", `1`, 422, "validation_failed", ""},
		{"unknown field", with(`"colour":"red"`), 422, "validation_failed", "colour"},
		{"no action", `{"actor_id":"ci"}`, 422, "validation_failed", "action"},
		{"too far ahead", with(`"occurred_at":"` + ahead + `"`), 422, "validation_failed", "occurred_at"},
		{"ancient", with(`"occurred_at":"1999-12-31T23:59:59Z"`), 422, "validation_failed", "occurred_at"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := r.with(t)
			check := func(it item) {
				t.Helper()
				field := ""
				if len(it.Details) > 0 {
					field = it.Details[0].Field
				}
				if it.Error != c.error || it.Message == "" || field != c.field {
					t.Errorf("want %s of %q: %+v", c.error, c.field, it)
				}
			}
			rejected := r.service.metrics.rejected.WithLabelValues(c.error)
			moved(t, rejected, 1, func() {
				got := r.post(onePath, strings.NewReader(c.text))
				var it item
				if err := json.Unmarshal([]byte(got.body), &it); err != nil || got.code != c.code {
					t.Fatalf("%d: %s", got.code, got.body)
				}
				check(it)
			})
			moved(t, rejected, 2, func() {
				items := r.batch(r.post(batchPath, batchOf(c.text, valid, c.text)), 3)
				if items[1].Status != statusQueued || items[0].Status != statusRejected {
					t.Errorf("%+v", items)
				}
				check(items[0])
				check(items[2])
			})
			items := r.batch(r.post(batchPath, strings.NewReader(valid+"\n"+c.text), "Content-Type", mediaNDJSON), 2)
			if items[0].Status != statusQueued || items[1].Status != statusRejected {
				t.Errorf("%+v", items)
			}
			check(items[1])
		})
	}
	// Not JSON: alone a 400, in lines its own affair, within an array the whole batch's.
	got := r.post(onePath, strings.NewReader(`{"a":`))
	if got.code != 400 || !strings.HasPrefix(got.body, `{"error":"invalid_json"`) {
		t.Errorf("%d: %s", got.code, got.body)
	}
	items := r.batch(r.post(batchPath, strings.NewReader("{\"a\":\n"+valid), "Content-Type", mediaNDJSON), 2)
	if items[0].Error != "invalid_json" || items[1].Status != statusQueued {
		t.Errorf("%+v", items)
	}
	// Larger than an event may be: only a batch has room for it.
	large := with(`"metadata":{"a":"` + strings.Repeat("a", 300<<10) + `"}`)
	items = r.batch(r.post(batchPath, batchOf(large, valid)), 2)
	if items[0].Error != "too_large" || items[1].Status != statusQueued {
		t.Errorf("%+v", items)
	}
}

// TestRecordTooLarge sends numbers that have five times as many bytes in canonical form: 256 KiB of them would not fit
// a Kafka record.
func TestRecordTooLarge(t *testing.T) {
	r := newRig(t, kafkatest.Start(t), nil)
	target := `{"type":"x","metadata":{"n":[` + strings.Repeat("1e20,", 1000) + `0]}}`
	text := `{"actor_id":"a","action":"b","targets":[` + strings.Repeat(target+",", 49) + target + `]}`
	const message = `"error":"too_large","message":"The event takes more than 900000 bytes in canonical form: send less in it."}`
	r.want(r.post(onePath, strings.NewReader(text)), 413, `{`+message)
	r.want(r.post(batchPath, batchOf(text)), 202, `{"events":[{"index":0,"status":"rejected",`+message+`]}`)
}

// TestBatchTakesTooMuch sends a batch whose records, all in all, are many times its size.
func TestBatchTakesTooMuch(t *testing.T) {
	r := newRig(t, kafkatest.Start(t), func(c *Config) { c.MaxBufferedBytes = 32 << 20 })
	long := strings.Repeat("n", 250)
	text := valid[:len(valid)-1] + `,"metadata":{"` + long + `":{"` + long + `":{"` + long + `":[` + strings.Repeat("1,", 300) + `1]}}}}`
	r.want(r.post(batchPath, strings.NewReader(strings.Repeat(text+"\n", 200)), "Content-Type", mediaNDJSON), 413,
		`{"error":"too_large","message":"The batch's metadata takes too much memory: send it in smaller batches."}`)
}

func TestBatches(t *testing.T) {
	r := newRig(t, kafkatest.Start(t), nil)
	events := make([]string, 1000)
	for i := range events {
		events[i] = fmt.Sprintf(`{"actor_id":%d,"action":"a.b"}`, i)
	}
	check := func(t *testing.T, n int, got response) {
		t.Helper()
		r := r.with(t)
		for i, it := range r.batch(got, n) {
			if e := r.record(it.ID); e.ActorId != fmt.Sprint(i) {
				t.Fatalf("item %d has the id of event %s", i, e.ActorId)
			}
		}
	}
	t.Run("one bad among 100", func(t *testing.T) {
		r := r.with(t)
		hundred := append([]string(nil), events[:100]...)
		hundred[41] = `{"actor_id":"x"}`
		for i, it := range r.batch(r.post(batchPath, batchOf(hundred...)), 100) {
			if want := map[bool]string{true: statusRejected, false: statusQueued}[i == 41]; it.Status != want {
				t.Errorf("item %d is %s", i, it.Status)
			}
		}
	})
	t.Run("1,000", func(t *testing.T) { check(t, 1000, r.post(batchPath, batchOf(events...))) })
	t.Run("white space", func(t *testing.T) {
		check(t, 3, r.post(batchPath, strings.NewReader(" \n{ \"\\u0065vents\" :\t[ "+strings.Join(events[:3], " ,\r\n")+" ] } \n")))
	})
	for name, text := range map[string]string{
		"lines":                   strings.Join(events, "\n") + "\n",
		"lines without last end":  strings.Join(events, "\n"),
		"lines with CRLF":         strings.Join(events, "\r\n") + "\r\n",
		"lines with blanks":       "\n\n" + strings.Join(events, "\n \r\n\t\n") + "\n\n",
		"lines indented, trailed": "  " + strings.Join(events, " \n\t"),
	} {
		t.Run(name, func(t *testing.T) {
			check(t, 1000, r.post(batchPath, strings.NewReader(text), "Content-Type", mediaNDJSON))
		})
	}
	t.Run("10,000 lines", func(t *testing.T) {
		r := r.with(t)
		r.batch(r.post(batchPath, strings.NewReader(strings.Repeat(valid+"\n", 10_000)), "Content-Type", mediaNDJSON), 10_000)
	})
	t.Run("all bad", func(t *testing.T) {
		r := r.with(t)
		r.want(r.post(batchPath, batchOf(`{}`, `[]`)), 202, `{"events":[`+
			`{"index":0,"status":"rejected","error":"validation_failed","message":"actor_id is required (and 1 more)","details":[{"field":"actor_id","message":"is required"},{"field":"action","message":"is required"}]},`+
			`{"index":1,"status":"rejected","error":"validation_failed","message":"the event must be a JSON object, not an array","details":[{"field":"","message":"the event must be a JSON object, not an array"}]}]}`)
	})
}
