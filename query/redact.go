package query

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// targetTimeout bounds the reading of the event, and of what was redacted of it, before it is redacted: what is left of a client's 5 s is for the
// change.
const targetTimeout = time.Second

// target is what a redaction has to know of an event.
type target struct {
	kind       uint8
	recordedAt time.Time
	chain      ledger.ChainID
	content    event.Content // without its seed
	dataPart   string        // of the table, in which the row is
}

// States of a redaction in ClickHouse.
const (
	erasurePending   = "pending"   // the row has the values
	erasureRewritten = "rewritten" // no statement can read them, and files may have them
	erasureGone      = "gone"      // no part of the table can have them
)

// redactionReport is what is known of a redaction.
type redactionReport struct {
	EventID string `json:"event_id"`
	// Paths are all that were ever redacted of the event.
	Paths []string `json:"paths"`
	// RedactionID is that of the redaction event that reports the last of them.
	RedactionID string `json:"redaction_id"`
	// Chain is that of both events.
	Chain ledger.ChainID `json:"chain"`
	// KafkaUntil says until when topics may hold the values.
	KafkaUntil keptUntil `json:"kafka_until"`
	// ClickHouse is pending until the row is rewritten, rewritten until the parts that it was in before are removed, then gone.
	ClickHouse string `json:"clickhouse"`
	// ClickHouseUntil says when those parts are due to be removed; nil where the row is not rewritten, where they are gone, and where
	// ClickHouse does not say.
	ClickHouseUntil *string `json:"clickhouse_until"`
	// IdempotencyKeyBurned says that the event has an idempotency key, which ingest accepts no more.
	IdempotencyKeyBurned bool `json:"idempotency_key_burned"`
	// Receivers are the log streams and buckets that have received the event; there are none yet.
	Receivers []string `json:"receivers"`
}

// keptUntil has a time for each topic that holds an event; null is for ever.
type keptUntil struct {
	Events *string `json:"events"`
	Ledger *string `json:"ledger"`
}

// redactEvent is POST /events/{id}/redact.
func (s *Service) redactEvent(ctx context.Context, p *control.Principal, r *http.Request) (reply, error) {
	notFound := httpserver.NotFound("There is no event with this id in the workspace of the API key; one that was just accepted " +
		"may take seconds to be there.")
	event16, ok := pathID(r)
	if !ok {
		return reply{}, notFound
	}
	var body struct {
		Paths  []string `json:"paths"`
		Reason string   `json:"reason"`
	}
	if err := readBody(r, &body, "paths, reason"); err != nil {
		return reply{}, err
	}
	id := control.EventID{Workspace: p.Workspace.ID, Event: event16}
	reading, cancel := context.WithTimeout(ctx, targetTimeout)
	defer cancel()
	t, err := s.target(reading, p.Workspace.ID, event16)
	if err != nil {
		return reply{}, s.readFailed(err)
	}
	if t == nil {
		return reply{}, notFound
	}
	erased, err := s.redacted(reading, id)
	if err != nil {
		return reply{}, err
	}
	if err := t.check(body.Paths, erased, body.Reason); err != nil {
		return reply{}, err
	}
	lane, ok := laneOf(p.Workspace, t.chain)
	if !ok {
		return reply{}, httpserver.Internal(fmt.Errorf("event %s is in chain %x, which is not the workspace's", uuid.UUID(event16), t.chain))
	}
	// Asked before anything is written: an error of it means that nothing was.
	kept, err := s.writer.Retention(ctx)
	if err != nil {
		return reply{}, err
	}
	redactable := control.Redactable{EventID: id, Lane: lane, IdempotencyKey: t.idempotencyKey()}
	redaction, err := s.writer.RedactEvent(ctx, author(p), redactable, body.Paths, body.Reason)
	if err != nil {
		return reply{}, err
	}
	s.seen(ctx, func() bool {
		known, err := s.view.Redactions().Lookup(id)
		return err == nil && known != nil && known.Version >= redaction.Version
	})
	report := redactionReport{
		EventID: uuid.UUID(event16).String(), Paths: redaction.Paths, RedactionID: uuid.UUID(redaction.ID).String(), Chain: t.chain,
		KafkaUntil: keptUntil{Events: until(t.recordedAt, kept.Events), Ledger: until(t.recordedAt, kept.Ledger)},
		ClickHouse: erasurePending, IdempotencyKeyBurned: redaction.KeyDigest != [16]byte{}, Receivers: []string{},
	}
	// Where it cannot be told now it is as good as pending.
	if t, err := s.target(ctx, p.Workspace.ID, event16); err == nil && t != nil && t.lacks(redaction.Paths) {
		report.ClickHouse, report.ClickHouseUntil = s.files(ctx, t.dataPart)
	}
	return reply{status: http.StatusOK, data: report}, nil
}

// files says whether parts of the table events that are no longer in use may still hold what was erased of a row: those with blocks of the part
// that the row is in now. That errs on one side only: a part that was merged away after the row had been rewritten counts too.
func (s *Service) files(ctx context.Context, dataPart string) (state string, until *string) {
	if !s.running.TryRLock() {
		return erasureRewritten, nil
	}
	defer s.running.RUnlock()
	ctx, cancel := context.WithTimeout(ctx, targetTimeout)
	defer cancel()
	var old, now uint64
	var due time.Time
	err := s.run(ctx, statementParts, partsStatement(dataPart, limits{timeout: targetTimeout}), func(rows driver.Rows) error {
		return rows.Scan(&now, &old, &due)
	})
	switch {
	case err != nil:
		s.metrics.eraseErrors.Inc()
		s.logger.WarnContext(ctx, "asking which parts may hold redacted values", "error", err, "request_id", httpserver.RequestID(ctx))
		return erasureRewritten, nil
	case now == 0: // it was merged since: it will be in another part when it is asked again
		return erasureRewritten, nil
	case old == 0:
		return erasureGone, nil
	}
	text := event.FormatTime(due)
	return erasureRewritten, &text
}

// readFailed returns the answer to an error of target.
func (s *Service) readFailed(err error) error {
	if e, ok := errors.AsType[*httpserver.Error](err); ok {
		return e
	}
	if e := s.classify(err); e != nil {
		return e
	}
	return httpserver.Internal(err)
}

// until is nil where a topic keeps its records for ever.
func until(recorded time.Time, kept time.Duration) *string {
	if kept < 0 {
		return nil
	}
	text := event.FormatTime(recorded.Add(kept))
	return &text
}

// target reads an event, nil where there is none.
func (s *Service) target(ctx context.Context, workspace, id [16]byte) (*target, error) {
	if !s.running.TryRLock() {
		return nil, s.unavailable(reasonStopping, "The service is starting or stopping: send it again. Nothing was changed.", errStopped)
	}
	defer s.running.RUnlock()
	ctx, cancel := context.WithTimeout(ctx, targetTimeout)
	defer cancel()
	var found *target
	for _, recorded := range recordedIn(id) {
		st := byID(targetColumns, workspace, id, recorded).settings(limits{timeout: targetTimeout})
		err := s.run(ctx, statementTarget, st, func(rows driver.Rows) error {
			found = new(target)
			var disclosure []byte
			err := rows.Scan(&found.kind, &found.recordedAt, (*[16]byte)(&found.chain), &found.content.Body, &disclosure, &found.dataPart)
			if err == nil && len(disclosure) > 0 {
				found.content.Disclosure, err = ledger.ParseDisclosure(disclosure)
			}
			return err
		})
		if found != nil || err != nil {
			return found, err
		}
	}
	return nil, nil //nolint:nilnil // nil is documented
}

// laneOf returns which of a workspace's lanes a chain is.
func laneOf(ws *control.Workspace, chain ledger.ChainID) (uint32, bool) {
	for lane := range ws.Lanes {
		if ledger.NewChainID(ws.ID, ws.Incarnation, lane) == chain {
			return lane, true
		}
	}
	return 0, false
}

// redacted returns the paths that were redacted of an event before the call, by whichever instance.
func (s *Service) redacted(ctx context.Context, id control.EventID) ([]string, error) {
	if err := s.view.Current(ctx); err != nil {
		return nil, fmt.Errorf("reading what was redacted before: %w", err)
	}
	before, err := s.view.Redactions().Lookup(id)
	if err != nil || before == nil {
		return nil, err
	}
	return before.Paths, nil
}

// check refuses what cannot be redacted of the event, of which erased has been redacted before: the reason is not compared with that. The row
// may still have it, and whether a reason is refused would tell whoever guesses.
func (t *target) check(paths, erased []string, reason string) error {
	if t.kind != uint8(recordpb.Kind_KIND_EVENT) {
		return httpserver.Conflict("This event reports a redaction, which every later proof needs: it cannot be redacted itself.")
	}
	all, _, err := t.content.Fields()
	if err != nil {
		return httpserver.Internal(err)
	}
	var faults faults
	for i, path := range paths {
		field := fmt.Sprintf("paths[%d]", i)
		switch {
		case event.Protected(path):
			faults.invalidParam(field, "cannot be redacted: action, occurred_at and version stay.")
		case !slices.Contains(all, path):
			faults.invalidParam(field, "is not a field of this event. It has: "+strings.Join(redactable(all), ", ")+".")
		}
	}
	left := slices.DeleteFunc(slices.Clone(paths), func(path string) bool { return slices.Contains(erased, path) })
	if repeats(reason, t.values(left)) {
		faults.invalidParam("reason", whatRepeats)
	}
	return faults.err()
}

// redactable returns those paths that can be redacted.
func redactable(paths []string) []string {
	return slices.DeleteFunc(slices.Clone(paths), event.Protected)
}

// values returns the event's fields at paths, as far as it still has them.
func (t *target) values(paths []string) (values []jsontext.Value) {
	fields, err := ledger.Fields(nil, t.content.Body)
	if err != nil {
		return nil // content.Fields has said so, or it was redacted already
	}
	for _, f := range fields {
		if slices.Contains(paths, string(f.Path)) {
			values = append(values, f.Value)
		}
	}
	return values
}

// idempotencyKey returns the event's idempotency key, empty where it has none or it was redacted.
func (t *target) idempotencyKey() string {
	fields, err := ledger.Fields(nil, t.content.Body)
	if err != nil {
		return "" // check has refused it
	}
	for _, f := range fields {
		if string(f.Path) == "/"+event.FieldIdempotencyKey {
			key, err := jsontext.AppendUnquote(nil, f.Value)
			if err != nil {
				return "" // no event's: its key is text
			}
			return string(key)
		}
	}
	return ""
}

// lacks reports whether the row no longer has the fields at paths.
func (t *target) lacks(paths []string) bool {
	return t.content.Disclosure != nil && !slices.ContainsFunc(t.content.Disclosure, func(d ledger.Disclosure) bool {
		return d.Commitment == nil && slices.Contains(paths, d.Path)
	})
}
