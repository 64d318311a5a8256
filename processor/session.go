package processor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/schemas"
)

var (
	// errUncommitted: a transaction was aborted, or its commit's answer lost. No head and no offset in memory can be
	// trusted any more.
	errUncommitted = errors.New("transaction was not committed, or is not known to have been")
	// errRetryHalted: it is time to take over once more what timed out.
	errRetryHalted = errors.New("taking halted partitions over again")
)

// inputLostError says that input is gone that had not been sealed: a hole that only an operator can accept.
type inputLostError struct {
	cause     error
	partition int32
}

func (e *inputLostError) Error() string {
	return fmt.Sprintf("input of partition %d is lost: %v", e.partition, e.cause)
}

func (e *inputLostError) Unwrap() error { return e.cause }

const (
	// idlePoll is how long a poll waits for input before the session looks after itself.
	idlePoll = time.Second
	// fetchWait is how long a broker holds a fetch that finds nothing; new partitions wait for the end of the one that is on.
	fetchWait = 250 * time.Millisecond
	// metadataWait is how soon the client asks again who leads a partition: a leader that fails must be replaced, and the
	// new one found, within TransactionTimeout.
	metadataWait = 250 * time.Millisecond
	// answerTimeout is how long a broker may take over an answer, beyond what it was asked to wait, where another can be
	// asked instead. A new client asks any of them first, a frozen one too, and a take-over makes two: franz-go's 10 s
	// would be most of its time.
	answerTimeout = 3 * time.Second
	// rebalanceSessions is for how many session timeouts the group waits for its members to join anew: each of them may be one that has gone
	// silent at the worst moment, and all others wait for it.
	rebalanceSessions = 4
	// leaveTimeout bounds leaving the group.
	leaveTimeout = 5 * time.Second
	// consumerHeartbeats in a session timeout.
	consumerHeartbeats = 5
)

// session is one membership in the group with one transactional producer. Rebalances wait while a transaction is open
// (BlockRebalanceOnPoll), which at most TransactionTimeout bounds: a partition is given away between transactions, not
// in the middle of one, so that processors that come and go do not abort each other's work.
type session struct {
	*Processor
	group   *kgo.GroupTransactSession
	admin   *kgo.Client // lists offsets, checks topics
	txn     transaction
	owned   *assignment
	lost    map[int32]error       // partitions whose input an earlier session found lost; read only
	produce atomic.Pointer[error] // the first failure of a record of the open transaction
	acked   func(*kgo.Record, error)
	// progress: something was committed. Owned by run.
	progress bool
}

func (p *Processor) newSession(ctx context.Context, lost map[int32]error) (*session, error) {
	s := &session{Processor: p, lost: lost, owned: newAssignment(p.metrics)}
	s.acked = func(_ *kgo.Record, err error) {
		if err != nil {
			s.produce.CompareAndSwap(nil, &err)
		}
	}
	var err error
	if s.admin, err = kgo.NewClient(p.lookups()...); err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	if err := kafka.CheckTopics(ctx, s.admin, p.topics); err != nil {
		s.admin.Close()
		return nil, err
	}
	if s.group, err = kgo.NewGroupTransactSession(s.options(p)...); err != nil {
		s.admin.Close()
		return nil, fmt.Errorf("making a client: %w", err)
	}
	return s, nil
}

// lookups is what clients are made with that only ask and read.
func (p *Processor) lookups() []kgo.Opt {
	return slices.Concat(p.clients, []kgo.Opt{
		kgo.MetadataMinAge(metadataWait),
		kgo.RequestTimeoutOverhead(answerTimeout),
		kgo.FetchMaxWait(fetchWait),
	})
}

// options is what the session's client is made with.
func (s *session) options(p *Processor) []kgo.Opt {
	c := &p.cfg
	opts := slices.Concat(p.clients, []kgo.Opt{
		kgo.MetadataMinAge(metadataWait),
		kgo.ConsumerGroup(c.Kafka.Group(schemas.GroupSeal)),
		kgo.ConsumeTopics(c.Kafka.Topic(schemas.TopicEvents)),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.SessionTimeout(c.SessionTimeout),
		kgo.HeartbeatInterval(c.SessionTimeout / consumerHeartbeats),
		kgo.RebalanceTimeout(rebalanceSessions * c.SessionTimeout),
		kgo.BlockRebalanceOnPoll(),
		kgo.DisableAutoCommit(),

		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// Markers move the offset that is committed past them. Without, an input that ends in a transaction would
		// leave next before the marker, and once retention has removed the input, a take-over could not tell the marker
		// from an event that was never sealed.
		kgo.KeepControlRecords(),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()), // says "none is committed" to the take-over
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),       // never skip what is gone
		kgo.FetchMaxWait(fetchWait),
		kgo.FetchMaxBytes(c.FetchBytes),
		kgo.FetchMaxPartitionBytes(c.FetchBytes),

		kgo.TransactionalID(p.id),
		kgo.TransactionTimeout(c.TransactionTimeout),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerLinger(0),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),

		kgo.OnPartitionsAssigned(s.assigned),
		kgo.OnPartitionsRevoked(s.revoked),
		kgo.OnPartitionsLost(s.gone),
		kgo.AdjustFetchOffsetsFn(s.takeOver),
		kgo.WithHooks(s),
	})
	if c.Instance != "" {
		opts = append(opts, kgo.InstanceID(c.Instance))
	}
	return opts
}

// close leaves the group and ends the client. An instance with a name stays a member until its session times out, so
// that its next session or process finds its partitions waiting.
func (s *session) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	s.group.AllowRebalance()
	if err := s.group.Client().LeaveGroupContext(ctx); err != nil {
		s.logger.LogAttrs(ctx, slog.LevelWarn, "leaving the group failed", slog.Any("error", err))
	}
	s.group.CloseAllowingRebalance()
	s.admin.Close()
	s.owned.clear()
}

// run seals until ctx ends or the session cannot go on. It returns why.
func (s *session) run(ctx context.Context) error {
	// What another client left open under this transactional id is aborted now, not when it times out: the take-over
	// need not wait for it.
	if _, _, err := s.group.Client().ProducerID(ctx); err != nil {
		return fmt.Errorf("claiming transactional id %s: %w", s.id, err)
	}
	for {
		err := s.turn(ctx)
		// No record that was polled is in use from here on.
		s.group.AllowRebalance()
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case s.owned.retryDue(time.Now()):
			return errRetryHalted
		}
	}
}

// turn waits for input and seals a transaction of it.
func (s *session) turn(ctx context.Context) error {
	joined, cancel := context.WithTimeout(ctx, rebalanceSessions*s.cfg.SessionTimeout)
	settled, err := s.owned.awaitJoins(joined)
	cancel()
	if err != nil {
		return err
	}
	fetches, err := s.poll(s.owned.untilRevoked(ctx), idlePoll, s.cfg.TransactionRecords)
	if err != nil || ctx.Err() != nil {
		return err
	}
	// A rebalance may have gone first. If a partition was given up, GroupTransactSession will not let the next
	// transaction commit, whether or not it has to do with the partition; if a join is under way, the group will not.
	// Ending nothing clears the one, and rewinds what was just polled for both.
	revoked := s.owned.takeRevoked()
	if revoked || (settled && s.owned.joining() && fetches.NumRecords() > 0) {
		if _, err := s.group.End(ctx, kgo.TryAbort); err != nil {
			return fmt.Errorf("settling a rebalance: %w", err)
		}
		return nil
	}
	if fetches.NumRecords() == 0 {
		return nil
	}
	return s.transact(ctx, fetches)
}

// poll returns up to limit records that arrive within wait. Not finding any is not an error, nor is the end of ctx.
func (s *session) poll(ctx context.Context, wait time.Duration, limit int) (kgo.Fetches, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	fetches := s.group.PollRecords(ctx, limit)
	for _, e := range fetches.Errors() {
		_, dataLoss := errors.AsType[*kgo.ErrDataLoss](e.Err)
		switch {
		case ctx.Err() != nil && errors.Is(e.Err, ctx.Err()):
		case dataLoss, errors.Is(e.Err, kerr.OffsetOutOfRange):
			return nil, &inputLostError{partition: e.Partition, cause: e.Err}
		default:
			return nil, fmt.Errorf("reading partition %d of %s: %w", e.Partition, e.Topic, e.Err)
		}
	}
	return fetches, nil
}

func (s *session) assigned(_ context.Context, _ *kgo.Client, added map[string][]int32) {
	s.owned.join(added[s.cfg.Kafka.Topic(schemas.TopicEvents)])
}

// revoked runs beside the loop, between two transactions: when the members are asked to join anew, with no partitions,
// and after that if the answer was to give some up, which takes another join. It must not end a transaction:
// GroupTransactSession holds the lock that End needs.
func (s *session) revoked(_ context.Context, _ *kgo.Client, partitions map[string][]int32) {
	numbers := partitions[s.cfg.Kafka.Topic(schemas.TopicEvents)]
	s.owned.rejoin(1 + min(1, len(numbers)))
	s.owned.drop(numbers)
}

// gone runs beside the loop when the group has gone on without this member.
func (s *session) gone(_ context.Context, _ *kgo.Client, partitions map[string][]int32) {
	s.owned.drop(partitions[s.cfg.Kafka.Topic(schemas.TopicEvents)])
}

// OnGroupManageError implements kgo.HookGroupManageError. The client would join anew; a new session does.
func (s *session) OnGroupManageError(err error) {
	s.owned.fail(fmt.Errorf("being a member of the group: %w", err))
}
