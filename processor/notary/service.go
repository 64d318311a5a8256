// Package notary states the whole ledger, every few seconds, in one signed line: it recomputes all chains from the ledger
// topic, appends an epoch to the root log, reads it back committed, and signs a checkpoint of exactly that. It takes no
// part in accepting or sealing events, which never wait for it.
package notary

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
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
)

// cosignFunc asks witnesses to cosign a signed checkpoint, until ctx ends at the latest. prove is safe for use by several
// at once and of no use after it has returned. It returns the note with the cosignatures that came, how many witnesses they
// are of, and whether these are as many as are asked for.
type cosignFunc func(ctx context.Context, signed []byte, prove func(ctx context.Context, oldSize uint64) ([]ledger.Hash, error)) (
	note []byte, n int, quorum bool)

// Notary signs checkpoints. One is enough for an installation; of several one leads, and the others stand by.
type Notary struct {
	cfg     Config
	clients []kgo.Opt // what every client of the cluster has in common
	logger  *slog.Logger
	metrics *metrics
	topics  []schemas.Topic // that the notary reads and writes
	cosign  cosignFunc      // nil: there are no witnesses

	// seen returns what witnesses have of a log, by its keys; nil: there are no witnesses.
	seen           func(ctx context.Context, origin string, own *ledger.Trust) []*ledger.Checkpoint
	closeWitnesses func() // ends idle connections

	// reason is why this notary neither leads nor stands by, nil if it does.
	reason atomic.Pointer[error]
}

// New returns a notary that has not begun. It reads the key file, and the files that cfg.Kafka names.
func New(cfg Config, reg prometheus.Registerer, logger *slog.Logger) (*Notary, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	clients, err := cfg.Kafka.Options(logger)
	if err != nil {
		return nil, err
	}
	// It is read again by each leader; what is wrong with it is better said now.
	if _, err := loadKeys(cfg.KeyFile); err != nil {
		return nil, err
	}
	n := &Notary{
		cfg: cfg, clients: clients, logger: logger.With(slog.String("session", "notary")), metrics: newMetrics(reg, &cfg),
		closeWitnesses: func() {},
	}
	if len(cfg.WitnessPolicy) > 0 {
		w, err := newWitnesses(WitnessesConfig{Policy: cfg.WitnessPolicy, Timeout: cfg.WitnessTimeout}, reg, logger)
		if err != nil {
			return nil, err
		}
		n.cosign, n.seen, n.closeWitnesses = w.cosign, w.newest, w.close
	}
	for _, t := range schemas.Topics(cfg.Layout) {
		switch t.Name {
		case cfg.Kafka.Topic(schemas.TopicLedger), cfg.Kafka.Topic(schemas.TopicHeads),
			cfg.Kafka.Topic(schemas.TopicCheckpoints), cfg.Kafka.Topic(schemas.TopicNotaryState):
			n.topics = append(n.topics, t)
		}
	}
	n.setReason(errors.New("not joined"))
	return n, nil
}

// How long to wait before a session follows one that failed; doubled with each that signs nothing.
const (
	minRestartDelay = 250 * time.Millisecond
	maxRestartDelay = 10 * time.Second
)

// Run leads or stands by until ctx ends, and then commits and signs what is in hand and leaves the group, within 13 s, and
// much sooner where the brokers answer. It returns nil then.
//
// A session ends when the outcome of a transaction is not known, or not the one wanted, and nothing of it is used again:
// the next begins as another process would, with a new client, which fences what the old one may have left under way,
// and takes over from what the topics say. So that needs no new process. What does, and is returned, is a
// *kafka.TopicsError, and that another process holds Config.Instance.
func (n *Notary) Run(ctx context.Context) error {
	defer n.closeWitnesses()
	delay := minRestartDelay
	for {
		progress, err := n.session(ctx)
		if ctx.Err() != nil {
			n.setReason(errors.New("stopped"))
			return nil // asked to end; what was in hand is in the topics or will be done again
		}
		n.setReason(fmt.Errorf("not joined: %w", err))
		if errors.Is(err, kerr.FencedInstanceID) {
			return fmt.Errorf("being notary %q, which another process is too: %w", n.cfg.Instance, err)
		}
		if _, ok := errors.AsType[*kafka.TopicsError](err); ok {
			return fmt.Errorf("being a notary: %w", err)
		}
		n.metrics.failed.Inc()
		if progress {
			delay = minRestartDelay
		}
		n.logger.LogAttrs(ctx, slog.LevelWarn, "session ended, another follows", slog.Any("error", err),
			slog.Duration("delay", delay))
		select {
		case <-ctx.Done():
			n.setReason(errors.New("stopped"))
			return nil
		case <-time.After(delay):
		}
		delay = min(2*delay, maxRestartDelay)
	}
}

// Ready returns nil while this notary leads, or stands by as a member of the group; otherwise why not.
func (n *Notary) Ready(context.Context) error {
	if reason := n.reason.Load(); reason != nil {
		return fmt.Errorf("notary: %w", *reason)
	}
	return nil
}

func (n *Notary) setReason(err error) {
	if err == nil {
		n.reason.Store(nil)
		return
	}
	n.reason.Store(&err)
}
