package e2e

import (
	"slices"
	"testing"
	"time"

	"getimmutable.dev/immutable/internal/loadgen"
)

// readable measures how long it takes from the 202 of an event until it can be read, and from before it was sent, while
// others come at half of the rate at which these cores take them; that each can be read at all is the test.
func readable(t *testing.T, s *services) {
	t.Helper()
	processor := s.service("processor", "--instance=0")
	s.ready(t, processor)
	l := s.startLoad(t, loadgen.Config{Seed: 801, KeyedPercent: 100},
		loadgen.ClientConfig{Format: loadgen.NDJSON, EventsPerRequest: 100, EventsPerSecond: int(inSoak(5_000, 500))}, 100_000_000)
	l.acknowledges(t, 500)
	began, before := time.Now(), l.Stats().Acknowledged()
	var sent, accepted []time.Duration
	for range inSoak(500, 10) {
		begun := time.Now()
		id := s.post(t, []byte(`{"actor_id":"a","action":"readable.measured"}`))
		answered := time.Now()
		eventually(t, time.Minute, func() error { return s.tryGet(t.Context(), "/events/"+id, nil, new(any)) })
		sent, accepted = append(sent, time.Since(begun)), append(accepted, time.Since(answered))
	}
	rate := float64(l.Stats().Acknowledged()-before) / time.Since(began).Seconds()
	l.quit(t)
	slices.Sort(sent)
	slices.Sort(accepted)
	n := len(sent)
	t.Logf("%d events, %.0f others a second: readable after the 202 in %s (p50), %s (p99); after it was sent in %s, %s",
		n, rate, accepted[n/2], accepted[n*99/100], sent[n/2], sent[n*99/100])
	processor.stop(t)
}
