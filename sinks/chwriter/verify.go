package chwriter

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/go-json-experiment/json/jsontext"

	"getimmutable.dev/immutable/ledger"
)

// verify recomputes what the ledger says of a record from its content: the body root from body and seed, and the leaf
// hash (docs/design/ledger-spec.md, Body and Leaf). A difference means that the record was changed after it was
// accepted, or that this program and the one that sealed it do not agree; neither may enter the tables.
func verify(s *sealed) error {
	leaf := ledger.Leaf{
		Chain:      ledger.ChainID(s.chain),
		Sequence:   s.sequence,
		Previous:   ledger.Hash(s.previous),
		Kind:       ledger.Kind(s.kind),
		ID:         [16]byte(s.id),
		RecordedAt: s.recordedAt,
		Generation: uint16(s.generation),
		Partition:  uint16(s.partition),
		Offset:     s.offset,
		FieldCount: uint16(s.fieldCount),
		BodyRoot:   ledger.Hash(s.bodyRoot),
	}
	if hash := leaf.Hash(); hash != ledger.Hash(s.leafHash) {
		return fmt.Errorf("leaf hash is %x, the leaf's content gives %x", s.leafHash, hash)
	}
	if s.genesis() {
		return nil
	}
	root, n, err := bodyRoot([16]byte(s.seed), s.body)
	if err != nil {
		return fmt.Errorf("reading the body: %w", err)
	}
	if root != leaf.BodyRoot || n != int(leaf.FieldCount) {
		return fmt.Errorf("body root is %x over %d fields, the body gives %x over %d", s.bodyRoot, s.fieldCount, root, n)
	}
	return nil
}

// bodyRoot returns the body root of a canonical body and its number of fields.
func bodyRoot(seed [16]byte, body []byte) ([32]byte, int, error) {
	type field struct {
		path       []byte
		commitment [32]byte
	}
	var all []field
	add := func(path, value []byte) {
		all = append(all, field{path, ledger.Commitment(seed, path, value)})
	}
	err := members(body, func(name, value []byte) error {
		if string(name) == "metadata" {
			return members(value, func(name, value []byte) error {
				add(pointer("/metadata/", name), value)
				return nil
			})
		}
		add(pointer("/", name), value)
		return nil
	})
	if err != nil {
		return [32]byte{}, 0, err
	}
	slices.SortFunc(all, func(a, b field) int { return bytes.Compare(a.path, b.path) })
	commitments := make([][32]byte, len(all))
	for i := range all {
		commitments[i] = all[i].commitment
	}
	return ledger.BodyRoot(commitments), len(commitments), nil
}

// pointer appends an escaped token to an RFC 6901 pointer.
func pointer(prefix string, token []byte) []byte {
	path := []byte(prefix)
	for _, c := range token {
		switch c {
		case '~':
			path = append(path, "~0"...)
		case '/':
			path = append(path, "~1"...)
		default:
			path = append(path, c)
		}
	}
	return path
}

// members calls yield with each member of a JSON object: its name, unescaped, and its value as it stands there.
func members(object []byte, yield func(name, value []byte) error) error {
	d := jsontext.NewDecoder(bytes.NewReader(object))
	if token, err := d.ReadToken(); err != nil {
		return err
	} else if token.Kind() != '{' {
		return errors.New("not an object")
	}
	for d.PeekKind() != '}' {
		token, err := d.ReadToken()
		if err != nil {
			return err
		}
		name := []byte(token.String())
		value, err := d.ReadValue()
		if err != nil {
			return err
		}
		if err := yield(name, value); err != nil {
			return err
		}
	}
	if _, err := d.ReadToken(); err != nil {
		return err
	}
	if _, err := d.ReadToken(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the object")
	}
	return nil
}
