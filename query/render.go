package query

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/ledger"
)

// row is an event as ClickHouse has it.
type row struct {
	id         [16]byte
	occurredAt time.Time
	recordedAt time.Time
	chain      ledger.ChainID
	sequence   uint64
	body       []byte // canonical JSON, verbatim but for what was redacted
	redacted   []string
}

func (r *row) position() position {
	return position{at: r.occurredAt.UnixMicro(), id: r.id}
}

// hashes are the leaves of a page and those before them.
type hashes map[leafKey]ledger.Hash

// renderer writes events as the API shows them. Values are copied from the body as they are, byte for byte: it is
// canonical JSON already. It is not for concurrent use.
type renderer struct {
	decoder *jsontext.Decoder
	members map[string][]byte // slices of the body at hand
}

func newRenderer() *renderer {
	return &renderer{
		decoder: jsontext.NewDecoder(new(bytes.Buffer)),
		members: make(map[string][]byte, 20),
	}
}

var errBody = errors.New("the event's body is not a JSON object")

// read takes the top-level members of a body apart.
func (r *renderer) read(body []byte) error {
	clear(r.members)
	// A member given twice cannot come out of ingest, and looking for one costs as much as the rest of the parsing.
	r.decoder.Reset(bytes.NewBuffer(body), jsontext.AllowDuplicateNames(true))
	if token, err := r.decoder.ReadToken(); err != nil || token.Kind() != '{' {
		return errBody
	}
	for r.decoder.PeekKind() == '"' {
		name, err := r.decoder.ReadToken()
		if err != nil {
			return errBody
		}
		key := name.String()
		value, err := r.decoder.ReadValue()
		if err != nil {
			return errBody
		}
		end := r.decoder.InputOffset()
		r.members[key] = body[end-int64(len(value)) : end]
	}
	if token, err := r.decoder.ReadToken(); err != nil || token.Kind() != '}' {
		return errBody
	}
	return nil
}

// appendEvent appends the event in both shapes that readers use: nested objects, and the flat names beside them. Every
// key is always there (docs/design/api.md, Reading). sealed is false, and the hashes are null, where the ledger's table
// does not hold the event's leaf.
func (r *renderer) appendEvent(b []byte, e *row, leaves hashes) ([]byte, error) {
	if err := r.read(e.body); err != nil {
		return b, fmt.Errorf("read event %s: %w", uuid.UUID(e.id), err)
	}
	b = append(b, `{"id":"`...)
	b = append(b, uuid.UUID(e.id).String()...)
	b = append(b, `","actor":`...)
	b = r.appendObject(b, [3]string{"id", "name", "type"}, [3]string{"actor_id", "actor_name", "actor_type"})
	b = r.appendMember(b, "actor_id", "actor_id", "null")
	b = r.appendMember(b, "actor_name", "actor_name", "null")
	b = r.appendMember(b, "actor_type", "actor_type", "null")
	b = r.appendMember(b, "action", "action", "null")
	b = r.appendMember(b, "action_category", "action_category", "null")
	b = append(b, `,"resource":`...)
	b = r.appendObject(b, [3]string{"type", "id", "name"}, [3]string{"resource", "resource_id", "resource_name"})
	b = r.appendMember(b, "resource_id", "resource_id", "null")
	b = r.appendMember(b, "resource_name", "resource_name", "null")
	b = r.appendMember(b, "resource_type", "resource", "null")
	b = r.appendMember(b, "targets", "targets", "[]")
	b = r.appendMember(b, "metadata", "metadata", "{}")
	b = r.appendMember(b, "tenant_id", "tenant_id", "null")
	b = r.appendMember(b, "session_id", "session_id", "null")
	b = r.appendMember(b, "ip_address", "ip_address", "null")
	b = r.appendMember(b, "user_agent", "user_agent", "null")
	b = r.appendMember(b, "idempotency_key", "idempotency_key", "null")
	b = r.appendMember(b, "version", "version", "null")
	b = r.appendMember(b, "flags", "flags", "[]")
	b = append(b, `,"redacted":[`...)
	for i, path := range e.redacted {
		if i > 0 {
			b = append(b, ',')
		}
		var err error
		if b, err = jsontext.AppendQuote(b, path); err != nil {
			return b, fmt.Errorf("write event %s: %w", uuid.UUID(e.id), err)
		}
	}
	b = append(b, `],"integrity":`...)
	b = appendIntegrity(b, e, leaves)
	b = append(b, `,"occurred_at":"`...)
	b = append(b, event.FormatTime(e.occurredAt)...)
	b = append(b, `","created_at":"`...)
	b = append(b, event.FormatTime(e.recordedAt)...)
	return append(b, `"}`...), nil
}

// appendMember appends ,"name":value with the body's value.
func (r *renderer) appendMember(b []byte, name, member, absent string) []byte {
	b = append(b, `,"`...)
	b = append(b, name...)
	b = append(b, `":`...)
	return r.appendValue(b, member, absent)
}

// appendObject appends an object of three of the body's members.
func (r *renderer) appendObject(b []byte, names, members [3]string) []byte {
	for i, name := range names {
		b = append(b, "{,,"[i], '"')
		b = append(b, name...)
		b = append(b, `":`...)
		b = r.appendValue(b, members[i], "null")
	}
	return append(b, '}')
}

func (r *renderer) appendValue(b []byte, member, absent string) []byte {
	if value, ok := r.members[member]; ok {
		return append(b, value...)
	}
	return append(b, absent...)
}

func appendIntegrity(b []byte, e *row, leaves hashes) []byte {
	own, previous := e.leafKeys()
	hash, sealed := leaves[own]
	before, known := leaves[previous]
	b = append(b, `{"event_hash":`...)
	b = appendHash(b, hash, sealed)
	b = append(b, `,"previous_event_hash":`...)
	b = appendHash(b, before, known)
	b = append(b, `,"chain":"`...)
	b = hex.AppendEncode(b, e.chain[:])
	b = append(b, `","sequence":`...)
	b = strconv.AppendUint(b, e.sequence, 10)
	b = append(b, `,"sealed":`...)
	b = strconv.AppendBool(b, sealed && known)
	return append(b, '}')
}

// leafKeys returns the keys of the event's leaf and of the one before it; a chain's first leaf is no event, so that
// there is always one.
func (r *row) leafKeys() (own, previous leafKey) {
	return leafKey{r.chain, r.sequence}, leafKey{r.chain, r.sequence - 1}
}

func appendHash(b []byte, h ledger.Hash, known bool) []byte {
	if !known {
		return append(b, "null"...)
	}
	b = append(b, '"')
	b = hex.AppendEncode(b, h[:])
	return append(b, '"')
}
