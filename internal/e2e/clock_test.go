package e2e

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
	"getimmutable.dev/immutable/internal/kafka/realkafka"
	"getimmutable.dev/immutable/internal/loadgen"
)

// TestClock moves the wall clock of ingest under load, an hour ahead, an hour behind and back, while it runs and before it
// starts, and once while Kafka is away. Events are accepted or refused, each in time, and none that was accepted is lost or
// there twice.
func TestClock(t *testing.T) { //nolint:tparallel // one step follows the other
	long(t)
	t.Parallel()
	broker := realkafka.Start(t, realkafka.Config{Proxied: true})
	s := newServices(t, broker.EmptyInstallation(), clickhousetest.StartEmpty(t).DSN())
	processor := s.service("processor")
	s.ready(t, processor)
	clock := newClock(t)
	restart := func() {
		s.ingest.Load().stop(t)
		s.ingest.Store(s.run(movable(t), []string{"IMMUTABLE_TEST_CLOCK=" + clock.Name()}, "ingest", "--addr=127.0.0.1:0", s.keyFlags()))
		s.ready(t, s.ingest.Load())
	}
	restart()
	sent := make(map[string]time.Duration)
	// post sends an event that occurred now, and then again to an ingest that does not know it.
	post := func(t *testing.T, ahead time.Duration) {
		t.Helper()
		event := fmt.Appendf(nil, `{"actor_id":"e2e","action":"clock.moved","occurred_at":%q,"idempotency_key":"clock-%d"}`,
			time.Now().UTC().Format(time.RFC3339Nano), len(sent))
		id := s.post(t, event)
		restart()
		if again := s.post(t, event); again != id {
			t.Errorf("the retry of %s is %s", id, again)
		}
		sent[id] = ahead
	}
	startLoad := func(seed uint64) *load {
		return s.startLoad(t, loadgen.Config{Seed: seed, KeyedPercent: 50},
			loadgen.ClientConfig{EventsPerRequest: 1, EventsPerSecond: 300, RequestTimeout: answered}, 100_000_000)
	}
	for i, step := range []struct {
		name  string
		ahead time.Duration
		away  bool
	}{
		{"an hour ahead", time.Hour, false},
		{"an hour behind", -time.Hour, false},
		{"right again", 0, false},
		{"an hour behind while kafka is away", -time.Hour, true},
		{"right again while kafka is away", 0, true},
	} {
		t.Run(step.name, func(t *testing.T) {
			l := startLoad(uint64(901 + i))
			l.acknowledges(t, 200)
			if step.away {
				broker.Cut(1) // not stopped: docs/operations.md, Stopping Kafka
				from := l.Stats().Unavailable
				eventually(t, answered, func() error {
					if l.Stats().Unavailable == from {
						return fmt.Errorf("no request was answered 503: %+v", l.Stats())
					}
					return nil
				})
			}
			clock.set(t, step.ahead)
			if step.away {
				broker.Mend(t, 1)
			}
			began := time.Now()
			l.acknowledges(t, 100)
			t.Logf("100 events acknowledged %s later, %d requests were answered 503", time.Since(began).Round(10*time.Millisecond), l.Stats().Unavailable)
			from := l.Stats().Unavailable
			l.acknowledges(t, 500)
			if more := l.Stats().Unavailable - from; more > 0 {
				t.Errorf("%d requests more were answered 503", more)
			}
			if stats := l.Stats(); stats.Failed > 0 { // before the load's own end cuts some short
				t.Errorf("requests without an answer within %s: %+v", answered, stats)
			}
			l.quit(t)
			post(t, step.ahead)
		})
	}
	r := s.check(t, 3_000)
	if r.Duplicates < len(sent) {
		t.Errorf("%s: want each of %d retries among the duplicates", r, len(sent))
	}
	t.Logf("check: %s", r)
	var got struct {
		Data []struct {
			ID         string    `json:"id"`
			OccurredAt time.Time `json:"occurred_at"`
			CreatedAt  time.Time `json:"created_at"` // when ingest accepted it
		} `json:"data"`
	}
	s.get(t, "/events", url.Values{"action": {"clock.moved"}}, &got)
	if len(got.Data) != len(sent) {
		t.Errorf("the timeline has %d events, want %d", len(got.Data), len(sent))
	}
	for _, event := range got.Data {
		ahead, ok := sent[event.ID]
		if recorded := event.CreatedAt.Sub(event.OccurredAt); !ok || recorded < ahead || recorded > ahead+startLimit {
			t.Errorf("event %s was recorded %s after it occurred, want %s: %v", event.ID, recorded, ahead, ok)
		}
	}
	for _, p := range []*process{processor, s.ingest.Load(), s.query.Load(), s.sinks} {
		p.stop(t)
	}
}

// clock is a file that says how far a process's wall clock is ahead.
type clock struct{ *os.File }

func newClock(t *testing.T) clock {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "clock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	c := clock{f}
	c.set(t, 0)
	return c
}

func (c clock) set(t *testing.T, ahead time.Duration) {
	t.Helper()
	if _, err := c.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(ahead/time.Second)), 0); err != nil {
		t.Fatal(err)
	}
}

// movable returns the path of a binary whose wall clock IMMUTABLE_TEST_CLOCK can move: the standard library is overlaid.
// Monotonic readings, and with them timers, go on as they are, as when an operator sets a machine's clock.
func movable(t *testing.T) string {
	t.Helper()
	return built(t, movableBinary)
}

func buildMovable() (string, error) {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOROOT: %w", err)
	}
	library := filepath.Join(strings.TrimSpace(string(out)), "src", "time")
	source, err := os.ReadFile(filepath.Join(library, "time.go"))
	if err != nil {
		return "", err
	}
	const reads = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	if strings.Count(string(source), reads) != 1 {
		return "", fmt.Errorf("this Go's time.Now is another: %s does not contain %q", library, reads)
	}
	changed := filepath.Join(binaryDir, "time.go")
	if err := os.WriteFile(changed, []byte(strings.Replace(string(source), reads, reads+"\tsec += moved.Load()\n", 1)), 0o600); err != nil {
		return "", err
	}
	added, err := filepath.Abs("testdata/moved.go")
	if err != nil {
		return "", err
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {
		filepath.Join(library, "time.go"): changed, filepath.Join(library, "moved.go"): added,
	}})
	if err != nil {
		return "", err
	}
	path := filepath.Join(binaryDir, "overlay.json")
	if err := os.WriteFile(path, overlay, 0o600); err != nil {
		return "", err
	}
	return goBuild("immutable-movable", "-overlay="+path)
}
