package query

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/ledger"
)

// ClickHouse error codes (src/Common/ErrorCodes.cpp).
const (
	codeTooManyRows      = 158
	codeTimeoutExceeded  = 159
	codeTooManyQueries   = 202
	codeMemoryLimit      = 241
	codeTooManyRowsBytes = 396
)

// errScan says that an answer of ClickHouse is not what its statement asks for.
var errScan = errors.New("scan a row")

// exceptionCode returns the code of an error that ClickHouse itself has answered with, or 0.
func exceptionCode(err error) int32 {
	if e, ok := errors.AsType[*clickhouse.Exception](err); ok {
		return e.Code
	}
	return 0
}

// run sends a statement and hands every row of its answer to scan. The request's id is the statement's log_comment in
// ClickHouse; not its query id, which must be unique while it runs and which a client may choose.
func (s *Service) run(ctx context.Context, name string, st *statement, scan func(rows driver.Rows) error) error {
	began := time.Now()
	defer func() { s.metrics.statements[name].Observe(time.Since(began).Seconds()) }()
	ctx = clickhouse.Context(ctx,
		clickhouse.WithSettings(clickhouse.Settings{"log_comment": httpserver.RequestID(ctx)}),
		clickhouse.WithoutProfileEvents())
	rows, err := s.conn.Query(ctx, st.text.String(), st.args...)
	if err != nil {
		return fmt.Errorf("query %s: %w", name, err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return fmt.Errorf("query %s: %w: %w", name, errScan, err)
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("query %s: %w", name, err)
	}
	return nil
}

// events runs a statement over pageColumns of a workspace. What was redacted of the events is not in their bodies.
func (s *Service) events(
	ctx context.Context, name string, workspace [16]byte, st *statement, capacity int,
) ([]row, error) {
	list := make([]row, 0, capacity)
	err := s.run(ctx, name, st, func(rows driver.Rows) error {
		list = append(list, row{})
		r := &list[len(list)-1]
		err := rows.Scan(&r.id, &r.occurredAt, &r.recordedAt, (*[16]byte)(&r.chain), &r.sequence, &r.body)
		if err == nil {
			id := control.EventID{Workspace: workspace, Event: r.id}
			if r.body, r.redacted, err = s.view.Redactions().Mask(id, r.body); err != nil {
				err = fmt.Errorf("%w: %w", errBody, err)
			}
		}
		return err
	})
	return list, err
}

// page reads the events of a page and whether there are more. The events are fewer than asked for where more would be
// too many bytes.
func (s *Service) page(
	ctx context.Context, workspace [16]byte, req *pageRequest, after *position,
) (events []row, more bool, err error) {
	limit := req.limit
	l := limits{timeout: s.cfg.RequestTimeout}
	if limit > smallPageEvents {
		l.bytes = s.cfg.MaxPageBytes
	}
	events, err = s.events(ctx, statementPage, workspace, pageStatement(workspace, req, after, limit, l), limit+1)
	if l.bytes > 0 && exceptionCode(err) == codeTooManyRowsBytes {
		s.metrics.shortPages.Inc()
		limit, l.bytes = smallPageEvents, 0
		events, err = s.events(ctx, statementPage, workspace, pageStatement(workspace, req, after, limit, l), limit+1)
	}
	if err != nil {
		return nil, false, err
	}
	if len(events) > limit {
		return events[:limit], true, nil
	}
	return events, false, nil
}

// count returns how many events the filter finds, or nil where counting would cost more than the page: more than
// MaxCountRows rows read, or more time than CountTimeout.
func (s *Service) count(ctx context.Context, workspace [16]byte, f *filter) (*uint64, error) {
	var total uint64
	// ClickHouse ends the statement in time; this ends the wait for a connection, or for a ClickHouse that does not.
	wait, cancel := context.WithTimeout(ctx, 2*s.cfg.CountTimeout)
	defer cancel()
	st := countStatement(workspace, f, limits{timeout: s.cfg.CountTimeout, rows: s.cfg.MaxCountRows})
	err := s.run(wait, statementCount, st, func(rows driver.Rows) error { return rows.Scan(&total) })
	switch code := exceptionCode(err); {
	case code == codeTooManyRows:
		s.metrics.totalsSkipped[skippedRows].Inc()
		return nil, nil //nolint:nilnil // no total is an answer
	case code == codeTimeoutExceeded, errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
		s.metrics.totalsSkipped[skippedTime].Inc()
		return nil, nil //nolint:nilnil // no total is an answer
	}
	return &total, err
}

// event returns one event, or none.
func (s *Service) event(ctx context.Context, workspace, id [16]byte) ([]row, error) {
	for _, recorded := range recordedIn(id) {
		st := byID(pageColumns, workspace, id, recorded).settings(limits{timeout: s.cfg.RequestTimeout})
		found, err := s.events(ctx, statementEvent, workspace, st, 1)
		if len(found) > 0 || err != nil {
			return found, err
		}
	}
	return nil, nil
}

// leaves returns the hashes of the events' leaves and of those before them. The writer inserts leaves before events, so
// one that is missing was removed, or has not reached this replica: that is logged and counted, and the event is shown
// as not sealed, because the timeline must stay readable when somebody has tampered with it.
func (s *Service) leaves(ctx context.Context, workspace [16]byte, events []row) (hashes, error) {
	if len(events) == 0 {
		return nil, nil
	}
	found := make(hashes, 2*len(events))
	keys := make(leafKeys, 0, 2*len(events))
	for i := range events {
		own, previous := events[i].leafKeys()
		for _, k := range []leafKey{own, previous} {
			if _, ok := found[k]; !ok {
				found[k] = ledger.Hash{}
				keys = append(keys, k)
			}
		}
	}
	clear(found)
	st := leavesStatement(workspace, keys, limits{timeout: s.cfg.RequestTimeout})
	err := s.run(ctx, statementLeaves, st, func(rows driver.Rows) error {
		var k leafKey
		var h ledger.Hash
		err := rows.Scan((*[16]byte)(&k.chain), &k.sequence, (*[32]byte)(&h))
		found[k] = h
		return err
	})
	if err != nil {
		return nil, err
	}
	for i := range events {
		own, previous := events[i].leafKeys()
		_, sealed := found[own]
		_, known := found[previous]
		if !sealed || !known {
			s.metrics.missingLeaves.Inc()
			s.logger.ErrorContext(ctx, "leaf is missing", "event_id", uuid.UUID(events[i].id).String(),
				"chain", fmt.Sprintf("%x", own.chain), "sequence", own.sequence,
				"own_missing", !sealed, "previous_missing", !known, "request_id", httpserver.RequestID(ctx))
		}
	}
	return found, nil
}
