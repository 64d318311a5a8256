package ledger

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
	"github.com/transparency-dev/formats/proof"
)

// ErrBundle is wrapped by the errors of a proof bundle that cannot be read.
var ErrBundle = errors.New("invalid proof bundle")

const (
	bundleFormat = "immutable/proof/1"
	// MaxBundleBytes is more than the proof of the largest event needs.
	MaxBundleBytes = 8 << 20
	maxKeyChanges  = 1000
	// maxRedactions of one event that are read: more than a server puts into a proof.
	maxRedactions = 256
	// maxDisclosed fields of one body; an event has some 80 at most.
	maxDisclosed = 1024
	// What else a bundle can have: the longest list in it is that of the key changes, and with all of them, each with its path, and with
	// 100 redactions of 80 fields, it has some 150,000 values.
	maxBundleElements = maxDisclosed
	maxBundleValues   = 1 << 18
)

// A Bundle proves one event: docs/design/ledger-spec.md, Proof bundle. It brings no key and no policy: those are the
// verifier's own.
type Bundle struct {
	Format string `json:"format"`
	BundleLeaf
	// Size and Root are those of the chain in the epoch.
	Size uint64 `json:"size"`
	Root Hash   `json:"root"`
	// Map leads from the chain to the epoch's map root.
	Map MapProof `json:"map"`
	// Epoch is the epoch's entry in the root log, verbatim.
	Epoch string `json:"epoch"`
	// LogProof is a C2SP tlog-proof of Epoch, with the signed checkpoint.
	LogProof string `json:"log_proof"`
	// Keys are the key changes that the checkpoint covers, from entry 0 on.
	Keys []BundleKey `json:"keys"`
	// Redactions are leaves of the same chain that cover what the body withholds.
	Redactions []BundleLeaf `json:"redactions,omitzero"`
}

// BundleKey is a key change, its entry verbatim, and its inclusion in the root log that LogProof's checkpoint states.
type BundleKey struct {
	Entry string `json:"entry"`
	Path  []Hash `json:"path"`
}

// ProvenKeys reads key changes that are shown to be in the root log of a checkpoint, at most 1000. With an error it returns those before the one that does
// not hold.
func ProvenKeys(stated []BundleKey, c *Checkpoint) (keys KeyHistory, err error) {
	if len(stated) > maxKeyChanges {
		return nil, fmt.Errorf("%d key changes, at most %d are read", len(stated), maxKeyChanges)
	}
	for _, k := range stated {
		e, err := ParseEntry([]byte(k.Entry))
		if err == nil {
			err = VerifyInclusion(EntryHash([]byte(k.Entry)), e.Index, c.Size, k.Path, c.Root)
		}
		if err == nil {
			err = keys.Append(c.Origin, e)
		}
		if err != nil {
			return keys, fmt.Errorf("key change: %w", err)
		}
	}
	return keys, nil
}

// ProvenEpoch reads an epoch that a log proof shows to be in the root log of the checkpoint, at its own index. Its errors wrap ErrEntry or ErrProof.
func ProvenEpoch(text string, p *proof.TLogProof, c *Checkpoint) (*Entry, error) {
	e, err := ParseEntry([]byte(text))
	if err != nil {
		return nil, err
	}
	if e.Epoch == nil || e.Index != p.Index {
		return nil, fmt.Errorf("%w: it is not the epoch at index %d", ErrEntry, p.Index)
	}
	if err := verifyEntry(text, p, c); err != nil {
		return nil, err
	}
	return e, nil
}

// verifyEntry: the log proof shows that the entry is in the root log of the checkpoint.
func verifyEntry(text string, p *proof.TLogProof, c *Checkpoint) error {
	path := make([]Hash, len(p.Hashes))
	for i, h := range p.Hashes {
		path[i] = h
	}
	return VerifyInclusion(EntryHash([]byte(text)), p.Index, c.Size, path, c.Root)
}

// BundleLeaf is a leaf of the chain, with its content.
type BundleLeaf struct {
	// Workspace, Incarnation and Lane make the chain's id.
	Workspace   Hex16   `json:"workspace"`
	Incarnation Hex16   `json:"incarnation"`
	Lane        uint32  `json:"lane"`
	Chain       ChainID `json:"chain"`
	Sequence    uint64  `json:"sequence"`
	Previous    Hash    `json:"previous"`
	Kind        Kind    `json:"kind"`
	ID          string  `json:"id"`
	RecordedAt  string  `json:"recorded_at"`
	Generation  uint16  `json:"generation"`
	Partition   uint16  `json:"partition"`
	Offset      uint64  `json:"offset"`
	FieldCount  uint16  `json:"field_count"`
	BodyRoot    Hash    `json:"body_root"`
	// Either Body and Seed, or Disclosure. Body is the canonical JSON as text.
	Body       string       `json:"body,omitempty"`
	Seed       *Hex16       `json:"seed,omitzero"`
	Disclosure []Disclosure `json:"disclosure,omitempty"`
	// Path is the leaf's inclusion in the chain at the epoch's size.
	Path []Hash `json:"path"`
}

// A Disclosure is one field of a body of which another is withheld: Salt and Value, or Commitment.
type Disclosure struct {
	Path       string  `json:"path"`
	Salt       *Hex16  `json:"salt,omitzero"`
	Value      *string `json:"value,omitzero"`
	Commitment *Hash   `json:"commitment,omitzero"`
}

// Hex16 is 16 bytes, in text lower-case hexadecimal.
type Hex16 [16]byte

// MarshalText implements encoding.TextMarshaler.
func (h Hex16) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hex16) UnmarshalText(text []byte) error { return decodeHex(h[:], text, "value") }

// ParseBundle reads a proof bundle. An unknown member, a key of its own for instance, is an error. Its errors wrap ErrBundle.
func ParseBundle(text []byte) (*Bundle, error) {
	if len(text) > MaxBundleBytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are read", ErrBundle, len(text), MaxBundleBytes)
	}
	if err := LimitJSON(text, maxBundleElements, maxBundleValues); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBundle, err)
	}
	b := new(Bundle)
	if err := json.Unmarshal(text, b, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBundle, err)
	}
	if b.Format != bundleFormat {
		return nil, fmt.Errorf("%w: format %.40q, want %q", ErrBundle, b.Format, bundleFormat)
	}
	if n := len(b.Redactions); n > maxRedactions {
		return nil, fmt.Errorf("%w: %d redactions, at most %d are read", ErrBundle, n, maxRedactions)
	}
	return b, nil
}

// Encode returns the bundle as an indented JSON file.
func (b *Bundle) Encode() ([]byte, error) {
	b.Format = bundleFormat
	out, err := json.Marshal(b, jsontext.WithIndent("  "))
	if err != nil {
		return nil, fmt.Errorf("encoding a proof bundle: %w", err)
	}
	return append(out, '\n'), nil
}

// BundleResult is what a bundle proves.
type BundleResult struct {
	// Faults are what was found: nothing, or Redacted alone, where everything holds.
	Faults []*Fault
	// Checkpoint is nil where none is believed: then the faults say that the bundle proves nothing, and nothing of the ledger.
	Checkpoint *Opened
	Epoch      *Entry
	Keys       KeyHistory
}

// Verify checks everything that a bundle claims, from the body up to the checkpoint, by what the verifier trusts, and goes on
// after a fault where it can.
func (b *Bundle) Verify(trust *Trust, now time.Time) *BundleResult {
	v := bundleVerifier{Bundle: b}
	v.checkpoint(trust, now)
	v.epoch()
	v.leaf(&b.BundleLeaf)
	v.content()
	return &v.result
}

type bundleVerifier struct {
	*Bundle
	result BundleResult
}

// fault notes a finding at a leaf; nil is the bundle's event.
func (v *bundleVerifier) fault(verdict Verdict, leaf *BundleLeaf, format string, args ...any) {
	if leaf == nil {
		leaf = &v.BundleLeaf
	}
	v.result.Faults = append(v.result.Faults, &Fault{
		Verdict: verdict, Chain: &leaf.Chain, Sequence: &leaf.Sequence, EventID: leaf.ID, Detail: fmt.Sprintf(format, args...),
	})
}

// checkpoint opens the checkpoint and ties the epoch and the key changes to it.
func (v *bundleVerifier) checkpoint(trust *Trust, now time.Time) {
	p, err := ParseLogProof([]byte(v.LogProof))
	if err != nil {
		v.fault(InvalidProof, nil, "log proof: %v", err)
		return
	}
	stated, err := ParseCheckpoint(p.Checkpoint)
	if err != nil {
		v.fault(InvalidProof, nil, "log proof: %v", err)
		return
	}
	if !v.keys(stated) {
		// Whether what does not hold was signed all the same.
		v.result.Checkpoint, _ = trust.Open(p.Checkpoint, v.result.Keys, now)
		return
	}
	opened, f := trust.Open(p.Checkpoint, v.result.Keys, now)
	if f != nil {
		v.fault(f.Verdict, nil, "%s", f.Detail)
	}
	v.result.Checkpoint = opened
	if err := verifyEntry(v.Epoch, p, stated); err != nil {
		v.fault(InvalidProof, nil, "the epoch is not in the root log: %v", err)
	}
}

// keys checks that the key changes are in the root log that the checkpoint states.
func (v *bundleVerifier) keys(stated *Checkpoint) bool {
	if len(v.Keys) == 0 || len(v.Keys) > maxKeyChanges {
		v.fault(InvalidProof, nil, "%d key changes, want 1 to %d: entry 0 states the first key", len(v.Keys), maxKeyChanges)
		return false
	}
	var err error
	if v.result.Keys, err = ProvenKeys(v.Keys, stated); err != nil {
		v.fault(InvalidProof, nil, "%v", err)
		return false
	}
	return true
}

// epoch ties the chain to the epoch.
func (v *bundleVerifier) epoch() {
	e, err := ParseEntry([]byte(v.Epoch))
	if err == nil && e.Epoch == nil {
		err = fmt.Errorf("%w: it is no epoch", ErrEntry)
	}
	if err != nil {
		v.fault(InvalidProof, nil, "epoch: %v", err)
		return
	}
	v.result.Epoch = e
	if leaf, err := v.Leaf(); err == nil && time.UnixMicro(leaf.RecordedAt).After(e.Time.Add(MaxClockSkew)) {
		v.fault(TimeAnomaly, nil, "recorded at %s, and covered by an epoch of %s", v.RecordedAt, e.Time.Format(timeLayout))
	}
	if err := v.Map.VerifyPresent(v.Chain, v.Size, v.Root, e.Epoch.MapRoot); err != nil {
		v.fault(InvalidProof, nil, "the chain is not in the epoch's map at size %d: %v", v.Size, err)
	}
}

// NewBundleLeaf returns a leaf as a bundle describes it, without content and path.
func NewBundleLeaf(l *Leaf, workspace, incarnation [16]byte, lane uint32) BundleLeaf {
	return BundleLeaf{
		Workspace: workspace, Incarnation: incarnation, Lane: lane, Chain: l.Chain, Sequence: l.Sequence, Previous: l.Previous,
		Kind: l.Kind, ID: uuid.UUID(l.ID).String(), RecordedAt: time.UnixMicro(l.RecordedAt).UTC().Format(timeLayout),
		Generation: l.Generation, Partition: l.Partition, Offset: l.Offset, FieldCount: l.FieldCount, BodyRoot: l.BodyRoot,
	}
}

// Leaf returns the leaf that a bundle describes.
func (l *BundleLeaf) Leaf() (*Leaf, error) {
	id, err := parseUUID(l.ID)
	if err != nil {
		return nil, err
	}
	at, err := time.Parse(timeLayout, l.RecordedAt)
	if err != nil || at.Format(timeLayout) != l.RecordedAt {
		return nil, fmt.Errorf("recorded_at %.40q: want %s", l.RecordedAt, timeLayout)
	}
	return &Leaf{
		Chain: l.Chain, Sequence: l.Sequence, Previous: l.Previous, Kind: l.Kind, ID: id, RecordedAt: at.UnixMicro(),
		Generation: l.Generation, Partition: l.Partition, Offset: l.Offset, FieldCount: l.FieldCount, BodyRoot: l.BodyRoot,
	}, nil
}

// leaf checks a leaf of the chain: its id, its inclusion and its content.
func (v *bundleVerifier) leaf(l *BundleLeaf) {
	if want := NewChainID(l.Workspace, l.Incarnation, l.Lane); l.Chain != want || l.Chain != v.Chain {
		v.fault(CrossChain, l, "chain %x is not that of workspace %x, incarnation %x, lane %d", l.Chain, l.Workspace, l.Incarnation, l.Lane)
	}
	leaf, err := l.Leaf()
	if err != nil {
		v.fault(InvalidProof, l, "leaf: %v", err)
		return
	}
	if err := VerifyInclusion(leaf.Hash(), l.Sequence, v.Size, l.Path, v.Root); err != nil {
		v.fault(Modified, l, "the leaf is not in the chain's tree: %v", err)
	}
	root, count, err := l.bodyRoot()
	switch {
	case errors.Is(err, ErrNotCanonical):
		v.fault(NonCanonical, l, "body: %v", err)
	case err != nil:
		v.fault(InvalidProof, l, "%v", err)
	case root != l.BodyRoot || count != int(l.FieldCount):
		v.fault(Modified, l, "the body gives root %x over %d fields, the leaf has %x over %d", root, count, l.BodyRoot, l.FieldCount)
	}
}

// bodyRoot recomputes the body root from what is disclosed.
func (l *BundleLeaf) bodyRoot() (Hash, int, error) {
	switch {
	case l.Body != "" && l.Seed != nil && l.Disclosure == nil:
		return RecomputeBodyRoot(*l.Seed, []byte(l.Body))
	case l.Body == "" && l.Seed == nil && len(l.Disclosure) > maxDisclosed:
		return Hash{}, 0, fmt.Errorf("disclosure of %d fields, at most %d are read", len(l.Disclosure), maxDisclosed)
	case l.Body == "" && l.Seed == nil && l.Disclosure != nil:
		commitments := make([][32]byte, 0, len(l.Disclosure))
		for i, d := range l.Disclosure {
			if i > 0 && l.Disclosure[i-1].Path >= d.Path {
				return Hash{}, 0, fmt.Errorf("%w: disclosure: %.80q is not after the path before it", ErrNotCanonical, d.Path)
			}
			c, err := d.commitment()
			if err != nil {
				return Hash{}, 0, err
			}
			commitments = append(commitments, c)
		}
		return BodyRoot(commitments), len(commitments), nil
	default:
		return Hash{}, 0, errors.New("want body and seed, or disclosure")
	}
}

// Disclose returns what remains to be shown of a body when the fields with these paths are withheld: salts and values of
// the others, their commitments of those.
func Disclose(seed [16]byte, fields []Field, withheld []string) []Disclosure {
	all := make([]Disclosure, len(fields))
	for i, f := range fields {
		d := Disclosure{Path: string(f.Path)}
		if slices.Contains(withheld, d.Path) {
			c := Hash(Commitment(seed, f.Path, f.Value))
			d.Commitment = &c
		} else {
			salt, value := Hex16(Salt(seed, f.Path)), string(f.Value)
			d.Salt, d.Value = &salt, &value
		}
		all[i] = d
	}
	return all
}

func (d *Disclosure) commitment() (Hash, error) {
	switch {
	case d.Commitment != nil && d.Salt == nil && d.Value == nil:
		return *d.Commitment, nil
	case d.Commitment == nil && d.Salt != nil && d.Value != nil:
		// A value is canonical where an object of it is.
		if fields, err := Fields(nil, []byte(`{"v":`+*d.Value+`}`)); err != nil || len(fields) != 1 {
			return Hash{}, fmt.Errorf("%w: disclosure of %.80q", ErrNotCanonical, d.Path)
		}
		return SaltedCommitment(*d.Salt, []byte(d.Path), []byte(*d.Value)), nil
	default:
		return Hash{}, fmt.Errorf("disclosure of %.80q: want salt and value, or commitment", d.Path)
	}
}

// content explains what is withheld: Redacted where a redaction leaf of the chain covers it, else Withheld.
func (v *bundleVerifier) content() {
	var covered []string
	for i := range v.Redactions {
		l := &v.Redactions[i]
		before := len(v.result.Faults)
		v.leaf(l)
		if len(v.result.Faults) > before {
			continue
		}
		r, err := l.redaction()
		if err != nil || r.EventID != v.ID || l.Sequence <= v.Sequence {
			v.fault(Withheld, l, "it does not redact event %s: %v", v.ID, err)
			continue
		}
		covered = append(covered, slices.DeleteFunc(r.Paths, Protected)...)
	}
	for _, d := range v.Disclosure {
		switch {
		case d.Commitment == nil:
		case slices.Contains(covered, d.Path):
			v.fault(Redacted, nil, "%s", d.Path)
		default:
			v.fault(Withheld, nil, "%s is missing, and no redaction covers it", d.Path)
		}
	}
}

// Protected reports whether a path can be erased from no event: without action and occurred_at there is no event, and
// version says how to read the others. A redaction that names it does not cover it.
func Protected(path string) bool {
	return path == "/action" || path == "/occurred_at" || path == "/version"
}

// Redaction is what the body of a redaction leaf says.
type Redaction struct {
	EventID string
	// Paths are RFC 6901 pointers.
	Paths []string
}

// redaction reads the body of a redaction leaf.
func (l *BundleLeaf) redaction() (*Redaction, error) {
	if l.Kind != KindRedaction || l.Body == "" {
		return nil, errors.New("not a redaction leaf with its body")
	}
	return ParseRedaction([]byte(l.Body))
}

// ParseRedaction reads the body of a redaction leaf: an event whose metadata has `event_id` and `paths`.
func ParseRedaction(body []byte) (*Redaction, error) {
	var r struct {
		Metadata struct {
			EventID string   `json:"event_id"`
			Paths   []string `json:"paths"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, fmt.Errorf("redaction: %w", err)
	}
	if n := len(r.Metadata.Paths); r.Metadata.EventID == "" || n == 0 || n > maxDisclosed {
		return nil, fmt.Errorf("redaction: it names no event, no paths, or more than %d", maxDisclosed)
	}
	return &Redaction{r.Metadata.EventID, r.Metadata.Paths}, nil
}

// parseUUID reads the usual text form in lower case, and no other.
func parseUUID(s string) ([16]byte, error) {
	id, err := uuid.Parse(s)
	if err != nil || id.String() != s {
		return id, fmt.Errorf("event id %.80q: want a UUID in lower case", s)
	}
	return id, nil
}
