package diagnose_test

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/diagnose"
	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/internal/kafka/realkafka"
	"getimmutable.dev/immutable/schemas"
)

func TestRealSecuredBroker(t *testing.T) {
	brokers := realkafka.Start(t, realkafka.Config{Secured: true})
	in := brokers.Installation(t)
	mutual := brokers.MutualTLS()
	mutual.TopicPrefix = in.Config.TopicPrefix
	found := run(t, diagnose.Config{Kafka: mutual, Layout: in.Layout})
	want(t, found, diagnose.OK, "kafka version", "broker 1 is v4")
	want(t, found, diagnose.OK, "kafka clock", "the active controller's clock: +0.000 s")
	want(t, found, diagnose.Problem, "kafka certificates", `this client's: valid until`)
	want(t, found, diagnose.Problem, "kafka certificates", `127.0.0.1:`)
	want(t, found, diagnose.OK, "transactions", "no transaction is open")
	want(t, found, diagnose.OK, "kafka permissions", "9 topics")

	untrusted := brokers.SASL(kafka.MechanismPlain)
	untrusted.TLS.CAFile = ""
	want(t, run(t, diagnose.Config{Kafka: untrusted, Layout: in.Layout}), diagnose.Problem, "kafka", "--kafka-tls-ca")
	wrong := brokers.SASL(kafka.MechanismPlain)
	wrong.SASL.User = "somebody"
	want(t, run(t, diagnose.Config{Kafka: wrong, Layout: in.Layout}), diagnose.Problem, "kafka", "--kafka-sasl-user")
	plain := mutual
	plain.TLS = kafka.TLSConfig{}
	want(t, run(t, diagnose.Config{Kafka: plain, Layout: in.Layout, CheckTimeout: 4 * time.Second}), diagnose.Problem, "kafka", "it wants TLS (--kafka-tls)")
}

// TestRealThreeBrokers: an aborted transaction keeps nobody waiting, and a lost broker hides nothing else.
func TestRealThreeBrokers(t *testing.T) {
	brokers := realkafka.Start(t, realkafka.Config{Brokers: 3})
	in := brokers.Installation(t)
	cfg := diagnose.Config{Kafka: in.Config, Layout: in.Layout, BehindAfter: time.Nanosecond}
	aborted(t, in)
	// Replicas of new topics, and those of a broker that is gone, take a moment.
	await := func(level diagnose.Level, check, seen string) (found []diagnose.Finding) {
		for until := time.Now().Add(time.Minute); time.Now().Before(until); {
			if found = run(t, cfg); has(found, level, check, seen) {
				break
			}
		}
		want(t, found, level, check, seen)
		return found
	}
	found := await(diagnose.OK, "kafka partitions", "have all their replicas in sync")
	want(t, found, diagnose.OK, "kafka brokers", "brokers that answer: 3")
	want(t, found, diagnose.Warning, "group clickhouse", "has no member")

	brokers.Kill(3)
	found = await(diagnose.Warning, "kafka partitions", "start the brokers that are missing")
	want(t, found, diagnose.Problem, "kafka brokers", "")
	want(t, found, diagnose.OK, "topics", "as they must be")
}

func aborted(t *testing.T, c *kafkatest.Cluster) {
	t.Helper()
	cl := c.Client(t, kgo.TransactionalID(c.Config.Group("seal.0")), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: c.Config.Topic(schemas.TopicLedger), Value: []byte("x")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if err := cl.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
		t.Fatal(err)
	}
}
