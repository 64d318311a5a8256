package notary

import (
	"errors"
	"fmt"
	"math"

	"google.golang.org/protobuf/encoding/protowire"

	"getimmutable.dev/immutable/ledger"
)

// sealed is what the notary needs of a recordpb.Sealed: the leaf as its content says it is, and what the processor says
// of it. node lies in the record that it was decoded from.
type sealed struct {
	leaf                   ledger.Leaf
	hash                   ledger.Hash
	node                   []byte
	workspace, incarnation [16]byte
	lane, lanes            uint32
}

var errWire = errors.New("not a protobuf message")

// known are the fields of a message that are read, bit n for field n. Of those, required must be there: all but what is
// left out where it is zero.
type known struct{ bytes, varints, required uint64 }

// decode reads the value of a ledger record. A field that is read and occurs twice is refused: readers could differ in
// which of the two they take.
func (s *sealed) decode(b []byte) error {
	*s = sealed{}
	var event []byte
	err := fields(b, known{
		bytes: 1<<1 | 1<<2 | 1<<4 | 1<<5 | 1<<6, varints: 1<<3 | 1<<7 | 1<<8 | 1<<9, required: 1<<1 | 1<<2 | 1<<4 | 1<<5,
	}, func(num protowire.Number, x uint64, value []byte) error {
		switch num {
		case 1:
			event = value
		case 2:
			return fill(s.leaf.Chain[:], value)
		case 3:
			s.leaf.Sequence = x
		case 4:
			return fill(s.leaf.Previous[:], value)
		case 5:
			return fill(s.hash[:], value)
		case 6:
			s.node = value
		case 7:
			s.leaf.Generation = uint16(x)
			return atMost(x, math.MaxUint16)
		case 8:
			s.leaf.Partition = uint16(x)
			return atMost(x, math.MaxUint16)
		default: // 9
			s.leaf.Offset = x
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("decoding a sealed record: %w", err)
	}
	if err := s.decodeEvent(event); err != nil {
		return fmt.Errorf("decoding the event in a sealed record: %w", err)
	}
	return nil
}

func (s *sealed) decodeEvent(b []byte) error {
	l := &s.leaf
	hasID := false
	err := fields(b, known{
		bytes: 1<<1 | 1<<4 | 1<<5 | 1<<12, varints: 1<<3 | 1<<6 | 1<<7 | 1<<8 | 1<<11,
		required: 1<<3 | 1<<4 | 1<<5 | 1<<7 | 1<<8 | 1<<12,
	}, func(num protowire.Number, x uint64, value []byte) error {
		switch num {
		case 1:
			hasID = true
			return fill(l.ID[:], value)
		case 3:
			l.Kind = ledger.Kind(x)
			return atMost(x, uint64(ledger.KindNote))
		case 4:
			return fill(s.workspace[:], value)
		case 5:
			return fill(s.incarnation[:], value)
		case 6:
			s.lane = uint32(x)
			return atMost(x, math.MaxUint32)
		case 7:
			s.lanes = uint32(x)
			return atMost(x, math.MaxUint32)
		case 8:
			l.RecordedAt = int64(x)
		case 11:
			l.FieldCount = uint16(x)
			return atMost(x, math.MaxUint16)
		default: // 12
			return fill(l.BodyRoot[:], value)
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case l.Kind == 0:
		return errors.New("kind 0")
	case !hasID && l.Kind != ledger.KindGenesis:
		return errors.New("it has no id")
	case s.lane >= s.lanes:
		return fmt.Errorf("lane %d of %d", s.lane, s.lanes)
	}
	return nil
}

// fields calls use with each known field of a message: with x where it is a varint, with value where it is bytes.
func fields(b []byte, k known, use func(num protowire.Number, x uint64, value []byte) error) error {
	var seen uint64
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errWire
		}
		b = b[n:]
		var x uint64
		var value []byte
		bit := uint64(0)
		if num < 64 {
			bit = 1 << num
		}
		want := k.bytes | k.varints
		switch typ {
		case protowire.VarintType:
			x, n = protowire.ConsumeVarint(b)
			want = k.bytes
		case protowire.BytesType:
			value, n = protowire.ConsumeBytes(b)
			want = k.varints
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		switch {
		case n < 0:
			return errWire
		case want&bit != 0:
			return fmt.Errorf("field %d has wire type %d", num, typ)
		case seen&bit != 0:
			return fmt.Errorf("field %d occurs twice", num)
		}
		b = b[n:]
		if (k.bytes|k.varints)&bit == 0 {
			continue
		}
		seen |= bit
		if err := use(num, x, value); err != nil {
			return fmt.Errorf("field %d: %w", num, err)
		}
	}
	if seen&k.required != k.required {
		return fmt.Errorf("fields are missing: have %#x", seen)
	}
	return nil
}

func fill(to, from []byte) error {
	if len(from) != len(to) {
		return fmt.Errorf("it has %d bytes, must have %d", len(from), len(to))
	}
	copy(to, from)
	return nil
}

func atMost(x, high uint64) error {
	if x > high {
		return fmt.Errorf("it is %d, must be at most %d", x, high)
	}
	return nil
}
