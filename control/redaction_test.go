package control

import (
	"encoding/json"
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// redactionsView is a view without the master key.
func redactionsView(t *testing.T, c *kafkatest.Cluster) *View {
	t.Helper()
	v, _ := runView(t, ViewConfig{Kafka: c.Config, RedactionsOnly: true})
	if err := v.Current(t.Context()); err != nil {
		t.Fatal(err)
	}
	return v
}

// redactionEvents are the bodies of the redaction events there are, in the order of their acceptance.
func redactionEvents(t *testing.T, c *kafkatest.Cluster) (all []*recordpb.Event) {
	t.Helper()
	for _, r := range committed(t, c, schemas.TopicEvents) {
		e := new(recordpb.Event)
		if err := proto.Unmarshal(r.Value, e); err != nil {
			t.Fatal(err)
		}
		if e.GetKind() == recordpb.Kind_KIND_REDACTION {
			all = append(all, e)
		}
	}
	return all
}

// redactionBody is what a verifier reads of a redaction event.
type redactionBody struct {
	Metadata struct {
		EventID string   `json:"event_id"`
		Paths   []string `json:"paths"`
	} `json:"metadata"`
}

func parseRedaction(t *testing.T, e *recordpb.Event) (said redactionBody) {
	t.Helper()
	if err := json.Unmarshal(e.GetBody(), &said); err != nil {
		t.Fatal(err)
	}
	return said
}

func TestRedactEvent(t *testing.T) {
	ctx := t.Context()
	c := kafkatest.Start(t)
	w := newTestWriter(t, c)
	ws := createWorkspace(t, w, "default")
	id := EventID{ws.ID, uuid.MustParse("01999999-9999-7999-8999-999999999999")}
	full, bare := readyView(t, c), redactionsView(t, c)
	if got, err := bare.Redactions().Lookup(id); got != nil || err != nil {
		t.Errorf("before: %+v, %v", got, err)
	}

	first, err := w.RedactEvent(ctx, "key:1", Redactable{id, 2, "order-1"}, []string{"/metadata/pin", "/actor_id", "/metadata/pin"}, "a customer's PIN")
	if err != nil {
		t.Fatal(err)
	}
	second, err := w.RedactEvent(ctx, "key:1", Redactable{EventID: id, Lane: 2}, []string{"/actor_id", "/user_agent"}, "more")
	if err != nil {
		t.Fatal(err)
	}
	again, err := w.RedactEvent(ctx, "key:1", Redactable{EventID: id, Lane: 2}, []string{"/user_agent", "/metadata/pin"}, "again")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(second, again, cmp.AllowUnexported(Redaction{})); diff != "" {
		t.Errorf("redacting again what was redacted (-before +now):\n%s", diff)
	}
	events := redactionEvents(t, c)
	if len(events) != 2 {
		t.Fatalf("%d redaction events", len(events))
	}
	for i, want := range []struct {
		*Redaction
		paths, all []string
	}{
		{first, []string{"/actor_id", "/metadata/pin"}, []string{"/actor_id", "/metadata/pin"}},
		{second, []string{"/user_agent"}, []string{"/actor_id", "/metadata/pin", "/user_agent"}},
	} {
		said := parseRedaction(t, events[i])
		if diff := cmp.Diff(said.Metadata.Paths, want.paths); diff != "" || said.Metadata.EventID != uuid.UUID(id.Event).String() {
			t.Errorf("redaction %d says %+v", i, said)
		}
		if want.KeyDigest != ws.ForEvents().KeyDigest("order-1") {
			t.Errorf("redaction %d is of the idempotency key %x", i, want.KeyDigest)
		}
		if want.ID != [16]byte(events[i].GetId()) || want.Version != uint64(i+1) || !cmp.Equal(want.Paths, want.all) {
			t.Errorf("redaction %d is %+v", i, want.Redaction)
		}
		if events[i].GetLane() != 2 || want.ChangedAt.UnixMicro() != events[i].GetRecordedAt() {
			t.Errorf("redaction %d is in lane %d, of %v", i, events[i].GetLane(), want.ChangedAt)
		}
	}
	if diff := cmp.Diff([]string{"event.redacted", "event.redacted", "workspace.created"}, checkTopics(t, c)); diff != "" {
		t.Error(diff)
	}

	const body = `{"action":"a","actor_id":"u","metadata":{"pin":"4711"},"occurred_at":"2026-11-24T09:59:00.000000Z","tenant_id":"t"}`
	for _, v := range []*View{full, bare, redactionsView(t, c)} {
		if err := v.Current(ctx); err != nil {
			t.Fatal(err)
		}
		if err := v.Ready(ctx); err != nil {
			t.Error(err)
		}
		got, err := v.Redactions().Lookup(id)
		if diff := cmp.Diff(second, got, cmp.AllowUnexported(Redaction{})); diff != "" || err != nil {
			t.Errorf("%v (-written +seen):\n%s", err, diff)
		}
		masked, paths, err := v.Redactions().Mask(id, []byte(body))
		if want := `{"action":"a","occurred_at":"2026-11-24T09:59:00.000000Z","tenant_id":"t"}`; string(masked) != want ||
			!cmp.Equal(paths, second.Paths) || err != nil {
			t.Errorf("masked: %s, %q, %v", masked, paths, err)
		}
		other := EventID{ws.ID, [16]byte{1}}
		if plain, paths, err := v.Redactions().Mask(other, []byte(body)); string(plain) != body || paths != nil || err != nil {
			t.Errorf("another event: %s, %q, %v", plain, paths, err)
		}
		if masked, _, err := v.Redactions().Mask(id, []byte("no JSON")); masked != nil || err == nil {
			t.Errorf("what cannot be masked: %s, %v", masked, err)
		}
		elsewhere := *ws
		elsewhere.ID[0]++
		if b := v.Redactions(); !b.Burned(ws, "order-1") || b.Burned(ws, "order-2") || b.Burned(&elsewhere, "order-1") {
			t.Error("another key is burned, or the one of the event is not")
		}
		if n := valueOf(t, v.metrics.redactions); n != 1 {
			t.Errorf("%v redacted events", n)
		}
		came, seen := v.Redactions().Since(0)
		if later, n := v.Redactions().Since(seen); len(later) != 0 || n != seen || came[len(came)-1] != id {
			t.Errorf("since the beginning %v, since then %v", came, later)
		}
	}
	// A view without the master key lets nobody in.
	if _, secret := createKey(t, w, ws); authenticate(bare, secret) == nil {
		t.Error("a key works")
	}
}

func TestRedactEventRefuses(t *testing.T) {
	c := kafkatest.Start(t)
	w := newTestWriter(t, c)
	ws := createWorkspace(t, w, "default")
	for name, tc := range map[string]struct {
		ws     [16]byte
		lane   uint32
		paths  []string
		reason string
		want   error
		field  string
	}{
		"no paths":        {ws.ID, 0, nil, "r", ErrInvalid, "paths"},
		"too many":        {ws.ID, 0, make([]string, 101), "r", ErrInvalid, "paths"},
		"action":          {ws.ID, 0, []string{"/user_agent", "/action"}, "r", ErrInvalid, "paths[1]"},
		"no pointer":      {ws.ID, 0, []string{"actor_id"}, "r", ErrInvalid, "paths[0]"},
		"not UTF-8":       {ws.ID, 0, []string{"/metadata/\xff"}, "r", ErrInvalid, "paths[0]"},
		"no reason":       {ws.ID, 0, []string{"/actor_id"}, " ", ErrInvalid, "reason"},
		"long reason":     {ws.ID, 0, []string{"/actor_id"}, strings.Repeat("é", 1001), ErrInvalid, "reason"},
		"secret reason":   {ws.ID, 0, []string{"/actor_id"}, "it was AKIAIOSFODNN7EXAMPLQ", ErrInvalid, "reason"},
		"no workspace":    {[16]byte{9}, 0, []string{"/actor_id"}, "r", ErrNotFound, ""},
		"lane beyond all": {ws.ID, 4, []string{"/actor_id"}, "r", ErrInvalid, ""},
	} {
		_, err := w.RedactEvent(t.Context(), by, Redactable{EventID: EventID{Workspace: tc.ws}, Lane: tc.lane}, tc.paths, tc.reason)
		field, _ := errors.AsType[*FieldError](err)
		if !errors.Is(err, tc.want) || tc.field != "" && (field == nil || field.Field != tc.field) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := len(redactionEvents(t, c)); n != 0 {
		t.Errorf("%d redaction events", n)
	}
}

// Names of fields are told as they are, under any policy: the verifier has to find them.
func TestRedactionOfAFieldThatLooksLikeASecret(t *testing.T) {
	c := kafkatest.Start(t)
	w := newTestWriter(t, c)
	ws, err := w.CreateWorkspace(t.Context(), by, NewWorkspace{Name: "strict", Settings: Settings{SecretPolicy: "redact"}})
	if err != nil {
		t.Fatal(err)
	}
	const path = "/metadata/AKIAIOSFODNN7EXAMPLQ"
	if _, err := w.RedactEvent(t.Context(), by, Redactable{EventID: EventID{Workspace: ws.ID}}, []string{path}, "r"); err != nil {
		t.Fatal(err)
	}
	if said := parseRedaction(t, redactionEvents(t, c)[0]); !cmp.Equal(said.Metadata.Paths, []string{path}) {
		t.Errorf("%+v", said)
	}
}

// A record that cannot be read hides everything that can be redacted of the event.
func TestBrokenRedaction(t *testing.T) {
	c := kafkatest.Start(t)
	w := newTestWriter(t, c)
	ws := createWorkspace(t, w, "default")
	v := readyView(t, c)
	id := EventID{ws.ID, [16]byte{7}}
	key := recordKey(kindRedaction, id.Workspace, id.Event)
	for name, value := range map[string][]byte{
		"no protobuf": {0xff},
		"no version":  encodeRedaction(t, 0, id, "/actor_id"),
		"no paths":    encodeRedaction(t, 1, id),
		"of another":  encodeRedaction(t, 1, EventID{ws.ID, [16]byte{8}}, "/actor_id"),
		"no redaction": func() []byte {
			value, err := proto.Marshal(&recordpb.Config{Version: 1})
			if err != nil {
				t.Fatal(err)
			}
			return value
		}(),
	} {
		c.Produce(t, &kgo.Record{Topic: schemas.TopicConfig, Key: []byte(key), Value: value})
		eventually(t, name+" is counted", func() bool { return valueOf(t, v.metrics.refused) == 1 })
		masked, paths, err := v.Redactions().Mask(id, []byte(`{"action":"a","metadata":{"pin":"4711"},"tenant_id":"t"}`))
		if string(masked) != `{"action":"a"}` || !cmp.Equal(paths, []string{"/metadata/pin", "/tenant_id"}) || err != nil {
			t.Errorf("%s: shown as %s without %q, %v", name, masked, paths, err)
		}
		if masked, _, err := v.Redactions().Mask(id, []byte("{")); masked != nil || err == nil {
			t.Errorf("%s: shown as %s, %v", name, masked, err)
		}
		if _, err := w.RedactEvent(t.Context(), by, Redactable{EventID: id}, []string{"/tenant_id"}, "r"); err == nil {
			t.Errorf("%s: it is redacted further", name)
		}
		if _, _, err := w.CreateKey(t.Context(), by, NewKey{Workspace: ws.ID, Name: "x", Scopes: []Scope{ScopeRead}}); err != nil {
			t.Errorf("%s: everything else can be changed: %v", name, err)
		}
		c.Produce(t, &kgo.Record{Topic: schemas.TopicConfig, Key: []byte(key)})
		eventually(t, "a tombstone removes it", func() bool { return valueOf(t, v.metrics.refused) == 0 })
	}
	c.Produce(t, &kgo.Record{Topic: schemas.TopicConfig, Key: []byte("redaction/x/y"), Value: []byte{0xff}})
	c.Produce(t, &kgo.Record{Topic: schemas.TopicConfig, Key: []byte(key), Value: encodeRedaction(t, 3, id, "/tenant_id")})
	eventually(t, "one that can be read counts", func() bool {
		r, err := v.Redactions().Lookup(id)
		return err == nil && r != nil && r.Version == 3
	})
	// An older version takes nothing back.
	c.Produce(t, &kgo.Record{Topic: schemas.TopicConfig, Key: []byte(key), Value: encodeRedaction(t, 2, id, "/actor_id")})
	if err := v.Current(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r, err := v.Redactions().Lookup(id); err != nil || r.Version != 3 {
		t.Errorf("%+v, %v", r, err)
	}
}

// What burns a key is not taken back: not by a record that cannot be read, and not by the tombstone over that.
func TestBurnedKeyStays(t *testing.T) {
	c := kafkatest.Start(t)
	w := newTestWriter(t, c)
	ws := createWorkspace(t, w, "default")
	v := readyView(t, c)
	id := EventID{ws.ID, [16]byte{7}}
	if _, err := w.RedactEvent(t.Context(), by, Redactable{EventID: id, IdempotencyKey: "k"}, []string{"/idempotency_key"}, "r"); err != nil {
		t.Fatal(err)
	}
	key := []byte(recordKey(kindRedaction, id.Workspace, id.Event))
	for _, value := range [][]byte{{0xff}, nil, encodeRedaction(t, 3, id, "/actor_id")} {
		c.Produce(t, &kgo.Record{Topic: schemas.TopicConfig, Key: key, Value: value})
		if err := v.Current(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !v.Redactions().Burned(ws, "k") {
			t.Errorf("it can be used again after %x", value)
		}
	}
	// A digest of another length is none.
	value, err := proto.Marshal(&recordpb.Config{Version: 4, Object: &recordpb.Config_Redaction{Redaction: &recordpb.Redaction{
		Workspace: id.Workspace[:], Event: id.Event[:], Paths: []string{"/actor_id"}, IdempotencyKeyDigest: make([]byte, 15),
	}}})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := decodeRedaction(id, value); err == nil {
		t.Errorf("%+v", r)
	}
}

func encodeRedaction(t *testing.T, version uint64, id EventID, paths ...string) []byte {
	t.Helper()
	value, err := (&object{version: version, redaction: &Redaction{EventID: id, Paths: paths}}).encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// TestRedactionsMemory holds the doc comment of Redactions to what a redacted event costs.
func TestRedactionsMemory(t *testing.T) {
	const n = 50_000
	values := make([]*kgo.Record, n)
	for i := range n {
		id := EventID{[16]byte{1}, [16]byte{byte(i), byte(i >> 8), byte(i >> 16)}}
		value, err := (&object{version: 1, redaction: &Redaction{
			EventID: id, Paths: []string{"/metadata/old_values"}, KeyDigest: id.Event,
		}}).encode(nil)
		if err != nil {
			t.Fatal(err)
		}
		values[i] = &kgo.Record{Key: []byte(recordKey(kindRedaction, id.Workspace, id.Event)), Value: value}
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, began := heap(), time.Now()
	r := newRedactions()
	for _, record := range values {
		id, _ := redactedEvent(record.Key)
		if _, err := r.apply(id, record); err != nil {
			t.Fatal(err)
		}
	}
	took := time.Since(began)
	each := (heap() - before) / n
	t.Logf("%d bytes and %v each", each, took/n)
	if each > 500 {
		t.Errorf("a redacted event takes %d bytes", each)
	}
	runtime.KeepAlive(r)
	runtime.KeepAlive(values)
}

func FuzzDecodeRedaction(f *testing.F) {
	id := EventID{[16]byte{1}, [16]byte{2}}
	value, err := (&object{version: 1, redaction: &Redaction{EventID: id, Paths: []string{"/actor_id"}}}).encode(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(recordKey(kindRedaction, id.Workspace, id.Event)), value)
	f.Fuzz(func(t *testing.T, key, value []byte) {
		id, ok := redactedEvent(key)
		if !ok {
			return
		}
		r, err := decodeRedaction(id, value)
		if err == nil && (r.EventID != id || len(r.Paths) == 0 || r.Version == 0) {
			t.Errorf("%+v", r)
		}
	})
}

func TestRetention(t *testing.T) {
	c := kafkatest.Start(t)
	const day = 24 * time.Hour
	got, err := newTestWriter(t, c).Retention(t.Context())
	if want := (Retention{Events: 14 * day, Ledger: 37 * day}); got != want || err != nil {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	configs := func(pairs ...string) (all []kadm.Config) {
		for i := 0; i < len(pairs); i += 2 {
			all = append(all, kadm.Config{Key: pairs[i], Value: &pairs[i+1]})
		}
		return all
	}
	for _, tc := range []struct {
		configs []kadm.Config
		want    time.Duration
	}{
		{configs("retention.ms", "1000", "segment.ms", "500", "other", "x"), 1500 * time.Millisecond},
		{configs("retention.ms", "-1", "segment.ms", "500"), -1},
		{configs(), -1},
		{configs("retention.ms", "9223372036854775807"), -1},
		{configs("retention.ms", "0"), 7 * day},
	} {
		if got, err := retentionOf(tc.configs); got != tc.want || err != nil {
			t.Errorf("%v, %v; want %v", got, err, tc.want)
		}
	}
	if _, err := retentionOf(configs("retention.ms", "x")); err == nil {
		t.Error("no error")
	}
}
