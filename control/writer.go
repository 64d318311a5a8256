package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

const (
	// transactionTimeout is how long a writer that died can hold up the readers.
	transactionTimeout = 3 * time.Second
	// endTimeout is how long the end of a transaction may take after the time of the change is up.
	endTimeout = 500 * time.Millisecond

	maxAttempts    = 12
	firstRetryWait = 20 * time.Millisecond
	maxRetryWait   = time.Second

	defWriteTimeout = 15 * time.Second
	maxWriteTimeout = time.Minute
)

// WriterConfig configures a Writer.
type WriterConfig struct {
	Kafka kafka.Config
	// MasterKey seals the secrets of the config topic.
	MasterKey MasterKey
	// Partitions of the events topic, at least 1: the most lanes that a workspace may have.
	Partitions int32
	// Timeout bounds one change with all its attempts, but for half a second more if it is up while the last one ends; and
	// one Snapshot. 1 s to 1 min; default 15 s.
	Timeout time.Duration
}

// Validate fills in defaults and checks the rest.
func (c *WriterConfig) Validate() error {
	if c.Timeout == 0 {
		c.Timeout = defWriteTimeout
	}
	switch {
	case c.Partitions < 1:
		return fmt.Errorf("config writer: %d partitions: must be at least 1", c.Partitions)
	case c.Timeout < time.Second || c.Timeout > maxWriteTimeout:
		return fmt.Errorf("config writer: timeout %v: must be 1 s to %v", c.Timeout, maxWriteTimeout)
	}
	return c.Kafka.Validate()
}

// Writer changes what is configured. There may be any number of them, in one process or many: each change fences the
// other writers, looks at everything that was committed, and commits the change together with the event that reports
// it in one Kafka transaction. So the versions of an object have no gaps and no rivals, and there is never a change
// without its event nor an event without its change. Between changes a Writer holds nothing open.
//
// Every method may be used by several goroutines and takes by, who makes the change: "key:<id>" or "cli:<user>". Where its
// context belongs to a request, the event carries the id of that.
type Writer struct {
	cfg    WriterConfig
	sealer *sealer
	opts   []kgo.Opt
	// turn holds one token: the changes of one Writer wait for each other instead of fencing each other.
	turn chan struct{}
}

// NewWriter returns a Writer; it contacts nobody.
func NewWriter(cfg WriterConfig, logger *slog.Logger) (*Writer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s, err := newSealer(cfg.MasterKey)
	if err != nil {
		return nil, fmt.Errorf("config writer: %w", err)
	}
	opts, err := cfg.Kafka.Options(logger)
	if err != nil {
		return nil, fmt.Errorf("config writer: %w", err)
	}
	return &Writer{cfg: cfg, sealer: s, opts: opts, turn: make(chan struct{}, 1)}, nil
}

// Snapshot reads what is configured at this moment.
func (w *Writer) Snapshot(ctx context.Context) (*Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, w.cfg.Timeout)
	defer cancel()
	topic := w.cfg.Kafka.Topic(schemas.TopicConfig)
	cl, err := kgo.NewClient(append(readOptions(topic, 0), w.opts...)...)
	if err != nil {
		return nil, fmt.Errorf("open config reader: %w", err)
	}
	defer cl.Close()
	s := newState(w.sealer)
	if err := s.readTo(ctx, cl, topic, func(*kgo.Record, outcome, error) {}); err != nil {
		return nil, err
	}
	if err := s.broken(); err != nil {
		return nil, err
	}
	return s.snapshot(), nil
}

// plan decides, from everything that was committed, what to write: nil for nothing. It is called again where a rival was
// faster.
type plan func(s *state) (*change, error)

// change is an object in its new version, and the event that reports it in the ledger of its workspace.
type change struct {
	object    *object
	workspace *Workspace
	event     report
	// kind and lane of the event, where they are not those of any other.
	kind recordpb.Kind
	lane *uint32
}

// report is the body of an event, as a client would send it (docs/design/api.md, Writing).
type report struct {
	ActorID      string         `json:"actor_id"`
	ActorType    string         `json:"actor_type"`
	Action       string         `json:"action"`
	Resource     string         `json:"resource"`
	ResourceID   string         `json:"resource_id"`
	ResourceName string         `json:"resource_name"`
	Metadata     map[string]any `json:"metadata"`
}

// write makes one change.
func (w *Writer) write(ctx context.Context, by string, p plan) error {
	actor, err := actorType(by)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, w.cfg.Timeout)
	defer cancel()
	select {
	case w.turn <- struct{}{}:
		defer func() { <-w.turn }()
	case <-ctx.Done():
		return fmt.Errorf("%w: waiting for another change: %w", ErrBusy, ctx.Err())
	}

	a := attempt{w: w, by: by, actorType: actor, plan: p}
	for n := range maxAttempts {
		if err = a.run(ctx); err == nil || a.unknown == nil && !fenced(err) {
			break
		}
		// Writers that fence each other come back at different times.
		most := min(firstRetryWait<<n, maxRetryWait)
		select {
		case <-time.After(most/4 + rand.N(most)): //nolint:gosec // jitter
			continue
		case <-ctx.Done():
		}
		break
	}
	switch {
	case err == nil:
		return nil
	case a.unknown != nil:
		return fmt.Errorf("%w: look whether the change was made before trying again: %w", ErrUnknownOutcome, err)
	case fenced(err):
		return fmt.Errorf("%w: other writers kept taking over, try again: %w", ErrBusy, err)
	}
	return err
}

// actorType checks who makes a change.
func actorType(by string) (string, error) {
	kind, name, _ := strings.Cut(by, ":")
	if name != "" && checkName(by) == nil {
		switch kind {
		case "key":
			return "api_key", nil
		case "cli":
			return "user", nil
		}
	}
	return "", fmt.Errorf("%w: a change is made by key:<id> or cli:<user>, not %q", ErrInvalid, by)
}

// attempt is the tries of one change.
type attempt struct {
	w             *Writer
	by, actorType string
	plan          plan
	// unknown is the config record of a commit of which Kafka has not said whether it took effect; nil while there is
	// none. The change is in doubt until a later try has read the topic.
	unknown *kgo.Record
}

// run tries once. Where it returns an error and a.unknown is nil, nothing was written.
func (a *attempt) run(ctx context.Context) error {
	w := a.w
	topic := w.cfg.Kafka.Topic(schemas.TopicConfig)
	opts := append(readOptions(topic, 0), w.opts...)
	cl, err := kgo.NewClient(append(opts,
		kgo.TransactionalID(w.cfg.Kafka.Group(schemas.TransactionalIDConfig)),
		kgo.TransactionTimeout(transactionTimeout),
		kgo.ProducerLinger(0),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
	)...)
	if err != nil {
		return fmt.Errorf("open config writer: %w", err)
	}
	defer cl.Close()

	// From here on no earlier writer can commit: what it had open is aborted, or committed with its markers written.
	// So below the high watermark everything is decided, and nothing above it but our own.
	if _, _, err := cl.ProducerID(ctx); err != nil {
		return fmt.Errorf("take over as the writer of config: %w", err)
	}
	s := newState(w.sealer)
	done := false
	err = s.readTo(ctx, cl, topic, func(r *kgo.Record, _ outcome, _ error) {
		done = done || isRecord(r, a.unknown)
	})
	if err != nil {
		return err
	}
	a.unknown = nil
	if done {
		return nil
	}
	if err := s.broken(); err != nil {
		return fmt.Errorf("config cannot be changed while a part of it cannot be read: %w", err)
	}
	c, err := a.plan(s)
	if c == nil || err != nil {
		return err
	}
	records, err := a.records(ctx, c)
	if err != nil {
		return err
	}
	return a.commit(ctx, cl, records)
}

// records returns the config record, first, and that of its event.
func (a *attempt) records(ctx context.Context, c *change) ([]*kgo.Record, error) {
	w := a.w
	now := time.Now().UTC().Truncate(time.Microsecond)
	c.object.changedAt, c.object.changedBy = now, a.by
	c.event.ActorID, c.event.ActorType = a.by, a.actorType
	requestID := httpserver.RequestID(ctx)
	if requestID != "" {
		// The record's own is for logs; readers of the ledger find it here.
		c.event.Metadata["request_id"] = requestID
	}
	body, err := json.Marshal(c.event)
	if err != nil {
		return nil, fmt.Errorf("encode the event of a config change: %w", err)
	}
	ws := c.workspace.ForEvents()
	if ws.SecretPolicy == event.SecretsReject {
		// What somebody calls a key may look like one, but the act is reported all the same.
		ws.SecretPolicy = event.SecretsRedact
	}
	if c.object.redaction != nil {
		// Which fields were erased is told as it is, whatever they are called. The reason is no secret: see RedactEvent.
		ws.SecretPolicy = event.SecretsFlag
	}
	rec, err := event.NewBuilder().Build(ws, event.Input{
		JSON: body, Kind: c.kind, Lane: c.lane, RecordedAt: now, RequestID: requestID,
	})
	if err != nil {
		return nil, fmt.Errorf("build the event of a config change: %w", err)
	}
	if r := c.object.redaction; r != nil {
		r.ID, r.ChangedAt = rec.ID, now
	}
	value, err := c.object.encode(w.sealer)
	if err != nil {
		return nil, err
	}
	return []*kgo.Record{
		{
			Topic:     w.cfg.Kafka.Topic(schemas.TopicConfig),
			Key:       []byte(c.object.recordKey()),
			Value:     value,
			Timestamp: now,
		},
		{
			Topic:     w.cfg.Kafka.Topic(schemas.TopicEvents),
			Partition: event.Partition(c.workspace.ID, rec.Lane, w.cfg.Partitions),
			Key:       rec.Key,
			Value:     rec.Value,
			Timestamp: rec.RecordedAt,
		},
	}, nil
}

// commit writes records in one transaction. Before EndTransaction nothing of them can become visible: if this process
// dies, the next writer or the transaction's timeout aborts them. Once it has returned nil both are durable on every
// in-sync replica. In between the outcome is Kafka's to know, and a.unknown says so.
func (a *attempt) commit(ctx context.Context, cl *kgo.Client, records []*kgo.Record) error {
	if err := cl.BeginTransaction(); err != nil {
		return fmt.Errorf("begin a config change: %w", err)
	}
	// A caller that leaves does not cut the end short: an answer that nobody waited for would leave the outcome open.
	deadline, _ := ctx.Deadline() // of WriterConfig.Timeout
	endCtx, cancel := context.WithDeadline(context.WithoutCancel(ctx), deadline.Add(endTimeout))
	defer cancel()
	if err := cl.ProduceSync(ctx, records...).FirstErr(); err != nil {
		err = fmt.Errorf("write a config change: %w", err)
		// Readers need not wait for the timeout. Whether this works makes no difference to the outcome.
		if abortErr := cl.EndTransaction(endCtx, kgo.TryAbort); abortErr != nil && !fenced(abortErr) {
			return errors.Join(err, fmt.Errorf("abort a config change: %w", abortErr))
		}
		return err
	}
	a.unknown = records[0]
	if err := cl.EndTransaction(endCtx, kgo.TryCommit); err != nil {
		return fmt.Errorf("commit a config change: %w", err)
	}
	a.unknown = nil
	return nil
}

// fenced reports whether another writer took over, or the transaction was given up by the broker: trying again may help.
func fenced(err error) bool {
	for _, e := range []error{
		kerr.ProducerFenced, kerr.InvalidProducerEpoch, kerr.InvalidTxnState, kerr.InvalidProducerIDMapping,
		kerr.UnknownProducerID, kerr.OutOfOrderSequenceNumber, kerr.TransactionAbortable, kerr.ConcurrentTransactions,
		kerr.OperationNotAttempted,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
