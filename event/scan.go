package event

import (
	"bytes"
	"slices"
)

// SecretPolicy is what becomes of an event that holds what looks like a secret.
type SecretPolicy string

// The policies.
const (
	// SecretsFlag, the default, also where a policy is empty: the event is kept as it is, and its flags say where.
	SecretsFlag SecretPolicy = "flag"
	// SecretsRedact puts [REDACTED:<rule>] in the place of the value before anything else is done with it.
	SecretsRedact SecretPolicy = "redact"
	// SecretsReject refuses the event.
	SecretsReject SecretPolicy = "reject"
)

// Known reports whether this version knows the policy.
func (p SecretPolicy) Known() bool {
	return p == "" || p == SecretsFlag || p == SecretsRedact || p == SecretsReject
}

const (
	// secretFlag, and the field, are a flag of an event.
	secretFlag = "possible_secret:"
	// sensitiveKey is the rule of values that only their name gives away.
	sensitiveKey = "sensitive-key"
	// minNameBytes is how long the name of a member is at least that is looked at for a secret itself.
	minNameBytes = 12
)

// scan looks for secrets in field f, at node i and below, and does with them what the workspace's policy says. s is what
// the name of the node says about its value. It comes before anything that is derived from the node's text.
func (b *Builder) scan(f field, i int, s sensitivity) {
	switch n := &b.tape.nodes[i]; n.kind {
	case '"':
		text := b.tape.bytes(n.text)
		rule := secretIn(text)
		if rule == "" && isSecretValue(s, text) {
			rule = sensitiveKey
		}
		if rule != "" {
			b.secret(f, i, rule)
		}
	case '[':
		for c := range b.tape.children(i) {
			b.scan(f, c, s)
		}
	case '{':
		b.scanObject(f, i, s)
	default:
	}
}

// scanObject scans the members of an object. Where its own name is sensitive, or one of its members is called config_key
// and says so, those that are called value, old_value and the like are, too. It goes by the order of names, so that what
// is found first does not depend on the order in which they were sent.
func (b *Builder) scanObject(f field, i int, s sensitivity) {
	n := b.tape.nodes[i]
	members := b.tape.order[n.members.start:n.members.end]
	for _, c := range members {
		if name := b.tape.bytes(b.tape.nodes[c].name); namesAnother(name) {
			b.scan(f, c, sensitivityOf(name))
			// A name that was a secret and is redacted says nothing, so that scanning twice finds the same.
			if m := &b.tape.nodes[c]; m.kind == '"' {
				s = max(s, sensitivityOf(b.tape.bytes(m.text)))
			}
		}
	}
	for _, c := range members {
		name := b.tape.bytes(b.tape.nodes[c].name)
		if len(name) >= minNameBytes {
			if rule := secretIn(name); rule != "" {
				b.secretName(f, c, rule)
			}
		}
		if namesAnother(name) {
			continue
		}
		own := sensitivityOf(name)
		switch {
		case s > own && isValueName(name):
			own = s
		case own == namesKey && i == b.metadata && bytes.Equal(name, b.tape.bytes(b.columns[resource].text)):
			own = namesThing // resource_id is filled from it: see Build.
		}
		b.scan(f, c, own)
	}
}

// secret does with the text of node i what the policy says.
func (b *Builder) secret(f field, i int, rule string) {
	b.secrets = true
	switch b.ws.SecretPolicy {
	case SecretsRedact:
		n := &b.tape.nodes[i]
		n.text, n.plain = b.tape.add([]byte(redacted(rule))), true
	case SecretsReject:
		b.refused = true
		b.refuse(f, i, looksLike(rule))
	default:
		b.flag(f, i)
	}
}

// secretName does so where the name of node i is one. Names are not replaced: two could become one.
func (b *Builder) secretName(f field, i int, rule string) {
	b.secrets = true
	switch b.ws.SecretPolicy {
	case SecretsRedact, SecretsReject:
		b.refused = true
		b.refuse(f, i, "has a name that "+looksLike(rule))
	default:
		b.flag(f, i)
	}
}

// scanKey looks at the idempotency key. It is not replaced either: two events could become one.
func (b *Builder) scanKey() {
	switch rule := secretIn(b.tape.bytes(b.columns[idempotencyKey].text)); {
	case rule == "":
	case b.ws.SecretPolicy == SecretsRedact || b.ws.SecretPolicy == SecretsReject:
		b.refused = true
		b.fault(FieldIdempotencyKey, looksLike(rule))
	default:
		b.secrets = true
		b.flag(idempotencyKey, 0)
	}
}

func redacted(rule string) string { return "[REDACTED:" + rule + "]" }

func looksLike(rule string) string {
	return "looks like a secret (" + rule + "); send what it is called, or leave it out"
}

// flag notes that node i of field f holds a secret.
func (b *Builder) flag(f field, i int) {
	c := &b.columns[f]
	if c.secrets == MaxFlags {
		return
	}
	c.secrets++
	path := f.name()
	if f == metadata || f == targets {
		path = b.tape.path(i)
	}
	b.flags = append(b.flags, secretFlag+path)
}

// setFlags sets the column of flags. What is kept of them does not depend on the order in which fields were sent.
func (b *Builder) setFlags() {
	if len(b.flags) == 0 {
		return
	}
	slices.Sort(b.flags)
	b.flags = slices.Compact(b.flags)
	b.flags = b.flags[:min(len(b.flags), MaxFlags)]
	start, separator := len(b.canonical), byte('[')
	for _, flag := range b.flags {
		b.canonical = append(b.canonical, separator)
		b.canonical = appendString(b.canonical, []byte(flag), false)
		separator = ','
	}
	b.canonical = append(b.canonical, ']')
	b.columns[flags] = column{json: span{start, len(b.canonical)}, filled: true}
}
