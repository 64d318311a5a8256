package event

import (
	"bytes"
	"net/netip"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// normalise takes the members of the event, in document order but for metadata, and sets the columns.
func (b *Builder) normalise(in *Input) {
	if kind := b.tape.nodes[0].kind; kind != '{' {
		b.fault("", "the event must be a JSON object, not "+kindName(kind))
		return
	}
	last := 0
	for i := range b.tape.children(0) {
		n := &b.tape.nodes[i]
		name := b.tape.bytes(n.name)
		switch f, known := fieldNamed(name); {
		case string(name) == "actor":
			b.takeObject(i, actorMember, "{id, name, type}")
		case !known:
			b.faultAt(i, "is not a field of an event; known are "+knownFields+"; anything else belongs in metadata")
		case f == resource && n.kind == '{':
			b.takeObject(i, resourceMember, "{type, id, name}")
		case f == metadata && !n.duplicate:
			last = i // What its members mean depends on resource.
		default:
			b.take(f, i)
		}
	}
	if last > 0 {
		b.take(metadata, last)
	}
	b.headerKey(in.IdempotencyKey)
	for _, f := range [...]field{actorID, action} {
		if c := &b.columns[f]; c.json.empty() && !c.faulty {
			b.fault(f.name(), "is required")
		}
	}
}

func actorMember(name []byte) (field, bool) {
	switch string(name) {
	case "id":
		return actorID, true
	case "name":
		return actorName, true
	case "type":
		return actorType, true
	}
	return 0, false
}

func resourceMember(name []byte) (field, bool) {
	switch string(name) {
	case "id":
		return resourceID, true
	case "name":
		return resourceName, true
	case "type":
		return resource, true
	}
	return 0, false
}

// takeObject takes the members of the nested form of actor or resource, which has the given shape.
func (b *Builder) takeObject(i int, fieldOf func(name []byte) (field, bool), shape string) {
	switch n := &b.tape.nodes[i]; n.kind {
	case 'n':
	case '{':
		for c := range b.tape.children(i) {
			if f, known := fieldOf(b.tape.bytes(b.tape.nodes[c].name)); known {
				b.take(f, c)
			} else {
				b.faultAt(c, "is not known; the object is "+shape)
			}
		}
	default:
		b.faultAt(i, "must be an object "+shape+", not "+kindName(n.kind))
	}
}

// take sets a column from node i.
func (b *Builder) take(f field, i int) {
	switch n := &b.tape.nodes[i]; {
	case n.kind == 'n':
	case f == metadata:
		b.takeMetadata(i)
	case f == targets:
		b.takeTargets(i)
	case f == version:
		b.takeVersion(i)
	case f == actorID && n.kind == '0':
		b.takeText(f, i, '0')
	default:
		b.takeText(f, i, '"')
	}
}

// takeText sets a column from a node of the given kind.
func (b *Builder) takeText(f field, i int, kind jsontext.Kind) {
	n := &b.tape.nodes[i]
	if n.kind != kind {
		b.refuse(f, i, "must be a string, not "+kindName(n.kind))
		return
	}
	if n.text.empty() {
		return
	}
	before := b.columns[f].json
	switch text := b.tape.bytes(n.text); f {
	case ipAddress:
		b.takeAddress(i, text)
	case occurredAt:
		b.takeTime(i, text)
	default:
		if f != idempotencyKey { // See headerKey.
			b.scan(f, i, namesNothing)
		}
		if wrong := wrongText(f, b.tape.bytes(n.text)); wrong != "" {
			b.refuse(f, i, wrong)
			return
		}
		b.setText(f, n.text, n.plain || kind == '0')
	}
	if !before.empty() && !n.duplicate && !bytes.Equal(b.json(before), b.json(b.columns[f].json)) {
		b.refuse(f, i, "is sent twice, flat and nested, with different values; send one")
	}
}

// wrongText returns what is wrong with the text of a field, empty where nothing is.
func wrongText(f field, text []byte) string {
	limit := MaxTextCharacters
	if f == resourceID {
		limit = MaxResourceIDCharacters
	}
	switch {
	case (f == action || f == actorID) && !printable(text):
		return "must have printable characters only"
	case f == action && bytes.IndexByte(text, ' ') >= 0:
		return "must not contain spaces; resource.verb is the custom"
	case len(text) > limit && utf8.RuneCount(text) > limit:
		return "must have at most " + strconv.Itoa(limit) + " characters"
	}
	return ""
}

func (b *Builder) takeAddress(i int, text []byte) {
	addr, err := netip.ParseAddr(string(text))
	if err != nil || addr.Zone() != "" {
		b.refuse(ipAddress, i, "must be an IPv4 or IPv6 address without a zone")
		return
	}
	var stack [64]byte
	b.setText(ipAddress, b.tape.add(addr.Unmap().AppendTo(stack[:0])), true)
}

func (b *Builder) takeTime(i int, text []byte) {
	switch t, ok := parseTime(string(text)); {
	case !ok:
		b.refuse(occurredAt, i, "must be a time in RFC 3339, as in 2006-01-02T15:04:05.000000Z")
	case t.After(b.clock.Add(MaxAhead)):
		b.refuse(occurredAt, i, "is more than 24 hours ahead; check the clock and the time zone")
	case t.Before(b.clock.AddDate(-MaxBackYears, 0, 0)):
		b.refuse(occurredAt, i, "is more than 10 years back")
	default:
		b.setTime(t)
	}
}

// parseTime reads RFC 3339, of which package time accepts more than there is: a comma before the fraction, an hour of
// one digit, offsets of 24:00 and :60.
func parseTime(s string) (time.Time, bool) {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil || s[len("2006-01-02T15")] != ':' || s[len("2006-01-02T15:04:05")] == ',' {
		return time.Time{}, false
	}
	if n := len(s); s[n-1] != 'Z' && (s[n-5:n-3] > "23" || s[n-2:] > "59") {
		return time.Time{}, false
	}
	return t, true
}

// takeVersion takes an integer; the gate has made its text canonical: 1.0 is 1.
func (b *Builder) takeVersion(i int) {
	if n := &b.tape.nodes[i]; n.kind == '0' {
		text := b.tape.bytes(n.text)
		if v, err := strconv.ParseUint(string(text), 10, 64); err == nil && v <= MaxVersion {
			start := len(b.canonical)
			b.canonical = append(b.canonical, text...)
			b.columns[version].json = span{start, len(b.canonical)}
			return
		}
	}
	b.refuse(version, i, "must be an integer from 0 to "+strconv.Itoa(MaxVersion))
}

// headerKey merges the idempotency key of the request's header with the body's.
func (b *Builder) headerKey(key string) {
	c := &b.columns[idempotencyKey]
	if c.faulty {
		return
	}
	wrong := ""
	switch {
	case key == "":
	case !utf8.ValidString(key):
		wrong = "must be UTF-8 in the Idempotency-Key header"
	case c.json.empty():
		wrong = wrongText(idempotencyKey, []byte(key))
	case string(b.tape.bytes(c.text)) != key:
		wrong = "differs from the Idempotency-Key header; send one"
	}
	if wrong != "" {
		b.fault(FieldIdempotencyKey, wrong)
		return
	}
	if key != "" {
		b.setText(idempotencyKey, b.tape.add([]byte(key)), false)
	}
	b.scanKey()
}

// refuse reports what is wrong with field f, at node i.
func (b *Builder) refuse(f field, i int, message string) {
	b.columns[f].faulty = true
	b.faultAt(i, message)
}

// faultAt adds a detail about node i. Its path takes time to find, which may not grow with the number of faults.
func (b *Builder) faultAt(i int, message string) {
	if len(b.details) == MaxDetails {
		b.more++
		return
	}
	b.fault(b.tape.path(i), message)
}

// setText sets a column to a string that is on the tape.
func (b *Builder) setText(f field, text span, plain bool) {
	start := len(b.canonical)
	b.canonical = appendString(b.canonical, b.tape.bytes(text), plain)
	b.columns[f].text = text
	b.columns[f].json = span{start, len(b.canonical)}
}

func (b *Builder) setTime(t time.Time) {
	var stack [32]byte
	b.occurredAt = t.UnixMicro()
	b.setText(occurredAt, b.tape.add(appendTime(stack[:0], t)), true)
}

func (b *Builder) json(s span) []byte { return b.canonical[s.start:s.end] }

// printable reports whether text has printable characters only; of the spaces that is U+0020.
func printable(text []byte) bool {
	for i := 0; i < len(text); {
		if c := text[i]; c < utf8.RuneSelf {
			if c < 0x20 || c == 0x7f {
				return false
			}
			i++
			continue
		}
		r, size := utf8.DecodeRune(text[i:])
		if !unicode.IsPrint(r) {
			return false
		}
		i += size
	}
	return true
}

func kindName(k jsontext.Kind) string {
	switch k {
	case 'n':
		return "null"
	case 't', 'f':
		return "a boolean"
	case '0':
		return "a number"
	case '"':
		return "a string"
	case '[':
		return "an array"
	default:
		return "an object"
	}
}
