// Package query answers what has happened, from ClickHouse: the timeline, page by page, and single events. Every
// statement is confined to the workspace of the caller's key, by selectFrom and nothing else, but those on the root log, which
// is public, and those that the map of all chains is made of, of which only hashes are shown. It proves what it answers, by the root log's checkpoints. It is also where what is configured is shown and changed
// over HTTP, through package control.
package query

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/prometheus/client_golang/prometheus"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/ledger"
)

// Service is the query service.
type Service struct {
	cfg     Config
	view    *control.View
	writer  *control.Writer
	metrics *metrics
	logger  *slog.Logger

	// slots bounds the requests that are being answered.
	slots chan struct{}
	// changes bounds the changes to what is configured that are being made.
	changes   chan struct{}
	renderers sync.Pool // of *renderer
	roots     *roots
	history   *history
	known     knownNodes

	// running is locked for writing while Run is not running, and for reading while conn or erasures is used.
	running  sync.RWMutex
	conn     driver.Conn
	erasures *erasures
}

var errStopped = errors.New("query is not running")

// New returns a service that answers 503 to who asks for events until Run runs. view must be run by the caller; writer
// makes the changes, and its timeout is how long a client waits for one.
func New(
	cfg Config, view *control.View, writer *control.Writer, reg prometheus.Registerer, logger *slog.Logger,
) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("query: %w", err)
	}
	cfg = cfg.withDefaults()
	roots, err := newRoots(cfg.Kafka, logger)
	if err != nil {
		return nil, fmt.Errorf("query: %w", err)
	}
	s := &Service{
		cfg: cfg, view: view, writer: writer, metrics: newMetrics(reg, roots.age), logger: logger, roots: roots, history: newHistory(),
		slots: make(chan struct{}, cfg.MaxRequests), changes: make(chan struct{}, maxChanges),
	}
	roots.metrics = s.metrics
	s.known.nodes = map[nodeKey]ledger.Hash{}
	s.renderers.New = func() any { return newRenderer() }
	s.running.Lock()
	return s, nil
}

// Run answers requests until ctx ends. Then new ones are answered 503, those under way finish within RequestTimeout,
// and it returns. ClickHouse need not be there yet; where its tables are not those of this program, Run returns an error
// at once. It is called once.
func (s *Service) Run(ctx context.Context) error {
	conn, err := clickhouse.Open(s.cfg.ClickHouse)
	if err != nil {
		return fmt.Errorf("query: %w", err)
	}
	defer func() { _ = conn.Close() }()
	err = s.checkSchema(ctx, conn)
	if clickhouse.IsSchemaError(err) {
		return fmt.Errorf("query: %w", err)
	}
	s.conn, s.erasures = conn, newErasures(s.view.Redactions(), s.cfg.AbsentAfter)
	var erasing sync.WaitGroup
	defer erasing.Wait()
	erasing.Go(func() { s.followErasures(ctx) })
	s.running.Unlock()
	var followers sync.WaitGroup
	followers.Go(func() { s.roots.run(ctx) })
	followers.Go(func() { s.keepCurrent(ctx) })
	followers.Go(func() { s.makeMaps(ctx) })
	<-ctx.Done()
	s.running.Lock()
	followers.Wait()
	return nil
}

// Ready returns nil when ClickHouse is within reach, has the tables of this program, and keys are known.
func (s *Service) Ready(ctx context.Context) error {
	if err := s.view.Ready(ctx); err != nil {
		return err
	}
	if !s.running.TryRLock() {
		return errStopped
	}
	defer s.running.RUnlock()
	return s.checkSchema(ctx, s.conn)
}

func (s *Service) checkSchema(ctx context.Context, conn driver.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout)
	defer cancel()
	return clickhouse.CheckSchema(ctx, conn)
}
