package httpserver

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/time/rate"
)

// Route is one endpoint.
type Route struct {
	Handler http.Handler
	Method  string // GET also answers HEAD
	Pattern string // as in http.ServeMux, without the method: "/api/v1/events/{id}"
}

// scope is what the router knows of one request.
type scope struct {
	logger      *slog.Logger
	unavailable *rate.Sometimes // limits how often 503s are logged; shared by a router's requests
	requestID   string
	traceparent string // "" where the request has none that is valid
}

// attrs say in the log which request it was.
func (s *scope) attrs(attrs ...slog.Attr) []slog.Attr {
	attrs = append(attrs, slog.String("request_id", s.requestID))
	if s.traceparent != "" {
		attrs = append(attrs, slog.String("trace_id", s.traceparent[3:35]))
	}
	return attrs
}

type scopeKey struct{}

func scopeFrom(ctx context.Context) *scope {
	s, _ := ctx.Value(scopeKey{}).(*scope)
	return s
}

// RequestID returns the id of the request that ctx belongs to, as sent in X-Request-Id; "" outside of a router.
func RequestID(ctx context.Context) string {
	if s := scopeFrom(ctx); s != nil {
		return s.requestID
	}
	return ""
}

// Traceparent returns the W3C Trace Context header of the request that ctx belongs to; "" where it is missing or not
// valid, and outside of a router.
func Traceparent(ctx context.Context) string {
	if s := scopeFrom(ctx); s != nil {
		return s.traceparent
	}
	return ""
}

const requestIDHeader = "X-Request-Id"

type router struct {
	logger      *slog.Logger
	unavailable *rate.Sometimes
	mux         *http.ServeMux
}

// NewRouter returns the handler of routes. Every answer, also to unknown paths (404) and methods (405, with Allow over
// all routes of the path), is a JSON object and carries X-Request-Id: the request's own when that is 1 to 64 characters
// of [A-Za-z0-9._-], else a new one. Nothing redirects. A panic in a handler is a 500. Routes that contradict each other
// panic here, as in http.ServeMux.
func NewRouter(logger *slog.Logger, routes ...Route) http.Handler {
	rt := &router{
		logger: logger, mux: http.NewServeMux(),
		unavailable: &rate.Sometimes{Interval: time.Second},
	}
	for _, route := range routes {
		rt.mux.Handle(route.Method+" "+route.Pattern, routed{route.Handler})
	}
	return rt
}

// ServeHTTP implements http.Handler.
func (rt *router) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := r.Header.Get(requestIDHeader)
	if !validRequestID(id) {
		id = rand.Text()
	}
	w.Header().Set(requestIDHeader, id)
	s := &scope{logger: rt.logger, unavailable: rt.unavailable, requestID: id}
	if t := r.Header.Get("Traceparent"); validTraceparent(t) {
		s.traceparent = t
	}
	ctx := context.WithValue(r.Context(), scopeKey{}, s)
	r = r.WithContext(ctx)
	res := &response{ResponseWriter: w, request: r}
	defer res.recover(ctx)
	rt.mux.ServeHTTP(res, r)
}

func validRequestID(id string) bool {
	if len(id) < 1 || len(id) > 64 {
		return false
	}
	return !strings.ContainsFunc(id, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-'
	})
}

// validTraceparent follows W3C Trace Context, section 3.2: version 00, or what a later version has in common with it.
func validTraceparent(t string) bool {
	if len(t) != 55 || t[2] != '-' || t[35] != '-' || t[52] != '-' {
		return false
	}
	hexadecimal := func(s string) bool {
		return !strings.ContainsFunc(s, func(c rune) bool { return (c < '0' || c > '9') && (c < 'a' || c > 'f') })
	}
	version, trace, parent, flags := t[:2], t[3:35], t[36:52], t[53:]
	return hexadecimal(version) && hexadecimal(trace) && hexadecimal(parent) && hexadecimal(flags) &&
		version != "ff" && strings.Trim(trace, "0") != "" && strings.Trim(parent, "0") != ""
}

// routed marks that the mux chose one of our handlers, before that handler runs.
type routed struct{ http.Handler }

func (h routed) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if res, ok := w.(*response); ok {
		res.request = r
		res.routed = true
	}
	h.Handler.ServeHTTP(w, r)
}

// response replaces what the mux itself answers (plain text and redirects) by JSON, and knows whether an answer has
// begun. http.ResponseController finds the connection's own writer through Unwrap.
type response struct {
	http.ResponseWriter
	request *http.Request
	routed  bool // a route's handler writes; otherwise the mux does
	begun   bool // the status has been sent
}

// Unwrap is for http.ResponseController.
func (res *response) Unwrap() http.ResponseWriter { return res.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (res *response) WriteHeader(status int) {
	if res.routed {
		// 1xx are not the answer yet, except 101.
		res.begun = res.begun || status >= http.StatusOK || status == http.StatusSwitchingProtocols
		res.ResponseWriter.WriteHeader(status)
		return
	}
	if res.begun {
		return
	}
	res.begun = true
	h := res.Header()
	allow := h.Get("Allow")
	for _, name := range []string{"Allow", "Location", "Connection"} {
		h.Del(name)
	}
	err := NotFound("There is nothing at this path; see the API's documentation for the paths that exist.")
	if status == http.StatusMethodNotAllowed {
		h.Set("Allow", allow)
		err = &Error{
			Status: http.StatusMethodNotAllowed, Code: CodeMethodNotAllowed,
			Message: fmt.Sprintf("This path does not answer %.20s; it answers %s.", res.request.Method, allow),
		}
	}
	WriteError(res.ResponseWriter, res.request, err)
}

// Write implements http.ResponseWriter.
func (res *response) Write(b []byte) (int, error) {
	if !res.begun {
		res.WriteHeader(http.StatusOK)
	}
	if !res.routed {
		return len(b), nil // the mux's own text; WriteHeader has answered in its place
	}
	return res.ResponseWriter.Write(b)
}

// recover turns a panic of a handler into a 500, or cuts the connection when an answer has begun: a client must not
// take half an answer for a whole one.
func (res *response) recover(ctx context.Context) {
	v := recover()
	if v == nil {
		return
	}
	if v == http.ErrAbortHandler { //nolint:errorlint // net/http compares the panic's value with == too
		panic(v)
	}
	r := res.request
	s := scopeFrom(ctx)
	s.logger.LogAttrs(
		ctx, slog.LevelError, "panic in a handler", s.attrs(slog.Any("panic", v), slog.String("method", r.Method),
			slog.String("pattern", r.Pattern), slog.String("stack", string(debug.Stack())))...,
	)
	if res.begun {
		panic(http.ErrAbortHandler)
	}
	res.routed, res.begun = true, true
	h := res.Header()
	maps.DeleteFunc(h, func(name string, _ []string) bool { return name != requestIDHeader })
	WriteError(res.ResponseWriter, r, &Error{
		Status: http.StatusInternalServerError, Code: CodeInternal,
		Message: "Something went wrong on our side; the request id identifies it.",
	})
}
