package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/types"

	"getimmutable.dev/immutable/internal/chdb"
	"getimmutable.dev/immutable/internal/kafka/realkafka"
	"getimmutable.dev/immutable/internal/loadgen"
	"getimmutable.dev/immutable/schemas"
)

// composition is docker-compose.yml without Docker: each of our services a process with the command, the environment
// and the secrets that the file gives it, where only names of hosts and paths in containers are replaced.
type composition struct {
	*stack
	project  *types.Project
	replace  *strings.Replacer
	scale    map[string]int
	replicas map[string][]*process
	done     map[string]bool
	gateway  string // host:port
}

// TestCompose brings up the production shape with several replicas of each service, uses it through its gateway, adds
// a processor under load, kills another, and in the end one of those behind the gateway.
func TestCompose(t *testing.T) {
	long(t)
	project, err := loadCompose(t.Context(), "IMMUTABLE_SECRETS_GID=1000", "IMMUTABLE_SUBNET=127.0.0.0/8")
	if err != nil {
		t.Fatal(err)
	}
	kafka := realkafka.Start(t, realkafka.Config{Properties: brokerProperties(project.Services["kafka"])}).Config()
	secrets := t.TempDir()
	createSecrets(t, secrets)
	tables, err := chdb.Start(t.Context(), chdb.Config{
		Library: library(t), Dir: t.TempDir(), User: "immutable",
		Password: secretFiles(t, secrets)["clickhouse_password"],
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tables.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	partitions, err := strconv.ParseInt(*project.Services["topics"].Environment["IMMUTABLE_PARTITIONS"], 10, 32)
	if err != nil {
		t.Fatal(err)
	}

	e := engines{brokers: kafka.Brokers, prefix: schemas.DefaultTopicPrefix, dsn: tables.DSN()}
	c := &composition{
		project: project,
		replace: strings.NewReplacer("kafka:9092", kafka.Brokers[0], "clickhouse:9000", tables.NativeAddr(), "/run/secrets", secrets,
			"/var/lib/immutable", t.TempDir()),
		scale:    map[string]int{"ingest": 2, "processor": 3, "notary": 2, "sinks": 2, "query": 2},
		replicas: map[string][]*process{},
		done:     map[string]bool{"kafka": true, "clickhouse": true},
	}
	c.stack = newStack(t, func(string) (string, error) { return c.gateway, nil }, func() (engines, error) { return e, nil })
	for _, name := range project.ServiceNames() {
		if name != "prometheus" {
			c.up(t, name)
		}
	}
	c.key = strings.TrimSpace(c.runOnce(t, "workspace", "keys", "create", "--name=first"))
	c.fixtures(t)

	group := newSealGroup(t, &services{e: e, layout: schemas.TopicLayout{Partitions: int32(partitions)}})
	group.shared(t, 3)
	l := c.startLoad(t, loadgen.Config{Seed: 701, KeyedPercent: 100},
		loadgen.ClientConfig{EventsPerRequest: 5, EventsPerSecond: 300}, 100_000_000)
	l.acknowledges(t, 200)
	c.start(t, "processor")
	group.shared(t, 4)
	c.kill(t, "processor")
	l.acknowledges(t, 500)
	group.shared(t, 3)
	group.advances(t, 200)
	t.Logf("before the load's end: %+v", l.Stats())
	l.quit(t)
	t.Logf("check: %s; %+v", c.check(t, 700), l.Stats())

	// One of two behind the gateway is gone: nobody notices.
	c.kill(t, "ingest")
	c.kill(t, "query")
	for range 10 {
		c.post(t, []byte(`{"actor_id":"e2e","action":"replica.lost"}`))
		c.get(t, "/events", url.Values{"limit": {"1"}}, new(page))
	}
	for _, name := range slices.Backward([]string{"query", "sinks", "notary", "processor", "ingest"}) {
		for _, p := range c.replicas[name] {
			p.stop(t)
		}
	}
}

// kill ends the first replica of a service at once.
func (c *composition) kill(t *testing.T, name string) {
	t.Helper()
	c.replicas[name][0].killGroup(t)
	c.replicas[name] = c.replicas[name][1:]
}

// brokerProperties are a container's, but for where it listens and what it is: those are the test's.
func brokerProperties(s types.ServiceConfig) map[string]string {
	properties := map[string]string{}
	for key, value := range s.Environment {
		name := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(key, "KAFKA_")), "_", ".")
		for _, mine := range []string{"replication.", "isr", "insync.", "auto.create.", "unclean.", "add.partitions."} {
			if strings.HasPrefix(key, "KAFKA_") && strings.Contains(name, mine) {
				properties[name] = *value
			}
		}
	}
	return properties
}

// up starts a service when what it depends on is as it asks, all replicas of it.
func (c *composition) up(t *testing.T, name string) {
	t.Helper()
	if c.done[name] {
		return
	}
	c.done[name] = true
	s := c.project.Services[name]
	for _, dep := range s.GetDependencies() {
		c.up(t, dep)
		on := c.project.Services[dep]
		switch condition := s.DependsOn[dep].Condition; {
		case condition == types.ServiceConditionCompletedSuccessfully && on.Restart == "on-failure:5": // up has waited for it
		case condition == types.ServiceConditionHealthy && !ours(on): // it runs
		case condition == types.ServiceConditionHealthy:
			for _, p := range c.replicas[dep] {
				c.healthy(t, on, p)
			}
		default:
			t.Fatalf("%s depends on %s with condition %s", name, dep, condition)
		}
	}
	switch {
	case name == "gateway":
		c.startGateway(t)
	case strings.HasPrefix(s.Restart, "on-failure"):
		c.runOnce(t, name, s.Command...)
	default:
		for range c.scale[name] {
			c.start(t, name)
		}
	}
}

// environment of a service. Ports are the kernel's choice, since all replicas share this machine's address.
func (c *composition) environment(name string) []string {
	var env []string
	for key, value := range c.project.Services[name].Environment {
		v := c.replace.Replace(*value)
		if key == "IMMUTABLE_ADDR" || key == "IMMUTABLE_INTERNAL_ADDR" {
			v = "127.0.0.1:0"
		}
		env = append(env, key+"="+v)
	}
	return env
}

// runOnce is `docker compose run`: a command in a service's container, to its end.
func (c *composition) runOnce(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), immutable(t), args...)
	cmd.Env = append(os.Environ(), c.environment(name)...)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v: %v", name, args, err)
	}
	return string(out)
}

// start starts one replica more.
func (c *composition) start(t *testing.T, name string) {
	t.Helper()
	p := start(c.t, name, c.environment(name), immutable(t), c.project.Services[name].Command...)
	c.replicas[name] = append(c.replicas[name], p)
}

// healthy waits until a replica passes its health check.
func (c *composition) healthy(t *testing.T, s types.ServiceConfig, p *process) {
	t.Helper()
	eventually(t, startLimit, func() error {
		if !p.running() {
			t.Fatalf("%s has ended:\n%s", p.name, p.tail(40))
		}
		addr, err := p.address("serving health, metrics and profiles")
		if err != nil {
			return err
		}
		cmd := exec.CommandContext(t.Context(), immutable(t), healthArgs(s)...)
		cmd.Env = append(os.Environ(), "IMMUTABLE_INTERNAL_ADDR="+addr)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", p.name, err, out)
		}
		return nil
	})
}

// startGateway runs the gateway over the replicas that there are: here is no DNS to find them by.
func (c *composition) startGateway(t *testing.T) {
	t.Helper()
	c.gateway = startGateway(c.t, c.project, func(service string) string {
		to := "to"
		for _, p := range c.replicas[service] {
			addr, err := p.address("serving")
			if err != nil {
				t.Fatal(err)
			}
			to += " " + addr
		}
		return to
	})
}

// fixtures posts the fixtures and reads them back, as a user would.
func (c *composition) fixtures(t *testing.T) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(root, "schemas/testdata/fixtures/events/*.json"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no fixtures: %v", err)
	}
	// Every replica learns of the key by itself, and both are asked in turn.
	eventually(t, startLimit, func() error {
		var got page
		return c.tryGet(t.Context(), "/events", url.Values{"limit": {"1"}}, &got)
	})
	missing := map[string]bool{}
	for _, path := range paths {
		body, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		missing[c.post(t, body)] = true
	}
	eventually(t, startLimit, func() error {
		var got page
		if err := c.tryGet(t.Context(), "/events", url.Values{"limit": {"100"}}, &got); err != nil {
			return err
		}
		for _, ev := range got.Data {
			delete(missing, fmt.Sprint(ev["id"]))
		}
		if len(missing) > 0 {
			return fmt.Errorf("%d of %d fixtures are not shown", len(missing), len(paths))
		}
		return nil
	})
	if status, _, _, err := c.do(t.Context(), http.MethodGet, "http://"+queryHost+"/metrics", nil, nil); err != nil || status != http.StatusNotFound {
		t.Errorf("the gateway answers /metrics with %d, %v", status, err)
	}
}
