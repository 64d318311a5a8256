package ledger

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"
)

// ErrDisclosure is wrapped by the errors of a stored disclosure that cannot be read, or that does not belong to a body.
var ErrDisclosure = errors.New("invalid disclosure")

// EncodeDisclosure returns what is stored beside the body of a redacted event: a JSON array, in the order of the paths, of
// every field that the event ever had, {"path","salt"} for one that the body still has and {"path","commitment"} for one
// that was erased. Values are left out: the body has them.
func EncodeDisclosure(all []Disclosure) ([]byte, error) {
	stored := make([]Disclosure, len(all))
	for i, d := range all {
		d.Value = nil
		stored[i] = d
	}
	text, err := json.Marshal(stored)
	if err != nil {
		return nil, fmt.Errorf("encoding a disclosure: %w", err)
	}
	return text, nil
}

// ParseDisclosure reads what EncodeDisclosure returns, and nothing else. Its errors wrap ErrDisclosure.
func ParseDisclosure(text []byte) ([]Disclosure, error) {
	var stored []Disclosure
	if err := json.Unmarshal(text, &stored, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDisclosure, err)
	}
	for i, d := range stored {
		switch {
		case i > 0 && stored[i-1].Path >= d.Path:
			return nil, fmt.Errorf("%w: path %.80q is not after the path before it", ErrDisclosure, d.Path)
		case d.Value != nil || (d.Salt == nil) == (d.Commitment == nil):
			return nil, fmt.Errorf("%w: of path %.80q: want salt or commitment", ErrDisclosure, d.Path)
		}
	}
	if again, err := EncodeDisclosure(stored); err != nil || !bytes.Equal(again, text) {
		return nil, fmt.Errorf("%w: it is not in its only form", ErrDisclosure)
	}
	return stored, nil
}

// JoinDisclosure puts the values of a redacted event's body into its stored disclosure, as a proof bundle needs them. The
// body must have exactly the fields that are not erased: one that is missing, or that the disclosure does not know, or
// knows as erased, is an error that wraps ErrDisclosure, and a body that is not canonical one that wraps ErrNotCanonical.
func JoinDisclosure(stored []Disclosure, body []byte) ([]Disclosure, error) {
	fields, err := Fields(nil, body)
	if err != nil {
		return nil, err
	}
	all := make([]Disclosure, len(stored))
	for i, d := range stored {
		there := len(fields) > 0 && string(fields[0].Path) == d.Path
		switch {
		case d.Commitment == nil && !there:
			return nil, fmt.Errorf("%w: the body lacks %.80q, or has another field before it", ErrDisclosure, d.Path)
		case d.Commitment != nil && there:
			return nil, fmt.Errorf("%w: the body has %.80q, which was erased", ErrDisclosure, d.Path)
		case there:
			value := string(fields[0].Value)
			d.Value = &value
			fields = fields[1:]
		}
		all[i] = d
	}
	if len(fields) > 0 {
		return nil, fmt.Errorf("%w: the body has %.80q, which it does not know", ErrDisclosure, fields[0].Path)
	}
	return all, nil
}
