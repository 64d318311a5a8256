package processor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kmsg"

	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/internal/kafka/realkafka"
	"getimmutable.dev/immutable/schemas"
)

func TestThreeRealBrokers(t *testing.T) {
	brokers := realkafka.Start(t, realkafka.Config{Brokers: 3, Proxied: true})
	for _, instance := range []string{"", "0"} {
		for _, timesOut := range []bool{false, true} {
			t.Run(fmt.Sprintf("markers delayed, instance %q, take-over times out %t", instance, timesOut), func(t *testing.T) {
				markersDelayed(t, brokers, instance, timesOut)
			})
		}
	}
	t.Run("a broker dies", func(t *testing.T) {
		c := brokers.Installation(t)
		underFault(t, c, func(coordinator int) (repair func()) {
			brokers.Kill(coordinator)
			return func() {
				awaitSealed(t, c) // it does without
				brokers.Restart(t, coordinator)
			}
		})
	})
	t.Run("a broker freezes", func(t *testing.T) {
		c := brokers.Installation(t)
		underFault(t, c, func(coordinator int) (repair func()) {
			brokers.Pause(t, coordinator)
			return func() {
				// When it wakes up, others lead what it takes itself for the leader of.
				await(t, "other leaders", func(ctx context.Context) error { return leadsNothing(ctx, t, c, coordinator) })
				brokers.Resume(t, coordinator)
			}
		})
	})
}

// leadsNothing says what a broker leads of the ledger.
func leadsNothing(ctx context.Context, t *testing.T, c *kafkatest.Cluster, broker int) error {
	t.Helper()
	topic := c.Config.Topic(schemas.TopicLedger)
	details, err := kadm.NewClient(c.Client(t)).ListTopics(ctx, topic)
	if err != nil {
		return err
	}
	for _, p := range details[topic].Partitions {
		if p.Leader == int32(broker) {
			return fmt.Errorf("broker %d leads partition %d", broker, p.Partition)
		}
	}
	return details.Error()
}

// coordinator returns the broker that keeps the group's offsets.
func coordinator(ctx context.Context, t *testing.T, c *kafkatest.Cluster) int {
	t.Helper()
	group := c.Config.Group(schemas.GroupSeal)
	found := kadm.NewClient(c.Client(t)).FindGroupCoordinators(ctx, group)
	if err := found.Error(); err != nil {
		t.Fatal(err)
	}
	return int(found[group].NodeID)
}

// unstable returns the partitions where a topic that sealing writes to has, on a broker, a transaction without its marker.
func unstable(ctx context.Context, c *kafkatest.Cluster, admin *kadm.Client, broker int) (partitions []int32, err error) {
	topics := []string{
		c.Config.Topic(schemas.TopicHeads), c.Config.Topic(schemas.TopicLedger), c.Config.Topic(schemas.TopicDedup),
	}
	details, err := admin.ListTopics(ctx, topics...)
	if err != nil {
		return nil, err
	}
	stable, err := admin.ListCommittedOffsets(ctx, topics...)
	if err != nil {
		return nil, err
	}
	ends, err := admin.ListEndOffsets(ctx, topics...)
	if err != nil {
		return nil, err
	}
	ends.Each(func(end kadm.ListedOffset) {
		at, _ := stable.Lookup(end.Topic, end.Partition)
		led := details[end.Topic].Partitions[end.Partition].Leader == int32(broker)
		if led && at.Offset < end.Offset && !slices.Contains(partitions, end.Partition) {
			partitions = append(partitions, end.Partition)
		}
	})
	return partitions, errors.Join(details.Error(), ends.Error(), stable.Error())
}

// A processor dies right after a commit whose markers are on their way to one of the brokers: the group has the new
// offsets already, heads and ledger show what was before. Whoever takes over then must wait.
func markersDelayed(t *testing.T, brokers *realkafka.Cluster, instance string, timesOut bool) {
	t.Helper()
	c := brokers.Installation(t)
	admin := kadm.NewClient(c.Client(t))
	produce(t, c, 0, 1000)
	first := startProcess(t, c, instance)
	awaitSealed(t, c)

	// The group's offsets are not on the slow broker, other things are.
	slow := coordinator(t.Context(), t, c)%3 + 1
	var delayed atomic.Int32
	arrive := make(chan struct{})
	release := sync.OnceFunc(func() {
		brokers.Intercept(nil)
		close(arrive)
	})
	defer release()
	brokers.Intercept(func(r *realkafka.Request) realkafka.Verdict {
		if r.Key == int16(kmsg.WriteTxnMarkers) && r.Broker == slow {
			delayed.Add(1)
			<-arrive
		}
		return realkafka.Verdict{}
	})
	produce(t, c, 1000, 1000)
	var waiting []int32
	await(t, "a commit that is half there", func(ctx context.Context) error {
		var err error
		waiting, err = unstable(ctx, c, admin, slow)
		left := unsealedOf(ctx, t, c, admin)
		for _, p := range waiting {
			if err == nil && delayed.Load() > 0 && left[p] < 250 {
				waiting = []int32{p}
				return nil
			}
		}
		return fmt.Errorf("%d markers delayed, unstable partitions %v, unsealed %v: %w", delayed.Load(), waiting, left, err)
	})
	first.kill()

	cfg := shortSessions(testConfig(c))
	cfg.Instance = instance
	want := "taking over partitions"
	if timesOut {
		cfg.TakeOverTimeout, cfg.RetryInterval = time.Second, 500*time.Millisecond
		want = fmt.Sprintf("partition %d is halted: waited 1s for the last owner", waiting[0])
	}
	second := start(t, cfg)
	await(t, want, func(ctx context.Context) error {
		if err := second.Ready(ctx); err == nil || !strings.Contains(err.Error(), want) {
			return fmt.Errorf("ready: %w", errors.Join(err))
		}
		return nil
	})
	if still, err := unstable(t.Context(), c, admin, slow); err != nil || !slices.Contains(still, waiting[0]) {
		t.Errorf("unstable partitions %v, want %v: %v", still, waiting, err)
	}
	release()
	await(t, "ready", second.Ready)
	produce(t, c, 2000, 500)
	awaitSealed(t, c)
	second.stop(t)
	checkTopics(t, c, 2*blockLeaves).wantTotals(t, 2500, 0, 0)
}

// underFault seals with two processors while something happens to the broker that coordinates them, of which one dies too.
func underFault(t *testing.T, c *kafkatest.Cluster, fault func(coordinator int) (repair func())) {
	t.Helper()
	produce(t, c, 0, 1000)
	cfg := shortSessions(testConfig(c))
	cfg.TransactionTimeout, cfg.SessionTimeout = 3*time.Second, 5*time.Second
	first, second := start(t, cfg), startProcess(t, c, "")
	awaitSealed(t, c)
	await(t, "ready", first.Ready)
	coordinator := coordinator(t.Context(), t, c)
	produce(t, c, 1000, 2000)
	repair := fault(coordinator)
	second.kill()
	third := startProcess(t, c, "")
	repair()
	awaitSealed(t, c)
	produce(t, c, 3000, 1000)
	awaitSealed(t, c)
	await(t, "ready", first.Ready)
	third.kill()
	first.stop(t)
	checkTopics(t, c, 2*blockLeaves).wantTotals(t, 4000, 0, 0)
}
