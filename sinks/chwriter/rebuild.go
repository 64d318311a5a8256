package chwriter

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/schemas"
)

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
	if err := kafka.ForgetOffsets(ctx, admin, group, offsets.TopicsSet()); err != nil || !acceptLoss {
		return err
	}
	// What begins there has nothing missing before it: see partition.checkHeld.
	if err := admin.CommitAllOffsets(ctx, group, offsets); err != nil {
		return fmt.Errorf("moving %s to the beginning of %s: %w", group, topic, err)
	}
	return nil
}
