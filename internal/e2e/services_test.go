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
	"testing"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
)

// services is the production shape: each service a process of its own, against engines that outlive them.
type services struct {
	*stack
	e                    engines
	partitions           int32
	masterKey            string
	ingest, query, sinks *process
}

// embeddedEngines are a broker inside the test process, and an embedded ClickHouse. Nothing that uses services knows.
func embeddedEngines(t *testing.T) (e engines, partitions int32) {
	t.Helper()
	cluster := kafkatest.StartEmpty(t)
	return engines{
		brokers: cluster.Config.Brokers, prefix: cluster.Config.TopicPrefix, dsn: clickhousetest.StartEmpty(t).DSN(),
	}, cluster.Layout.Partitions
}

// newServices sets an installation up with the commands that an operator would use, and starts one ingest, one query and
// one sinks. There is no processor yet.
func newServices(t *testing.T, e engines, partitions int32) *services {
	t.Helper()
	s := &services{e: e, partitions: partitions, masterKey: filepath.Join(t.TempDir(), "master.key")}
	s.stack = newStack(t, func(host string) (string, error) {
		if host == ingestHost {
			return s.ingest.address("serving")
		}
		return s.query.address("serving")
	}, func() (engines, error) { return e, nil })
	if _, err := control.CreateMasterKey(s.masterKey); err != nil {
		t.Fatal(err)
	}
	s.cli(t, "topics", "create", s.kafkaFlags(), s.layoutFlags())
	s.cli(t, "migrate", s.tableFlags())
	s.cli(t, "workspaces", "create", "default", s.target())
	s.cli(t, "keys", "create", "--name=e2e", "--secret="+s.key, s.target())
	s.ingest = s.service("ingest", "--addr=127.0.0.1:0", s.keyFlags())
	s.query = s.service("query", "--addr=127.0.0.1:0", s.keyFlags(), s.tableFlags())
	s.sinks = s.service("sinks", s.tableFlags())
	for _, p := range []*process{s.ingest, s.query, s.sinks} {
		s.ready(t, p)
	}
	return s
}

func (s *services) kafkaFlags() []string {
	return []string{"--kafka=" + strings.Join(s.e.brokers, ",")}
}
func (s *services) keyFlags() []string   { return []string{"--master-key-file=" + s.masterKey} }
func (s *services) tableFlags() []string { return []string{"--clickhouse=" + s.e.dsn} }

// target is what commands that look at or change the installation take.
func (s *services) target() []string { return append(s.kafkaFlags(), s.keyFlags()...) }

func (s *services) layoutFlags() []string {
	return []string{fmt.Sprint("--partitions=", s.partitions), "--allow-single-replica"}
}

// service starts a subcommand that runs until it is stopped.
func (s *services) service(name string, args ...any) *process {
	s.t.Helper()
	all := append([]any{name, "--internal-addr=127.0.0.1:0", s.kafkaFlags(), s.layoutFlags()}, args...)
	return start(s.t, name, nil, immutable(s.t), flattenArgs(all)...)
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
