package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/internal/loadgen"
)

// TestRebuildClickHouse loses ClickHouse and rebuilds it from the ledger, as docs/operations.md says.
func TestRebuildClickHouse(t *testing.T) {
	long(t)
	s := newServices(t, kafkatest.StartEmpty(t), clickhousetest.StartEmpty(t).DSN())
	p := s.service("processor", "--instance=0")
	s.ready(t, p)
	l := s.startLoad(t, loadgen.Config{Seed: 801, KeyedPercent: 50}, loadgen.ClientConfig{EventsPerRequest: 50}, 2_000)
	l.finish(t)
	s.check(t, 2_000)
	s.sinks.stop(t)

	conn := s.clickhouse(t)
	defer conn.Close()
	database := s.e.dsn[strings.LastIndex(s.e.dsn, "/")+1:]
	if err := conn.Exec(t.Context(), "DROP DATABASE "+database+" SYNC"); err != nil {
		t.Fatal(err)
	}
	s.cli(t, "migrate", s.tableFlags())
	args := flattenArgs([]any{"check", s.target(), s.layoutFlags(), s.tableFlags()})
	out, err := exec.CommandContext(t.Context(), immutable(t), args...).Output()
	if err == nil || !strings.Contains(string(out), "ClickHouse lacks rows from offset 0 on") {
		t.Errorf("check of empty tables: %v\n%s", err, out)
	}
	s.sinks = s.startSinks()
	logs(t, s.sinks, "partition halted", "leaves lacks offset", "immutable rebuild")
	s.sinks.stop(t)
	stopped := time.Now()
	s.cli(t, "rebuild", s.kafkaFlags())
	t.Logf("the group was free after %s", time.Since(stopped).Round(time.Second))
	s.sinks = s.startSinks()
	s.ready(t, s.sinks)
	t.Logf("check: %s", s.check(t, 2_000))
	s.cli(t, "check", s.target(), s.layoutFlags(), s.tableFlags())
	for _, p := range []*process{p, s.ingest.Load(), s.query.Load(), s.sinks} {
		p.stop(t)
	}
}

// TestRebuildUp is the same under `up`, whose Kafka runs only while it does.
func TestRebuildUp(t *testing.T) {
	long(t)
	s := up(t)
	l := s.startLoad(t, loadgen.Config{Seed: 802, KeyedPercent: 50}, loadgen.ClientConfig{EventsPerRequest: 50}, 1_000)
	l.finish(t)
	s.check(t, 1_000)
	s.stop(t)
	if err := os.RemoveAll(filepath.Join(s.data, "clickhouse")); err != nil {
		t.Fatal(err)
	}
	s.start()
	logs(t, s.process, "partition halted", "leaves lacks offset", "immutable rebuild")
	s.stop(t)
	s.cli(t, "rebuild", "--data="+s.data)
	s.start()
	s.ready(t)
	s.check(t, 1_000)
	s.stop(t)
}

// logs waits for a line of a process's log that has each text.
func logs(t *testing.T, p *process, texts ...string) {
	t.Helper()
	eventually(t, startLimit, func() error {
		b, err := os.ReadFile(p.log)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			if !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) }) {
				return nil
			}
		}
		return fmt.Errorf("%s has not logged %q", p.name, texts)
	})
}
