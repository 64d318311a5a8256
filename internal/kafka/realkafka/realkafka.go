// Package realkafka gives tests a real Apache Kafka: one broker or three, from the jars of Maven Central, as child
// processes that can be killed, stopped and frozen. It starts in seconds, where kafkatest's takes milliseconds: a test
// binary has one test that starts it, with subtests that have an Installation each.
package realkafka

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/schemas"
)

const (
	// startLimit is for a busy machine; on an idle one a broker starts in 4 s.
	startLimit = 90 * time.Second
	// fetchLimit is for fetching 43 MB of jars, once a machine.
	fetchLimit = 5 * time.Minute
	stopLimit  = 30 * time.Second
)

// Config is what a test wants of its brokers.
type Config struct {
	// Properties are added to those of every broker, or replace them.
	Properties map[string]string
	// Brokers is 1 or 3; each is a controller too. Default 1. With three, everything has three replicas, of which two
	// must be in sync.
	Brokers int
	// Secured adds two listeners to the one without any security: Cluster.SASL and Cluster.MutualTLS reach them.
	Secured bool
	// Proxied puts a proxy before each broker, for Cluster.Intercept and Cluster.Cut.
	Proxied bool
}

// Cluster is a running Kafka. The test's end kills it.
type Cluster struct {
	brokers  []*broker
	security *security // nil unless secured
	hook     atomic.Pointer[Hook]
	prefixes atomic.Int64
}

// Start runs brokers and waits until they work. In a short run the test is skipped. Where there is no Java or no Maven it
// is skipped too, or fails with IMMUTABLE_REQUIRE_REAL=1 in the environment, as in continuous integration.
func Start(tb testing.TB, cfg Config) *Cluster {
	tb.Helper()
	if testing.Short() {
		tb.Skip("a real Kafka takes seconds to start")
	}
	requireJava(tb)
	dir, err := resolve(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	c := &Cluster{}
	if cfg.Secured {
		if c.security, err = newSecurity(tb.TempDir()); err != nil {
			tb.Fatalf("making certificates: %v", err)
		}
	}
	for id := range max(1, cfg.Brokers) {
		b, err := newBroker(id+1, dir, tb.TempDir(), cfg.Secured)
		if err != nil {
			tb.Fatal(err)
		}
		c.brokers = append(c.brokers, b)
		tb.Cleanup(b.close)
		if !cfg.Proxied {
			continue
		}
		for _, listener := range []string{listenerClients, listenerBrokers} {
			if err := c.proxy(b, listener); err != nil {
				tb.Fatal(err)
			}
		}
	}
	tb.Cleanup(func() {
		for _, b := range c.brokers {
			b.kill()
			if tb.Failed() {
				tb.Logf("broker %d, the end of its log:\n%s", b.id, b.log.tail())
			}
		}
	})
	ctx, cancel := context.WithTimeout(tb.Context(), startLimit)
	defer cancel()
	if err := c.start(ctx, cfg); err != nil {
		tb.Fatal(err)
	}
	return c
}

// start formats the brokers' folders and starts the brokers.
func (c *Cluster) start(ctx context.Context, cfg Config) error {
	each := func(do func(b *broker) error) error {
		done := make(chan error)
		for _, b := range c.brokers {
			go func() { done <- do(b) }()
		}
		var errs []error
		for range c.brokers {
			errs = append(errs, <-done)
		}
		return errors.Join(errs...)
	}
	if err := each(func(b *broker) error { return b.format(ctx, c.properties(b, cfg), c.security) }); err != nil {
		return err
	}
	// All before any is waited for: the first is up only with the second.
	if err := each(func(b *broker) error { return b.start(ctx) }); err != nil {
		return err
	}
	return c.await(ctx)
}

// await waits until a new client finds every broker that runs. One that was made earlier may go on not finding them.
func (c *Cluster) await(ctx context.Context) error {
	running := 0
	for _, b := range c.brokers {
		if b.running() {
			running++
		}
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		found, err := c.find(ctx)
		if err == nil && found == running {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %d brokers: %d found: %w", running, found, errors.Join(err, ctx.Err()))
		case <-tick.C:
		}
	}
}

func (c *Cluster) find(ctx context.Context) (brokers int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.addresses(listenerClients)...))
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	metadata, err := kadm.NewClient(cl).BrokerMetadata(ctx)
	return len(metadata.Brokers), err
}

func (c *Cluster) addresses(listener string) []string {
	addresses := make([]string, len(c.brokers))
	for i, b := range c.brokers {
		addresses[i] = b.advertised(listener)
	}
	return addresses
}

// Config reaches the brokers without any security. Its prefix is "immutable.".
func (c *Cluster) Config() kafka.Config {
	return kafka.Config{
		Brokers: c.addresses(listenerClients), TopicPrefix: schemas.DefaultTopicPrefix, ClientID: "test",
	}
}

// Client returns a client of the cluster. The test's end closes it.
func (c *Cluster) Client(tb testing.TB, opts ...kgo.Opt) *kgo.Client {
	tb.Helper()
	return (&kafkatest.Cluster{Config: c.Config()}).Client(tb, opts...)
}

// Installation returns topics of their own, with 4 partitions, for everything that tests do with kafkatest's; only that
// its Fake is nil.
func (c *Cluster) Installation(tb testing.TB) *kafkatest.Cluster {
	tb.Helper()
	in := c.EmptyInstallation()
	ctx, cancel := context.WithTimeout(tb.Context(), startLimit)
	defer cancel()
	if err := kafka.CreateTopics(ctx, in.Client(tb), schemas.Topics(in.Layout)); err != nil {
		tb.Fatal(err)
	}
	return in
}

// EmptyInstallation is Installation without the topics: a prefix that no other installation has.
func (c *Cluster) EmptyInstallation() *kafkatest.Cluster {
	cfg := c.Config()
	cfg.TopicPrefix = "immutable" + strconv.FormatInt(c.prefixes.Add(1), 10) + "."
	return &kafkatest.Cluster{
		Config: cfg,
		Layout: schemas.TopicLayout{
			Prefix: cfg.TopicPrefix, Partitions: 4, Replicas: int16(len(c.brokers)), LedgerRetentionDays: 30,
		},
	}
}

// Kill ends a broker as a power cut of its process would: what it had written is in the system's cache and survives.
// Brokers are numbered from 1, as in their ids.
func (c *Cluster) Kill(id int) { c.brokers[id-1].kill() }

// Running says whether a broker's process runs: some faults end it.
func (c *Cluster) Running(id int) bool { return c.brokers[id-1].running() }

// Stop asks a broker to end, which hands its partitions to others, and waits for it.
func (c *Cluster) Stop(tb testing.TB, id int) {
	tb.Helper()
	if err := c.brokers[id-1].stop(); err != nil {
		tb.Fatal(err)
	}
}

// Restart starts a broker that was killed or stopped, on its data, and waits until it works.
func (c *Cluster) Restart(tb testing.TB, id int) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), startLimit)
	defer cancel()
	err := c.brokers[id-1].start(ctx)
	if err == nil {
		err = c.await(ctx)
	}
	if err != nil {
		tb.Fatal(err)
	}
}

// Cut ends the connections of a proxied broker with its clients and refuses others, until Mend. The broker itself goes on: what clients have left
// open it ends in time.
func (c *Cluster) Cut(id int) { c.brokers[id-1].proxies[listenerClients].close() }

// Mend lets clients reach a broker again.
func (c *Cluster) Mend(tb testing.TB, id int) {
	tb.Helper()
	if err := c.brokers[id-1].proxies[listenerClients].open(); err != nil {
		tb.Fatal(err)
	}
}

// Pause freezes a broker: its connections stay, and nothing is answered. After 3 s the others take it for dead.
func (c *Cluster) Pause(tb testing.TB, id int) {
	tb.Helper()
	if err := freeze(c.brokers[id-1].cmd.Process); err != nil {
		tb.Fatal(err)
	}
}

// Resume lets a frozen broker go on.
func (c *Cluster) Resume(tb testing.TB, id int) {
	tb.Helper()
	if err := c.brokers[id-1].cmd.Process.Signal(syscall.SIGCONT); err != nil {
		tb.Fatal(err)
	}
}

// Log returns what a broker last logged, at most 64 KiB.
func (c *Cluster) Log(id int) string { return c.brokers[id-1].log.tail() }
