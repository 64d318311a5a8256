package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"getimmutable.dev/immutable/internal/loadgen"
)

// TestVolume counts generated events in ClickHouse, and prints the rate and the memory. There are 20,000 of them,
// a million in a soak, or IMMUTABLE_SOAK_EVENTS.
func TestVolume(t *testing.T) {
	long(t)
	events := int(envUint(t, "IMMUTABLE_SOAK_EVENTS", inSoak(1_000_000, 20_000)))
	s := up(t)
	t.Logf("resident memory of immutable, idle: %s", s.process.resident(t))
	// All with keys, as our clients send them: a request that a busy machine answers with 503 is sent again.
	config := loadgen.Config{Seed: 1, KeyedPercent: 100, PastPercent: 20, Now: time.Now().UTC().Truncate(time.Microsecond)}
	began := time.Now()
	l := s.startLoad(t, config, loadgen.ClientConfig{Format: loadgen.NDJSON, EventsPerRequest: 500, Concurrency: 4}, events)
	for tenth := range int64(10) {
		eventually(t, time.Hour, func() error {
			if n := l.Stats().Acknowledged(); n < int64(events)*(tenth+1)/10 {
				return fmt.Errorf("%d of %d events accepted", n, events)
			}
			return nil
		})
		t.Logf("%3d %% accepted after %v, resident memory %s", 10*(tenth+1), time.Since(began).Round(time.Millisecond),
			s.process.resident(t))
	}
	l.finish(t)
	accepted := time.Since(began)
	t.Logf("client: %+v", l.Stats())
	conn := s.clickhouse(t)
	defer conn.Close()
	eventually(t, time.Hour, func() error {
		var count uint64
		if err := conn.QueryRow(t.Context(), "SELECT count() FROM events WHERE resource_id != ''").Scan(&count); err != nil {
			return err
		}
		if count < uint64(events) {
			return fmt.Errorf("%d of %d events in clickhouse", count, events)
		}
		return nil
	})
	stored := time.Since(began)
	t.Logf("%d events accepted in %v (%.0f/s), all in clickhouse after %v (%.0f/s)", events,
		accepted.Round(time.Millisecond), float64(events)/accepted.Seconds(),
		stored.Round(time.Millisecond), float64(events)/stored.Seconds())
	t.Logf("check: %s", s.check(t, events))
	t.Logf("resident memory after the check: %s", s.process.resident(t))
}

// resident returns the process's own resident memory as the kernel writes it, without its children's.
func (p *process) resident(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	line, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(line)
}
