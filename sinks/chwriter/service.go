// Package chwriter writes the ledger topic into ClickHouse, each record exactly once: the timeline into events, its
// spine into leaves.
package chwriter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/schemas"
)

// Writer is a member of the group immutable.clickhouse. One is enough for an installation; several share its partitions.
type Writer struct {
	cfg     Config
	view    *control.View // of redactions
	topic   string
	common  []kgo.Opt // of every client of the cluster
	opts    []kgo.Opt // of the group's member
	logger  *slog.Logger
	metrics *metrics
	outages outages
	eraser  *eraser

	// inserters are the ones that nobody has borrowed.
	inserters chan *inserter
	// draining is closed when Run has been asked to end.
	draining chan struct{}

	// Set by Run before it joins the group.
	client     *kgo.Client
	replicated bool // whether the tables are replicated
	joined     atomic.Bool

	mu         sync.Mutex
	partitions map[int32]*partition
	halted     map[int32]error
}

// New returns a writer that has not begun. It reads the files that cfg names. view, of which redactions are enough, must be
// run by the caller.
func New(cfg Config, view *control.View, reg prometheus.Registerer, logger *slog.Logger) (*Writer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	w := &Writer{
		cfg:        cfg,
		view:       view,
		topic:      cfg.Kafka.Topic(schemas.TopicLedger),
		logger:     logger,
		inserters:  make(chan *inserter, cfg.Inserters),
		draining:   make(chan struct{}),
		partitions: make(map[int32]*partition),
		halted:     make(map[int32]error),
	}
	for range cfg.Inserters {
		i, err := newInserter(cfg.ClickHouse, serverTimeout)
		if err != nil {
			return nil, err
		}
		w.inserters <- i
	}
	var err error
	if w.common, err = cfg.Kafka.Options(logger); err != nil {
		return nil, err
	}
	group := cfg.Kafka.Group(schemas.GroupClickHouse)
	w.opts = append(slices.Clone(w.common),
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
		kgo.DisableAutoCommit(), // every commit names one partition, with metadata of ours
		// What was polled reaches its partition's queue before the group can take the partition away: none of it goes
		// to the queue of a later assignment.
		kgo.BlockRebalanceOnPoll(),
		kgo.OnPartitionsAssigned(func(context.Context, *kgo.Client, map[string][]int32) { w.outages.end(systemKafka, noPartition) }),
		kgo.OnOffsetsFetched(w.onOffsetsFetched),
		kgo.OnPartitionsRevoked(w.onPartitionsGone),
		kgo.OnPartitionsLost(w.onPartitionsGone),
	)
	if cfg.Instance != "" {
		w.opts = append(w.opts, kgo.InstanceID(group+"."+cfg.Instance))
	}
	if err := kgo.ValidateOpts(w.opts...); err != nil {
		return nil, fmt.Errorf("clickhouse writer: %w", err)
	}
	w.metrics = newMetrics(reg, w)
	w.eraser = &eraser{turn: make(chan struct{}, 1), metrics: w.metrics}
	return w, nil
}

// Run writes until ctx ends, then finishes the inserts in hand, within DrainTimeout, leaves the group and returns nil.
// Faults of Kafka's or ClickHouse's it outlasts; it returns an error only when the tables are of another version
// (clickhouse.ErrSchemaOlder, ErrSchemaNewer, ErrSchemaChanged). It is called once.
func (w *Writer) Run(ctx context.Context) error {
	defer w.closeInserters()
	if err := w.checkTables(ctx); err != nil || ctx.Err() != nil {
		return err
	}
	tables := w.cfg.ClickHouse
	tables.MaxOpenConns = 1 // what was changed is looked at where it was changed
	conn, err := clickhouse.Open(tables)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	w.eraser.conn = conn
	var erasing sync.WaitGroup
	defer erasing.Wait()
	eraseCtx, stopErasing := context.WithCancel(ctx)
	defer stopErasing()
	erasing.Go(func() { w.eraseAll(eraseCtx) })
	client, err := kgo.NewClient(w.opts...)
	if err != nil {
		return fmt.Errorf("clickhouse writer: %w", err)
	}
	// The callbacks may come before NewClient returns to us; they wait for w.client under the lock.
	w.mu.Lock()
	w.client = client
	w.mu.Unlock()
	w.joined.Store(true)

	for ctx.Err() == nil {
		w.poll(ctx, client)
	}
	w.joined.Store(false)
	w.drain()
	client.CloseAllowingRebalance()
	w.end(client, w.owned()) // what was assigned after drain
	return nil
}

func (w *Writer) owned() []int32 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Collect(maps.Keys(w.partitions))
}

// Written returns the ledger partitions that this writer owns, each with the offset before which every record is in the tables.
func (w *Writer) Written() map[int32]int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	written := make(map[int32]int64, len(w.partitions))
	for id, p := range w.partitions {
		written[id] = p.queue.status().next
	}
	return written
}

// checkTables waits for ClickHouse and makes sure of its tables.
func (w *Writer) checkTables(ctx context.Context) error {
	conn, err := clickhouse.Open(w.cfg.ClickHouse)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	for {
		err := clickhouse.CheckSchema(ctx, conn)
		if clickhouse.IsSchemaError(err) {
			return err
		}
		if err == nil {
			const query = "SELECT engine FROM system.tables WHERE database = currentDatabase() AND name = 'events'"
			var engine string
			if err = conn.QueryRow(ctx, query).Scan(&engine); err == nil {
				w.replicated = engine != "MergeTree"
				w.outages.end(systemClickHouse, noPartition)
				return nil
			}
		}
		w.outages.begin(systemClickHouse, noPartition, err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

const maxPollRecords = 20_000

// poll hands the records of one fetch to their partitions. It never waits for one of them.
func (w *Writer) poll(ctx context.Context, client *kgo.Client) {
	fetches := client.PollRecords(ctx, maxPollRecords)
	defer client.AllowRebalance()
	fetches.EachPartition(func(f kgo.FetchTopicPartition) {
		switch {
		case f.Err == nil:
			if p := w.partition(f.Partition); p != nil {
				p.queue.put(f.Records, f.HighWatermark)
			}
		case ctx.Err() != nil || errors.Is(f.Err, kgo.ErrClientClosed):
		case f.Topic != w.topic || f.Partition < 0 || kerr.IsRetriable(f.Err):
			w.outages.begin(systemKafka, noPartition, f.Err) // the client logs it, and tries again
		case errors.Is(f.Err, kerr.OffsetOutOfRange):
			w.halt(ctx, f.Partition, w.partition(f.Partition), halt(haltLost, "records that were not written have gone from the topic: %w. "+goOn, f.Err))
		default:
			w.halt(ctx, f.Partition, w.partition(f.Partition), halt(haltFetching, "fetching: %w", f.Err))
		}
	})
}

func (w *Writer) partition(id int32) *partition {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.partitions[id]
}

// onOffsetsFetched begins with the partitions that the group has just assigned. The response has those only, and no
// record of theirs is fetched before it returns.
func (w *Writer) onOffsetsFetched(ctx context.Context, client *kgo.Client, resp *kmsg.OffsetFetchResponse) error {
	for _, group := range resp.Groups {
		for _, topic := range group.Topics {
			for _, o := range topic.Partitions {
				if o.ErrorCode != 0 {
					continue // not assigned; the poll reports it
				}
				metadata := ""
				if o.Metadata != nil {
					metadata = *o.Metadata
				}
				w.begin(ctx, client, o.Partition, o.Offset, metadata)
			}
		}
	}
	return nil
}

func (w *Writer) begin(ctx context.Context, client *kgo.Client, id int32, committed int64, metadata string) {
	w.end(client, []int32{id})                                    // where an assignment was begun twice
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // it ends with the assignment, not with this session
	one := map[string][]int32{w.topic: {id}}
	p := &partition{
		w: w, id: id, logger: w.logger.With("partition", id), cancel: cancel, done: make(chan struct{}),
		committed: max(committed, noOffset), announced: noOffset, inTable: make(map[string]int64),
		queue: newQueue(w.cfg.QueueBytes, committed,
			func() { client.PauseFetchPartitions(one) }, func() { client.ResumeFetchPartitions(one) }),
	}
	var badMetadata error
	if metadata != "" {
		last, err := strconv.ParseInt(metadata, 10, 64)
		if err != nil || last < committed {
			badMetadata = halt(haltOffset, "the group's offset %d has the metadata %q, which is not the end of a batch", committed, metadata)
		}
		p.announced = last
	}
	w.mu.Lock()
	w.client = client
	w.partitions[id] = p
	w.mu.Unlock()
	go func() {
		defer close(p.done)
		err := badMetadata
		if err == nil {
			err = p.run(ctx)
		}
		if err != nil {
			w.halt(ctx, id, p, err)
		}
	}()
}

// onPartitionsGone ends partitions before the group may give them to another member.
func (w *Writer) onPartitionsGone(_ context.Context, client *kgo.Client, gone map[string][]int32) {
	w.end(client, gone[w.topic])
}

// end closes partitions and forgets them.
func (w *Writer) end(client *kgo.Client, ids []int32) {
	var ending []*partition
	w.mu.Lock()
	for _, id := range ids {
		if p := w.partitions[id]; p != nil {
			ending = append(ending, p)
		}
		delete(w.partitions, id)
		delete(w.halted, id)
	}
	w.mu.Unlock()
	for _, p := range ending {
		p.cancel() // all, before waiting for one
	}
	for _, p := range ending {
		p.close()
	}
	client.ResumeFetchPartitions(map[string][]int32{w.topic: ids})
}

// halt stops fetching a partition until it is assigned anew. p is what writes it, nil if the assignment failed.
func (w *Writer) halt(ctx context.Context, id int32, p *partition, reason error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.halted[id] != nil || w.partitions[id] != p { // known, or no longer ours
		return
	}
	w.halted[id] = reason
	w.client.PauseFetchPartitions(map[string][]int32{w.topic: {id}})
	w.metrics.halts.Inc()
	attrs := []slog.Attr{slog.Int("partition", int(id)), slog.String("reason", haltReason(reason)), slog.Any("error", reason)}
	if e, ok := errors.AsType[*haltError](reason); ok {
		if e.requestID != "" {
			attrs = append(attrs, slog.String("request_id", e.requestID))
		}
		if e.traceID != "" {
			attrs = append(attrs, slog.String("trace_id", e.traceID))
		}
	}
	w.logger.LogAttrs(ctx, slog.LevelError, "partition halted: it is not written to clickhouse any more", attrs...)
}

// drain lets every partition finish its insert and commit it.
func (w *Writer) drain() {
	close(w.draining)
	w.mu.Lock()
	ending := slices.Collect(maps.Values(w.partitions))
	w.mu.Unlock()
	timeout := time.NewTimer(w.cfg.DrainTimeout)
	defer timeout.Stop()
	for _, p := range ending {
		select {
		case <-p.done:
			continue
		case <-timeout.C:
		}
		break
	}
	for _, p := range ending {
		p.cancel()
	}
	for _, p := range ending {
		p.close()
	}
}

// commit commits one partition's offset with metadata.
func (w *Writer) commit(ctx context.Context, id int32, at kgo.EpochOffset, metadata string) error {
	ctx = kgo.PreCommitFnContext(ctx, func(req *kmsg.OffsetCommitRequest) error {
		if len(req.Topics) != 1 || len(req.Topics[0].Partitions) != 1 {
			return errors.New("a commit is for one partition")
		}
		req.Topics[0].Partitions[0].Metadata = &metadata
		return nil
	})
	var failed error
	w.client.CommitOffsetsSync(ctx, map[string]map[int32]kgo.EpochOffset{w.topic: {id: at}},
		func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
			if failed = err; err != nil {
				return
			}
			for _, t := range resp.Topics {
				for _, p := range t.Partitions {
					failed = errors.Join(failed, kerr.ErrorForCode(p.ErrorCode))
				}
			}
		})
	if failed != nil {
		return fmt.Errorf("committing offset %d: %w", at.Offset, failed)
	}
	return nil
}

// borrow waits for an inserter.
func (w *Writer) borrow(ctx context.Context) (*inserter, error) {
	select {
	case i := <-w.inserters:
		return i, nil
	case <-ctx.Done():
		return nil, errStopped
	}
}

func (w *Writer) giveBack(i *inserter) { w.inserters <- i }

// closeInserters runs when no partition has one.
func (w *Writer) closeInserters() {
	for range w.cfg.Inserters {
		(<-w.inserters).close()
	}
}

// Ready says what keeps records from reaching ClickHouse, nil if nothing.
func (w *Writer) Ready(context.Context) error {
	errs := []error{w.outages.err()}
	if !w.joined.Load() {
		errs = append(errs, errors.New("not consuming yet"))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(w.halted)) {
		errs = append(errs, fmt.Errorf("ledger partition %d is halted: %w", id, w.halted[id]))
	}
	return errors.Join(errs...)
}

// status is what the gauges show.
type status struct {
	owned, queuedBytes int
	halted             map[string]int // by reason
	lags               map[int32]lag
}

// lag is how far a partition's tables are behind.
type lag struct {
	records int64
	age     time.Duration // of the oldest record
}

func (w *Writer) status() status {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := status{owned: len(w.partitions), halted: make(map[string]int), lags: make(map[int32]lag, len(w.partitions))}
	for _, reason := range w.halted {
		s.halted[haltReason(reason)]++
	}
	for id, p := range w.partitions {
		q := p.queue.status()
		s.queuedBytes += q.bytes
		l := lag{records: q.lag}
		if !q.oldest.IsZero() {
			l.age = max(0, time.Since(q.oldest))
		}
		s.lags[id] = l
	}
	return s
}

// The systems that may have an outage.
const (
	systemKafka      = "kafka"
	systemClickHouse = "clickhouse"
)

// noPartition is for what concerns the writer as a whole.
const noPartition = -1

// outages is what does not work at the moment, by system and partition: a system is back only when none of the
// partitions still fails.
type outages struct {
	mu      sync.Mutex
	reasons map[string]map[int32]error
}

func (o *outages) begin(system string, partition int32, reason error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.reasons == nil {
		o.reasons = make(map[string]map[int32]error)
	}
	if o.reasons[system] == nil {
		o.reasons[system] = make(map[int32]error)
	}
	o.reasons[system][partition] = reason
}

func (o *outages) end(system string, partition int32) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.reasons[system], partition)
}

func (o *outages) on(system string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.reasons[system]) > 0
}

// err has one reason for each system: they are alike.
func (o *outages) err() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var errs []error
	for _, system := range slices.Sorted(maps.Keys(o.reasons)) {
		if failing := slices.Sorted(maps.Keys(o.reasons[system])); len(failing) > 0 {
			errs = append(errs, fmt.Errorf("%s: %w", system, o.reasons[system][failing[0]]))
		}
	}
	return errors.Join(errs...)
}
