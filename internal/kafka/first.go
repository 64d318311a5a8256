package kafka

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Span is a range of offsets of a partition: From, up to and without To. From is not below the topic's first offset, To
// not above the end of what is committed.
type Span struct {
	Topic     string
	Partition int32
	From, To  int64
}

// FirstRecords returns the first committed record of each span that has one for which is returns true, by partition.
// What else is in them are transaction markers, and records that were aborted or that is does not want. opts reach the
// cluster; the client is closed before it returns.
func FirstRecords(ctx context.Context, spans []Span, is func(*kgo.Record) bool, opts ...kgo.Opt) ([]*kgo.Record, error) {
	open := map[string]map[int32]Span{}
	from := map[string]map[int32]kgo.Offset{}
	n := 0
	for _, s := range spans {
		if s.From >= s.To {
			continue
		}
		if open[s.Topic] == nil {
			open[s.Topic], from[s.Topic] = map[int32]Span{}, map[int32]kgo.Offset{}
		}
		open[s.Topic][s.Partition], from[s.Topic][s.Partition] = s, kgo.NewOffset().At(s.From)
		n++
	}
	if n == 0 {
		return nil, nil
	}
	cl, err := kgo.NewClient(slices.Concat(opts, []kgo.Opt{
		kgo.ConsumePartitions(from), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// A span may end with what is not delivered; the marker after it is.
		kgo.KeepControlRecords(), kgo.FetchMaxWait(250 * time.Millisecond), kgo.FetchMaxBytes(4 << 20), kgo.FetchMaxPartitionBytes(64 << 10),
	})...)
	if err != nil {
		return nil, fmt.Errorf("kafka client: %w", err)
	}
	defer cl.Close()
	var first []*kgo.Record
	for n > 0 {
		fetches := cl.PollFetches(ctx)
		for r := range fetches.RecordsAll() {
			s, waited := open[r.Topic][r.Partition]
			if !waited {
				continue
			}
			found := r.Offset < s.To && !r.Attrs.IsControl() && is(r)
			if found {
				first = append(first, r)
			}
			if found || r.Offset+1 >= s.To {
				delete(open[r.Topic], r.Partition)
				n--
			}
		}
		if err := fetches.Err(); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(first, func(a, b *kgo.Record) int { return int(a.Partition) - int(b.Partition) })
	return first, nil
}
