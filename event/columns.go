package event

import (
	"errors"
	"fmt"
	"time"
)

// Columns is what a body says for filtering: the fields of a record from occurred_at on, as Build fills them in. Absent is empty.
type Columns struct {
	// OccurredAt is in microseconds since the Unix epoch; 0 where it is absent.
	OccurredAt int64
	// Text of the string fields, in the order of TextFields.
	Text [12][]byte
	// TargetTypes and TargetIDs are parallel, as are MetadataKeys and MetadataValues.
	TargetTypes, TargetIDs       [][]byte
	Flags                        [][]byte
	MetadataKeys, MetadataValues [][]byte
}

// TextFields names the fields of Columns.Text, in the order of the record's fields.
func TextFields() [12]string {
	return [12]string{
		FieldActorID, FieldActorName, FieldActorType, FieldAction, FieldActionCategory, FieldResource, FieldResourceID, FieldResourceName,
		FieldSessionID, FieldTenantID, FieldIPAddress, FieldUserAgent,
	}
}

// errColumns is wrapped by the errors of a body that Build has not made.
var errColumns = errors.New("not the body of an event")

// Columns reads a body that Build has made, or what a redaction has left of one. What it returns is valid until the builder's next use.
func (b *Builder) Columns(body []byte, c *Columns) error {
	*c = Columns{
		TargetTypes: c.TargetTypes[:0], TargetIDs: c.TargetIDs[:0], Flags: c.Flags[:0], MetadataKeys: c.MetadataKeys[:0],
		MetadataValues: c.MetadataValues[:0],
	}
	if err := b.tape.parse(body); err != nil {
		return fmt.Errorf("%w: %w", errColumns, err)
	}
	if b.tape.nodes[0].kind != '{' {
		return fmt.Errorf("%w: it is no object", errColumns)
	}
	b.entries, b.keys, b.entryBytes = b.entries[:0], b.keys[:0], 0
	for i := range b.tape.children(0) {
		if err := b.takeColumn(c, i); err != nil {
			return err
		}
	}
	for _, e := range b.entries {
		c.MetadataKeys = append(c.MetadataKeys, b.keys[e.key.start:e.key.end])
		c.MetadataValues = append(c.MetadataValues, b.tape.bytes(e.value))
	}
	return nil
}

// ColumnsOf is Builder.Columns of one body, in memory of its own.
func ColumnsOf(body []byte) (*Columns, error) {
	c := new(Columns)
	return c, NewBuilder().Columns(body, c)
}

// takeColumn reads one member of a body.
func (b *Builder) takeColumn(c *Columns, i int) error {
	n := &b.tape.nodes[i]
	name := b.tape.bytes(n.name)
	switch string(name) {
	case FieldOccurredAt:
		at, err := time.Parse(time.RFC3339Nano, string(b.tape.bytes(n.text)))
		if err != nil || n.kind != '"' {
			return fmt.Errorf("%w: occurred_at is no time", errColumns)
		}
		c.OccurredAt = at.UnixMicro()
	case FieldFlags:
		for child := range b.tape.children(i) {
			c.Flags = append(c.Flags, b.tape.bytes(b.tape.nodes[child].text))
		}
	case FieldMetadata:
		b.prefix = b.prefix[:0]
		if n.kind != '{' || !b.addEntries(i) {
			return fmt.Errorf("%w: metadata", errColumns)
		}
	case FieldTargets:
		for child := range b.tape.children(i) {
			b.takeTargetColumns(c, child)
		}
	case FieldVersion, FieldIdempotencyKey:
	default:
		for k, field := range TextFields() {
			if field == string(name) && n.kind == '"' {
				c.Text[k] = b.tape.bytes(n.text)
				return nil
			}
		}
		return fmt.Errorf("%w: member %.80q", errColumns, name)
	}
	return nil
}

func (b *Builder) takeTargetColumns(c *Columns, i int) {
	var kind, id []byte
	for child := range b.tape.children(i) {
		n := &b.tape.nodes[child]
		switch string(b.tape.bytes(n.name)) {
		case "type":
			kind = b.tape.bytes(n.text)
		case "id":
			id = b.tape.bytes(n.text)
		default: // no column
		}
	}
	c.TargetTypes, c.TargetIDs = append(c.TargetTypes, kind), append(c.TargetIDs, id)
}
