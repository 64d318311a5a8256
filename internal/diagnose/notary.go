package diagnose

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

const (
	// checkpointOld is when a checkpoint should have been followed by another: there is one every minute when nothing happens.
	checkpointOld = 3 * time.Minute
	// checkpointTail is how many offsets before the end of checkpoints are read: an entry and its checkpoint take four.
	checkpointTail = 64
)

// checkpoints looks for a notary, and for the newest checkpoint.
func (k *cluster) checkpoints(ctx context.Context) []Finding {
	group := k.cfg.Kafka.Group(schemas.GroupNotary)
	var described kadm.DescribedGroups
	err := coordinated(ctx, func() (err error) {
		if described, err = k.admin.DescribeGroups(ctx, group); err == nil {
			err = described[group].Err
		}
		return err
	})
	// A group that never had a member is not there.
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return failed("asking for "+group, err)
	}
	members := len(described[group].Members)
	newest, err := k.newestCheckpoint(ctx)
	if err == nil && newest == nil && members > 0 {
		// It may have just begun.
		timer := time.NewTimer(k.cfg.SecondLook)
		defer timer.Stop()
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		newest, err = k.newestCheckpoint(ctx)
	}
	if err != nil {
		return failed("reading the newest checkpoint", err)
	}
	age := time.Since(time.UnixMicro(newest.GetPublishedAt())).Round(time.Second)
	stated := "no checkpoint was ever signed"
	if newest != nil {
		stated = fmt.Sprintf("the newest checkpoint is of %d entries, %v old", newest.GetSize(), age)
	}
	switch {
	case members == 0:
		return []Finding{{
			Level: Warning, Seen: fmt.Sprintf("%s has no member; %s", group, stated),
			Why: "no notary runs: what is sealed from now on could be rewritten unnoticed", Do: "start one: immutable notary",
		}}
	case newest == nil || age > checkpointOld:
		return []Finding{{
			Level: Problem, Seen: fmt.Sprintf("members: %d; %s", members, stated),
			Why: "the notary has halted, or hangs: what is newer could be rewritten unnoticed",
			Do:  "curl the /readyz of each notary, which says why; docs/operations.md, A halted notary",
		}}
	}
	return ok("members: %d; %s", members, stated)
}

// newestCheckpoint is nil where there is none at the end of the topic.
func (k *cluster) newestCheckpoint(ctx context.Context) (newest *recordpb.SignedCheckpoint, err error) {
	topic := k.cfg.Kafka.Topic(schemas.TopicCheckpoints)
	ends, err := k.admin.ListCommittedOffsets(ctx, topic)
	if err = errors.Join(err, ends.Error()); err != nil {
		return nil, err
	}
	end, _ := ends.Lookup(topic, 0)
	opts, err := clientOptions(k.cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	spans := []kafka.Span{{Topic: topic, From: max(0, end.Offset-checkpointTail), To: end.Offset}}
	var malformed error
	err = kafka.Read(ctx, spans, func(r *kgo.Record) bool {
		if bytes.HasPrefix(r.Key, []byte("checkpoint/")) {
			newest = new(recordpb.SignedCheckpoint)
			malformed = proto.Unmarshal(r.Value, newest)
		}
		return true
	}, opts...)
	return newest, errors.Join(err, malformed)
}
