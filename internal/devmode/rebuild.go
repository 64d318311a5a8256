package devmode

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/internal/localkafka"
	"getimmutable.dev/immutable/sinks/chwriter"
	"getimmutable.dev/immutable/sinks/rootlog"
)

// Rebuild is chwriter.Rebuild and rootlog.Rebuild for a data folder whose `up` is stopped: it runs the embedded Kafka meanwhile. An `up`
// with a Kafka elsewhere keeps nothing in the folder that it could change: that is an error.
func Rebuild(ctx context.Context, dir string, acceptLoss bool, logger *slog.Logger) (err error) {
	last, err := ReadUpFile(dir)
	if err != nil {
		return err
	}
	log := filepath.Join(dir, kafkaDir)
	if _, err := os.Stat(log); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s has no embedded Kafka: give the flags of its Kafka, --kafka and others, instead of --data", dir)
	}
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	broker, err := localkafka.Start(localkafka.Config{Dir: log}, logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, broker.Close()) }()
	cfg := kafka.Config{Brokers: []string{broker.Addr()}, TopicPrefix: last.TopicPrefix}
	if err := chwriter.Rebuild(ctx, cfg, acceptLoss, logger); err != nil {
		return err
	}
	return rootlog.Rebuild(ctx, cfg, logger)
}
