// Package event holds an event's rules: what is accepted, its one canonical form, its id, its commitments, its lane,
// and the record that carries it. It is pure: no I/O and no clock; its only randomness is crypto/rand, for ids and seeds.
package event

import (
	"strconv"
	"time"

	"getimmutable.dev/immutable/schemas/recordpb"
)

// Limits of an event. A character is a Unicode code point.
const (
	// MaxEventBytes of JSON as sent.
	MaxEventBytes = 256 << 10
	// MaxTextCharacters of every string but resource_id.
	MaxTextCharacters = 255
	// MaxResourceIDCharacters of resource_id.
	MaxResourceIDCharacters = 1024
	// MaxTargets of an event.
	MaxTargets = 50
	// MaxMetadataKeys of metadata itself; what is nested in it is bounded by the other limits.
	MaxMetadataKeys = 50
	// MaxMetadataKeyBytes of every name in metadata, at any depth; the shortest has one byte.
	MaxMetadataKeyBytes = 255
	// MaxMetadataBytes of metadata in canonical form.
	MaxMetadataBytes = 64 << 10
	// MaxMetadataDepth of nested objects and arrays, metadata itself being the first.
	MaxMetadataDepth = 8
	// MaxEntryBytes of the metadata entries, keys and values together: an entry repeats the names on its path, so that
	// long names around many values would otherwise make a record far larger than its event.
	MaxEntryBytes = 256 << 10
	// MaxVersion is the largest version: integers up to it are exact everywhere.
	MaxVersion = 1<<53 - 1
	// MaxAhead is how far occurred_at may be after recorded_at.
	MaxAhead = 24 * time.Hour
	// MaxBackYears is how many years occurred_at may be before recorded_at.
	MaxBackYears = 10
	// MaxDetails of an Error; its message says how many more there were.
	MaxDetails = 20
	// MaxFlags of an event.
	MaxFlags = 20
)

// Workspace is what building a record needs of a workspace.
type Workspace struct {
	ID [16]byte
	// Incarnation was drawn when the workspace was created.
	Incarnation [16]byte
	// Lanes is at least 1.
	Lanes uint32
	// IdempotencySecret keys the ids that derive from idempotency keys.
	IdempotencySecret [32]byte
	// KeepResourceIDEmpty leaves resource_id alone where it is absent; else it is taken from metadata.
	KeepResourceIDEmpty bool
	// SecretPolicy, default SecretsFlag.
	SecretPolicy SecretPolicy
}

// Input is one event as it arrived.
type Input struct {
	// JSON is the event's text. It is not retained.
	JSON []byte
	// Kind, default KIND_EVENT.
	Kind recordpb.Kind
	// Lane, where it is set, is the lane instead of Lane's, below Workspace.Lanes: a redaction is in the lane of the event
	// that it is about.
	Lane *uint32
	// IdempotencyKey from the request's header, empty where there was none. It stands in for the body's member; both
	// with different values are an error.
	IdempotencyKey string
	// RecordedAt is when the event was accepted; microseconds are kept.
	RecordedAt time.Time
	// RequestID and Traceparent tie the record to its request. They are left out of the record where they are longer
	// than 255 bytes or not printable ASCII.
	RequestID, Traceparent string
}

// Record is an event that is ready for the events topic.
type Record struct {
	ID [16]byte
	// Keyed says that ID derives from IdempotencyKey: UUIDv8, else UUIDv7.
	Keyed          bool
	IdempotencyKey string
	// Secrets says that what looks like a secret was found; Workspace.SecretPolicy says what was done with it.
	Secrets bool
	Lane    uint32
	// Key and Value of the Kafka record: RecordKey, and a marshalled recordpb.Event. The caller owns both.
	Key, Value []byte
	// RecordedAt is Input.RecordedAt, in UTC and truncated to microseconds.
	RecordedAt time.Time
}

// Codes of an Error, as the HTTP API writes them.
const (
	CodeInvalidJSON = "invalid_json"      // 400: not JSON; the message gives the byte offset
	CodeValidation  = "validation_failed" // 422: JSON that breaks a rule
	CodeTooLarge    = "too_large"         // 413: beyond MaxEventBytes
)

// Error says why an input is not an event. All of its text is for the customer, says what to change, and repeats names
// but never values, nor names that look like a secret.
type Error struct {
	Code    string
	Message string
	// Details, at most MaxDetails, name each field at fault.
	Details []Detail
	// Secrets says that Workspace.SecretPolicy is a reason.
	Secrets bool
}

// Detail is one fault.
type Detail struct {
	// Field as in metadata.x or targets[0].type; empty for the event as a whole.
	Field   string
	Message string
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// validationError sums up details; more of them were left out.
func validationError(details []Detail, more int) *Error {
	first := details[0]
	message := first.Message
	if first.Field != "" {
		message = first.Field + " " + message
	}
	if n := len(details) + more - 1; n > 0 {
		message += " (and " + strconv.Itoa(n) + " more)"
	}
	return &Error{Code: CodeValidation, Message: message, Details: details}
}

// FormatTime writes t in RFC 3339, in UTC, truncated to microseconds, with exactly six fraction digits and Z.
func FormatTime(t time.Time) string {
	return string(appendTime(nil, t))
}

func appendTime(dst []byte, t time.Time) []byte {
	return t.UTC().AppendFormat(dst, "2006-01-02T15:04:05.000000Z")
}
