package event

import (
	"bytes"
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
	return path == "/"+FieldAction || path == "/"+FieldOccurredAt || path == "/"+FieldVersion
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

// Columns are what a record holds beside its body, for filters. They are a function of the body alone.
type Columns struct {
	// Text has the members of the body that are texts by their names: FieldActorID and so on. What the body lacks is not
	// in it.
	Text map[string]string
	// OccurredAt is in microseconds since the Unix epoch.
	OccurredAt int64
	// TargetTypes and TargetIDs are as many as there are targets; an id that is absent is empty.
	TargetTypes, TargetIDs []string
	Flags                  []string
	// MetadataKeys and MetadataValues are as MetadataEntries returns them.
	MetadataKeys, MetadataValues []string
}

// ColumnsOf returns the columns of a canonical body.
func ColumnsOf(body []byte) (*Columns, error) {
	var t tape
	if err := t.read(body); err != nil {
		return nil, err
	}
	c := &Columns{Text: make(map[string]string, int(numFields))}
	for _, m := range t.members(0) {
		n := &t.nodes[m]
		switch name := string(t.bytes(n.name)); {
		case name == FieldMetadata && n.kind == '{':
			var err error
			if c.MetadataKeys, c.MetadataValues, err = MetadataEntries(t.appendCanonical(nil, m)); err != nil {
				return nil, fmt.Errorf("reading the metadata of a body: %w", err)
			}
		case name == FieldTargets && n.kind == '[':
			for target := range t.children(m) {
				c.TargetTypes = append(c.TargetTypes, t.member(target, "type"))
				c.TargetIDs = append(c.TargetIDs, t.member(target, "id"))
			}
		case name == FieldFlags && n.kind == '[':
			for flag := range t.children(m) {
				c.Flags = append(c.Flags, string(t.bytes(t.nodes[flag].text)))
			}
		case name == FieldOccurredAt:
			at, ok := parseTime(string(t.bytes(n.text)))
			if !ok {
				return nil, errors.New("reading the body: occurred_at is not a time")
			}
			c.OccurredAt = at.UnixMicro()
		case n.kind == '"' && name != FieldIdempotencyKey:
			c.Text[name] = string(t.bytes(n.text))
		}
	}
	return c, nil
}

// member returns the text of a member of object i, empty where there is none.
func (t *tape) member(i int, name string) string {
	for _, m := range t.members(i) {
		if n := &t.nodes[m]; n.kind == '"' && bytes.Equal(t.bytes(n.name), []byte(name)) {
			return string(t.bytes(n.text))
		}
	}
	return ""
}
