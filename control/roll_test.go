package control

import (
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/schemas"
)

// A former text works up to the microsecond before its end; then the answer is a 401.
func TestFormerSecretEnds(t *testing.T) {
	until := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	rolled := keyObject(1, 1, "imk_sk_today", func(k *Key) {
		k.Former = []FormerSecret{
			{HashSecret("imk_sk_oldest"), "st", until.Add(-time.Hour)}, {HashSecret("imk_sk_before"), "re", until},
		}
	})
	workspace := &object{version: 1, workspace: testWorkspace(1, "a")}
	v := stillView(t, workspace, rolled)
	last := until.Add(-time.Microsecond)
	for _, test := range []struct {
		secret string
		now    time.Time
		want   string
	}{
		{"imk_sk_before", last, ""},
		{"imk_sk_before", until, "rolled"},
		{"imk_sk_before", until.Add(time.Hour), "rolled"},
		{"imk_sk_oldest", last.Add(-time.Hour), ""},
		{"imk_sk_oldest", until.Add(-time.Hour), "rolled"},
		{"imk_sk_today", last, ""},
		{"imk_sk_today", until.Add(time.Hour), ""},
	} {
		p, err := v.Authenticate(test.secret, netip.Addr{}, test.now, ScopeRead)
		if test.want == "" {
			if err != nil || p.Key.ID != rolled.key.ID || p.Workspace.Name != "a" {
				t.Errorf("%s at %v: %+v, %v", test.secret, test.now, p, err)
			}
			continue
		}
		checkUnauthenticated(t, err, test.want)
	}
	if _, err := v.Authenticate("imk_sk_before", netip.Addr{}, last, ScopeWrite); err == nil {
		t.Error("a former text has a scope that its key has not")
	}

	rolled.deleted = true
	v = stillView(t, workspace, rolled)
	_, err := v.Authenticate("imk_sk_before", netip.Addr{}, last, ScopeRead)
	checkUnauthenticated(t, err, "revoked")
}

func checkUnauthenticated(tb testing.TB, err error, text string) {
	tb.Helper()
	if e, ok := errors.AsType[*httpserver.Error](err); !ok || e.Status != http.StatusUnauthorized || !strings.Contains(e.Message, text) {
		tb.Errorf("%v, want a 401 with %q", err, text)
	}
}

func TestRoll(t *testing.T) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 6789, time.UTC)
	key := keyObject(1, 1, "imk_sk_text_number_0", nil).key
	ends := func(k *Key) map[string]time.Duration {
		left := map[string]time.Duration{}
		for _, f := range k.Former {
			left[f.Hint] = f.Until.Sub(start.Truncate(time.Microsecond))
		}
		return left
	}
	roll := func(k *Key, secret string, overlap, after time.Duration, want map[string]time.Duration) *Key {
		t.Helper()
		before := ends(k)
		rolled, err := k.roll(secret, overlap, start.Add(after))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, ends(rolled)); diff != "" {
			t.Errorf("%s:\n%s", secret, diff)
		}
		if rolled.Hash != HashSecret(secret) || rolled.Version != k.Version+1 || rolled.ID != k.ID {
			t.Errorf("%+v", rolled)
		}
		if diff := cmp.Diff(before, ends(k)); diff != "" {
			t.Errorf("rolling changed a key that others hold:\n%s", diff)
		}
		return rolled
	}
	const h = time.Hour
	one := roll(key, "imk_sk_text_number_1", 24*h, 0, map[string]time.Duration{"r_0": 24 * h})
	// What ends sooner still does; what would end later does not.
	two := roll(one, "imk_sk_text_number_2", 48*h, h, map[string]time.Duration{"r_0": 24 * h, "r_1": 49 * h})
	three := roll(two, "imk_sk_text_number_3", h, 2*h, map[string]time.Duration{"r_0": 3 * h, "r_1": 3 * h, "r_2": 3 * h})
	roll(three, "imk_sk_text_number_4", 0, 2*h, map[string]time.Duration{})
	// What has ended is dropped, to the microsecond.
	roll(three, "imk_sk_text_number_4", h, 3*h, map[string]time.Duration{"r_3": 4 * h})
	// There is a bound, and an overlap of 0 is a way out.
	four := roll(three, "imk_sk_text_number_4", h, 2*h+1,
		map[string]time.Duration{"r_0": 3 * h, "r_1": 3 * h, "r_2": 3 * h, "r_3": 3 * h})
	if _, err := four.roll("imk_sk_text_number_5", h, start.Add(2*h)); !errors.Is(err, ErrConflict) ||
		!strings.Contains(err.Error(), "2026-01-02T06:04:05.000006Z") {
		t.Errorf("a fifth former text: %v", err)
	}
	roll(four, "imk_sk_text_number_5", 0, 2*h, map[string]time.Duration{})
}

func TestRollKey(t *testing.T) {
	ctx := t.Context()
	c := kafkatest.Start(t)
	w := newTestWriter(t, c)
	ws := createWorkspace(t, w, "default")
	key, first := createKey(t, w, ws)
	v := readyView(t, c)
	seen := func(k *Key) {
		t.Helper()
		if err := v.Await(ctx, func() bool { s, ok := v.Key(ws.ID, k.ID); return ok && s.Version == k.Version }); err != nil {
			t.Fatal(err)
		}
	}
	works := func(want bool, secrets ...string) {
		t.Helper()
		for _, secret := range secrets {
			if err := authenticate(v, secret); (err == nil) != want {
				t.Errorf("%s: %v", secret, err)
			}
		}
	}

	asked := time.Now()
	rolled, second, err := w.RollKey(ctx, by, ws.ID, key.ID, 1, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if checkSecret(second) != nil || rolled.Hash != HashSecret(second) || rolled.Version != 2 || len(rolled.Former) != 1 ||
		rolled.Former[0].Hash != key.Hash || rolled.Former[0].Hint != key.Hint ||
		rolled.Former[0].Until.Before(asked.Add(time.Hour-time.Microsecond)) || rolled.Former[0].Until.After(time.Now().Add(time.Hour)) {
		t.Errorf("%+v", rolled)
	}
	seen(rolled)
	works(true, first, second)
	snap, err := w.Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]*Key{rolled}, snap.Keys, compareAll); diff != "" {
		t.Error(diff)
	}

	again := func(text string) func() error {
		return func() error {
			_, _, err := w.CreateKey(ctx, by, NewKey{Workspace: ws.ID, Name: "x", Scopes: []Scope{ScopeRead}, Secret: text})
			return err
		}
	}
	roll := func(workspace [16]byte, version uint64, overlap time.Duration) func() error {
		return func() error { _, _, err := w.RollKey(ctx, by, workspace, key.ID, version, overlap); return err }
	}
	for name, test := range map[string]struct {
		want error
		do   func() error
	}{
		"stale":             {ErrConflict, roll(ws.ID, 1, 0)},
		"elsewhere":         {ErrNotFound, roll([16]byte{9}, 0, 0)},
		"too long":          {ErrInvalid, roll(ws.ID, 0, MaxOverlap+1)},
		"negative":          {ErrInvalid, roll(ws.ID, 0, -1)},
		"the former text":   {ErrConflict, again(first)},
		"the text of today": {ErrConflict, again(second)},
	} {
		if err := test.do(); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}

	// Other changes keep what still works.
	updated, err := w.UpdateKey(ctx, by, ws.ID, key.ID, 2, func(k *Key) { k.Name, k.Former = "renamed", nil })
	if err != nil {
		t.Fatal(err)
	}
	seen(updated)
	works(true, first, second)

	rolled, third, err := w.RollKey(ctx, by, ws.ID, key.ID, 0, MaxOverlap)
	if err != nil {
		t.Fatal(err)
	}
	seen(rolled)
	works(true, first, second, third)
	rolled, fourth, err := w.RollKey(ctx, by, ws.ID, key.ID, 0, 0)
	if err != nil || len(rolled.Former) != 0 {
		t.Fatalf("%+v, %v", rolled, err)
	}
	seen(rolled)
	works(false, first, second, third)
	works(true, fourth)
	// What chose the text of a new key may choose it again: it does not come back to life.
	if err := again(first)(); !errors.Is(err, ErrConflict) {
		t.Errorf("the text that a key was created with: %v", err)
	}

	// One that has ended goes with the next change, whatever that is.
	rolled, fifth, err := w.RollKey(ctx, by, ws.ID, key.ID, 0, time.Microsecond)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the former text ends", func() bool {
		return len(rolled.formerAt(time.Now())) == 0
	})
	updated, err = w.UpdateKey(ctx, by, ws.ID, key.ID, 0, func(*Key) {})
	if err != nil || len(updated.Former) != 0 {
		t.Errorf("%+v, %v", updated, err)
	}

	// A key that was revoked keeps its texts, so that none of them is used again.
	if _, _, err := w.RollKey(ctx, by, ws.ID, key.ID, 0, time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := w.RevokeKey(ctx, by, ws.ID, key.ID, 0); err != nil {
		t.Fatal(err)
	}
	if err := again(fifth)(); !errors.Is(err, ErrConflict) {
		t.Errorf("a former text of a revoked key: %v", err)
	}
	if err := v.Await(ctx, func() bool { _, there := v.Key(ws.ID, key.ID); return !there }); err != nil {
		t.Fatal(err)
	}
	checkUnauthenticated(t, authenticate(v, fifth), "revoked")

	if diff := cmp.Diff([]string{
		"api_key.created", "api_key.revoked",
		"api_key.rolled", "api_key.rolled", "api_key.rolled", "api_key.rolled", "api_key.rolled",
		"api_key.updated", "api_key.updated", "workspace.created",
	}, checkTopics(t, c)); diff != "" {
		t.Error(diff)
	}
	for _, topic := range []string{schemas.TopicConfig, schemas.TopicEvents} {
		for _, r := range committed(t, c, topic) {
			for _, secret := range []string{first, second, third, fourth, fifth} {
				if strings.Contains(string(r.Value), secret[len(secretPrefix):]) {
					t.Errorf("the text of a key is on %s", topic)
				}
			}
		}
	}
}
