package notary

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
)

// endTakesEffect makes the nth commit of the notary from now on happen, and then has it answered with resp and err.
func endTakesEffect(
	t *testing.T, c *kafkatest.Cluster, nth int32, answer func(*kmsg.EndTxnRequest) (kmsg.Response, error),
) (hits func() int) {
	t.Helper()
	other := c.Client(t)
	var seen, hit atomic.Int32
	c.Fake.ControlKey(int16(kmsg.EndTxn), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.Fake.KeepControl()
		r, ok := req.(*kmsg.EndTxnRequest)
		if !ok || !r.Commit || r.TransactionalID != c.Config.Group(schemas.TransactionalIDNotary) || hit.Load() > 0 || seen.Add(1) != nth {
			return nil, nil, false
		}
		hit.Store(1)
		same := *r
		c.Fake.SleepControl(func() {
			resp, err := same.RequestWith(t.Context(), other)
			if err == nil {
				err = kerr.ErrorForCode(resp.ErrorCode)
			}
			if err != nil {
				t.Errorf("the commit did not take effect: %v", err)
			}
		})
		resp, err := answer(r)
		return resp, err, true
	})
	return func() int { return int(hit.Load()) }
}

func TestFaults(t *testing.T) {
	t.Parallel()
	fault := func(f func(c *kafkatest.Cluster) kfake.Fault) func(*testing.T, *kafkatest.Cluster) func() int {
		return func(_ *testing.T, c *kafkatest.Cluster) func() int { return c.Fake.Fault(f(c)).Hits }
	}
	unknown := func(r *kmsg.EndTxnRequest) (kmsg.Response, error) {
		resp := r.ResponseKind().(*kmsg.EndTxnResponse)
		resp.ErrorCode = kerr.UnknownServerError.Code
		return resp, nil
	}
	lost := func(*kmsg.EndTxnRequest) (kmsg.Response, error) { return nil, errors.New("connection lost") }
	for _, tt := range []struct {
		name     string
		restarts bool
		inject   func(*testing.T, *kafkatest.Cluster) (hits func() int)
	}{
		{"checkpoints refuses a record", true, fault(func(c *kafkatest.Cluster) kfake.Fault {
			return kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: c.Config.Topic(schemas.TopicCheckpoints), Err: kerr.InvalidRecord}
		})},
		{"notary_state refuses a record", true, fault(func(c *kafkatest.Cluster) kfake.Fault {
			return kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: c.Config.Topic(schemas.TopicNotaryState), Err: kerr.InvalidRecord}
		})},
		{"checkpoints moves", false, fault(func(c *kafkatest.Cluster) kfake.Fault {
			return kfake.Fault{
				Keys: []kmsg.Key{kmsg.Produce}, Topic: c.Config.Topic(schemas.TopicCheckpoints), Err: kerr.NotLeaderForPartition, Count: 3,
			}
		})},
		{"heartbeat is refused", true, func(_ *testing.T, c *kafkatest.Cluster) func() int {
			return answerOnce(c, kmsg.Heartbeat, func(req kmsg.Request) kmsg.Response {
				r := req.(*kmsg.HeartbeatRequest)
				if r.Group != c.Config.Group(schemas.GroupNotary) {
					return nil
				}
				resp := r.ResponseKind().(*kmsg.HeartbeatResponse)
				resp.ErrorCode = kerr.UnknownMemberID.Code
				return resp
			})
		}},
		{"epoch takes effect, unknown error", true, func(t *testing.T, c *kafkatest.Cluster) func() int {
			t.Helper()
			return endTakesEffect(t, c, 1, unknown)
		}},
		{"epoch takes effect, connection lost", false, func(t *testing.T, c *kafkatest.Cluster) func() int {
			t.Helper()
			return endTakesEffect(t, c, 1, lost)
		}},
		{"checkpoint takes effect, unknown error", true, func(t *testing.T, c *kafkatest.Cluster) func() int {
			t.Helper()
			return endTakesEffect(t, c, 2, unknown)
		}},
		{"checkpoint takes effect, connection lost", false, func(t *testing.T, c *kafkatest.Cluster) func() int {
			t.Helper()
			return endTakesEffect(t, c, 2, lost)
		}},
		{"producer is fenced", true, func(_ *testing.T, c *kafkatest.Cluster) func() int {
			return answerOnce(c, kmsg.EndTxn, func(req kmsg.Request) kmsg.Response {
				r := req.(*kmsg.EndTxnRequest)
				if r.TransactionalID != c.Config.Group(schemas.TransactionalIDNotary) {
					return nil
				}
				resp := r.ResponseKind().(*kmsg.EndTxnResponse)
				resp.ErrorCode = kerr.ProducerFenced.Code
				return resp
			})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := kafkatest.Start(t, kfake.GroupMinSessionTimeout(time.Second))
			sealer(t, c)
			cfg := testConfig(t, c)
			cfg.SessionTimeout = time.Second
			n := start(t, cfg)
			produceEvents(t, c, 3, 0, 500)
			awaitCovered(t, c, 500)
			hits := tt.inject(t, c)
			produceEvents(t, c, 3, 500, 500)
			await(t, "the fault", func(context.Context) error { return atLeast(float64(hits()), 1) })
			awaitCovered(t, c, 1000)
			await(t, "ready", n.Ready)
			produceEvents(t, c, 3, 1000, 500)
			awaitCovered(t, c, 1500)
			n.stop(t)
			if sessions := n.metric(t, "sessions_total"); (sessions > 1) != tt.restarts {
				t.Errorf("%v sessions", sessions)
			}
			if failed := n.metric(t, "failed_sessions_total"); (failed > 0) != tt.restarts {
				t.Errorf("%v sessions failed", failed)
			}
		})
	}
}

// answerOnce has the next request of a kind that answer has an answer for, which is not nil, answered with that.
func answerOnce(c *kafkatest.Cluster, key kmsg.Key, answer func(kmsg.Request) kmsg.Response) (hits func() int) {
	var n atomic.Int32
	c.Fake.ControlKey(int16(key), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.Fake.KeepControl()
		if n.Load() > 0 {
			return nil, nil, false
		}
		resp := answer(req)
		if resp == nil {
			return nil, nil, false
		}
		n.Add(1)
		return resp, nil, true
	})
	return func() int { return int(n.Load()) }
}

// sharing is the configuration of another notary of the same installation, on another machine.
func sharing(t *testing.T, cfg Config) Config {
	t.Helper()
	cfg.LockFile = filepath.Join(t.TempDir(), "lock")
	return cfg
}

// Of two notaries one leads. The other stands by, is ready, and takes over.
func twoNotaries(t *testing.T, c *kafkatest.Cluster) {
	t.Helper()
	sealer(t, c)
	cfg := testConfig(t, c)
	first := start(t, cfg)
	await(t, "ready", first.Ready)
	second := start(t, sharing(t, cfg))
	await(t, "standing by", second.Ready)
	produceEvents(t, c, 3, 0, 500)
	awaitCovered(t, c, 500)
	if first.metric(t, "leading") != 1 || second.metric(t, "leading") != 0 {
		t.Error("not one of them leads")
	}
	first.stop(t)
	produceEvents(t, c, 3, 500, 500)
	awaitCovered(t, c, 1000)
	if second.metric(t, "leading") != 1 {
		t.Error("the second does not lead")
	}
	second.stop(t)
}

// A notary that another one has fenced, though it is the group's leader, stops and comes back.
func TestFencedByARival(t *testing.T) {
	c := kafkatest.Start(t, kfake.GroupMinSessionTimeout(time.Second))
	sealer(t, c)
	cfg := testConfig(t, c)
	cfg.SessionTimeout = time.Second
	first := start(t, cfg)
	await(t, "ready", first.Ready)
	for i := range 3 {
		rival := c.Client(t, kgoTransactionalID(c))
		if _, _, err := rival.ProducerID(t.Context()); err != nil {
			t.Fatal(err)
		}
		produceEvents(t, c, 3, i*100, 100)
		awaitCovered(t, c, (i+1)*100)
	}
	first.stop(t)
	if got := first.metric(t, "failed_sessions_total"); got != 3 {
		t.Errorf("%v sessions failed, want 3", got)
	}
}

// Two processes with one instance name: one of them has to go.
func TestSameInstanceTwice(t *testing.T) {
	c := kafkatest.Start(t, kfake.GroupMinSessionTimeout(time.Second))
	cfg := testConfig(t, c)
	cfg.Instance, cfg.SessionTimeout = "0", 2*time.Second
	first := start(t, cfg)
	await(t, "ready", first.Ready)
	second := start(t, sharing(t, cfg))
	// Mostly the first: but where it was just about to begin a new session, that one joins after the second.
	ends := func(n *running, err error) {
		n.ended = true
		if !errors.Is(err, kerr.FencedInstanceID) {
			t.Errorf("it ended with %v", err)
		}
	}
	left := second
	select {
	case err := <-first.done:
		ends(first, err)
	case err := <-second.done:
		ends(second, err)
		left = first
	case <-time.After(deadline):
		t.Error("both go on")
	}
	await(t, "ready", left.Ready)
}

// A backlog is stated in several epochs.
func TestBacklogInSeveralEpochs(t *testing.T) {
	c := kafkatest.Start(t)
	sealer(t, c)
	produceEvents(t, c, 7, 0, 20_000)
	cfg := testConfig(t, c)
	cfg.EpochInterval, cfg.IdleInterval, cfg.EpochLeaves, cfg.FetchBytes = time.Hour, time.Hour, 1, 64<<10
	await(t, "sealing", func(ctx context.Context) error {
		records, err := readAll(ctx, t, c, kadmOf(t, c), schemas.TopicLedger)
		if len(records) != 20_028 {
			return fmt.Errorf("%d leaves: %w", len(records), errors.Join(err))
		}
		return nil
	})
	n := start(t, cfg)
	a := awaitCovered(t, c, 20_000)
	n.stop(t)
	if len(a.epochs) < 3 {
		t.Errorf("%d epochs of a backlog", len(a.epochs))
	}
}

// Witnesses are asked with the checkpoint that is in the lock file, and can have its consistency with every older size proved.
func TestAsksWitnesses(t *testing.T) {
	long(t)
	c := kafkatest.Start(t)
	cfg := testConfig(t, c)
	cfg.EpochInterval, cfg.IdleInterval = 10*time.Millisecond, 10*time.Millisecond
	n := start(t, cfg) // without witnesses, over two blocks
	await(t, "epochs", func(context.Context) error { return atLeast(n.metric(t, "epochs_total"), 530) })
	n.stop(t)
	a, err := auditTopics(t.Context(), t, c, kadmOf(t, c))
	if err != nil {
		t.Fatal(err)
	}

	w := newNotary(t, cfg)
	var calls atomic.Int32
	w.cosign = func(ctx context.Context, signed []byte, prove func(context.Context, uint64) ([]ledger.Hash, error)) ([]byte, int, bool) {
		calls.Add(1)
		locked, err := os.ReadFile(cfg.LockFile)
		if err != nil || string(locked) != string(signed) {
			t.Errorf("the lock file has %q (%v) when a witness sees %q", locked, err, signed)
		}
		now, err := ledger.ParseCheckpoint(signed)
		if err != nil {
			t.Error(err)
			return signed, 0, false
		}
		for _, m := range a.checkpoints {
			if m.GetSize()%45 != 0 {
				continue
			}
			proof, err := prove(ctx, m.GetSize())
			if err == nil {
				err = ledger.VerifyConsistency(m.GetSize(), now.Size, proof, ledger.Hash(m.GetRoot()), now.Root)
			}
			if err != nil && ctx.Err() == nil {
				t.Errorf("consistency of %d with %d: %v", now.Size, m.GetSize(), err)
				break
			}
		}
		if _, err := prove(ctx, now.Size+1); err == nil {
			t.Error("a proof of what is not there")
		}
		return signed, 1, calls.Load() != 3
	}
	w.cfg.WitnessTimeout = time.Minute
	w.start(t)
	await(t, "cosigned checkpoints", func(context.Context) error { return atLeast(float64(calls.Load()), 3) })
	await(t, "the distance", func(context.Context) error { return atLeast(w.metric(t, "unwitnessed_entries"), 1) })
	await(t, "more", func(context.Context) error { return atLeast(float64(calls.Load()), 6) })
	w.stop(t)
	if a, err = auditTopics(t.Context(), t, c, kadmOf(t, c)); err != nil {
		t.Fatal(err)
	}
	quorum := 0
	for _, m := range a.checkpoints {
		if m.GetQuorum() && m.GetWitnesses() == 1 {
			quorum++
		}
	}
	if quorum < 3 {
		t.Errorf("%d cosigned checkpoints", quorum)
	}
}

// A transaction that is open on one of the notary's topics holds a take-over back, which says how to end it and tries again. What
// was aborted counts for nothing.
func takeOverWaitsForOpenTransactions(t *testing.T, c *kafkatest.Cluster) {
	t.Helper()
	cfg := sealSome(t, c)
	for i, topic := range []string{schemas.TopicCheckpoints, schemas.TopicNotaryState} {
		stranger := c.Client(t, kgo.TransactionalID(c.Config.Group("stranger")), kgo.TransactionTimeout(time.Minute),
			kgo.RecordPartitioner(kgo.ManualPartitioner()))
		if err := stranger.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		record := &kgo.Record{Topic: c.Config.Topic(topic), Key: []byte("partition/1"), Value: []byte("x")}
		if err := stranger.ProduceSync(t.Context(), record).FirstErr(); err != nil {
			t.Fatal(err)
		}
		cfg.TakeOverTimeout = 200 * time.Millisecond
		n := start(t, cfg)
		abort := fmt.Sprintf("abort --topic %s --partition 0 --start-offset %d", c.Config.Topic(topic), record.Offset)
		await(t, "waiting for the transaction", func(ctx context.Context) error {
			if err := n.Ready(ctx); err == nil || !strings.Contains(err.Error(), abort) {
				return fmt.Errorf("ready: %w", errors.Join(err))
			}
			return nil
		})
		if err := stranger.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
			t.Fatal(err)
		}
		stranger.Close()
		await(t, "ready", n.Ready)
		produceEvents(t, c, 3, 500+100*i, 100)
		awaitCovered(t, c, 600+100*i)
		n.stop(t)
	}
}
