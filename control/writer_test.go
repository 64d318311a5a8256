package control

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/schemas"
)

func TestWriter(t *testing.T) {
	ctx := t.Context()
	c := kafkatest.Start(t)
	w := newTestWriter(t, c)

	first := createWorkspace(t, w, "default")
	if first.Lanes != 4 || first.Version != 1 || first.Incarnation == ([16]byte{}) ||
		first.IdempotencySecret == ([32]byte{}) {
		t.Errorf("%+v", first)
	}
	other, err := w.CreateWorkspace(ctx, by, NewWorkspace{
		Name: "other", Lanes: 2, Settings: Settings{KeepResourceIDEmpty: true, RateLimit: Limit{PerSecond: 10, Burst: 20}},
	})
	if err != nil {
		t.Fatal(err)
	}
	key, secret, err := w.CreateKey(ctx, "key:abc", NewKey{
		Workspace: other.ID, Name: "ci", Scopes: []Scope{ScopeWrite, ScopeRead, ScopeWrite},
		ExpiresAt:    time.Date(2126, 1, 2, 3, 4, 5, 6789, time.UTC),
		AllowedCIDRs: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/24")}, RateLimit: Limit{PerSecond: 1.5},
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Scope{ScopeRead, ScopeWrite}, key.Scopes); diff != "" {
		t.Error(diff)
	}
	if key.AllowedCIDRs[0].String() != "192.0.2.0/24" || key.ExpiresAt.Nanosecond() != 6000 ||
		!strings.HasSuffix(secret, key.Hint) {
		t.Errorf("%+v", key)
	}
	chosen, text, err := w.CreateKey(ctx, by, NewKey{
		Workspace: first.ID, Name: "chosen", Scopes: []Scope{ScopeAdmin}, Secret: "imk_sk_chosen_for_the_guide",
	})
	if err != nil || text != "imk_sk_chosen_for_the_guide" {
		t.Fatalf("%q, %v", text, err)
	}
	updated, err := w.UpdateWorkspace(ctx, by, other.ID, 1, func(s *Settings) { *s = Settings{RateLimit: Limit{PerSecond: 5}} })
	if err != nil {
		t.Fatal(err)
	}
	if updated.Version != 2 || updated.IdempotencySecret != other.IdempotencySecret || updated.Incarnation != other.Incarnation {
		t.Errorf("%+v", updated)
	}

	snap, err := w.Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := &Snapshot{Workspaces: []*Workspace{first, updated}, Keys: []*Key{key, chosen}}
	if diff := cmp.Diff(want, snap, compareAll); diff != "" {
		t.Error(diff)
	}

	if err := w.RevokeKey(ctx, by, first.ID, chosen.ID, 0); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		want error
		do   func() error
	}{
		"revoke again":           {ErrNotFound, func() error { return w.RevokeKey(ctx, by, first.ID, chosen.ID, 0) }},
		"revoke elsewhere":       {ErrNotFound, func() error { return w.RevokeKey(ctx, by, first.ID, key.ID, 0) }},
		"revoke in no workspace": {ErrNotFound, func() error { return w.RevokeKey(ctx, by, [16]byte{9}, key.ID, 0) }},
		"set what was updated": {ErrConflict, func() error {
			_, err := w.UpdateWorkspace(ctx, by, other.ID, 1, func(s *Settings) { *s = Settings{} })
			return err
		}},
		"set what is not there": {ErrNotFound, func() error {
			_, err := w.UpdateWorkspace(ctx, by, [16]byte{9}, 1, func(s *Settings) { *s = Settings{} })
			return err
		}},
		"delete what was updated": {ErrConflict, func() error { return w.DeleteWorkspace(ctx, by, other.ID, 1) }},
		"a name that is taken": {ErrConflict, func() error {
			_, err := w.CreateWorkspace(ctx, by, NewWorkspace{Name: "other"})
			return err
		}},
		"a key in no workspace": {ErrNotFound, func() error {
			_, _, err := w.CreateKey(ctx, by, NewKey{Workspace: [16]byte{9}, Name: "x", Scopes: []Scope{ScopeRead}})
			return err
		}},
		"a text that was revoked": {ErrConflict, func() error {
			_, _, err := w.CreateKey(ctx, by, NewKey{Workspace: other.ID, Name: "x", Scopes: []Scope{ScopeRead}, Secret: text})
			return err
		}},
		"a text that is in use": {ErrConflict, func() error {
			_, _, err := w.CreateKey(ctx, by, NewKey{Workspace: other.ID, Name: "x", Scopes: []Scope{ScopeRead}, Secret: secret})
			return err
		}},
	} {
		if err := test.do(); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}

	if diff := cmp.Diff([]string{
		"api_key.created", "api_key.created", "api_key.revoked", "workspace.created", "workspace.created", "workspace.updated",
	}, checkTopics(t, c)); diff != "" {
		t.Error(diff)
	}
	for _, topic := range []string{schemas.TopicConfig, schemas.TopicEvents} {
		for _, r := range committed(t, c, topic) {
			for name, s := range map[string]string{
				"a key's text": secret, "a chosen text": text,
				"an idempotency secret": string(other.IdempotencySecret[:]), "the master key": string(testMaster[:]),
			} {
				if bytes.Contains(r.Value, []byte(s)) {
					t.Errorf("%s is on %s", name, topic)
				}
			}
		}
	}
}

func TestDefaultLanes(t *testing.T) {
	c := kafkatest.StartEmpty(t)
	c.Layout.Partitions = 6
	if err := kafka.CreateTopics(t.Context(), c.Client(t), schemas.Topics(c.Layout)); err != nil {
		t.Fatal(err)
	}
	w := newTestWriter(t, c)
	if ws := createWorkspace(t, w, "first"); ws.Lanes != 6 {
		t.Errorf("the first workspace has %d lanes", ws.Lanes)
	}
	if ws := createWorkspace(t, w, "second"); ws.Lanes != 4 {
		t.Errorf("the second workspace has %d lanes", ws.Lanes)
	}
	w.cfg.Partitions = 3
	if ws := createWorkspace(t, w, "third"); ws.Lanes != 3 {
		t.Errorf("with 3 partitions a workspace has %d lanes", ws.Lanes)
	}
}

func TestDeletedWorkspaceMadeAnew(t *testing.T) {
	ctx := t.Context()
	c := kafkatest.Start(t)
	w := newTestWriter(t, c)
	v := readyView(t, c)
	old := createWorkspace(t, w, "default")
	_, secret := createKey(t, w, old)
	eventually(t, "the key works", func() bool { return authenticate(v, secret) == nil })

	if err := w.DeleteWorkspace(ctx, by, old.ID, old.Version); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the key of a deleted workspace stops working", func() bool { return authenticate(v, secret) != nil })
	if err := w.DeleteWorkspace(ctx, by, old.ID, old.Version+1); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleted again: %v", err)
	}
	_, _, err := w.CreateKey(ctx, by, NewKey{Workspace: old.ID, Name: "x", Scopes: []Scope{ScopeRead}})
	if !errors.Is(err, ErrNotFound) {
		t.Errorf("a key for it: %v", err)
	}

	anew := createWorkspace(t, w, "default")
	if anew.ID == old.ID || anew.Incarnation == old.Incarnation || anew.IdempotencySecret == old.IdempotencySecret {
		t.Error("the new workspace is the old one")
	}
	eventually(t, "the view shows the new one", func() bool {
		got, ok := v.WorkspaceByName("default")
		return ok && got.ID == anew.ID
	})
	if _, ok := v.Workspace(old.ID); ok || authenticate(v, secret) == nil {
		t.Error("the old workspace is back")
	}
	checkTopics(t, c)
}

func authenticate(v *View, secret string) error {
	_, err := v.Authenticate(secret, netip.Addr{}, time.Now(), ScopeRead)
	return err
}

func TestWriterRefuses(t *testing.T) {
	// Nobody is asked: there is no broker.
	c := kafkatest.StartEmpty(t)
	w := newTestWriter(t, c)
	workspace := func(by string, n NewWorkspace) func() error {
		return func() error { _, err := w.CreateWorkspace(t.Context(), by, n); return err }
	}
	key := func(change func(*NewKey)) func() error {
		n := NewKey{Name: "key", Scopes: []Scope{ScopeRead}}
		change(&n)
		return func() error { _, _, err := w.CreateKey(t.Context(), by, n); return err }
	}
	mapped := netip.MustParsePrefix("::ffff:10.0.0.0/104")
	for name, do := range map[string]func() error{
		"no name":          workspace(by, NewWorkspace{}),
		"spaces around":    workspace(by, NewWorkspace{Name: " a"}),
		"a line break":     workspace(by, NewWorkspace{Name: "a\nb"}),
		"invalid UTF-8":    workspace(by, NewWorkspace{Name: "a\xff"}),
		"a long name":      workspace(by, NewWorkspace{Name: strings.Repeat("x", 129)}),
		"too many lanes":   workspace(by, NewWorkspace{Name: "a", Lanes: 5}),
		"a negative rate":  workspace(by, NewWorkspace{Name: "a", Settings: Settings{RateLimit: Limit{PerSecond: -1}}}),
		"a burst alone":    workspace(by, NewWorkspace{Name: "a", Settings: Settings{RateLimit: Limit{Burst: 1}}}),
		"nobody":           workspace("", NewWorkspace{Name: "a"}),
		"somebody":         workspace("alice", NewWorkspace{Name: "a"}),
		"nobody with cli":  workspace("cli:", NewWorkspace{Name: "a"}),
		"no scope":         key(func(n *NewKey) { n.Scopes = nil }),
		"unknown scope":    key(func(n *NewKey) { n.Scopes = []Scope{"events:*"} }),
		"no key name":      key(func(n *NewKey) { n.Name = "" }),
		"already expired":  key(func(n *NewKey) { n.ExpiresAt = time.Now() }),
		"an invalid range": key(func(n *NewKey) { n.AllowedCIDRs = []netip.Prefix{{}} }),
		"a mapped range":   key(func(n *NewKey) { n.AllowedCIDRs = []netip.Prefix{mapped} }),
		"many ranges":      key(func(n *NewKey) { n.AllowedCIDRs = make([]netip.Prefix, 101) }),
		"a bad text":       key(func(n *NewKey) { n.Secret = "secret" }),
		"a huge burst":     key(func(n *NewKey) { n.RateLimit = Limit{PerSecond: 1, Burst: maxRate + 1} }),
	} {
		if err := do(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWriterRefusesWrongMasterKey(t *testing.T) {
	c := kafkatest.Start(t)
	w := newTestWriter(t, c)
	createWorkspace(t, w, "default")
	wrong := newTestWriter(t, c)
	wrong.sealer = testSealer(t, MasterKey{9})
	if _, err := wrong.CreateWorkspace(t.Context(), by, NewWorkspace{Name: "other"}); !errors.Is(err, ErrMasterKey) {
		t.Errorf("create: %v", err)
	}
	if _, err := wrong.Snapshot(t.Context()); !errors.Is(err, ErrMasterKey) ||
		!strings.Contains(err.Error(), "start every service with the master key file") {
		t.Errorf("snapshot: %v", err)
	}
	if diff := cmp.Diff([]string{"workspace.created"}, checkTopics(t, c)); diff != "" {
		t.Error(diff)
	}
}

// A workspace that rejects secrets does not reject the report of what was done to it.
func TestSecretPolicy(t *testing.T) {
	c := kafkatest.Start(t)
	w := newTestWriter(t, c)
	ws, err := w.CreateWorkspace(t.Context(), by, NewWorkspace{Name: "strict", Settings: Settings{SecretPolicy: event.SecretsReject}})
	if err != nil {
		t.Fatal(err)
	}
	if got := ws.ForEvents().SecretPolicy; got != event.SecretsReject {
		t.Errorf("policy for events: %q", got)
	}
	name := "AKIA" + strings.Repeat("Q7", 8)
	if _, _, err := w.CreateKey(t.Context(), by, NewKey{Workspace: ws.ID, Name: name, Scopes: []Scope{ScopeRead}}); err != nil {
		t.Fatal(err)
	}
	for _, r := range committed(t, c, schemas.TopicEvents) {
		if bytes.Contains(r.Value, []byte(name)) {
			t.Error("a name that looks like a secret is in an event")
		}
	}
	if _, err := w.UpdateWorkspace(t.Context(), by, ws.ID, 1, func(s *Settings) { *s = Settings{SecretPolicy: "delete"} }); !errors.Is(err, ErrInvalid) {
		t.Errorf("an unknown policy: %v", err)
	}
	updated, err := w.UpdateWorkspace(t.Context(), by, ws.ID, 1, func(s *Settings) { *s = Settings{SecretPolicy: event.SecretsRedact} })
	if err != nil || updated.Settings.SecretPolicy != event.SecretsRedact {
		t.Errorf("%+v, %v", updated, err)
	}
}
