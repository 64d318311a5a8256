package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"getimmutable.dev/immutable/ledger"
)

// A chain can be written anew in a later epoch of a root log that is consistent and witnessed. So the chains are compared with what older
// epochs state of them, of which nobody can know beforehand which are asked for.

// histories is what several epochs state of a workspace's chains.
type histories struct {
	*apiVerifier

	a    *accepted
	keys []ledger.BundleKey // that the accepted checkpoint covers
	// epochs in the order of the log, the newest last.
	epochs []*statedEpoch
	// sides are what the marks of each chain were made of, in their order; nil of one that nothing ties to a checkpoint. They are made when they are
	// asked for: of all marks they would take more than the epochs.
	sides map[ledger.ChainID][]func() *ledger.StatedChain
	// left are the bytes that what is kept of older epochs may still take.
	left int64
	// gone are chains that an older epoch has, and the newest has not.
	gone map[ledger.ChainID]bool
}

func (h *histories) newest() *statedEpoch { return h.epochs[len(h.epochs)-1] }

const (
	// maxRefused answers that do not come end the asking: the others would not come either.
	maxRefused = 3
	// mapRounds is how often an epoch is asked for, each time with API.Attempts, while the answer is 503: making its map may take longer than a
	// request, and the next one finds it.
	mapRounds = 4
)

// askOlder asks what older epochs state. What is not answered leaves the verification undecided.
func (h *histories) askOlder(ctx context.Context) error {
	newest := h.newest()
	var changes []uint64 // of the key, before the newest epoch
	for _, text := range h.a.replay.keyEntries {
		if e, err := ledger.ParseEntry([]byte(text)); err == nil && e.Index < newest.entry.Index {
			changes = append(changes, e.Index)
		}
	}
	slices.Sort(changes)
	changes = slices.Compact(changes)
	older := newest.entry.Index - uint64(len(changes)) // all other entries are epochs
	indexes := olderEpochs(older, changes, h.cfg.Epochs-1)
	var all []*statedEpoch
	known := map[ledger.ChainID]bool{}
	refused := 0
	for i, index := range indexes {
		e, err := h.askEpoch(ctx, index)
		if errors.Is(err, context.Canceled) {
			return err
		}
		if err != nil {
			h.report.undecided("epoch %d: what it states is not shown: %v", index, err)
			if refused++; refused == maxRefused && i+1 < len(indexes) {
				h.report.undecided("%d older epochs that were to be compared with are not asked for after that", len(indexes)-i-1)
				break
			}
		}
		if e == nil {
			continue
		}
		kept := e.forget(all, known)
		if kept > h.left {
			h.report.undecided("%d older epochs that were to be compared with are not: what is kept of the others takes %d bytes, and that of epoch %d would be too much",
				len(indexes)-i, h.client.MaxOlderBytes-h.left, index)
			break
		}
		h.left -= kept
		all = append(all, e)
	}
	h.epochs = append(all, newest)
	total := older + 1
	if left := total - uint64(len(h.epochs)); left > 0 {
		h.report.notChecked("%d of %d epochs: --epochs says how many the chains are compared with, half of them drawn at random", left, total)
	}
	return nil
}

// olderEpochs picks among so many epochs, between which lie changes of the key, in order, and returns their indexes in the root log.
func olderEpochs(epochs uint64, changes []uint64, n int) []uint64 {
	picked := pickEpochs(epochs, n)
	skipped := uint64(0)
	for i, epoch := range picked { // the number among epochs becomes the index among entries
		for skipped < uint64(len(changes)) && changes[skipped] <= epoch+skipped {
			skipped++
		}
		picked[i] = epoch + skipped
	}
	return picked
}

// askEpoch asks what one epoch states, by the accepted checkpoint. It returns nil where that is not proven; the error says that it was not
// answered, or with a proof by another checkpoint or of another epoch.
func (h *histories) askEpoch(ctx context.Context, index uint64) (*statedEpoch, error) {
	query, limit := fmt.Sprintf("?epoch=%d&checkpoint=%d", index, h.a.Size), h.client.MaxAnswerBytes
	answer, err := h.chains(ctx, query, limit)
	for range mapRounds - 1 { // the map may still be being made
		if status, ok := errors.AsType[*statusError](err); !ok || status.status != http.StatusServiceUnavailable {
			break
		}
		answer, err = h.chains(ctx, query, limit)
	}
	if err != nil {
		return nil, err
	}
	p, err := ledger.ParseLogProof([]byte(answer.Data.LogProof))
	if err == nil && p.Index != index {
		err = fmt.Errorf("it is of epoch %d", p.Index)
	}
	var stated *ledger.Checkpoint
	if err == nil {
		stated, err = ledger.ParseCheckpoint(p.Checkpoint)
	}
	if err == nil && *stated != h.a.Checkpoint {
		h.checkOther(ctx, h.a, stated, p.Checkpoint)
		err = fmt.Errorf("it is by checkpoint %q of size %d, or with another root", stated.Origin, stated.Size)
	}
	if err != nil { // it says nothing of this checkpoint, so it contradicts nothing
		return nil, fmt.Errorf("GET /ledger/chains%s: log proof: %w", query, err)
	}
	entry := h.checkEpoch(query, answer.Data.Epoch, p, stated)
	if entry == nil {
		return nil, nil //nolint:nilnil // the report says why
	}
	p.Checkpoint = h.a.Signed // the answer's may have other signatures, which nobody has looked at
	answer.Data.LogProof = string(p.Marshal())
	return h.checkStatedEpoch(entry, answer), nil
}

const (
	// bytesOfEpoch, bytesOfOlder and bytesOfSame are what is kept of an older epoch, of a chain that has changed in it, with the mark and the evidence that
	// are made of it, and of one that has not, besides texts and siblings.
	bytesOfEpoch = 1 << 10
	bytesOfOlder = 384
	bytesOfSame  = 64
	bytesOfHash  = len(ledger.Hash{})
)

// forget keeps of an older epoch what marks and evidence are made of, and returns how many bytes that takes, about. before are the older ones, and known
// the chains that they have, to which it adds. A chain that is as the last of them has it is that one's.
func (e *statedEpoch) forget(before []*statedEpoch, known map[ledger.ChainID]bool) int64 {
	e.entry = &ledger.Entry{Index: e.entry.Index, Time: e.entry.Time}
	e.answer = &statedChains{Epoch: e.answer.Epoch, LogProof: e.answer.LogProof}
	bytes := bytesOfEpoch + len(e.answer.Epoch) + len(e.answer.LogProof)
	chains, shown, absent := e.chains, e.shown, e.absent
	e.chains, e.shown, e.absent = make(map[ledger.ChainID]*apiChain, len(chains)), map[ledger.ChainID]bool{}, map[ledger.ChainID]*ledger.MapProof{}
	for id, c := range chains {
		bytes += bytesOfSame
		if n := len(before); n > 0 {
			if was := before[n-1].chains[id]; was != nil && was.Size == c.Size && was.Root == c.Root {
				e.chains[id] = was
				continue
			}
		}
		kept := *c
		kept.Map.Siblings = slices.Clone(c.Map.Siblings) // what was decoded has room for more
		e.chains[id] = &kept
		bytes += bytesOfOlder + bytesOfHash*len(kept.Map.Siblings)
	}
	for id := range known { // of others nothing can be gone
		if chains[id] == nil && shown[id] {
			e.shown[id] = true
			bytes += bytesOfSame
		}
		if p := absent[id]; p != nil {
			e.absent[id] = &ledger.MapProof{Siblings: slices.Clone(p.Siblings), Other: p.Other}
			bytes += bytesOfSame + bytesOfHash*(len(p.Siblings)+2)
		}
	}
	for id := range chains {
		known[id] = true
	}
	return int64(bytes)
}

// checkFalls: a chain that an epoch has is in every later one, with no fewer leaves. The newest one has to show it; one in between that does
// not is held against nobody, unless it proves that the chain is not there.
func (h *histories) checkFalls() {
	type last struct {
		epoch *statedEpoch
		chain *apiChain
	}
	seen := map[ledger.ChainID]last{}
	for _, e := range h.epochs {
		for id, before := range seen {
			after := e.chains[id]
			switch {
			case after != nil && after.Size >= before.chain.Size:
				continue
			case after == nil && (e.shown[id] || e.absent[id] == nil && e != h.newest()): // that it is gone is not said there
				continue
			}
			delete(seen, id)
			f := h.fork(before.chain)
			f.Older, f.Newer = *h.side(before.epoch, before.chain), *h.side(e, after)
			if after == nil {
				h.gone[id] = true
				f.Detail = fmt.Sprintf("epoch %d has it with %d leaves, epoch %d does not have it any more", before.epoch.entry.Index, before.chain.Size, e.entry.Index)
				if proof := e.absent[id]; proof != nil {
					f.Newer.Map = *proof
					h.keepChainFork(f)
				}
			} else {
				f.Detail = fmt.Sprintf("epoch %d has it with %d leaves, epoch %d with %d", before.epoch.entry.Index, before.chain.Size, e.entry.Index, after.Size)
				h.keepChainFork(f)
			}
			h.chainFault(ledger.RolledBack, before.chain, "%s", f.Detail)
		}
		for id, c := range e.chains {
			if seen[id].chain != c { // else its proof is of the epoch that it was seen in
				seen[id] = last{e, c}
			}
		}
	}
}

// fork is the evidence against a chain, without its sides.
func (*histories) fork(c *apiChain) *ledger.ChainFork {
	return &ledger.ChainFork{Workspace: c.Workspace, Incarnation: c.Incarnation, Lane: c.Lane, Chain: c.Chain}
}

// side is what an epoch states of a chain; of none that it does not have it.
func (h *histories) side(e *statedEpoch, c *apiChain) *ledger.StatedChain {
	s := &ledger.StatedChain{Epoch: e.answer.Epoch, LogProof: e.answer.LogProof, Keys: h.keys}
	if c != nil {
		s.Size, s.Root, s.Map = c.Size, c.Root, c.Map
	}
	return s
}

// marks are the sizes at which a chain's roots are compared: as older epochs state it, as it was verified before, and last as the newest
// epoch states it.
func (h *histories) marks(c *apiChain) []ledger.Mark {
	type stated struct {
		mark ledger.Mark
		side func() *ledger.StatedChain
	}
	var all []stated
	for _, e := range h.epochs[:len(h.epochs)-1] {
		was := e.chains[c.Chain]
		if was == nil || was.Size > c.Size { // of the latter it has been said
			continue
		}
		if n := len(all); n > 0 && *all[n-1].mark.Want == was.Root && all[n-1].mark.Size == was.Size {
			continue
		}
		all = append(all, stated{ledger.Mark{Size: was.Size, Want: &was.Root, Older: true, Covered: e.entry.Time}, func() *ledger.StatedChain { return h.side(e, was) }})
	}
	if m, ok := memoryMark(h.a.remembered, c.Chain); ok && m.Size <= c.Size {
		all = append(all, stated{m, func() *ledger.StatedChain { return h.a.remembered.Chains[c.Chain].Stated }})
	} else if ok {
		h.keepFall(h.fork(c), h.side(h.newest(), c), fmt.Sprintf("it has %d leaves, it had %d when it was verified before", c.Size, m.Size))
	}
	slices.SortStableFunc(all, func(a, b stated) int { return cmp.Compare(a.mark.Size, b.mark.Size) })
	e := h.newest()
	all = append(all, stated{ledger.Mark{Size: c.Size, Want: &c.Root, Covered: e.entry.Time}, func() *ledger.StatedChain { return h.side(e, c) }})
	var marks []ledger.Mark
	for _, s := range all {
		marks = append(marks, s.mark)
		h.sides[c.Chain] = append(h.sides[c.Chain], s.side)
	}
	return marks
}

// keepFall reports a chain that the newest epoch has with fewer leaves than when it was verified before, or has not, and keeps the proof of that: newer is
// nil where nothing proves what the newest epoch has.
func (h *histories) keepFall(f *ledger.ChainFork, newer *ledger.StatedChain, detail string) {
	h.report.fault(&ledger.Fault{Verdict: ledger.RolledBack, Chain: &f.Chain, Detail: detail})
	older := h.a.remembered.Chains[f.Chain].Stated
	if older == nil || newer == nil {
		h.report.notef("no evidence can be made of what chain %x was: nothing ties both what is remembered of it and what is there now to signed epochs", f.Chain)
		return
	}
	f.Detail, f.Older, f.Newer = detail, *older, *newer
	h.keepChainFork(f)
}

// checkForgotten: a chain that was verified before is still there. Of those that are gone it has been said. One that is only not shown contradicts nothing
// that is signed.
func (h *histories) checkForgotten(results []*chainResult) {
	if h.a.remembered == nil {
		return
	}
	here, workspaces := map[ledger.ChainID]bool{}, map[[16]byte]bool{h.newest().answer.Workspace: true}
	for _, r := range results {
		here[r.id], workspaces[r.identity.Workspace] = true, true
	}
	for _, id := range slices.SortedFunc(maps.Keys(h.a.remembered.Chains), compareChains) {
		if here[id] || h.gone[id] {
			continue
		}
		c := h.a.remembered.Chains[id]
		f, newer := h.absence(id)
		switch {
		case newer != nil:
			h.keepFall(f, newer, fmt.Sprintf("it had %d leaves when it was verified before, and is not there any more", c.Size))
		case workspaces[c.Workspace]:
			h.report.undecided("chain %x had %d leaves when it was verified before, and is neither shown nor proven to be gone", id, c.Size)
		}
	}
}

// absence is the newest epoch's proof that it does not have a chain, nil where it does not prove that.
func (h *histories) absence(id ledger.ChainID) (*ledger.ChainFork, *ledger.StatedChain) {
	e := h.newest()
	for _, a := range e.answer.Absent {
		if proof := e.absent[id]; a.Chain == id && proof != nil {
			gone := h.side(e, nil)
			gone.Map = *proof
			return &ledger.ChainFork{Workspace: e.answer.Workspace, Incarnation: e.answer.Incarnation, Lane: a.Lane, Chain: id}, gone
		}
	}
	return &ledger.ChainFork{Chain: id}, nil
}

// keepForks keeps the evidence against each chain of which two epochs state two histories.
func (h *histories) keepForks(results []*chainResult) {
	for _, r := range results {
		for _, d := range r.divergences {
			older, newer := h.sides[r.id][d.Older](), h.sides[r.id][d.Newer]()
			if older == nil || newer == nil {
				h.report.notef("no evidence can be made of what chain %x was: nothing ties what is remembered of it to a signed epoch", r.id)
				continue
			}
			f := h.fork(h.newest().chains[r.id])
			f.Older, f.Newer, f.Range, f.Rest = *older, *newer, d.Range, d.Rest
			f.Detail = fmt.Sprintf("the chain's first %d leaves, as the epoch that has it with %d states them, are not those that the older epoch states",
				f.Older.Size, f.Newer.Size)
			h.keepChainFork(f)
		}
	}
}

// remembered are the chains that hold, with what convicts whoever states them otherwise later.
func (h *histories) remembered(results []*chainResult) map[ledger.ChainID]rememberedChain {
	all := remembered(results)
	for id, c := range all {
		if is := h.newest().chains[id]; is != nil && is.Size == c.Size && is.Root == c.Root {
			c.Stated = h.side(h.newest(), is)
			all[id] = c
		}
	}
	return all
}

// askWitnessed asks for the chains by the newest checkpoint that witnesses have signed, where too few have signed the one of an answer. It
// returns nil where the answer is what there is to verify.
func (v *apiVerifier) askWitnessed(ctx context.Context, answer *chainsAnswer) (*chainsAnswer, error) {
	newest, f := v.openQuietly(answer)
	if f == nil || f.Verdict != ledger.QuorumNotMet {
		return nil, nil //nolint:nilnil // there is nothing to ask
	}
	before := v.rememberedCheckpoint(newest.Origin)
	if before != nil && before.Size == newest.Size && before.Root != newest.Root { // it contradicts what was accepted before, whoever has seen it
		return nil, nil //nolint:nilnil // accepting it says so
	}
	older, err := v.chains(ctx, "?witnessed=true", v.client.MaxAnswerBytes)
	if status, ok := errors.AsType[*statusError](err); ok && status.status < 500 { // there is none
		return nil, nil //nolint:nilnil // the newest is what there is
	}
	if err != nil {
		return nil, err
	}
	opened, f := v.openQuietly(older)
	if f != nil || opened.Origin != newest.Origin || opened.Size > newest.Size || before != nil && opened.Size < before.Size {
		return nil, nil //nolint:nilnil // it is no better, and what is wrong with the newest is said
	}
	now, err := ledger.ParseEntry([]byte(answer.Data.Epoch))
	if err != nil {
		return nil, nil //nolint:nilerr,nilnil // the check of the newest says it
	}
	then, err := ledger.ParseEntry([]byte(older.Data.Epoch))
	if err != nil {
		return nil, nil //nolint:nilerr,nilnil // it is no better
	}
	epochs := int64(now.Index-then.Index) - int64(len(answer.Data.Keys)-len(older.Data.Keys))
	v.behind = &BehindReport{Size: newest.Size, Epochs: epochs, Seconds: now.Time.Sub(then.Time).Seconds()}
	v.report.notef("the newest checkpoint, of size %d, has too few cosignatures: all is verified by that of size %d, which has enough, %d epochs and %s before it",
		newest.Size, opened.Size, epochs, now.Time.Sub(then.Time).Round(time.Second))
	return older, nil
}

// openQuietly opens the checkpoint of an answer without a word in the report.
func (v *apiVerifier) openQuietly(answer *chainsAnswer) (*ledger.Opened, *ledger.Fault) {
	p, stated, err := answer.logProof()
	if err != nil {
		return nil, &ledger.Fault{Verdict: ledger.InvalidProof}
	}
	keys, err := ledger.ProvenKeys(answer.Data.Keys, stated)
	if err != nil {
		return nil, &ledger.Fault{Verdict: ledger.InvalidProof}
	}
	opened, f := v.cfg.Trust.Open(p.Checkpoint, keys, v.cfg.Now)
	if f != nil && f.Verdict == ledger.QuorumNotMet {
		opened, _ = v.cfg.Trust.WithoutQuorum().Open(p.Checkpoint, keys, v.cfg.Now)
	}
	return opened, f
}
