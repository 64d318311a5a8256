package event

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"strconv"
	"time"

	"getimmutable.dev/immutable/schemas/recordpb"
)

// Builder turns inputs into records. It keeps its scratch memory between them, so that one belongs to one goroutine at
// a time; keep builders in a pool.
type Builder struct {
	tape  tape
	ws    *Workspace
	kind  recordpb.Kind
	clock time.Time // RecordedAt of the input: the present, as far as rules go

	columns    [numFields]column
	occurredAt int64 // microseconds since the Unix epoch
	metadata   int   // its node; 0 where it is absent
	targets    []target
	flags      []string
	secrets    bool // a secret was found
	refused    bool // a fault is a secret
	details    []Detail
	more       int // details beyond MaxDetails

	// canonical holds the columns' values and, inside that of metadata, its members'.
	canonical []byte
	members   []member
	paths     []byte
	body      []byte
	record    []byte

	entries    []entry
	entryBytes int
	keys       []byte // the entries' keys
	prefix     []byte // the path that the walk over metadata is at

	seed        [16]byte
	commitments [][32]byte
	bodyRoot    [32]byte

	ids idSource
}

// column is what an event says for one field.
type column struct {
	// text of a string, on the tape, as it is in the body.
	text span
	// json is the value's canonical form in Builder.canonical; empty where the field is absent.
	json span
	// filled: the producer did not send it.
	filled bool
	// faulty: it was sent, and refused.
	faulty bool
	// secrets that were flagged in it, at most MaxFlags.
	secrets int
}

// target is one element of targets; the spans are on the tape.
type target struct{ kind, id span }

// member is a member of metadata: one field of the body.
type member struct {
	path  span // in Builder.paths
	value span // in Builder.canonical
}

// entry is one scalar of metadata.
type entry struct {
	key   span // in Builder.keys
	value span // on the tape
}

// NewBuilder returns a builder.
func NewBuilder() *Builder {
	return &Builder{ids: idSource{random: func(b []byte) {
		_, _ = rand.Read(b) // It never fails: the program ends instead.
	}}}
}

// Build makes the record of one event.
//
// Names are flat afterwards: resource {type, id, name} and actor {id, name, type} are taken apart, and both forms may be
// sent as long as they agree. null, "", {} and [] mean absent, but inside metadata everything stays as sent. A numeric
// actor_id becomes a string. resource_id, where it is absent and resource is not, comes from the member of metadata
// named as the resource, else <resource>_id, else <resource>_path: the first that is a string which may be one. Before
// all that, Workspace.SecretPolicy is applied to what looks like a secret.
// occurred_at is RFC 3339 with upper-case T and Z and no leap second; its default is recorded_at.
//
// The error is an *Error, which names all faults at once.
func (b *Builder) Build(ws *Workspace, in Input) (Record, error) {
	defer b.trim()
	if len(in.JSON) > MaxEventBytes {
		return Record{}, &Error{Code: CodeTooLarge, Message: "the event has " + strconv.Itoa(len(in.JSON)) +
			" bytes; the most is " + strconv.Itoa(MaxEventBytes)}
	}
	if err := b.tape.parse(in.JSON); err != nil {
		return Record{}, err
	}
	b.reset(ws, &in)
	b.gateFaults()
	b.normalise(&in)
	if len(b.details) > 0 {
		err := validationError(b.details, b.more)
		err.Secrets = b.refused
		return Record{}, err
	}
	b.fill()
	b.setFlags()
	b.body = b.appendBody(b.body[:0], false)

	r := Record{RecordedAt: b.clock, Secrets: b.secrets, IdempotencyKey: string(b.tape.bytes(b.columns[idempotencyKey].text))}
	b.seed = b.ids.seed()
	if r.Keyed = r.IdempotencyKey != ""; r.Keyed {
		r.ID = b.keyedID()
	} else {
		r.ID = b.ids.v7(b.clock)
	}
	if r.Lane = Lane(b.string(resource), b.string(resourceID), b.string(actorID), ws.Lanes); in.Lane != nil {
		r.Lane = *in.Lane
	}
	b.commit()
	b.record = b.appendRecord(b.record[:0], &r, &in)
	r.Key, r.Value = RecordKey(ws.ID, r.Lane), bytes.Clone(b.record)
	return r, nil
}

func (b *Builder) reset(ws *Workspace, in *Input) {
	b.ws, b.kind = ws, in.Kind
	if b.kind == recordpb.Kind_KIND_UNSPECIFIED {
		b.kind = recordpb.Kind_KIND_EVENT
	}
	b.clock = time.UnixMicro(in.RecordedAt.UnixMicro()).UTC()
	b.columns = [numFields]column{}
	b.metadata, b.targets, b.details, b.more = 0, b.targets[:0], nil, 0
	b.flags, b.secrets, b.refused = b.flags[:0], false, false
	b.canonical, b.members, b.paths = b.canonical[:0], b.members[:0], b.paths[:0]
	b.entries, b.keys, b.entryBytes = b.entries[:0], b.keys[:0], 0
}

// trim lets go of scratch memory that one odd event made large, so that a pool of builders stays small.
func (b *Builder) trim() {
	b.ws, b.details, b.flags = nil, nil, nil
	if cap(b.tape.nodes) > 4096 || cap(b.tape.text) > 64<<10 || cap(b.record) > 128<<10 {
		*b = Builder{ids: b.ids}
	}
}

func (b *Builder) string(f field) string { return string(b.tape.bytes(b.columns[f].text)) }

// fault adds a detail.
func (b *Builder) fault(path, message string) {
	if len(b.details) == MaxDetails {
		b.more++
		return
	}
	b.details = append(b.details, Detail{Field: path, Message: message})
}

// gateFaults reports what the tape's gate refused.
func (b *Builder) gateFaults() {
	for _, f := range b.tape.faults {
		message := f.message
		if f.onName {
			message = "has a name that " + message
		}
		b.faultAt(f.node, message)
	}
	b.more += b.tape.more
}

// fill sets what the producer left out.
func (b *Builder) fill() {
	if b.columns[occurredAt].json.empty() {
		b.setTime(b.clock)
		b.columns[occurredAt].filled = true
	}
	if b.columns[resourceID].json.empty() && !b.columns[resource].json.empty() && !b.ws.KeepResourceIDEmpty {
		if text, plain, ok := b.metadataResourceID(); ok {
			b.setText(resourceID, text, plain)
			b.columns[resourceID].filled = true
			if secretIn(b.tape.bytes(text)) != "" { // Where secrets are kept, else it would be redacted or refused.
				b.flag(resourceID, 0)
			}
		}
	}
}

// appendBody appends the body; asSent leaves out what fill and setFlags set.
func (b *Builder) appendBody(dst []byte, asSent bool) []byte {
	first := true
	for f := range numFields {
		c := &b.columns[f]
		if c.json.empty() || asSent && c.filled {
			continue
		}
		if first {
			dst = append(dst, '{', '"')
			first = false
		} else {
			dst = append(dst, ',', '"')
		}
		dst = append(dst, f.name()...)
		dst = append(dst, '"', ':')
		dst = append(dst, b.canonical[c.json.start:c.json.end]...)
	}
	return append(dst, '}') // It has an action, so that the brace was opened.
}

// keyedID derives the id of an event with an idempotency key: UUIDv8 of HMAC-SHA-256(secret, workspace || 0x00 ||
// u32be(len key) || key || event as sent), so that a retry has the same id at every instance, other content under the
// same key another one, and the id tells nothing of either. A secret that was redacted has no part in it.
func (b *Builder) keyedID() [16]byte {
	key := b.tape.bytes(b.columns[idempotencyKey].text)
	// The record's scratch is free until the id is known.
	msg := append(b.record[:0], b.ws.ID[:]...)
	msg = append(msg, 0)
	msg = binary.BigEndian.AppendUint32(msg, uint32(len(key)))
	msg = append(msg, key...)
	msg = b.appendBody(msg, true)
	b.record = msg
	return b.ids.v8(&b.ws.IdempotencySecret, msg)
}
