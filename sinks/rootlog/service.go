// Package rootlog writes the topic checkpoints into ClickHouse: the entries of the root log and the signed checkpoints, each
// checked against what is before it, without a gap.
package rootlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/schemas"
)

// Writer is a member of the group immutable.rootlog. The topic has one partition, so one member writes and the others wait.
//
// What the tables have decides where it goes on; the group's offset only says from where to read. A batch's entries are in
// ClickHouse before its checkpoints, and both before its offset is committed. So a checkpoint that can be read has all its
// entries beside it, and what is repeated after a crash is found in the tables and passed over. A repeated insert has the
// token of the first, which ClickHouse drops; a row that is there twice all the same is the same row.
type Writer struct {
	cfg     Config
	topic   string
	opts    []kgo.Opt
	logger  *slog.Logger
	metrics *metrics

	// Set by Run before it joins the group.
	conn   driver.Conn
	client *kgo.Client
	joined atomic.Bool

	// working is held while a batch is being written: who takes the partition away waits for it.
	working sync.Mutex

	mu      sync.Mutex
	owned   *assignment      // nil while the partition is another's
	outages map[string]error // by system: what is being tried again
	oldest  time.Time        // of the records that are being written; zero if there are none
}

// assignment is the partition, from when the group gives it until it takes it away.
type assignment struct {
	ctx    context.Context //nolint:containedctx // it is the assignment's, which begins and ends in callbacks
	cancel context.CancelFunc
	log    *position // nil until the tables have been asked; owned by Run
	halted error     // guarded by Writer.mu
}

// The systems that may have an outage.
const (
	systemKafka      = "kafka"
	systemClickHouse = "clickhouse"
)

// New returns a writer that has not begun. It reads the files that cfg names.
func New(cfg Config, reg prometheus.Registerer, logger *slog.Logger) (*Writer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	w := &Writer{cfg: cfg, topic: cfg.Kafka.Topic(schemas.TopicCheckpoints), logger: logger, outages: map[string]error{}}
	common, err := cfg.Kafka.Options(logger)
	if err != nil {
		return nil, err
	}
	group := cfg.Kafka.Group(schemas.GroupRootLog)
	w.opts = append(common,
		kgo.ConsumerGroup(group),
		kgo.ConsumeTopics(w.topic),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.SessionTimeout(cfg.SessionTimeout),
		kgo.HeartbeatInterval(cfg.SessionTimeout/5),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()), // records that are gone are a reason to halt, not to go on
		kgo.FetchMaxBytes(cfg.FetchBytes),
		kgo.FetchMaxPartitionBytes(cfg.FetchBytes),
		kgo.FetchMaxWait(time.Second),
		kgo.DisableAutoCommit(),
		kgo.OnPartitionsAssigned(w.onAssigned),
		kgo.OnPartitionsRevoked(w.onGone),
		kgo.OnPartitionsLost(w.onGone),
	)
	if cfg.Instance != "" {
		w.opts = append(w.opts, kgo.InstanceID(group+"."+cfg.Instance))
	}
	if err := kgo.ValidateOpts(w.opts...); err != nil {
		return nil, fmt.Errorf("root log writer: %w", err)
	}
	w.metrics = newMetrics(reg, w)
	return w, nil
}

// pollTime bounds how late Run notices an assignment for which nothing is fetched.
const pollTime = 250 * time.Millisecond

// Run writes until ctx ends, then finishes the batch in hand, within DrainTimeout, leaves the group and returns nil. Faults of
// Kafka's or ClickHouse's it outlasts; it returns an error only when the tables are of another version
// (clickhouse.ErrSchemaOlder, ErrSchemaNewer, ErrSchemaChanged). It is called once.
func (w *Writer) Run(ctx context.Context) error {
	conn, err := clickhouse.Open(w.cfg.ClickHouse)
	if err != nil {
		return fmt.Errorf("root log writer: %w", err)
	}
	defer func() { _ = conn.Close() }()
	w.conn = conn
	if err := w.checkTables(ctx); err != nil || ctx.Err() != nil {
		return err
	}
	if w.client, err = kgo.NewClient(w.opts...); err != nil {
		return fmt.Errorf("root log writer: %w", err)
	}
	w.joined.Store(true)
	ended := make(chan struct{})
	var drain sync.WaitGroup
	drain.Go(func() {
		select {
		case <-ctx.Done():
		case <-ended:
			return
		}
		select {
		case <-time.After(w.cfg.DrainTimeout):
			w.cancelOwned()
		case <-ended:
		}
	})
	for ctx.Err() == nil {
		w.poll(ctx)
	}
	close(ended)
	drain.Wait()
	w.joined.Store(false)
	w.client.Close()
	return nil
}

// checkTables waits for ClickHouse and makes sure of its tables.
func (w *Writer) checkTables(ctx context.Context) error {
	err := w.retry(ctx, ctx, systemClickHouse, func(ctx context.Context) error {
		err := clickhouse.CheckSchema(ctx, w.conn)
		if clickhouse.IsSchemaError(err) {
			return &haltError{err: err}
		}
		return err
	})
	if h, ok := errors.AsType[*haltError](err); ok {
		return h.err
	}
	return nil
}

// poll writes what one fetch brings.
func (w *Writer) poll(ctx context.Context) {
	wait, cancel := context.WithTimeout(ctx, pollTime)
	fetches := w.client.PollRecords(wait, w.cfg.BatchRecords)
	cancel()
	w.working.Lock()
	defer w.working.Unlock()
	var failed error
	fetches.EachError(func(_ string, partition int32, err error) {
		switch {
		case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, kgo.ErrClientClosed):
		case partition < 0, kerr.IsRetriable(err):
			w.outage(systemKafka, err) // the client logs it, and tries again
		case errors.Is(err, kerr.OffsetOutOfRange):
			failed = halt(haltLost, "records that were not written have gone from the topic, or it was created anew: %w", err)
		default:
			failed = halt(haltFetching, "fetching: %w", err)
		}
	})
	a := w.assignment()
	if a == nil {
		return
	}
	if records := fetches.Records(); failed == nil {
		if len(records) > 0 {
			w.outage(systemKafka, nil)
		}
		failed = w.take(ctx, a, records)
	}
	if h, ok := errors.AsType[*haltError](failed); ok {
		w.halt(ctx, a, h)
	}
}

// take writes records, of which there may be none. Where it returns nil they are in ClickHouse, and committed.
func (w *Writer) take(ctx context.Context, a *assignment, records []*kgo.Record) error {
	if a.log == nil {
		err := w.retry(ctx, a.ctx, systemClickHouse, func(ctx context.Context) (err error) {
			a.log, err = w.readPosition(ctx)
			return err
		})
		if err != nil {
			return err
		}
	}
	if len(records) == 0 {
		return nil
	}
	w.mu.Lock()
	w.oldest = records[0].Timestamp
	w.mu.Unlock()
	err := w.write(ctx, a, records)
	w.mu.Lock()
	w.oldest = time.Time{}
	w.mu.Unlock()
	return err
}

// commit commits that everything before the record after last is in ClickHouse.
func (w *Writer) commit(ctx context.Context, a *assignment, last *kgo.Record) error {
	return w.retry(ctx, a.ctx, systemKafka, func(ctx context.Context) error {
		if err := w.client.CommitRecords(ctx, last); err != nil {
			return fmt.Errorf("committing offset %d: %w", last.Offset+1, err)
		}
		return nil
	})
}

// onAssigned begins with the partition.
func (w *Writer) onAssigned(ctx context.Context, _ *kgo.Client, assigned map[string][]int32) {
	w.outage(systemKafka, nil)
	if len(assigned[w.topic]) == 0 {
		return
	}
	a := new(assignment)
	a.ctx, a.cancel = context.WithCancel(context.WithoutCancel(ctx)) // it ends with the assignment, not with this session
	w.mu.Lock()
	defer w.mu.Unlock()
	w.owned = a
}

// onGone ends with the partition before the group may give it to another member.
func (w *Writer) onGone(_ context.Context, client *kgo.Client, gone map[string][]int32) {
	if len(gone[w.topic]) == 0 {
		return
	}
	w.cancelOwned()
	w.working.Lock()
	defer w.working.Unlock()
	w.mu.Lock()
	if w.owned != nil {
		if h, ok := errors.AsType[*haltError](w.owned.halted); ok {
			w.metrics.halted.WithLabelValues(h.reason).Set(0)
		}
	}
	w.owned = nil
	w.mu.Unlock()
	client.ResumeFetchPartitions(map[string][]int32{w.topic: {0}})
}

// cancelOwned ends what is being done for the partition.
func (w *Writer) cancelOwned() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.owned != nil {
		w.owned.cancel()
	}
}

// assignment returns what is owned and not halted, nil if nothing is.
func (w *Writer) assignment() *assignment {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.owned == nil || w.owned.halted != nil {
		return nil
	}
	return w.owned
}

// haltError says why the writer cannot go on without a person.
type haltError struct {
	err    error
	reason string // a label of immutable_rootlog_halted
}

func (e *haltError) Error() string { return e.err.Error() }
func (e *haltError) Unwrap() error { return e.err }

func halt(reason, format string, args ...any) error {
	return &haltError{err: fmt.Errorf(format, args...), reason: reason}
}

// halt stops fetching until the partition is assigned anew.
func (w *Writer) halt(ctx context.Context, a *assignment, reason *haltError) {
	w.metrics.halted.WithLabelValues(reason.reason).Set(1)
	w.metrics.halts.Inc()
	w.logger.ErrorContext(ctx, "root log halted: it is not written to clickhouse any more", "reason", reason.reason, "error", reason)
	w.client.PauseFetchPartitions(map[string][]int32{w.topic: {0}})
	w.mu.Lock()
	a.halted = reason // readiness says so last: whoever sees it finds the reason in the log and the metrics
	w.mu.Unlock()
}

// errStopped ends a batch when the partition is taken away or the writer drains.
var errStopped = errors.New("stopped")

// retry calls attempt until it succeeds or asks for a halt. It begins no further attempt once run has ended, and ends the one
// under way when owned has. Each attempt has InsertTimeout.
func (w *Writer) retry(run, owned context.Context, system string, attempt func(context.Context) error) error {
	delay := backoff.NewExponentialBackOff()
	delay.InitialInterval, delay.MaxInterval = 50*time.Millisecond, 5*time.Second
	for failed := false; ; failed = true {
		err := func() error {
			ctx, cancel := context.WithTimeout(owned, w.cfg.InsertTimeout)
			defer cancel()
			return attempt(ctx)
		}()
		if _, halts := errors.AsType[*haltError](err); err == nil || halts {
			if failed {
				w.logger.InfoContext(owned, "it works again", "system", system)
				w.outage(system, nil)
			}
			return err
		}
		if run.Err() != nil || owned.Err() != nil {
			w.outage(system, nil)
			return errStopped
		}
		w.outage(system, err)
		if system == systemKafka {
			w.metrics.commitRetries.Inc()
		} else {
			w.metrics.retries.Inc()
		}
		if !failed {
			w.logger.WarnContext(owned, "trying again until it works", "system", system, "error", err)
		}
		select {
		case <-run.Done():
		case <-owned.Done():
		case <-time.After(delay.NextBackOff()):
		}
	}
}

// outage notes what fails of a system; nil is that it works.
func (w *Writer) outage(system string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		delete(w.outages, system)
		w.metrics.outage.WithLabelValues(system).Set(0)
		return
	}
	w.outages[system] = err
	w.metrics.outage.WithLabelValues(system).Set(1)
}

func (w *Writer) lag() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.oldest.IsZero() {
		return 0
	}
	return max(0, time.Since(w.oldest))
}

// Ready says what keeps records from reaching ClickHouse, nil if nothing.
func (w *Writer) Ready(context.Context) error {
	var errs []error
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, system := range slices.Sorted(maps.Keys(w.outages)) {
		errs = append(errs, fmt.Errorf("%s: %w", system, w.outages[system]))
	}
	if !w.joined.Load() {
		errs = append(errs, errors.New("not consuming yet"))
	}
	if w.owned != nil && w.owned.halted != nil {
		errs = append(errs, fmt.Errorf("the root log is halted: %w", w.owned.halted))
	}
	return errors.Join(errs...)
}
