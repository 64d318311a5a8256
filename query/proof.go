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
	q, err := parseAsked(r.URL.RawQuery, paramWitnessed)
	if err != nil {
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
	b, at, err := s.bundle(ctx, workspace, e, q)
	if err != nil {
		return content{}, err
	}
	for _, f := range b.Verify(at.trust, time.Now()).Faults {
		switch f.Verdict {
		case ledger.Redacted:
		case ledger.TimeAnomaly: // a clock was wrong, and the proof holds: it is for the reader to judge
		case ledger.Withheld: // the redaction may be about to be written
			return content{}, notCovered("A redaction of the event")
		default:
			s.known.forget(e.leaf.chain)
			return content{}, fmt.Errorf("%w: the proof of event %s: %s", errDamaged, uuid.UUID(id), f)
		}
	}
	text, err := b.Encode()
	if err != nil {
		return content{}, err
	}
	return content{body: text, kind: kindJSON, file: uuid.UUID(id).String() + ".proof.json"}, nil
}

// provableRow is a row of the table events, with all that its leaf is made of but the hash before it.
type provableRow struct {
	bodyRow
	leaf leafRow // without hashes, and what the chain has in common
}

const provableColumns = bodyColumns + ", chain, kind, toUnixTimestamp64Micro(recorded_at), input_generation, input_partition, input_offset"

func (p *provableRow) scan(rows driver.Rows) error {
	l := &p.leaf
	err := rows.Scan(&p.sequence, &p.id, &p.body, (*[16]byte)(&p.seed), &p.disclosure, (*[16]byte)(&l.chain), &l.kind, &l.recordedAt,
		&l.generation, &l.partition, &l.offset)
	l.sequence, l.id = p.sequence, p.id
	return err
}

// provables runs a statement over provableColumns.
func (s *Service) provables(ctx context.Context, workspace [16]byte, st *statement) (list []provableRow, err error) {
	err = s.run(ctx, statementContent, st.settings(limits{timeout: s.cfg.RequestTimeout}), func(rows driver.Rows) error {
		list = append(list, provableRow{})
		p := &list[len(list)-1]
		if err := p.scan(rows); err != nil {
			return err
		}
		return s.conceal(workspace, &p.bodyRow)
	})
	return list, err
}

// provable returns an event by its id; nil if there is none.
func (s *Service) provable(ctx context.Context, workspace, id [16]byte) (*provableRow, error) {
	for _, recorded := range recordedIn(id) {
		list, err := s.provables(ctx, workspace, byID(provableColumns, workspace, id, recorded))
		if err != nil {
			return nil, err
		}
		if len(list) > 0 {
			return &list[0], nil
		}
	}
	return nil, nil //nolint:nilnil // nil is documented
}

// redactionsStatement asks for the redactions of an event, which are in its chain after it.
func redactionsStatement(workspace [16]byte, e *provableRow) *statement {
	st := selectFrom(provableColumns, "events", workspace)
	st.and("chain = ", st.bindID(e.leaf.chain), " AND sequence > ", st.bind("UInt64", e.sequence), " AND kind = ",
		strconv.Itoa(int(ledger.KindRedaction)))
	st.metadata("event_id", []string{uuid.UUID(e.id).String()})
	st.write("\nORDER BY sequence\nLIMIT ", strconv.Itoa(maxRedactions))
	return st
}

// bundle makes the proof of an event by what is asked for. The error is a 409 while no such checkpoint covers it.
func (s *Service) bundle(ctx context.Context, workspace [16]byte, e *provableRow, q asked) (*ledger.Bundle, *snapshot, error) {
	var at *snapshot
	var c *provenChain
	if err := s.at(ctx, q, func(is *snapshot, m *chainMap) { at, c = is, m.one(workspace, e.leaf.chain) }); err != nil {
		return nil, nil, err
	}
	if c == nil || e.sequence >= c.size {
		return nil, nil, notCovered("The event")
	}
	contents := []provableRow{*e}
	if len(e.disclosure) > 0 {
		redactions, err := s.provables(ctx, workspace, redactionsStatement(workspace, e))
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
	b := &ledger.Bundle{
		BundleLeaf: leaves[0], Size: c.size, Root: c.root, Map: c.proof, Epoch: at.text, LogProof: at.logProof, Keys: at.keys,
	}
	if len(leaves) > 1 {
		b.Redactions = leaves[1:]
	}
	return b, at, nil
}

// proven makes leaves of a chain with their content, and with their paths in it.
func (s *Service) proven(ctx context.Context, workspace [16]byte, c *provenChain, contents []provableRow) ([]ledger.BundleLeaf, error) {
	var spans []ledger.Span
	plans := make([]*ledger.ProofPlan, len(contents))
	for i, e := range contents {
		if e.sequence == 0 {
			return nil, fmt.Errorf("%w: event %s has the place of a genesis in chain %x", errDamaged, uuid.UUID(e.id), c.chain)
		}
		var err error
		if plans[i], err = ledger.PlanInclusion(e.sequence, c.size); err != nil {
			return nil, err
		}
		spans = append(append(spans, ledger.Span{From: e.sequence - 1, To: e.sequence + 1}), plans[i].Spans()...)
	}
	tree := chainTree(workspace, c.chain)
	tree.known = &s.known
	stored, err := s.hashes(ctx, tree, spans)
	if err != nil {
		return nil, err
	}
	leaves := make([]ledger.BundleLeaf, len(contents))
	for i := range contents {
		e := &contents[i]
		e.leaf.incarnation, e.leaf.lane, e.leaf.lanes = c.incarnation, c.lane, c.lanes
		before, own := stored[0][0], stored[0][1]
		leaves[i], err = describe(workspace, &e.leaf, before, &e.bodyRow)
		if err == nil {
			var leaf *ledger.Leaf
			if leaf, err = leaves[i].Leaf(); err == nil && leaf.Hash() != own {
				err = fmt.Errorf("leaf %d of chain %x has hash %x, and the event gives %x", e.sequence, c.chain, own, leaf.Hash())
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errDamaged, err)
		}
		n := 1 + len(plans[i].Spans())
		if leaves[i].Path, err = plans[i].Build(stored[1:n]); err != nil {
			return nil, err
		}
		stored = stored[n:]
	}
	return leaves, nil
}
