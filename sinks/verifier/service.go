// Package verifier verifies what is in ClickHouse, all the time: each instance of the sinks, for the chains of the ledger partitions that it
// owns, the leaves that have come since the last run and a part of the history. What it finds becomes a metric, a line of the log and an event
// of the workspace.
//
// It believes the notary's topics: what an installation can show of itself. Who believes nobody runs `immutable verify`.
package verifier

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/ledger"
)

// Verifier is made by New.
type Verifier struct {
	cfg     Config
	written func() map[int32]int64
	opts    []kgo.Opt
	logger  *slog.Logger
	metrics *metrics

	// Owned by Run.
	client  *kgo.Client
	admin   *kadm.Client
	anchors *anchors
	builder *event.Builder
	told    told
	// seen are the chains as they were when their newest leaves were verified.
	seen map[ledger.ChainID]sound
	// again are the parts in which there was a fault when they were looked at last.
	again map[partKey]*suspect
	// strange are chains that have rows in events and are in no epoch, with what is known of the workspace: as of the last pass's beginning.
	strange map[ledger.ChainID]*ledger.ChainIdentity
	pass    pass

	unsent unsent
}

// sound is a size of a chain and its root there.
type sound struct {
	size uint64
	root ledger.Hash
}

// New returns a verifier that has not begun. written says which ledger partitions this process writes into ClickHouse, and up to which offset each
// is there.
func New(cfg Config, written func() map[int32]int64, reg prometheus.Registerer, logger *slog.Logger) (*Verifier, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	opts, err := cfg.Kafka.Options(logger)
	if err != nil {
		return nil, err
	}
	return &Verifier{
		cfg: cfg, written: written, opts: opts, logger: logger, metrics: newMetrics(reg), anchors: newAnchors(&cfg, opts, logger),
		builder: event.NewBuilder(), told: newTold(cfg.MaxFaults), seen: map[ledger.ChainID]sound{}, again: map[partKey]*suspect{},
		strange: map[ledger.ChainID]*ledger.ChainIdentity{}, unsent: unsent{most: 10 * cfg.MaxEvents},
	}, nil
}

// Run verifies until ctx ends, then lets the events in hand reach Kafka, within DrainTimeout, and returns nil. Faults of Kafka's or ClickHouse's it
// outlasts. It is called once.
func (v *Verifier) Run(ctx context.Context) error {
	if err := v.open(); err != nil {
		return err
	}
	defer v.drain(ctx)
	wait := time.Duration(rand.Int64N(int64(v.cfg.Interval))) //nolint:gosec // it spreads load, and protects nothing
	for failed := false; ; {
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		began := time.Now()
		err := v.run(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			v.metrics.runErrors.Inc()
			if !failed {
				v.logger.WarnContext(ctx, "verification does not go through: trying again", "error", err)
			}
			failed, wait = true, v.cfg.RetryAfter
			continue
		case failed:
			v.logger.InfoContext(ctx, "verification goes through again")
		}
		failed, wait = false, v.cfg.Interval
		v.metrics.wentThrough(began)
	}
}

func (v *Verifier) open() (err error) {
	if v.client, err = kgo.NewClient(slices.Concat(v.opts, producerOptions(&v.cfg))...); err != nil {
		return fmt.Errorf("verifier: %w", err)
	}
	v.admin = kadm.NewClient(v.client)
	return nil
}

// drain waits for the events in hand.
func (v *Verifier) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), v.cfg.DrainTimeout)
	defer cancel()
	if err := v.client.Flush(ctx); err != nil {
		v.logger.WarnContext(ctx, "events about faults were not written", "events", v.client.BufferedProduceRecords(), "error", err)
	}
	v.client.Close()
}

// run is one run. The error says why it did not go through; what it found before is reported.
func (v *Verifier) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, v.cfg.RunTimeout)
	defer cancel()
	for _, record := range v.unsent.take() {
		v.send(ctx, record)
	}
	a, err := v.anchors.read(ctx, v.admin)
	if errors.Is(err, errMap) {
		v.report(ctx, nil, []*finding{{Fault: &ledger.Fault{Verdict: ledger.Modified, Detail: err.Error()}}})
	}
	if err != nil {
		return err
	}
	r := newRun(v, a)
	defer r.close()
	if a.epoch == nil {
		return nil
	}
	err = r.verify(ctx)
	// What was found before ClickHouse went away has not been confirmed.
	if err == nil {
		err = r.confirm(ctx)
	}
	return err
}
