package e2e

import (
	"testing"
	"time"

	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
	"getimmutable.dev/immutable/internal/kafka/realkafka"
	"getimmutable.dev/immutable/internal/loadgen"
)

// TestBrokers loses one broker of three after another under load, two to kill -9 and one that freezes. Nothing that was
// acknowledged is lost or there twice, and every request is answered in time: while no leader takes its events, with 503.
func TestBrokers(t *testing.T) {
	long(t)
	brokers := realkafka.Start(t, realkafka.Config{Brokers: 3})
	s := newServices(t, brokers.EmptyInstallation(), clickhousetest.StartEmpty(t).DSN())
	first, second := s.service("processor"), s.service("processor")
	s.ready(t, first)
	s.ready(t, second)
	const answered = 5 * time.Second // ingest itself takes at most half of it
	l := s.startLoad(t, loadgen.Config{Seed: 601, KeyedPercent: 100},
		loadgen.ClientConfig{EventsPerRequest: 5, EventsPerSecond: 300, RequestTimeout: answered}, 100_000_000)
	restart := func(id int) { brokers.Restart(t, id) }
	for i, fault := range []struct{ begin, end func(id int) }{
		{brokers.Kill, restart},
		{brokers.Kill, restart},
		{func(id int) { brokers.Pause(t, id) }, func(id int) { brokers.Resume(t, id) }},
	} {
		id := i + 1
		l.acknowledges(t, 200)
		began := time.Now()
		fault.begin(id)
		l.acknowledges(t, 200)
		t.Logf("broker %d: 200 events acknowledged %s after its end", id, time.Since(began).Round(10*time.Millisecond))
		l.acknowledges(t, 500)
		fault.end(id)
	}
	if stats := l.Stats(); stats.Failed > 0 { // before the load's own end cuts some short
		t.Errorf("requests without an answer within %s: %+v", answered, stats)
	}
	l.quit(t)
	t.Logf("check: %s; %+v", s.check(t, 2_000), l.Stats())
	for _, p := range []*process{first, second, s.ingest.Load(), s.query.Load(), s.sinks} {
		p.stop(t)
	}
}
