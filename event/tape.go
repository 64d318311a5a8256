package event

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// maxNesting bounds the recursion. The deepest metadata that is allowed, a target's, ends at MaxMetadataDepth + 3; what
// is between the two is refused with its path.
const maxNesting = 3*MaxMetadataDepth + 3

// span is a range of bytes of a buffer. The zero span is empty.
type span struct{ start, end int }

func (s span) empty() bool { return s.start == s.end }

// node is one JSON value. A tape holds the nodes of a document in document order, parents before children.
type node struct {
	kind jsontext.Kind // 'n' 'f' 't' '"' '0' '{' '['
	// plain and namePlain: the text between quotation marks is its own RFC 8785 form.
	plain, namePlain bool
	// duplicate: an earlier member of the object has the same name.
	duplicate bool
	// name is the decoded member name where the parent is an object.
	name span
	// text is a string's decoded text, a number's canonical form, or a literal.
	text span
	// members of an object are order[members.start:members.end], in RFC 8785 order.
	members span
	// count of elements or members.
	count int
	// next is the index of the first node after this one and all that it contains.
	next int
}

// fault is something that the JSON of an event says and an audit log could not give back, or may not keep.
type fault struct {
	node int
	// onName: it is the member's name, not its value.
	onName  bool
	message string
}

// tape is the strict gate: parsed JSON that means one thing only. Syntax is jsontext's (RFC 8259, UTF-8); a duplicate
// name, a lone surrogate and a number that a double cannot hold are collected as faults, so that all are reported at once.
type tape struct {
	decoder jsontext.Decoder
	reader  bytes.Buffer
	// text is a copy of the input, followed by strings and numbers whose text differs from it.
	text   []byte
	nodes  []node
	order  []int
	open   []int // children of the containers being parsed
	faults []fault
	more   int // faults beyond MaxDetails
}

func (t *tape) bytes(s span) []byte { return t.text[s.start:s.end] }

// add appends text to the tape.
func (t *tape) add(text []byte) span {
	start := len(t.text)
	t.text = append(t.text, text...)
	return span{start, len(t.text)}
}

// fault notes what is wrong with node n.
func (t *tape) fault(n int, onName bool, message string) {
	if len(t.faults) == MaxDetails {
		t.more++
		return
	}
	t.faults = append(t.faults, fault{n, onName, message})
}

// parse reads exactly one JSON value. Its error is invalid_json, or validation_failed for nesting beyond maxNesting;
// what else the gate refuses is in t.faults afterwards. The tape does not refer to json when it returns.
func (t *tape) parse(json []byte) *Error {
	t.text = append(t.text[:0], json...)
	t.nodes, t.order, t.open = t.nodes[:0], t.order[:0], t.open[:0]
	t.faults, t.more = t.faults[:0], 0
	if len(bytes.TrimSpace(json)) == 0 {
		return &Error{Code: CodeInvalidJSON, Message: "there is no JSON; send one object"}
	}
	if !utf8.Valid(json) {
		return syntaxError(invalidUTF8(json), "a byte that is not UTF-8; encode the text as UTF-8")
	}
	// The decoder reads the tape's copy in place, and neither end of it writes.
	t.reader = *bytes.NewBuffer(t.text)
	t.decoder.Reset(&t.reader, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	t.nodes = append(t.nodes, node{})
	if err := t.value(0, 1); err != nil {
		if e, ok := errors.AsType[*Error](err); ok {
			return e
		}
		return explain(json, err)
	}
	end := t.decoder.InputOffset()
	if _, err := t.decoder.ReadToken(); !errors.Is(err, io.EOF) {
		return syntaxError(end, "there is more text after the end of the value; send one value")
	}
	return nil
}

// value reads the next value into node i.
func (t *tape) value(i, depth int) error {
	switch t.decoder.PeekKind() {
	case '{', '[':
		if depth > maxNesting {
			return &Error{Code: CodeValidation, Message: fmt.Sprintf(
				"at byte %d the JSON is nested deeper than %d levels; flatten it", t.decoder.InputOffset(), maxNesting)}
		}
		return t.container(i, depth)
	case '"':
		raw, err := t.decoder.ReadValue()
		if err != nil {
			return err
		}
		text, plain := t.str(raw, i, false)
		t.nodes[i].kind, t.nodes[i].text, t.nodes[i].plain = '"', text, plain
	default:
		raw, err := t.decoder.ReadValue()
		if err != nil {
			return err
		}
		n := &t.nodes[i]
		n.kind, n.text = raw.Kind(), t.span(raw)
		if n.kind == '0' {
			t.number(i, raw)
		}
	}
	t.nodes[i].next = len(t.nodes)
	return nil
}

func (t *tape) container(i, depth int) error {
	token, err := t.decoder.ReadToken()
	if err != nil {
		return err
	}
	kind, base := token.Kind(), len(t.open)
	for {
		next := t.decoder.PeekKind()
		if next == '}' || next == ']' {
			break
		}
		child := len(t.nodes)
		t.nodes = append(t.nodes, node{})
		t.open = append(t.open, child)
		if kind == '{' {
			raw, err := t.decoder.ReadValue()
			if err != nil {
				return err
			}
			name, plain := t.str(raw, child, true)
			t.nodes[child].name, t.nodes[child].namePlain = name, plain
		}
		if err := t.value(child, depth+1); err != nil {
			return err
		}
	}
	if _, err := t.decoder.ReadToken(); err != nil {
		return err
	}
	n := &t.nodes[i]
	n.kind, n.count, n.next = kind, len(t.open)-base, len(t.nodes)
	if kind == '{' {
		first := len(t.order)
		t.order = append(t.order, t.open[base:]...)
		n.members = span{first, len(t.order)}
		t.sortMembers(t.order[first:])
	}
	t.open = t.open[:base]
	return nil
}

// sortMembers puts members in RFC 8785 order, where duplicate names are neighbours.
func (t *tape) sortMembers(members []int) {
	slices.SortFunc(members, func(a, b int) int {
		if c := compareNames(t.bytes(t.nodes[a].name), t.bytes(t.nodes[b].name)); c != 0 {
			return c
		}
		return a - b
	})
	for i := 1; i < len(members); i++ {
		if bytes.Equal(t.bytes(t.nodes[members[i-1]].name), t.bytes(t.nodes[members[i]].name)) {
			t.nodes[members[i]].duplicate = true
			t.fault(members[i], false, "is there twice; a name may appear once in an object")
		}
	}
}

// span returns where raw, the value just read, stands in the input.
func (t *tape) span(raw []byte) span {
	end := int(t.decoder.InputOffset())
	return span{end - len(raw), end}
}

// str decodes a string with its quotation marks and reports whether the text between them is its own RFC 8785 form.
func (t *tape) str(raw []byte, i int, isName bool) (text span, plain bool) {
	if bytes.IndexByte(raw, '\\') < 0 {
		s := t.span(raw)
		return span{s.start + 1, s.end - 1}, true
	}
	start := len(t.text)
	decoded, err := jsontext.AppendUnquote(t.text, raw)
	t.text = decoded
	text = span{start, len(decoded)}
	if err != nil { // The input is valid UTF-8, so that only an escape can be at fault.
		t.fault(i, isName, "has half of a surrogate pair; send whole characters")
	}
	for _, c := range t.bytes(text) {
		if c < 0x20 || c == '"' || c == '\\' {
			return text, false
		}
	}
	return text, true
}

// number puts the canonical form of a number, which is raw for a short integer.
func (t *tape) number(i int, raw []byte) {
	if isShortInteger(raw) {
		return
	}
	start := len(t.text)
	text, ok := appendNumber(t.text, raw)
	if !ok {
		t.fault(i, false, "is a number that a double cannot hold exactly; send it as a string")
		return
	}
	t.text = text
	t.nodes[i].text = span{start, len(text)}
}

// explain says where json stops being JSON, and why. It reads it again, because the decoder words what it finds inside a
// value better than what it finds between tokens.
func explain(json []byte, err error) *Error {
	decoder := jsontext.NewDecoder(bytes.NewBuffer(json), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if _, again := decoder.ReadValue(); again != nil {
		err = again
	}
	syntactic, ok := errors.AsType[*jsontext.SyntacticError](err)
	if !ok || errors.Is(err, io.ErrUnexpectedEOF) {
		return syntaxError(int64(len(json)), "it ends too early; send the whole value")
	}
	return syntaxError(syntactic.ByteOffset, syntactic.Err.Error())
}

func syntaxError(offset int64, message string) *Error {
	return &Error{Code: CodeInvalidJSON, Message: "not valid JSON at byte " + strconv.FormatInt(offset, 10) + ": " + message}
}

func invalidUTF8(text []byte) int64 {
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRune(text[i:])
		if r == utf8.RuneError && size <= 1 {
			return int64(i)
		}
		i += size
	}
	return int64(len(text))
}

// children yields the indices of the values directly inside container i, in document order.
func (t *tape) children(i int) func(yield func(int) bool) {
	return func(yield func(int) bool) {
		for c := i + 1; c < t.nodes[i].next; c = t.nodes[c].next {
			if !yield(c) {
				return
			}
		}
	}
}

// path returns where node i is, as in metadata.affected_services[0]; empty for the whole value.
func (t *tape) path(i int) string {
	var path []byte
	for at := 0; at != i; {
		element := 0
		for c := range t.children(at) {
			if i >= t.nodes[c].next {
				element++
				continue
			}
			if t.nodes[at].kind == '[' {
				path = append(path, '[')
				path = strconv.AppendInt(path, int64(element), 10)
				path = append(path, ']')
			} else {
				if len(path) > 0 {
					path = append(path, '.')
				}
				path = appendPathName(path, t.bytes(t.nodes[c].name))
			}
			at = c
			break
		}
	}
	return shorten(path)
}

// appendPathName appends a name, or what stands for it where it looks like a secret: paths are in errors and flags.
func appendPathName(path, name []byte) []byte {
	if rule := secretIn(name); rule != "" {
		return append(path, redacted(rule)...)
	}
	return append(path, name...)
}

// shorten keeps what a message repeats of its input within maxPath bytes.
func shorten(path []byte) string {
	const maxPath = 300
	if len(path) <= maxPath {
		return string(path)
	}
	cut := maxPath
	for !utf8.RuneStart(path[cut]) {
		cut--
	}
	return string(path[:cut]) + "…"
}
