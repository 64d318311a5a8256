package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Span is a range of offsets of a partition: From, up to and without To, which is not above the end of what is committed.
// From is not below the topic's first offset.
type Span struct {
	Topic     string
	Partition int32
	From, To  int64
}

// Bounds returns the first offset of a partition, and its end as list says it: kadm.Client.ListEndOffsets, or
// ListCommittedOffsets.
func Bounds(
	ctx context.Context, admin *kadm.Client, list func(context.Context, ...string) (kadm.ListedOffsets, error), topic string, partition int32,
) (start, end int64, err error) {
	for _, bound := range []struct {
		offset *int64
		list   func(context.Context, ...string) (kadm.ListedOffsets, error)
	}{{&start, admin.ListStartOffsets}, {&end, list}} {
		offsets, err := bound.list(ctx, topic)
		o, ok := offsets.Lookup(topic, partition)
		switch {
		case err == nil && ok:
			err = o.Err
		case err == nil:
			err = errors.New("no answer")
		}
		if err != nil {
			return 0, 0, fmt.Errorf("asking for the bounds of %s: %w", topic, err)
		}
		*bound.offset = o.Offset
	}
	return start, end, nil
}

// Read gives the committed records of each span to use, those of one partition in order and never two at a time, until use
// wants no more of a partition or its span ends. Every span must be of another partition; an empty one is left out. opts
// reach the cluster and may say more of how to fetch; the client is closed before it returns.
func Read(ctx context.Context, spans []Span, use func(*kgo.Record) (more bool), opts ...kgo.Opt) error {
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
		return nil
	}
	cl, err := kgo.NewClient(slices.Concat([]kgo.Opt{
		kgo.ConsumePartitions(from),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.FetchMaxWait(250 * time.Millisecond),
		// Only by seeing what is at the last offset of a span, or behind it, is its end known. That is often a transaction's
		// marker; where it is a record of an aborted one, which is left out, the marker follows. None is compacted away: they
		// are in the active segment.
		kgo.KeepControlRecords(),
	}, opts)...)
	if err != nil {
		return fmt.Errorf("kafka client: %w", err)
	}
	defer cl.Close()
	for n > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return err
		}
		for r := range fetches.RecordsAll() {
			s, ok := open[r.Topic][r.Partition]
			if !ok {
				continue // it is read to its end
			}
			more := true
			if r.Offset < s.To && !r.Attrs.IsControl() {
				more = use(r)
			}
			if !more || r.Offset+1 >= s.To {
				delete(open[r.Topic], r.Partition)
				n--
			}
		}
	}
	return nil
}

// FirstRecords returns the first committed record of each span that has one for which is returns true, by partition.
// What else is in them are transaction markers, and records that were aborted or that is does not want. opts are those of
// Read.
func FirstRecords(ctx context.Context, spans []Span, is func(*kgo.Record) bool, opts ...kgo.Opt) ([]*kgo.Record, error) {
	var first []*kgo.Record
	err := Read(ctx, spans, func(r *kgo.Record) bool {
		found := is(r)
		if found {
			first = append(first, r)
		}
		return !found
	}, slices.Concat([]kgo.Opt{
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxBytes(4 << 20), kgo.FetchMaxPartitionBytes(64 << 10),
	}, opts)...)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(first, func(a, b *kgo.Record) int { return int(a.Partition) - int(b.Partition) })
	return first, nil
}
