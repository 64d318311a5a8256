// Package processor turns what was accepted into the ledger: session seal reads the events topic and writes, exactly
// once, each event's place in its chain. Kafka is all it knows of the outside.
package processor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/schemas"
)

// Processor runs the session seal. One is enough for an installation; several share its partitions.
type Processor struct {
	cfg     Config
	clients []kgo.Opt // what every client of the cluster has in common
	id      string    // transactional id
	logger  *slog.Logger
	metrics *metrics
	topics  []schemas.Topic // that sealing reads and writes

	dlqPartitions int32

	// sealing is the session that is on, nil between two; reason is why there is none.
	sealing atomic.Pointer[session]
	reason  atomic.Pointer[error]
}

// New returns a processor that has not begun. It reads the files that cfg.Kafka names.
func New(cfg Config, reg prometheus.Registerer, logger *slog.Logger) (*Processor, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	clients, err := cfg.Kafka.Options(logger)
	if err != nil {
		return nil, err
	}
	p := &Processor{
		cfg: cfg, clients: clients, id: cfg.transactionalID(), logger: logger.With(slog.String("session", "seal")),
		metrics: newMetrics(reg, &cfg),
	}
	for _, t := range schemas.Topics(cfg.Layout) {
		switch t.Name {
		case cfg.Kafka.Topic(schemas.TopicDLQ):
			p.dlqPartitions = t.Partitions
			fallthrough
		case cfg.Kafka.Topic(schemas.TopicEvents), cfg.Kafka.Topic(schemas.TopicLedger), cfg.Kafka.Topic(schemas.TopicHeads),
			cfg.Kafka.Topic(schemas.TopicDedup):
			p.topics = append(p.topics, t)
		}
	}
	// A session differs from the next by nothing that could be invalid: what franz-go refuses, it refuses here.
	if err := kgo.ValidateOpts(new(session).options(p)...); err != nil {
		return nil, fmt.Errorf("processor: %w", err)
	}
	return p, nil
}

// How long to wait before a session follows one that failed; doubled with each that commits nothing.
const (
	minRestartDelay = 250 * time.Millisecond
	maxRestartDelay = 10 * time.Second
)

// Run seals until ctx ends, and then commits what is in hand and leaves the group, within TransactionTimeout and 5 s
// more. It returns nil then.
//
// A session ends when the outcome of a transaction is not known, or not the one wanted, and nothing of it is used again:
// the next begins as another process would, with a new client, which fences what the old one may have left under way,
// and takes every partition over from what the topics say. So that needs no new process. What does, and is returned, is
// a *kafka.TopicsError, and that another process holds Config.Instance.
func (p *Processor) Run(ctx context.Context) error {
	lost := make(map[int32]error)
	delay := minRestartDelay
	for {
		progress, err := p.session(ctx, lost)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // asked to end; what was in hand is in the topics or will be sealed again
		}
		p.reason.Store(&err)
		if errors.Is(err, kerr.FencedInstanceID) {
			return fmt.Errorf("sealing as instance %q, which another process is too: %w", p.cfg.Instance, err)
		}
		if _, ok := errors.AsType[*kafka.TopicsError](err); ok {
			return fmt.Errorf("sealing: %w", err)
		}
		if e, ok := errors.AsType[*inputLostError](err); ok {
			lost[e.partition] = e
		}
		if progress || errors.Is(err, errRetryHalted) {
			delay = minRestartDelay
		}
		p.logger.LogAttrs(ctx, slog.LevelWarn, "session ended, another follows", slog.Any("error", err),
			slog.Duration("delay", delay))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(delay):
		}
		delay = min(2*delay, maxRestartDelay)
	}
}

// session runs one session to its end. progress says whether it committed anything.
func (p *Processor) session(ctx context.Context, lost map[int32]error) (progress bool, err error) {
	s, err := p.newSession(ctx, lost)
	if err != nil {
		return false, err
	}
	defer s.close(ctx)
	p.sealing.Store(s)
	defer p.sealing.Store(nil)
	p.metrics.sessions.Inc()
	err = s.run(ctx)
	return s.progress, err
}

// Ready says what keeps this processor from sealing each partition that the group has assigned to it, nil if nothing.
func (p *Processor) Ready(context.Context) error {
	s := p.sealing.Load()
	if s == nil {
		if reason := p.reason.Load(); reason != nil {
			return fmt.Errorf("seal: not joined: %w", *reason)
		}
		return errors.New("seal: not joined")
	}
	return s.owned.ready()
}
