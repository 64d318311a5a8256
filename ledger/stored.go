package ledger

import (
	"errors"
	"slices"
)

// A StoredLeaf is a leaf as a store gives it, with its content.
type StoredLeaf struct {
	// Leaf is what the store says of it. FieldCount and BodyRoot are not read: they follow from the content. Previous may be zero
	// where the store does not keep it.
	Leaf
	// Hash is the leaf hash that is stored, zero where none is: the leaf's own row is missing.
	Hash Hash
	// Node is what is stored beside it, smallest subtree first.
	Node []Hash
	// LedgerOffset is the leaf's offset in its partition of the ledger topic.
	LedgerOffset uint64
	// Body is the canonical body, with Seed; or Disclosure is what is left of it after a redaction. Both are empty where the content
	// is missing, and in a genesis.
	Body       []byte
	Seed       [16]byte
	Disclosure []Disclosure

	content content
}

// content is what the content of a leaf comes to.
type content struct {
	root    Hash
	fields  uint16
	err     error // wraps ErrNotCanonical, or says why it cannot be read
	missing bool
	// withheld are the paths of which only commitments are left.
	withheld []string
	// redaction is what a redaction leaf covers; nil where it is none, or cannot be read.
	redaction *Redaction
}

var (
	errNoContent      = errors.New("its content is missing")
	errGenesisContent = errors.New("a genesis has no content")
)

// A ContentHasher recomputes body roots. It keeps its memory between leaves, so that it is for one goroutine at a time.
type ContentHasher struct {
	fields      []Field
	paths       []byte
	commitments [][32]byte
}

// Digest recomputes the body root of a leaf from its content and keeps the result in the leaf, for a ChainVerifier. After it, Body,
// Seed and Disclosure may be changed. This is nearly all of the work of verification, and it needs no order.
func (h *ContentHasher) Digest(l *StoredLeaf) {
	l.content = content{}
	c := &l.content
	switch {
	case l.Kind == KindGenesis: // the verifier makes its root from the chain's identity
		if len(l.Body) > 0 || l.Disclosure != nil || l.Seed != [16]byte{} {
			c.err = errGenesisContent
		}
		return
	case len(l.Body) == 0 && l.Disclosure == nil:
		c.missing, c.err = true, errNoContent
		return
	case l.Disclosure != nil:
		h.disclosed(l)
	default:
		var n int
		c.root, n, c.err = h.bodyRoot(l.Seed, l.Body)
		c.fields = uint16(n)
	}
	if l.Kind == KindRedaction && c.err == nil && len(l.Body) > 0 && l.Disclosure == nil {
		c.redaction, _ = ParseRedaction(l.Body) // one that cannot be read covers nothing
	}
}

// ContentRoot returns what Digest found: the body root and the number of fields.
func (l *StoredLeaf) ContentRoot() (Hash, uint16, error) {
	return l.content.root, l.content.fields, l.content.err
}

// disclosed is Digest of what is left after a redaction.
func (h *ContentHasher) disclosed(l *StoredLeaf) {
	c := &l.content
	content := BundleLeaf{Disclosure: l.Disclosure}
	root, n, err := content.bodyRoot()
	if err != nil {
		c.err = err
		return
	}
	c.root, c.fields = root, uint16(n)
	for _, d := range l.Disclosure {
		if d.Commitment != nil {
			c.withheld = append(c.withheld, d.Path)
		}
	}
}

// bodyRoot is RecomputeBodyRoot in memory that is used again.
func (h *ContentHasher) bodyRoot(seed [16]byte, body []byte) (Hash, int, error) {
	r := canonicalReader{body: body, fields: h.fields[:0], paths: h.paths[:0]}
	if cap(h.paths) < len(body) {
		h.paths = make([]byte, 0, 2*len(body)) // the reader's paths must not move
		r.paths = h.paths
	}
	fields, err := r.all()
	h.fields = fields[:0]
	if err != nil {
		return Hash{}, 0, err
	}
	h.commitments = slices.Grow(h.commitments[:0], len(fields))
	for i := range fields {
		h.commitments = append(h.commitments, Commitment(seed, fields[i].Path, fields[i].Value))
	}
	return BodyRoot(h.commitments), len(fields), nil
}
