package query

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/transparency-dev/formats/proof"

	"getimmutable.dev/immutable/ledger"
)

// keepCurrent looks for newer checkpoints until ctx ends.
func (s *Service) keepCurrent(ctx context.Context) {
	tick := time.NewTicker(s.cfg.CheckpointInterval)
	defer tick.Stop()
	for {
		err := s.refresh(ctx)
		if ctx.Err() != nil {
			return
		}
		s.roots.note(ctx, err)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// note remembers why proofs cannot be made, nil if they can. While ClickHouse cannot be asked, what is known stays good.
func (r *roots) note(ctx context.Context, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil && !errors.Is(err, errDamaged) {
		return
	}
	if err != nil && (r.broken == nil || r.broken.Error() != err.Error()) {
		r.metrics.mapMismatches.Inc()
		r.logger.ErrorContext(ctx, "no proofs can be made of the newest checkpoint", "error", err)
	}
	r.broken = err
}

// refresh brings the map to the newest epoch that is covered by the newest checkpoint and known from Kafka.
func (s *Service) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout)
	defer cancel()
	c, err := s.newestCheckpoint(ctx)
	if err != nil || c == nil {
		return err
	}
	r := s.roots
	r.mu.Lock()
	r.newest = time.UnixMicro(c.published)
	m := r.reading
	seen := basis{m: m, size: c.size, witnesses: c.witnesses}
	if m != nil {
		seen.entries = min(c.size, m.complete)
	}
	nothingNew := m == nil || r.broken == nil && r.seen == seen
	r.mu.Unlock()
	if nothingNew {
		return nil
	}
	epoch, err := s.newestEpoch(ctx, seen.entries)
	if err != nil || epoch == nil {
		return err
	}
	next, err := s.snapshot(ctx, c, epoch)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = seen
	if epoch.index < m.floor || m.known && epoch.index < m.epoch {
		return nil // a checkpoint to come covers what has been read; until then what is served stays good
	}
	m.advance(epoch.index)
	if root, want := m.tree.Root(), next.epoch.Epoch; root != want.MapRoot || uint64(m.tree.Len()) != want.Chains {
		r.current = nil
		return fmt.Errorf("%w: the map of %d chains at epoch %d has root %x, and the epoch states %x of %d",
			errDamaged, m.tree.Len(), epoch.index, root, want.MapRoot, want.Chains)
	}
	r.serving, r.current = m, next
	s.metrics.mapChains.Set(float64(m.tree.Len()))
	return nil
}

// snapshot makes what all proofs by a checkpoint and an epoch have in common, and checks it.
func (s *Service) snapshot(ctx context.Context, c *checkpointRow, epoch *entryRow) (*snapshot, error) {
	changes, err := s.keyChanges(ctx, c.size)
	if err != nil {
		return nil, err
	}
	next := &snapshot{checkpoint: *c, index: epoch.index, text: string(epoch.text)}
	if next.epoch, err = ledger.ParseEntry(epoch.text); err == nil && (next.epoch.Epoch == nil || next.epoch.Index != epoch.index) {
		err = errors.New("it is another entry")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: epoch %d: %w", errDamaged, epoch.index, err)
	}
	paths, err := s.logPaths(ctx, c, append(slices.Clone(changes), *epoch))
	if err != nil {
		return nil, err
	}
	if next.trust, _, err = open(c, changes); err != nil {
		return nil, err
	}
	for i, change := range changes {
		next.keys = append(next.keys, ledger.BundleKey{Entry: string(change.text), Path: paths[i]})
	}
	p := proof.TLogProof{Index: epoch.index, Checkpoint: c.note}
	for _, h := range paths[len(changes)] {
		p.Hashes = append(p.Hashes, h)
	}
	next.logProof = string(p.Marshal())
	return next, nil
}

// open checks a checkpoint by the keys that its own log states, and returns who trusts the first of them, and the one that has
// signed.
func open(c *checkpointRow, changes []entryRow) (*ledger.Trust, *ledger.Opened, error) {
	stated, err := ledger.ParseCheckpoint(c.note)
	if err == nil && (stated.Size != c.size || stated.Root != c.root) {
		err = fmt.Errorf("its note states size %d and root %x", stated.Size, stated.Root)
	}
	if err == nil && (len(changes) == 0 || len(changes) > maxKeyChanges) {
		err = fmt.Errorf("the root log has %d key changes before it", len(changes))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w: checkpoint of size %d: %w", errDamaged, c.size, err)
	}
	var keys ledger.KeyHistory
	var trust *ledger.Trust
	for i, change := range changes {
		e, err := ledger.ParseEntry(change.text)
		if err == nil {
			err = keys.Append(stated.Origin, e)
		}
		if err == nil && i == 0 {
			trust, err = ledger.ParseTrust([]byte(e.Key.VerifierKey))
		}
		if err != nil {
			return nil, nil, fmt.Errorf("%w: key change %d: %w", errDamaged, change.index, err)
		}
	}
	opened, fault := trust.Open(c.note, keys, time.Now())
	if fault != nil {
		return nil, nil, fmt.Errorf("%w: checkpoint of size %d: %s", errDamaged, c.size, fault)
	}
	return trust, opened, nil
}

// signedBy returns which key has signed a checkpoint, NAME+HASH.
func (s *Service) signedBy(ctx context.Context, c *checkpointRow) (string, error) {
	changes, err := s.keyChanges(ctx, c.size)
	if err != nil {
		return "", err
	}
	_, opened, err := open(c, changes)
	if err != nil {
		return "", err
	}
	return opened.Key, nil
}

// rootAt returns the root that the stored root log has at a size.
func (s *Service) rootAt(ctx context.Context, size uint64) (ledger.Hash, error) {
	plan := ledger.PerfectSubtrees(size)
	subtrees, err := s.build(ctx, rootLogTree(), []*ledger.ProofPlan{plan})
	if err != nil {
		return ledger.Hash{}, err
	}
	head := ledger.Head{Size: size, Range: subtrees[0]}
	return head.Root(), nil
}

// logPaths returns the inclusion of entries in the root log of a checkpoint. Each leads to its root.
func (s *Service) logPaths(ctx context.Context, c *checkpointRow, entries []entryRow) ([][]ledger.Hash, error) {
	plans := make([]*ledger.ProofPlan, len(entries))
	for i, e := range entries {
		var err error
		if plans[i], err = ledger.PlanInclusion(e.index, c.size); err != nil {
			return nil, fmt.Errorf("%w: %w", errDamaged, err)
		}
	}
	paths, err := s.build(ctx, rootLogTree(), plans)
	if err != nil {
		return nil, err
	}
	for i, e := range entries {
		if err := ledger.VerifyInclusion(ledger.EntryHash(e.text), e.index, c.size, paths[i], c.root); err != nil {
			return nil, fmt.Errorf("%w: entry %d of the root log: %w", errDamaged, e.index, err)
		}
	}
	return paths, nil
}

// build makes proofs of stored hashes, which are read together.
func (s *Service) build(ctx context.Context, t storedTree, plans []*ledger.ProofPlan) ([][]ledger.Hash, error) {
	var spans []ledger.Span
	for _, p := range plans {
		spans = append(spans, p.Spans()...)
	}
	stored, err := s.hashes(ctx, t, spans)
	if err != nil {
		return nil, err
	}
	paths := make([][]ledger.Hash, len(plans))
	for i, p := range plans {
		n := len(p.Spans())
		if paths[i], err = p.Build(stored[:n]); err != nil {
			return nil, err
		}
		stored = stored[n:]
	}
	return paths, nil
}
