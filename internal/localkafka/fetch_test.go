package localkafka

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TestAbortedStaysUnread reads transactions, every other one aborted, with fetches that end in the middle of them, whatever
// bound ends them.
func TestAbortedStaysUnread(t *testing.T) {
	const transactions = 40
	s := startServer(t, Config{Dir: t.TempDir()})
	createTopic(t, s, "ledger", nil)
	cl := newClient(t, s, kgo.TransactionalID("x"), kgo.DefaultProduceTopic("ledger"), kgo.ProducerLinger(0),
		kgo.ProducerBatchCompression(kgo.NoCompression()))
	var want []string
	for i := range transactions {
		if err := cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			value := fmt.Sprintf("%03d%0997d", i, 0)
			if err := cl.ProduceSync(t.Context(), kgo.StringRecord(value)).FirstErr(); err != nil {
				t.Fatal(err)
			}
			if i%2 == 1 {
				want = append(want, value[:3])
			}
		}
		if err := cl.EndTransaction(t.Context(), kgo.TransactionEndTry(i%2 == 1)); err != nil {
			t.Fatal(err)
		}
	}
	for _, bounds := range []struct{ all, partition int32 }{
		{1, 1}, {3_000, 3_000}, {5_000, 5_000}, {3_000, 5_000}, {5_000, 3_000}, {50 << 20, 1 << 20},
	} {
		reader := newClient(t, s, kgo.ConsumeTopics("ledger"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
			kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(10*time.Millisecond),
			kgo.FetchMaxBytes(bounds.all), kgo.FetchMaxPartitionBytes(bounds.partition))
		var got []string
		for len(got) < len(want) {
			fetches := reader.PollFetches(t.Context())
			if err := fetches.Err(); err != nil {
				t.Fatal(err)
			}
			for _, r := range fetches.Records() {
				got = append(got, string(r.Value[:3]))
			}
		}
		reader.Close()
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("fetches of %d bytes, %d a partition: what was committed, and what was read:\n%s", bounds.all, bounds.partition, diff)
		}
	}
}
