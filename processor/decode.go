package processor

import (
	"errors"
	"fmt"
	"math"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"getimmutable.dev/immutable/schemas/recordpb"
)

// facts is what sealing needs of an event's record.
type facts struct {
	id          [16]byte
	workspace   [16]byte
	incarnation [16]byte
	bodyRoot    [32]byte
	recordedAt  int64 // microseconds since 1970
	lane, lanes uint32
	fieldCount  uint16
	kind        recordpb.Kind
}

// maxRecordedAt is the year 2200 in microseconds: every store on the way can hold what is before it.
const maxRecordedAt = 7_258_118_400_000_000

// Field numbers of recordpb.Event that the walk names.
const (
	fieldID             = 1
	fieldKeyed          = 2
	fieldKind           = 3
	fieldWorkspace      = 4
	fieldIncarnation    = 5
	fieldLane           = 6
	fieldLanes          = 7
	fieldRecordedAt     = 8
	fieldSeed           = 9
	fieldBody           = 10
	fieldFieldCount     = 11
	fieldBodyRoot       = 12
	fieldOccurredAt     = 16
	fieldFirstText      = 17 // actor_id
	fieldLastText       = 28 // user_agent
	fieldTargetTypes    = 29
	fieldTargetIDs      = 30
	fieldFlags          = 31
	fieldMetadataKeys   = 32
	fieldMetadataValues = 33
	fieldRequestID      = 40
	fieldTraceparent    = 41

	required = 1<<fieldID | 1<<fieldKind | 1<<fieldWorkspace | 1<<fieldIncarnation | 1<<fieldLanes | 1<<fieldRecordedAt |
		1<<fieldSeed | 1<<fieldBody | 1<<fieldFieldCount | 1<<fieldBodyRoot

	// Fields by what they hold. Lists are text; all but varints are of wire type bytes.
	varints = 1<<fieldKeyed | 1<<fieldKind | 1<<fieldLane | 1<<fieldLanes | 1<<fieldRecordedAt | 1<<fieldFieldCount |
		1<<fieldOccurredAt
	lists = 1<<fieldTargetTypes | 1<<fieldTargetIDs | 1<<fieldFlags | 1<<fieldMetadataKeys | 1<<fieldMetadataValues
	texts = lists | (1<<(fieldLastText+1) - 1<<fieldFirstText) | 1<<fieldRequestID | 1<<fieldTraceparent
	known = varints | texts | 1<<fieldID | 1<<fieldWorkspace | 1<<fieldIncarnation | 1<<fieldSeed | 1<<fieldBody |
		1<<fieldBodyRoot
)

var errTruncated = errors.New("not a protobuf message")

// walk reads an event's record without unmarshalling it. It is stricter than a decoder, so that whatever is sealed can
// be decoded by every reader after it: fixed sizes, wire types and ranges are checked, text is UTF-8, fields that do not
// repeat occur once, parallel lists are of one length, and what is needed is there. Fields with numbers that it does not
// know are let through, as a newer producer may write them; groups are not.
func walk(b []byte) (facts, error) {
	var (
		f       facts
		seen    uint64  // bit n: field n occurred
		entries [64]int // of a list
	)
	for len(b) > 0 {
		// Nearly all numbers of a record have one byte: they are read without a call.
		tag, n := uint64(b[0]), 1
		if tag >= 0x80 {
			tag, n = protowire.ConsumeVarint(b)
		}
		num, typ := protowire.DecodeTag(tag)
		if n < 0 || n == len(b) || num < protowire.MinValidNumber || num > protowire.MaxValidNumber {
			return f, errTruncated
		}
		b = b[n:]
		x := uint64(b[0])
		if n = 1; x >= 0x80 {
			x, n = protowire.ConsumeVarint(b)
		}
		var value []byte
		switch typ {
		case protowire.VarintType:
		case protowire.BytesType:
			if n < 0 || x > uint64(len(b)-n) {
				return f, errTruncated
			}
			value = b[n : n+int(x)]
			n += int(x)
		case protowire.Fixed32Type, protowire.Fixed64Type:
			n = protowire.ConsumeFieldValue(num, typ, b)
		default:
			return f, fmt.Errorf("field %d has wire type %d", num, typ)
		}
		if n < 0 {
			return f, errTruncated
		}
		b = b[n:]

		bit := uint64(1) << min(num, 63)
		switch {
		case known&bit == 0:
			continue
		case typ == protowire.VarintType && varints&bit != 0:
			if seen&bit != 0 {
				return f, fmt.Errorf("field %d occurs twice", num)
			}
			if err := f.setNumber(num, x); err != nil {
				return f, err
			}
		case typ != protowire.BytesType || varints&bit != 0:
			return f, fmt.Errorf("field %d has wire type %d", num, typ)
		default:
			if lists&bit != 0 {
				entries[num&63]++
			} else if seen&bit != 0 {
				return f, fmt.Errorf("field %d occurs twice", num)
			}
			if texts&bit != 0 {
				if !utf8.Valid(value) {
					return f, fmt.Errorf("field %d is not UTF-8", num)
				}
			} else if err := f.setBytes(num, value); err != nil {
				return f, err
			}
		}
		seen |= bit
	}
	switch {
	case seen&required != required:
		return f, fmt.Errorf("fields are missing: have %#x", seen)
	case f.lane >= f.lanes:
		return f, fmt.Errorf("lane %d of %d", f.lane, f.lanes)
	case entries[fieldTargetTypes] != entries[fieldTargetIDs]:
		return f, fmt.Errorf("%d target types, %d target ids", entries[fieldTargetTypes], entries[fieldTargetIDs])
	case entries[fieldMetadataKeys] != entries[fieldMetadataValues]:
		return f, fmt.Errorf("%d metadata keys, %d metadata values", entries[fieldMetadataKeys], entries[fieldMetadataValues])
	}
	return f, nil
}

// setNumber takes in a field of wire type varint.
func (f *facts) setNumber(num protowire.Number, x uint64) error {
	low, high := uint64(0), uint64(math.MaxUint64)
	switch num {
	case fieldKeyed:
		high = 1
	case fieldKind:
		// A genesis is the processor's own.
		f.kind, low, high = recordpb.Kind(uint8(x)), uint64(recordpb.Kind_KIND_EVENT), uint64(recordpb.Kind_KIND_NOTE)
	case fieldLane:
		f.lane, high = uint32(x), math.MaxUint32
	case fieldLanes:
		f.lanes, low, high = uint32(x), 1, math.MaxUint32
	case fieldRecordedAt:
		f.recordedAt, low, high = int64(x), 1, maxRecordedAt
	case fieldFieldCount:
		f.fieldCount, low, high = uint16(x), 1, math.MaxUint16
	default: // occurred_at
	}
	if x < low || x > high {
		return fmt.Errorf("field %d is %d, must be %d to %d", num, x, low, high)
	}
	return nil
}

// setBytes takes in a field of wire type bytes that is not text.
func (f *facts) setBytes(num protowire.Number, b []byte) error {
	var (
		seed [16]byte
		dst  []byte
	)
	switch num {
	case fieldID:
		dst = f.id[:]
	case fieldWorkspace:
		dst = f.workspace[:]
	case fieldIncarnation:
		dst = f.incarnation[:]
	case fieldSeed:
		dst = seed[:]
	case fieldBodyRoot:
		dst = f.bodyRoot[:]
	default: // body
		if len(b) == 0 {
			return fmt.Errorf("field %d is empty", num)
		}
		return nil
	}
	if len(b) != len(dst) {
		return fmt.Errorf("field %d has %d bytes, must have %d", num, len(b), len(dst))
	}
	copy(dst, b)
	return nil
}
