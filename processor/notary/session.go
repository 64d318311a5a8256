package notary

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/schemas"
)

// errRevoked: the group has made another notary the leader.
var errRevoked = errors.New("another notary is the leader now")

const (
	// fetchWait is how long a broker holds a fetch that finds nothing.
	fetchWait = 500 * time.Millisecond
	// metadataWait is how soon a client asks again who leads a partition.
	metadataWait = 250 * time.Millisecond
	// answerTimeout is how long a broker may take over an answer, beyond what it was asked to wait.
	answerTimeout = 3 * time.Second
	// rebalanceTimeout is how long the group waits for its members to join anew.
	rebalanceTimeout = time.Minute
	// leaveTimeout bounds leaving the group.
	leaveTimeout = 5 * time.Second
	// memberHeartbeats in a session timeout.
	memberHeartbeats = 5
)

// member is a membership in the group. Whoever is given the one partition of checkpoints leads; nothing is read through the
// group. What another client can do meanwhile is bounded by the transactional id and not by the group: the group only
// keeps two notaries from fencing each other.
type member struct {
	client   *kgo.Client
	assigned chan struct{} // closed when this member is the leader
	end      context.CancelCauseFunc
}

// session is one membership, until it fails, or another notary has become the leader. progress says whether a checkpoint was
// signed.
func (n *Notary) session(ctx context.Context) (progress bool, err error) {
	admin, err := kgo.NewClient(n.lookups()...)
	if err != nil {
		return false, fmt.Errorf("making a client: %w", err)
	}
	defer admin.Close()
	if err := kafka.CheckTopics(ctx, admin, n.topics); err != nil {
		return false, err
	}
	sessionCtx, end := context.WithCancelCause(ctx)
	defer end(nil)
	m := &member{assigned: make(chan struct{}), end: end}
	if m.client, err = kgo.NewClient(m.options(n)...); err != nil {
		return false, fmt.Errorf("making a client: %w", err)
	}
	defer m.close(ctx, n.logger)
	n.metrics.sessions.Inc()
	select {
	case <-sessionCtx.Done():
		return false, context.Cause(sessionCtx)
	case <-m.assigned:
	}
	n.metrics.leading.Set(1)
	defer n.metrics.leading.Set(0)
	progress, err = n.lead(sessionCtx, admin)
	if errors.Is(err, kerr.ProducerFenced) || errors.Is(err, kerr.InvalidProducerEpoch) || errors.Is(err, kerr.InvalidTxnState) {
		// Somebody has taken over. Whoever is still a member after the next heartbeats may do so too; the group says it to one that
		// another has replaced, and then this one must not fence that one in turn.
		select {
		case <-sessionCtx.Done():
		case <-time.After(2 * n.cfg.SessionTimeout / memberHeartbeats):
		}
	}
	h, halted := errors.AsType[*haltError](err)
	if !halted {
		if sessionCtx.Err() != nil {
			err = context.Cause(sessionCtx)
		}
		return progress, err
	}
	// It stays the leader: what a person has to look at, no standby must pass over.
	n.logger.LogAttrs(ctx, slog.LevelError, "halted: nothing is signed until the cause is removed and the notary started again",
		slog.String("reason", h.reason), slog.Any("error", h.err))
	n.setReason(fmt.Errorf("halted (%s): %w", h.reason, h.err))
	n.metrics.halted[h.reason].Set(1)
	defer n.metrics.halted[h.reason].Set(0)
	<-sessionCtx.Done()
	return progress, context.Cause(sessionCtx)
}

// lookups is what clients are made with that only ask and read.
func (n *Notary) lookups() []kgo.Opt {
	return slices.Concat(n.clients, []kgo.Opt{
		kgo.MetadataMinAge(metadataWait),
		kgo.RequestTimeoutOverhead(answerTimeout),
		kgo.FetchMaxWait(fetchWait),
		kgo.FetchMaxBytes(n.cfg.FetchBytes),
		kgo.FetchMaxPartitionBytes(n.cfg.FetchBytes),
	})
}

// options is what the member's client is made with.
func (m *member) options(n *Notary) []kgo.Opt {
	checkpoints := n.cfg.Kafka.Topic(schemas.TopicCheckpoints)
	opts := slices.Concat(n.lookups(), []kgo.Opt{
		kgo.ConsumerGroup(n.cfg.Kafka.Group(schemas.GroupNotary)),
		kgo.ConsumeTopics(checkpoints),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.SessionTimeout(n.cfg.SessionTimeout),
		kgo.HeartbeatInterval(n.cfg.SessionTimeout / memberHeartbeats),
		kgo.RebalanceTimeout(rebalanceTimeout),
		kgo.DisableAutoCommit(),
		// The partition is assigned, and never fetched.
		kgo.AdjustFetchOffsetsFn(func(_ context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
			clear(offsets[checkpoints])
			return offsets, nil
		}),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, partitions map[string][]int32) {
			select {
			case <-m.assigned: // it leads, or has just been told not to
				return
			default:
			}
			if len(partitions[checkpoints]) == 0 {
				n.setReason(nil) // it stands by
				return
			}
			n.setReason(errors.New("taking over"))
			close(m.assigned)
		}),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, partitions map[string][]int32) {
			if len(partitions[checkpoints]) > 0 {
				m.end(errRevoked)
			}
		}),
		// Why it was lost, OnGroupManageError says right after.
		kgo.OnPartitionsLost(func(context.Context, *kgo.Client, map[string][]int32) {}),
		kgo.WithHooks(m),
	})
	if n.cfg.Instance != "" {
		opts = append(opts, kgo.InstanceID(n.cfg.Instance))
	}
	return opts
}

// OnGroupManageError implements kgo.HookGroupManageError. The client would join anew; a new session does.
func (m *member) OnGroupManageError(err error) {
	m.end(fmt.Errorf("being a member of the group: %w", err))
}

// close leaves the group and ends the client. An instance with a name stays a member until its session times out.
func (m *member) close(ctx context.Context, logger *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	if err := m.client.LeaveGroupContext(ctx); err != nil {
		logger.LogAttrs(ctx, slog.LevelWarn, "leaving the group failed", slog.Any("error", err))
	}
	m.client.Close()
}
