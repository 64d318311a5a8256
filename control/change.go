package control

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"

	"getimmutable.dev/immutable/event"
)

const (
	// defaultLanes is what a workspace gets that is not the first.
	defaultLanes = 4
	maxNameLen   = 128
	maxCIDRs     = 100
	maxRate      = 10_000_000
	// maxExpiryYear is the last that RFC 3339 can write.
	maxExpiryYear = 9999
)

// NewWorkspace is what a workspace is created with.
type NewWorkspace struct {
	// Name has 1 to 128 printable characters, no space at either end, and is unique.
	Name string
	// Lanes is 1 to WriterConfig.Partitions, and cannot be changed. 0 means: as many as there are partitions where
	// there is no workspace yet, else 4 or as many as there are partitions.
	Lanes    uint32
	Settings Settings
}

// CreateWorkspace creates a workspace and reports it in its own ledger as workspace.created. ErrConflict says that the
// name is taken.
func (w *Writer) CreateWorkspace(ctx context.Context, by string, n NewWorkspace) (*Workspace, error) {
	if err := checkName(n.Name); err != nil {
		return nil, err
	}
	if err := n.Settings.validate(); err != nil {
		return nil, err
	}
	partitions := uint32(w.cfg.Partitions)
	if n.Lanes > partitions {
		return nil, invalid("lanes", "%d lanes: a workspace has at most %d, one for each partition", n.Lanes, partitions)
	}
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("draw a workspace id: %w", err)
	}
	ws := &Workspace{
		ID:        id,
		Name:      n.Name,
		CreatedAt: time.Now().UTC().Truncate(time.Microsecond),
		Settings:  n.Settings,
		Version:   1,
	}
	rand.Read(ws.Incarnation[:])
	rand.Read(ws.IdempotencySecret[:])
	err = w.write(ctx, by, func(s *state) (*change, error) {
		snap := s.snapshot()
		if slices.ContainsFunc(snap.Workspaces, func(o *Workspace) bool { return o.Name == n.Name }) {
			return nil, fmt.Errorf("%w: a workspace named %q exists: choose another name", ErrConflict, n.Name)
		}
		switch {
		case n.Lanes > 0:
			ws.Lanes = n.Lanes
		case len(snap.Workspaces) == 0:
			ws.Lanes = partitions
		default:
			ws.Lanes = min(defaultLanes, partitions)
		}
		metadata := settingsMetadata(ws.Settings)
		metadata["lanes"] = ws.Lanes
		return workspaceChange(ws, "workspace.created", metadata), nil
	})
	if err != nil {
		return nil, err
	}
	return ws, nil
}

// UpdateWorkspace changes the settings of a workspace as edit says, and reports it as workspace.updated. edit is given
// the settings there are, may be called again where a rival was faster, and must do nothing else. Where version is not 0
// it is the one that the caller has seen, and ErrConflict says that the workspace has changed since.
func (w *Writer) UpdateWorkspace(
	ctx context.Context, by string, id [16]byte, version uint64, edit func(*Settings),
) (*Workspace, error) {
	var updated *Workspace
	err := w.write(ctx, by, func(s *state) (*change, error) {
		old, err := s.workspaceAt(id, version)
		if err != nil {
			return nil, err
		}
		ws := *old
		edit(&ws.Settings)
		if err := ws.Settings.validate(); err != nil {
			return nil, err
		}
		ws.Version++
		updated = &ws
		return workspaceChange(updated, "workspace.updated", map[string]any{
			"old_value": settingsMetadata(old.Settings),
			"new_value": settingsMetadata(ws.Settings),
		}), nil
	})
	if err != nil {
		return nil, err
	}
	return updated, nil
}

// DeleteWorkspace deletes a workspace, of the version that the caller has seen where that is not 0, and reports it as its
// last event, workspace.deleted. Its keys stop working with it. Its ledger stays as it is; a workspace made anew under its name has
// another id and another incarnation.
func (w *Writer) DeleteWorkspace(ctx context.Context, by string, id [16]byte, version uint64) error {
	return w.write(ctx, by, func(s *state) (*change, error) {
		old, err := s.workspaceAt(id, version)
		if err != nil {
			return nil, err
		}
		ws := *old
		ws.Version++
		c := workspaceChange(&ws, "workspace.deleted", map[string]any{})
		c.object.deleted = true
		return c, nil
	})
}

// NewKey is what an API key is created with.
type NewKey struct {
	Workspace [16]byte
	// Name has 1 to 128 printable characters and no space at either end. It need not be unique.
	Name string
	// Scopes, at least one.
	Scopes []Scope
	// ExpiresAt is in the future, or zero for a key that does not expire.
	ExpiresAt time.Time
	// AllowedCIDRs are the addresses that may use the key, at most 100; empty means any.
	AllowedCIDRs []netip.Prefix
	RateLimit    Limit
	// Secret is the text of the key where it is chosen: imk_sk_ and 4 to 249 letters, digits and -._~. No key may have
	// it, have been created with it, or keep it as a former one, revoked ones included. Empty means: draw one.
	Secret string
}

// CreateKey creates an API key and reports it as api_key.created. It returns the key's text too, which is not kept
// anywhere. ErrConflict says that the chosen text was used before.
func (w *Writer) CreateKey(ctx context.Context, by string, n NewKey) (*Key, string, error) {
	now := time.Now().UTC().Truncate(time.Microsecond)
	if n.Secret != "" {
		if err := checkSecret(n.Secret); err != nil {
			return nil, "", err
		}
	}
	id, err := uuid.NewV7()
	if err != nil {
		return nil, "", fmt.Errorf("draw a key id: %w", err)
	}
	secret := n.Secret
	if secret == "" {
		secret = drawSecret()
	}
	key := &Key{
		ID:           id,
		Workspace:    n.Workspace,
		Name:         n.Name,
		Hash:         HashSecret(secret),
		Hint:         hintOf(secret),
		Scopes:       n.Scopes,
		CreatedAt:    now,
		ExpiresAt:    n.ExpiresAt,
		AllowedCIDRs: n.AllowedCIDRs,
		RateLimit:    n.RateLimit,
		Version:      1,
	}
	if err := key.settle(time.Time{}, now); err != nil {
		return nil, "", err
	}
	err = w.write(ctx, by, func(s *state) (*change, error) {
		ws := s.workspace(n.Workspace)
		if ws == nil {
			return nil, noWorkspace(n.Workspace)
		}
		if s.taken(key.Hash) {
			return nil, fmt.Errorf("%w: an API key has or had this text: choose another", ErrConflict)
		}
		return keyChange(ws, key, "api_key.created", keyMetadata(key)), nil
	})
	if err != nil {
		return nil, "", err
	}
	return key, secret, nil
}

// UpdateKey changes a key as edit says, and reports it as api_key.updated. edit is given a copy of the key, of which it
// may set Name, Scopes, ExpiresAt, AllowedCIDRs and RateLimit, by the rules of NewKey; it may be called again where a
// rival was faster, and must do nothing else. Where version is not 0 it is the one that the caller has seen, and
// ErrConflict says that the key has changed since.
func (w *Writer) UpdateKey(
	ctx context.Context, by string, workspace, id [16]byte, version uint64, edit func(*Key),
) (*Key, error) {
	var updated *Key
	err := w.write(ctx, by, func(s *state) (*change, error) {
		ws, old, err := s.keyAt(workspace, id, version)
		if err != nil {
			return nil, err
		}
		edited, key := *old, *old
		edit(&edited)
		key.Name, key.Scopes, key.ExpiresAt = edited.Name, edited.Scopes, edited.ExpiresAt
		key.AllowedCIDRs, key.RateLimit = edited.AllowedCIDRs, edited.RateLimit
		now := time.Now()
		if err := key.settle(old.ExpiresAt, now); err != nil {
			return nil, err
		}
		key.Former = old.formerAt(now)
		key.Version++
		updated = &key
		metadata := func(k *Key) map[string]any {
			m := keyMetadata(k)
			m["name"] = k.Name
			return m
		}
		return keyChange(ws, updated, "api_key.updated", map[string]any{
			"old_value": metadata(old), "new_value": metadata(updated),
		}), nil
	})
	if err != nil {
		return nil, err
	}
	return updated, nil
}

// RevokeKey ends a key for ever and reports it as api_key.revoked. ErrNotFound says that there is no such key, or no
// longer. Where version is not 0 it is the one that the caller has seen, and ErrConflict says that the key has changed
// since.
func (w *Writer) RevokeKey(ctx context.Context, by string, workspace, id [16]byte, version uint64) error {
	return w.write(ctx, by, func(s *state) (*change, error) {
		ws, old, err := s.keyAt(workspace, id, version)
		if err != nil {
			return nil, err
		}
		key := *old
		key.Former = old.formerAt(time.Now())
		key.Version++
		c := keyChange(ws, &key, "api_key.revoked", map[string]any{"hint": key.Hint})
		c.object.deleted = true
		return c, nil
	})
}

// keyAt returns a key, with its workspace, if it is of a version; 0 means any.
func (s *state) keyAt(workspace, id [16]byte, version uint64) (*Workspace, *Key, error) {
	ws := s.workspace(workspace)
	if ws == nil {
		return nil, nil, noWorkspace(workspace)
	}
	key := s.key(workspace, id)
	switch {
	case key == nil:
		return nil, nil, fmt.Errorf("%w: the workspace has no API key %s, or it was revoked", ErrNotFound, uuid.UUID(id))
	case version != 0 && key.Version != version:
		return nil, nil, stale("API key", key.Version, version)
	}
	return ws, key, nil
}

// workspaceAt returns a workspace if it is of a version; 0 means any.
func (s *state) workspaceAt(id [16]byte, version uint64) (*Workspace, error) {
	ws := s.workspace(id)
	switch {
	case ws == nil:
		return nil, noWorkspace(id)
	case version != 0 && ws.Version != version:
		return nil, stale("workspace", ws.Version, version)
	}
	return ws, nil
}

func stale(what string, is, seen uint64) error {
	return fmt.Errorf("%w: the %s is at version %d, not %d: read it and try again", ErrConflict, what, is, seen)
}

func noWorkspace(id [16]byte) error {
	return fmt.Errorf("%w: there is no workspace %s", ErrNotFound, uuid.UUID(id))
}

func workspaceChange(ws *Workspace, action string, metadata map[string]any) *change {
	return &change{
		object:    &object{version: ws.Version, workspace: ws},
		workspace: ws,
		event: report{
			Action: action, Resource: "workspace", ResourceID: uuid.UUID(ws.ID).String(), ResourceName: ws.Name,
			Metadata: metadata,
		},
	}
}

func keyChange(ws *Workspace, key *Key, action string, metadata map[string]any) *change {
	return &change{
		object:    &object{version: key.Version, key: key},
		workspace: ws,
		event: report{
			Action: action, Resource: "api_key", ResourceID: uuid.UUID(key.ID).String(), ResourceName: key.Name,
			Metadata: metadata,
		},
	}
}

func settingsMetadata(s Settings) map[string]any {
	m := limitMetadata(s.RateLimit)
	m["keep_resource_id_empty"] = s.KeepResourceIDEmpty
	m["secret_policy"] = cmp.Or(s.SecretPolicy, event.SecretsFlag)
	return m
}

func limitMetadata(l Limit) map[string]any {
	return map[string]any{"rate_limit_per_second": l.PerSecond, "rate_limit_burst": l.Burst}
}

// keyMetadata tells what a key may do, and nothing of its text but the hint.
func keyMetadata(k *Key) map[string]any {
	m := limitMetadata(k.RateLimit)
	m["hint"] = k.Hint
	m["scopes"] = k.Scopes
	if !k.ExpiresAt.IsZero() {
		m["expires_at"] = event.FormatTime(k.ExpiresAt)
	}
	if len(k.AllowedCIDRs) > 0 {
		m["allowed_cidrs"] = k.AllowedCIDRs
	}
	return m
}

// settle checks what was asked of a key and brings it into the form in which it is kept. expires is the expiry that it
// has already, which may have passed.
func (k *Key) settle(expires, now time.Time) error {
	if err := checkName(k.Name); err != nil {
		return err
	}
	if len(k.Scopes) == 0 {
		return invalid("scopes", "an API key needs a scope: %s, %s or %s", ScopeWrite, ScopeRead, ScopeAdmin)
	}
	for i, s := range k.Scopes {
		if s != ScopeWrite && s != ScopeRead && s != ScopeAdmin {
			return invalid(fmt.Sprintf("scopes[%d]", i), "there is no scope %q: use %s, %s or %s", s, ScopeWrite, ScopeRead, ScopeAdmin)
		}
	}
	k.Scopes = slices.Compact(slices.Sorted(slices.Values(k.Scopes)))
	k.ExpiresAt = k.ExpiresAt.UTC().Truncate(time.Microsecond)
	if !k.ExpiresAt.IsZero() && !k.ExpiresAt.Equal(expires) {
		if !k.ExpiresAt.After(now) {
			return invalid("expires_at", "the API key would already have expired: give a time in the future")
		}
		if k.ExpiresAt.Year() > maxExpiryYear {
			return invalid("expires_at", "the API key would expire after the year %d: leave it out for a key that does not expire",
				maxExpiryYear)
		}
	}
	if len(k.AllowedCIDRs) > maxCIDRs {
		return invalid("allowed_cidrs", "%d allowed address ranges: at most %d", len(k.AllowedCIDRs), maxCIDRs)
	}
	k.AllowedCIDRs = slices.Clone(k.AllowedCIDRs)
	for i, p := range k.AllowedCIDRs {
		// Addresses are compared as IPv4 where they are: such a range would match nobody.
		if !p.IsValid() || p.Addr().Is4In6() {
			return invalid(fmt.Sprintf("allowed_cidrs[%d]", i),
				"%q is not an address range: write it like 192.0.2.0/24 or 2001:db8::/32", p)
		}
		k.AllowedCIDRs[i] = p.Masked()
	}
	return k.RateLimit.validate()
}

func (s *Settings) validate() error {
	if !s.SecretPolicy.Known() {
		return invalid("secret_policy", "there is no secret policy %q: use %s, %s or %s", s.SecretPolicy, event.SecretsFlag,
			event.SecretsRedact, event.SecretsReject)
	}
	return s.RateLimit.validate()
}

func (l Limit) validate() error {
	switch {
	case math.IsNaN(l.PerSecond) || l.PerSecond < 0 || l.PerSecond > maxRate:
		return invalid("rate_limit.per_second", "a rate limit is 0 (none) to %d events per second", maxRate)
	case l.Burst < 0 || l.Burst > maxRate:
		return invalid("rate_limit.burst", "a burst is 0 (one second's worth) to %d events", maxRate)
	case l.Burst > 0 && l.PerSecond == 0:
		return invalid("rate_limit.burst", "a burst without a rate limit has no meaning: set both or neither")
	}
	return nil
}

// checkName keeps names such that an event can carry them and a terminal can show them.
func checkName(name string) error {
	if name == "" || !utf8.ValidString(name) || utf8.RuneCountInString(name) > maxNameLen ||
		strings.TrimSpace(name) != name || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return invalid("name", "a name has 1 to %d printable characters and no space at either end", maxNameLen)
	}
	return nil
}
