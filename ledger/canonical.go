package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"unicode/utf8"
)

// ErrNotCanonical is wrapped by the errors of a body that is not one object in the form of RFC 8785 (JCS). They name the
// byte where it departs from it.
var ErrNotCanonical = errors.New("not in canonical form")

// MaxBodyDepth is how deep the objects and arrays of a body may be nested.
const MaxBodyDepth = 64

// A Field is what one commitment commits to: docs/design/ledger-spec.md, Body.
type Field struct {
	// Path is an RFC 6901 pointer.
	Path []byte
	// Value is canonical JSON, a part of the body.
	Value []byte
}

// Fields appends the fields of a body to dst, in the byte order of their paths, and returns it. A body that is not
// canonical, down to each number and escape, is an error: then there are no bytes that a commitment could be to. What
// it returns shares memory with body.
func Fields(dst []Field, body []byte) ([]Field, error) {
	r := canonicalReader{body: body, fields: dst, paths: make([]byte, 0, len(body))}
	return r.all()
}

// all appends the fields of the whole body to those that the reader has.
func (r *canonicalReader) all() ([]Field, error) {
	dst, first := r.fields, len(r.fields)
	r.most = first + math.MaxUint16
	if err := r.object(1, bodyPrefix); err != nil {
		return dst, err
	}
	if r.at != len(r.body) {
		return dst, r.fail("%d bytes follow the object", len(r.body)-r.at)
	}
	fields := r.fields[first:]
	byPath := func(a, b Field) int { return bytes.Compare(a.Path, b.Path) }
	if !slices.IsSortedFunc(fields, byPath) {
		slices.SortFunc(fields, byPath)
	}
	return r.fields, nil
}

// RecomputeBodyRoot returns the body root of a canonical body and its number of fields. Its errors are those of Fields.
func RecomputeBodyRoot(seed [16]byte, body []byte) (Hash, int, error) {
	fields, err := Fields(nil, body)
	if err != nil {
		return Hash{}, 0, err
	}
	commitments := make([][32]byte, len(fields))
	for i, f := range fields {
		commitments[i] = Commitment(seed, f.Path, f.Value)
	}
	return BodyRoot(commitments), len(commitments), nil
}

// canonicalReader goes once over a body.
type canonicalReader struct {
	body   []byte
	at     int
	fields []Field
	paths  []byte // one after the other
	most   int    // that fields may be
}

func (r *canonicalReader) fail(format string, args ...any) error {
	return fmt.Errorf("%w: byte %d: %s", ErrNotCanonical, r.at, fmt.Sprintf(format, args...))
}

// next returns the byte at hand; 0, which no canonical form contains, at the end.
func (r *canonicalReader) next() byte {
	if r.at < len(r.body) {
		return r.body[r.at]
	}
	return 0
}

func (r *canonicalReader) expect(c byte) error {
	if r.next() != c {
		return r.fail("want %q", c)
	}
	r.at++
	return nil
}

const (
	bodyPrefix     = "/"
	metadataName   = "metadata"
	metadataPrefix = "/metadata/"
	noPrefix       = "" // of values whose members are no fields
)

// object reads one object. With a prefix, its members are fields whose paths begin with it.
func (r *canonicalReader) object(depth int, prefix string) error {
	if err := r.expect('{'); err != nil {
		return err
	}
	if depth > MaxBodyDepth {
		return r.fail("nested deeper than %d", MaxBodyDepth)
	}
	if r.next() == '}' {
		if prefix == metadataPrefix {
			return r.fail("metadata without members has to be left out: no commitment shows it")
		}
		r.at++
		return nil
	}
	var before []byte
	for first := true; ; first = false {
		name, err := r.text()
		if err != nil {
			return err
		}
		if !first && compareUTF16(before, name) >= 0 {
			return r.fail("name %.80q is not greater than %.80q before it", name, before)
		}
		before = name
		if err := r.expect(':'); err != nil {
			return err
		}
		if err := r.member(depth, prefix, name); err != nil {
			return err
		}
		if r.next() == '}' {
			r.at++
			return nil
		}
		if err := r.expect(','); err != nil {
			return err
		}
	}
}

func (r *canonicalReader) member(depth int, prefix string, name []byte) error {
	if prefix == bodyPrefix && string(name) == metadataName && r.next() == '{' {
		return r.object(depth+1, metadataPrefix)
	}
	start := r.at
	if err := r.value(depth + 1); err != nil {
		return err
	}
	if prefix != noPrefix {
		if len(r.fields) == r.most { // said before more of them are in memory
			return r.fail("more than %d fields, which no leaf can count", math.MaxUint16)
		}
		r.fields = append(r.fields, Field{Path: r.pointer(prefix, name), Value: r.body[start:r.at]})
	}
	return nil
}

// pointer returns an RFC 6901 pointer: prefix and one escaped token.
func (r *canonicalReader) pointer(prefix string, token []byte) []byte {
	start := len(r.paths)
	r.paths = append(r.paths, prefix...)
	if bytes.IndexByte(token, '~') < 0 && bytes.IndexByte(token, '/') < 0 {
		r.paths = append(r.paths, token...)
		return r.paths[start:len(r.paths):len(r.paths)]
	}
	for _, c := range token {
		switch c {
		case '~':
			r.paths = append(r.paths, "~0"...)
		case '/':
			r.paths = append(r.paths, "~1"...)
		default:
			r.paths = append(r.paths, c)
		}
	}
	return r.paths[start:len(r.paths):len(r.paths)]
}

func (r *canonicalReader) value(depth int) error {
	switch c := r.next(); {
	case c == '"':
		_, err := r.text()
		return err
	case c == '{':
		return r.object(depth, noPrefix)
	case c == '[':
		return r.array(depth)
	case c == '-' || '0' <= c && c <= '9':
		return r.number()
	}
	for _, literal := range []string{"true", "false", "null"} {
		if bytes.HasPrefix(r.body[r.at:], []byte(literal)) {
			r.at += len(literal)
			return nil
		}
	}
	return r.fail("want a value")
}

func (r *canonicalReader) array(depth int) error {
	if depth > MaxBodyDepth {
		return r.fail("nested deeper than %d", MaxBodyDepth)
	}
	r.at++
	if r.next() == ']' {
		r.at++
		return nil
	}
	for {
		if err := r.value(depth + 1); err != nil {
			return err
		}
		if r.next() == ']' {
			r.at++
			return nil
		}
		if err := r.expect(','); err != nil {
			return err
		}
	}
}

// text reads a string and returns what it says: RFC 8785, section 3.2.2.2. It is a part of the body where nothing is
// escaped.
func (r *canonicalReader) text() ([]byte, error) {
	if err := r.expect('"'); err != nil {
		return nil, err
	}
	start := r.at
	var unescaped []byte
	copied := start // what is before it is in unescaped
	for {
		r.skipPlain()
		switch c := r.next(); {
		case c == '"':
			text := r.body[start:r.at]
			if unescaped != nil {
				text = append(unescaped, r.body[copied:r.at]...)
			}
			r.at++
			return text, nil
		case c == '\\':
			unescaped = append(unescaped, r.body[copied:r.at]...)
			b, size := escaped(r.body[r.at:])
			if size == 0 {
				return nil, r.fail("an escape that is not the shortest, or not needed")
			}
			unescaped = append(unescaped, b)
			r.at += size
			copied = r.at
		case c < 0x20:
			return nil, r.fail("want a character of a string")
		default:
			_, size := utf8.DecodeRune(r.body[r.at:])
			if size == 1 {
				return nil, r.fail("not UTF-8")
			}
			r.at += size
		}
	}
}

// skipPlain goes over what stands for itself in a string.
func (r *canonicalReader) skipPlain() {
	body, at := r.body, r.at
	for at < len(body) && body[at] >= 0x20 && body[at] < utf8.RuneSelf && body[at] != '"' && body[at] != '\\' {
		at++
	}
	r.at = at
}

// escaped returns the character that a text begins with the one permitted escape of, and that escape's size; 0 where
// there is none.
func escaped(text []byte) (c byte, size int) {
	if len(text) < 2 {
		return 0, 0
	}
	if i := bytes.IndexByte([]byte(`"\btnfr`), text[1]); i >= 0 {
		return "\"\\\b\t\n\f\r"[i], 2
	}
	if len(text) < 6 || string(text[1:4]) != "u00" || text[4] > '1' {
		return 0, 0
	}
	for c := range byte(0x20) {
		if !bytes.ContainsRune([]byte("\b\t\n\f\r"), rune(c)) && string(text[4:6]) == fmt.Sprintf("%02x", c) {
			return c, 6
		}
	}
	return 0, 0
}

// number reads a number as RFC 8785, section 3.2.2.3, writes it.
func (r *canonicalReader) number() error {
	start := r.at
	for c := r.next(); '0' <= c && c <= '9' || c == '-' || c == '+' || c == '.' || c == 'e'; c = r.next() {
		r.at++
	}
	text := r.body[start:r.at]
	f, err := strconv.ParseFloat(string(text), 64)
	if err == nil && string(appendNumber(nil, f)) == string(text) {
		return nil
	}
	r.at = start
	return r.fail("number %.40q is not the shortest form of a double", text)
}

// appendNumber appends a number as ECMAScript writes it.
func appendNumber(b []byte, f float64) []byte {
	if f == 0 {
		return append(b, '0')
	}
	if abs := math.Abs(f); 1e-6 <= abs && abs < 1e21 {
		return strconv.AppendFloat(b, f, 'f', -1, 64)
	}
	b = strconv.AppendFloat(b, f, 'e', -1, 64)
	// The exponent has at least two digits here, and no leading zero there.
	if n := len(b); b[n-2] == '0' && (b[n-3] == '-' || b[n-3] == '+') {
		b[n-2] = b[n-1]
		b = b[:n-1]
	}
	return b
}

// compareUTF16 compares texts by their UTF-16 code units, RFC 8785, section 3.2.3. That is the order of their bytes, but
// that surrogates, which stand for what is F0 and up in UTF-8, come before what is EE and EF there.
func compareUTF16(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		x, y := a[i], b[i]
		if x == y {
			continue
		}
		const surrogates, after = 0xf0, 0xee
		if x >= after && y >= after && (x >= surrogates) != (y >= surrogates) {
			x, y = y, x
		}
		return int(x) - int(y)
	}
	return len(a) - len(b)
}
