package ledger

import (
	"fmt"
	"time"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
)

const (
	chainForkFormat = "immutable/chain-fork/1"
	// MaxChainForkBytes is more than a ChainFork of any size has: two proofs in the map, two in the root log, and their key changes.
	MaxChainForkBytes = 8 << 20
)

// A ChainFork convicts whoever holds a log's key: two epochs of the log state two histories of one chain. It needs nothing but a trust file
// to be checked: docs/design/ledger-spec.md, Evidence of a forked chain.
type ChainFork struct {
	Format string `json:"format"`
	// Detail and FoundAt are for people.
	Detail  string    `json:"detail"`
	FoundAt time.Time `json:"found_at"`
	// Workspace, Incarnation and Lane make the chain's id.
	Workspace   Hex16   `json:"workspace"`
	Incarnation Hex16   `json:"incarnation"`
	Lane        uint32  `json:"lane"`
	Chain       ChainID `json:"chain"`
	// Older and Newer are what two epochs state of the chain.
	Older StatedChain `json:"older"`
	Newer StatedChain `json:"newer"`
	// Range are the perfect subtrees of the newer tree's first Older.Size leaves, and Rest the subtrees that follow up to Newer.Size, as
	// SubtreesBetween orders them: together they give the newer root, and Range another root than the older one. Both are empty where the chain
	// is smaller in the newer epoch.
	Range []Hash `json:"range,omitempty"`
	Rest  []Hash `json:"rest,omitempty"`
}

// A StatedChain is what an epoch states of a chain, with everything that ties it to a signed checkpoint.
type StatedChain struct {
	// Size is 0 where the epoch does not have the chain.
	Size uint64   `json:"size"`
	Root Hash     `json:"root"`
	Map  MapProof `json:"map"`
	// Epoch, LogProof and Keys are as in a Bundle.
	Epoch    string      `json:"epoch"`
	LogProof string      `json:"log_proof"`
	Keys     []BundleKey `json:"keys"`
}

// ParseChainFork reads what Encode writes. Its errors wrap ErrProof.
func ParseChainFork(text []byte) (*ChainFork, error) {
	f := new(ChainFork)
	return f, parseEvidence(text, f, &f.Format, chainForkFormat, MaxChainForkBytes)
}

// Encode returns the evidence as an indented JSON file.
func (f *ChainFork) Encode() ([]byte, error) {
	f.Format = chainForkFormat
	return encodeEvidence(f)
}

// Verify says whether the evidence convicts. No witness needs to have signed: what a log has signed itself is held against it. The errors
// wrap ErrProof.
func (f *ChainFork) Verify(trust *Trust, now time.Time) error {
	if want := NewChainID(f.Workspace, f.Incarnation, f.Lane); f.Chain != want {
		return fmt.Errorf("%w: chain %x is not that of its workspace, incarnation and lane", ErrProof, f.Chain)
	}
	older, origin, err := f.Older.open(f.Chain, trust, now)
	if err != nil {
		return fmt.Errorf("older: %w", err)
	}
	newer, other, err := f.Newer.open(f.Chain, trust, now)
	if err != nil {
		return fmt.Errorf("newer: %w", err)
	}
	switch {
	case origin != other:
		return fmt.Errorf("%w: they are of two logs, %q and %q", ErrProof, origin, other)
	case f.Older.Size == 0:
		return fmt.Errorf("%w: the older epoch does not have the chain", ErrProof)
	case f.Newer.Size < f.Older.Size && older.Index < newer.Index:
		return nil
	}
	return verifyFork(f.Older.Size, f.Older.Root, f.Newer.Size, f.Newer.Root, f.Range, f.Rest)
}

// open ties what is stated to a checkpoint that a believed key has signed, and returns the epoch and the log's origin.
func (s *StatedChain) open(chain ChainID, trust *Trust, now time.Time) (*Entry, string, error) {
	p, err := ParseLogProof([]byte(s.LogProof))
	if err != nil {
		return nil, "", err
	}
	c, err := ParseCheckpoint(p.Checkpoint)
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrProof, err)
	}
	keys, err := ProvenKeys(s.Keys, c)
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrProof, err)
	}
	if _, f := trust.WithoutQuorum().Open(p.Checkpoint, keys, now); f != nil {
		return nil, "", fmt.Errorf("%w: %s", ErrProof, f)
	}
	e, err := ProvenEpoch(s.Epoch, p, c)
	if err != nil {
		return nil, "", fmt.Errorf("%w: the epoch: %w", ErrProof, err)
	}
	if s.Size == 0 {
		err = s.Map.VerifyAbsent(chain, e.Epoch.MapRoot)
	} else {
		err = s.Map.VerifyPresent(chain, s.Size, s.Root, e.Epoch.MapRoot)
	}
	return e, c.Origin, err
}

// A Divergence is where a ChainVerifier found two roots of one chain that are of two histories.
type Divergence struct {
	// Older and Newer are marks, by their number: the leaves give the newer one's root, and not the older one's.
	Older, Newer int
	// Range and Rest are as in a ChainFork.
	Range, Rest []Hash
}

// Divergences returns what was found so far, at most maxDivergences.
func (v *ChainVerifier) Divergences() []Divergence { return v.divergences }

const maxDivergences = 4

// diverge begins to keep what shows that the tree over the leaves so far is the beginning of a later one.
func (v *ChainVerifier) diverge(a *anew) {
	factory := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	a.head, a.rest = v.head.Clone(), factory.NewEmptyRange(v.head.Size)
}

// extend takes the next leaf into what is kept.
func (v *ChainVerifier) extend(hash Hash) {
	for i := range v.anew {
		_ = v.anew[i].rest.Append(hash[:], nil) // only a range that is corrupted cannot be appended to
	}
}

// diverged keeps a divergence that a later mark has shown.
func (v *ChainVerifier) diverged(a *anew, newer *Mark) {
	d := Divergence{Older: v.number(a.mark), Newer: v.number(newer), Range: a.head.Range}
	if d.Older < 0 || d.Newer < 0 || len(v.divergences) == maxDivergences {
		return
	}
	for _, h := range a.rest.Hashes() {
		d.Rest = append(d.Rest, Hash(h))
	}
	v.divergences = append(v.divergences, d)
}

func (v *ChainVerifier) number(m *Mark) int {
	for i := range v.marks {
		if &v.marks[i] == m {
			return i
		}
	}
	return -1
}
