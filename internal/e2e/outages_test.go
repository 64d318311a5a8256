package e2e

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"getimmutable.dev/immutable/internal/chdb"
	"getimmutable.dev/immutable/internal/kafka/realkafka"
	"getimmutable.dev/immutable/internal/loadgen"
)

const (
	// outage is longer than any time-out of ours.
	outage = time.Minute
	// answered is how long a request may take, whatever is away.
	answered = 10 * time.Second
	// recovery is for a busy machine; the log says what it was.
	recovery = 90 * time.Second
)

// TestOutages takes one engine after the other away from a production installation under load: killed, frozen for a
// minute, on a full disk, out of reach for a minute. Events are accepted or refused, each in time, and none that was accepted
// is lost or there twice.
func TestOutages(t *testing.T) { //nolint:tparallel // one fault follows the other
	long(t)
	disk := smallDisk(t)
	t.Parallel() // mostly it waits
	broker := realkafka.Start(t, realkafka.Config{Proxied: true})
	tables := startTables(t, filepath.Join(disk, "data"))
	s := newServices(t, broker.EmptyInstallation(), tables.DSN())
	first, second := s.service("processor"), s.service("processor")
	s.ready(t, first)
	s.ready(t, second)
	l := s.startLoad(t, loadgen.Config{Seed: 701, KeyedPercent: 100},
		loadgen.ClientConfig{EventsPerRequest: 5, EventsPerSecond: 200, RequestTimeout: answered}, 100_000_000)

	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("check:\n%s", s.diagnosis(t))
		}
	})

	t.Run("clickhouse killed", func(t *testing.T) {
		l.acknowledges(t, 200)
		tables.kill(t)
		s.readsRefused(t)
		l.acknowledges(t, 500)
		tables.restart(t)
		s.readableAgain(t)
	})
	t.Run("clickhouse frozen for a minute", func(t *testing.T) {
		tables.signal(t, syscall.SIGSTOP)
		s.readsRefused(t)
		acceptedFor(t, l, outage)
		tables.signal(t, syscall.SIGCONT)
		s.readableAgain(t)
	})
	t.Run("clickhouse on a full disk", func(t *testing.T) {
		filler := filepath.Join(disk, "filler")
		t.Cleanup(func() { _ = os.Remove(filler) }) // where the test failed before it did
		eventually(t, recovery, func() error {
			fill(t, filler, spared)
			return s.sinks.logged("Cannot reserve")
		})
		l.acknowledges(t, 500)
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		s.readableAgain(t)
	})
	t.Run("kafka out of reach for a minute", func(t *testing.T) { // not stopped: docs/operations.md, Stopping Kafka
		broker.Cut(1)
		refusedFor(t, s, l, outage)
		broker.Mend(t, 1)
		l.acknowledges(t, 500)
		s.readableAgain(t)
	})
	if stats := l.Stats(); stats.Failed > 0 { // before the load's own end cuts some short
		t.Errorf("requests without an answer within %s: %+v", answered, stats)
	}
	l.quit(t)
	t.Logf("check: %s; %+v", s.check(t, 2_000), l.Stats())
	for _, p := range []*process{first, second, s.ingest.Load(), s.query.Load(), s.sinks} {
		p.stop(t)
	}
}

// acceptedFor fails the test if the load comes to a halt within d.
func acceptedFor(t *testing.T, l *load, d time.Duration) {
	t.Helper()
	refused := l.Stats().Unavailable
	for end := time.Now().Add(d); time.Now().Before(end); {
		l.acknowledges(t, 200)
	}
	if more := l.Stats().Unavailable - refused; more > 0 {
		t.Errorf("%d requests were answered 503", more)
	}
}

// refusedFor fails the test if an event is accepted in the latter part of d, if no request is answered 503, or if what is
// stored cannot be read.
func refusedFor(t *testing.T, s *services, l *load, d time.Duration) {
	t.Helper()
	end := time.Now().Add(d)
	from := l.Stats()
	eventually(t, answered, func() error {
		if l.Stats().Unavailable == from.Unavailable {
			return errors.New("no request was answered 503")
		}
		return nil
	})
	from = l.Stats()
	eventually(t, 2*d, func() error {
		if err := s.tryGet(t.Context(), "/events", nil, new(page)); err != nil {
			t.Fatalf("reading without Kafka: %v", err)
		}
		if left := time.Until(end); left > 0 {
			return fmt.Errorf("%s left", left)
		}
		return nil
	})
	if now := l.Stats(); now.Acknowledged() > from.Acknowledged() || now.Unavailable == from.Unavailable {
		t.Errorf("events were accepted without Kafka: %+v, then %+v", from, now)
	}
}

// readsRefused waits until reads are answered 503 with Retry-After, each in time.
func (s *services) readsRefused(t *testing.T) {
	t.Helper()
	eventually(t, recovery, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), answered)
		defer cancel()
		status, header, body, err := s.do(ctx, http.MethodGet, readURL+"/events", nil, nil)
		if err != nil {
			t.Fatalf("a read without ClickHouse: %v", err)
		}
		if status != http.StatusServiceUnavailable || header.Get("Retry-After") == "" {
			return fmt.Errorf("%d %v %s", status, header, body)
		}
		return nil
	})
}

// readableAgain posts an event, once one is accepted, and waits until it can be read, and so all that was sealed before
// it in its partition.
func (s *services) readableAgain(t *testing.T) {
	t.Helper()
	began := time.Now()
	id := s.post(t, []byte(`{"actor_id":"e2e","action":"outage.ended","resource":"service","resource_id":"api-gateway"}`))
	eventually(t, recovery, func() error { return s.tryGet(t.Context(), "/events/"+id, nil, new(map[string]any)) })
	t.Logf("readable after %s", time.Since(began).Round(10*time.Millisecond))
}

// logged returns nil once the process has logged a line with any of texts.
func (p *process) logged(texts ...string) error {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err
	}
	for _, text := range texts {
		if strings.Contains(string(b), text) {
			return nil
		}
	}
	return fmt.Errorf("%s has not logged %q:\n%s", p.name, texts, p.tail(5))
}

// tables is a ClickHouse of a test's own, at an address that stays.
type tables struct {
	*chdb.Server
	cfg chdb.Config
}

func startTables(t *testing.T, dir string) *tables {
	t.Helper()
	s := &tables{cfg: chdb.Config{Library: library(t), Dir: dir, Password: "outages"}}
	s.restart(t)
	for addr, port := range map[string]*int{s.HTTPAddr(): &s.cfg.HTTPPort, s.NativeAddr(): &s.cfg.NativePort} {
		if _, err := fmt.Sscanf(addr, "127.0.0.1:%d", port); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { s.kill(t) })
	return s
}

func (s *tables) restart(t *testing.T) {
	t.Helper()
	var err error
	if s.Server, err = chdb.Start(t.Context(), s.cfg, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
}

func (s *tables) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(s.PID(), sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Fatal(err)
	}
}

func (s *tables) kill(t *testing.T) {
	t.Helper()
	s.signal(t, syscall.SIGKILL)
	<-s.Done()
}
