package ledger

import (
	"fmt"
	"strings"
)

// Verdict names what verification found: docs/design/ledger-spec.md, Verdicts.
type Verdict string

// Verdicts. The first ones prove tampering; the next leave it open; the last are not faults.
const (
	Modified       Verdict = "MODIFIED"
	Missing        Verdict = "MISSING"
	Inserted       Verdict = "INSERTED"
	Reordered      Verdict = "REORDERED"
	Duplicate      Verdict = "DUPLICATE"
	Truncated      Verdict = "TRUNCATED"
	RolledBack     Verdict = "ROLLED BACK"
	Forked         Verdict = "FORKED"
	CrossChain     Verdict = "CROSS-CHAIN"
	NonCanonical   Verdict = "NON-CANONICAL"
	ColumnMismatch Verdict = "COLUMN MISMATCH"
	InputGap       Verdict = "INPUT GAP"
	InvalidProof   Verdict = "INVALID PROOF"

	TimeAnomaly  Verdict = "TIME ANOMALY"
	Withheld     Verdict = "WITHHELD"
	UnsealedTail Verdict = "UNSEALED TAIL"
	Stale        Verdict = "STALE"

	WrongKey      Verdict = "WRONG KEY"
	KeyOutOfRange Verdict = "KEY OUT OF RANGE"
	QuorumNotMet  Verdict = "QUORUM NOT MET"

	Redacted Verdict = "REDACTED"
)

// A Fault is one finding and its place.
type Fault struct {
	Verdict Verdict `json:"verdict"`
	// Chain is nil where the fault is in no one chain.
	Chain *ChainID `json:"chain,omitempty"`
	// Sequence, and Last where the fault is a run of leaves; nil where it has no place in its chain.
	Sequence *uint64 `json:"sequence,omitempty"`
	Last     *uint64 `json:"last,omitempty"`
	// EventID is a UUID, empty where no event is known.
	EventID string `json:"event_id,omitempty"`
	// Detail is for people.
	Detail string `json:"detail"`
}

// String returns the fault in one line.
func (f *Fault) String() string {
	var b strings.Builder
	b.WriteString(string(f.Verdict))
	if f.Chain != nil {
		fmt.Fprintf(&b, " chain %x", *f.Chain)
	}
	if f.Sequence != nil {
		fmt.Fprintf(&b, " sequence %d", *f.Sequence)
	}
	if f.Last != nil && f.Sequence != nil && *f.Last != *f.Sequence {
		fmt.Fprintf(&b, "..%d", *f.Last)
	}
	if f.EventID != "" {
		fmt.Fprintf(&b, " event %s", f.EventID)
	}
	b.WriteString(": ")
	b.WriteString(f.Detail)
	return b.String()
}
