package verify

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"

	"getimmutable.dev/immutable/ledger"
)

// ErrUsage is wrapped by the errors of what cannot be worked with: a file that is no proof, a memory that cannot be read, a setting.
var ErrUsage = errors.New("cannot verify")

// Event verifies a proof bundle, offline. The error wraps ErrUsage.
func Event(cfg Config, path string) (*Report, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	m, err := loadMemory(cfg.MemoryFile)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	text, err := readFile(path, ledger.MaxBundleBytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	r := cfg.report(path)
	b, err := ledger.ParseBundle(text)
	switch {
	case errors.Is(err, json.ErrUnknownName) && bringsTrust(err):
		r.faultf(ledger.WrongKey, "the file has a member that a proof has no place for; keys and policies are the verifier's own: %v", err)
		return r.finish(), nil
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	a := &acceptance{cfg: &cfg, report: r, memory: m}
	a.bundle(b)
	return r.finish(), nil
}

// bundle verifies a bundle and compares its checkpoint with the remembered one, as far as that can be done offline.
func (a *acceptance) bundle(b *ledger.Bundle) {
	r := a.report
	result := b.Verify(a.cfg.Trust, a.cfg.Now)
	for _, f := range result.Faults {
		r.fault(f)
	}
	r.Chains, r.Leaves, r.content = 1, 1+uint64(len(b.Redactions)), true
	c, e := result.Checkpoint, result.Epoch
	r.believed = c != nil
	if c == nil || e == nil {
		return
	}
	r.witnessed = a.cfg.Trust.Witnessed()
	r.Checkpoint = &CheckpointReport{
		Origin: c.Origin, Size: c.Size, Root: c.Root, Key: c.Key, Witnesses: orEmpty(c.Witnesses), WitnessedAt: c.Seen,
		Epoch: e.Index, EpochTime: e.Time,
	}
	r.Entries, r.Epochs = 1+uint64(len(b.Keys)), 1
	if !slices.ContainsFunc(result.Faults, func(f *ledger.Fault) bool { return f.Verdict != ledger.Redacted }) {
		r.Event = proven(b, e)
	}
	r.notChecked("other events of the chain: the proof is of one")
	old, _, fork := a.recallSame(c, result.Keys)
	if old != nil && !fork {
		r.notChecked("whether the checkpoint of size %d and the one that was accepted before are of one history: `immutable verify ledger` does", c.Size)
	}
	if age, what := a.age(c, e); a.cfg.MaxAge > 0 && age > a.cfg.MaxAge {
		r.faultf(ledger.Stale, "%s %s, at most %s are accepted", what, age, a.cfg.MaxAge)
	}
}

// bringsTrust says whether the member of a bundle that is not known is one by which a proof would say whom to believe.
func bringsTrust(err error) bool {
	unknown, ok := errors.AsType[*json.SemanticError](err)
	if !ok {
		return false
	}
	name := strings.ToLower(unknown.JSONPointer.LastToken())
	return slices.ContainsFunc([]string{"key", "policy", "trust", "witness", "quorum", "signer", "verifier"}, func(word string) bool {
		return strings.Contains(name, word)
	})
}

// proven is what a bundle that holds says.
func proven(b *ledger.Bundle, e *ledger.Entry) *EventReport {
	r := &EventReport{ID: b.ID, Chain: b.Chain, Sequence: b.Sequence, RecordedAt: b.RecordedAt, EpochTime: e.Time, Body: b.Body}
	for _, d := range b.Disclosure {
		r.Fields = append(r.Fields, FieldReport{d.Path, d.Value})
	}
	return r
}
