package verify

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go/proto"

	"getimmutable.dev/immutable/ledger"
)

// RootLog compares the table root_log with the root that the root log has at a size, and the newest row of checkpoints with root_log, with its own
// note, and with the key that the root log states. behind: root_log has not come to that size yet, and only the second was done.
func (p *Parts) RootLog(ctx context.Context, size uint64, root ledger.Hash, now time.Time) (faults []*ledger.Fault, behind bool, err error) {
	fault := func(v ledger.Verdict, format string, args ...any) {
		faults = append(faults, &ledger.Fault{Verdict: v, Detail: fmt.Sprintf(format, args...)})
	}
	have, err := p.store.number(ctx, "SELECT if(count() = 0, 0, max(entry_index) + 1) FROM root_log")
	if err != nil {
		return nil, false, fmt.Errorf("verifying the root log: %w", err)
	}
	compare := func(size uint64, want ledger.Hash, stated string) error {
		got, bad, err := p.logRoot(ctx, size)
		switch {
		case err != nil:
			return fmt.Errorf("verifying the root log: %w", err)
		case bad != nil && bad.rows == 0:
			fault(ledger.Missing, "root log: entry %d is not stored", bad.sequence)
		case bad != nil:
			fault(ledger.Modified, "root log: entry %d is stored with other hashes than one, or without its node", bad.sequence)
		case got != want:
			fault(ledger.Modified, "root log: its hashes give root %x at size %d, %s %x", got, size, stated, want)
		}
		return nil
	}
	if behind = have < size; !behind && size > 0 {
		if err := compare(size, root, "the notary has"); err != nil {
			return nil, false, err
		}
	}
	var newest *storedCheckpoint
	err = p.store.checkpoints(ctx, "ORDER BY size DESC, witnesses DESC", 1, func(c *storedCheckpoint) error {
		newest = c
		return nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("verifying the newest checkpoint: %w", err)
	}
	if newest == nil {
		return faults, behind, nil
	}
	stated, err := ledger.ParseCheckpoint([]byte(newest.note))
	switch {
	case err != nil:
		fault(ledger.Modified, "checkpoint of size %d: %v", newest.size, err)
	case stated.Size != newest.size || stated.Root != newest.root:
		fault(ledger.ColumnMismatch, "checkpoint of size %d: its columns are not what its note states", newest.size)
	default:
		if err := compare(newest.size, newest.root, "its checkpoint states"); err != nil {
			return nil, false, err
		}
		f, err := p.signature(ctx, stated, newest.note, now)
		if err != nil {
			return nil, false, fmt.Errorf("verifying the newest checkpoint: %w", err)
		}
		faults = appendFault(faults, f)
	}
	return faults, behind, nil
}

// logRoot recomputes the root of root_log at a size, which is not 0, from what is stored beside its entries.
func (p *Parts) logRoot(ctx context.Context, size uint64) (ledger.Hash, *badHash, error) {
	plan := ledger.SubtreesBetween(0, size)
	stored, bad, err := p.store.hashes(ctx, "root_log", "entry_index", "hash", "1", plan)
	if err != nil || bad != nil {
		return ledger.Hash{}, bad, err
	}
	subtrees, err := plan.Build(stored)
	if err != nil {
		return ledger.Hash{}, nil, err
	}
	return (&ledger.Head{Range: subtrees}).Root(), nil, nil
}

// signature opens the note with the keys that the root log states. Nothing says here that its first key is the right one: that needs a trust file.
func (p *Parts) signature(ctx context.Context, stated *ledger.Checkpoint, note string, now time.Time) (*ledger.Fault, error) {
	texts, err := p.store.keyChanges(ctx)
	if err != nil {
		return nil, err
	}
	var keys ledger.KeyHistory
	first := ""
	for _, text := range texts {
		e, err := ledger.ParseEntry([]byte(text))
		if err == nil && e.Index >= stated.Size {
			break
		}
		if err == nil {
			err = keys.Append(stated.Origin, e)
		}
		if err != nil {
			return &ledger.Fault{Verdict: ledger.Modified, Detail: fmt.Sprintf("root log: a key change: %v", err)}, nil
		}
		if first == "" {
			first = e.Key.VerifierKey
		}
	}
	trust, err := ledger.ParseTrust([]byte(first))
	if err != nil {
		return &ledger.Fault{Verdict: ledger.Missing, Detail: "root log: it states no key"}, nil //nolint:nilerr // it is the fault
	}
	_, f := trust.Open([]byte(note), keys, now)
	return f, nil
}

// Strangers are rows of events that belong to no chain that is known.
type Strangers struct {
	Workspace [16]byte
	Chain     ledger.ChainID
	// Rows of them, and Sequence the smallest.
	Rows, Sequence uint64
}

// Strangers lists rows of events of chains for which known says no, and which the epoch with these cuts would cover. It reads a column of the whole
// table.
func (p *Parts) Strangers(ctx context.Context, positions []uint64, known func(workspace [16]byte, chain ledger.ChainID) bool) ([]Strangers, error) {
	if len(positions) == 0 {
		return nil, nil
	}
	var cuts strings.Builder
	for i, position := range positions {
		if i > 0 {
			cuts.WriteByte(',')
		}
		fmt.Fprintf(&cuts, "%d", position)
	}
	workspace, chain := proto.ColFixedStr{Size: 16}, proto.ColFixedStr{Size: 16}
	var rows, sequence proto.ColUInt64
	// Beyond the last partition the array answers 0.
	text := fmt.Sprintf("SELECT workspace, chain, count() AS n, min(sequence) AS first FROM events "+
		"WHERE ledger_offset < [%s][ledger_partition + 1] OR ledger_partition >= %d GROUP BY workspace, chain", cuts.String(), len(positions))
	results := proto.Results{
		{Name: "workspace", Data: &workspace}, {Name: "chain", Data: &chain}, {Name: "n", Data: &rows}, {Name: "first", Data: &sequence},
	}
	var found []Strangers
	err := p.store.query(ctx, text, results, func(n int) error {
		for i := range n {
			s := Strangers{[16]byte(workspace.Row(i)), ledger.ChainID(chain.Row(i)), rows[i], sequence[i]}
			if !known(s.Workspace, s.Chain) && len(found) < maxListed {
				found = append(found, s)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking for rows of unknown chains: %w", err)
	}
	return found, nil
}
