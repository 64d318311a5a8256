// Package verify checks an installation's ledger from outside: a proof bundle, everything that the API serves, or the operator's own
// ClickHouse. It believes nobody but the keys and witnesses of a trust file and what it has verified before (ADR 0012); every
// hash is recomputed from content. It only reads.
package verify

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"getimmutable.dev/immutable/ledger"
)

// Exit codes of `immutable verify`.
const (
	ExitVerified   = 0 // at the demanded level
	ExitTampered   = 1 // tampering is proven
	ExitUndecided  = 2 // data or proof is missing, or withheld
	ExitUsage      = 3 // what was asked for cannot be read
	ExitNotTrusted = 4 // no believed key has signed, or too few witnesses
)

// maxNotes bounds each list of a report but the faults.
const maxNotes = 1000

// Levels of a verified result.
const (
	// TamperEvident: enough witnesses of the trust file have seen the checkpoint.
	TamperEvident = "tamper-evident"
	// TamperDetecting: only the log's own key was checked. Its holder can show another history to somebody else.
	TamperDetecting = "tamper-detecting"
)

// A Report is what one run has found.
type Report struct {
	// Verified is ExitCode() == ExitVerified, and Level then what that is worth.
	Verified bool   `json:"verified"`
	Level    string `json:"level,omitempty"`
	// Exit is the exit code.
	Exit int `json:"exit"`
	// Subject says what was verified.
	Subject string `json:"subject"`
	// Checkpoint is the one that was believed; nil where there is none.
	Checkpoint *CheckpointReport `json:"checkpoint,omitzero"`
	// Event is the event that a proof has proven; nil where it has not, and where more than one is verified.
	Event *EventReport `json:"event,omitzero"`
	// Error says why nothing was verified at all, with ExitUsage or ExitUndecided.
	Error string `json:"error,omitempty"`
	// Faults are the findings, the first Config.MaxFaults of them; Found counts all, by verdict. Redacted and UnsealedTail are no faults.
	Faults []*ledger.Fault           `json:"faults"`
	Found  map[ledger.Verdict]uint64 `json:"found"`
	// Undecided says what could not be read, NotChecked what was left out, and Notes what else there is to know.
	Undecided  []string `json:"undecided"`
	NotChecked []string `json:"not_checked"`
	Notes      []string `json:"notes"`
	// Chains, Leaves and Entries of the root log that were recomputed, and Epochs whose map was.
	Chains  uint64 `json:"chains"`
	Leaves  uint64 `json:"leaves"`
	Entries uint64 `json:"log_entries"`
	Epochs  uint64 `json:"epochs"`
	// Memory is the file that the checkpoint is compared with and remembered in; NoMemory says that there is none.
	Memory   string `json:"memory,omitempty"`
	NoMemory bool   `json:"no_memory"`
	// Evidence are the files that prove a fork.
	Evidence []string `json:"evidence,omitempty"`

	mu        sync.Mutex
	maxFaults int
	content   bool // leaves were recomputed from their content
	witnessed bool
	// believed: enough of those who are believed have signed the checkpoint that things are compared with.
	believed bool
	// convicted: a key of the log has signed a checkpoint that contradicts one that was accepted before.
	convicted bool
}

// CheckpointReport is a believed checkpoint.
type CheckpointReport struct {
	Origin    string      `json:"origin"`
	Size      uint64      `json:"size"`
	Root      ledger.Hash `json:"root"`
	Key       string      `json:"key"`
	Witnesses []string    `json:"witnesses"`
	// WitnessedAt is since when enough witnesses have seen it, by their clocks; zero where none has to.
	WitnessedAt time.Time `json:"witnessed_at,omitzero"`
	// Epoch is the entry of the root log that everything was compared with, and EpochTime when it was made.
	Epoch     uint64    `json:"epoch"`
	EpochTime time.Time `json:"epoch_time,omitzero"`
	// Behind is set where the newest checkpoint has too few cosignatures, and this is an older one that has enough.
	Behind *BehindReport `json:"behind,omitzero"`
}

// BehindReport says how far a believed checkpoint is behind the newest one.
type BehindReport struct {
	// Size of the newest checkpoint.
	Size uint64 `json:"size"`
	// Epochs and Seconds between the newest epochs that they cover.
	Epochs  int64   `json:"epochs"`
	Seconds float64 `json:"seconds"`
}

// EventReport is what was proven of one event.
type EventReport struct {
	ID         string         `json:"id"`
	Chain      ledger.ChainID `json:"chain"`
	Sequence   uint64         `json:"sequence"`
	RecordedAt string         `json:"recorded_at"`
	// EpochTime is when the epoch was made that covers it.
	EpochTime time.Time `json:"epoch_time"`
	// Body is canonical JSON as text. Of a redacted event there are Fields instead.
	Body   string        `json:"body,omitempty"`
	Fields []FieldReport `json:"fields,omitempty"`
}

// FieldReport is a field of a redacted event: an RFC 6901 pointer, and the value as canonical JSON; nil where it was erased.
type FieldReport struct {
	Path  string  `json:"path"`
	Value *string `json:"value"`
}

// Failed is the report of a verification that could not begin, or came to an end without a result.
func Failed(err error) *Report {
	r := newReport("", 0)
	r.Error, r.Exit = err.Error(), ExitUndecided
	if errors.Is(err, ErrUsage) {
		r.Exit = ExitUsage
	}
	return r
}

// report begins the report of a run.
func (c *Config) report(subject string) *Report {
	r := newReport(subject, c.MaxFaults)
	r.Memory, r.NoMemory = c.MemoryFile, c.MemoryFile == ""
	return r
}

func newReport(subject string, maxFaults int) *Report {
	return &Report{
		Subject: subject, Faults: []*ledger.Fault{}, Found: map[ledger.Verdict]uint64{}, Undecided: []string{}, NotChecked: []string{},
		Notes: []string{}, maxFaults: maxFaults,
	}
}

// fault takes a finding. It may be called from several goroutines.
func (r *Report) fault(f *ledger.Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Found[f.Verdict]++
	f.Detail, f.EventID = shortened(f.Detail), shortened(f.EventID)
	// Which of too many are listed does not depend on who was first.
	if r.Faults = append(r.Faults, f); len(r.Faults) >= 2*r.maxFaults {
		slices.SortFunc(r.Faults, compareFaults)
		clear(r.Faults[r.maxFaults:])
		r.Faults = r.Faults[:r.maxFaults]
	}
}

// faultf takes a finding that is in no chain.
func (r *Report) faultf(verdict ledger.Verdict, format string, args ...any) {
	r.fault(&ledger.Fault{Verdict: verdict, Detail: fmt.Sprintf(format, args...)})
}

func (r *Report) undecided(format string, args ...any) { r.note(&r.Undecided, format, args...) }

func (r *Report) notChecked(format string, args ...any) { r.note(&r.NotChecked, format, args...) }

func (r *Report) notef(format string, args ...any) { r.note(&r.Notes, format, args...) }

func (r *Report) note(to *[]string, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(*to) < maxNotes {
		*to = append(*to, shortened(fmt.Sprintf(format, args...)))
	}
}

// maxDetail bounds what a finding or a note says, in bytes: it may quote what was served.
const maxDetail = 1000

func shortened(text string) string {
	if len(text) <= maxDetail {
		return text
	}
	return strings.ToValidUTF8(text[:maxDetail], "") + " ..."
}

// exitOf says what one finding makes of the whole: ExitVerified where it is no fault.
func exitOf(v ledger.Verdict) int {
	switch v {
	case ledger.Redacted, ledger.UnsealedTail:
		return ExitVerified
	case ledger.Withheld, ledger.Stale, ledger.TimeAnomaly: // one of two clocks was wrong, or the record was: which one nothing tells
		return ExitUndecided
	case ledger.WrongKey, ledger.KeyOutOfRange, ledger.QuorumNotMet:
		return ExitNotTrusted
	default:
		return ExitTampered
	}
}

// tampered says whether anything that was found proves tampering.
func (r *Report) tampered() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for v := range r.Found {
		if exitOf(v) == ExitTampered {
			return true
		}
	}
	return false
}

// proven says whether tampering is: where a believed checkpoint is contradicted. Without one, what was found proves nothing of the ledger, as anybody can
// make it up; a checkpoint that contradicts one that was accepted before is the exception, as a key of the log has signed both.
func (r *Report) proven() bool {
	if r.convicted {
		return true
	}
	for v := range r.Found {
		if r.believed && exitOf(v) == ExitTampered {
			return true
		}
	}
	return false
}

// finish draws the conclusion. Proven tampering goes before a checkpoint that is not believed, and that before what is not known.
func (r *Report) finish() *Report {
	codes := map[int]bool{}
	for v := range r.Found {
		codes[exitOf(v)] = true
	}
	switch {
	case r.proven():
		r.Exit = ExitTampered
	case codes[ExitNotTrusted]:
		r.Exit = ExitNotTrusted
	case codes[ExitUndecided], codes[ExitTampered], len(r.Undecided) > 0, r.Checkpoint == nil, !r.content:
		r.Exit = ExitUndecided
	}
	r.Verified = r.Exit == ExitVerified
	if r.Verified {
		r.Level = TamperDetecting
		if r.witnessed {
			r.Level = TamperEvident
		}
	}
	slices.SortFunc(r.Faults, compareFaults)
	r.Faults = r.Faults[:min(len(r.Faults), r.maxFaults)]
	r.Faults = slices.CompactFunc(r.Faults, func(a, b *ledger.Fault) bool {
		same := sameFault(a, b)
		if same {
			r.Found[a.Verdict]--
		}
		return same
	})
	slices.Sort(r.Undecided)
	slices.Sort(r.NotChecked)
	slices.Sort(r.Notes)
	r.Notes = slices.Compact(r.Notes)
	return r
}

// sameFault: two checks have found the same at one leaf. What is missing of an event is one finding for each of its fields.
func sameFault(a, b *ledger.Fault) bool {
	if (a.Verdict == ledger.Redacted || a.Verdict == ledger.Withheld) && a.Detail != b.Detail {
		return false
	}
	return a.Verdict == b.Verdict && a.Chain != nil && b.Chain != nil && *a.Chain == *b.Chain && a.Sequence != nil && b.Sequence != nil &&
		*a.Sequence == *b.Sequence && a.Last == nil && b.Last == nil && a.EventID == b.EventID && a.Verdict != ledger.Duplicate
}

// compareFaults orders findings by chain, sequence and all else that they say; those without a place first.
func compareFaults(a, b *ledger.Fault) int {
	var none ledger.ChainID
	chainA, chainB := cmp.Or(a.Chain, &none), cmp.Or(b.Chain, &none)
	return cmp.Or(
		slices.Compare(chainA[:], chainB[:]), comparePlaces(a.Sequence, b.Sequence), cmp.Compare(a.Verdict, b.Verdict), comparePlaces(a.Last, b.Last),
		cmp.Compare(a.EventID, b.EventID), cmp.Compare(a.Detail, b.Detail),
	)
}

func comparePlaces(a, b *uint64) int {
	switch {
	case a == nil && b == nil:
		return 0
	case a == nil:
		return -1
	case b == nil:
		return 1
	default:
		return cmp.Compare(*a, *b)
	}
}

// Text writes the report for people.
func (r *Report) Text() string {
	var b strings.Builder
	for _, f := range r.Faults {
		fmt.Fprintln(&b, oneLine(f.String()))
	}
	if listed, all := uint64(len(r.Faults)), r.total(); all > listed {
		fmt.Fprintf(&b, "... and %d findings more\n", all-listed)
	}
	section(&b, "undecided", r.Undecided)
	section(&b, "not checked", r.NotChecked)
	section(&b, "note", r.Notes)
	for _, path := range r.Evidence {
		fmt.Fprintf(&b, "evidence: %s\n", path)
	}
	if e := r.Event; e != nil {
		fmt.Fprintf(&b, "event %s: chain %x sequence %d\n  recorded at %s, covered by the epoch of %s\n", oneLine(e.ID), e.Chain, e.Sequence, oneLine(e.RecordedAt),
			e.EpochTime.UTC().Format(time.RFC3339))
		if e.Body != "" {
			fmt.Fprintf(&b, "  body %s\n", oneLine(e.Body))
		}
		for _, f := range e.Fields {
			value := "erased"
			if f.Value != nil {
				value = *f.Value
			}
			fmt.Fprintf(&b, "  %s %s\n", oneLine(f.Path), oneLine(value))
		}
	}
	if c := r.Checkpoint; c != nil {
		fmt.Fprintf(&b, "checkpoint: %s size %d root %x\n  signed by %s, witnesses: %d", c.Origin, c.Size, c.Root, c.Key, len(c.Witnesses))
		for _, w := range c.Witnesses {
			fmt.Fprintf(&b, "\n  %s", w)
		}
		if !c.WitnessedAt.IsZero() {
			fmt.Fprintf(&b, "\n  cosigned at %s", c.WitnessedAt.UTC().Format(time.RFC3339))
		}
		if !c.EpochTime.IsZero() {
			fmt.Fprintf(&b, "\n  epoch %d of %s", c.Epoch, c.EpochTime.UTC().Format(time.RFC3339))
		}
		b.WriteByte('\n')
	}
	memory := r.Memory
	if memory == "" {
		memory = "none: a rollback or a fork between two runs cannot be seen"
	}
	fmt.Fprintf(&b, "memory: %s\n", memory)
	fmt.Fprintf(&b, "chains: %d, leaves: %d, entries of the root log: %d, epochs: %d\n", r.Chains, r.Leaves, r.Entries, r.Epochs)
	fmt.Fprintf(&b, "%s: %s\n", r.conclusion(), r.Subject)
	return printable(b.String())
}

// printable takes the control characters out of a text, but for ends of lines in it: what was verified may have been written by
// somebody who wants a terminal to show something else.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, text)
}

// oneLine keeps what was verified from writing lines of its own.
func oneLine(text string) string { return strings.ReplaceAll(text, "\n", `\n`) }

func section(b *strings.Builder, name string, lines []string) {
	for _, line := range lines {
		fmt.Fprintf(b, "%s: %s\n", name, oneLine(line))
	}
}

func (r *Report) total() (n uint64) {
	for _, count := range r.Found {
		n += count
	}
	return n
}

func (r *Report) conclusion() string {
	switch r.Exit {
	case ExitVerified:
		return "VERIFIED (" + r.Level + ")"
	case ExitTampered:
		return "TAMPERING PROVEN"
	case ExitNotTrusted:
		return "NOT TRUSTED"
	default:
		return "NOT DECIDED"
	}
}
