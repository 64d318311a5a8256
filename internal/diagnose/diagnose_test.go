package diagnose_test

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
	"getimmutable.dev/immutable/internal/diagnose"
	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

func TestMain(m *testing.M) { os.Exit(clickhousetest.Main(m)) }

func run(t *testing.T, cfg diagnose.Config) []diagnose.Finding {
	t.Helper()
	if cfg.SecondLook == 0 {
		cfg.SecondLook = 10 * time.Millisecond
	}
	found, err := diagnose.Run(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		bad := f.Level == diagnose.Warning || f.Level == diagnose.Problem
		if f.Check == "" || f.Seen == "" || bad != (f.Why != "") || bad != (f.Do != "") {
			t.Errorf("not a finding that says what to do: %+v", f)
		}
	}
	return found
}

// want looks for a finding.
func has(found []diagnose.Finding, level diagnose.Level, check, seen string) bool {
	return slices.ContainsFunc(found, func(f diagnose.Finding) bool {
		return f.Level == level && f.Check == check && strings.Contains(f.Seen+" "+f.Why+" "+f.Do, seen)
	})
}

func want(t *testing.T, found []diagnose.Finding, level diagnose.Level, check, seen string) {
	t.Helper()
	if has(found, level, check, seen) {
		return
	}
	t.Errorf("no %s of check %q with %q; its findings:", level, check, seen)
	for _, f := range found {
		if f.Check == check {
			t.Logf("%+v", f)
		}
	}
}

func masterKey(t *testing.T) control.MasterKey {
	t.Helper()
	key, err := control.CreateMasterKey(filepath.Join(t.TempDir(), "master.key"))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func having(key control.MasterKey) func() (control.MasterKey, error) {
	return func() (control.MasterKey, error) { return key, nil }
}

// join makes a member of a group, which reads and commits nothing.
func join(t *testing.T, c *kafkatest.Cluster, group, topic string) {
	t.Helper()
	assigned := make(chan struct{}, 1)
	cl := c.Client(t, kgo.ConsumerGroup(c.Config.Group(group)), kgo.ConsumeTopics(c.Config.Topic(topic)), kgo.DisableAutoCommit(),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, got map[string][]int32) {
			if len(got) > 0 {
				assigned <- struct{}{}
			}
		}))
	stop := make(chan struct{})
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(done)
		cl.PollFetches(ctx)
		<-stop
	}()
	t.Cleanup(func() { cancel(); close(stop); <-done })
	<-assigned
}

func TestKafka(t *testing.T) {
	c := kafkatest.Start(t)
	key := masterKey(t)
	cfg := diagnose.Config{Kafka: c.Config, Layout: c.Layout, MasterKey: having(key)}
	found := run(t, cfg)
	want(t, found, diagnose.OK, "kafka brokers", "brokers that answer: 1")
	want(t, found, diagnose.OK, "topics", "9 topics are as they must be")
	want(t, found, diagnose.OK, "transactions", "no transaction is open")
	want(t, found, diagnose.OK, "kafka permissions", "9 topics")
	want(t, found, diagnose.Warning, "kafka partitions", "single replica")
	want(t, found, diagnose.Warning, "configuration", "immutable workspaces create")
	want(t, found, diagnose.Warning, "group seal", "has no member")
	want(t, found, diagnose.Warning, "checkpoints", "has no member; no checkpoint was ever signed")
	want(t, found, diagnose.NotRun, "clickhouse", "--clickhouse or --data was not given")

	w, err := control.NewWriter(control.WriterConfig{Kafka: c.Config, MasterKey: key, Partitions: 4}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ws, err := w.CreateWorkspace(t.Context(), "cli:test", control.NewWorkspace{Name: "default"})
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = w.CreateKey(t.Context(), "cli:test", control.NewKey{
		Workspace: ws.ID, Name: "soon gone", Scopes: []control.Scope{control.ScopeRead}, ExpiresAt: time.Now().Add(time.Hour),
	})
	if err != nil {
		t.Fatal(err)
	}
	found = run(t, cfg)
	want(t, found, diagnose.Warning, "configuration", `API key "soon gone"`)
	want(t, found, diagnose.Problem, "group seal", "has no member, and records of")

	cfg.BehindAfter = time.Nanosecond
	join(t, c, schemas.GroupSeal, schemas.TopicEvents)
	want(t, run(t, cfg), diagnose.Problem, "group seal", "stands still at offset 0")

	cfg.MasterKey = having(masterKey(t))
	want(t, run(t, cfg), diagnose.Problem, "configuration", "wrong master key")
	cfg.MasterKey = func() (control.MasterKey, error) { return control.LoadMasterKey("missing") }
	want(t, run(t, cfg), diagnose.Problem, "configuration", "open master key")
	cfg.MasterKey = nil
	want(t, run(t, cfg), diagnose.NotRun, "configuration", "--master-key-file")
}

// A notary that signs, one that has stopped to, and none.
func TestCheckpoints(t *testing.T) {
	c := kafkatest.Start(t)
	cfg := diagnose.Config{Kafka: c.Config, Layout: c.Layout}
	sign := func(size uint64, at time.Time) {
		t.Helper()
		value, err := proto.Marshal(&recordpb.SignedCheckpoint{Size: size, PublishedAt: at.UnixMicro()})
		if err != nil {
			t.Fatal(err)
		}
		c.Produce(t, &kgo.Record{Topic: schemas.TopicCheckpoints, Key: []byte("checkpoint/1"), Value: value})
	}
	sign(1, time.Now().Add(-time.Hour))
	want(t, run(t, cfg), diagnose.Warning, "checkpoints", "has no member; the newest checkpoint is of 1 entries, 1h0m")
	join(t, c, schemas.GroupNotary, schemas.TopicCheckpoints)
	want(t, run(t, cfg), diagnose.Problem, "checkpoints", "members: 1; the newest checkpoint is of 1 entries, 1h0m")
	sign(2, time.Now())
	want(t, run(t, cfg), diagnose.OK, "checkpoints", "members: 1; the newest checkpoint is of 2 entries")
	c.Produce(t, &kgo.Record{Topic: schemas.TopicCheckpoints, Key: []byte("checkpoint/3"), Value: []byte{1}})
	want(t, run(t, cfg), diagnose.Problem, "checkpoints", "reading the newest checkpoint")
}

func TestOldBrokers(t *testing.T) {
	for _, tc := range []struct {
		name     string
		versions *kversion.Versions
		level    diagnose.Level
		why      string
	}{
		{"2.4", kversion.V2_4_0(), diagnose.Problem, "before 2.5"},
		{"3.9", kversion.V3_9_0(), diagnose.Warning, "before 4.0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := kafkatest.StartEmpty(t, kfake.MaxVersions(tc.versions))
			want(t, run(t, diagnose.Config{Kafka: c.Config, Layout: c.Layout}), tc.level, "kafka version", tc.why)
		})
	}
}

func TestOpenTransaction(t *testing.T) {
	c := kafkatest.Start(t)
	cl := c.Client(t, kgo.TransactionalID(c.Config.Group("seal.0")), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: c.Config.Topic(schemas.TopicLedger), Value: []byte("x")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	found := run(t, diagnose.Config{Kafka: c.Config, Layout: c.Layout})
	want(t, found, diagnose.OK, "transactions", "1 transactions are open, none past its time")
	// What is not committed does not wait for anybody.
	want(t, found, diagnose.Warning, "group clickhouse", "has no member")

	// Its coordinator has forgotten it.
	c.Fake.ControlKey(int16(kmsg.ListTransactions), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.Fake.KeepControl()
		return req.ResponseKind(), nil, true
	})
	found = run(t, diagnose.Config{Kafka: c.Config, Layout: c.Layout})
	want(t, found, diagnose.Problem, "transactions", "a transaction on immutable.ledger/0 is open from offset 0")
	want(t, found, diagnose.Problem, "transactions", "abort --topic immutable.ledger --partition 0 --start-offset 0")
}

func TestTopicsThatDiffer(t *testing.T) {
	c := kafkatest.StartEmpty(t)
	cl := c.Client(t)
	topics := schemas.Topics(c.Layout)[1:] // without events
	topics[0].Configs["min.insync.replicas"] = "2"
	if err := kafka.CreateTopics(t.Context(), cl, topics); err != nil {
		t.Fatal(err)
	}
	layout := c.Layout
	layout.Partitions, layout.Replicas = 12, 3
	found := run(t, diagnose.Config{Kafka: c.Config, Layout: layout})
	want(t, found, diagnose.Problem, "kafka brokers", "1 of the 3 brokers")
	want(t, found, diagnose.Problem, "topics", "4 partitions, must be 12")
	found = run(t, diagnose.Config{Kafka: c.Config, Layout: c.Layout})
	want(t, found, diagnose.Problem, "topics", "immutable.events: missing")
	want(t, found, diagnose.Problem, "topics", "--entity-name immutable.ledger --add-config min.insync.replicas=1")
	layout.Replicas = 1
	found = run(t, diagnose.Config{Kafka: c.Config, Layout: layout})
	want(t, found, diagnose.Problem, "topics", "4 partitions, must be 12")
	want(t, found, diagnose.Problem, "topics", "give the flags that the topics were created with")
}

func TestUnreachable(t *testing.T) {
	// One that takes connections and says nothing.
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	layout := schemas.TopicLayout{Prefix: "immutable.", Partitions: 4, Replicas: 1, LedgerRetentionDays: 30}
	for addr, do := range map[string]string{"127.0.0.1:1": "start Kafka", silent.Addr().String(): "nothing answers there"} {
		found := run(t, diagnose.Config{
			Kafka: kafka.Config{Brokers: []string{addr}, TopicPrefix: "immutable."}, Layout: layout, CheckTimeout: 400 * time.Millisecond,
			ClickHouse: clickhouse.Config{DSN: "clickhouse://" + addr + "/x", DialTimeout: 100 * time.Millisecond},
			Dir:        t.TempDir(), MinFreeBytes: 1,
		})
		want(t, found, diagnose.Problem, "kafka", do)
		want(t, found, diagnose.NotRun, "kafka partitions", "needs kafka, which failed")
		want(t, found, diagnose.Problem, "clickhouse", "start the server")
		want(t, found, diagnose.NotRun, "schema", "needs clickhouse, which failed")
		want(t, found, diagnose.NotRun, "ledger in clickhouse", "needs kafka")
		want(t, found, diagnose.OK, "disk", "MiB free")
	}
}

func TestRefusedByACLs(t *testing.T) {
	c := kafkatest.StartEmpty(t, kfake.EnableSASL(), kfake.EnableACLs(), kfake.Superuser("PLAIN", "root", "r"), kfake.User("PLAIN", "nobody", "n"))
	password := func(text string) string {
		path := filepath.Join(t.TempDir(), text)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	c.Config.SASL = kafka.SASLConfig{Mechanism: "PLAIN", User: "root", PasswordFile: password("r")}
	if err := kafka.CreateTopics(t.Context(), c.Client(t), schemas.Topics(c.Layout)); err != nil {
		t.Fatal(err)
	}
	want(t, run(t, diagnose.Config{Kafka: c.Config, Layout: c.Layout}), diagnose.OK, "kafka permissions", "9 topics")
	c.Config.SASL.User, c.Config.SASL.PasswordFile = "nobody", password("n")
	found := run(t, diagnose.Config{Kafka: c.Config, Layout: c.Layout})
	want(t, found, diagnose.Problem, "kafka permissions", "topic immutable.events: nobody is not allowed to DESCRIBE")
	want(t, found, diagnose.Problem, "kafka permissions", "group immutable.seal: nobody")
	want(t, found, diagnose.Problem, "transactions", "transactional id immutable.config")
	c.Config.SASL.PasswordFile = password("wrong")
	want(t, run(t, diagnose.Config{Kafka: c.Config, Layout: c.Layout}), diagnose.Problem, "kafka", "--kafka-sasl-password-file")
}
