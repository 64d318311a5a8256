package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
	"getimmutable.dev/immutable/internal/kafka/realkafka"
	"getimmutable.dev/immutable/internal/loadgen"
	"getimmutable.dev/immutable/schemas"
)

// TestDiskFull fills the disk under `up`.
func TestDiskFull(t *testing.T) {
	long(t)
	data := smallDisk(t)
	s := newUp(t, immutable(t), data)
	t.Cleanup(func() { s.kill(t) })
	s.start()
	s.ready(t)
	l := s.startLoad(t, loadgen.Config{Seed: 801, KeyedPercent: 100}, loadgen.ClientConfig{}, 1_000_000)
	l.acknowledges(t, 2_000)
	filler := filepath.Join(data, "filler")
	for l.Stats().Unavailable == 0 {
		fill(t, filler, spared)
		if err := t.Context().Err(); err != nil {
			t.Fatalf("the disk is full and no request was answered with 503: %+v", l.Stats())
		}
	}
	full := l.Stats()
	eventually(t, time.Minute, func() error {
		if more := l.Stats().Unavailable - full.Unavailable; more < 5 {
			return fmt.Errorf("%d requests more were answered with 503", more)
		}
		return nil
	})
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	l.acknowledges(t, 2_000)
	t.Logf("accepted again %v after there was space", time.Since(began))
	l.quit(t)
	s.ready(t)
	t.Logf("check: %s; %+v", s.check(t, 4_000), l.Stats())
	s.stop(t)
}

// TestKafkaDiskFull fills the disk of a Kafka with a single replica under load, for longer than a transaction may be open.
// The broker ends, events are refused, and with space the broker comes back. Events are accepted or refused, each in time,
// and none that was accepted is lost or there twice.
func TestKafkaDiskFull(t *testing.T) {
	long(t)
	disk := smallDisk(t)
	t.Parallel() // mostly it waits
	broker := realkafka.Start(t, realkafka.Config{Properties: map[string]string{
		"log.dirs": filepath.Join(disk, "data"),
		// Kafka's own. With a shorter one it aborts transactions while it starts, and most of the time they hang then.
		"transaction.abort.timed.out.transaction.cleanup.interval.ms": "10000",
	}})
	s := newServices(t, broker.EmptyInstallation(), clickhousetest.StartEmpty(t).DSN())
	processor := s.service("processor")
	s.ready(t, processor)
	l := s.startLoad(t, loadgen.Config{Seed: 951, KeyedPercent: 100},
		loadgen.ClientConfig{EventsPerRequest: 5, EventsPerSecond: 200, RequestTimeout: answered}, 100_000_000)
	l.acknowledges(t, 500)

	leaveOpen(t, broker, s.e.prefix+schemas.TopicLedger, s.layout.Partitions)
	filler := filepath.Join(disk, "filler")
	eventually(t, recovery, func() error {
		fill(t, filler, 0)
		if broker.Running(1) {
			return errors.New("the broker runs on a full disk")
		}
		return nil
	})
	refusedFor(t, s, l, openFor+time.Second)
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	broker.Restart(t, 1)
	began := time.Now()
	l.acknowledges(t, 500)
	id := s.post(t, []byte(`{"actor_id":"e2e","action":"outage.ended"}`))
	admin, hung := kadm.NewClient(broker.Client(t)), 0
	eventually(t, recovery, func() error {
		hung += s.endHanging(t, admin) // a coordinator that was in the middle of an abort may leave some
		return s.tryGet(t.Context(), "/events/"+id, nil, new(map[string]any))
	})
	t.Logf("readable after %s; %d hanging transactions", time.Since(began).Round(10*time.Millisecond), hung)
	if stats := l.Stats(); stats.Failed > 0 { // before the load's own end cuts some short
		t.Errorf("requests without an answer within %s: %+v", answered, stats)
	}
	l.quit(t)
	t.Logf("check: %s; %+v", s.check(t, 1_000), l.Stats())
	for _, p := range []*process{processor, s.ingest.Load(), s.query.Load(), s.sinks} {
		p.stop(t)
	}
}

// openFor is how long a transaction may be open: the processor's, and that of leaveOpen.
const openFor = 10 * time.Second

// leaveOpen leaves a transaction open in every partition of a topic, as a processor that is in the middle of one does.
func leaveOpen(t *testing.T, broker *realkafka.Cluster, topic string, partitions int32) {
	t.Helper()
	cl := broker.Client(t, kgo.TransactionalID("left-open"), kgo.TransactionTimeout(openFor), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	for p := range partitions {
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Partition: p, Value: []byte("x")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// smallDisk mounts a file system of 512 MiB until the test's end. Without the right to, the test is skipped, or fails where
// IMMUTABLE_REQUIRE_REAL=1 says that everything is expected to run.
func smallDisk(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=512m,mode=0700"); err != nil {
		if os.Getenv("IMMUTABLE_REQUIRE_REAL") == "1" {
			t.Fatalf("mounting a tmpfs: %v", err)
		}
		t.Skipf("mounting a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	return dir
}

// spared is what is left of a disk with ClickHouse on it: far less than our own limits (256, 128 and 64 MiB), and enough
// for the merges that it has begun. One of those that meets a disk with nothing left can publish a part whose index is
// empty.
const spared = 24 << 20

// fill appends to a file until no more than spare is left of the disk.
func fill(t *testing.T, path string, spare int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for {
		var disk syscall.Statfs_t
		if err := syscall.Statfs(path, &disk); err != nil {
			t.Fatal(err)
		}
		n := min(int64(disk.Bavail)*disk.Bsize-spare, 1<<20)
		if n <= 0 {
			return
		}
		if _, err := f.Write(make([]byte, n)); err != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
}
