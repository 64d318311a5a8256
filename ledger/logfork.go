package ledger

import (
	"fmt"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

const (
	logForkFormat = "immutable/fork/1"
	// MaxLogForkBytes is more than a LogFork of any size has: two checkpoints, their key changes, and at most 64 hashes on each side of the smaller size.
	MaxLogForkBytes = 8 << 20
)

// A LogFork convicts whoever holds a log's key: two signed checkpoints of the log, of which the smaller one is not the beginning of the other. It needs
// nothing but a trust file to be checked: docs/design/ledger-spec.md, Evidence of a forked log.
type LogFork struct {
	Format string `json:"format"`
	Origin string `json:"origin"`
	// Detail and FoundAt are for people.
	Detail  string    `json:"detail"`
	FoundAt time.Time `json:"found_at"`
	// Checkpoints are the signed notes, the smaller one first; where both have one size, the one that was accepted first.
	Checkpoints [2]string `json:"checkpoints"`
	// Keys are the key changes that each checkpoint's log states, as texts of its entries.
	Keys [2][]string `json:"keys"`
	// Range are the perfect subtrees of the larger log's first entries, as many as the smaller one has, and Rest the subtrees that follow up to
	// the larger size: as in a ChainFork. Both are empty where the sizes are one.
	Range []Hash `json:"range,omitempty"`
	Rest  []Hash `json:"rest,omitempty"`
}

// ParseLogFork reads what Encode writes. Its errors wrap ErrProof.
func ParseLogFork(text []byte) (*LogFork, error) {
	f := new(LogFork)
	return f, parseEvidence(text, f, &f.Format, logForkFormat, MaxLogForkBytes)
}

// Encode returns the evidence as an indented JSON file.
func (f *LogFork) Encode() ([]byte, error) {
	f.Format = logForkFormat
	return encodeEvidence(f)
}

// Verify says whether the evidence convicts. No witness needs to have signed: what a log has signed itself is held against it. The errors
// wrap ErrProof.
func (f *LogFork) Verify(trust *Trust, now time.Time) error {
	smaller, err := f.open(0, trust, now)
	if err != nil {
		return fmt.Errorf("the first checkpoint: %w", err)
	}
	larger, err := f.open(1, trust, now)
	if err != nil {
		return fmt.Errorf("the second checkpoint: %w", err)
	}
	if larger.Size != smaller.Size {
		return verifyFork(smaller.Size, smaller.Root, larger.Size, larger.Root, f.Range, f.Rest)
	}
	if larger.Root == smaller.Root {
		return fmt.Errorf("%w: the two checkpoints are one", ErrProof)
	}
	if len(f.Range)+len(f.Rest) > 0 {
		return fmt.Errorf("%w: a range or a rest between checkpoints of one size", ErrProof)
	}
	return nil
}

// open believes one of the checkpoints.
func (f *LogFork) open(i int, trust *Trust, now time.Time) (*Opened, error) {
	if n := len(f.Keys[i]); n > maxKeyChanges {
		return nil, fmt.Errorf("%w: %d key changes, at most %d are read", ErrProof, n, maxKeyChanges)
	}
	var keys KeyHistory
	for _, text := range f.Keys[i] {
		e, err := ParseEntry([]byte(text))
		if err == nil {
			err = keys.Append(f.Origin, e)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: key change: %w", ErrProof, err)
		}
	}
	o, fault := trust.WithoutQuorum().Open([]byte(f.Checkpoints[i]), keys, now)
	if fault != nil {
		return nil, fmt.Errorf("%w: %s", ErrProof, fault)
	}
	if o.Origin != f.Origin {
		return nil, fmt.Errorf("%w: it is of log %q", ErrProof, o.Origin)
	}
	return o, nil
}

// verifyFork says whether the hashes show that an older tree is not the beginning of a newer one: together they give the newer one's root, and begin, which
// is its first leaves, another root than the older one's.
func verifyFork(size uint64, root Hash, newerSize uint64, newerRoot Hash, begin, rest []Hash) error {
	head := Head{Size: size, Range: begin}
	if err := head.Check(); err != nil || newerSize < size {
		return fmt.Errorf("%w: range: %d hashes for size %d", ErrProof, len(begin), size)
	}
	if head.Root() == root {
		return fmt.Errorf("%w: the older tree is the beginning of the newer one", ErrProof)
	}
	if err := head.AppendSubtrees(newerSize, rest); err != nil {
		return fmt.Errorf("%w: rest: %w", ErrProof, err)
	}
	if got := head.Root(); got != newerRoot {
		return fmt.Errorf("%w: range and rest give root %x, the newer one is %x", ErrProof, got, newerRoot)
	}
	return nil
}

// parseEvidence reads one JSON object of at most limit bytes, of which format is a member.
func parseEvidence(text []byte, to any, format *string, want string, limit int) error {
	if len(text) > limit {
		return fmt.Errorf("%w: %d bytes, at most %d are read", ErrProof, len(text), limit)
	}
	if err := json.Unmarshal(text, to, json.RejectUnknownMembers(true)); err != nil {
		return fmt.Errorf("%w: %w", ErrProof, err)
	}
	if *format != want {
		return fmt.Errorf("%w: format %.40q, want %q", ErrProof, *format, want)
	}
	return nil
}

func encodeEvidence(f any) ([]byte, error) {
	out, err := json.Marshal(f, jsontext.WithIndent("  "))
	if err != nil {
		return nil, fmt.Errorf("encoding evidence: %w", err)
	}
	return append(out, '\n'), nil
}
