package event

import (
	"google.golang.org/protobuf/encoding/protowire"

	"getimmutable.dev/immutable/ledger"
)

// commit computes the commitments, sorted by path, and the body root (docs/design/ledger-spec.md).
func (b *Builder) commit() {
	b.commitments = b.commitments[:0]
	for f := range numFields {
		json := b.json(b.columns[f].json)
		switch {
		case len(json) == 0:
		case f == metadata:
			for _, m := range b.members {
				b.commitments = append(b.commitments, ledger.Commitment(b.seed, b.path(m), b.json(m.value)))
			}
		default:
			b.prefix = append(append(b.prefix[:0], '/'), f.name()...)
			b.commitments = append(b.commitments, ledger.Commitment(b.seed, b.prefix, json))
		}
	}
	b.bodyRoot = ledger.BodyRoot(b.commitments)
}

// appendRecord marshals recordpb.Event, field by field in the order of schemas/record.proto: it is several times faster
// than filling a message first, and a test holds it to the generated code.
func (b *Builder) appendRecord(dst []byte, r *Record, in *Input) []byte {
	dst = appendBytes(dst, 1, r.ID[:])
	if r.Keyed {
		dst = appendVarint(dst, 2, 1)
	}
	dst = appendVarint(dst, 3, uint64(b.kind))
	dst = appendBytes(dst, 4, b.ws.ID[:])
	dst = appendBytes(dst, 5, b.ws.Incarnation[:])
	dst = appendVarint(dst, 6, uint64(r.Lane))
	dst = appendVarint(dst, 7, uint64(b.ws.Lanes))
	dst = appendVarint(dst, 8, uint64(r.RecordedAt.UnixMicro()))
	dst = appendBytes(dst, 9, b.seed[:])
	dst = appendBytes(dst, 10, b.body)
	dst = appendVarint(dst, 11, uint64(len(b.commitments)))
	dst = appendBytes(dst, 12, b.bodyRoot[:])

	dst = appendVarint(dst, 16, uint64(b.occurredAt))
	for k, f := range [...]field{
		actorID, actorName, actorType, action, actionCategory, resource, resourceID, resourceName, sessionID, tenantID,
		ipAddress, userAgent,
	} {
		dst = appendBytes(dst, protowire.Number(17+k), b.tape.bytes(b.columns[f].text))
	}
	for _, t := range b.targets {
		dst = appendElement(dst, 29, b.tape.bytes(t.kind))
	}
	for _, t := range b.targets {
		dst = appendElement(dst, 30, b.tape.bytes(t.id))
	}
	for _, flag := range b.flags {
		dst = appendElement(dst, 31, []byte(flag))
	}
	for _, e := range b.entries {
		dst = appendElement(dst, 32, b.keys[e.key.start:e.key.end])
	}
	for _, e := range b.entries {
		dst = appendElement(dst, 33, b.tape.bytes(e.value))
	}
	dst = appendBytes(dst, 40, traceText(in.RequestID))
	return appendBytes(dst, 41, traceText(in.Traceparent))
}

// traceText returns s, or nothing where it does not belong into a record: a string field must be UTF-8, and short.
func traceText(s string) []byte {
	if len(s) > 255 {
		return nil
	}
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return nil
		}
	}
	return []byte(s)
}

// Origin returns the ids of the request and the trace that an event's record came with, as far as they can be read, for
// a log line. The record may be anything: what does not look like an id is left out.
func Origin(record []byte) (requestID, traceID string) {
	for len(record) > 0 {
		num, typ, n := protowire.ConsumeTag(record)
		if n < 0 {
			return requestID, traceID
		}
		record = record[n:]
		size := protowire.ConsumeFieldValue(num, typ, record)
		if size < 0 {
			return requestID, traceID
		}
		if typ == protowire.BytesType {
			switch text, _ := protowire.ConsumeBytes(record); {
			case num == 40 && isID(text, 64):
				requestID = string(text)
			case num == 41 && len(text) == 55 && isID(text, 55):
				traceID = string(text[3:35])
			}
		}
		record = record[size:]
	}
	return requestID, traceID
}

func isID(text []byte, most int) bool {
	for _, c := range text {
		if c != '-' && c != '_' && c != '.' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return len(text) <= most
}

// appendVarint appends a number, or nothing for 0.
func appendVarint(dst []byte, n protowire.Number, v uint64) []byte {
	if v == 0 {
		return dst
	}
	return protowire.AppendVarint(protowire.AppendTag(dst, n, protowire.VarintType), v)
}

// appendBytes appends bytes or a string, or nothing for an empty one.
func appendBytes(dst []byte, n protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return dst
	}
	return appendElement(dst, n, v)
}

// appendElement appends bytes or a string that may be empty: an element of a repeated field.
func appendElement(dst []byte, n protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(dst, n, protowire.BytesType), v)
}
