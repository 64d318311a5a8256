package localkafka

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"
)

// The child of TestKill copies the topic "in" to every partition of out-0, out-1 and out-2, exactly once, as the
// processor does, and is killed at random moments.
const (
	childEnv   = "IMMUTABLE_TEST_LOCALKAFKA_DIR"
	endMark    = "end"
	outTopics  = 3
	partitions = 2
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		if err := child(context.Background(), dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func child(ctx context.Context, dir string) error {
	s, err := Start(Config{Dir: dir, MinFreeBytes: 1, CompactInterval: 20 * time.Millisecond}, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	if err := createTopics(ctx, s.Addr()); err != nil {
		return err
	}
	producer, err := kgo.NewClient(kgo.SeedBrokers(s.Addr()), kgo.DefaultProduceTopic("in"), kgo.ProducerLinger(0))
	if err != nil {
		return err
	}
	ends, err := kadm.NewClient(producer).ListEndOffsets(ctx, "in")
	if err != nil {
		return err
	}
	end, _ := ends.Lookup("in", 0)
	session, err := kgo.NewGroupTransactSession(
		kgo.SeedBrokers(s.Addr()), kgo.TransactionalID("copy"), kgo.ConsumerGroup("copy"), kgo.InstanceID("0"),
		kgo.ConsumeTopics("in"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.ProducerLinger(0),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.FetchMaxWait(10*time.Millisecond), kgo.MetadataMinAge(10*time.Millisecond),
	)
	if err != nil {
		return err
	}
	go func() {
		for i := end.Offset; ; i++ {
			if producer.ProduceSync(ctx, kgo.StringRecord(strconv.FormatInt(i, 10))).FirstErr() != nil {
				return
			}
			fmt.Println("in", i)
		}
	}()
	for {
		fetches := session.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return err
		}
		if fetches.NumRecords() == 0 {
			continue
		}
		if err := session.Begin(); err != nil {
			return err
		}
		var records []*kgo.Record
		for _, in := range fetches.Records() {
			for t := range outTopics {
				for p := range int32(partitions) {
					records = append(records, &kgo.Record{Topic: "out-" + strconv.Itoa(t), Partition: p, Key: []byte("k" + string(in.Value)), Value: in.Value})
				}
			}
		}
		if err := session.ProduceSync(ctx, records...).FirstErr(); err != nil {
			return err
		}
		if _, err := session.End(ctx, kgo.TryCommit); err != nil {
			return err
		}
	}
}

// createTopics: "out-2" is compacted, under keys that are all different, so compaction must not change what it holds.
func createTopics(ctx context.Context, addr string) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(addr))
	if err != nil {
		return err
	}
	defer cl.Close()
	admin := kadm.NewClient(cl)
	for topic, n := range map[string]int32{"in": 1, "out-0": partitions, "out-1": partitions, "out-2": partitions} {
		configs := map[string]*string{"retention.ms": new("-1"), "segment.bytes": new("20000")}
		if topic == "out-2" {
			configs["cleanup.policy"] = new("compact")
		}
		if _, err := admin.CreateTopic(ctx, n, 1, configs, topic); err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
			return err
		}
	}
	return nil
}

// TestKill kills a broker with its clients, again and again, while transactions end, segments roll and compaction runs.
// Afterwards what was acknowledged is there, once, in order; every transaction is in all of its partitions or none; and
// the group's offset is that of the last one.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	kills := 30
	if testing.Short() {
		kills = 5
	}
	if n, err := strconv.Atoi(os.Getenv("IMMUTABLE_TEST_KILLS")); err == nil {
		kills = n
	}
	written := 0
	for range kills {
		written = verify(t, dir, runAndKill(t, dir))
	}
	t.Logf("%d kills, %d records", kills, written)
}

// runAndKill returns the last number that was acknowledged.
func runAndKill(t *testing.T, dir string) (last int64) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	last = -1
	scanner := bufio.NewScanner(out)
	for scanner.Scan() {
		text, ok := strings.CutPrefix(scanner.Text(), "in ")
		if !ok {
			continue
		}
		if last == -1 {
			time.AfterFunc(mathrand.N(200*time.Millisecond), func() { _ = cmd.Process.Kill() })
		}
		if last, err = strconv.ParseInt(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	if err := cmd.Wait(); err == nil || last == -1 {
		t.Fatalf("the child ended by itself: %v", err)
	}
	return last
}

// verify returns how many numbers were written.
func verify(t *testing.T, dir string, acknowledged int64) int {
	t.Helper()
	s, err := Start(Config{Dir: dir}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	in := consume(t, s.Addr(), "in")[0]
	if int64(len(in)) < acknowledged+1 {
		t.Fatalf("%d records are there, %d were acknowledged", len(in), acknowledged+1)
	}
	for i, v := range in {
		if v != strconv.Itoa(i) {
			t.Fatalf("in: record %d is %s", i, v)
		}
	}
	copies := len(consume(t, s.Addr(), "out-0")[0])
	for topic := range outTopics {
		name := "out-" + strconv.Itoa(topic)
		for p, records := range consume(t, s.Addr(), name) {
			if len(records) != copies {
				t.Fatalf("%s/%d has %d records, out-0/0 has %d: a transaction was torn", name, p, len(records), copies)
			}
			for i, v := range records {
				if v != strconv.Itoa(i) {
					t.Fatalf("%s/%d: record %d is %s", name, p, i, v)
				}
			}
		}
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(s.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	offsets, err := kadm.NewClient(cl).FetchOffsets(t.Context(), "copy")
	// A kill before the first transaction leaves no group, and no copies.
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		t.Fatal(err)
	}
	if o, _ := offsets.Lookup("in", 0); o.At != int64(copies) {
		t.Fatalf("the group is at %d, %d records were copied", o.At, copies)
	}
	return len(in)
}

// consume returns the committed values of each partition. It finds its end by a record of its own, since what was
// aborted is not delivered.
func consume(t *testing.T, addr, topic string) (values [partitions][]string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cl, err := kgo.NewClient(
		kgo.SeedBrokers(addr), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(10*time.Millisecond),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0),
	)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	left := make(map[int32]int64)
	if topic == "in" { // nothing in it is ever aborted
		ends, err := kadm.NewClient(cl).ListEndOffsets(ctx, topic)
		if err != nil {
			t.Fatal(err)
		}
		end, _ := ends.Lookup(topic, 0)
		left[0] = end.Offset - 1
	}
	for p := range int32(partitions) {
		if topic == "in" {
			break
		}
		mark := &kgo.Record{Topic: topic, Partition: p, Key: []byte(rand.Text()), Value: []byte(endMark)}
		if err := cl.ProduceSync(ctx, mark).FirstErr(); err != nil {
			t.Fatal(err)
		}
		left[p] = mark.Offset
	}
	for len(left) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("reading %s: %v", topic, err)
		}
		for _, r := range fetches.Records() {
			if string(r.Value) != endMark {
				values[r.Partition] = append(values[r.Partition], string(r.Value))
			}
			if r.Offset >= left[r.Partition] {
				delete(left, r.Partition)
			}
		}
	}
	return values
}
