package control

import (
	"context"
	"crypto/subtle"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"getimmutable.dev/immutable/internal/httpserver"
)

// retryAfter is what a client is told to wait where the view cannot know.
const retryAfter = 5 * time.Second

// Principal is who makes a request: a key that was found good, and its workspace. It is shared and never changed.
type Principal struct {
	Key       *Key
	Workspace *Workspace
}

// refusalOf says why a key cannot be used although it is known: for itself, or for owner, its workspace's record.
func refusalOf(key, owner *object) *httpserver.Error {
	switch {
	case key.deleted:
		return httpserver.Unauthenticated("This API key was revoked: use another key.")
	case key.broken != nil:
		return httpserver.Unavailable("This API key cannot be checked at present: ask the operator.", retryAfter, key.broken)
	case owner != nil && !owner.deleted:
		return httpserver.Unavailable("The workspace of this API key cannot be read at present: ask the operator.",
			retryAfter, owner.broken)
	}
	return httpserver.Unauthenticated("The workspace of this API key was deleted: use a key of another workspace.")
}

// Authenticate returns whom token stands for, if they may do what scope says, from addr, at now, which is a use of the key
// then. The error is an
// *httpserver.Error: 401 unauthenticated without a good key, 403 forbidden where the key is good but not for this, 503
// unavailable where the view cannot know. An invalid addr is in no allowed range.
func (v *View) Authenticate(token string, addr netip.Addr, now time.Time, scope Scope) (*Principal, error) {
	if token == "" {
		return nil, httpserver.Unauthenticated("No API key: send it in the header Authorization: Bearer " + secretPrefix + "...")
	}
	ix := v.index.Load()
	if ix == nil {
		return nil, httpserver.Unavailable("The service is still starting: try again.", retryAfter, nil)
	}
	hash := HashSecret(token)
	c := ix.credentials[hash]
	// The lookup's time depends on the hash alone, which says nothing of any key's text. The comparison decides.
	if c == nil || subtle.ConstantTimeCompare(c.hash()[:], hash[:]) != 1 {
		return nil, httpserver.Unauthenticated(
			"This API key is not known: check that it was copied whole and is one of this installation's.")
	}
	if c.refusal != nil {
		return nil, c.refusal
	}
	if c.former != nil && !now.Before(c.former.Until) {
		return nil, httpserver.Unauthenticated("This API key was rolled and its former text has ended: use its new text.")
	}
	key := c.principal.Key
	if !key.ExpiresAt.IsZero() && !now.Before(key.ExpiresAt) {
		return nil, httpserver.Unauthenticated("This API key has expired: create a new one and use it.")
	}
	if len(key.AllowedCIDRs) > 0 {
		addr = addr.Unmap().WithZone("")
		if !slices.ContainsFunc(key.AllowedCIDRs, func(p netip.Prefix) bool { return p.Contains(addr) }) {
			return nil, httpserver.Forbidden("This API key may not be used from the address " + addr.String() +
				": use an allowed one, or a key that allows it.")
		}
	}
	if !slices.Contains(key.Scopes, scope) {
		return nil, httpserver.Forbidden("This API key does not have the scope " + string(scope) + ": use a key that has it.")
	}
	v.usage.note(key.ID, now)
	return &c.principal, nil
}

type principalKey struct{}

// PrincipalFrom returns who makes the request, or nil outside of a handler under Require.
func PrincipalFrom(ctx context.Context) *Principal {
	p, _ := ctx.Value(principalKey{}).(*Principal)
	return p
}

// Require lets a request through to next if its Authorization header holds a key with scope, and answers 401, 403 or
// 503 otherwise (docs/design/api.md, Authentication).
func Require(v *View, scope Scope, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, err := v.Authenticate(bearer(r.Header), clientAddr(r, v.cfg.TrustedProxies), time.Now(), scope)
		if err != nil {
			if e, ok := errors.AsType[*httpserver.Error](err); ok {
				v.metrics.refusals[e.Code].Inc()
				if e.Status == http.StatusUnauthorized {
					w.Header().Set("WWW-Authenticate", "Bearer")
				}
			}
			httpserver.WriteError(w, r, err)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), principalKey{}, p)))
	})
}

// bearer returns the token of the Authorization header, or "".
func bearer(h http.Header) string {
	scheme, token, _ := strings.Cut(h.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// clientAddr returns the address that a request comes from: the peer's, or, as long as that is a trusted proxy, the one
// that it says it was called from. An entry that is no address makes the result invalid: what stands before it was not
// written by a proxy that is trusted.
func clientAddr(r *http.Request, trusted []netip.Prefix) netip.Addr {
	addr := parseAddr(r.RemoteAddr)
	if len(trusted) == 0 {
		return addr
	}
	isTrusted := func(p netip.Prefix) bool { return p.Contains(addr) }
	for _, line := range slices.Backward(r.Header.Values("X-Forwarded-For")) {
		for line != "" && slices.ContainsFunc(trusted, isTrusted) {
			i := strings.LastIndexByte(line, ',')
			addr = parseAddr(strings.TrimSpace(line[i+1:]))
			line = line[:max(i, 0)]
		}
	}
	return addr
}

// parseAddr reads an address with or without a port; the zero Addr is none.
func parseAddr(s string) netip.Addr {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().Unmap().WithZone("")
	}
	addr, err := netip.ParseAddr(strings.Trim(s, "[]"))
	if err != nil {
		return netip.Addr{}
	}
	return addr.Unmap().WithZone("")
}
