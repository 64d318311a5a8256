package query

import (
	"context"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/google/uuid"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/internal/httpserver"
)

// apiKey is an API key as it is shown.
type apiKey struct {
	ID          string          `json:"id"`
	WorkspaceID string          `json:"workspace_id"`
	Name        string          `json:"name"`
	Token       string          `json:"token"` // its end, behind ***; the whole of it in the answer to what drew it
	Scopes      []control.Scope `json:"scopes"`
	// AllowedCIDRs is empty where any address may use the key.
	AllowedCIDRs []netip.Prefix `json:"allowed_cidrs"`
	RateLimit    *rateLimit     `json:"rate_limit"`
	CreatedAt    string         `json:"created_at"`
	ExpiresAt    *string        `json:"expires_at"`
	// LastUsedAt is a time, or null inside for never; it is left out while it is not known.
	LastUsedAt   **string      `json:"last_used_at,omitempty"`
	FormerTokens []formerToken `json:"former_tokens"`
	Version      uint64        `json:"version"`
}

// formerToken is a text that the key was rolled from, as it is shown.
type formerToken struct {
	Token string `json:"token"` // its end, behind ***
	Until string `json:"until"`
}

func (s *Service) showKey(k *control.Key) apiKey {
	shown := apiKey{
		ID: uuid.UUID(k.ID).String(), WorkspaceID: uuid.UUID(k.Workspace).String(), Name: k.Name, Token: "***" + k.Hint,
		Scopes: k.Scopes, AllowedCIDRs: append([]netip.Prefix{}, k.AllowedCIDRs...), RateLimit: showLimit(k.RateLimit),
		CreatedAt: event.FormatTime(k.CreatedAt), FormerTokens: []formerToken{}, Version: k.Version,
	}
	for _, f := range k.Former {
		shown.FormerTokens = append(shown.FormerTokens, formerToken{"***" + f.Hint, event.FormatTime(f.Until)})
	}
	shown.ExpiresAt = timeOrNull(k.ExpiresAt)
	if at, known := s.view.LastUsed(k.ID); known {
		text := timeOrNull(at)
		shown.LastUsedAt = &text
	}
	return shown
}

// timeOrNull is nil for the zero time.
func timeOrNull(t time.Time) *string {
	if t.IsZero() {
		return nil
	}
	text := event.FormatTime(t)
	return &text
}

func noKey() error {
	return httpserver.NotFound("There is no API key with this id in the workspace of the API key that asks, or it was revoked.")
}

// listKeys is GET /keys.
func (s *Service) listKeys(_ context.Context, p *control.Principal, r *http.Request) (reply, error) {
	return listReply(r, p, endpointKeys, s.view.Keys(p.Workspace.ID),
		func(k *control.Key) position { return positionOf(k.CreatedAt, k.ID) }, s.showKey)
}

// getKey is GET /keys/{id}.
func (s *Service) getKey(_ context.Context, p *control.Principal, r *http.Request) (reply, error) {
	id, ok := pathID(r)
	if !ok {
		return reply{}, noKey()
	}
	k, ok := s.view.Key(p.Workspace.ID, id)
	if !ok {
		return reply{}, noKey()
	}
	return reply{status: http.StatusOK, version: k.Version, data: s.showKey(k)}, nil
}

// keyFields are what of a key can be set.
type keyFields struct {
	Name         given[string]          `json:"name"`
	Scopes       given[[]control.Scope] `json:"scopes"`
	ExpiresAt    given[time.Time]       `json:"expires_at"`
	AllowedCIDRs given[[]string]        `json:"allowed_cidrs"`
	RateLimit    given[*rateLimit]      `json:"rate_limit"`
}

const knownKeyFields = "name, scopes, expires_at, allowed_cidrs, rate_limit"

func (f *keyFields) cidrs() ([]netip.Prefix, error) {
	prefixes := make([]netip.Prefix, len(f.AllowedCIDRs.value))
	for i, text := range f.AllowedCIDRs.value {
		var err error
		if prefixes[i], err = netip.ParsePrefix(text); err != nil {
			return nil, invalidField("allowed_cidrs["+strconv.Itoa(i)+"]",
				"is not an address range: write it like 192.0.2.0/24 or 2001:db8::/32.")
		}
	}
	return prefixes, nil
}

// createKey is POST /keys. A key of the operators' workspace may create keys of others: that is how these get their first.
func (s *Service) createKey(ctx context.Context, p *control.Principal, r *http.Request) (reply, error) {
	var body struct {
		keyFields   `json:",inline"`
		WorkspaceID given[string] `json:"workspace_id"`
	}
	if err := readBody(r, &body, knownKeyFields+", workspace_id"); err != nil {
		return reply{}, err
	}
	cidrs, err := body.cidrs()
	if err != nil {
		return reply{}, err
	}
	workspace := p.Workspace.ID
	if body.WorkspaceID.there {
		id, ok := parseID(body.WorkspaceID.value)
		if !ok || !s.mayManage(p, id) {
			return reply{}, noWorkspace()
		}
		workspace = id
	}
	k, secret, err := s.writer.CreateKey(ctx, author(p), control.NewKey{
		Workspace: workspace, Name: body.Name.value, Scopes: body.Scopes.value, ExpiresAt: body.ExpiresAt.value,
		AllowedCIDRs: cidrs, RateLimit: body.RateLimit.value.limit(),
	})
	if err != nil {
		return reply{}, err
	}
	s.seenKey(ctx, k)
	shown := s.showKey(k)
	shown.Token = secret
	return reply{status: http.StatusCreated, version: k.Version, data: shown}, nil
}

// keyToChange returns the id in the path, and the version that the change is meant for.
func keyToChange(r *http.Request) (id [16]byte, version uint64, err error) {
	id, ok := pathID(r)
	if !ok {
		return id, 0, noKey()
	}
	version, err = ifMatch(r)
	return id, version, err
}

// updateKey is PATCH /keys/{id}.
func (s *Service) updateKey(ctx context.Context, p *control.Principal, r *http.Request) (reply, error) {
	id, version, err := keyToChange(r)
	if err != nil {
		return reply{}, err
	}
	var body keyFields
	if err := readBody(r, &body, knownKeyFields); err != nil {
		return reply{}, err
	}
	cidrs, err := body.cidrs()
	if err != nil {
		return reply{}, err
	}
	k, err := s.writer.UpdateKey(ctx, author(p), p.Workspace.ID, id, version, func(k *control.Key) {
		body.Name.to(&k.Name)
		body.Scopes.to(&k.Scopes)
		body.ExpiresAt.to(&k.ExpiresAt)
		if body.AllowedCIDRs.there {
			k.AllowedCIDRs = cidrs
		}
		if body.RateLimit.there {
			k.RateLimit = body.RateLimit.value.limit()
		}
	})
	if err != nil {
		return reply{}, err
	}
	s.seenKey(ctx, k)
	return reply{status: http.StatusOK, version: k.Version, data: s.showKey(k)}, nil
}

// rollKey is POST /keys/{id}/roll.
func (s *Service) rollKey(ctx context.Context, p *control.Principal, r *http.Request) (reply, error) {
	id, version, err := keyToChange(r)
	if err != nil {
		return reply{}, err
	}
	var body struct {
		// OverlapSeconds has 32 bits: no number of seconds that it holds overflows a duration.
		OverlapSeconds int32 `json:"overlap_seconds"`
	}
	if err := readBody(r, &body, "overlap_seconds"); err != nil {
		return reply{}, err
	}
	overlap := time.Duration(body.OverlapSeconds) * time.Second
	k, secret, err := s.writer.RollKey(ctx, author(p), p.Workspace.ID, id, version, overlap)
	if err != nil {
		return reply{}, err
	}
	s.seenKey(ctx, k)
	shown := s.showKey(k)
	shown.Token = secret
	return reply{status: http.StatusOK, version: k.Version, data: shown}, nil
}

// revokeKey is DELETE /keys/{id}.
func (s *Service) revokeKey(ctx context.Context, p *control.Principal, r *http.Request) (reply, error) {
	id, version, err := keyToChange(r)
	if err != nil {
		return reply{}, err
	}
	if err := s.writer.RevokeKey(ctx, author(p), p.Workspace.ID, id, version); err != nil {
		return reply{}, err
	}
	s.seen(ctx, func() bool {
		_, there := s.view.Key(p.Workspace.ID, id)
		return !there
	})
	return reply{status: http.StatusOK, data: deleted{uuid.UUID(id).String(), true}}, nil
}

// deleted is what is left of an object to show.
type deleted struct {
	ID      string `json:"id"`
	Deleted bool   `json:"deleted"`
}

// seenKey waits until this instance knows of a key's version.
func (s *Service) seenKey(ctx context.Context, changed *control.Key) {
	s.seen(ctx, func() bool {
		k, ok := s.view.Key(changed.Workspace, changed.ID)
		return ok && k.Version >= changed.Version
	})
}
