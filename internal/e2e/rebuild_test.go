package e2e

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/internal/loadgen"
	"getimmutable.dev/immutable/schemas"
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
	// What kafka-consumer-groups.sh --delete does. A member with a name is one until its session ends.
	cl, err := kgo.NewClient(kgo.SeedBrokers(s.e.brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	stopped := time.Now()
	eventually(t, 2*time.Minute, func() error {
		_, err := kadm.NewClient(cl).DeleteGroup(t.Context(), s.e.prefix+schemas.GroupClickHouse)
		return err
	})
	t.Logf("the group could be deleted after %s", time.Since(stopped).Round(time.Second))
	s.sinks = s.startSinks()
	s.ready(t, s.sinks)
	t.Logf("check: %s", s.check(t, 2_000))
	s.cli(t, "check", s.target(), s.layoutFlags(), s.tableFlags())
	for _, p := range []*process{p, s.ingest.Load(), s.query.Load(), s.sinks} {
		p.stop(t)
	}
}
