package processor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/schemas"
)

// endTxnTakesEffect makes the next commit happen, and then has it answered with resp and err.
func endTxnTakesEffect(t *testing.T, c *kafkatest.Cluster, answer func(*kmsg.EndTxnRequest) (kmsg.Response, error)) (hits *atomic.Int32) {
	t.Helper()
	other := c.Client(t)
	hits = new(atomic.Int32)
	c.Fake.ControlKey(int16(kmsg.EndTxn), func(req kmsg.Request) (kmsg.Response, error, bool) {
		r, ok := req.(*kmsg.EndTxnRequest)
		if !ok || !r.Commit || !hits.CompareAndSwap(0, 1) {
			return nil, nil, false
		}
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
	return hits
}

func TestFaults(t *testing.T) {
	long(t)
	fault := func(f func(c *kafkatest.Cluster) kfake.Fault) func(*testing.T, *kafkatest.Cluster) func() int {
		return func(_ *testing.T, c *kafkatest.Cluster) func() int { return c.Fake.Fault(f(c)).Hits }
	}
	// restarts says whether the fault ends the session.
	for _, tt := range []struct {
		name     string
		restarts bool
		inject   func(*testing.T, *kafkatest.Cluster) (hits func() int)
	}{
		{"ledger refuses a leaf", true, fault(func(c *kafkatest.Cluster) kfake.Fault {
			return kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: c.Config.Topic(schemas.TopicLedger), Err: kerr.InvalidRecord}
		})},
		{"heads refuses a head", true, fault(func(c *kafkatest.Cluster) kfake.Fault {
			return kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: c.Config.Topic(schemas.TopicHeads), Err: kerr.InvalidRecord}
		})},
		{"ledger moves", false, fault(func(c *kafkatest.Cluster) kfake.Fault {
			return kfake.Fault{
				Keys: []kmsg.Key{kmsg.Produce}, Topic: c.Config.Topic(schemas.TopicLedger), Err: kerr.NotLeaderForPartition, Count: 3,
			}
		})},
		{"offsets of an old generation", true, fault(func(*kafkatest.Cluster) kfake.Fault {
			return kfake.Fault{Keys: []kmsg.Key{kmsg.TxnOffsetCommit}, Err: kerr.IllegalGeneration}
		})},
		{"offset commit fails", true, fault(func(*kafkatest.Cluster) kfake.Fault {
			return kfake.Fault{Keys: []kmsg.Key{kmsg.TxnOffsetCommit}, Err: kerr.UnknownServerError}
		})},
		{"offset commit is refused", true, fault(func(*kafkatest.Cluster) kfake.Fault {
			return kfake.Fault{Keys: []kmsg.Key{kmsg.TxnOffsetCommit}, Err: kerr.GroupAuthorizationFailed}
		})},
		{"end fails", true, fault(func(*kafkatest.Cluster) kfake.Fault {
			return kfake.Fault{Keys: []kmsg.Key{kmsg.EndTxn}, TopLevel: true, Err: kerr.UnknownServerError}
		})},
		{"producer is fenced", true, fault(func(*kafkatest.Cluster) kfake.Fault {
			return kfake.Fault{Keys: []kmsg.Key{kmsg.EndTxn}, TopLevel: true, Err: kerr.ProducerFenced}
		})},
		{"heartbeat is refused", true, fault(func(*kafkatest.Cluster) kfake.Fault {
			return kfake.Fault{Keys: []kmsg.Key{kmsg.Heartbeat}, TopLevel: true, Err: kerr.UnknownMemberID}
		})},
		{"coordinator moves", false, fault(func(*kafkatest.Cluster) kfake.Fault {
			return kfake.Fault{Keys: []kmsg.Key{kmsg.EndTxn}, TopLevel: true, Err: kerr.NotCoordinator, Count: 2}
		})},
		{"commit takes effect, unknown error", true, func(t *testing.T, c *kafkatest.Cluster) func() int {
			t.Helper()
			hits := endTxnTakesEffect(t, c, func(r *kmsg.EndTxnRequest) (kmsg.Response, error) {
				resp := r.ResponseKind().(*kmsg.EndTxnResponse)
				resp.ErrorCode = kerr.UnknownServerError.Code
				return resp, nil
			})
			return func() int { return int(hits.Load()) }
		}},
		{"commit takes effect, connection lost", false, func(t *testing.T, c *kafkatest.Cluster) func() int {
			t.Helper()
			hits := endTxnTakesEffect(t, c, func(*kmsg.EndTxnRequest) (kmsg.Response, error) {
				return nil, errors.New("connection lost")
			})
			return func() int { return int(hits.Load()) }
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := kafkatest.Start(t)
			p := start(t, testConfig(c))
			produce(t, c, 0, 500)
			awaitSealed(t, c)
			hits := tt.inject(t, c)
			produce(t, c, 500, 1000)
			awaitSealed(t, c)
			await(t, "ready", p.Ready)
			if hits() == 0 {
				t.Error("the fault was not met")
			}
			p.stop(t)
			checkTopics(t, c, 2*blockLeaves).wantTotals(t, 1500, 0, 0)
			if sessions := p.metric(t, "sessions_total"); (sessions > 1) != tt.restarts {
				t.Errorf("%v sessions", sessions)
			}
		})
	}
}

// halts starts a processor that must halt partition 1 for a reason that has want in it, and seal the others.
func halts(t *testing.T, c *kafkatest.Cluster, cfg Config, want string) *running {
	t.Helper()
	p := start(t, cfg)
	await(t, "halting partition 1 because of "+want, func(ctx context.Context) error {
		err := p.Ready(ctx)
		if err == nil {
			return errors.New("is ready")
		}
		if s := err.Error(); !strings.HasPrefix(s, "seal: partition 1 is halted: ") || !strings.Contains(s, want) ||
			strings.Contains(s, "taking") || strings.Contains(s, "partition 2") {
			return err
		}
		return nil
	})
	if got, sealing := p.metric(t, "halted_partitions"), p.metric(t, "partitions"); got != 1 || sealing != testPartitions-1 {
		t.Errorf("metrics say that %v partitions are halted and %v sealed", got, sealing)
	}
	admin := kadm.NewClient(c.Client(t))
	before := unsealedOf(t.Context(), t, c, admin)
	produce(t, c, 10_000, 200)
	await(t, "sealing the other partitions", func(ctx context.Context) error {
		left := unsealedOf(ctx, t, c, admin)
		if len(left) != 1 || left[1] <= before[1] {
			return fmt.Errorf("unsealed: %v", left)
		}
		return nil
	})
	return p
}

// unsealedOf returns how many input offsets are not sealed, for the partitions where there are any.
func unsealedOf(ctx context.Context, t *testing.T, c *kafkatest.Cluster, admin *kadm.Client) map[int32]int64 {
	t.Helper()
	topic := c.Config.Topic(schemas.TopicEvents)
	committed, err := admin.FetchOffsets(ctx, c.Config.Group(schemas.GroupSeal))
	if err != nil {
		t.Fatal(err)
	}
	ends, err := admin.ListEndOffsets(ctx, topic)
	if err != nil {
		t.Fatal(err)
	}
	left := make(map[int32]int64)
	ends.Each(func(o kadm.ListedOffset) {
		at, _ := committed.Lookup(topic, o.Partition)
		if o.Offset != max(at.At, 0) {
			left[o.Partition] = o.Offset - max(at.At, 0)
		}
	})
	return left
}

// sealSome seals some input and ends.
func sealSome(t *testing.T, c *kafkatest.Cluster) {
	t.Helper()
	produce(t, c, 0, 2000)
	p := start(t, testConfig(c))
	awaitSealed(t, c)
	p.stop(t)
}

func TestHalts(t *testing.T) {
	setOffset := func(t *testing.T, c *kafkatest.Cluster, change func(int64) int64) {
		t.Helper()
		admin, group := kadm.NewClient(c.Client(t)), c.Config.Group(schemas.GroupSeal)
		offsets, err := admin.FetchOffsets(t.Context(), group)
		if err != nil {
			t.Fatal(err)
		}
		at, _ := offsets.Lookup(c.Config.Topic(schemas.TopicEvents), 1)
		var changed kadm.Offsets
		changed.AddOffset(at.Topic, 1, change(at.At), -1)
		if err := admin.CommitAllOffsets(t.Context(), group, changed); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name string
		do   func(*testing.T, *kafkatest.Cluster)
		want string
	}{
		{"committed offset behind", func(t *testing.T, c *kafkatest.Cluster) {
			t.Helper()
			sealSome(t, c)
			setOffset(t, c, func(at int64) int64 { return at - 1 })
		}, "heads comes to input offset"},
		{"committed offset beyond the input", func(t *testing.T, c *kafkatest.Cluster) {
			t.Helper()
			sealSome(t, c)
			setOffset(t, c, func(at int64) int64 { return at + 1000 })
		}, "it was truncated"},
		{"no committed offset", func(t *testing.T, c *kafkatest.Cluster) {
			t.Helper()
			sealSome(t, c)
			var offset kadm.TopicsSet
			offset.Add(c.Config.Topic(schemas.TopicEvents), 1)
			if _, err := kadm.NewClient(c.Client(t)).DeleteOffsets(t.Context(), c.Config.Group(schemas.GroupSeal), offset); err != nil {
				t.Fatal(err)
			}
		}, "the group has committed none"},
		{"a stranger's leaf", func(t *testing.T, c *kafkatest.Cluster) {
			t.Helper()
			sealSome(t, c)
			c.Produce(t, &kgo.Record{Topic: schemas.TopicLedger, Partition: 1, Value: []byte("x")})
		}, "ledger has a leaf at offset"},
		{"a leaf before there was any", func(t *testing.T, c *kafkatest.Cluster) {
			t.Helper()
			c.Produce(t, &kgo.Record{Topic: schemas.TopicLedger, Partition: 1, Value: []byte("x")})
		}, "ledger has a leaf at offset"},
		{"a stranger's head", func(t *testing.T, c *kafkatest.Cluster) {
			t.Helper()
			sealSome(t, c)
			c.Produce(t, &kgo.Record{Topic: schemas.TopicHeads, Partition: 1, Key: []byte("k"), Value: []byte("x")})
		}, "is no ChainHead"},
		{"unsealed input deleted", func(t *testing.T, c *kafkatest.Cluster) {
			t.Helper()
			sealSome(t, c)
			produce(t, c, 2000, 1000)
			end := c.Fake.PartitionInfo(c.Config.Topic(schemas.TopicEvents), 1).HighWatermark
			if err := c.Fake.DeleteRecords(c.Config.Topic(schemas.TopicEvents), 1, end-10); err != nil {
				t.Fatal(err)
			}
		}, "were deleted before they were sealed"},
		{"input deleted before the first start", func(t *testing.T, c *kafkatest.Cluster) {
			t.Helper()
			produce(t, c, 0, 100)
			if err := c.Fake.DeleteRecords(c.Config.Topic(schemas.TopicEvents), 1, 1); err != nil {
				t.Fatal(err)
			}
		}, "input offsets 0 to 0 were deleted"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := kafkatest.Start(t)
			tt.do(t, c)
			halts(t, c, testConfig(c), tt.want)
		})
	}
}

// A topic that was lost and made again is shorter than what heads says, or empty.
func TestHaltsOnATruncatedOutput(t *testing.T) {
	for _, tt := range []struct{ topic, want string }{
		{schemas.TopicLedger, "the ledger ends at 0: it was truncated"},
		{schemas.TopicHeads, "heads has no record of the partition"},
		{schemas.TopicDedup, "dedup lacks block"},
	} {
		t.Run(tt.topic, func(t *testing.T) {
			c := kafkatest.Start(t)
			produce(t, c, 0, 6000)
			p := start(t, testConfig(c))
			awaitSealed(t, c)
			p.stop(t)
			if err := c.Fake.DeleteTopic(c.Config.Topic(tt.topic)); err != nil {
				t.Fatal(err)
			}
			if err := kafka.CreateTopics(t.Context(), c.Client(t), schemas.Topics(c.Layout)); err != nil {
				t.Fatal(err)
			}
			p = start(t, testConfig(c))
			await(t, "halting", func(ctx context.Context) error {
				err := p.Ready(ctx)
				if err == nil || strings.Count(err.Error(), tt.want) != testPartitions {
					return fmt.Errorf("ready: %w", err)
				}
				return nil
			})
		})
	}
}

// Retention removes the ledger's oldest records, at last all of an idle partition's: that is no truncation.
func takesOverAfterRetention(t *testing.T, c *kafkatest.Cluster) {
	t.Helper()
	sealSome(t, c)
	admin := kadm.NewClient(c.Client(t))
	ends, err := admin.ListEndOffsets(t.Context(), c.Config.Topic(schemas.TopicLedger), c.Config.Topic(schemas.TopicEvents))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := admin.DeleteRecords(t.Context(), ends.Offsets()); err != nil {
		t.Fatal(err)
	}
	p := start(t, testConfig(c))
	await(t, "ready", p.Ready)
	produce(t, c, 2000, 100)
	awaitSealed(t, c)
	p.stop(t) // what is committed is counted a moment later
	if got := p.metric(t, "leaves_total"); got != 100 {
		t.Errorf("%v leaves, want 100", got)
	}
}

// Input that vanishes under a session that reads it halts the partition for as long as the process lives.
func TestHaltsWhenInputIsLost(t *testing.T) {
	c := kafkatest.Start(t)
	p := start(t, testConfig(c))
	produce(t, c, 0, 500)
	awaitSealed(t, c)
	c.Fake.Fault(kfake.Fault{
		Keys: []kmsg.Key{kmsg.Fetch}, Topic: c.Config.Topic(schemas.TopicEvents), Partitions: []int32{1}, Err: kerr.OffsetOutOfRange,
	})
	await(t, "halting", func(ctx context.Context) error {
		err := p.Ready(ctx)
		if err == nil || !strings.Contains(err.Error(), "partition 1 is halted: input of partition 1 is lost") {
			return fmt.Errorf("ready: %w", err)
		}
		return nil
	})
	produce(t, c, 500, 500)
	admin := kadm.NewClient(c.Client(t))
	await(t, "sealing the other partitions", func(ctx context.Context) error {
		if left := unsealedOf(ctx, t, c, admin); len(left) != 1 || left[1] == 0 {
			return fmt.Errorf("unsealed: %v", left)
		}
		return nil
	})
}

// A transaction that stays open holds a take-over back until its time is up; it is tried again.
func takeOverWaitsForOpenTransactions(t *testing.T, c *kafkatest.Cluster) {
	t.Helper()
	sealSome(t, c)
	stranger := c.Client(t, kgo.TransactionalID(c.Config.Group("stranger")), kgo.TransactionTimeout(time.Minute),
		kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err := stranger.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	record := &kgo.Record{Topic: c.Config.Topic(schemas.TopicHeads), Partition: 1, Key: []byte("x"), Value: []byte("x")}
	if err := stranger.ProduceSync(t.Context(), record).FirstErr(); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(c)
	cfg.TakeOverTimeout, cfg.RetryInterval = 200*time.Millisecond, 500*time.Millisecond
	p := halts(t, c, cfg, "waited 200ms for the last owner")
	if err := stranger.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
		t.Fatal(err)
	}
	awaitSealed(t, c)
	await(t, "ready", p.Ready)
	p.stop(t)
	checkTopics(t, c, 2*blockLeaves).wantTotals(t, 2200, 0, 0)
}

func TestRefusesOtherTopics(t *testing.T) {
	c := kafkatest.Start(t)
	cfg := testConfig(c)
	cfg.Layout.Partitions = 8
	p := newProcessor(t, cfg)
	var want *kafka.TopicsError
	if err := p.Run(t.Context()); !errors.As(err, &want) {
		t.Errorf("got %v, want a *kafka.TopicsError", err)
	}
}

func TestConfigRefused(t *testing.T) {
	c := &kafkatest.Cluster{Config: kafka.Config{Brokers: []string{"127.0.0.1:9"}, TopicPrefix: "x."}}
	c.Layout = schemas.TopicLayout{Prefix: "x.", Partitions: 4, Replicas: 1, LedgerRetentionDays: 30}
	good := testConfig(c)
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		want   string
		change func(*Config)
	}{
		{"no broker", func(c *Config) { c.Kafka.Brokers = nil }},
		{"topic prefix", func(c *Config) { c.Layout.Prefix = "y." }},
		{"0 partitions", func(c *Config) { c.Layout.Partitions = 0 }},
		{"instance", func(c *Config) { c.Instance = "a b" }},
		{"instance", func(c *Config) { c.Instance = strings.Repeat("a", 65) }},
		{"transaction records", func(c *Config) { c.TransactionRecords = -1 }},
		{"transaction bytes", func(c *Config) { c.TransactionBytes = 1 }},
		{"transaction interval", func(c *Config) { c.TransactionInterval = time.Minute }},
		{"transaction timeout", func(c *Config) { c.TransactionTimeout = time.Hour }},
		{"session timeout", func(c *Config) { c.SessionTimeout = 10 * time.Second }},
		{"dedup window", func(c *Config) { c.DedupLeaves = 1 }},
		{"multiple of 1000", func(c *Config) { c.DedupLeaves = 1500 }},
		{"fetch bytes", func(c *Config) { c.FetchBytes = 1 }},
		{"take-over timeout", func(c *Config) { c.TakeOverTimeout = -1 }},
		{"retry interval", func(c *Config) { c.RetryInterval = -1 }},
	} {
		cfg := good
		tt.change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
	}
}
