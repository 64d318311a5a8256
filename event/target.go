package event

import "strconv"

// takeTargets sets the targets column: each target without what is absent from it.
func (b *Builder) takeTargets(i int) {
	n := &b.tape.nodes[i]
	if n.kind != '[' {
		b.refuse(targets, i, "must be an array of {type, id, name, metadata}, not "+kindName(n.kind))
		return
	}
	if n.count > MaxTargets {
		b.refuse(targets, i, "has "+strconv.Itoa(n.count)+" elements; the most is "+strconv.Itoa(MaxTargets))
		return
	}
	if n.count == 0 {
		return
	}
	b.scan(targets, i, namesNothing)
	start := len(b.canonical)
	separator := byte('[')
	for c := range b.tape.children(i) {
		b.canonical = append(b.canonical, separator)
		separator = ','
		b.takeTarget(c)
	}
	b.canonical = append(b.canonical, ']')
	b.columns[targets].json = span{start, len(b.canonical)}
}

func (b *Builder) takeTarget(i int) {
	if kind := b.tape.nodes[i].kind; kind != '{' {
		b.refuse(targets, i, "must be an object {type, id, name, metadata}, not "+kindName(kind))
		return
	}
	const id, meta, name, kind = 0, 1, 2, 3 // in RFC 8785 order
	var parts [4]int                        // nodes; 0 for what is absent
	for c := range b.tape.children(i) {
		n := &b.tape.nodes[c]
		switch string(b.tape.bytes(n.name)) {
		case "id":
			parts[id] = b.targetText(c)
		case "metadata":
			if n.kind != 'n' && b.checkMetadata(targets, c) && n.count > 0 {
				parts[meta] = c
			}
		case "name":
			parts[name] = b.targetText(c)
		case "type":
			parts[kind] = b.targetText(c)
		default:
			b.refuse(targets, c, "is not known; a target is {type, id, name, metadata}")
		}
	}
	if parts[kind] == 0 {
		b.refuse(targets, i, "needs a type, a string that is not empty")
	}
	// Node 0 is the event itself, an object: its text is empty.
	b.targets = append(b.targets, target{kind: b.tape.nodes[parts[kind]].text, id: b.tape.nodes[parts[id]].text})
	separator := byte('{')
	for k, c := range parts {
		if c == 0 {
			continue
		}
		b.canonical = append(b.canonical, separator)
		separator = ','
		b.canonical = b.tape.appendName(b.canonical, c)
		start := len(b.canonical)
		b.canonical = b.tape.appendCanonical(b.canonical, c)
		if k == meta && len(b.canonical)-start > MaxMetadataBytes {
			b.refuse(targets, c, "has more than "+strconv.Itoa(MaxMetadataBytes)+" bytes")
		}
	}
	b.canonical = append(b.canonical, '}')
}

// targetText returns i where it is a text that a target may have, 0 where it is absent or refused.
func (b *Builder) targetText(i int) int {
	n := &b.tape.nodes[i]
	switch {
	case n.kind == 'n' || n.kind == '"' && n.text.empty():
		return 0
	case n.kind != '"':
		b.refuse(targets, i, "must be a string, not "+kindName(n.kind))
		return 0
	}
	if wrong := wrongText(targets, b.tape.bytes(n.text)); wrong != "" {
		b.refuse(targets, i, wrong)
		return 0
	}
	return i
}
