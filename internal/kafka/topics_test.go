package kafka_test

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/schemas"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func differences(t *testing.T, err error) []string {
	t.Helper()
	if err == nil {
		return nil
	}
	e, ok := errors.AsType[*kafka.TopicsError](err)
	if !ok {
		t.Fatalf("not a difference: %v", err)
	}
	return e.Differences
}

func TestCreatedTopicsPassTheCheck(t *testing.T) {
	cluster := kafkatest.Start(t)
	cl, topics := cluster.Client(t), schemas.Topics(cluster.Layout)
	if err := kafka.CheckTopics(t.Context(), cl, topics); err != nil {
		t.Error(err)
	}
	if err := kafka.CreateTopics(t.Context(), cl, topics); err != nil {
		t.Errorf("creating what exists: %v", err)
	}
}

func TestTwoProcessesCreateTopics(t *testing.T) {
	cluster := kafkatest.StartEmpty(t)
	topics := schemas.Topics(cluster.Layout)
	var wg sync.WaitGroup
	for range 4 {
		cl := cluster.Client(t)
		wg.Go(func() {
			if err := kafka.CreateTopics(t.Context(), cl, topics); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestCheckTopicsNamesEveryDifference(t *testing.T) {
	topics := schemas.Topics(schemas.TopicLayout{Prefix: "immutable.", Partitions: 4, Replicas: 1, LedgerRetentionDays: 30})
	ptr := func(s string) *string { return &s }
	for name, tc := range map[string]struct {
		change func(t *testing.T, admin *kadm.Client)
		want   []string
	}{
		"nothing": {func(*testing.T, *kadm.Client) {}, nil},
		"a missing topic": {
			func(t *testing.T, admin *kadm.Client) {
				t.Helper()
				if _, err := admin.DeleteTopic(t.Context(), "immutable.dedup"); err != nil {
					t.Fatal(err)
				}
			},
			[]string{"immutable.dedup: missing"},
		},
		"more partitions": {
			func(t *testing.T, admin *kadm.Client) {
				t.Helper()
				if _, err := admin.UpdatePartitions(t.Context(), 6, "immutable.events"); err != nil {
					t.Fatal(err)
				}
			},
			[]string{"immutable.events: 6 partitions, must be 4"},
		},
		"another cleanup and retention": {
			func(t *testing.T, admin *kadm.Client) {
				t.Helper()
				if _, err := admin.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{
					{Op: kadm.SetConfig, Name: "cleanup.policy", Value: ptr("delete")},
					{Op: kadm.SetConfig, Name: "retention.ms", Value: ptr("1000")},
				}, "immutable.heads"); err != nil {
					t.Fatal(err)
				}
			},
			[]string{
				"immutable.heads: cleanup.policy is delete, must be compact",
				"immutable.heads: retention.ms is 1000, must be -1",
			},
		},
		"a config that is not set": {
			func(t *testing.T, admin *kadm.Client) {
				t.Helper()
				if _, err := admin.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{
					{Op: kadm.DeleteConfig, Name: "unclean.leader.election.enable"},
				}, "immutable.config"); err != nil {
					t.Fatal(err)
				}
			},
			[]string{"immutable.config: unclean.leader.election.enable is not set, must be false"},
		},
		"two topics at once": {
			func(t *testing.T, admin *kadm.Client) {
				t.Helper()
				if _, err := admin.DeleteTopics(t.Context(), "immutable.ledger", "immutable.dlq"); err != nil {
					t.Fatal(err)
				}
				if _, err := admin.CreateTopic(t.Context(), 1, 1, nil, "immutable.dlq"); err != nil {
					t.Fatal(err)
				}
			},
			[]string{
				"immutable.ledger: missing",
				"immutable.dlq: 1 partition, must be 3",
				"immutable.dlq: message.timestamp.after.max.ms is not set, must be 9223372036854775807",
				"immutable.dlq: retention.ms is 604800000, must be 2592000000",
				"immutable.dlq: unclean.leader.election.enable is not set, must be false",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			cluster := kafkatest.Start(t)
			cl := cluster.Client(t)
			tc.change(t, kadm.NewClient(cl))
			err := kafka.CheckTopics(t.Context(), cl, topics)
			if diff := cmp.Diff(tc.want, differences(t, err)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestCheckTopicsComparesReplicas(t *testing.T) {
	cluster := kafkatest.Start(t)
	topics := schemas.Topics(cluster.Layout)[:1]
	topics[0].Replicas = 3
	want := []string{"immutable.events: 1 replica, must be 3"}
	got := differences(t, kafka.CheckTopics(t.Context(), cluster.Client(t), topics))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestCreateTopicsSaysWhatTheBrokerRefuses(t *testing.T) {
	cluster := kafkatest.StartEmpty(t)
	topics := []schemas.Topic{{Name: "immutable.events", Partitions: 0, Replicas: 1}}
	err := kafka.CreateTopics(t.Context(), cluster.Client(t), topics)
	if !errors.Is(err, kerr.InvalidPartitions) || !strings.Contains(err.Error(), "creating topic immutable.events") {
		t.Errorf("got %v", err)
	}
}

func TestUnreachableClusterIsNotADifference(t *testing.T) {
	cluster := kafkatest.Start(t)
	cl := cluster.Client(t, kgo.RequestRetries(0))
	cluster.Fake.Close()
	err := kafka.CheckTopics(t.Context(), cl, schemas.Topics(cluster.Layout))
	if _, is := errors.AsType[*kafka.TopicsError](err); err == nil || is {
		t.Errorf("got %v", err)
	}
}

func TestProduceConsume(t *testing.T) {
	cluster := kafkatest.Start(t)
	sent := cluster.Produce(t,
		&kgo.Record{Topic: schemas.TopicEvents, Partition: 3, Value: []byte("a")},
		&kgo.Record{Topic: schemas.TopicEvents, Partition: 3, Value: []byte("b")},
	)
	got := cluster.Consume(t, schemas.TopicEvents, 2)
	for i, r := range got {
		if r.Partition != 3 || r.Offset != int64(i) || sent[i].Offset != int64(i) || string(r.Value) != string(sent[i].Value) {
			t.Errorf("record %d: partition %d, offset %d, %q", i, r.Partition, r.Offset, r.Value)
		}
	}
}
