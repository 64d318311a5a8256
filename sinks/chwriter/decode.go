package chwriter

import (
	"errors"
	"fmt"
	"math"

	"google.golang.org/protobuf/encoding/protowire"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// sealed is a recordpb.Sealed whose byte slices lie in the Kafka record that it was decoded from. Reading the fields
// straight off the wire, into memory that is used again for the next record, costs a fifth of the generated code; a
// fuzz test holds the two together.
type sealed struct {
	chain, previous, leafHash, node         []byte
	sequence                                uint64
	generation, partition, fieldCount, kind uint64
	offset                                  uint64

	id, workspace, incarnation, seed, body, bodyRoot []byte
	disclosure                                       []byte // of what was redacted, see redact
	recordedAt, occurredAt                           int64
	lane, lanes                                      uint64

	// text holds the string fields 17 to 28 of recordpb.Event.
	text                         [textFields][]byte
	targetTypes, targetIDs       [][]byte
	flags                        [][]byte
	metadataKeys, metadataValues [][]byte
}

// Indices into sealed.text: field number - firstText.
const (
	actorID = iota
	actorName
	actorType
	action
	actionCategory
	resource
	resourceID
	resourceName
	sessionID
	tenantID
	ipAddress
	userAgent
	textFields

	firstText = 17
)

var zeroID [16]byte

var errWire = errors.New("not a protobuf message")

func (s *sealed) genesis() bool { return s.kind == uint64(recordpb.Kind_KIND_GENESIS) }

func (s *sealed) reset() {
	*s = sealed{
		targetTypes: s.targetTypes[:0], targetIDs: s.targetIDs[:0], flags: s.flags[:0],
		metadataKeys: s.metadataKeys[:0], metadataValues: s.metadataValues[:0],
	}
}

// decode reads the value of a ledger record, and reports anything that the tables could not hold as it is.
func (s *sealed) decode(b []byte) error {
	s.reset()
	var record []byte
	err := fields(b, func(num protowire.Number, v uint64) {
		switch num {
		case 3:
			s.sequence = v
		case 7:
			s.generation = v
		case 8:
			s.partition = v
		case 9:
			s.offset = v
		default: // of a later version
		}
	}, func(num protowire.Number, b []byte) {
		switch num {
		case 1:
			record = b
		case 2:
			s.chain = b
		case 4:
			s.previous = b
		case 5:
			s.leafHash = b
		case 6:
			s.node = b
		default: // of a later version
		}
	})
	if err != nil {
		return fmt.Errorf("decoding the sealed record: %w", err)
	}
	if err := fields(record, s.eventNumber, s.eventBytes); err != nil {
		return fmt.Errorf("decoding the event in a sealed record: %w", err)
	}
	if s.genesis() && len(s.id) == 0 {
		s.id = zeroID[:]
	}
	return s.check()
}

// origin returns the ids of the request and the trace that brought a ledger record's event, as far as they can be read.
func origin(b []byte) (requestID, traceID string) {
	var record []byte
	_ = fields(b, func(protowire.Number, uint64) {}, func(num protowire.Number, b []byte) { // what stands before an error counts
		if num == 1 {
			record = b
		}
	})
	return event.Origin(record)
}

func (s *sealed) eventNumber(num protowire.Number, v uint64) {
	switch num {
	case 3:
		s.kind = v
	case 6:
		s.lane = v
	case 7:
		s.lanes = v
	case 8:
		s.recordedAt = int64(v)
	case 11:
		s.fieldCount = v
	case 16:
		s.occurredAt = int64(v)
	default: // none of the tables' columns
	}
}

func (s *sealed) eventBytes(num protowire.Number, b []byte) {
	if num >= firstText && num < firstText+textFields {
		s.text[num-firstText] = b
		return
	}
	switch num {
	case 1:
		s.id = b
	case 4:
		s.workspace = b
	case 5:
		s.incarnation = b
	case 9:
		s.seed = b
	case 10:
		s.body = b
	case 12:
		s.bodyRoot = b
	case 29:
		s.targetTypes = append(s.targetTypes, b)
	case 30:
		s.targetIDs = append(s.targetIDs, b)
	case 31:
		s.flags = append(s.flags, b)
	case 32:
		s.metadataKeys = append(s.metadataKeys, b)
	case 33:
		s.metadataValues = append(s.metadataValues, b)
	default: // none of the tables' columns
	}
}

func (s *sealed) check() error {
	for _, f := range []struct {
		name  string
		value []byte
		size  int
	}{
		{"chain", s.chain, 16},
		{"previous", s.previous, 32},
		{"leaf_hash", s.leafHash, 32},
		{"workspace", s.workspace, 16},
		{"incarnation", s.incarnation, 16},
		{"id", s.id, 16},
		{"body_root", s.bodyRoot, 32},
	} {
		if len(f.value) != f.size {
			return fmt.Errorf("%s has %d bytes, not %d", f.name, len(f.value), f.size)
		}
	}
	switch {
	case s.kind < uint64(recordpb.Kind_KIND_GENESIS) || s.kind > uint64(recordpb.Kind_KIND_NOTE):
		return fmt.Errorf("kind %d is unknown", s.kind)
	case len(s.node)%32 != 0:
		return fmt.Errorf("node has %d bytes, not a multiple of 32", len(s.node))
	case s.lane > math.MaxUint32 || s.lanes > math.MaxUint32:
		return fmt.Errorf("lane %d or lanes %d has more than 32 bits", s.lane, s.lanes)
	case s.generation > math.MaxUint16 || s.partition > math.MaxUint16 || s.fieldCount > math.MaxUint16:
		return fmt.Errorf("generation %d, partition %d or field_count %d is above 65535", s.generation, s.partition, s.fieldCount)
	case len(s.targetTypes) != len(s.targetIDs):
		return fmt.Errorf("%d target_types and %d target_ids", len(s.targetTypes), len(s.targetIDs))
	case len(s.metadataKeys) != len(s.metadataValues):
		return fmt.Errorf("%d metadata_keys and %d metadata_values", len(s.metadataKeys), len(s.metadataValues))
	case s.genesis():
		return nil
	case len(s.seed) != 16:
		return fmt.Errorf("seed has %d bytes, not 16", len(s.seed))
	case len(s.body) == 0:
		return errors.New("body is empty")
	}
	return nil
}

// fields calls varint or bytes for each field of a message, by its wire type. Every field of the records has one of the
// two; others are passed over, as generated code passes over what it does not know.
func fields(
	b []byte, varint func(num protowire.Number, v uint64), bytes func(num protowire.Number, b []byte),
) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errWire
		}
		b = b[n:]
		switch typ {
		case protowire.VarintType:
			var v uint64
			if v, n = protowire.ConsumeVarint(b); n >= 0 {
				varint(num, v)
			}
		case protowire.BytesType:
			var v []byte
			if v, n = protowire.ConsumeBytes(b); n >= 0 {
				bytes(num, v)
			}
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return errWire
		}
		b = b[n:]
	}
	return nil
}
