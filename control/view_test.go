package control

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/schemas"
)

func TestViewsFollow(t *testing.T) {
	c := kafkatest.Start(t)
	w := newTestWriter(t, c)
	ws := createWorkspace(t, w, "default")
	_, before := createKey(t, w, ws)
	views := []*View{readyView(t, c), readyView(t, c), readyView(t, c)}
	for _, v := range views {
		if err := authenticate(v, before); err != nil {
			t.Errorf("what was there at start is not there when the view is ready: %v", err)
		}
	}
	key, secret := createKey(t, w, ws)
	for _, v := range views {
		eventually(t, "a new key works", func() bool { return authenticate(v, secret) == nil })
	}
	if err := w.RevokeKey(t.Context(), by, ws.ID, key.ID, 0); err != nil {
		t.Fatal(err)
	}
	for _, v := range views {
		eventually(t, "a revoked key stops working", func() bool { return authenticate(v, secret) != nil })
		if err := authenticate(v, before); err != nil {
			t.Errorf("the other key: %v", err)
		}
	}

	if _, err := w.UpdateWorkspace(t.Context(), by, ws.ID, 1, func(s *Settings) { *s = Settings{KeepResourceIDEmpty: true} }); err != nil {
		t.Fatal(err)
	}
	for _, v := range views {
		eventually(t, "new settings reach the principal", func() bool {
			p, err := v.Authenticate(before, netip.Addr{}, time.Now(), ScopeRead)
			return err == nil && p.Workspace.Settings.KeepResourceIDEmpty
		})
	}
}

// A transaction that is open when a view starts may revoke a key: the view must not be ready without it.
func TestViewWaitsForOpenTransaction(t *testing.T) {
	c := kafkatest.Start(t)
	w := newTestWriter(t, c)
	ws := createWorkspace(t, w, "default")
	key, secret := createKey(t, w, ws)
	r := stall(t, c, func(s *state) (*change, error) {
		mine := *s.key(ws.ID, key.ID)
		mine.Version++
		ch := keyChange(ws, &mine, "api_key.revoked", map[string]any{})
		ch.object.deleted = true
		return ch, nil
	})
	v := startView(t, c, testMaster)
	eventually(t, "the view has read what is before the transaction", func() bool {
		return valueOf(t, v.metrics.records[outcomeApplied]) >= 2
	})
	if err := v.Ready(t.Context()); err == nil || authenticate(v, secret) == nil {
		t.Errorf("ready while a transaction is open: %v", err)
	}
	if err := r.cl.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the view is ready", func() bool { return v.Ready(t.Context()) == nil })
	if err := authenticate(v, secret); err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("ready, and the revoked key: %v", err)
	}
	checkTopics(t, c)
}

// The end of the topic is an aborted change.
func TestViewBehindAbortedTransaction(t *testing.T) {
	c := kafkatest.Start(t)
	ws := createWorkspace(t, newTestWriter(t, c), "default")
	r := stall(t, c, func(s *state) (*change, error) {
		mine := *s.workspace(ws.ID)
		mine.Version++
		mine.Name = "aborted"
		return workspaceChange(&mine, "workspace.updated", map[string]any{}), nil
	})
	if err := r.cl.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
		t.Fatal(err)
	}
	v := readyView(t, c)
	if diff := cmp.Diff([]*Workspace{ws}, v.Workspaces()); diff != "" {
		t.Error(diff)
	}
}

func TestViewOfNothing(t *testing.T) {
	v := readyView(t, kafkatest.Start(t))
	if len(v.Workspaces()) != 0 {
		t.Error("workspaces from nowhere")
	}
}

func TestViewRestarts(t *testing.T) {
	ctx := t.Context()
	c := kafkatest.Start(t)
	w := newTestWriter(t, c)
	v := readyView(t, c)
	ws := createWorkspace(t, w, "default")
	other := createWorkspace(t, w, "other")
	for range 10 {
		key, _ := createKey(t, w, ws)
		createKey(t, w, other)
		if err := w.RevokeKey(ctx, by, ws.ID, key.ID, 0); err != nil {
			t.Fatal(err)
		}
	}
	for version := range uint64(5) {
		settings := Settings{RateLimit: Limit{PerSecond: float64(version)}}
		if _, err := w.UpdateWorkspace(ctx, by, ws.ID, version+1, func(s *Settings) { *s = settings }); err != nil {
			t.Fatal(err)
		}
	}
	same := func(got *View) string {
		return cmp.Diff(v.Workspaces(), got.Workspaces()) + cmp.Diff(v.Keys(other.ID), got.Keys(other.ID)) +
			cmp.Diff(v.Keys(ws.ID), got.Keys(ws.ID))
	}
	eventually(t, "the view is current", func() bool {
		got, _ := v.Workspace(ws.ID)
		return got.Version == 6
	})
	if diff := same(readyView(t, c)); diff != "" {
		t.Errorf("after a restart:\n%s", diff)
	}
	c.Fake.Compact()
	if diff := same(readyView(t, c)); diff != "" {
		t.Errorf("after compaction:\n%s", diff)
	}
	if err := c.Fake.DeleteRecords(c.Config.Topic(schemas.TopicConfig), 0, -1); err != nil {
		t.Fatal(err)
	}
	if got := readyView(t, c); len(got.Workspaces()) != 0 {
		t.Error("a topic without records")
	}
}

func TestViewPassesWhatItCannotRead(t *testing.T) {
	c := kafkatest.Start(t)
	w := newTestWriter(t, c)
	s := testSealer(t, testMaster)
	c.Produce(t,
		&kgo.Record{Topic: schemas.TopicConfig, Key: []byte("workspace/x/y"), Value: []byte("garbage")},
		&kgo.Record{Topic: schemas.TopicConfig, Key: []byte("rule/x/y"), Value: []byte("from a newer version")},
		&kgo.Record{Topic: schemas.TopicConfig, Value: []byte("no key")},
	)
	v := readyView(t, c)
	ws := createWorkspace(t, w, "default")
	key, secret := createKey(t, w, ws)
	eventually(t, "the key behind them works", func() bool { return authenticate(v, secret) == nil })
	if got := valueOf(t, v.metrics.records[outcomeUndecodable]); got != 1 {
		t.Errorf("%v records were counted as undecodable", got)
	}

	// A newer version that cannot be read ends the older one.
	o := &object{version: 2, key: key}
	value, err := o.encode(s)
	if err != nil {
		t.Fatal(err)
	}
	value = append(value, 0x5a, 0x03, 0x4a, 0x01, 'x') // another address range, which is none
	c.Produce(t, &kgo.Record{Topic: schemas.TopicConfig, Key: []byte(o.recordKey()), Value: value})
	eventually(t, "the key is refused", func() bool { return authenticate(v, secret) != nil })
	eventually(t, "it is counted", func() bool {
		return valueOf(t, v.metrics.records[outcomeUndecodable]) == 2 && valueOf(t, v.metrics.refused) == 1
	})
	if err := v.Ready(t.Context()); err != nil {
		t.Errorf("the others are still served: %v", err)
	}
	if _, _, err := w.CreateKey(t.Context(), by, NewKey{Workspace: ws.ID, Name: "x", Scopes: []Scope{ScopeRead}}); err == nil {
		t.Error("config is changed although a part of it cannot be read")
	}
	c.Produce(t, &kgo.Record{Topic: schemas.TopicConfig, Key: []byte(o.recordKey())})
	eventually(t, "a tombstone removes it", func() bool { return valueOf(t, v.metrics.refused) == 0 })
}

func TestViewWithWrongMasterKey(t *testing.T) {
	c := kafkatest.Start(t)
	_, secret := createKey(t, newTestWriter(t, c), createWorkspace(t, newTestWriter(t, c), "default"))
	v := startView(t, c, MasterKey{9})
	eventually(t, "the view says why it is not ready", func() bool { return errors.Is(v.Ready(t.Context()), ErrMasterKey) })
	if err := authenticate(v, secret); err == nil || !strings.Contains(err.Error(), "unavailable") {
		t.Errorf("%v", err)
	}
}

func TestViewWithoutTopic(t *testing.T) {
	c := kafkatest.StartEmpty(t)
	v := startView(t, c, testMaster)
	eventually(t, "the view says what is missing", func() bool {
		err := v.Ready(t.Context())
		return err != nil && strings.Contains(err.Error(), "config") && valueOf(t, v.metrics.restarts) > 0
	})
	if err := c.Fake.CreateTopic(c.Config.Topic(schemas.TopicConfig), 1, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the view is ready", func() bool { return v.Ready(t.Context()) == nil })
}

func TestViewReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := stillView(t)
		v.index.Store(nil)
		check := func(want string) {
			t.Helper()
			err := v.Ready(t.Context())
			if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
		}
		check("has not been read yet")
		if v.age() != -1 {
			t.Errorf("age %v", v.age())
		}
		v.fail(errors.New("no broker"))
		check("no broker")
		v.state.next = 10
		v.publish(true)
		v.observe(observation{time.Now(), 10})
		check("")

		wait := func(d time.Duration) { <-time.After(d) }
		wait(defStaleAfter + time.Second)
		if v.age() != 16 {
			t.Errorf("age %v", v.age())
		}
		v.fail(errors.New("no broker"))
		check("last current 16s ago: no broker")

		// The end of the topic is ahead, and the reader does not move.
		v.observe(observation{time.Now(), 12})
		v.observe(observation{time.Now(), 15})
		check("2 records behind, at offset 10")
		if got := valueOf(t, v.metrics.lag); got != 5 {
			t.Errorf("lag %v", got)
		}
		// It reaches what was there at the first of these moments.
		v.state.next = 12
		v.publish(false)
		check("")
		wait(defStaleAfter + time.Second)
		v.observe(observation{time.Now(), 12})
		check("")
	})
}

// Start-up with ten thousand keys, from an open view to its readiness; and a change on top of them.
func BenchmarkTenThousandKeys(b *testing.B) {
	c := kafkatest.Start(b)
	w := newTestWriter(b, c)
	ws := createWorkspace(b, w, "default")
	var records []*kgo.Record
	for i := range 10_000 {
		o := &object{version: 1, changedBy: by, key: &Key{
			Workspace: ws.ID, Name: "key", Hash: HashSecret(drawSecret()), Hint: "abcd", Scopes: []Scope{ScopeWrite},
		}}
		binary.BigEndian.PutUint64(o.key.ID[:], uint64(i)+1)
		key, value := encodeObject(b, o, w.sealer)
		records = append(records, &kgo.Record{Topic: schemas.TopicConfig, Key: key, Value: value})
	}
	c.Produce(b, records...)
	b.Run("start", func(b *testing.B) {
		for b.Loop() {
			if v := readyView(b, c); len(v.Keys(ws.ID)) < 10_000 {
				b.Fatalf("%d keys", len(v.Keys(ws.ID)))
			}
		}
	})
	b.Run("index", func(b *testing.B) {
		v := readyView(b, c)
		b.ResetTimer()
		for b.Loop() {
			newIndex(v.state)
		}
	})
	b.Run("change", func(b *testing.B) {
		for b.Loop() {
			createKey(b, w, ws)
		}
	})
}
