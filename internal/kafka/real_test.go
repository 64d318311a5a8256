package kafka_test

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/internal/kafka/realkafka"
	"getimmutable.dev/immutable/schemas"
)

func TestRealBroker(t *testing.T) {
	brokers := realkafka.Start(t, realkafka.Config{Secured: true})

	t.Run("several processes create topics", func(t *testing.T) {
		in := brokers.EmptyInstallation()
		var wg sync.WaitGroup
		for range 4 {
			cl := in.Client(t)
			wg.Go(func() {
				if err := kafka.CreateTopics(t.Context(), cl, schemas.Topics(in.Layout)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	})
	t.Run("every difference is named", func(t *testing.T) { differencesOnARealBroker(t, brokers) })
	t.Run("a record of tomorrow is taken", func(t *testing.T) {
		in := brokers.Installation(t)
		tomorrow := time.Now().Add(24 * time.Hour).Truncate(time.Millisecond)
		in.Produce(t, &kgo.Record{Topic: schemas.TopicEvents, Value: []byte("x"), Timestamp: tomorrow})
		if got := in.Consume(t, schemas.TopicEvents, 1)[0].Timestamp; !got.Equal(tomorrow) {
			t.Errorf("its time stamp is %s, want %s", got, tomorrow)
		}
	})
	t.Run("more replicas than brokers", func(t *testing.T) {
		in := brokers.EmptyInstallation()
		in.Layout.Replicas = 3
		err := kafka.CreateTopics(t.Context(), in.Client(t), schemas.Topics(in.Layout))
		if !errors.Is(err, kerr.InvalidReplicationFactor) || !strings.Contains(err.Error(), "creating topic "+in.Layout.Prefix) {
			t.Errorf("got %v", err)
		}
	})
	for name, cfg := range map[string]kafka.Config{
		"SASL PLAIN":         brokers.SASL(kafka.MechanismPlain),
		"SASL SCRAM-SHA-512": brokers.SASL(kafka.MechanismScramSHA512),
		"mutual TLS":         brokers.MutualTLS(),
	} {
		t.Run(name, func(t *testing.T) {
			in := brokers.EmptyInstallation()
			cfg.TopicPrefix = in.Layout.Prefix
			in.Config = cfg
			if err := kafka.CreateTopics(t.Context(), in.Client(t), schemas.Topics(in.Layout)); err != nil {
				t.Fatal(err)
			}
			in.Produce(t, &kgo.Record{Topic: schemas.TopicEvents, Value: []byte(name)})
			if got := in.Consume(t, schemas.TopicEvents, 1)[0].Value; string(got) != name {
				t.Errorf("got %s", got)
			}
		})
	}
	t.Run("who is not known is refused", func(t *testing.T) { refusals(t, brokers) })
}

func differencesOnARealBroker(t *testing.T, brokers *realkafka.Cluster) {
	t.Helper()
	in := brokers.Installation(t)
	cl, topics := in.Client(t), schemas.Topics(in.Layout)
	admin := kadm.NewClient(cl)
	if err := kafka.CheckTopics(t.Context(), cl, topics); err != nil {
		t.Fatal(err)
	}
	set := func(op kadm.IncrementalOp, topic, name, value string) {
		t.Helper()
		changes := []kadm.AlterConfig{{Op: op, Name: name, Value: &value}}
		answers, err := admin.AlterTopicConfigs(t.Context(), changes, in.Config.Topic(topic))
		for _, a := range answers {
			err = errors.Join(err, a.Err)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	set(kadm.SetConfig, schemas.TopicHeads, "cleanup.policy", "delete")
	set(kadm.DeleteConfig, schemas.TopicHeads, "segment.bytes", "")
	set(kadm.DeleteConfig, schemas.TopicDedup, "unclean.leader.election.enable", "") // the broker's default is the same
	if _, err := admin.UpdatePartitions(t.Context(), 6, in.Config.Topic(schemas.TopicEvents)); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.DeleteTopic(t.Context(), in.Config.Topic(schemas.TopicConfig)); err != nil {
		t.Fatal(err)
	}
	prefix := in.Layout.Prefix
	want := []string{
		prefix + "events: 6 partitions, must be 4",
		prefix + "heads: cleanup.policy is delete, must be compact",
		prefix + "heads: segment.bytes is 1073741824, must be 16777216",
		prefix + "config: missing",
	}
	// Kafka answers before it has done it.
	var diff string
	for range 100 {
		diff = cmp.Diff(want, differences(t, kafka.CheckTopics(t.Context(), cl, topics)))
		if diff == "" {
			return
		}
		timer := time.NewTimer(50 * time.Millisecond)
		<-timer.C
	}
	t.Error(diff)
}

func refusals(t *testing.T, brokers *realkafka.Cluster) {
	t.Helper()
	wrong := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(wrong, []byte("wrong"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		cfg    kafka.Config
		change func(*kafka.Config)
	}{
		"wrong password": {brokers.SASL(kafka.MechanismScramSHA512), func(c *kafka.Config) { c.SASL.PasswordFile = wrong }},
		"wrong password, PLAIN": {
			brokers.SASL(kafka.MechanismPlain), func(c *kafka.Config) { c.SASL.PasswordFile = wrong },
		},
		"wrong user":     {brokers.SASL(kafka.MechanismScramSHA512), func(c *kafka.Config) { c.SASL.User = "nobody" }},
		"no SASL":        {brokers.SASL(kafka.MechanismPlain), func(c *kafka.Config) { c.SASL = kafka.SASLConfig{} }},
		"no TLS":         {brokers.SASL(kafka.MechanismPlain), func(c *kafka.Config) { c.TLS = kafka.TLSConfig{} }},
		"no authority":   {brokers.SASL(kafka.MechanismPlain), func(c *kafka.Config) { c.TLS.CAFile = "" }},
		"no certificate": {brokers.MutualTLS(), func(c *kafka.Config) { c.TLS.CertFile, c.TLS.KeyFile = "", "" }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // some wait for a time-out
			test.change(&test.cfg)
			opts, err := test.cfg.Options(slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			cl, err := kgo.NewClient(append(opts, kgo.RequestRetries(0), kgo.RetryTimeout(5*time.Second))...)
			if err != nil {
				t.Fatal(err)
			}
			defer cl.Close()
			if err := cl.Ping(t.Context()); err == nil {
				t.Error("it got in")
			}
		})
	}
}

func TestThreeRealBrokers(t *testing.T) {
	brokers := realkafka.Start(t, realkafka.Config{Brokers: 3})
	in := brokers.Installation(t)
	cl, topics := in.Client(t), schemas.Topics(in.Layout)
	if err := kafka.CreateTopics(t.Context(), cl, topics); err != nil {
		t.Errorf("creating what exists: %v", err)
	}
	single := in.Layout
	single.Replicas = 1
	want := []string{
		in.Layout.Prefix + "events: 3 replicas, must be 1",
		in.Layout.Prefix + "events: min.insync.replicas is 2, must be 1",
	}
	if diff := cmp.Diff(want, differences(t, kafka.CheckTopics(t.Context(), cl, schemas.Topics(single)[:1]))); diff != "" {
		t.Error(diff)
	}

	// One of three may die: what is acknowledged is on another.
	produce := func(value string) {
		t.Helper()
		in.Produce(t, &kgo.Record{Topic: schemas.TopicEvents, Value: []byte(value)})
	}
	produce("all")
	brokers.Kill(2)
	produce("without 2")
	brokers.Restart(t, 2)
	produce("all")
	for i, r := range in.Consume(t, schemas.TopicEvents, 3) {
		if r.Offset != int64(i) {
			t.Errorf("record %d, %s, is at offset %d", i, r.Value, r.Offset)
		}
	}
	if err := kafka.CheckTopics(t.Context(), cl, topics); err != nil {
		t.Error(err)
	}
}
