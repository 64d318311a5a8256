package chwriter

import (
	"math"
	"time"

	"github.com/ClickHouse/ch-go/proto"
)

// Column types that ch-go has not, or has only for Go strings, which would cost an allocation a value.

// timeColumn is DateTime64(6, 'UTC') of microseconds.
type timeColumn struct{ proto.ColInt64 }

func (timeColumn) Type() proto.ColumnType { return "DateTime64(6, 'UTC')" }

// dictColumn is LowCardinality(String).
type dictColumn struct {
	proto.ColLowCardinalityRaw
	values proto.ColStr
	known  map[string]uint32
	keys   []uint32
}

func newDictColumn() *dictColumn {
	c := &dictColumn{known: make(map[string]uint32)}
	c.Index = &c.values
	return c
}

func (c *dictColumn) append(b []byte) {
	key, ok := c.known[string(b)]
	if !ok {
		key = uint32(len(c.known))
		c.known[string(b)] = key
		c.values.AppendBytes(b)
	}
	c.keys = append(c.keys, key)
}

// Rows implements proto.ColInput.
func (c *dictColumn) Rows() int { return len(c.keys) }

// Prepare implements proto.Preparable: the width of the keys is known only now.
func (c *dictColumn) Prepare() error {
	switch n := len(c.known); {
	case n <= math.MaxUint8+1:
		c.Key = proto.KeyUInt8
	case n <= math.MaxUint16+1:
		c.Key = proto.KeyUInt16
	default:
		c.Key = proto.KeyUInt32
	}
	c.Keys8, c.Keys16, c.Keys32 = c.Keys8[:0], c.Keys16[:0], c.Keys32[:0]
	for _, k := range c.keys {
		c.AppendKey(int(k))
	}
	return nil
}

// Reset implements proto.Resettable.
func (c *dictColumn) Reset() {
	c.values.Reset()
	clear(c.known)
	c.keys = c.keys[:0]
}

// nested is Array(T) of one column, or Map(K, V) of two: an end offset for each row beside the elements.
type nested struct {
	proto.ColUInt64
	typ      proto.ColumnType
	elements []proto.ColInput
}

func (c *nested) Type() proto.ColumnType { return c.typ }

// Reset implements proto.Resettable.
func (c *nested) Reset() {
	c.ColUInt64.Reset()
	for _, e := range c.elements {
		if r, ok := e.(proto.Resettable); ok {
			r.Reset()
		}
	}
}

func (c *nested) endRow() { c.Append(uint64(c.elements[0].Rows())) }

func (c *nested) Prepare() error {
	for _, e := range c.elements {
		if p, ok := e.(proto.Preparable); ok {
			if err := p.Prepare(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *nested) EncodeState(b *proto.Buffer) {
	for _, e := range c.elements {
		if s, ok := e.(proto.StateEncoder); ok {
			s.EncodeState(b)
		}
	}
}

func (c *nested) EncodeColumn(b *proto.Buffer) {
	c.ColUInt64.EncodeColumn(b)
	for _, e := range c.elements {
		e.EncodeColumn(b)
	}
}

func (c *nested) WriteColumn(w *proto.Writer) {
	c.ColUInt64.WriteColumn(w)
	for _, e := range c.elements {
		e.WriteColumn(w)
	}
}

// position is what both tables say of where a row comes from.
type position struct {
	part                            proto.ColUInt32
	workspace, chain, id            proto.ColFixedStr
	kind                            proto.ColUInt8
	sequence                        proto.ColUInt64
	recordedAt                      timeColumn
	inputGeneration, inputPartition proto.ColUInt16
	inputOffset                     proto.ColUInt64
	ledgerPartition                 proto.ColUInt16
	ledgerOffset                    proto.ColUInt64
}

func newPosition() position {
	return position{
		workspace: proto.ColFixedStr{Size: 16}, chain: proto.ColFixedStr{Size: 16}, id: proto.ColFixedStr{Size: 16},
	}
}

func (p *position) append(s *sealed, part uint32, partition int32, offset int64) {
	p.part.Append(part)
	p.workspace.Append(s.workspace)
	p.chain.Append(s.chain)
	p.id.Append(s.id)
	p.kind.Append(uint8(s.kind))
	p.sequence.Append(s.sequence)
	p.recordedAt.Append(s.recordedAt)
	p.inputGeneration.Append(uint16(s.generation))
	p.inputPartition.Append(uint16(s.partition))
	p.inputOffset.Append(s.offset)
	p.ledgerPartition.Append(uint16(partition))
	p.ledgerOffset.Append(uint64(offset))
}

func (p *position) input() proto.Input {
	return proto.Input{
		{Name: "part", Data: &p.part},
		{Name: "workspace", Data: &p.workspace},
		{Name: "chain", Data: &p.chain},
		{Name: "id", Data: &p.id},
		{Name: "kind", Data: &p.kind},
		{Name: "sequence", Data: &p.sequence},
		{Name: "recorded_at", Data: &p.recordedAt},
		{Name: "input_generation", Data: &p.inputGeneration},
		{Name: "input_partition", Data: &p.inputPartition},
		{Name: "input_offset", Data: &p.inputOffset},
		{Name: "ledger_partition", Data: &p.ledgerPartition},
		{Name: "ledger_offset", Data: &p.ledgerOffset},
	}
}

// eventColumns is one batch for the table events.
type eventColumns struct {
	position
	occurredAt                    timeColumn
	plain                         [textFields]*proto.ColStr
	dict                          [textFields]*dictColumn // in place of plain for the columns of few values
	targetTypeValues, flagValues  *dictColumn
	targetIDValues                proto.ColStr
	metadataKeys                  *dictColumn
	metadataValues                proto.ColStr
	targetTypes, targetIDs, flags nested
	metadata                      nested
	body                          proto.ColStr
	seed                          proto.ColFixedStr
	disclosure                    proto.ColStr
	input                         proto.Input
}

type textColumn struct {
	name string
	dict bool
}

var textColumns = [textFields]textColumn{
	actorID:        {"actor_id", false},
	actorName:      {"actor_name", false},
	actorType:      {"actor_type", true},
	action:         {"action", true},
	actionCategory: {"action_category", true},
	resource:       {"resource", true},
	resourceID:     {"resource_id", false},
	resourceName:   {"resource_name", false},
	sessionID:      {"session_id", false},
	tenantID:       {"tenant_id", false},
	ipAddress:      {"ip_address", false},
	userAgent:      {"user_agent", false},
}

func newEventColumns() *eventColumns {
	c := &eventColumns{
		position:         newPosition(),
		targetTypeValues: newDictColumn(),
		flagValues:       newDictColumn(),
		metadataKeys:     newDictColumn(),
		seed:             proto.ColFixedStr{Size: 16},
	}
	c.targetTypes = nested{typ: "Array(LowCardinality(String))", elements: []proto.ColInput{c.targetTypeValues}}
	c.targetIDs = nested{typ: "Array(String)", elements: []proto.ColInput{&c.targetIDValues}}
	c.flags = nested{typ: "Array(LowCardinality(String))", elements: []proto.ColInput{c.flagValues}}
	c.metadata = nested{
		typ: "Map(LowCardinality(String), String)", elements: []proto.ColInput{c.metadataKeys, &c.metadataValues},
	}
	c.input = append(c.position.input(),
		proto.InputColumn{Name: "occurred_at", Data: &c.occurredAt},
		proto.InputColumn{Name: "target_types", Data: &c.targetTypes},
		proto.InputColumn{Name: "target_ids", Data: &c.targetIDs},
		proto.InputColumn{Name: "flags", Data: &c.flags},
		proto.InputColumn{Name: "metadata", Data: &c.metadata},
		proto.InputColumn{Name: "body", Data: &c.body},
		proto.InputColumn{Name: "seed", Data: &c.seed},
		proto.InputColumn{Name: "disclosure", Data: &c.disclosure},
	)
	for i, t := range textColumns {
		if t.dict {
			c.dict[i] = newDictColumn()
			c.input = append(c.input, proto.InputColumn{Name: t.name, Data: c.dict[i]})
		} else {
			c.plain[i] = new(proto.ColStr)
			c.input = append(c.input, proto.InputColumn{Name: t.name, Data: c.plain[i]})
		}
	}
	return c
}

func (c *eventColumns) append(s *sealed, part uint32, partition int32, offset int64) {
	c.position.append(s, part, partition, offset)
	c.occurredAt.Append(s.occurredAt)
	for i := range s.text {
		if d := c.dict[i]; d != nil {
			d.append(s.text[i])
		} else {
			c.plain[i].AppendBytes(s.text[i])
		}
	}
	for i := range s.targetTypes {
		c.targetTypeValues.append(s.targetTypes[i])
		c.targetIDValues.AppendBytes(s.targetIDs[i])
	}
	c.targetTypes.endRow()
	c.targetIDs.endRow()
	for _, f := range s.flags {
		c.flagValues.append(f)
	}
	c.flags.endRow()
	for i := range s.metadataKeys {
		c.metadataKeys.append(s.metadataKeys[i])
		c.metadataValues.AppendBytes(s.metadataValues[i])
	}
	c.metadata.endRow()
	c.body.AppendBytes(s.body)
	c.seed.Append(s.seed)
	c.disclosure.AppendBytes(s.disclosure)
}

// leafColumns is one batch for the table leaves.
type leafColumns struct {
	position
	leafHash    proto.ColFixedStr
	node        proto.ColStr
	incarnation proto.ColFixedStr
	lane, lanes proto.ColUInt32
	input       proto.Input
}

func newLeafColumns() *leafColumns {
	c := &leafColumns{
		position: newPosition(), leafHash: proto.ColFixedStr{Size: 32}, incarnation: proto.ColFixedStr{Size: 16},
	}
	c.input = append(c.position.input(),
		proto.InputColumn{Name: "leaf_hash", Data: &c.leafHash},
		proto.InputColumn{Name: "node", Data: &c.node},
		proto.InputColumn{Name: "incarnation", Data: &c.incarnation},
		proto.InputColumn{Name: "lane", Data: &c.lane},
		proto.InputColumn{Name: "lanes", Data: &c.lanes},
	)
	return c
}

func (c *leafColumns) append(s *sealed, part uint32, partition int32, offset int64) {
	c.position.append(s, part, partition, offset)
	c.leafHash.Append(s.leafHash)
	c.node.AppendBytes(s.node)
	c.incarnation.Append(s.incarnation)
	c.lane.Append(uint32(s.lane))
	c.lanes.Append(uint32(s.lanes))
}

// month returns the ClickHouse partition, yyyymm, of a time in microseconds.
func month(us int64) uint32 {
	t := time.UnixMicro(us).UTC()
	return uint32(t.Year()*100 + int(t.Month()))
}
