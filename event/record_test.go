package event

import (
	"bytes"
	"encoding/hex"
	stdjson "encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"getimmutable.dev/immutable/schemas/recordpb"
)

const fullEvent = `{
	"actor": {"id": "a", "name": "Ann", "type": "engineer"}, "action": "config.changed", "action_category": "change",
	"resource": {"type": "service", "id": "api", "name": "API"}, "session_id": "s", "tenant_id": "t", "user_agent": "curl",
	"ip_address": "192.0.2.1", "idempotency_key": "key", "version": 2, "occurred_at": "2026-09-30T02:00:00.5Z",
	"targets": [{"type": "host", "id": "h1"}, {"type": "region", "name": "eu"}],
	"metadata": {"password": "hunter2", "old": 1.50, "new": true, "gone": null, "tags": ["x", "y", ["", null]], "deep": {"a.b": {"c": [{"d": "z"}]}, "e": {}}}
}`

// The record that is appended by hand is the message that the schema describes.
func TestRecord(t *testing.T) {
	ws := testWorkspace()
	in := Input{
		JSON: []byte(fullEvent), Kind: recordpb.Kind_KIND_NOTE, RequestID: "req-1",
		Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", RecordedAt: testTime,
	}
	b := NewBuilder()
	r, err := b.Build(ws, in)
	if err != nil {
		t.Fatal(err)
	}
	want := &recordpb.Event{
		Id: r.ID[:], Keyed: true, Kind: recordpb.Kind_KIND_NOTE, Workspace: ws.ID[:], Incarnation: ws.Incarnation[:],
		Lane: Lane("service", "api", "a", 4), Lanes: 4, RecordedAt: testTime.UnixMicro(), Seed: b.seed[:],
		Body: []byte(`{"action":"config.changed","action_category":"change","actor_id":"a","actor_name":"Ann",` +
			`"actor_type":"engineer","flags":["possible_secret:metadata.password"],"idempotency_key":"key","ip_address":"192.0.2.1","metadata":{"deep":{"a.b":{"c":[{"d":"z"}]},` +
			`"e":{}},"gone":null,"new":true,"old":1.5,"password":"hunter2","tags":["x","y",["",null]]},"occurred_at":"2026-09-30T02:00:00.500000Z",` +
			`"resource":"service","resource_id":"api","resource_name":"API","session_id":"s",` +
			`"targets":[{"id":"h1","type":"host"},{"name":"eu","type":"region"}],"tenant_id":"t","user_agent":"curl","version":2}`),
		FieldCount: 23, BodyRoot: b.bodyRoot[:],
		OccurredAt: time.Date(2026, 9, 30, 2, 0, 0, 5e8, time.UTC).UnixMicro(),
		ActorId:    "a", ActorName: "Ann", ActorType: "engineer", Action: "config.changed", ActionCategory: "change",
		Resource: "service", ResourceId: "api", ResourceName: "API", SessionId: "s", TenantId: "t", IpAddress: "192.0.2.1", UserAgent: "curl",
		TargetTypes: []string{"host", "region"}, TargetIds: []string{"h1", ""},
		Flags:          []string{"possible_secret:metadata.password"},
		MetadataKeys:   []string{"deep.a.b.c.d", "new", "old", "password", "tags", "tags", "tags"},
		MetadataValues: []string{"z", "true", "1.5", "hunter2", "x", "y", ""},
		RequestId:      "req-1", Traceparent: in.Traceparent,
	}
	var got recordpb.Event
	if err := proto.Unmarshal(r.Value, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, &got, protocmp.Transform()); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
	marshalled, err := proto.MarshalOptions{Deterministic: true}.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(marshalled, r.Value) {
		t.Error("the bytes are not those of proto.Marshal")
	}
	if want := RecordKey(ws.ID, want.Lane); !bytes.Equal(r.Key, want) {
		t.Errorf("key %s, want %s", r.Key, want)
	}
	if want := testTime.Truncate(time.Microsecond); !r.RecordedAt.Equal(want) {
		t.Errorf("recorded at %v, want %v", r.RecordedAt, want)
	}
}

// Whatever a client puts into headers, the record can be decoded.
func TestRecordTraceText(t *testing.T) {
	for _, s := range []string{"\xff", "a\nb", "é", strings.Repeat("x", 256)} {
		if _, e := build(t, testWorkspace(), Input{JSON: []byte(fullEvent), RequestID: s, Traceparent: s}); e.RequestId != "" || e.Traceparent != "" {
			t.Errorf("%q is in the record", s)
		}
	}
}

// The ids of a record that cannot be decoded are still found, and what is no id is not taken for one.
func TestOrigin(t *testing.T) {
	r, _ := build(t, testWorkspace(), Input{
		JSON: []byte(fullEvent), RequestID: "req-1", Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	})
	for name, c := range map[string]struct {
		record             []byte
		requestID, traceID string
	}{
		"whole":        {r.Value, "req-1", "0af7651916cd43dd8448eb211c80319c"},
		"torn":         {r.Value[:len(r.Value)-1], "req-1", ""},
		"no message":   {[]byte("hunter2"), "", ""},
		"no id":        {appendBytes(nil, 40, []byte("a b")), "", ""},
		"too long":     {appendBytes(nil, 40, bytes.Repeat([]byte("a"), 65)), "", ""},
		"a number":     {appendVarint(nil, 40, 7), "", ""},
		"no trace":     {appendBytes(nil, 41, []byte("0af7651916cd43dd8448eb211c80319c")), "", ""},
		"empty record": {nil, "", ""},
	} {
		if requestID, traceID := Origin(c.record); requestID != c.requestID || traceID != c.traceID {
			t.Errorf("%s: %q and %q, want %q and %q", name, requestID, traceID, c.requestID, c.traceID)
		}
	}
}

// A builder's records share nothing with its scratch, and nothing of one event is in the next.
func TestBuilderReuse(t *testing.T) {
	b := NewBuilder()
	ws := testWorkspace()
	first, err := b.Build(ws, Input{JSON: []byte(fullEvent), RecordedAt: testTime})
	if err != nil {
		t.Fatal(err)
	}
	key, value := bytes.Clone(first.Key), bytes.Clone(first.Value)
	big := with(`"metadata":{"a":"` + strings.Repeat("x", 60_000) + `"},"user_agent":"u"`)
	for _, json := range []string{`{"a`, `{"actor_id":5}`, big, `{"actor_id":"b","action":"c"}`} {
		r, err := b.Build(ws, Input{JSON: []byte(json), RecordedAt: testTime})
		fresh, freshErr := NewBuilder().Build(ws, Input{JSON: []byte(json), RecordedAt: testTime})
		if diff := cmp.Diff(freshErr, err); diff != "" {
			t.Errorf("%.50s: error (-fresh builder, +used):\n%s", json, diff)
		}
		var used, unused recordpb.Event
		if err := proto.Unmarshal(r.Value, &used); err != nil {
			t.Fatal(err)
		}
		if err := proto.Unmarshal(fresh.Value, &unused); err != nil {
			t.Fatal(err)
		}
		random := protocmp.IgnoreFields(&recordpb.Event{}, "id", "seed", "body_root")
		if diff := cmp.Diff(&unused, &used, protocmp.Transform(), random); diff != "" {
			t.Errorf("%.50s: record (-fresh builder, +used):\n%s", json, diff)
		}
	}
	if !bytes.Equal(first.Key, key) || !bytes.Equal(first.Value, value) {
		t.Error("building changed an earlier record")
	}
}

func TestIDs(t *testing.T) {
	ws := testWorkspace()
	b := NewBuilder()
	id := func(json, header string, at time.Time) uuid.UUID {
		t.Helper()
		r, err := b.Build(ws, Input{JSON: []byte(json), IdempotencyKey: header, RecordedAt: at})
		if err != nil {
			t.Fatal(err)
		}
		if r.Keyed != (r.IdempotencyKey != "") {
			t.Errorf("keyed = %t with key %q", r.Keyed, r.IdempotencyKey)
		}
		return r.ID
	}
	const sent = `{"actor_id":"a","action":"b","resource":"r","metadata":{"r":"x","n":1.0}}`
	later := testTime.Add(time.Hour)
	keyed := id(sent, "k", testTime)
	if keyed.Version() != 8 || keyed.Variant() != uuid.RFC4122 {
		t.Errorf("%s is not a UUIDv8", keyed)
	}
	// What the builder fills in may not tell a retry apart from the first attempt.
	if again := id(` {"action":"b","actor":{"id":"a"},"resource":{"type":"r"},"metadata":{"n":1,"r":"x"}}`, "k", later); again != keyed {
		t.Errorf("a retry has id %s, the first attempt %s", again, keyed)
	}
	if other := id(sent, "k2", testTime); other == keyed {
		t.Error("another key has the same id")
	}
	if other := id(strings.Replace(sent, `"b"`, `"c"`, 1), "k", testTime); other == keyed {
		t.Error("other content under the same key has the same id")
	}
	if other := id(strings.Replace(sent, `{`, `{"resource_id":"x",`, 1), "k", testTime); other == keyed {
		t.Error("a resource_id that was sent counts as one that was not")
	}
	ws.IdempotencySecret[0]++
	if other := id(sent, "k", testTime); other == keyed {
		t.Error("another secret makes the same id")
	}
	ws.IdempotencySecret[0]--
	ws.ID[0]++
	if other := id(sent, "k", testTime); other == keyed {
		t.Error("another workspace has the same id")
	}
	ws.ID[0]--
	if again := id(sent, "k", later); again != keyed {
		t.Error("going back to the first workspace makes another id")
	}

	previous := id(sent, "", testTime)
	if previous.Version() != 7 || previous.Variant() != uuid.RFC4122 {
		t.Errorf("%s is not a UUIDv7", previous)
	}
	if seconds, nanos := previous.Time().UnixTime(); !time.Unix(seconds, nanos).Equal(testTime.Truncate(time.Millisecond)) {
		t.Errorf("%s has time %v, want %v", previous, time.Unix(seconds, nanos), testTime)
	}
	for range 10_000 {
		next := id(sent, "", testTime)
		if bytes.Compare(previous[:], next[:]) >= 0 {
			t.Fatalf("%s after %s", next, previous)
		}
		previous = next
	}
	if next := id(sent, "", testTime.Add(time.Microsecond)); bytes.Compare(previous[:], next[:]) >= 0 {
		t.Errorf("%s, a microsecond later, after %s", next, previous)
	}
}

// TestKeyDigest holds the digest to a value that another implementation computed: it is in records that are kept for ever.
func TestKeyDigest(t *testing.T) {
	ws := &Workspace{}
	for i := range ws.IdempotencySecret {
		ws.IdempotencySecret[i] = byte(i)
	}
	digest := ws.KeyDigest("order-4711")
	if got := hex.EncodeToString(digest[:]); got != "1c5d9a25b939df056d401f1f4e06e594" {
		t.Errorf("%s", got)
	}
	if ws.KeyDigest("order-4712") == digest || (&Workspace{}).KeyDigest("order-4711") == digest {
		t.Error("another key, or another secret, has the same digest")
	}
}

func TestMetadataEntries(t *testing.T) {
	keys, values, err := MetadataEntries([]byte(`{"b":[1e3,{"c":"x"}],"a":{"d":false,"e":null,"f":[]},"g":"\n"}`))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a.d", "b", "b.c", "g"}, keys); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"false", "1000", "x", "\n"}, values); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}
	for _, json := range []string{`[]`, `{`, `{"a":1e400}`, `{"` + strings.Repeat("x", 1000) + `":[` + strings.Repeat("1,", 300) + `1]}`} {
		if _, _, err := MetadataEntries([]byte(json)); err == nil {
			t.Errorf("%.50s has entries", json)
		}
	}
}

func TestFormatTime(t *testing.T) {
	if got, want := FormatTime(time.Date(2026, 1, 2, 3, 4, 5, 999_999_999, time.FixedZone("", 3600))), "2026-01-02T02:04:05.999999Z"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := FormatTime(time.Unix(0, 0)), "1970-01-01T00:00:00.000000Z"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestLane(t *testing.T) {
	if a, b := Lane("r", "i", "x", 1000), Lane("r", "i", "y", 1000); a != b {
		t.Errorf("one resource in lanes %d and %d", a, b)
	}
	if a, b := Lane("ab", "c", "", 1<<30), Lane("a", "bc", "", 1<<30); a == b {
		t.Error("parts of a resource run into each other")
	}
	ws := [16]byte{1}
	seen := map[int32]bool{}
	for lane := range uint32(12) {
		p := Partition(ws, lane, 12)
		if p < 0 || p >= 12 || seen[p] {
			t.Errorf("lane %d is on partition %d", lane, p)
		}
		seen[p] = true
	}
	if got, want := string(RecordKey(ws, 11)), "01000000000000000000000000000000/11"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// FuzzBuild holds what is built to the schema and to itself: it decodes, its body is canonical, and sent again it is the
// same event.
func FuzzBuild(f *testing.F) {
	f.Add([]byte(fullEvent))
	f.Add([]byte(`{"actor_id":5,"action":"b","metadata":{"a/b~":{"c":[]}}}`))
	f.Add([]byte(`{"actor":{"id":"a"},"action":"é","resource":{"type":"r"},"targets":[{"type":"t","metadata":{"x":null}}],"version":0}`))
	f.Add([]byte(`{"actor_id":"\ud83d\ude00","action":"x","metadata":{"😀":"\u0000","\ufb33":1},"foo":1}`))
	f.Fuzz(func(t *testing.T, json []byte) {
		ws, b := testWorkspace(), NewBuilder()
		r, err := b.Build(ws, Input{JSON: json, IdempotencyKey: "k", RecordedAt: testTime})
		if err != nil {
			return
		}
		var e recordpb.Event
		if err := proto.Unmarshal(r.Value, &e); err != nil {
			t.Fatal(err)
		}
		again, err := canonical(e.Body)
		if err != nil || !bytes.Equal(again, e.Body) {
			t.Fatalf("body %s becomes %s, %v", e.Body, again, err)
		}
		// The body is a flat event itself, but for its flags. What was filled in is sent now, so that the id is another.
		var sent map[string]stdjson.RawMessage
		if err := stdjson.Unmarshal(e.Body, &sent); err != nil {
			t.Fatal(err)
		}
		delete(sent, FieldFlags)
		again, err = stdjson.Marshal(sent)
		if err != nil {
			t.Fatal(err)
		}
		r2, err := b.Build(ws, Input{JSON: again, RecordedAt: testTime})
		if err != nil {
			t.Fatalf("body %s: %v", e.Body, err)
		}
		var e2 recordpb.Event
		if err := proto.Unmarshal(r2.Value, &e2); err != nil {
			t.Fatal(err)
		}
		random := protocmp.IgnoreFields(&recordpb.Event{}, "id", "seed", "body_root")
		if diff := cmp.Diff(&e, &e2, protocmp.Transform(), random); diff != "" {
			t.Errorf("%s built again (-first +second):\n%s", json, diff)
		}
	})
}

// One odd event does not make a pooled builder large for ever.
func TestBuilderLetsGo(t *testing.T) {
	b := NewBuilder()
	odd := []byte(with(`"metadata":{"a":[` + strings.Repeat("0,", 100_000) + `0]}`))
	if _, err := b.Build(testWorkspace(), Input{JSON: odd, RecordedAt: testTime}); err == nil {
		t.Fatal("metadata of 200 kB was accepted")
	}
	if n := cap(b.tape.nodes); n > 4096 {
		t.Errorf("the builder keeps %d nodes", n)
	}
}
