// Package control is what an installation is configured to do: workspaces, the API keys that open them, settings. It
// lives on the config topic. A View is a service's live copy of it and answers who may do what; a Writer is the only
// way to change it, and reports every change as an event of the workspace that it concerns, in the same transaction.
package control

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"getimmutable.dev/immutable/event"
)

// Errors of a Writer, wrapped with the sentence that says what to change.
var (
	// ErrInvalid says that what was asked for breaks a rule. Nothing was written.
	ErrInvalid = errors.New("invalid")
	// ErrNotFound says that the object is not there, or no longer. Nothing was written.
	ErrNotFound = errors.New("not found")
	// ErrConflict says that the object has changed since it was read, or that its name is taken. Nothing was written.
	ErrConflict = errors.New("conflict")
	// ErrBusy says that other writers kept taking over until the attempts or the time were used up. Nothing was written.
	ErrBusy = errors.New("busy")
	// ErrUnknownOutcome says that the change may or may not have been made: Kafka went away while it was committed.
	ErrUnknownOutcome = errors.New("outcome unknown")
	// ErrMasterKey says that a secret does not open under the master key that was given.
	ErrMasterKey = errors.New("wrong master key")
)

// FieldError is an ErrInvalid that names what breaks the rule.
type FieldError struct {
	// Field is its name in the HTTP API, as "name", "scopes[1]" or "rate_limit.burst".
	Field string
	// Reason is a clause that says what to change.
	Reason string
}

func invalid(field, format string, args ...any) error {
	return &FieldError{Field: field, Reason: fmt.Sprintf(format, args...)}
}

// Error implements error.
func (e *FieldError) Error() string { return ErrInvalid.Error() + ": " + e.Reason }

// Unwrap returns ErrInvalid.
func (e *FieldError) Unwrap() error { return ErrInvalid }

// Scope is what an API key may do. A key has each scope that it needs; none implies another.
type Scope string

// The scopes that this version knows. A key of a newer version may carry others.
const (
	ScopeWrite Scope = "events:write"
	ScopeRead  Scope = "events:read"
	ScopeAdmin Scope = "admin"
)

// Workspace owns keys and events. The View shares it between goroutines: it is never changed.
type Workspace struct {
	ID [16]byte
	// Incarnation is drawn when the workspace is created and stamped into each of its records.
	Incarnation [16]byte
	// Name is unique among the workspaces there are.
	Name string
	// Lanes is fixed at creation: 1 to the number of partitions of the events topic.
	Lanes     uint32
	CreatedAt time.Time
	// IdempotencySecret derives the ids of events with an idempotency key. It is never exported or logged.
	IdempotencySecret [32]byte
	Settings          Settings
	// Version is 1 at creation and rises by one with each change.
	Version uint64
}

// ForEvents returns what package event has to know of the workspace.
func (w *Workspace) ForEvents() *event.Workspace {
	return &event.Workspace{
		ID:                  w.ID,
		Incarnation:         w.Incarnation,
		Lanes:               w.Lanes,
		IdempotencySecret:   w.IdempotencySecret,
		KeepResourceIDEmpty: w.Settings.KeepResourceIDEmpty,
		SecretPolicy:        w.Settings.SecretPolicy,
	}
}

// Settings of a workspace; the zero value is the default.
type Settings struct {
	// KeepResourceIDEmpty turns off that resource_id is filled from metadata.
	KeepResourceIDEmpty bool
	// RateLimit holds for all keys of the workspace together.
	RateLimit Limit
	// SecretPolicy is what becomes of an event that holds what looks like a secret; empty means event.SecretsFlag.
	SecretPolicy event.SecretPolicy
}

// Limit is a rate of events; the zero value is no limit.
type Limit struct {
	// PerSecond is in events; 0 means no limit. At most 10 million.
	PerSecond float64
	// Burst is how many events may come at once; 0 means one second's worth. At most 10 million.
	Burst int
}

// Key is an API key without its text, which nobody has but its owner. The View shares it: it is never changed.
type Key struct {
	// ID is a UUIDv7 and public.
	ID        [16]byte
	Workspace [16]byte
	Name      string
	// Hash is the SHA-256 of the whole text.
	Hash [32]byte
	// Hint is the end of the text, at most four characters.
	Hint      string
	Scopes    []Scope
	CreatedAt time.Time
	// ExpiresAt is zero for a key that does not expire.
	ExpiresAt time.Time
	// AllowedCIDRs are the addresses that may use the key; empty means any.
	AllowedCIDRs []netip.Prefix
	RateLimit    Limit
	// Former are the texts that the key was rolled from and that may still work, the oldest first, at most 4. One that
	// has ended may be among them until the key is changed the next time.
	Former []FormerSecret
	// First is the SHA-256 of the text that the key was created with, zero until it is rolled. Texts that come later are
	// drawn, but that one may have been chosen, and what chose it may do so again: it stays taken for ever.
	First   [32]byte
	Version uint64
}

// OpenedBy reports whether the text with this hash is, at now, one of the key.
func (k *Key) OpenedBy(hash [32]byte, now time.Time) bool {
	return k.Hash == hash || slices.ContainsFunc(k.formerAt(now), func(f FormerSecret) bool { return f.Hash == hash })
}

// FormerSecret is the text of a key that was replaced by another.
type FormerSecret struct {
	// Hash and Hint are as in Key.
	Hash [32]byte
	Hint string
	// Until is the first moment at which the text no longer opens the key.
	Until time.Time
}

// Snapshot is what is configured at one moment.
type Snapshot struct {
	// Workspaces in the order of their names.
	Workspaces []*Workspace
	// Keys in the order of their creation, without those revoked; expired ones are among them.
	Keys []*Key
}

func sortWorkspaces(ws []*Workspace) {
	slices.SortFunc(ws, func(a, b *Workspace) int { return cmp.Compare(a.Name, b.Name) })
}

func sortKeys(ks []*Key) {
	slices.SortFunc(ks, func(a, b *Key) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), slices.Compare(a.ID[:], b.ID[:]))
	})
}
