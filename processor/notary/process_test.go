package notary

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
)

// childEnv in the environment makes the test binary a notary: its value is the brokers, the prefix of the topics, their
// replicas, the key file and the lock file.
const childEnv = "IMMUTABLE_TEST_NOTARY"

func TestMain(m *testing.M) {
	if args, ok := os.LookupEnv(childEnv); ok {
		if err := child(args); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(clickhousetest.Main(m))
}

func child(args string) error {
	cfg := Config{Layout: schemas.TopicLayout{Partitions: testPartitions, LedgerRetentionDays: 30}}
	var brokers string
	_, err := fmt.Sscanf(args, "%s %s %d %s %s", &brokers, &cfg.Layout.Prefix, &cfg.Layout.Replicas, &cfg.KeyFile, &cfg.LockFile)
	if err != nil {
		return fmt.Errorf("%s: %w", childEnv, err)
	}
	cfg.Kafka.Brokers, cfg.Kafka.TopicPrefix = strings.Split(brokers, ","), cfg.Layout.Prefix
	cfg.EpochInterval, cfg.IdleInterval = 20*time.Millisecond, time.Hour
	cfg.SessionTimeout, cfg.TransactionTimeout = 1500*time.Millisecond, time.Second
	n, err := New(cfg, prometheus.NewRegistry(), slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return n.Run(ctx)
}

// process is a notary in a process of its own.
type process struct {
	*exec.Cmd
	logged chan struct{}
}

func startProcess(t *testing.T, cfg Config) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(os.Args[0], "-test.run=^$"), logged: make(chan struct{})}
	args := fmt.Sprintf("%s %s %d %s %s", strings.Join(cfg.Kafka.Brokers, ","), cfg.Layout.Prefix, cfg.Layout.Replicas,
		cfg.KeyFile, cfg.LockFile)
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

// interceptor has every request to a broker shown to see, which says whether the broker never gets it.
type interceptor func(see func(kmsg.Request) (drop bool))

// fake is the interceptor of a kfake.
func fake(c *kafkatest.Cluster) interceptor {
	return func(see func(kmsg.Request) bool) {
		c.Fake.ControlKey(-1, func(req kmsg.Request) (kmsg.Response, error, bool) {
			c.Fake.KeepControl()
			if see(req) {
				return nil, errors.New("the request is lost"), true
			}
			return nil, nil, false
		})
	}
}

// ofTransaction says whether a request is one of those that an epoch or a checkpoint consists of: an epoch has at least a
// Produce of its entry, one of the state, and an EndTxn, a checkpoint a Produce and an EndTxn.
func ofTransaction(c *kafkatest.Cluster, req kmsg.Request) bool {
	id := c.Config.Group(schemas.TransactionalIDNotary)
	switch r := req.(type) {
	case *kmsg.ProduceRequest:
		return r.TransactionID != nil && *r.TransactionID == id
	case *kmsg.EndTxnRequest:
		return r.TransactionalID == id
	default:
		return false
	}
}

// stepsOfEpoch are how many requests an epoch and its checkpoint consist of.
const stepsOfEpoch = 5

// A notary is killed at every step of an epoch, before the broker has seen the step and after. The next has its lock file, or is on
// another machine.
func TestKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	for step := range stepsOfEpoch {
		for _, drop := range []bool{true, false} {
			t.Run(fmt.Sprintf("step %d, dropped %t", step, drop), func(t *testing.T) {
				t.Parallel()
				c := kafkatest.Start(t, kfake.GroupMinSessionTimeout(time.Second))
				killedAt(t, c, fake(c), int32(step), drop)
			})
		}
	}
}

func killedAt(t *testing.T, c *kafkatest.Cluster, intercept interceptor, step int32, drop bool) {
	t.Helper()
	sealer(t, c)
	cfg := testConfig(t, c)
	p := startProcess(t, cfg)
	produceEvents(t, c, 3, 0, 300)
	awaitCovered(t, c, 300)
	var armed atomic.Bool
	var seen atomic.Int32
	killed := make(chan struct{})
	intercept(func(req kmsg.Request) bool {
		if !armed.Load() || !ofTransaction(c, req) || seen.Add(1) != step+1 {
			return false
		}
		_ = p.Process.Signal(syscall.SIGKILL)
		close(killed)
		return drop
	})
	armed.Store(true)
	produceEvents(t, c, 3, 300, 300)
	<-killed
	p.kill()
	armed.Store(false)
	locked := checkLock(t, c, cfg)
	next := cfg
	if step%2 == 1 {
		next = sharing(t, cfg)
	}
	begun := time.Now()
	q := startProcess(t, next)
	a := awaitCovered(t, c, 600)
	t.Logf("a checkpoint again after %s", time.Since(begun).Round(10*time.Millisecond))
	if locked != nil && a.newest < locked.Size {
		t.Errorf("the newest checkpoint is of size %d, size %d was signed", a.newest, locked.Size)
	}
	q.kill()
	checkLock(t, c, cfg)
	checkLock(t, c, next)
}

// checkLock compares what a machine has last signed, published or not, with the root log.
func checkLock(t *testing.T, c *kafkatest.Cluster, cfg Config) *ledger.Checkpoint {
	t.Helper()
	locked, err := lockFile{cfg.LockFile}.read()
	if err != nil {
		t.Fatal(err)
	}
	if locked == nil {
		return nil
	}
	var a *audit
	await(t, "reading the topics", func(ctx context.Context) error {
		a, err = auditTopics(ctx, t, c, kadmOf(t, c))
		return err
	})
	if locked.Size >= uint64(len(a.roots)) || a.roots[locked.Size] != locked.Root {
		t.Errorf("what was signed of size %d is not in the root log of %d entries", locked.Size, a.entries)
	}
	return locked
}

// A notary stops in the middle of an epoch for so long that another one leads, and then goes on where it was.
func TestZombie(t *testing.T) {
	t.Parallel()
	for step := range stepsOfEpoch {
		t.Run(fmt.Sprint("step ", step), func(t *testing.T) {
			t.Parallel()
			c := kafkatest.Start(t, kfake.GroupMinSessionTimeout(time.Second))
			sealer(t, c)
			cfg := testConfig(t, c)
			zombie := startProcess(t, cfg)
			produceEvents(t, c, 3, 0, 300)
			awaitCovered(t, c, 300)
			var seen atomic.Int32
			stopped := make(chan struct{})
			fake(c)(func(req kmsg.Request) bool {
				if ofTransaction(c, req) && seen.Add(1) == int32(step)+1 {
					_ = zombie.Process.Signal(syscall.SIGSTOP)
					close(stopped)
				}
				return false
			})
			produceEvents(t, c, 3, 300, 300)
			<-stopped
			other := sharing(t, cfg)
			other.SessionTimeout, other.TransactionTimeout = 1500*time.Millisecond, time.Second
			n := start(t, other)
			awaitCovered(t, c, 600)
			_ = zombie.Process.Signal(syscall.SIGCONT)
			produceEvents(t, c, 3, 600, 300)
			awaitCovered(t, c, 900)
			zombie.kill()
			n.stop(t)
			checkLock(t, c, cfg)
			checkLock(t, c, other)
		})
	}
}
