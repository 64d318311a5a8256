package query

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/internal/httpserver"
)

// ChangeTimeout is what the Writer of a Service should have: clients give up after 5 s, and the end of a change may take half
// a second more.
const ChangeTimeout = 3500 * time.Millisecond

const (
	// maxManageBytes bounds the body of a request that changes what is configured.
	maxManageBytes = 64 << 10
	// maxChanges bounds the changes that wait for one another: each is a Kafka transaction of its own.
	maxChanges = 16
	// seenTimeout is how long the answer to a change waits for this instance to know of it.
	seenTimeout = time.Second
)

// reply is the answer to a request that manages, where it is no error.
type reply struct {
	status int
	// version of the one object that data is, sent as ETag; 0 sends none.
	version uint64
	// data becomes the member of that name.
	data any
	// pagination too, where data is a list.
	pagination *pagination
}

// responder answers a request of a key with the scope admin.
type responder func(context.Context, *control.Principal, *http.Request) (reply, error)

// withoutParameters refuses requests that have any.
func withoutParameters(next responder) responder {
	return func(ctx context.Context, p *control.Principal, r *http.Request) (reply, error) {
		if err := noParameters(r); err != nil {
			return reply{}, err
		}
		return next(ctx, p, r)
	}
}

// manageRoutes returns the endpoints that show and change what is configured (docs/design/api.md, Managing).
func (s *Service) manageRoutes() []httpserver.Route {
	list := func(pattern, endpoint string, respond responder) httpserver.Route {
		return httpserver.Route{Method: http.MethodGet, Pattern: pattern, Handler: s.manager(endpoint, respond)}
	}
	route := func(method, pattern, endpoint string, respond responder) httpserver.Route {
		return httpserver.Route{Method: method, Pattern: pattern, Handler: s.manager(endpoint, withoutParameters(respond))}
	}
	const keys, key, roll, settings = "/api/v1/keys", "/api/v1/keys/{id}", "/api/v1/keys/{id}/roll", "/api/v1/settings"
	const workspaces, workspace = "/api/v1/workspaces", "/api/v1/workspaces/{id}"
	return []httpserver.Route{
		list(keys, endpointKeys, s.listKeys),
		route(http.MethodPost, keys, endpointKeys, s.createKey),
		route(http.MethodGet, key, endpointKey, s.getKey),
		route(http.MethodPatch, key, endpointKey, s.updateKey),
		route(http.MethodDelete, key, endpointKey, s.revokeKey),
		route(http.MethodPost, roll, endpointRoll, s.rollKey),
		route(http.MethodGet, settings, endpointSettings, s.getSettings),
		route(http.MethodPatch, settings, endpointSettings, s.updateSettings),
		list(workspaces, endpointWorkspaces, s.listWorkspaces),
		route(http.MethodPost, workspaces, endpointWorkspaces, s.createWorkspace),
		route(http.MethodGet, workspace, endpointWorkspace, s.getWorkspace),
		route(http.MethodPatch, workspace, endpointWorkspace, s.updateWorkspace),
		route(http.MethodDelete, workspace, endpointWorkspace, s.deleteWorkspace),
	}
}

// manager answers with what respond returns.
func (s *Service) manager(endpoint string, respond responder) http.Handler {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, err := s.manage(r, respond)
		status := answer.status
		if err != nil {
			status = s.refuseChange(w, r, err)
		} else {
			if answer.version > 0 {
				w.Header().Set("ETag", `"`+strconv.FormatUint(answer.version, 10)+`"`)
			}
			w.Header().Set("Cache-Control", "no-store")
			body := map[string]any{"data": answer.data}
			if answer.pagination != nil {
				body["pagination"] = answer.pagination
			}
			httpserver.WriteJSON(w, status, body)
		}
		s.metrics.requests.WithLabelValues(endpoint, strconv.Itoa(status)).Inc()
	})
	return control.Require(s.view, control.ScopeAdmin, httpserver.LimitBody(maxManageBytes, s.cfg.BodyTimeout, h))
}

// manage calls next, once there is a slot for it where it makes a change.
func (s *Service) manage(r *http.Request, next responder) (reply, error) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		select {
		case s.changes <- struct{}{}:
			defer func() { <-s.changes }()
		default:
			return reply{}, s.unavailable(reasonBusy, "Too many changes are being made: send it again. Nothing was changed.", nil)
		}
	}
	return next(r.Context(), control.PrincipalFrom(r.Context()), r)
}

// refuseChange answers with an error and returns its status.
func (s *Service) refuseChange(w http.ResponseWriter, r *http.Request, err error) int {
	e, ok := errors.AsType[*httpserver.Error](err)
	if !ok {
		e = s.classifyChange(err)
	}
	if e == nil {
		httpserver.WriteError(w, r, err)
		return http.StatusInternalServerError
	}
	httpserver.WriteError(w, r, e)
	return e.Status
}

// classifyChange returns the answer to an error of control.Writer, or nil where it is our fault.
func (s *Service) classifyChange(err error) *httpserver.Error {
	if e, ok := errors.AsType[*control.FieldError](err); ok {
		return httpserver.ValidationFailed(sentence(e.Field+": "+e.Reason), httpserver.Detail{Field: e.Field, Message: sentence(e.Reason)})
	}
	switch {
	case errors.Is(err, control.ErrNotFound):
		return httpserver.NotFound(sentence(strings.TrimPrefix(err.Error(), control.ErrNotFound.Error()+": ")))
	case errors.Is(err, control.ErrConflict):
		return httpserver.Conflict(sentence(strings.TrimPrefix(err.Error(), control.ErrConflict.Error()+": ")))
	case errors.Is(err, control.ErrUnknownOutcome):
		return s.unavailable(reasonUnknown,
			"It is not known whether the change was made: look at what there is before you send it again.", err)
	case errors.Is(err, control.ErrBusy):
		return s.unavailable(reasonBusy, "Other changes kept coming first: send it again. Nothing was changed.", err)
	case errors.Is(err, control.ErrMasterKey), errors.Is(err, control.ErrInvalid):
		return nil
	}
	return s.unavailable(reasonAway, "The configuration cannot be reached: send it again. Nothing was changed.", err)
}

// sentence makes one of a clause.
func sentence(clause string) string {
	first, size := utf8.DecodeRuneInString(clause)
	return string(unicode.ToUpper(first)) + clause[size:] + "."
}

// seen waits until this instance knows of a change, so that whoever made it finds it when they look. Where that takes
// too long they are told of it all the same: it was made.
func (s *Service) seen(ctx context.Context, condition func() bool) {
	ctx, cancel := context.WithTimeout(ctx, seenTimeout)
	defer cancel()
	_ = s.view.Await(ctx, condition)
}

// author is who makes a change, as the ledger shows it.
func author(p *control.Principal) string { return "key:" + uuid.UUID(p.Key.ID).String() }

func noParameters(r *http.Request) error {
	values, err := parseQuery(r.URL.RawQuery)
	if err != nil {
		return err
	}
	var faults faults
	for name := range values {
		faults.malformedParam(name, "is not a parameter of this request: it has none.")
	}
	return faults.err()
}

// pathID returns the id in the request's path; one that is no UUID is one that nothing has.
func pathID(r *http.Request) (id [16]byte, ok bool) {
	return parseID(r.PathValue("id"))
}

// parseID takes the one form in which ids are shown.
func parseID(text string) (id [16]byte, ok bool) {
	parsed, err := uuid.Parse(text)
	return parsed, err == nil && len(text) == len(parsed.String())
}

// ifMatch returns the version that a change is meant for; 0 is any.
func ifMatch(r *http.Request) (uint64, error) {
	values := r.Header.Values("If-Match")
	if len(values) == 0 || len(values) == 1 && values[0] == "*" {
		return 0, nil
	}
	// Proxies that compress make the tag a weak one. There is one answer to a version, so it does as well.
	text, ok := strings.CutPrefix(strings.TrimPrefix(values[0], "W/"), `"`)
	text, quoted := strings.CutSuffix(text, `"`)
	version, err := strconv.ParseUint(text, 10, 64)
	if !ok || !quoted || err != nil || version == 0 || len(values) > 1 {
		return 0, httpserver.BadRequest(`If-Match must be one ETag as this API sends it, like "3".`)
	}
	return version, nil
}

// given is a member of a body that may be absent, which is something else than null.
type given[T any] struct {
	there bool
	value T
}

// UnmarshalJSONFrom implements json.UnmarshalerFrom. Null is the zero value.
func (g *given[T]) UnmarshalJSONFrom(d *jsontext.Decoder) error {
	g.there = true
	return json.UnmarshalDecode(d, &g.value)
}

// to sets v where the member was there.
func (g *given[T]) to(v *T) {
	if g.there {
		*v = g.value
	}
}

// readBody reads the JSON object of a request into v; known are its members, for whoever wrote another one. The error is
// an *httpserver.Error.
func readBody(r *http.Request, v any, known string) error {
	if header := r.Header.Get("Content-Type"); header != "" {
		media, params, err := mime.ParseMediaType(header)
		if charset := params["charset"]; err != nil || media != "application/json" || charset != "" && !strings.EqualFold(charset, "utf-8") {
			return httpserver.UnsupportedMedia("Content-Type must be application/json, in UTF-8.")
		}
	}
	if r.Header.Get("Content-Encoding") != "" {
		return httpserver.UnsupportedMedia("Content-Encoding must be left out.")
	}
	body, err := io.ReadAll(r.Body)
	var tooLarge *http.MaxBytesError
	var timeout interface{ Timeout() bool }
	switch {
	case errors.As(err, &tooLarge):
		return httpserver.TooLarge(fmt.Sprintf("The body must be at most %d bytes.", maxManageBytes))
	case errors.As(err, &timeout) && timeout.Timeout():
		return &httpserver.Error{
			Status: http.StatusRequestTimeout, Code: httpserver.CodeRequestTimeout,
			Message: "The body did not arrive in time: send it faster.",
		}
	case err != nil:
		return malformedBody("The body could not be read to its end.")
	}
	if kind := jsontext.Value(body).Kind(); kind != '{' && jsontext.Value(body).IsValid() {
		return malformedBody("The body must be a JSON object.")
	}
	err = json.Unmarshal(body, v, json.RejectUnknownMembers(true))
	syntactic, broken := errors.AsType[*jsontext.SyntacticError](err)
	semantic, _ := errors.AsType[*json.SemanticError](err)
	switch {
	case err == nil:
		return nil
	case broken && errors.Is(syntactic, jsontext.ErrDuplicateName):
		return malformedBody("The body has the member " + shorten(fieldOf(syntactic.JSONPointer)) + " twice: send it once.")
	case broken || semantic == nil:
		return malformedBody("The body is not valid JSON in UTF-8.")
	case errors.Is(err, json.ErrUnknownName):
		return invalidField(fieldOf(semantic.JSONPointer), "is not a field of this request. Known are: "+known+".")
	}
	return invalidField(fieldOf(semantic.JSONPointer), "has another type, or a form that cannot be read: see the API's documentation.")
}

func malformedBody(message string) *httpserver.Error {
	return &httpserver.Error{Status: http.StatusBadRequest, Code: httpserver.CodeInvalidJSON, Message: message}
}

// invalidField is a 422 about one field.
func invalidField(field, message string) *httpserver.Error {
	field = shorten(field)
	return httpserver.ValidationFailed(field+" "+message, httpserver.Detail{Field: field, Message: message})
}

// fieldOf writes a JSON pointer as the API's errors do: "scopes[1]", "rate_limit.burst".
func fieldOf(pointer jsontext.Pointer) string {
	var b strings.Builder
	for token := range pointer.Tokens() {
		if _, err := strconv.Atoi(token); err == nil {
			b.WriteString("[" + token + "]")
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		b.WriteString(token)
	}
	return b.String()
}

// rateLimit is a limit as it is shown and sent; null stands for none.
type rateLimit struct {
	PerSecond float64 `json:"per_second"`
	Burst     int     `json:"burst"`
}

func showLimit(l control.Limit) *rateLimit {
	if l == (control.Limit{}) {
		return nil
	}
	return &rateLimit{l.PerSecond, l.Burst}
}

func (l *rateLimit) limit() control.Limit {
	if l == nil {
		return control.Limit{}
	}
	return control.Limit{PerSecond: l.PerSecond, Burst: l.Burst}
}
