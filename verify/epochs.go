package verify

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"math/big"
	"math/bits"
	"slices"
	"strings"

	"getimmutable.dev/immutable/ledger"
)

// pickEpochs picks entries of a root log before an index, n of them or all where there are not more: the first, others evenly spread, and a
// half at random, so that nobody can know which.
func pickEpochs(before uint64, n int) []uint64 {
	if n <= 0 || before == 0 {
		return nil
	}
	most := uint64(n)
	if before <= most {
		return sequence(before)
	}
	picked := map[uint64]bool{}
	spread := (most + 1) / 2
	for i := range spread {
		hi, lo := bits.Mul64(i, before)
		at, _ := bits.Div64(hi, lo, spread)
		picked[at] = true
	}
	limit := new(big.Int).SetUint64(before)
	for uint64(len(picked)) < most {
		at, _ := rand.Int(rand.Reader, limit) // it ends the program rather than return an error
		picked[at.Uint64()] = true
	}
	return slices.Sorted(maps.Keys(picked))
}

func sequence(n uint64) []uint64 {
	all := make([]uint64, n)
	for i := range all {
		all[i] = uint64(i)
	}
	return all
}

// listChains lists the chains in the tables, and what does not belong to one.
func (v *tableVerifier) listChains(ctx context.Context, old *rememberedLog) ([]chainRows, error) {
	// A writer puts rows into leaves before those into events: what events holds is in leaves now.
	events, err := v.store.eventGroups(ctx)
	if err != nil {
		return nil, err
	}
	groups, err := v.store.chains(ctx)
	if err != nil {
		return nil, err
	}
	var chains []chainRows
	for len(groups) > 0 {
		n := 1
		for n < len(groups) && groups[n].chain == groups[0].chain {
			n++
		}
		chains = append(chains, v.oneIdentity(groups[:n]))
		groups = groups[n:]
	}
	byID := map[ledger.ChainID]*chainRows{}
	for i := range chains {
		byID[chains[i].chain] = &chains[i]
	}
	for _, e := range events {
		c := byID[e.chain]
		switch {
		case c == nil && !v.isRemembered(old, e.chain):
			v.chainFault(ledger.Inserted, e.chain, "%d rows of events are of a chain that has no leaf", e.rows)
		case c == nil:
			v.chainFault(ledger.Missing, e.chain, "%d rows of events have no leaf any more", e.rows)
		case c.identity.Workspace != e.identity.Workspace:
			v.chainFault(ledger.CrossChain, e.chain, "%d rows of events are of workspace %x, the chain is of %x", e.rows, e.identity.Workspace, c.identity.Workspace)
		default:
			c.size = max(c.size, e.size)
		}
	}
	return chains, v.leaveOpen(ctx, "whether events holds the last leaf of each chain", v.awaitEvents(ctx, byID))
}

// newestCheckpoint returns the newest checkpoint, nil where there is none. It waits for one that is no smaller than what is remembered of its log: a replica
// may be behind the one that was read then.
func (v *tableVerifier) newestCheckpoint(ctx context.Context) (signed []byte, err error) {
	err = v.await(ctx, func() (bool, error) {
		var err error
		if signed, err = v.store.newestCheckpoint(ctx); err != nil {
			return false, err
		}
		stated, err := ledger.ParseCheckpoint(signed)
		if err != nil {
			return true, nil //nolint:nilerr // the check of the checkpoint says it
		}
		before := v.rememberedCheckpoint(stated.Origin)
		return before == nil || stated.Size >= before.Size, nil
	})
	return signed, err
}

// awaitRemembered waits until leaves holds as much of each chain as is remembered.
func (v *tableVerifier) awaitRemembered(ctx context.Context, old *rememberedLog) error {
	if old == nil {
		return nil
	}
	return v.await(ctx, func() (bool, error) {
		sizes := map[ledger.ChainID]uint64{}
		chains, err := v.store.chains(ctx)
		for i := range chains {
			sizes[chains[i].chain] = max(sizes[chains[i].chain], chains[i].size)
		}
		for id, c := range old.Chains {
			if sizes[id] < c.Size {
				return false, err
			}
		}
		return true, err
	})
}

// awaitEvents waits until events holds the last leaf of each chain, which a writer may be about to put there.
func (v *tableVerifier) awaitEvents(ctx context.Context, chains map[ledger.ChainID]*chainRows) error {
	return v.await(ctx, func() (bool, error) {
		sizes := map[ledger.ChainID]uint64{}
		events, err := v.store.eventGroups(ctx)
		for _, e := range events {
			sizes[e.chain] = max(sizes[e.chain], e.size)
		}
		for id, c := range chains {
			if sizes[id] < c.size && c.size > 1 {
				return false, err
			}
		}
		return true, err
	})
}

func (v *tableVerifier) isRemembered(old *rememberedLog, chain ledger.ChainID) bool {
	if old == nil {
		return false
	}
	_, ok := old.Chains[chain]
	return ok
}

func (v *tableVerifier) chainFault(verdict ledger.Verdict, chain ledger.ChainID, format string, args ...any) {
	v.report.fault(&ledger.Fault{Verdict: verdict, Chain: &chain, Detail: fmt.Sprintf(format, args...)})
}

// oneIdentity takes what the rows of a chain say that it is made of: that which makes its id, and of those the most frequent.
func (v *tableVerifier) oneIdentity(groups []chainRows) chainRows {
	best := 0
	for i := range groups {
		if groups[i].identity.Chain() == groups[i].chain {
			best = i
			break
		}
	}
	c := groups[best]
	for i := range groups {
		g := &groups[i]
		c.size = max(c.size, g.size)
		switch {
		case g.identity.Chain() != g.chain:
			v.chainFault(ledger.CrossChain, g.chain, "%d rows of leaves say workspace %x, incarnation %x, lane %d, which make another chain",
				g.rows, g.identity.Workspace, g.identity.Incarnation, g.identity.Lane)
		case i != best:
			v.chainFault(ledger.ColumnMismatch, g.chain, "%d rows of leaves say %d lanes and ledger partition %d, others %d and %d",
				g.rows, g.identity.Lanes, g.ledgerPartition, c.identity.Lanes, c.ledgerPartition)
		}
	}
	return c
}

// verifyChains recomputes all chains, with their roots at each epoch that was picked.
func (v *tableVerifier) verifyChains(ctx context.Context, chains []chainRows, old *rememberedLog) ([]*chainResult, error) {
	run := &chainRun{cfg: v.cfg, report: v.report}
	jobs := make([]*chainJob, len(chains))
	rows := v.store.limited(v.tables.SliceBytes)
	for i, c := range chains {
		run.expected += c.rows
		t := &chainTable{rows, c, c.size}
		jobs[i] = &chainJob{identity: c.identity, partition: c.ledgerPartition, marks: v.marks(c.ledgerPartition), size: c.size, leaves: t.leaves}
		if c.identity.Chain() != c.chain {
			jobs[i].leaves = func(context.Context, func(*batch) error) error { return nil } // it has been said
		}
		if m, ok := memoryMark(old, c.chain); ok {
			jobs[i].marks = append(jobs[i].marks, m)
		}
	}
	return run.verifyAll(ctx, jobs)
}

// marks are the cuts of the epochs in a ledger partition.
func (v *tableVerifier) marks(partition uint16) []ledger.Mark {
	marks := make([]ledger.Mark, len(v.epochs))
	for i, e := range v.epochs {
		marks[i] = ledger.Mark{ByOffset: true, Covered: e.Time}
		if int(partition) < len(e.Epoch.Positions) {
			marks[i].Offset = e.Epoch.Positions[partition]
		}
	}
	return marks
}

// checkEpochs recomputes the map of each epoch from the chains as they were at its cut, and lets the newest one judge what single leaves left open.
func (v *tableVerifier) checkEpochs(results []*chainResult) {
	var whole ledger.Map
	state := ledger.RootUnknown
	sound := -1 // the last epoch that holds
	incomplete := 0
	for i, e := range v.epochs {
		known := true
		count := uint64(0)
		for _, r := range results {
			m := &r.marks[i]
			if m.Size == 0 {
				continue
			}
			known = known && m.Known
			count++
			whole.Set(r.id, m.Size, m.Root)
		}
		switch {
		case !known:
			state = ledger.RootUnknown
			incomplete++
		case whole.Root() == e.Epoch.MapRoot && count == e.Epoch.Chains:
			state, sound = ledger.RootHolds, i
			v.report.Epochs++
		default:
			state = ledger.RootDiffers
		}
		if newest := len(v.epochs) - 1; state == ledger.RootDiffers && i < newest && v.holds(results, newest) {
			// The tables are what was signed last: it is the log that has stated something else before.
			v.report.faultf(ledger.Forked, "epochs %d and %d of one signed root log state different leaves: chains were written anew with the log's key",
				e.Index, v.epochs[newest].Index)
			v.conclude(results, ledger.RootHolds)
			v.tail(results)
			return
		}
		if state == ledger.RootDiffers {
			v.conclude(results, state)
			v.locate(results, sound, i)
			v.report.notChecked("epochs from entry %d of the root log on: the chains do not give the map of that one", e.Index)
			v.tail(results)
			return
		}
	}
	v.conclude(results, state)
	if incomplete > 0 {
		v.report.undecided("the maps of %d epochs: leaves before their cuts are missing", incomplete)
	}
	v.tail(results)
}

// holds says whether the chains, as they were at an epoch's cut, give its map.
func (v *tableVerifier) holds(results []*chainResult, epoch int) bool {
	var whole ledger.Map
	count := uint64(0)
	for _, r := range results {
		m := &r.marks[epoch]
		switch {
		case m.Size == 0:
		case !m.Known:
			return false
		default:
			count++
			whole.Set(r.id, m.Size, m.Root)
		}
	}
	return count == v.epochs[epoch].Epoch.Chains && whole.Root() == v.epochs[epoch].Epoch.MapRoot
}

func (v *tableVerifier) conclude(results []*chainResult, state ledger.RootState) {
	for _, r := range results {
		if r.err == nil {
			r.verifier.Conclude(state)
		}
	}
}

// locate names the chains that may have been written anew or cut since the last epoch that holds, unless a fault of theirs explains it.
func (v *tableVerifier) locate(results []*chainResult, sound, at int) {
	e := v.epochs[at]
	there := uint64(0)
	for _, r := range results {
		if r.marks[at].Size > 0 {
			there++
		}
	}
	if there < e.Epoch.Chains {
		v.report.faultf(ledger.Missing, "epoch %d covers %d chains, the tables have leaves of %d before its cut: the others are missing as a whole"+behindWriter,
			e.Index, e.Epoch.Chains, there)
		return
	}
	var changed []*chainResult
	for _, r := range results {
		if r.explain > 0 {
			return
		}
		before := uint64(0)
		if sound >= 0 {
			before = r.marks[sound].Size
		}
		if r.marks[at].Size > before {
			changed = append(changed, r)
		}
	}
	verdict, detail, hint := ledger.Modified, "leaves were written anew with their hashes", ""
	if p, short := v.short(results, e); short {
		verdict, detail = ledger.Truncated, fmt.Sprintf("the last leaves of ledger partition %d are missing", p)
		hint = behindWriter
	}
	after := "since the beginning"
	if sound >= 0 {
		after = fmt.Sprintf("since epoch %d", v.epochs[sound].Index)
	}
	if len(changed) == 1 {
		r := changed[0]
		first, last := uint64(0), max(r.marks[at].Size, 1)-1
		if sound >= 0 {
			first = r.marks[sound].Size
		}
		v.report.fault(&ledger.Fault{
			Verdict: verdict, Chain: &r.id, Sequence: &first, Last: &last,
			Detail: fmt.Sprintf("the chains do not give the map of epoch %d: %s, %s%s", e.Index, after, detail, hint),
		})
		return
	}
	v.report.faultf(verdict, "the chains do not give the map of epoch %d: %s, %s, in one of: %s%s", e.Index, after, detail, names(changed), hint)
}

// short finds a ledger partition whose last leaf before an epoch's cut is not where it should be: just before the record that ended its transaction.
func (v *tableVerifier) short(results []*chainResult, e *ledger.Entry) (partition int, short bool) {
	ends := map[int]uint64{}
	for _, r := range results {
		ends[int(r.partition)] = max(ends[int(r.partition)], r.end)
	}
	for p, position := range e.Epoch.Positions {
		if position > 0 && ends[p]+1 < position {
			return p, true
		}
	}
	return 0, false
}

// maxNames bounds how many chains a finding names.
const maxNames = 16

func names(chains []*chainResult) string {
	slices.SortFunc(chains, func(a, b *chainResult) int { return cmp.Compare(a.identity.Lane, b.identity.Lane) })
	var list []string
	for _, r := range chains {
		if len(list) == maxNames {
			list = append(list, fmt.Sprintf("and %d more", len(chains)-maxNames))
			break
		}
		list = append(list, fmt.Sprintf("%x", r.id))
	}
	return strings.Join(list, ", ")
}

// tail counts the leaves that no epoch covers yet.
func (v *tableVerifier) tail(results []*chainResult) {
	n := len(v.epochs)
	if n == 0 {
		return
	}
	for _, r := range results {
		if covered := r.marks[n-1].Size; r.err == nil && r.counts.Size > covered {
			first, last := covered, r.counts.Size-1
			v.report.fault(&ledger.Fault{
				Verdict: ledger.UnsealedTail, Chain: &r.id, Sequence: &first, Last: &last, Detail: "no signed epoch covers the leaves yet",
			})
		}
	}
}

// noteForkedChains: the tables give one map root for all chains, which proves nothing of one of them to anybody else.
func (v *tableVerifier) noteForkedChains() {
	for _, f := range v.report.Faults {
		if f.Verdict == ledger.Forked && f.Chain != nil {
			v.report.notef("no evidence can be made of what chain %x was: `immutable verify ledger` asks for what epochs prove of it", *f.Chain)
		}
	}
}

// checkForgotten: a chain that was verified before is still there.
func (v *tableVerifier) checkForgotten(old *rememberedLog, results []*chainResult) {
	if old == nil {
		return
	}
	here := map[ledger.ChainID]bool{}
	for _, r := range results {
		here[r.id] = true
	}
	for chain, c := range old.Chains {
		if !here[chain] {
			v.chainFault(ledger.RolledBack, chain, "it had %d leaves when it was verified before, and is not there any more", c.Size)
		}
	}
}
