package query

import (
	"context"
	"encoding/hex"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/ledger"
)

// Types of breaks.
const (
	breakHash    = "hash_mismatch" // what is stored of a leaf does not give its stored hash
	breakChain   = "chain_break"   // a leaf continues another than the one before it, or there are two of its sequence
	breakMissing = "missing"       // a leaf, or the content of one
	breakRoot    = "root_mismatch" // the chain as it is stored is not the one that was signed
)

// found is one entry of breaks.
type found struct {
	EventID      *string      `json:"event_id"`
	Type         string       `json:"type"`
	ExpectedHash *ledger.Hash `json:"expected_hash"`
	ActualHash   *ledger.Hash `json:"actual_hash"`
	Chain        string       `json:"chain"`
	Sequence     uint64       `json:"sequence"`
	// LastSequence is that of the last leaf of a run that is missing.
	LastSequence uint64 `json:"last_sequence"`
}

// verdict is GET /verify.
type verdict struct {
	// Valid is true where everything that was asked for was checked and nothing was found.
	Valid         bool   `json:"valid"`
	Complete      bool   `json:"complete"`
	EventsChecked uint64 `json:"events_checked"`
	Unchecked     uint64 `json:"leaves_unchecked"`
	// Uncovered are those checked that are newer than the checkpoint: their chain holds, and nothing signed says that they are all, or genuine.
	Uncovered  uint64           `json:"leaves_uncovered"`
	Breaks     []found          `json:"breaks"`
	Checkpoint *verdictSnapshot `json:"checkpoint"`
}

// verdictSnapshot is what the chains were compared with.
type verdictSnapshot struct {
	Size  uint64      `json:"size"`
	Root  ledger.Hash `json:"root"`
	Epoch uint64      `json:"epoch"`
	Time  string      `json:"time"`
}

const (
	defaultVerify    = 10_000
	maxVerify        = 100_000
	maxBreaks        = 1_000
	verifyParameters = paramFrom + ", " + paramTo + ", " + paramLimit
)

// verifyRequest is a GET /verify: the events that were recorded in a span of time, at most so many leaves.
type verifyRequest struct {
	recorded span
	limit    uint64
}

// parseVerify reads the parameters of GET /verify. The error is as that of parsePage.
func parseVerify(raw string) (verifyRequest, error) {
	values, err := parseQuery(raw)
	if err != nil {
		return verifyRequest{}, err
	}
	req := verifyRequest{limit: defaultVerify}
	var faults faults
	for _, name := range slices.Sorted(maps.Keys(values)) {
		value := values[name][0]
		switch {
		case name != paramFrom && name != paramTo && name != paramLimit:
			faults.malformedParam(name, "is not a parameter of this request. Known are: "+verifyParameters+".")
		case len(values[name]) > 1:
			faults.malformedParam(name, "is given more than once; give one value.")
		case name == paramFrom:
			req.recorded.from = parseTime(name, value, true, &faults)
		case name == paramTo:
			req.recorded.to = parseTime(name, value, false, &faults)
		default:
			req.limit = parseCount(value, maxVerify, &faults)
		}
	}
	return req, faults.err()
}

// verify is GET /verify: the chains of the workspace computed anew from what ClickHouse holds, and compared with the newest epoch
// that a checkpoint covers. It is the server that checks itself: `immutable verify` trusts nobody.
func (s *Service) verify(ctx context.Context, workspace [16]byte, r *http.Request) ([]byte, error) {
	req, err := parseVerify(r.URL.RawQuery)
	if err != nil {
		return nil, err
	}
	at, proven, err := s.roots.chainsOf(workspace)
	if err != nil && !errors.Is(err, errMapUnknown) {
		return nil, err
	}
	v := &verifier{s: s, workspace: workspace, left: req.limit, until: time.Now().Add(s.cfg.RequestTimeout * 3 / 4), complete: true}
	if at != nil {
		v.checkpoint = &verdictSnapshot{at.checkpoint.size, at.checkpoint.root, at.index, event.FormatTime(at.epoch.Time)}
	}
	chains, err := s.extents(ctx, workspace, control.PrincipalFrom(ctx), proven, req.recorded)
	if err != nil {
		return nil, err
	}
	for _, c := range chains {
		if err := v.chain(ctx, c); err != nil {
			return nil, err
		}
	}
	return inData(verdict{
		Valid: v.complete && len(v.breaks) == 0, Complete: v.complete, EventsChecked: v.events, Unchecked: v.unchecked, Uncovered: v.uncovered,
		Breaks: slices.Concat([]found{}, v.breaks), Checkpoint: v.checkpoint,
	})
}

// extent is what is to be checked of a chain: the leaves from one sequence on, before another.
type extent struct {
	chain    ledger.ChainID
	from, to uint64
	// size and root are those of the epoch; size is 0 where it does not have the chain.
	size uint64
	root ledger.Hash
}

// extents says what of each chain was recorded in a span of time; of everything, where that is open: from the first leaf, up to the
// last that the epoch has.
func (s *Service) extents(
	ctx context.Context, workspace [16]byte, p *control.Principal, proven []provenChain, recorded span,
) ([]extent, error) {
	signed := make(map[ledger.ChainID]*provenChain, len(proven))
	var ids []ledger.ChainID
	for i := range proven {
		signed[proven[i].chain] = &proven[i]
		ids = append(ids, proven[i].chain)
	}
	of := p.Workspace.ForEvents()
	for lane := range of.Lanes {
		if id := ledger.NewChainID(of.ID, of.Incarnation, lane); signed[id] == nil {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return nil, nil
	}
	stored, err := s.storedExtents(ctx, workspace, ids, recorded)
	if err != nil {
		return nil, err
	}
	var list []extent
	for _, id := range ids {
		e, there := stored[id]
		c := signed[id]
		if !there && (c == nil || recorded.from != nil || recorded.to != nil) {
			continue
		}
		e.chain = id
		if recorded.from == nil {
			e.from = 0
		}
		if c != nil {
			e.size, e.root = c.size, c.root
			if recorded.to == nil {
				e.to = max(e.to, c.size)
			}
		}
		list = append(list, e)
	}
	return list, nil
}

// storedExtents says which leaves there are, by chain.
func (s *Service) storedExtents(
	ctx context.Context, workspace [16]byte, chains []ledger.ChainID, recorded span,
) (map[ledger.ChainID]extent, error) {
	stored := make(map[ledger.ChainID]extent, len(chains))
	scan := func(rows driver.Rows) error {
		var e extent
		var last uint64
		err := rows.Scan((*[16]byte)(&e.chain), &e.from, &last)
		e.to = last + 1
		stored[e.chain] = e
		return err
	}
	l := limits{timeout: s.cfg.RequestTimeout}
	if recorded.from != nil || recorded.to != nil {
		return stored, s.run(ctx, statementChains, extentsStatement(workspace, chains, recorded, l), scan)
	}
	// The last leaf is found by the primary key, as a maximum is not.
	for _, id := range chains {
		if err := s.run(ctx, statementChains, lastLeafStatement(workspace, id, l), scan); err != nil {
			return nil, err
		}
	}
	return stored, nil
}

// nextLeaf returns the first sequence from one on, before another, that a chain has a leaf of.
func (s *Service) nextLeaf(ctx context.Context, workspace [16]byte, chain ledger.ChainID, from, to uint64) (next uint64, there bool, err error) {
	st := nextLeafStatement(workspace, chain, from, to, limits{timeout: s.cfg.RequestTimeout})
	err = s.run(ctx, statementChains, st, func(rows driver.Rows) error {
		there = true
		return rows.Scan(&next)
	})
	return next, there, err
}

func nextLeafStatement(workspace [16]byte, chain ledger.ChainID, from, to uint64, l limits) *statement {
	st := selectFrom("sequence", "leaves", workspace)
	st.and("chain = ", st.bindID(chain))
	st.and("sequence >= ", st.bind("UInt64", from), " AND sequence < ", st.bind("UInt64", to))
	st.write("\nORDER BY chain, sequence\nLIMIT 1") // the primary key's: only its beginning is read
	return st.settings(l)
}

func lastLeafStatement(workspace [16]byte, chain ledger.ChainID, l limits) *statement {
	st := selectFrom("chain, toUInt64(0), sequence", "leaves", workspace)
	st.and("chain = ", st.bindID(chain))
	st.write("\nORDER BY chain DESC, sequence DESC\nLIMIT 1")
	return st.settings(l)
}

func extentsStatement(workspace [16]byte, chains []ledger.ChainID, recorded span, l limits) *statement {
	st := selectFrom("chain, min(sequence), max(sequence)", "leaves", workspace)
	bound := make([]string, len(chains))
	for i, id := range chains {
		bound[i] = st.bindID(id)
	}
	st.and("chain IN (", strings.Join(bound, ", "), ")")
	st.between("recorded_at", recorded)
	st.write("\nGROUP BY chain")
	return st.settings(l)
}

// verifier checks chains one after the other.
type verifier struct {
	s         *Service
	workspace [16]byte
	left      uint64    // leaves that may still be checked
	until     time.Time // when it has to come to an end

	complete   bool
	events     uint64
	unchecked  uint64
	uncovered  uint64
	breaks     []found
	checkpoint *verdictSnapshot
}

// chain checks one extent.
func (v *verifier) chain(ctx context.Context, e extent) error {
	end := e.from + min(v.left, e.to-e.from)
	v.left -= end - e.from
	c := &chainCheck{verifier: v, extent: e, next: e.from}
	before := len(v.breaks)
	// What is signed of the leaves that are checked: stored hashes stand for the others.
	if e.size > e.from {
		plan, err := ledger.PlanRange(e.from, min(end, e.size), e.size)
		if err != nil {
			return err
		}
		stored, err := v.s.hashes(ctx, chainTree(v.workspace, e.chain), plan.Spans())
		switch {
		case isDamage(err): // what is missing may be beyond what is checked
			c.wrong(breakRoot, nil, e.size-1, &e.root, nil)
		case err != nil:
			return err
		default:
			if c.tree, err = plan.Start(stored); err != nil {
				return err
			}
		}
	}
	err := v.s.walk(ctx, v.workspace, e.chain, e.from, end, func(l *walkedLeaf) (bool, error) {
		if time.Now().After(v.until) || len(v.breaks) >= maxBreaks {
			end = c.next
			return false, nil
		}
		c.leaf(l)
		return true, nil
	})
	if isDamage(err) {
		c.wrong(breakChain, nil, c.next, nil, nil)
		end = c.next
	} else if err != nil {
		return err
	}
	c.missing(end)
	if covered := max(e.from, e.size); end > covered {
		v.uncovered += end - covered
	}
	if v.unchecked += e.to - end; end < e.to {
		v.complete = false
	}
	if c.tree == nil || len(v.breaks) > before {
		return nil
	}
	// An error says that not all leaves of the plan were come to.
	if root, err := c.tree.Root(); err == nil && root != e.root {
		c.wrong(breakRoot, nil, e.size-1, &e.root, &root)
	}
	return nil
}

// chainCheck goes through the leaves of one chain.
type chainCheck struct {
	*verifier
	extent
	next     uint64
	computed ledger.Hash // of the leaf before next, by its content
	known    bool        // whether it is
	tree     *ledger.RangeRoot
}

func (c *chainCheck) wrong(kind string, l *walkedLeaf, sequence uint64, expected, actual *ledger.Hash) {
	id := c.extent.chain
	f := found{Type: kind, ExpectedHash: expected, ActualHash: actual, Chain: hex.EncodeToString(id[:]), Sequence: sequence, LastSequence: sequence}
	if l != nil && l.id != [16]byte{} {
		id := uuid.UUID(l.id).String()
		f.EventID = &id
	}
	c.breaks = append(c.breaks, f)
}

// missing says that no leaf is there from next on, before another.
func (c *chainCheck) missing(before uint64) {
	if c.next >= before {
		return
	}
	c.wrong(breakMissing, nil, c.next, nil, nil)
	c.breaks[len(c.breaks)-1].LastSequence = before - 1
	c.next, c.known, c.tree = before, false, nil
}

// leaf checks the next leaf that there is.
func (c *chainCheck) leaf(l *walkedLeaf) {
	if l.sequence < c.next {
		c.wrong(breakChain, l, l.sequence, nil, &l.hash)
		return
	}
	c.missing(l.sequence)
	c.next = l.sequence + 1
	genesis := ledger.Kind(l.kind) == ledger.KindGenesis
	var content *bodyRow
	switch {
	case genesis:
	case len(l.bodies) == 0:
		c.wrong(breakMissing, l, l.sequence, &l.hash, nil)
		c.known, c.tree = false, nil
		return
	default:
		c.events++
		content = &l.bodies[0]
		for range l.bodies[1:] {
			c.wrong(breakChain, l, l.sequence, &l.hash, nil)
		}
	}
	follows := l.sequence == 0 || l.followed
	hash, canonical := c.hash(l, l.before, content)
	switch {
	case content != nil && content.id != l.id, !canonical:
		c.wrong(breakHash, l, l.sequence, &l.hash, nil)
	case hash == l.hash, !follows: // after one that is missing nothing can be said
	case c.known:
		if other, _ := c.hash(l, c.computed, content); other == l.hash {
			c.wrong(breakChain, l, l.sequence, &c.computed, &l.before)
			hash = other
			break
		}
		fallthrough
	default:
		actual := hash
		c.wrong(breakHash, l, l.sequence, &l.hash, &actual)
	}
	c.computed, c.known = hash, follows
	if c.tree != nil && l.sequence < c.size {
		if err := c.tree.Append(hash); err != nil {
			c.tree = nil
		}
	}
}

// hash computes a leaf's hash from its content.
func (c *chainCheck) hash(l *walkedLeaf, previous ledger.Hash, content *bodyRow) (hash ledger.Hash, canonical bool) {
	described, err := describe(c.workspace, &l.leafRow, previous, content)
	if err != nil {
		return hash, false
	}
	leaf, err := described.Leaf()
	if err != nil {
		return hash, false
	}
	return leaf.Hash(), true
}
