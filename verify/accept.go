package verify

import (
	"context"
	"maps"
	"reflect"
	"time"

	"getimmutable.dev/immutable/ledger"
)

// accepted is a checkpoint that is believed, with the root log that it states.
type accepted struct {
	*ledger.Opened

	replay *replay
	// remembered is what was accepted of this log before; nil where nothing was.
	remembered *rememberedLog
	forked     bool
	// sources are remembered too.
	sources map[string]rememberedWorkspace
}

// acceptance is what one run needs to accept a checkpoint.
type acceptance struct {
	cfg    *Config
	report *Report
	memory *memory
	// whole replays the root log from its first entry, whatever is remembered.
	whole bool
	// stored are other sizes at which roots are wanted.
	sizes []uint64
}

// accept checks a signed checkpoint: first by the key changes that the source names, so that what comes next is not done for anybody; then, once
// the root log has been replayed, by those that it states, and against what is remembered. It returns nil where nothing is believed.
func (a *acceptance) accept(ctx context.Context, signed []byte, named ledger.KeyHistory, log rootLog) (*accepted, error) {
	opened, believed := a.open(signed, named)
	if opened == nil {
		return nil, nil //nolint:nilnil // the report says why
	}
	old, oldSize, fork := a.recall(opened, named)
	if fork || !believed && old == nil {
		return nil, nil //nolint:nilnil // the report says why
	}
	p, err := a.replayTo(ctx, log, opened, old, oldSize)
	if err != nil {
		return nil, err
	}
	result := &accepted{Opened: opened, replay: p, remembered: old}
	a.checkRoot(ctx, log, result, oldSize)
	if !believed {
		return nil, nil //nolint:nilnil // the report says why, and whether it contradicts what was accepted before
	}
	// The keys that the root log states are the ones that count.
	if p.faults == 0 {
		if opened, believed = a.open(signed, p.keys); !believed {
			return nil, nil //nolint:nilnil // the report says why
		}
	}
	a.report.witnessed = a.cfg.Trust.Witnessed()
	a.report.Checkpoint = &CheckpointReport{
		Origin: opened.Origin, Size: opened.Size, Root: opened.Root, Key: opened.Key, Witnesses: orEmpty(opened.Witnesses),
		WitnessedAt: opened.Seen,
	}
	a.checkAge(opened, p)
	return result, nil
}

// open believes a checkpoint, or says why not. One that is not believed for want of witnesses is returned all the same: it is what
// its log has signed, and evidence if it contradicts what was accepted before.
func (a *acceptance) open(signed []byte, keys ledger.KeyHistory) (opened *ledger.Opened, believed bool) {
	opened, f := a.cfg.Trust.Open(signed, keys, a.cfg.Now)
	if a.report.believed = f == nil; f == nil {
		return opened, true
	}
	a.report.fault(f)
	if f.Verdict != ledger.QuorumNotMet {
		return nil, false
	}
	opened, _ = a.cfg.Trust.WithoutQuorum().Open(signed, keys, a.cfg.Now)
	return opened, false
}

// recall compares a checkpoint with the one that was accepted before, as far as that can be done without the log.
func (a *acceptance) recall(opened *ledger.Opened, keys ledger.KeyHistory) (old *rememberedLog, size uint64, fork bool) {
	old, size, fork = a.recallSame(opened, keys)
	switch {
	case old == nil && a.cfg.MemoryFile != "":
		a.report.notef("nothing is remembered of log %q: this checkpoint is the first that is accepted", opened.Origin)
	case old != nil && opened.Size < size:
		a.report.convicted = true
		a.report.faultf(ledger.RolledBack, "the newest checkpoint has size %d, one of size %d was accepted before", opened.Size, size)
	}
	return old, size, fork
}

// recallSame compares a checkpoint with the one that was accepted before where both have one size.
func (a *acceptance) recallSame(opened *ledger.Opened, keys ledger.KeyHistory) (old *rememberedLog, size uint64, fork bool) {
	old, before := a.memory.Logs[opened.Origin], a.rememberedCheckpoint(opened.Origin)
	if before == nil {
		return nil, 0, false
	}
	if opened.Size == before.Size && opened.Root != before.Root {
		a.fork(a.forkOf(old, opened, keys), "two checkpoints of size %d have different roots", opened.Size)
		return old, before.Size, true
	}
	return old, before.Size, false
}

// rememberedCheckpoint is the one that was accepted before; nil where none was.
func (a *acceptance) rememberedCheckpoint(origin string) *ledger.Checkpoint {
	old := a.memory.Logs[origin]
	if old == nil {
		return nil
	}
	c, err := ledger.ParseCheckpoint([]byte(old.Checkpoint))
	if err != nil { // loadMemory has read it
		return nil
	}
	return c
}

// replayTo replays the root log: from what is remembered where that leads to the checkpoint's root, else from the beginning.
func (a *acceptance) replayTo(ctx context.Context, log rootLog, opened *ledger.Opened, old *rememberedLog, oldSize uint64) (*replay, error) {
	if old != nil && !a.whole && oldSize <= opened.Size {
		tried := newReport("", a.cfg.MaxFaults)
		p := newReplay(tried, opened.Origin, oldSize, opened.Size)
		if err := p.from(old, oldSize); err != nil {
			return nil, err
		}
		err := p.run(ctx, log, opened.Size)
		if err == nil && len(tried.Faults) == 0 && !p.manyKeys && p.roots[opened.Size] == opened.Root && p.epochs.newest != nil {
			p.report = a.report
			a.report.Entries += tried.Entries
			return p, nil
		}
	}
	p := newReplay(a.report, opened.Origin, append([]uint64{oldSize, opened.Size}, a.sizes...)...)
	p.epochs.picked = pickEpochs(opened.Size, a.cfg.Epochs-1)
	return p, p.run(ctx, log, opened.Size)
}

// checkRoot compares the replayed log with the checkpoint and with what is remembered.
func (a *acceptance) checkRoot(ctx context.Context, log rootLog, r *accepted, oldSize uint64) {
	root, known := r.replay.roots[r.Size]
	switch {
	case !known: // what is missing has been said
	case root == r.Root:
		before, was := r.replay.roots[oldSize]
		if r.remembered != nil && was && oldSize <= r.Size && before != (&ledger.Head{Range: r.remembered.Range}).Root() {
			r.forked = true
			f := a.forkOf(r.remembered, r.Opened, r.replay.keys)
			a.showBeginning(ctx, log, f, r.replay.states[oldSize], r.Size)
			a.fork(f, "the checkpoint of size %d that was accepted before is not the beginning of that of size %d", oldSize, r.Size)
		}
	case r.replay.faults == 0:
		r.replay.fault(ledger.Modified, 0, r.Size-1, "its entries give root %x, the checkpoint states %x", root, r.Root)
	}
}

// checkAge looks at how old the newest epoch is, and whether the log was silent before it.
func (a *acceptance) checkAge(c *ledger.Opened, p *replay) {
	e := p.epochs.newest
	if e == nil {
		a.report.undecided("%v", errNoEpoch)
		return
	}
	if e.Time.After(a.cfg.Now.Add(ledger.MaxClockSkew)) {
		a.report.undecided("the newest epoch is of %s, which is ahead of this machine's clock: one of the two clocks is wrong", e.Time.Format(time.RFC3339))
	}
	a.report.Checkpoint.Epoch, a.report.Checkpoint.EpochTime = e.Index, e.Time
	age, what := a.age(c, e)
	switch {
	case a.cfg.MaxAge > 0 && age > a.cfg.MaxAge:
		a.report.faultf(ledger.Stale, "%s %s, at most %s are accepted: what came after it may be withheld", what, age, a.cfg.MaxAge)
	case a.cfg.MaxAge == 0:
		a.report.notChecked("the age of the newest epoch: %s %s", what, age)
	}
	if s := &p.silence; s.count > 0 {
		a.report.notef("the root log was silent for more than %s %d times, for %s before epoch %d of %s at most: it has an epoch each minute, and whoever "+
			"holds its key decides when", maxSilence, s.count, s.longest, s.before.Index, s.before.Time.Format(time.RFC3339))
	}
}

// age is how old an epoch is at least. Whoever holds the log's key writes into it what he likes, and cannot write when witnesses have seen it: where some
// have to, the older of both counts.
func (a *acceptance) age(c *ledger.Opened, e *ledger.Entry) (age time.Duration, what string) {
	at, what := e.Time, "the epoch's age is"
	if !c.Seen.IsZero() && c.Seen.Before(at) {
		at, what = c.Seen, "the witnesses' cosignatures are of an age of"
	}
	return a.cfg.Now.Sub(at).Truncate(time.Second), what
}

// orEmpty is [] in JSON, not null.
func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

// remember puts what was accepted into the memory file: nothing of a run that has proven tampering, or the next would take what was
// tampered with for the truth. Chains are those that were recomputed without a fault.
func (a *acceptance) remember(ctx context.Context, r *accepted, chains map[ledger.ChainID]rememberedChain) error {
	if a.cfg.MemoryFile == "" || r == nil {
		return nil
	}
	if r.forked || r.replay.faults > 0 || r.replay.manyKeys || a.report.tampered() {
		a.report.notef("the checkpoint is not remembered")
		return nil
	}
	head, ok := r.replay.states[r.Size]
	if !ok || r.replay.epochs.newest == nil {
		return nil
	}
	epoch, err := r.replay.epochs.newest.Encode()
	if err != nil {
		return err
	}
	l := &rememberedLog{
		Checkpoint: string(r.Signed), Range: head.Range, LastHash: head.LastLeafHash, Keys: r.replay.keyEntries, Epoch: string(epoch),
		Chains: map[ledger.ChainID]rememberedChain{}, Sources: map[string]rememberedWorkspace{},
	}
	maps.Copy(l.Sources, r.sources)
	if r.remembered != nil {
		maps.Copy(l.Chains, r.remembered.Chains)
		maps.Copy(l.Sources, r.remembered.Sources) // a key stays that of the workspace that it was first for
	}
	maps.Copy(l.Chains, chains)
	return updateMemory(ctx, a.cfg.MemoryFile, a.cfg.MemoryWait, func(m *memory) error {
		now := m.Logs[r.Origin]
		if now == nil || reflect.DeepEqual(now, r.remembered) || a.join(r, l, now) {
			m.Logs[r.Origin] = l
		}
		return nil
	})
}

// join adds what another run has remembered of the log since this one read the memory. It says whether both may be written as one: what the other
// run has accepted by another checkpoint was not compared with this one's.
func (a *acceptance) join(r *accepted, l, other *rememberedLog) bool {
	its, err := ledger.ParseCheckpoint([]byte(other.Checkpoint))
	if err != nil { // loadMemory has read it
		return false
	}
	if its.Size != r.Size {
		a.report.undecided("another run has accepted a checkpoint of size %d meanwhile: run again", its.Size)
		return false
	}
	if its.Root != r.Root {
		a.fork(a.forkOf(other, r.Opened, r.replay.keys), "another run has accepted a checkpoint of size %d with another root meanwhile", its.Size)
		return false
	}
	forked := l.merge(other)
	if forked != nil {
		a.report.fault(&ledger.Fault{Verdict: ledger.Forked, Chain: forked, Detail: "another run has seen it with as many leaves and another root meanwhile"})
	}
	return forked == nil
}
