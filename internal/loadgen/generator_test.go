package loadgen

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/gowebpki/jcs"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func newGenerator(tb testing.TB, cfg Config) *Generator {
	tb.Helper()
	g, err := New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return g
}

func TestEventsAreCanonicalAndReproducible(t *testing.T) {
	cfg := Config{Seed: 7, KeyedPercent: 30, PastPercent: 20, Now: now}
	g, again := newGenerator(t, cfg), newGenerator(t, cfg)
	const events = 5_000
	var size, keyed, past int
	actions, keys := map[string]int{}, map[string]bool{}
	for range events {
		body, hasKey := g.Append(nil)
		if other, _ := again.Append([]byte("x")); string(other) != "x"+string(body) {
			t.Fatalf("the same seed made %s and %s", body, other)
		}
		canonical, err := jcs.Transform(body)
		if err != nil {
			t.Fatalf("%v: %s", err, body)
		}
		if !bytes.Equal(canonical, body) {
			t.Fatalf("not canonical:\n%s\n%s", body, canonical)
		}
		var ev struct {
			Action         string     `json:"action"`
			IdempotencyKey string     `json:"idempotency_key"`
			OccurredAt     *time.Time `json:"occurred_at"`
		}
		if err := json.Unmarshal(body, &ev); err != nil {
			t.Fatal(err)
		}
		size += len(body)
		actions[ev.Action]++
		if hasKey != (ev.IdempotencyKey != "") || keys[ev.IdempotencyKey] {
			t.Fatalf("keyed %v, key %q used before: %v", hasKey, ev.IdempotencyKey, keys[ev.IdempotencyKey])
		}
		if hasKey {
			keyed++
			keys[ev.IdempotencyKey] = true
		}
		if ev.OccurredAt != nil {
			past++
			if ago := now.Sub(*ev.OccurredAt); ago < 0 || ago > 30*24*time.Hour {
				t.Fatalf("occurred %v ago", ago)
			}
		}
	}
	if mean := size / events; mean < 380 || mean > 520 {
		t.Errorf("events are %d bytes on average, want about 450", mean)
	}
	if keyed < events*25/100 || keyed > events*35/100 || past < events*15/100 || past > events*25/100 {
		t.Errorf("%d keyed and %d past of %d, want 30 and 20 percent", keyed, past, events)
	}
	if len(actions) < 10 {
		t.Errorf("only the actions %v", actions)
	}
}

func TestShares(t *testing.T) {
	for _, tc := range []struct {
		name string
		cfg  Config
		want bool
	}{
		{"all keyed", Config{KeyedPercent: 100}, true},
		{"none keyed", Config{}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newGenerator(t, tc.cfg)
			for range 1_000 {
				if body, keyed := g.Append(nil); keyed != tc.want {
					t.Fatalf("keyed is %v: %s", keyed, body)
				}
			}
		})
	}
}

func TestConfigIsValidated(t *testing.T) {
	for name, cfg := range map[string]Config{
		"share above 100":     {KeyedPercent: 101},
		"negative share":      {PastPercent: -1},
		"past without a time": {PastPercent: 1},
		"negative count":      {Actors: -1},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	g := newGenerator(b, Config{Seed: 1, KeyedPercent: 30, PastPercent: 20, Now: now})
	buf := make([]byte, 0, 1<<10)
	var total int
	b.ReportAllocs()
	for b.Loop() {
		body, _ := g.Append(buf)
		total += len(body)
	}
	b.ReportMetric(float64(total)/float64(b.N), "B/event")
}
