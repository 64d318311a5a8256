package event

import (
	"bytes"
	"slices"
	"strconv"
)

// takeMetadata sets the metadata column, its members and its entries. It comes back as it was sent: nulls, empty strings
// and empty containers inside it stay.
func (b *Builder) takeMetadata(i int) {
	if !b.checkMetadata(metadata, i) || b.tape.nodes[i].count == 0 {
		return
	}
	b.metadata = i
	b.scan(metadata, i, namesNothing)
	start := len(b.canonical)
	b.canonical = append(b.canonical, '{')
	n := &b.tape.nodes[i]
	for k, m := range b.tape.order[n.members.start:n.members.end] {
		if k > 0 {
			b.canonical = append(b.canonical, ',')
		}
		b.canonical = b.tape.appendName(b.canonical, m)
		value := len(b.canonical)
		b.canonical = b.tape.appendCanonical(b.canonical, m)
		b.members = append(b.members, member{
			path:  b.addPath(b.tape.bytes(b.tape.nodes[m].name)),
			value: span{value, len(b.canonical)},
		})
	}
	b.canonical = append(b.canonical, '}')
	if len(b.canonical)-start > MaxMetadataBytes {
		b.refuse(metadata, i, "has more than "+strconv.Itoa(MaxMetadataBytes)+" bytes")
		return
	}
	slices.SortFunc(b.members, func(x, y member) int { return bytes.Compare(b.path(x), b.path(y)) })
	b.columns[metadata].json = span{start, len(b.canonical)}
	b.prefix = b.prefix[:0]
	if !b.addEntries(i) {
		b.refuse(metadata, i, tooManyEntries)
	}
}

// checkMetadata holds the metadata of the event or of a target to the limits but MaxMetadataBytes.
func (b *Builder) checkMetadata(f field, i int) bool {
	n := &b.tape.nodes[i]
	if n.kind != '{' {
		b.refuse(f, i, "must be an object, not "+kindName(n.kind))
		return false
	}
	if n.count > MaxMetadataKeys {
		b.refuse(f, i, "has "+strconv.Itoa(n.count)+" keys; the most is "+strconv.Itoa(MaxMetadataKeys))
		return false
	}
	return b.checkNested(f, i, 1)
}

func (b *Builder) checkNested(f field, i int, depth int) bool {
	if depth > MaxMetadataDepth {
		b.refuse(f, i, "is nested deeper than "+strconv.Itoa(MaxMetadataDepth)+" levels; flatten it")
		return false
	}
	ok, object := true, b.tape.nodes[i].kind == '{'
	for c := range b.tape.children(i) {
		n := &b.tape.nodes[c]
		if size := n.name.end - n.name.start; object && (size == 0 || size > MaxMetadataKeyBytes) {
			b.refuse(f, c, "has a name of "+strconv.Itoa(size)+" bytes; 1 to "+strconv.Itoa(MaxMetadataKeyBytes)+" are allowed")
			ok = false
		}
		if n.kind == '{' || n.kind == '[' {
			ok = b.checkNested(f, c, depth+1) && ok
		}
	}
	return ok
}

func (b *Builder) path(m member) []byte { return b.paths[m.path.start:m.path.end] }

// addPath appends the RFC 6901 pointer to a member of metadata.
func (b *Builder) addPath(name []byte) span {
	start := len(b.paths)
	b.paths = append(b.paths, "/"+FieldMetadata+"/"...)
	if bytes.IndexByte(name, '~') < 0 && bytes.IndexByte(name, '/') < 0 {
		b.paths = append(b.paths, name...)
		return span{start, len(b.paths)}
	}
	for _, c := range name {
		switch c {
		case '~':
			b.paths = append(b.paths, '~', '0')
		case '/':
			b.paths = append(b.paths, '~', '1')
		default:
			b.paths = append(b.paths, c)
		}
	}
	return span{start, len(b.paths)}
}

// addEntries appends one entry for each scalar at or in node i, at any depth and in canonical order, so that the entries
// are a function of the body. It stops and reports false where keys and values exceed MaxEntryBytes.
func (b *Builder) addEntries(i int) bool {
	switch n := &b.tape.nodes[i]; n.kind {
	case 'n':
	case '{':
		base := len(b.prefix)
		for _, c := range b.tape.order[n.members.start:n.members.end] {
			if base > 0 {
				b.prefix = append(b.prefix, '.')
			}
			b.prefix = append(b.prefix, b.tape.bytes(b.tape.nodes[c].name)...)
			if !b.addEntries(c) {
				return false
			}
			b.prefix = b.prefix[:base]
		}
	case '[':
		for c := range b.tape.children(i) {
			if !b.addEntries(c) {
				return false
			}
		}
	default:
		start := len(b.keys)
		b.keys = append(b.keys, b.prefix...)
		b.entries = append(b.entries, entry{key: span{start, len(b.keys)}, value: n.text})
		b.entryBytes += len(b.prefix) + n.text.end - n.text.start
		return b.entryBytes <= MaxEntryBytes
	}
	return true
}

// MetadataEntries returns what a record holds for filters on metadata, a JSON object: one entry for each scalar at any
// depth, in canonical order. The key is the dotted path of names, which the elements of an array share; the value is a string itself, or the
// canonical JSON of a number or boolean; null is left out. The error is an *Error: not an object, or beyond
// MaxEntryBytes.
func MetadataEntries(json []byte) (keys, values []string, err error) {
	b := NewBuilder()
	if err := b.tape.parse(json); err != nil {
		return nil, nil, err
	}
	b.gateFaults()
	if kind := b.tape.nodes[0].kind; kind != '{' {
		b.fault("", "metadata must be an object, not "+kindName(kind))
	} else if !b.addEntries(0) {
		b.fault("", tooManyEntries)
	}
	if len(b.details) > 0 {
		return nil, nil, validationError(b.details, b.more)
	}
	for _, e := range b.entries {
		keys = append(keys, string(b.keys[e.key.start:e.key.end]))
		values = append(values, string(b.tape.bytes(e.value)))
	}
	return keys, values, nil
}

const tooManyEntries = "repeats long names around too many values; shorten the names or flatten it"

// metadataResourceID finds the resource's id among the members of metadata: see Build.
func (b *Builder) metadataResourceID() (text span, plain, ok bool) {
	if b.metadata == 0 {
		return span{}, false, false
	}
	name := b.tape.bytes(b.columns[resource].text)
	for _, suffix := range [...]string{"", "_id", "_path"} {
		for c := range b.tape.children(b.metadata) {
			n := &b.tape.nodes[c]
			head, found := bytes.CutSuffix(b.tape.bytes(n.name), []byte(suffix))
			if found && bytes.Equal(head, name) && n.kind == '"' && !n.text.empty() &&
				wrongText(resourceID, b.tape.bytes(n.text)) == "" {
				return n.text, n.plain, true
			}
		}
	}
	return span{}, false, false
}
