package control

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// fetchMaxWait bounds how late a reader sees a commit for which the broker did not wake it.
const fetchMaxWait = 250 * time.Millisecond

// readOptions make a client read the one partition of the config topic from an offset on: what was committed, and the
// transaction markers, so that the reader knows how far it has come where the last records were aborted.
func readOptions(topic string, from int64) []kgo.Opt {
	return []kgo.Opt{
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().At(from)}}),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(),
		kgo.FetchMaxWait(fetchMaxWait),
		kgo.FetchMaxBytes(4 << 20),
		kgo.FetchMaxPartitionBytes(4 << 20),
		// Both would have the client's end wait for a Kafka that does not answer; a session spares nothing with one partition.
		kgo.DisableFetchSessions(),
		kgo.DisableClientMetrics(),
	}
}

// endOffset returns the high watermark of the config topic: everything below it that was or will be committed belongs to
// what is configured at this moment, open transactions among it.
func endOffset(ctx context.Context, cl *kgo.Client, topic string) (int64, error) {
	ends, err := kadm.NewClient(cl).ListEndOffsets(ctx, topic)
	if err != nil {
		return 0, fmt.Errorf("find the end of %s: %w", topic, err)
	}
	return offsetOf(ends, topic)
}

// startOffset returns the first offset that is left of the config topic.
func startOffset(ctx context.Context, cl *kgo.Client, topic string) (int64, error) {
	starts, err := kadm.NewClient(cl).ListStartOffsets(ctx, topic)
	if err != nil {
		return 0, fmt.Errorf("find the beginning of %s: %w", topic, err)
	}
	return offsetOf(starts, topic)
}

func offsetOf(listed kadm.ListedOffsets, topic string) (int64, error) {
	o, ok := listed.Lookup(topic, 0)
	switch {
	case !ok:
		return 0, fmt.Errorf("list offsets of %s: it has no partition 0: run immutable topics create", topic)
	case o.Err != nil:
		return 0, fmt.Errorf("list offsets of %s: %w", topic, o.Err)
	}
	return o.Offset, nil
}

// readTo reads until s has everything below the high watermark of this moment. It waits for transactions that are open
// there, because they may commit. each sees every record after the state has taken it.
func (s *state) readTo(ctx context.Context, cl *kgo.Client, topic string, each func(*kgo.Record, outcome, error)) error {
	end, err := endOffset(ctx, cl, topic)
	if err != nil {
		return err
	}
	start, err := startOffset(ctx, cl, topic)
	if err != nil {
		return err
	}
	s.next = max(s.next, start)
	for s.next < end {
		if err := s.poll(ctx, cl, each); err != nil {
			return err
		}
	}
	return nil
}

// poll waits for records and applies them.
func (s *state) poll(ctx context.Context, cl *kgo.Client, each func(*kgo.Record, outcome, error)) error {
	fetches := cl.PollFetches(ctx)
	for r := range fetches.RecordsAll() {
		result, err := s.apply(r)
		each(r, result, err)
	}
	if err := fetches.Err(); err != nil {
		return fmt.Errorf("read config: %w", err)
	}
	return nil
}
