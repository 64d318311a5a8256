package control

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"getimmutable.dev/immutable/internal/kafka/kafkatest"
)

func TestUpdateKey(t *testing.T) {
	ctx := t.Context()
	c := kafkatest.Start(t)
	w := newTestWriter(t, c)
	ws := createWorkspace(t, w, "default")
	key, secret := createKey(t, w, ws)
	v := readyView(t, c)

	updated, err := w.UpdateKey(ctx, by, ws.ID, key.ID, 1, func(k *Key) {
		k.Name, k.Scopes, k.Hash = "other", []Scope{ScopeWrite}, [32]byte{}
		k.AllowedCIDRs = []netip.Prefix{netip.MustParsePrefix("192.0.2.7/24")}
	})
	if err != nil {
		t.Fatal(err)
	}
	if updated.Version != 2 || updated.Name != "other" || updated.Hash != key.Hash || updated.AllowedCIDRs[0].String() != "192.0.2.0/24" {
		t.Errorf("%+v", updated)
	}
	if err := v.Await(ctx, func() bool { k, ok := v.Key(ws.ID, key.ID); return ok && k.Version == 2 }); err != nil {
		t.Fatal(err)
	}
	inside := netip.MustParseAddr("192.0.2.9")
	if _, err := v.Authenticate(secret, inside, time.Now(), ScopeWrite); err != nil {
		t.Error(err)
	}
	if _, err := v.Authenticate(secret, inside, time.Now(), ScopeRead); err == nil {
		t.Error("a scope that was taken away still works")
	}

	edit := func(f func(*Key)) func() error {
		return func() error { _, err := w.UpdateKey(ctx, by, ws.ID, key.ID, 0, f); return err }
	}
	for name, test := range map[string]struct {
		want error
		do   func() error
	}{
		"stale": {ErrConflict, func() error {
			_, err := w.UpdateKey(ctx, by, ws.ID, key.ID, 1, func(*Key) {})
			return err
		}},
		"elsewhere": {ErrNotFound, func() error {
			_, err := w.UpdateKey(ctx, by, [16]byte{9}, key.ID, 0, func(*Key) {})
			return err
		}},
		"no scope":      {ErrInvalid, edit(func(k *Key) { k.Scopes = nil })},
		"expired":       {ErrInvalid, edit(func(k *Key) { k.ExpiresAt = time.Now().Add(-time.Second) })},
		"a far future":  {ErrInvalid, edit(func(k *Key) { k.ExpiresAt = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) })},
		"revoked stale": {ErrConflict, func() error { return w.RevokeKey(ctx, by, ws.ID, key.ID, 1) }},
	} {
		if err := test.do(); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	if diff := cmp.Diff([]string{"api_key.created", "api_key.updated", "workspace.created"}, checkTopics(t, c)); diff != "" {
		t.Error(diff)
	}
}
