package chwriter

import (
	"context"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/internal/crash"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// redact takes out of a record what was redacted of its event: what the topic still holds does not come back into
// ClickHouse, when its tables are written anew for instance.
func (s *sealed) redact(redactions *control.Redactions) error {
	redaction, err := redactions.Lookup(control.EventID{Workspace: [16]byte(s.workspace), Event: [16]byte(s.id)})
	if redaction == nil || err != nil {
		return err
	}
	whole := event.Content{Body: s.body, Seed: [16]byte(s.seed)}
	left, err := whole.Redact(redaction.Paths)
	if err != nil || left == &whole {
		return err
	}
	if s.disclosure, err = ledger.EncodeDisclosure(left.Disclosure); err != nil {
		return err
	}
	columns, err := event.ColumnsOf(left.Body)
	if err != nil {
		return err
	}
	s.body, s.seed = left.Body, left.Seed[:]
	s.metadataKeys = append(s.metadataKeys[:0], columns.MetadataKeys...)
	s.metadataValues = append(s.metadataValues[:0], columns.MetadataValues...)
	for _, column := range emptied(left.Disclosure) {
		switch column {
		case "target_types":
			s.targetTypes = s.targetTypes[:0]
		case "target_ids":
			s.targetIDs = s.targetIDs[:0]
		case "flags":
			s.flags = s.flags[:0]
		default:
			s.text[slices.IndexFunc(textColumns[:], func(t textColumn) bool { return t.name == column })] = nil
		}
	}
	return nil
}

// demands is what the redactions of a batch demand.
type demands struct {
	erasure erasure
	// odd are the offsets of those that cannot be read. The ledger has them all the same, and goes on.
	odd []int64
}

// add adds what a record demands, if it is a redaction.
func (d *demands) add(s *sealed, offset int64) {
	if s.kind != uint64(recordpb.Kind_KIND_REDACTION) {
		return
	}
	said, err := ledger.ParseRedaction(s.body)
	var id uuid.UUID
	if err == nil {
		id, err = uuid.Parse(said.EventID)
	}
	if err != nil {
		d.odd = append(d.odd, offset)
		return
	}
	key := control.EventID{Workspace: [16]byte(s.workspace), Event: id}
	if d.erasure == nil {
		d.erasure = erasure{}
	}
	d.erasure[key] = append(d.erasure[key], said.Paths...)
}

// erase carries out the redactions of a batch that is in the tables, and their targets with it: they stand before them in
// the same partition. It is repeated until it works, and the batch counts as written only then.
func (p *partition) erase(ctx context.Context, d demands) error {
	for _, offset := range d.odd {
		p.w.metrics.eraseUnreadable.Inc()
		p.logger.ErrorContext(ctx, "redaction cannot be read: nothing is erased", "offset", offset)
	}
	if len(d.erasure) == 0 {
		return nil
	}
	crash.Point("chwriter-before-erase")
	var not unerased
	err := p.retry(ctx, systemClickHouse, func(ctx context.Context) (err error) {
		not, err = p.w.eraser.erase(ctx, d.erasure)
		return err
	})
	if err != nil {
		return err
	}
	// Durable: no part in use has the values any more, or the mutation is taken down that takes them out of the parts that
	// come back after a power cut. Not yet durable: that it is done; until the next commit it would be looked at again.
	crash.Point("chwriter-after-erase")
	for _, id := range not.missing {
		p.w.metrics.eraseMissing.Inc()
		p.logger.WarnContext(ctx, "redacted event is not in clickhouse", "event_id", uuid.UUID(id.Event).String())
	}
	for id := range not.damaged {
		p.w.metrics.eraseDamaged.Inc()
		// What is wrong with it may quote what is to be erased.
		p.logger.ErrorContext(ctx, "row of a redacted event was changed by somebody: nothing is erased from it",
			"event_id", uuid.UUID(id.Event).String())
	}
	return nil
}

// eraseOf carries out the redactions among records that are in the tables since before the take-over: whoever wrote them
// may not have come to that.
func (p *partition) eraseOf(ctx context.Context, records []*kgo.Record) error {
	var d demands
	var s sealed
	for _, r := range records {
		if err := s.decode(r.Value); err != nil {
			return badRecord(r, err)
		}
		d.add(&s, r.Offset)
	}
	return p.erase(ctx, d)
}

// eraseAgainWait is how long eraseAll waits after a failure.
const eraseAgainWait = time.Minute

// eraseAll brings every row to what is known to be redacted, once, until it has worked: an older backup of ClickHouse may
// have been restored, and Kafka may no longer have the redactions that would be carried out again.
func (w *Writer) eraseAll(ctx context.Context) {
	for {
		err := w.view.Current(ctx)
		if err == nil {
			ids, _ := w.view.Redactions().Since(0)
			for chunk := range slices.Chunk(ids, maxErasedRows) {
				what := erasure{}
				for _, id := range chunk {
					// One that cannot be read is counted by the view, and keeps its event from being written.
					if redaction, err := w.view.Redactions().Lookup(id); err == nil && redaction != nil {
						what[id] = redaction.Paths
					}
				}
				if _, err = w.eraser.erase(ctx, what); err != nil {
					break
				}
			}
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		w.metrics.retries.Inc()
		w.logger.WarnContext(ctx, "looking for redacted rows again in a minute", "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(eraseAgainWait):
		}
	}
}
