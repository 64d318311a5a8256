package localkafka

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestAbortedStaysUnread reads transactions, every other one aborted, with fetches that end in the middle of them, whichever
// bound ends them; and no answer is longer than the fetch allows, but for a batch of each partition.
func TestAbortedStaysUnread(t *testing.T) {
	const transactions, partitions, batchBytes = 40, 3, 1_000
	s := startServer(t, Config{Dir: t.TempDir()})
	createTopic(t, s, "ledger", partitions, nil)
	cl := newClient(t, s, kgo.TransactionalID("x"), kgo.ProducerLinger(0), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchCompression(kgo.NoCompression()))
	var want [partitions][]string
	for i := range transactions {
		if err := cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		for n := range 2 * partitions {
			r := &kgo.Record{Topic: "ledger", Partition: int32(n % partitions), Value: fmt.Appendf(nil, "%02d%0*d", i, batchBytes-2, 0)}
			if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
				t.Fatal(err)
			}
			if i%2 == 1 {
				want[r.Partition] = append(want[r.Partition], string(r.Value[:2]))
			}
		}
		if err := cl.EndTransaction(t.Context(), kgo.TransactionEndTry(i%2 == 1)); err != nil {
			t.Fatal(err)
		}
	}
	for _, bounds := range []struct{ all, partition int32 }{
		{1, 1}, {5_000, 5_000}, {10_000, 10_000}, {10_000, 3_000}, {3_000, 10_000}, {50 << 20, 1 << 20},
	} {
		reader := newClient(t, s, kgo.ConsumeTopics("ledger"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
			kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(10*time.Millisecond),
			kgo.FetchMaxBytes(bounds.all), kgo.FetchMaxPartitionBytes(bounds.partition))
		var got [partitions][]string
		for n := 0; n < transactions*partitions; {
			fetches := reader.PollFetches(t.Context())
			if err := fetches.Err(); err != nil {
				t.Fatal(err)
			}
			for _, r := range fetches.Records() {
				got[r.Partition] = append(got[r.Partition], string(r.Value[:2]))
			}
			if bytes := fetches.NumRecords() * batchBytes; bytes > int(bounds.all)+partitions*batchBytes {
				t.Errorf("an answer of %d bytes, of %d allowed", bytes, bounds.all)
			}
			n += fetches.NumRecords()
		}
		reader.Close()
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("fetches of %d bytes, %d a partition: what was committed, and what was read:\n%s", bounds.all, bounds.partition, diff)
		}
	}
}

// TestFetchesNameAllPartitions: nobody gets a session, in which a fetch would name only some of them.
func TestFetchesNameAllPartitions(t *testing.T) {
	s := startServer(t, Config{Dir: t.TempDir()})
	req := kmsg.NewPtrFetchRequest()
	req.SessionEpoch = 0 // asks for one
	resp, err := newClient(t, s).SeedBrokers()[0].Request(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if id := resp.(*kmsg.FetchResponse).SessionID; id != 0 {
		t.Errorf("session %d", id)
	}
}
