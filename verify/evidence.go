package verify

import (
	"context"
	"encoding/base64"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"

	"getimmutable.dev/immutable/ledger"
)

// maxEvidence bounds the files that are written.
const maxEvidence = 16

// forkOf is the evidence that a checkpoint is not of the history of the one that was accepted before, without what shows it where their sizes differ.
func (*acceptance) forkOf(old *rememberedLog, opened *ledger.Opened, keys ledger.KeyHistory) *ledger.LogFork {
	return &ledger.LogFork{
		Origin: opened.Origin, Checkpoints: [2]string{old.Checkpoint, string(opened.Signed)}, Keys: [2][]string{old.Keys, entryTexts(keys)},
	}
}

// entryTexts are the texts of key changes.
func entryTexts(keys ledger.KeyHistory) []string {
	texts := []string{}
	for _, e := range keys.Entries() {
		if text, err := e.Encode(); err == nil { // it was read
			texts = append(texts, string(text))
		}
	}
	return texts
}

// forkAt is the evidence that a signed checkpoint is not the beginning of the accepted one. begin is the accepted log at its size.
func (a *acceptance) forkAt(ctx context.Context, log rootLog, r *accepted, size uint64, signed []byte, begin ledger.Head) *ledger.LogFork {
	keys := entryTexts(r.replay.keys)
	f := &ledger.LogFork{Origin: r.Origin, Checkpoints: [2]string{string(r.Signed), string(signed)}, Keys: [2][]string{keys, keys}}
	if size < r.Size {
		f.Checkpoints[0], f.Checkpoints[1] = f.Checkpoints[1], f.Checkpoints[0]
		a.showBeginning(ctx, log, f, begin, r.Size)
	}
	return f
}

// showBeginning adds to the evidence what the larger log begins with, as it was at the smaller one's size, and the subtrees from there on.
func (a *acceptance) showBeginning(ctx context.Context, log rootLog, f *ledger.LogFork, begin ledger.Head, size uint64) {
	factory := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	rest := factory.NewEmptyRange(begin.Size)
	err := log.rows(ctx, begin.Size, size, func(row *logRow) error {
		hash := ledger.EntryHash(row.entry)
		return rest.Append(hash[:], nil)
	})
	if err != nil {
		a.report.undecided("reading the root log again for the evidence of the fork: %v", err)
	}
	f.Range = begin.Range
	for _, hash := range rest.Hashes() {
		f.Rest = append(f.Rest, ledger.Hash(hash))
	}
}

// fork reports that a log has two histories, and keeps the proof.
func (a *acceptance) fork(f *ledger.LogFork, format string, args ...any) {
	f.Detail = fmt.Sprintf(format, args...)
	a.report.convicted = true
	a.report.faultf(ledger.Forked, "%s", f.Detail)
	a.keepFork(f)
}

// full says whether no more evidence is written, and the report.
func (a *acceptance) full() bool {
	if len(a.report.Evidence) < maxEvidence {
		return false
	}
	a.report.notef("only the first %d proofs are written to files", maxEvidence)
	return true
}

// keepFork keeps the proof that a log has two histories, where it is one.
func (a *acceptance) keepFork(f *ledger.LogFork) {
	if a.full() {
		return
	}
	if err := f.Verify(a.cfg.Trust, a.cfg.Now); err != nil {
		a.report.undecided("no evidence can be made of the fork: %v", err)
		return
	}
	f.FoundAt = a.cfg.Now.UTC()
	var roots []byte
	size := uint64(0)
	for _, signed := range f.Checkpoints {
		if c, err := ledger.ParseCheckpoint([]byte(signed)); err == nil { // it was verified
			roots, size = append(roots, c.Root[:6]...), c.Size
		}
	}
	text, err := f.Encode()
	a.writeEvidence(fmt.Sprintf("fork-%s-%d.json", base64.RawURLEncoding.EncodeToString(roots), size), text, err)
}

// keepChainFork keeps the proof that two epochs state two histories of a chain, where it is one.
func (a *acceptance) keepChainFork(f *ledger.ChainFork) {
	if a.full() {
		return
	}
	if err := f.Verify(a.cfg.Trust, a.cfg.Now); err != nil {
		a.report.undecided("no evidence can be made of what chain %x was: %v", f.Chain, err)
		return
	}
	f.FoundAt = a.cfg.Now.UTC()
	text, err := f.Encode()
	a.writeEvidence(fmt.Sprintf("chain-fork-%x-%d.json", f.Chain, f.Older.Size), text, err)
}

// writeEvidence writes a file, unless it could not be encoded.
func (a *acceptance) writeEvidence(name string, text []byte, err error) {
	path := filepath.Join(a.cfg.EvidenceDir, name)
	if err == nil {
		err = writeFile(path, text)
	}
	if err != nil {
		a.report.undecided("the evidence of the fork could not be written: %v", err)
		return
	}
	if !slices.Contains(a.report.Evidence, path) { // an older epoch and the memory may show the same
		a.report.Evidence = append(a.report.Evidence, path)
	}
}
