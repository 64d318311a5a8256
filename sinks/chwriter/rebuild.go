package chwriter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/schemas"
)

// leaveTimeout is for the group to give up members that have ended without leaving it, as those with a name do: longer
// than Config.SessionTimeout is by default.
const leaveTimeout = 15 * time.Second

// Rebuild makes the next writer read the ledger from its beginning and write what ClickHouse lacks; rows that are there
// are not written again. It forgets the group's offsets, which Kafka allows while the group has no member: it waits 15 s
// for that, and then returns an error.
//
// Where the topic no longer has all that ClickHouse lacks, the next writer halts; with acceptLoss it begins where the
// topic does.
func Rebuild(ctx context.Context, cfg kafka.Config, acceptLoss bool, logger *slog.Logger) error {
	opts, err := cfg.Options(logger)
	if err != nil {
		return err
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return fmt.Errorf("kafka client: %w", err)
	}
	defer cl.Close()
	admin, group, topic := kadm.NewClient(cl), cfg.Group(schemas.GroupClickHouse), cfg.Topic(schemas.TopicLedger)
	starts, err := admin.ListStartOffsets(ctx, topic)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return fmt.Errorf("asking for the beginning of %s: %w", topic, err)
	}
	offsets := starts.Offsets()
	if err := forget(ctx, admin, group, offsets.TopicsSet()); err != nil || !acceptLoss {
		return err
	}
	// What begins there has nothing missing before it: see partition.checkHeld.
	if err := admin.CommitAllOffsets(ctx, group, offsets); err != nil {
		return fmt.Errorf("moving %s to the beginning of %s: %w", group, topic, err)
	}
	return nil
}

// forget deletes a group's offsets once it has no member. It does not delete the group: the embedded Kafka would have
// it back after a restart.
func forget(ctx context.Context, admin *kadm.Client, group string, partitions kadm.TopicsSet) error {
	leaving := time.NewTimer(leaveTimeout)
	defer leaving.Stop()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		deleted, err := admin.DeleteOffsets(ctx, group, partitions)
		if err == nil {
			err = deleted.Error()
		}
		switch {
		case err == nil, errors.Is(err, kerr.GroupIDNotFound):
			return nil
		case !errors.Is(err, kerr.GroupSubscribedToTopic) && !errors.Is(err, kerr.NonEmptyGroup):
			return fmt.Errorf("forgetting the offsets of %s: %w", group, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s to have no member: %w", group, ctx.Err())
		case <-tick.C:
		case <-leaving.C:
			return fmt.Errorf("%s has members: stop every `immutable sinks`, or `up`, first", group)
		}
	}
}
