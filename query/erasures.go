package query

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/ledger"
)

const (
	// erasureInterval is how often ClickHouse is asked which redactions it has carried out, while there are others.
	erasureInterval = 500 * time.Millisecond
	// maxErasureIDs bounds the events of one such question.
	maxErasureIDs = 1_000
	// maxConcealed bounds the events that one statement leaves out.
	maxConcealed = 5_000
)

// erasures are the redactions that ClickHouse has not carried out as far as this process knows. Masking keeps a redacted
// value out of what is shown, but whoever knows what to look for could still find its event by it, and so the value: a
// PIN after 10,000 questions for metadata[pin]=.... So until its row has been rewritten, an event is not found, nor
// counted, by a filter that has a condition on what was redacted of it. Afterwards the row itself no longer has it. At
// start every redaction is one of these, until ClickHouse has been asked.
type erasures struct {
	redactions  *control.Redactions
	absentAfter time.Duration
	most        int // maxConcealed

	mu   sync.Mutex
	seen int // of redactions
	// open has since when the event's row has been missing; zero while it is there.
	open map[control.EventID]time.Time
}

func newErasures(redactions *control.Redactions, absentAfter time.Duration) *erasures {
	return &erasures{redactions: redactions, absentAfter: absentAfter, most: maxConcealed, open: map[control.EventID]time.Time{}}
}

// take adds the redactions that have come since. The lock is held.
func (e *erasures) take() {
	var came []control.EventID
	came, e.seen = e.redactions.Since(e.seen)
	for _, id := range came {
		e.open[id] = time.Time{}
	}
}

// concealed returns the events of a workspace that a filter must not find. The error says that they are too many.
func (e *erasures) concealed(workspace [16]byte, f *filter) (eventIDs, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.take()
	var ids eventIDs
	for id := range e.open {
		if id.Workspace != workspace {
			continue
		}
		redaction, err := e.redactions.Lookup(id)
		if err != nil || redaction != nil && slices.ContainsFunc(redaction.Paths, f.looksAt) {
			ids = append(ids, id.Event)
		}
	}
	if len(ids) > e.most {
		return nil, fmt.Errorf("%d events with redactions that clickhouse has not carried out, at most %d", len(ids), e.most)
	}
	return ids, nil
}

// pending returns the open redactions by workspace.
func (e *erasures) pending() map[[16]byte]eventIDs {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.take()
	all := map[[16]byte]eventIDs{}
	for id := range e.open {
		all[id.Workspace] = append(all[id.Workspace], id.Event)
	}
	return all
}

// settle takes note of what ClickHouse has of events that were pending: the disclosures of those that are there.
func (e *erasures) settle(workspace [16]byte, ids eventIDs, disclosures map[[16]byte]string, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, id := range ids {
		key := control.EventID{Workspace: workspace, Event: id}
		redaction, err := e.redactions.Lookup(key)
		disclosure, there := disclosures[id]
		missing, open := e.open[key]
		switch {
		case !open || err != nil: // what cannot be read hides the event for good
		case redaction == nil:
			delete(e.open, key)
		case there && erased(disclosure, redaction.Paths):
			delete(e.open, key)
		case there:
			e.open[key] = time.Time{}
		case missing.IsZero():
			e.open[key] = now
		case now.Sub(missing) >= e.absentAfter:
			delete(e.open, key)
		}
	}
}

// erased reports whether a row with this disclosure no longer has the fields at paths.
func erased(disclosure string, paths []string) bool {
	stored, err := ledger.ParseDisclosure([]byte(disclosure))
	if err != nil {
		return false
	}
	return !slices.ContainsFunc(stored, func(d ledger.Disclosure) bool {
		return d.Commitment == nil && slices.Contains(paths, d.Path)
	})
}

// followErasures asks ClickHouse what it has carried out until ctx ends.
func (s *Service) followErasures(ctx context.Context) {
	tick := time.NewTicker(erasureInterval)
	defer tick.Stop()
	failed := false
	for {
		err := s.checkErasures(ctx)
		if err != nil && ctx.Err() == nil {
			s.metrics.eraseErrors.Inc()
			if !failed {
				s.logger.WarnContext(ctx, "asking which redactions were carried out", "error", err)
			}
		}
		failed = err != nil
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// checkErasures asks ClickHouse about every pending redaction.
func (s *Service) checkErasures(ctx context.Context) error {
	var errs []error
	for workspace, ids := range s.erasures.pending() {
		for chunk := range slices.Chunk(ids, maxErasureIDs) {
			asked := time.Now()
			found := map[[16]byte]string{}
			st := erasedStatement(workspace, chunk, limits{timeout: s.cfg.RequestTimeout})
			err := s.run(ctx, statementErased, st, func(rows driver.Rows) error {
				var id [16]byte
				var disclosure string
				err := rows.Scan(&id, &disclosure)
				found[id] = disclosure
				return err
			})
			if err != nil {
				errs = append(errs, err)
				continue
			}
			s.erasures.settle(workspace, chunk, found, asked)
		}
	}
	return errors.Join(errs...)
}
