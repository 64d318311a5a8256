package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// leaveTimeout is for a group to give up members that have ended without leaving it, as those with a name do: longer than the
// session timeout of any service by default.
const leaveTimeout = 15 * time.Second

// ForgetOffsets deletes a group's offsets once it has no member. It does not delete the group: the embedded Kafka would have
// it back after a restart.
func ForgetOffsets(ctx context.Context, admin *kadm.Client, group string, partitions kadm.TopicsSet) error {
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
