package rootlog

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/schemas"
)

// Rebuild makes the next writer read the topic from its beginning, which is kept for ever, and write what ClickHouse lacks; rows
// that are there are not written again. It forgets the group's offset, which Kafka allows while the group has no member: it
// waits 15 s for that, and then returns an error.
func Rebuild(ctx context.Context, cfg kafka.Config, logger *slog.Logger) error {
	opts, err := cfg.Options(logger)
	if err != nil {
		return err
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return fmt.Errorf("kafka client: %w", err)
	}
	defer cl.Close()
	var partition kadm.TopicsSet
	partition.Add(cfg.Topic(schemas.TopicCheckpoints), 0)
	return kafka.ForgetOffsets(ctx, kadm.NewClient(cl), cfg.Group(schemas.GroupRootLog), partition)
}
