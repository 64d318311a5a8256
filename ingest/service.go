// Package ingest accepts events over HTTP and writes them to Kafka. A 202 means that every event it names as queued is
// on the events topic, acknowledged by all in-sync replicas. All that memory can grow with is bounded, and what
// exceeds a bound is answered 503 with Retry-After.
package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/internal/crash"
	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/schemas"
)

// Service is the ingest service.
type Service struct {
	cfg      Config
	topic    string
	view     *control.View
	options  []kgo.Opt
	metrics  *metrics
	bodies   *bodies
	limits   *limits
	accepted *accepted
	builders sync.Pool // of *event.Builder

	// running is locked for writing while Run is not running, and for reading while client is used.
	running sync.RWMutex
	client  *kgo.Client
}

// New returns a service that answers 503 until Run runs. view must be run by the caller.
func New(cfg Config, view *control.View, reg prometheus.Registerer, logger *slog.Logger) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("ingest: %w", err)
	}
	cfg = cfg.withDefaults()
	topic := cfg.Kafka.Topic(schemas.TopicEvents)
	options, err := cfg.Kafka.Options(logger)
	if err != nil {
		return nil, fmt.Errorf("ingest: %w", err)
	}
	options = append(options, producerOptions(cfg, topic)...)
	if err := kgo.ValidateOpts(options...); err != nil {
		return nil, fmt.Errorf("ingest: kafka client: %w", err)
	}
	m := newMetrics(reg)
	s := &Service{
		cfg: cfg, topic: topic, view: view, options: options, metrics: m,
		bodies:   newBodies(cfg.MaxBodiesBytes, m.bodiesBytes),
		limits:   newLimits(),
		accepted: newAccepted(cfg.IdempotencyKeys),
	}
	s.builders.New = func() any { return event.NewBuilder() }
	s.running.Lock()
	registerBuffered(reg, s.ofClient((*kgo.Client).BufferedProduceRecords), s.ofClient((*kgo.Client).BufferedProduceBytes))
	return s, nil
}

// ofClient returns what get says of the Kafka client, and 0 while Run is not running.
func (s *Service) ofClient(get func(*kgo.Client) int64) func() float64 {
	return func() float64 {
		if !s.running.TryRLock() {
			return 0
		}
		defer s.running.RUnlock()
		return float64(get(s.client))
	}
}

// Run connects to Kafka and lets writes through until ctx ends. Then new ones are answered 503, those under way finish
// within ProduceTimeout, and it returns. It is called once.
func (s *Service) Run(ctx context.Context) error {
	client, err := kgo.NewClient(s.options...)
	if err != nil {
		return fmt.Errorf("ingest: kafka client: %w", err)
	}
	s.client = client
	s.running.Unlock()
	<-ctx.Done()
	s.running.Lock()
	// What is still buffered belongs to requests that were answered 503.
	client.Close()
	return nil
}

// Ready returns nil when Kafka is within reach, the events topic is what Config says, and keys are known.
func (s *Service) Ready(ctx context.Context) error {
	if err := s.view.Ready(ctx); err != nil {
		return err
	}
	if !s.running.TryRLock() {
		return errStopped
	}
	defer s.running.RUnlock()
	ctx, cancel := context.WithTimeout(ctx, s.cfg.ProduceTimeout)
	defer cancel()
	topics, err := kadm.NewClient(s.client).ListTopics(ctx, s.topic)
	if err == nil {
		err = topics.Error()
	}
	if err != nil {
		return fmt.Errorf("kafka: describe topic %s: %w", s.topic, err)
	}
	if n := len(topics[s.topic].Partitions); n != int(s.cfg.Partitions) {
		return fmt.Errorf("topic %s has %d partitions, but ingest is set to %d", s.topic, n, s.cfg.Partitions)
	}
	return nil
}

// outcome is what became of one event.
type outcome struct {
	id        [16]byte
	duplicate bool
	secrets   bool         // the scanner found what looks like one
	rejected  *event.Error // nil for an event that was accepted
}

// caller is whose request it is.
type caller struct {
	principal              *control.Principal
	requestID, traceparent string
}

// write returns what became of each of the submission's events, in their order, once all that were accepted are
// acknowledged by Kafka. After an error, which is an *httpserver.Error, none was accepted.
func (s *Service) write(ctx context.Context, sub submission) ([]outcome, error) {
	workspace := sub.principal.Workspace
	built, err := s.build(sub)
	if err != nil {
		return nil, err
	}
	if len(built.records) > 0 {
		if err := s.produce(ctx, built.records, workspace.ID); err != nil {
			return nil, unavailable("The events could not be written: send them again after Retry-After seconds.", err)
		}
	}
	// Every record is on the topic now: the answer may be lost, the events are not.
	crash.Point("ingest-before-202")
	s.accepted.add(workspace.ID, built.keys)
	for _, o := range built.outcomes {
		switch {
		case o.rejected != nil:
			s.metrics.rejected.WithLabelValues(o.rejected.Code).Inc()
			if o.rejected.Secrets {
				s.metrics.secretsRejected.Inc()
			}
		case o.duplicate:
			s.metrics.duplicate.Inc()
		default:
			s.metrics.queued.Inc()
			switch {
			case !o.secrets:
			case workspace.Settings.SecretPolicy == event.SecretsRedact:
				s.metrics.secretsRedacted.Inc()
			default:
				s.metrics.secretsFlagged.Inc()
			}
		}
	}
	return built.outcomes, nil
}

// built is a submission that only has to be written.
type built struct {
	outcomes []outcome
	records  []event.Record
	// keys are the idempotency keys among records, with the ids they led to.
	keys map[string][16]byte
}

// build makes the records of a submission and releases its body. It finds events that were accepted before, and
// reuses of a key.
func (s *Service) build(sub submission) (built, error) {
	defer sub.body.release()
	// One reading of the clock: what came together was accepted together.
	now := time.Now()
	if err := s.limits.charge(sub.principal, len(sub.events), now); err != nil {
		return built{}, err
	}
	b := built{
		outcomes: make([]outcome, len(sub.events)),
		records:  make([]event.Record, 0, len(sub.events)),
	}
	workspace, forEvents := sub.principal.Workspace, sub.principal.Workspace.ForEvents()
	builder := s.builders.Get().(*event.Builder)
	defer s.builders.Put(builder)
	size := 0
	for i, text := range sub.events {
		out := &b.outcomes[i]
		record, err := builder.Build(forEvents, event.Input{
			JSON: text, IdempotencyKey: sub.idempotencyKey, RecordedAt: now,
			RequestID: sub.requestID, Traceparent: sub.traceparent,
		})
		if err != nil {
			if out.rejected, _ = errors.AsType[*event.Error](err); out.rejected == nil {
				return built{}, fmt.Errorf("build the record of event %d: %w", i, err)
			}
			if sub.cut {
				if _, err := splitJSON(sub.body.data, maxBatchEvents); err != nil {
					return built{}, err
				}
				sub.cut = false
			}
			continue
		}
		if len(record.Value) > maxRecordBytes {
			out.rejected = errRecordTooLarge
			continue
		}
		out.id, out.secrets = record.ID, record.Secrets
		if record.Keyed {
			// First, and whatever the content is: no answer may depend on how it compares with what was erased.
			if s.view.Redactions().Burned(workspace, record.IdempotencyKey) {
				out.rejected = errKeyBurned
				continue
			}
			known, ok := b.keys[record.IdempotencyKey]
			if !ok {
				known, ok = s.accepted.id(workspace.ID, record.IdempotencyKey)
			}
			if ok {
				out.duplicate = known == record.ID
				if !out.duplicate {
					out.rejected = errKeyReused
				}
				continue
			}
			if b.keys == nil {
				b.keys = make(map[string][16]byte)
			}
			b.keys[record.IdempotencyKey] = record.ID
		}
		// A record can be many times its event's size, where long names lead to many small values.
		if size += len(record.Key) + len(record.Value); size > s.cfg.MaxBufferedBytes/2 {
			return built{}, httpserver.TooLarge("The batch's metadata takes too much memory: send it in smaller batches.")
		}
		b.records = append(b.records, record)
	}
	return b, nil
}

// errRecordTooLarge is rare: of numbers like 1e20, say, which have five times as many bytes in canonical form.
var errRecordTooLarge = &event.Error{
	Code:    event.CodeTooLarge,
	Message: fmt.Sprintf("The event takes more than %d bytes in canonical form: send less in it.", maxRecordBytes),
}

var errKeyReused = &event.Error{
	Code: httpserver.CodeConflict,
	Message: "This idempotency key was used for an event with other content: " +
		"use a new key for a new event, and send the same content when you retry.",
}

var errKeyBurned = &event.Error{
	Code: httpserver.CodeConflict,
	Message: "This idempotency key belongs to an event of which something was redacted, and is not accepted again with any " +
		"content: the event is stored if this is a retry of it, and a new event needs a new key.",
}

// rejection is the answer to a single event that was rejected.
func rejection(e *event.Error) *httpserver.Error {
	status := http.StatusUnprocessableEntity
	switch e.Code {
	case event.CodeInvalidJSON:
		status = http.StatusBadRequest
	case event.CodeTooLarge:
		status = http.StatusRequestEntityTooLarge
	case httpserver.CodeConflict:
		status = http.StatusConflict
	}
	return &httpserver.Error{Status: status, Code: e.Code, Message: e.Message, Details: details(e)}
}

func details(e *event.Error) []httpserver.Detail {
	if len(e.Details) == 0 {
		return nil
	}
	list := make([]httpserver.Detail, len(e.Details))
	for i, d := range e.Details {
		list[i] = httpserver.Detail{Field: d.Field, Message: d.Message}
	}
	return list
}

// accepted remembers the idempotency keys of events that Kafka has acknowledged. It spares Kafka the retries that come
// soon, and tells of a reused key; that no event counts twice is the processor's work.
type accepted struct {
	mu  sync.Mutex
	ids *recent[acceptedKey, [16]byte]
}

type acceptedKey struct {
	workspace [16]byte
	key       string
}

func newAccepted(size int) *accepted {
	return &accepted{ids: newRecent[acceptedKey, [16]byte](size)}
}

func (a *accepted) id(workspace [16]byte, key string) ([16]byte, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ids.get(acceptedKey{workspace, key})
}

func (a *accepted) add(workspace [16]byte, ids map[string][16]byte) {
	if len(ids) == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for key, id := range ids {
		a.ids.put(acceptedKey{workspace, key}, id)
	}
}
