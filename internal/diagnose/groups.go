package diagnose

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/schemas"
)

// consumer is a consumer group, the topic that it reads, and the service whose it is.
type consumer struct{ name, topic, service string }

// groups of an installation.
var groups = []consumer{ //nolint:gochecknoglobals // a constant that Go cannot write as one
	{schemas.GroupSeal, schemas.TopicEvents, "processor"},
	{schemas.GroupClickHouse, schemas.TopicLedger, "sinks"},
	{schemas.GroupRootLog, schemas.TopicCheckpoints, "sinks"},
}

// firstRecords returns the first committed record of each span that has one.
func firstRecords(ctx context.Context, cfg Config, spans []kafka.Span) ([]*kgo.Record, error) {
	opts, err := clientOptions(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	return kafka.FirstRecords(ctx, spans, func(*kgo.Record) bool { return true }, opts...)
}

// look is what a group has committed, and what waits for it.
type look struct {
	group     kadm.DescribedGroup
	committed map[int32]int64 // where the group has no offset: the beginning
	lost      []int32         // partitions whose committed offset is gone from the topic
	waiting   []*kgo.Record   // the oldest record of each partition that has any
}

func (k *cluster) look(ctx context.Context, name, topic string) (*look, error) {
	var described kadm.DescribedGroups
	err := coordinated(ctx, func() (err error) {
		if described, err = k.admin.DescribeGroups(ctx, name); err == nil {
			err = described[name].Err
		}
		return err
	})
	// A group that never had a member is not there.
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return nil, err
	}
	commits, err := k.admin.FetchOffsets(ctx, name)
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return nil, err
	}
	starts, err := k.admin.ListStartOffsets(ctx, topic)
	if err != nil {
		return nil, err
	}
	// What is behind an open transaction cannot be read yet.
	ends, err := k.admin.ListCommittedOffsets(ctx, topic)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(starts.Error(), ends.Error()); err != nil {
		return nil, err
	}
	l := &look{group: described[name], committed: map[int32]int64{}}
	var spans []kafka.Span
	for p, start := range starts[topic] {
		l.committed[p] = start.Offset
		if o, known := commits.Lookup(topic, p); known {
			if l.committed[p] = o.At; o.At < start.Offset {
				l.lost = append(l.lost, p)
			}
		}
		spans = append(spans, kafka.Span{Topic: topic, Partition: p, From: max(l.committed[p], start.Offset), To: ends[topic][p].Offset})
	}
	slices.Sort(l.lost)
	l.waiting, err = firstRecords(ctx, k.cfg, spans)
	return l, err
}

// group looks at one twice where it is behind, to see whether it moves.
func (k *cluster) group(ctx context.Context, g consumer) []Finding {
	name, topic := k.cfg.Kafka.Group(g.name), k.cfg.Kafka.Topic(g.topic)
	first, err := k.look(ctx, name, topic)
	if err != nil {
		return failed("asking for "+name, err)
	}
	var found []Finding
	for _, p := range first.lost {
		found = append(found, Finding{
			Level: Problem, Seen: fmt.Sprintf("%s/%d: what %s has to read next has been deleted", topic, p, name),
			Why: "records went unread when their retention ended; the partition halts", Do: "docs/operations.md, Losing Kafka",
		})
	}
	members := len(first.group.Members)
	owned := first.group.AssignedPartitions()
	late := map[int32]*kgo.Record{}
	for _, r := range first.waiting {
		switch {
		case members == 0:
			late[r.Partition] = r
		case time.Since(r.Timestamp) > k.cfg.BehindAfter:
			late[r.Partition] = r
		}
	}
	if members == 0 {
		f := Finding{
			Level: Warning, Seen: name + " has no member", Why: "no " + g.service + " runs; what comes will wait",
			Do: "start one: immutable " + g.service,
		}
		if len(late) > 0 {
			f.Level, f.Seen = Problem, fmt.Sprintf("%s has no member, and records of %d partitions wait", name, len(late))
		}
		return append(found, f)
	}
	if len(late) == 0 {
		return orOK(found, "members: %d, %s; nothing waits for longer than %v", members, first.group.State, k.cfg.BehindAfter)
	}
	timer := time.NewTimer(k.cfg.SecondLook)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return append(found, failed("looking again at "+name, ctx.Err())...)
	case <-timer.C:
	}
	second, err := k.look(ctx, name, topic)
	if err != nil {
		return append(found, failed("looking again at "+name, err)...)
	}
	for _, p := range slices.Sorted(maps.Keys(late)) {
		age := time.Since(late[p].Timestamp).Round(time.Second)
		f := Finding{
			Level: Problem, Seen: fmt.Sprintf("%s/%d stands still at offset %d; what waits came %v ago", topic, p, first.committed[p], age),
			Why: "its partition is halted, or its owner hangs",
			Do:  "curl the /readyz of each " + g.service + ", which says why; docs/operations.md, A halted partition",
		}
		switch {
		case second.committed[p] > first.committed[p]:
			f.Level, f.Seen = Warning, fmt.Sprintf("%s/%d: %s is %v behind, and moves", topic, p, name, age)
			f.Why, f.Do = "the timeline lags", "wait if a backlog is worked off; else start another "+g.service
		case !owned.Lookup(topic, p):
			f.Seen = fmt.Sprintf("%s/%d belongs to no member of %s (%s); what waits came %v ago", topic, p, name, first.group.State, age)
			f.Why, f.Do = "nobody reads it", "wait for the session timeout of a member that died (15 s); then restart each "+g.service
		}
		found = append(found, f)
	}
	return found
}
