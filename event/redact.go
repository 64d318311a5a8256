package event

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"getimmutable.dev/immutable/ledger"
)

// Content is what a redaction changes of an event.
type Content struct {
	// Body is the canonical JSON of the fields that are left.
	Body []byte
	// Seed is zero once a field was erased: it would give away the salts of erased fields.
	Seed [16]byte
	// Disclosure is nil until a field is erased, and then has every field that the event ever had (ledger.EncodeDisclosure).
	Disclosure []ledger.Disclosure
}

// Protected reports whether a path can be erased from no event: without action and occurred_at there is no event, and
// version says how to read the others.
func Protected(path string) bool {
	return ledger.Protected(path)
}

// Fields returns the paths of all fields that the event ever had, in their byte order, and those erased among them.
func (c *Content) Fields() (all, erased []string, err error) {
	if c.Disclosure != nil {
		for _, d := range c.Disclosure {
			all = append(all, d.Path)
			if d.Commitment != nil {
				erased = append(erased, d.Path)
			}
		}
		return all, erased, nil
	}
	fields, err := ledger.Fields(nil, c.Body)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the body: %w", err)
	}
	for _, f := range fields {
		all = append(all, string(f.Path))
	}
	return all, nil, nil
}

// Redact returns what is left of c without the fields at paths. Paths that are protected, erased already, or not the
// event's are passed over; where nothing remains to be erased the result is c itself. Every commitment, and so the leaf,
// stays what it was. An error means that c is not an event's content: its body is not canonical, or is not that of its
// disclosure.
func (c *Content) Redact(paths []string) (*Content, error) {
	all, erased, err := c.Fields()
	if err != nil {
		return nil, err
	}
	paths = slices.DeleteFunc(slices.Clone(paths), func(path string) bool {
		return Protected(path) || !slices.Contains(all, path) || slices.Contains(erased, path)
	})
	if len(paths) == 0 {
		return c, nil
	}
	disclosed := c.Disclosure
	if disclosed == nil {
		fields, err := ledger.Fields(nil, c.Body)
		if err != nil {
			return nil, fmt.Errorf("reading the body: %w", err)
		}
		disclosed = ledger.Disclose(c.Seed, fields, nil)
	} else if disclosed, err = ledger.JoinDisclosure(disclosed, c.Body); err != nil {
		return nil, fmt.Errorf("joining body and disclosure: %w", err)
	}
	left := &Content{Disclosure: make([]ledger.Disclosure, len(disclosed))}
	for i, d := range disclosed {
		if slices.Contains(paths, d.Path) {
			commitment := ledger.Hash(ledger.SaltedCommitment(*d.Salt, []byte(d.Path), []byte(*d.Value)))
			d.Salt, d.Commitment = nil, &commitment
		}
		d.Value = nil
		left.Disclosure[i] = d
	}
	if left.Body, err = Mask(c.Body, paths); err != nil {
		return nil, err
	}
	return left, nil
}

// Mask returns a body without the fields at paths, in canonical form; paths that it does not have are passed over. It is
// for showing and sending: control.Redactions says which paths.
func Mask(body []byte, paths []string) ([]byte, error) {
	var t tape
	if err := t.read(body); err != nil {
		return nil, err
	}
	masked := make([]byte, 0, len(body))
	masked = append(masked, '{')
	for _, m := range t.members(0) {
		name := t.bytes(t.nodes[m].name)
		if slices.Contains(paths, pointer("/", name)) {
			continue
		}
		value := t.nodes[m]
		if string(name) != FieldMetadata || value.kind != '{' {
			masked = t.appendCanonical(t.appendName(separated(masked), m), m)
			continue
		}
		var left []byte
		for _, k := range t.members(m) {
			if !slices.Contains(paths, pointer("/"+FieldMetadata+"/", t.bytes(t.nodes[k].name))) {
				left = t.appendCanonical(t.appendName(separated(left), k), k)
			}
		}
		if len(left) > 0 { // an empty object is none
			masked = t.appendName(separated(masked), m)
			masked = append(append(append(masked, '{'), left...), '}')
		}
	}
	return append(masked, '}'), nil
}

// separated appends the comma before a member where there is one before it.
func separated(object []byte) []byte {
	if n := len(object); n == 0 || n == 1 && object[0] == '{' {
		return object
	}
	return append(object, ',')
}

// pointer returns an RFC 6901 pointer: prefix and one escaped token.
func pointer(prefix string, token []byte) string {
	return prefix + strings.NewReplacer("~", "~0", "/", "~1").Replace(string(token))
}

// read parses a body.
func (t *tape) read(body []byte) error {
	if err := t.parse(body); err != nil {
		return fmt.Errorf("reading the body: %w", err)
	}
	if t.nodes[0].kind != '{' || len(t.faults) > 0 {
		return errors.New("reading the body: it is not an object in canonical form")
	}
	return nil
}

// members returns the members of object i, in RFC 8785 order.
func (t *tape) members(i int) []int {
	span := t.nodes[i].members
	return t.order[span.start:span.end]
}
