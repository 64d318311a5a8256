package query

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"

	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/ledger"
)

// maxRedactions bounds the redactions of one event that its proof shows.
const maxRedactions = 100

// getProof is GET /events/{id}/proof. A bundle that would not hold is not sent.
func (s *Service) getProof(ctx context.Context, workspace [16]byte, r *http.Request) (content, error) {
	if err := noParameters(r); err != nil {
		return content{}, err
	}
	notFound := httpserver.NotFound("There is no event with this id in the workspace of the API key.")
	id, ok := pathID(r)
	if !ok {
		return content{}, notFound
	}
	e, err := s.provable(ctx, workspace, id)
	if err != nil {
		return content{}, err
	}
	if e == nil {
		return content{}, notFound
	}
	b, at, err := s.bundle(ctx, workspace, e)
	if err != nil {
		return content{}, err
	}
	for _, f := range b.Verify(at.trust, time.Now()).Faults {
		if f.Verdict == ledger.Withheld && e.redacted {
			return content{}, notCovered("A redaction of the event") // its leaf is on its way
		}
		if f.Verdict != ledger.Redacted {
			return content{}, fmt.Errorf("%w: the proof of event %s: %s", errDamaged, uuid.UUID(id), f)
		}
	}
	text, err := b.Encode()
	if err != nil {
		return content{}, err
	}
	return content{body: text, kind: kindJSON, file: uuid.UUID(id).String() + ".proof.json"}, nil
}

// provableRow is the content of an event, and where its leaf is.
type provableRow struct {
	bodyRow
	chain ledger.ChainID
	// redacted: somebody has redacted it, whether or not that is in ClickHouse yet.
	redacted bool
}

// provable returns an event by its id; nil if there is none.
func (s *Service) provable(ctx context.Context, workspace, id [16]byte) (found *provableRow, err error) {
	st := provableStatement(workspace, id, limits{timeout: s.cfg.RequestTimeout})
	err = s.run(ctx, statementContent, st, func(rows driver.Rows) error {
		found = new(provableRow)
		if err := found.scan(rows); err != nil {
			return err
		}
		found.redacted, err = s.conceal(workspace, &found.bodyRow)
		return err
	})
	return found, err
}

const provableColumns = "chain, " + bodyColumns

func (p *provableRow) scan(rows driver.Rows) error {
	return rows.Scan((*[16]byte)(&p.chain), &p.sequence, &p.id, &p.body, (*[16]byte)(&p.seed), &p.disclosure)
}

func provableStatement(workspace, id [16]byte, l limits) *statement {
	st := selectFrom(provableColumns, "events", workspace)
	st.and("id = ", st.bindID(id))
	st.write("\nLIMIT 1")
	return st.settings(l)
}

// redactions returns the redactions of an event, which are in its chain after it.
func (s *Service) redactions(ctx context.Context, workspace [16]byte, e *provableRow) ([]bodyRow, error) {
	st := redactionsStatement(workspace, e, limits{timeout: s.cfg.RequestTimeout})
	var list []bodyRow
	err := s.run(ctx, statementContent, st, func(rows driver.Rows) error {
		list = append(list, bodyRow{})
		b := &list[len(list)-1]
		if err := b.scan(rows); err != nil {
			return err
		}
		_, err := s.conceal(workspace, b)
		return err
	})
	return list, err
}

func redactionsStatement(workspace [16]byte, e *provableRow, l limits) *statement {
	st := selectFrom(bodyColumns, "events", workspace)
	st.and("chain = ", st.bindID(e.chain), " AND sequence > ", st.bind("UInt64", e.sequence), " AND kind = ",
		strconv.Itoa(int(ledger.KindRedaction)))
	st.metadata("event_id", []string{uuid.UUID(e.id).String()})
	st.write("\nORDER BY sequence\nLIMIT ", strconv.Itoa(maxRedactions))
	return st.settings(l)
}

// bundle makes the proof of an event. The error is a 409 while no checkpoint covers it.
func (s *Service) bundle(ctx context.Context, workspace [16]byte, e *provableRow) (*ledger.Bundle, *snapshot, error) {
	at, c, err := s.roots.chainOf(workspace, e.chain)
	if err != nil {
		return nil, nil, err
	}
	if c == nil || e.sequence >= c.size {
		return nil, nil, notCovered("The event")
	}
	contents := []bodyRow{e.bodyRow}
	if len(e.disclosure) > 0 {
		redactions, err := s.redactions(ctx, workspace, e)
		if err != nil {
			return nil, nil, err
		}
		for _, r := range redactions {
			if r.sequence >= c.size {
				return nil, nil, notCovered("A redaction of the event")
			}
			contents = append(contents, r)
		}
	}
	leaves, err := s.proven(ctx, workspace, c, contents)
	if err != nil {
		return nil, nil, err
	}
	return &ledger.Bundle{
		BundleLeaf: leaves[0], Size: c.size, Root: c.root, Map: c.proof, Epoch: at.text, LogProof: at.logProof, Keys: at.keys,
		Redactions: leaves[1:],
	}, at, nil
}

// proven makes leaves of a chain with their content, and with their paths in it.
func (s *Service) proven(ctx context.Context, workspace [16]byte, c *provenChain, contents []bodyRow) ([]ledger.BundleLeaf, error) {
	plans := make([]*ledger.ProofPlan, len(contents))
	rows := make([]leafRow, len(contents))
	befores := make([]ledger.Hash, len(contents))
	for i, b := range contents {
		var err error
		if plans[i], err = ledger.PlanInclusion(b.sequence, c.size); err != nil {
			return nil, err
		}
		spine, err := s.spine(ctx, workspace, c.chain, max(b.sequence, 1)-1, b.sequence+1, 3)
		if err != nil {
			return nil, err
		}
		if len(spine) != 2 || spine[0].sequence+1 != b.sequence || spine[1].sequence != b.sequence || spine[1].id != b.id {
			return nil, fmt.Errorf("%w: chain %x has %d leaves of sequence %d, and the one before it, of event %s",
				errDamaged, c.chain, len(spine), b.sequence, uuid.UUID(b.id))
		}
		rows[i], befores[i] = spine[1], spine[0].hash
	}
	paths, err := s.build(ctx, chainTree(workspace, c.chain), plans)
	if err != nil {
		return nil, err
	}
	leaves := make([]ledger.BundleLeaf, len(contents))
	for i := range contents {
		if leaves[i], err = describe(workspace, &rows[i], befores[i], &contents[i]); err != nil {
			return nil, fmt.Errorf("%w: %w", errDamaged, err)
		}
		leaves[i].Path = paths[i]
	}
	return leaves, nil
}
