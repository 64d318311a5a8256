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
		return nil, fmt.Errorf("%w: %d lanes: a workspace has at most %d, one for each partition", ErrInvalid,
			n.Lanes, partitions)
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

// SetWorkspaceSettings replaces the settings of a workspace whose version the caller has seen, and reports it as
// workspace.updated. ErrConflict says that it has changed since.
func (w *Writer) SetWorkspaceSettings(
	ctx context.Context, by string, id [16]byte, version uint64, settings Settings,
) (*Workspace, error) {
	if err := settings.validate(); err != nil {
		return nil, err
	}
	var updated *Workspace
	err := w.write(ctx, by, func(s *state) (*change, error) {
		old, err := s.workspaceAt(id, version)
		if err != nil {
			return nil, err
		}
		ws := *old
		ws.Settings = settings
		ws.Version++
		updated = &ws
		return workspaceChange(updated, "workspace.updated", map[string]any{
			"old_value": settingsMetadata(old.Settings),
			"new_value": settingsMetadata(settings),
		}), nil
	})
	if err != nil {
		return nil, err
	}
	return updated, nil
}

// DeleteWorkspace deletes a workspace whose version the caller has seen, and reports it as its last event,
// workspace.deleted. Its keys stop working with it. Its ledger stays as it is; a workspace made anew under its name has
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
	// Secret is the text of the key where it is chosen: imk_sk_ and 4 to 249 letters, digits and -._~. It must never
	// have been used. Empty means: draw one.
	Secret string
}

// CreateKey creates an API key and reports it as api_key.created. It returns the key's text too, which is not kept
// anywhere. ErrConflict says that the chosen text was used before.
func (w *Writer) CreateKey(ctx context.Context, by string, n NewKey) (*Key, string, error) {
	now := time.Now().UTC().Truncate(time.Microsecond)
	if err := n.validate(now); err != nil {
		return nil, "", err
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
		Scopes:       slices.Compact(slices.Sorted(slices.Values(n.Scopes))),
		CreatedAt:    now,
		ExpiresAt:    n.ExpiresAt.UTC().Truncate(time.Microsecond),
		AllowedCIDRs: slices.Clone(n.AllowedCIDRs),
		RateLimit:    n.RateLimit,
		Version:      1,
	}
	for i, p := range key.AllowedCIDRs {
		key.AllowedCIDRs[i] = p.Masked()
	}
	err = w.write(ctx, by, func(s *state) (*change, error) {
		ws := s.workspace(n.Workspace)
		if ws == nil {
			return nil, noWorkspace(n.Workspace)
		}
		for _, o := range s.objects {
			if o.key != nil && o.key.Hash == key.Hash {
				return nil, fmt.Errorf("%w: an API key with this text exists or was revoked: choose another", ErrConflict)
			}
		}
		return keyChange(ws, key, "api_key.created", keyMetadata(key)), nil
	})
	if err != nil {
		return nil, "", err
	}
	return key, secret, nil
}

// RevokeKey ends a key for ever and reports it as api_key.revoked. ErrNotFound says that there is no such key, or no
// longer.
func (w *Writer) RevokeKey(ctx context.Context, by string, workspace, id [16]byte) error {
	return w.write(ctx, by, func(s *state) (*change, error) {
		ws := s.workspace(workspace)
		if ws == nil {
			return nil, noWorkspace(workspace)
		}
		old := s.key(workspace, id)
		if old == nil {
			return nil, fmt.Errorf("%w: the workspace has no API key %s, or it was revoked", ErrNotFound, uuid.UUID(id))
		}
		key := *old
		key.Version++
		c := keyChange(ws, &key, "api_key.revoked", map[string]any{"hint": key.Hint})
		c.object.deleted = true
		return c, nil
	})
}

// workspaceAt returns a workspace if it is of a version.
func (s *state) workspaceAt(id [16]byte, version uint64) (*Workspace, error) {
	ws := s.workspace(id)
	switch {
	case ws == nil:
		return nil, noWorkspace(id)
	case ws.Version != version:
		return nil, fmt.Errorf("%w: the workspace is at version %d, not %d: read it and try again", ErrConflict,
			ws.Version, version)
	}
	return ws, nil
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

func (n *NewKey) validate(now time.Time) error {
	if err := checkName(n.Name); err != nil {
		return err
	}
	if len(n.Scopes) == 0 {
		return fmt.Errorf("%w: an API key needs a scope: %s, %s or %s", ErrInvalid, ScopeWrite, ScopeRead, ScopeAdmin)
	}
	for _, s := range n.Scopes {
		if s != ScopeWrite && s != ScopeRead && s != ScopeAdmin {
			return fmt.Errorf("%w: there is no scope %q: use %s, %s or %s", ErrInvalid, s, ScopeWrite, ScopeRead, ScopeAdmin)
		}
	}
	if !n.ExpiresAt.IsZero() && !n.ExpiresAt.After(now) {
		return fmt.Errorf("%w: the API key would already have expired: give a time in the future", ErrInvalid)
	}
	if len(n.AllowedCIDRs) > maxCIDRs {
		return fmt.Errorf("%w: %d allowed address ranges: at most %d", ErrInvalid, len(n.AllowedCIDRs), maxCIDRs)
	}
	for _, p := range n.AllowedCIDRs {
		// Addresses are compared as IPv4 where they are: such a range would match nobody.
		if !p.IsValid() || p.Addr().Is4In6() {
			return fmt.Errorf("%w: %q is not an address range: write it like 192.0.2.0/24 or 2001:db8::/32", ErrInvalid, p)
		}
	}
	if err := n.RateLimit.validate(); err != nil {
		return err
	}
	if n.Secret != "" {
		return checkSecret(n.Secret)
	}
	return nil
}

func (s *Settings) validate() error {
	if !s.SecretPolicy.Known() {
		return fmt.Errorf("%w: there is no secret policy %q: use %s, %s or %s", ErrInvalid, s.SecretPolicy, event.SecretsFlag,
			event.SecretsRedact, event.SecretsReject)
	}
	return s.RateLimit.validate()
}

func (l Limit) validate() error {
	switch {
	case math.IsNaN(l.PerSecond) || l.PerSecond < 0 || l.PerSecond > maxRate:
		return fmt.Errorf("%w: a rate limit is 0 (none) to %d events per second", ErrInvalid, maxRate)
	case l.Burst < 0 || l.Burst > maxRate:
		return fmt.Errorf("%w: a burst is 0 (one second's worth) to %d events", ErrInvalid, maxRate)
	case l.Burst > 0 && l.PerSecond == 0:
		return fmt.Errorf("%w: a burst without a rate limit has no meaning: set both or neither", ErrInvalid)
	}
	return nil
}

// checkName keeps names such that an event can carry them and a terminal can show them.
func checkName(name string) error {
	if name == "" || !utf8.ValidString(name) || utf8.RuneCountInString(name) > maxNameLen ||
		strings.TrimSpace(name) != name || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Errorf("%w: a name has 1 to %d printable characters and no space at either end", ErrInvalid, maxNameLen)
	}
	return nil
}
