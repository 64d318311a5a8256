package verifier

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/verify"
)

// partKey names a part of a chain, or by the zero key the root log.
type partKey struct {
	chain    ledger.ChainID
	from, to uint64
}

// suspect is a part in which there is a fault.
type suspect struct {
	key    partKey
	chain  *chain
	part   verify.Part
	faults []*ledger.Fault
	// look verifies the part once more.
	look func(ctx context.Context) ([]*ledger.Fault, error)
	// withheldSince is when an erased value was first seen without its redaction; zero where none is.
	withheldSince time.Time
	// confirmed: a fault was there twice.
	confirmed bool
}

// oneRun is one run of the verifier.
type oneRun struct {
	*Verifier

	anchor *anchor
	parts  *verify.Parts
	now    time.Time
	// written as of before the epoch was compared with the tables.
	writtenTo map[int32]int64
	behind    map[ledger.ChainID]bool
	here      map[ledger.ChainID]bool
	found     []*suspect
}

// partCost is what a part costs besides its leaves, in leaves: it is several statements.
const partCost = 64

func newRun(v *Verifier, a *anchor) *oneRun {
	return &oneRun{
		Verifier: v, anchor: a, now: time.Now(), writtenTo: v.written(), behind: map[ledger.ChainID]bool{}, here: map[ledger.ChainID]bool{},
		parts: verify.OpenParts(v.cfg.ClickHouse, verify.PartLimits{
			SliceLeaves: uint64(v.cfg.SliceLeaves), SliceBytes: uint64(v.cfg.SliceBytes), StatementTimeout: v.cfg.StatementTimeout,
			Priority: v.cfg.Priority,
		}),
	}
}

func (r *oneRun) close() { r.parts.Close() }

// owned says whether the chain's partition is this instance's.
func (r *oneRun) owned(c *chain) bool {
	_, ok := r.writtenTo[r.anchor.partition(c)]
	return ok
}

func (r *oneRun) verify(ctx context.Context) error {
	if err := r.verifyLog(ctx); err != nil {
		return err
	}
	if err := r.verifyAgain(ctx); err != nil {
		return err
	}
	if err := r.verifyNewest(ctx); err != nil {
		return err
	}
	if err := r.verifyHistory(ctx); err != nil {
		return err
	}
	r.metrics.behind.Set(float64(len(r.behind)))
	return nil
}

// verifyLog compares the tables of the root log with the notary's.
func (r *oneRun) verifyLog(ctx context.Context) error {
	faults, err := r.logFaults(ctx)
	if err != nil {
		return err
	}
	r.suspect(&suspect{faults: faults, look: r.logFaults})
	return nil
}

func (r *oneRun) logFaults(ctx context.Context) ([]*ledger.Fault, error) {
	log := &r.anchor.log
	faults, _, err := r.parts.RootLog(ctx, log.Size, log.Root(), time.Now())
	return faults, err
}

// suspect keeps a part with faults until it is confirmed, and forgets one that has none any more.
func (r *oneRun) suspect(s *suspect) {
	before := r.again[s.key]
	if len(s.faults) == 0 {
		delete(r.again, s.key)
		return
	}
	if before != nil {
		s.withheldSince, s.confirmed = before.withheldSince, before.confirmed
	}
	if before != nil || len(r.again) < r.cfg.MaxAgain {
		r.again[s.key] = s
	}
	r.found = append(r.found, s)
}

// verifyAgain looks at the parts that had faults.
func (r *oneRun) verifyAgain(ctx context.Context) error {
	budget := r.cfg.HistoryLeaves
	for _, key := range slices.SortedFunc(maps.Keys(r.again), compareKeys) {
		c := r.anchor.chains[key.chain]
		if key == (partKey{}) {
			continue // verifyLog
		}
		if c == nil || !r.owned(c) || key.to > c.size {
			delete(r.again, key)
			continue
		}
		if budget <= 0 {
			continue
		}
		ok, err := r.part(ctx, c, key.from, key.to, r.metrics.again)
		if err != nil {
			return err
		}
		if ok {
			budget -= int(key.to-key.from) + partCost
		}
	}
	return nil
}

func compareKeys(a, b partKey) int {
	return cmp.Or(bytes.Compare(a.chain[:], b.chain[:]), cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to))
}

// verifyNewest verifies what has come since the last run, of the chains that changed last first.
func (r *oneRun) verifyNewest(ctx context.Context) error {
	for id := range r.seen {
		if c := r.anchor.chains[id]; c == nil || !r.owned(c) {
			delete(r.seen, id)
		}
	}
	var changed []*chain
	for id, c := range r.anchor.chains {
		if r.owned(c) && c.size != r.seen[id].size {
			if c.size < r.seen[id].size {
				delete(r.seen, id) // the notary's state was made anew
			}
			changed = append(changed, c)
		}
	}
	slices.SortFunc(changed, func(a, b *chain) int { return cmp.Or(cmp.Compare(b.epoch, a.epoch), bytes.Compare(a.id[:], b.id[:])) })
	for budget := r.cfg.NewestLeaves; len(changed) > 0 && budget > 0; changed = changed[1:] {
		c := changed[0]
		from, most := r.seen[c.id].size, uint64(budget)
		if from == 0 { // after a start the history has what was there before
			most = min(most, uint64(r.cfg.SliceLeaves))
		}
		from = max(from, c.size-min(c.size, most))
		ok, err := r.part(ctx, c, from, c.size, r.metrics.newest)
		if err != nil {
			return err
		}
		if ok {
			budget -= int(c.size-from) + partCost
			r.seen[c.id] = sound{c.size, c.root}
		}
	}
	return nil
}

// part verifies leaves of a chain, with one on either side, so that a leaf that was written anew is told from its neighbour. It returns false
// where ClickHouse does not have all of the chain yet.
func (r *oneRun) part(ctx context.Context, c *chain, from, to uint64, leaves prometheus.Counter) (bool, error) {
	p := r.anchor.partition(c)
	known := r.seen[c.id]
	s := &suspect{
		key: partKey{c.id, from, to}, chain: c,
		part: verify.Part{
			Chain: c.ChainIdentity, From: from - min(from, 1), To: min(to+1, c.size), Size: c.size, Root: c.root,
			Covered: r.anchor.epoch.Time, Partition: uint16(p), Position: r.anchor.epoch.Epoch.Positions[p],
			Sound: known.size, SoundRoot: known.root,
		},
	}
	if ok, err := r.isHere(ctx, s); !ok || err != nil {
		return false, err
	}
	faults, err := r.parts.Verify(ctx, &s.part)
	if err != nil {
		return false, err
	}
	leaves.Add(float64(s.part.To - s.part.From))
	if _, ok := r.written()[p]; !ok {
		r.metrics.partitionsLost.Inc()
		return false, nil
	}
	s.faults = faults
	s.look = func(ctx context.Context) ([]*ledger.Fault, error) { return r.parts.Verify(ctx, &s.part) }
	r.suspect(s)
	return true, nil
}

// isHere says whether ClickHouse has what the epoch covers of a chain: its last leaf, or else everything of its partition.
func (r *oneRun) isHere(ctx context.Context, s *suspect) (bool, error) {
	id := s.chain.id
	if r.here[id] || r.behind[id] {
		return r.here[id], nil
	}
	// The record that ends a transaction has an offset too.
	here := uint64(r.writtenTo[int32(s.part.Partition)])+1 >= s.part.Position
	if !here {
		var err error
		if here, err = r.parts.Here(ctx, &s.part); err != nil {
			return false, fmt.Errorf("looking for the last leaf of chain %x: %w", id, err)
		}
	}
	r.here[id], r.behind[id] = here, !here
	if here {
		delete(r.behind, id)
	}
	return here, nil
}

// pass is one pass over the history. Where it begins is drawn, so that after many restarts too each part has had its turn.
type pass struct {
	chains []ledger.ChainID
	at     uint64 // in the first of chains
	began  time.Time
	// size in leaves as of its beginning, and done of them.
	size, done uint64
}

// verifyHistory goes on with the pass over the history.
func (r *oneRun) verifyHistory(ctx context.Context) error {
	p := &r.pass
	if len(p.chains) == 0 {
		if err := r.beginPass(ctx); err != nil {
			return err
		}
	}
	waiting := 0 // chains in a row that are not here
	for budget := r.cfg.HistoryLeaves; len(p.chains) > waiting && budget > 0; {
		c := r.anchor.chains[p.chains[0]]
		if c == nil || !r.owned(c) || p.at >= c.size {
			r.nextChain()
			continue
		}
		to := min(p.at+uint64(budget), c.size)
		ok, err := r.part(ctx, c, p.at, to, r.metrics.history)
		if err != nil {
			return err
		}
		if !ok {
			waiting++
			p.chains, p.at = append(p.chains[1:], p.chains[0]), 0
			continue
		}
		waiting = 0
		budget -= int(to-p.at) + partCost
		p.done += to - p.at
		if p.at = to; to == c.size {
			r.nextChain()
		}
	}
	if p.size > 0 {
		r.metrics.progress.Set(min(1, float64(p.done)/float64(p.size)))
	}
	if len(p.chains) == 0 {
		r.metrics.progress.Set(1)
		r.metrics.passed(p.began)
	}
	return nil
}

func (r *oneRun) nextChain() { r.pass.chains, r.pass.at = r.pass.chains[1:], 0 }

func (r *oneRun) beginPass(ctx context.Context) error {
	p := pass{began: r.now}
	for id, c := range r.anchor.chains {
		if r.owned(c) {
			p.chains = append(p.chains, id)
			p.size += c.size
		}
	}
	slices.SortFunc(p.chains, func(a, b ledger.ChainID) int { return bytes.Compare(a[:], b[:]) })
	if n := len(p.chains); n > 1 {
		first := rand.IntN(n) //nolint:gosec // it spreads load, and protects nothing
		p.chains = slices.Concat(p.chains[first:], p.chains[:first])
	}
	if err := r.verifyStrangers(ctx); err != nil {
		return err
	}
	r.pass = p
	return nil
}
