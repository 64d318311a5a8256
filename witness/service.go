package witness

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/sumdb/note"

	"getimmutable.dev/immutable/internal/crash"
	"getimmutable.dev/immutable/ledger"
)

// Service is a witness.
type Service struct {
	cfg     Config
	key     *Key
	trust   *ledger.Trust
	logger  *slog.Logger
	metrics *metrics
	logs    map[string]*logState // by origin; the map never changes
	byHash  map[string]*logState // the same, by the SHA-256 of the origin in hexadecimal
	inHand  chan struct{}        // has a place for each request that may be in hand
	failing atomic.Bool          // the newest write failed

	mu    sync.RWMutex // requests hold it for reading while they use the store
	store *store       // nil: Run has not begun, or has ended
}

// logState is what the witness knows of one log.
type logState struct {
	origin string

	mu     sync.Mutex        // held from the comparison with newest to the end of the write
	newest ledger.Checkpoint // that was cosigned; size 0 where there is none
	signed []byte            // nil where there is none
}

// New returns a witness of the logs that trust names. What trust says of witnesses and quorum is not for it. New reads and
// writes nothing.
func New(cfg Config, key *Key, trust *ledger.Trust, reg prometheus.Registerer, logger *slog.Logger) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("witness: %w", err)
	}
	cfg = cfg.withDefaults()
	origins := trust.Origins()
	s := &Service{
		cfg: cfg, key: key, trust: trust, logger: logger, metrics: newMetrics(reg, origins),
		logs: map[string]*logState{}, byHash: map[string]*logState{}, inHand: make(chan struct{}, cfg.MaxRequests),
	}
	for _, origin := range origins {
		if len(origin) > maxNameBytes {
			return nil, fmt.Errorf("witness: origin %.300q: want at most %d bytes", origin, maxNameBytes)
		}
		l := &logState{origin: origin}
		s.logs[origin], s.byHash[originHash(origin)] = l, l
	}
	return s, nil
}

// Run takes the folder, reads what was cosigned and lets requests in until ctx ends; then it waits for those in hand. It
// fails where another process has the folder, or where what is in it cannot be believed: a witness that does not know what it
// cosigned must not cosign.
func (s *Service) Run(ctx context.Context) error {
	st, err := openStore(s.cfg.Dir)
	if err != nil {
		return err
	}
	for _, origin := range s.trust.Origins() {
		if err := s.load(ctx, st, s.logs[origin]); err != nil {
			return errors.Join(err, st.close())
		}
	}
	s.mu.Lock()
	s.store = st
	s.mu.Unlock()
	<-ctx.Done()
	s.mu.Lock() // waits for the requests in hand: their writes are bounded by the disk alone
	defer s.mu.Unlock()
	s.store = nil
	if err := st.close(); err != nil {
		return fmt.Errorf("giving the witness's folder back: %w", err)
	}
	return nil
}

func (s *Service) load(ctx context.Context, st *store, l *logState) error {
	signed, err := st.load(l.origin)
	if err != nil {
		return err
	}
	if signed == nil {
		s.logger.WarnContext(ctx, "no checkpoint of this log was ever cosigned: the first that comes will be believed", slog.String("origin", l.origin))
		return nil
	}
	c, err := ledger.ParseCheckpoint(signed)
	if err == nil && c.Origin != l.origin {
		err = fmt.Errorf("it is of %q", c.Origin)
	}
	if err == nil {
		// The log's key, or this witness's, may have been changed since, but not both at once.
		_, own := note.Open(signed, note.VerifierList(s.key.verifier))
		_, _, logs := s.trust.OpenLog(signed)
		if own != nil && logs != nil {
			err = errors.Join(own, logs)
		}
	}
	if err != nil {
		return fmt.Errorf("the newest checkpoint of %s in %s is not what was written: %w", l.origin, s.cfg.Dir, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.newest, l.signed = *c, signed
	s.metrics.cosigned.WithLabelValues(l.origin).Set(float64(c.Size))
	return nil
}

// Ready returns nil when checkpoints are cosigned.
func (s *Service) Ready(context.Context) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	switch {
	case s.store == nil:
		return errStarting
	case s.failing.Load():
		return errors.New("the newest checkpoint could not be written to the disk; the log says why")
	}
	return nil
}

// Why a checkpoint is not cosigned, besides those of package ledger.
var (
	errStarting     = errors.New("the witness is starting or stopping")
	errInconsistent = errors.New("the checkpoint does not continue the one that was cosigned")
)

// conflictError says which size the client should have started from.
type conflictError struct{ size uint64 }

func (e *conflictError) Error() string {
	return fmt.Sprintf("the newest checkpoint has size %d", e.size)
}

// add does what C2SP tlog-witness says of add-checkpoint, in its order, and returns the line of the cosignature.
func (s *Service) add(ctx context.Context, body []byte) ([]byte, error) {
	a, err := ledger.ParseAddCheckpoint(body)
	if err != nil {
		return nil, err
	}
	c, n, err := s.trust.OpenLog(a.Checkpoint)
	if err != nil {
		return nil, err
	}
	if a.OldSize > c.Size {
		return nil, fmt.Errorf("%w: the old size %d is above the checkpoint's %d", ledger.ErrRequest, a.OldSize, c.Size)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.store == nil {
		return nil, errStarting
	}
	l := s.logs[c.Origin]
	l.mu.Lock()
	defer l.mu.Unlock()
	if a.OldSize != l.newest.Size {
		return nil, &conflictError{l.newest.Size}
	}
	if err := s.consistent(ctx, l, a, c); err != nil {
		return nil, err
	}
	signed, line, err := ledger.Cosign(n, s.key)
	if err != nil {
		return nil, err
	}
	// The commit point. Before it, nothing says that c was cosigned, and the signature is known here only. After it, nothing
	// else of its size, and nothing that does not continue it, can ever be cosigned; so the signature may leave. A crash between
	// the two costs the client one more request. Within one second the same request gives the same bytes, which need no write.
	if !slices.Equal(signed, l.signed) {
		err := s.store.save(l.origin, signed)
		s.failing.Store(err != nil)
		if err != nil {
			s.metrics.writeErrors.Inc()
			return nil, fmt.Errorf("writing the checkpoint of size %d of %s: %w", c.Size, c.Origin, err)
		}
	}
	l.newest, l.signed = *c, signed
	s.metrics.cosigned.WithLabelValues(l.origin).Set(float64(c.Size))
	crash.Point("witness-before-answer")
	return line, nil
}

// consistent checks that c continues what was cosigned, under l's lock. Its errors wrap errInconsistent.
func (s *Service) consistent(ctx context.Context, l *logState, a *ledger.AddCheckpoint, c *ledger.Checkpoint) error {
	empty := new(ledger.Head).Root()
	switch {
	case c.Size == 0 && c.Root != empty:
		return fmt.Errorf("%w: its root is not that of an empty log", errInconsistent)
	case a.OldSize == 0 && len(a.Proof) > 0:
		return fmt.Errorf("%w: nothing can be proved from size 0, there is a proof of %d hashes", errInconsistent, len(a.Proof))
	case a.OldSize == 0:
		return nil
	case c.Size == l.newest.Size && c.Root != l.newest.Root:
		s.fork(ctx, l, a.Checkpoint)
		return fmt.Errorf("%w: it has another root at the same size: the two are proof of a fork", errInconsistent)
	}
	if err := ledger.VerifyConsistency(a.OldSize, c.Size, a.Proof, l.newest.Root, c.Root); err != nil {
		return fmt.Errorf("%w: %w", errInconsistent, err)
	}
	return nil
}

// fork keeps two checkpoints of one size that one log has signed: the proof that it lies. Only the first of a log is kept and
// logged, since anybody can send it again.
func (s *Service) fork(ctx context.Context, l *logState, signed []byte) {
	s.metrics.forks.WithLabelValues(l.origin).Inc()
	first, err := s.store.saveFork(l.origin, slices.Concat(l.signed, []byte("\n"), signed))
	if err != nil {
		s.logger.ErrorContext(ctx, "the proof of a fork could not be written", slog.String("origin", l.origin), slog.Any("error", err))
	}
	if first {
		s.logger.ErrorContext(ctx, "a log has signed two checkpoints of one size that contradict each other",
			slog.String("origin", l.origin), slog.Uint64("size", l.newest.Size), slog.String("evidence", originHash(l.origin)+forkSuffix))
	}
}

// observe counts one answer.
func (s *Service) observe(code string, begun time.Time, cosigned bool) {
	s.metrics.requests.WithLabelValues(code).Inc()
	if cosigned {
		s.metrics.seconds.Observe(time.Since(begun).Seconds())
	}
}
