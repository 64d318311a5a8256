package e2e

import (
	"testing"
	"time"

	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
	"getimmutable.dev/immutable/internal/kafka/realkafka"
	"getimmutable.dev/immutable/internal/loadgen"
)

// TestStall kills the only processor under load and starts the next at once, with and without --instance, and logs how long
// sealing stands still: the figures of docs/operations.md. Without, the group waits for the dead member's session, and readers
// for the broker to abort its transaction.
func TestStall(t *testing.T) {
	long(t)
	t.Parallel()
	brokers := realkafka.Start(t, realkafka.Config{})
	for name, flags := range map[string][]string{"without --instance": nil, "with --instance=0": {"--instance=0"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // mostly it waits for sessions to end
			s := newServices(t, brokers.EmptyInstallation(), clickhousetest.StartEmpty(t).DSN())
			g := newSealGroup(t, s)
			p := s.service("processor", flags)
			s.ready(t, p)
			l := s.startLoad(t, loadgen.Config{Seed: 701, KeyedPercent: 100},
				loadgen.ClientConfig{EventsPerRequest: 5, EventsPerSecond: 500}, 100_000_000)
			for range inSoak(3, 1) {
				g.advances(t, 500)
				p.killGroup(t)
				began := time.Now()
				p = s.service("processor", flags)
				g.advances(t, 1)
				t.Logf("every partition is sealed further %s after kill -9", time.Since(began).Round(100*time.Millisecond))
			}
			l.quit(t)
			t.Logf("check: %s", s.check(t, 500))
			for _, p := range []*process{p, s.ingest.Load(), s.query.Load(), s.sinks} {
				p.stop(t)
			}
		})
	}
}
