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
	keyed       bool
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
)

var errTruncated = errors.New("not a protobuf message")

// walk reads an event's record without unmarshalling it. It is stricter than a decoder, so that whatever is sealed can
// be decoded by every reader after it: fixed sizes, wire types and ranges are checked, text is UTF-8, fields that do not
// repeat occur once, parallel lists are of one length, and what is needed is there. Fields with numbers that it does not
// know are let through, as a newer producer may write them; groups are not.
func walk(b []byte) (facts, error) {
	var (
		f     facts
		seen  uint64 // bit n: field n occurred
		lists [fieldMetadataValues + 1]int
	)
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return f, errTruncated
		}
		b = b[n:]
		var (
			value []byte
			x     uint64
		)
		switch typ {
		case protowire.VarintType:
			x, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			value, n = protowire.ConsumeBytes(b)
		case protowire.Fixed32Type, protowire.Fixed64Type:
			n = protowire.ConsumeFieldValue(num, typ, b)
		default:
			return f, fmt.Errorf("field %d has wire type %d", num, typ)
		}
		if n < 0 {
			return f, errTruncated
		}
		b = b[n:]

		want, repeats := shape(num)
		if want < 0 {
			continue
		}
		if typ != want {
			return f, fmt.Errorf("field %d has wire type %d", num, typ)
		}
		if repeats {
			lists[num]++
		} else if seen&(1<<num) != 0 {
			return f, fmt.Errorf("field %d occurs twice", num)
		}
		seen |= 1 << num
		if err := f.set(num, value, x); err != nil {
			return f, err
		}
	}
	switch {
	case seen&required != required:
		return f, fmt.Errorf("fields are missing: have %#x", seen)
	case f.lane >= f.lanes:
		return f, fmt.Errorf("lane %d of %d", f.lane, f.lanes)
	case lists[fieldTargetTypes] != lists[fieldTargetIDs]:
		return f, fmt.Errorf("%d target types, %d target ids", lists[fieldTargetTypes], lists[fieldTargetIDs])
	case lists[fieldMetadataKeys] != lists[fieldMetadataValues]:
		return f, fmt.Errorf("%d metadata keys, %d metadata values", lists[fieldMetadataKeys], lists[fieldMetadataValues])
	}
	return f, nil
}

// shape returns a field's wire type, -1 for one that is not known, and whether it may occur more than once.
func shape(num protowire.Number) (typ protowire.Type, repeats bool) {
	switch num {
	case fieldKeyed, fieldKind, fieldLane, fieldLanes, fieldRecordedAt, fieldFieldCount, fieldOccurredAt:
		return protowire.VarintType, false
	case fieldID, fieldWorkspace, fieldIncarnation, fieldSeed, fieldBody, fieldBodyRoot, fieldRequestID, fieldTraceparent:
		return protowire.BytesType, false
	case fieldTargetTypes, fieldTargetIDs, fieldFlags, fieldMetadataKeys, fieldMetadataValues:
		return protowire.BytesType, true
	default:
		if num >= fieldFirstText && num <= fieldLastText {
			return protowire.BytesType, false
		}
		return -1, false
	}
}

// set takes in one field, of which b or x is the value.
func (f *facts) set(num protowire.Number, b []byte, x uint64) error {
	switch num {
	case fieldID:
		return fixed(f.id[:], num, b)
	case fieldWorkspace:
		return fixed(f.workspace[:], num, b)
	case fieldIncarnation:
		return fixed(f.incarnation[:], num, b)
	case fieldSeed:
		var seed [16]byte
		return fixed(seed[:], num, b)
	case fieldBodyRoot:
		return fixed(f.bodyRoot[:], num, b)
	case fieldKeyed:
		f.keyed = x == 1
		return within(num, x, 0, 1)
	case fieldKind:
		f.kind = recordpb.Kind(uint8(x))
		// A genesis is the processor's own.
		return within(num, x, uint64(recordpb.Kind_KIND_EVENT), uint64(recordpb.Kind_KIND_NOTE))
	case fieldLane:
		f.lane = uint32(x)
		return within(num, x, 0, math.MaxUint32)
	case fieldLanes:
		f.lanes = uint32(x)
		return within(num, x, 1, math.MaxUint32)
	case fieldRecordedAt:
		f.recordedAt = int64(x)
		return within(num, x, 1, maxRecordedAt)
	case fieldFieldCount:
		f.fieldCount = uint16(x)
		return within(num, x, 1, math.MaxUint16)
	case fieldBody:
		if len(b) == 0 {
			return fmt.Errorf("field %d is empty", num)
		}
	case fieldOccurredAt:
	default:
		if !utf8.Valid(b) {
			return fmt.Errorf("field %d is not UTF-8", num)
		}
	}
	return nil
}

func fixed(dst []byte, num protowire.Number, b []byte) error {
	if len(b) != len(dst) {
		return fmt.Errorf("field %d has %d bytes, must have %d", num, len(b), len(dst))
	}
	copy(dst, b)
	return nil
}

func within(num protowire.Number, x, low, high uint64) error {
	if x < low || x > high {
		return fmt.Errorf("field %d is %d, must be %d to %d", num, x, low, high)
	}
	return nil
}
