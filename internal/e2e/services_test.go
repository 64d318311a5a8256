package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/internal/kafka/realkafka"
	"getimmutable.dev/immutable/internal/loadgen"
	"getimmutable.dev/immutable/schemas"
)

// services is the production shape: each service a process of its own, against engines that outlive them.
type services struct {
	*stack
	e         engines
	layout    schemas.TopicLayout
	masterKey string
	// ingest and query are looked up while the test replaces them.
	ingest, query atomic.Pointer[process]
	sinks         *process
}

// newServices sets an installation up, on an empty Kafka and an empty ClickHouse, with the commands that an operator would
// use, and starts one ingest, one query and one sinks. There is no processor yet.
func newServices(t *testing.T, cluster *kafkatest.Cluster, dsn string) *services {
	t.Helper()
	e := engines{brokers: cluster.Config.Brokers, prefix: cluster.Config.TopicPrefix, dsn: dsn}
	s := &services{e: e, layout: cluster.Layout, masterKey: filepath.Join(t.TempDir(), "master.key")}
	s.stack = newStack(t, func(host string) (string, error) {
		if host == ingestHost {
			return s.ingest.Load().address("serving")
		}
		return s.query.Load().address("serving")
	}, func() (engines, error) { return e, nil })
	if _, err := control.CreateMasterKey(s.masterKey); err != nil {
		t.Fatal(err)
	}
	s.cli(t, "topics", "create", s.kafkaFlags(), s.layoutFlags())
	s.cli(t, "migrate", s.tableFlags())
	s.cli(t, "workspaces", "create", "default", s.target())
	s.cli(t, "keys", "create", "--name=e2e", "--secret="+s.key, s.target())
	s.ingest.Store(s.startIngest())
	s.query.Store(s.service("query", "--addr=127.0.0.1:0", s.keyFlags(), s.tableFlags()))
	s.sinks = s.startSinks()
	for _, p := range []*process{s.ingest.Load(), s.query.Load(), s.sinks} {
		s.ready(t, p)
	}
	return s
}

func (s *services) kafkaFlags() []string {
	return []string{"--kafka=" + strings.Join(s.e.brokers, ","), "--topic-prefix=" + s.e.prefix}
}

func (s *services) keyFlags() []string   { return []string{"--master-key-file=" + s.masterKey} }
func (s *services) tableFlags() []string { return []string{"--clickhouse=" + s.e.dsn} }

// target is what commands that look at or change the installation take.
func (s *services) target() []string { return append(s.kafkaFlags(), s.keyFlags()...) }

func (s *services) layoutFlags() []string {
	flags := []string{fmt.Sprint("--partitions=", s.layout.Partitions)}
	if s.layout.Replicas == 1 {
		return append(flags, "--allow-single-replica")
	}
	return append(flags, fmt.Sprint("--replicas=", s.layout.Replicas))
}

// startIngest starts an ingest that crashes at a place, or nowhere.
func (s *services) startIngest(crashAt ...string) *process {
	return s.crashingService(crashAt, "ingest", "--addr=127.0.0.1:0", s.keyFlags())
}

// startSinks starts a sinks that crashes at a place, or nowhere. Its name lets the next one have its partitions at once.
func (s *services) startSinks(crashAt ...string) *process {
	return s.crashingService(crashAt, "sinks", "--instance=0", s.tableFlags())
}

// service starts a subcommand that runs until it is stopped.
func (s *services) service(name string, args ...any) *process {
	return s.crashingService(nil, name, args...)
}

func (s *services) crashingService(crashAt []string, name string, args ...any) *process {
	s.t.Helper()
	if len(crashAt) == 0 {
		return s.run(immutable(s.t), nil, name, args...)
	}
	return s.run(crashing(s.t), []string{"IMMUTABLE_CRASH_AT=" + crashAt[0]}, name, args...)
}

// run starts a subcommand of a binary.
func (s *services) run(binary string, env []string, name string, args ...any) *process {
	s.t.Helper()
	all := append([]any{name, "--internal-addr=127.0.0.1:0", s.kafkaFlags(), s.layoutFlags()}, args...)
	return start(s.t, name, env, binary, flattenArgs(all)...)
}

// ready waits until a service says that it is.
func (s *services) ready(t *testing.T, p *process) {
	t.Helper()
	eventually(t, startLimit, func() error {
		if !p.running() {
			t.Fatalf("%s has ended:\n%s", p.name, p.tail(40))
		}
		addr, err := p.address("serving health, metrics and profiles")
		if err != nil {
			return err
		}
		resp, err := http.Get("http://" + addr + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: readyz: %s", p.name, resp.Status)
		}
		return nil
	})
}

// address returns where a service listens, from the line of its log with this message.
func (p *process) address(message string) (string, error) {
	if p == nil {
		return "", errors.New("not started yet")
	}
	b, err := os.ReadFile(p.log)
	if err != nil {
		return "", err
	}
	for line := range bytes.Lines(b) {
		var entry struct{ Msg, Address string }
		if json.Unmarshal(line, &entry) == nil && entry.Msg == message && entry.Address != "" {
			return entry.Address, nil
		}
	}
	return "", fmt.Errorf("%s does not listen yet", p.name)
}

// TestServices runs every service as a process of its own, on the embedded Kafka and on a real one.
func TestServices(t *testing.T) {
	long(t)
	t.Parallel()
	for _, tc := range []struct {
		name  string
		kafka func(*testing.T) *kafkatest.Cluster
	}{
		{"embedded kafka", func(t *testing.T) *kafkatest.Cluster {
			t.Helper()
			return kafkatest.StartEmpty(t)
		}},
		{"apache kafka", func(t *testing.T) *kafkatest.Cluster {
			t.Helper()
			return realkafka.Start(t, realkafka.Config{}).EmptyInstallation()
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel() // mostly it waits for sessions to end
			s := newServices(t, tc.kafka(t), clickhousetest.StartEmpty(t).DSN())
			t.Run("revoked key", func(t *testing.T) { revokedKey(t, s.stack, s.target()...) })
			t.Run("readable", func(t *testing.T) { readable(t, s) })
			t.Run("processors", func(t *testing.T) { processors(t, s) })
			t.Run("crash points", func(t *testing.T) { serviceCrashes(t, s) })
			for _, p := range []*process{s.ingest.Load(), s.query.Load(), s.sinks} {
				p.stop(t)
			}
		})
	}
}

// serviceCrashes kills the service that has each crash point, while the broker and the others go on.
func serviceCrashes(t *testing.T, s *services) {
	t.Helper()
	startProcessor := func(crashAt ...string) *process {
		return s.crashingService(crashAt, "processor", "--instance=0")
	}
	folder := t.TempDir()
	s.cli(t, "notary-key", "create", "--file="+filepath.Join(folder, "key"))
	startNotary := func(crashAt ...string) *process {
		return s.crashingService(crashAt, "notary", "--instance=0", "--epoch-interval=100ms",
			"--key-file="+filepath.Join(folder, "key"), "--lock-file="+filepath.Join(folder, "lock"))
	}
	processor, notary := startProcessor(), startNotary()
	s.poison(t)
	l := s.startLoad(t, loadgen.Config{Seed: 401, KeyedPercent: 100},
		loadgen.ClientConfig{EventsPerRequest: 5, EventsPerSecond: 500}, 100_000_000)
	for _, point := range crashPoints {
		var p *process
		at := fmt.Sprint(point.name, ":", point.hits[1])
		switch service, _, _ := strings.Cut(point.name, "-"); service {
		case "ingest":
			s.ingest.Load().killGroup(t)
			p = s.startIngest(at)
			s.ingest.Store(p)
		case "seal":
			processor.killGroup(t)
			p = startProcessor(at)
		case "notary":
			notary.killGroup(t)
			p = startNotary(at)
		case "chwriter":
			s.sinks.killGroup(t)
			p = s.startSinks(at)
		}
		if state := p.wait(t, time.Minute); !killedBy(state, syscall.SIGKILL) {
			t.Fatalf("%s: ended with %v:\n%s", at, state, p.tail(40))
		}
		switch p.name {
		case "ingest":
			s.ingest.Store(s.startIngest())
		case "processor":
			processor = startProcessor()
		case "notary":
			notary = startNotary()
		case "sinks":
			s.sinks = s.startSinks()
		}
		l.acknowledges(t, 100)
	}
	l.quit(t)
	r := s.check(t, 700)
	if r.Checkpoints == 0 || r.Dead != int(s.layout.Partitions) {
		t.Errorf("%s: want checkpoints, and one dead record of each of %d partitions", r, s.layout.Partitions)
	}
	s.audited(t).tables(t, r.Leaves)
	t.Logf("check: %s; %+v", r, l.Stats())
	notary.stop(t)
	processor.stop(t)
}

// poison writes a record that no processor can read into each partition of the events topic.
func (s *services) poison(t *testing.T) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(s.e.brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for p := range s.layout.Partitions {
		r := &kgo.Record{Topic: s.e.prefix + schemas.TopicEvents, Partition: p, Value: []byte("poison")}
		if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}
