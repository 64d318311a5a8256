package processor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/schemas"
)

// childEnv in the environment makes the test binary a processor: its value is the brokers, the prefix of the
// topics, their replicas and the instance, which may be empty.
const childEnv = "IMMUTABLE_TEST_PROCESSOR"

func TestMain(m *testing.M) {
	if args, ok := os.LookupEnv(childEnv); ok {
		if err := child(args); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

func child(args string) error {
	c := &kafkatest.Cluster{Layout: schemas.TopicLayout{Partitions: testPartitions, LedgerRetentionDays: 30}}
	var brokers, instance string
	if _, err := fmt.Sscanf(args, "%s %s %d %q", &brokers, &c.Layout.Prefix, &c.Layout.Replicas, &instance); err != nil {
		return fmt.Errorf("%s: %w", childEnv, err)
	}
	c.Config.Brokers, c.Config.TopicPrefix = strings.Split(brokers, ","), c.Layout.Prefix
	cfg := shortSessions(testConfig(c))
	cfg.Instance = instance
	p, err := New(cfg, prometheus.NewRegistry(), slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return p.Run(ctx)
}

// shortSessions makes a dead processor's transactions and partitions free within 2 s.
func shortSessions(cfg Config) Config {
	cfg.TransactionTimeout, cfg.SessionTimeout = time.Second, 1500*time.Millisecond
	return cfg
}

func shortSessionCluster(t *testing.T) *kafkatest.Cluster {
	t.Helper()
	return kafkatest.Start(t, kfake.GroupMinSessionTimeout(time.Second))
}

// process is a processor in a process of its own.
type process struct {
	*exec.Cmd
	logged chan struct{}
}

func startProcess(t *testing.T, c *kafkatest.Cluster, instance string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(os.Args[0], "-test.run=^$"), logged: make(chan struct{})}
	args := fmt.Sprintf("%s %s %d %q", strings.Join(c.Config.Brokers, ","), c.Layout.Prefix, c.Layout.Replicas, instance)
	p.Env = append(os.Environ(), childEnv+"="+args)
	stderr, err := p.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.logged)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			fmt.Fprintf(t.Output(), "process %d: %s\n", p.Process.Pid, lines.Text())
		}
		_, _ = io.Copy(io.Discard, stderr)
	}()
	t.Cleanup(p.kill)
	return p
}

// kill ends the process as a power cut would.
func (p *process) kill() {
	if p.ProcessState != nil {
		return
	}
	_ = p.Process.Kill()
	<-p.logged
	_ = p.Wait()
}

func (p *process) signal(s syscall.Signal) { _ = p.Process.Signal(s) }

// steps of a transaction, as the broker sees them. ids are those of the topics, by full name.
var steps = []struct {
	name string
	is   func(ids map[string][16]byte, req kmsg.Request) bool
}{
	{"leaves produced", func(ids map[string][16]byte, req kmsg.Request) bool { return produces(ids, req, schemas.TopicLedger) }},
	{"heads produced", func(ids map[string][16]byte, req kmsg.Request) bool { return produces(ids, req, schemas.TopicHeads) }},
	{"offsets committed", func(_ map[string][16]byte, req kmsg.Request) bool { return req.Key() == int16(kmsg.TxnOffsetCommit) }},
	{"transaction ended", func(_ map[string][16]byte, req kmsg.Request) bool { return req.Key() == int16(kmsg.EndTxn) }},
}

func produces(ids map[string][16]byte, req kmsg.Request, topic string) bool {
	r, ok := req.(*kmsg.ProduceRequest)
	return ok && slices.ContainsFunc(r.Topics, func(t kmsg.ProduceRequestTopic) bool {
		for name, id := range ids {
			if strings.HasSuffix(name, "."+topic) && (t.Topic == name || t.TopicID == id) {
				return true
			}
		}
		return false
	})
}

var errNotMet = errors.New("the step has not come")

// interceptor has every request to a broker shown to see, which says whether the broker never gets it.
type interceptor func(see func(kmsg.Request) (drop bool))

// fake is the interceptor of a kfake.
func fake(c *kafkatest.Cluster) interceptor {
	return func(see func(kmsg.Request) bool) {
		c.Fake.ControlKey(-1, func(req kmsg.Request) (kmsg.Response, error, bool) {
			if see(req) {
				return nil, errNotMet, true
			}
			return nil, nil, false
		})
	}
}

// atStep calls f when the next request of a kind arrives; drop says whether the broker never acts on it.
func atStep(
	t *testing.T, c *kafkatest.Cluster, intercept interceptor,
	is func(map[string][16]byte, kmsg.Request) bool, drop bool, f func(),
) (met func(context.Context) error) {
	t.Helper()
	topics, err := kadm.NewClient(c.Client(t)).ListTopics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ids := make(map[string][16]byte)
	for _, topic := range schemas.Topics(c.Layout) {
		ids[topic.Name] = topics[topic.Name].ID
	}
	var begun, done atomic.Bool
	intercept(func(req kmsg.Request) bool {
		if !is(ids, req) || !begun.CompareAndSwap(false, true) {
			return false
		}
		f()
		done.Store(true)
		return drop
	})
	return func(context.Context) error {
		if !done.Load() {
			return errNotMet
		}
		return nil
	}
}

// A processor is killed at every step of a transaction, before the broker has seen the step and after.
func TestKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	for _, step := range steps {
		for _, drop := range []bool{true, false} {
			for _, instance := range []string{"", "0"} {
				name := fmt.Sprintf("%s, dropped %t, instance %q", step.name, drop, instance)
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					c := shortSessionCluster(t)
					killedAt(t, c, fake(c), step.is, drop, instance)
				})
			}
		}
	}
}

func killedAt(
	t *testing.T, c *kafkatest.Cluster, intercept interceptor, is func(map[string][16]byte, kmsg.Request) bool,
	drop bool, instance string,
) {
	t.Helper()
	produce(t, c, 0, 1000)
	p := startProcess(t, c, instance)
	awaitSealed(t, c)
	met := atStep(t, c, intercept, is, drop, func() { p.signal(syscall.SIGKILL) })
	produce(t, c, 1000, 500)
	await(t, "killing at the step", met)
	p.kill()
	begun := time.Now()
	next := startProcess(t, c, instance)
	awaitSealed(t, c)
	t.Logf("sealing again after %s", time.Since(begun).Round(10*time.Millisecond))
	next.kill()
	checkTopics(t, c, 2*blockLeaves).wantTotals(t, 1500, 0, 0)
}

// A processor stops in the middle of a transaction for so long that another one takes its partitions, and then goes on
// where it was: what it had begun is void.
func TestZombie(t *testing.T) {
	t.Parallel()
	for _, step := range steps {
		t.Run(step.name, func(t *testing.T) {
			t.Parallel()
			c := shortSessionCluster(t)
			zombieAt(t, c, fake(c), step.is)
		})
	}
}

func zombieAt(
	t *testing.T, c *kafkatest.Cluster, intercept interceptor, is func(map[string][16]byte, kmsg.Request) bool,
) {
	t.Helper()
	produce(t, c, 0, 1000)
	zombie := startProcess(t, c, "")
	awaitSealed(t, c)
	met := atStep(t, c, intercept, is, false, func() { zombie.signal(syscall.SIGSTOP) })
	produce(t, c, 1000, 1000)
	await(t, "stopping at the step", met)
	other := start(t, shortSessions(testConfig(c)))
	produce(t, c, 2000, 1000)
	awaitSealed(t, c)
	zombie.signal(syscall.SIGCONT)
	produce(t, c, 3000, 1000)
	awaitSealed(t, c)
	// It comes back into the group and takes its share.
	admin := kadm.NewClient(c.Client(t))
	await(t, "two members", func(ctx context.Context) error {
		groups, err := admin.DescribeGroups(ctx, c.Config.Group(schemas.GroupSeal))
		if g := groups.Sorted(); err == nil && (len(g) != 1 || g[0].State != "Stable" || len(g[0].Members) != 2) {
			err = fmt.Errorf("not a stable group of two: %+v", g)
		}
		return err
	})
	produce(t, c, 4000, 1000)
	awaitSealed(t, c)
	zombie.kill()
	other.stop(t)
	checkTopics(t, c, 2*blockLeaves).wantTotals(t, 5000, 0, 0)
}

// Processors come and go while input arrives: partitions move between transactions, and no transaction is lost to it.
func churn(t *testing.T, c *kafkatest.Cluster) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	var all, on []*running
	total := 0
	for round := range 20 {
		if len(on) == 0 || (len(on) < 3 && rng.IntN(2) == 0) {
			p := start(t, testConfig(c))
			all, on = append(all, p), append(on, p)
		} else {
			i := rng.IntN(len(on))
			on[i].stop(t)
			on = append(on[:i], on[i+1:]...)
		}
		for range 5 {
			produce(t, c, total, 200)
			total += 200
		}
		if round%3 == 0 && len(on) > 0 {
			awaitSealed(t, c)
		}
	}
	if len(on) == 0 {
		on = append(on, start(t, testConfig(c)))
		all = append(all, on[0])
	}
	awaitSealed(t, c)
	var sessions, transactions float64
	for _, p := range all {
		p.stop(t)
		sessions += p.metric(t, "sessions_total")
		transactions += p.metric(t, "transactions_total")
	}
	r := checkTopics(t, c, 2*blockLeaves)
	r.wantTotals(t, total, 0, 0)
	if sessions != float64(len(all)) {
		t.Errorf("%d processors needed %v sessions: transactions were lost to rebalances", len(all), sessions)
	}
	t.Logf("%d processors, %v transactions", len(all), transactions)
}

// Two processes with one instance name: one of them has to go.
func sameInstanceTwice(t *testing.T, c *kafkatest.Cluster) {
	t.Helper()
	cfg := testConfig(c)
	cfg.Instance = "0"
	first := start(t, cfg)
	await(t, "ready", first.Ready)
	second := start(t, cfg)
	select {
	case err := <-first.done:
		first.ended = true
		if !errors.Is(err, kerr.FencedInstanceID) {
			t.Errorf("the first ended with %v", err)
		}
	case <-time.After(deadline):
		t.Error("the first goes on")
	}
	produce(t, c, 0, 500)
	awaitSealed(t, c)
	second.stop(t)
	checkTopics(t, c, 2*blockLeaves).wantTotals(t, 500, 0, 0)
}
