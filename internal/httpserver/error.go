package httpserver

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"time"
)

// Codes of the errors that the HTTP API answers with. Clients branch on them: they never change.
const (
	CodeInvalidJSON      = "invalid_json"           // 400: the body is not the JSON that it claims to be
	CodeInvalidRequest   = "invalid_request"        // 400: the request line, a header or a parameter is malformed
	CodeUnauthenticated  = "unauthenticated"        // 401
	CodeForbidden        = "forbidden"              // 403
	CodeNotFound         = "not_found"              // 404
	CodeMethodNotAllowed = "method_not_allowed"     // 405
	CodeRequestTimeout   = "request_timeout"        // 408: the body arrives too slowly
	CodeConflict         = "conflict"               // 409
	CodeTooLarge         = "too_large"              // 413
	CodeUnsupportedMedia = "unsupported_media_type" // 415
	CodeValidationFailed = "validation_failed"      // 422
	CodeRateLimited      = "rate_limited"           // 429
	CodeInternal         = "internal"               // 500
	CodeUnavailable      = "unavailable"            // 503
)

// Detail says what is wrong with one field of a request.
type Detail struct {
	// Field is the path of the field, as "metadata.x" or "events[3].action".
	Field string `json:"field"`
	// Message is a sentence that says what to change.
	Message string `json:"message"`
}

// Error is an answer to a client: {"error":Code,"message":Message,"details":Details}. Message and Details are for
// customers; Cause is for the log and is never sent.
type Error struct {
	Cause   error
	Code    string // one of the Code constants
	Message string // a sentence that says what to change
	Details []Detail
	// RetryAfter is sent as the header Retry-After, in seconds, rounded up. Zero: no header.
	RetryAfter time.Duration
	Status     int // HTTP status, 400 to 599
}

// Error implements error.
func (e *Error) Error() string {
	if e.Cause != nil {
		return e.Code + ": " + e.Message + ": " + e.Cause.Error()
	}
	return e.Code + ": " + e.Message
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// BadRequest is a 400 invalid_request.
func BadRequest(message string, details ...Detail) *Error {
	return &Error{Status: http.StatusBadRequest, Code: CodeInvalidRequest, Message: message, Details: details}
}

// Unauthenticated is a 401: no key, or a bad one.
func Unauthenticated(message string) *Error {
	return &Error{Status: http.StatusUnauthorized, Code: CodeUnauthenticated, Message: message}
}

// Forbidden is a 403: a good key that may not do this.
func Forbidden(message string) *Error {
	return &Error{Status: http.StatusForbidden, Code: CodeForbidden, Message: message}
}

// NotFound is a 404.
func NotFound(message string) *Error {
	return &Error{Status: http.StatusNotFound, Code: CodeNotFound, Message: message}
}

// Conflict is a 409.
func Conflict(message string) *Error {
	return &Error{Status: http.StatusConflict, Code: CodeConflict, Message: message}
}

// TooLarge is a 413.
func TooLarge(message string) *Error {
	return &Error{Status: http.StatusRequestEntityTooLarge, Code: CodeTooLarge, Message: message}
}

// UnsupportedMedia is a 415.
func UnsupportedMedia(message string) *Error {
	return &Error{Status: http.StatusUnsupportedMediaType, Code: CodeUnsupportedMedia, Message: message}
}

// ValidationFailed is a 422.
func ValidationFailed(message string, details ...Detail) *Error {
	return &Error{Status: http.StatusUnprocessableEntity, Code: CodeValidationFailed, Message: message, Details: details}
}

// RateLimited is a 429 with the time after which a retry may succeed.
func RateLimited(message string, retryAfter time.Duration) *Error {
	return &Error{Status: http.StatusTooManyRequests, Code: CodeRateLimited, Message: message, RetryAfter: retryAfter}
}

// Unavailable is a 503: a dependency is away, a retry after the given time may succeed.
func Unavailable(message string, retryAfter time.Duration, cause error) *Error {
	return &Error{
		Status: http.StatusServiceUnavailable, Code: CodeUnavailable, Message: message, RetryAfter: retryAfter,
		Cause: cause,
	}
}

// Internal is a 500 that shows nothing of its cause.
func Internal(cause error) *Error {
	return &Error{
		Status: http.StatusInternalServerError, Code: CodeInternal, Cause: cause,
		Message: "Something went wrong on our side; the request id identifies it.",
	}
}

// WriteError answers with err: an *Error as it says, anything else as a 500 that shows nothing of it. The cause of a
// 5xx goes to the router's log: each 500, and one 503 a second at most, since those come in thousands.
func WriteError(w http.ResponseWriter, r *http.Request, err error) {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		e = Internal(err)
	}
	if e.Status >= http.StatusInternalServerError && e.Cause != nil {
		logServerError(r.Context(), r, e)
	}
	if e.RetryAfter > 0 {
		seconds := int64((e.RetryAfter + time.Second - 1) / time.Second)
		w.Header().Set("Retry-After", strconv.FormatInt(seconds, 10))
	}
	WriteJSON(w, e.Status, struct {
		Error   string   `json:"error"`
		Message string   `json:"message"`
		Details []Detail `json:"details,omitempty"`
	}{e.Code, e.Message, e.Details})
}

// WriteJSON answers with v as JSON. v must be a value that encoding/json can encode; a client that went away is
// nobody's error.
func WriteJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		// A value of ours that has no JSON form is a bug: let the router's recovery log it and answer 500.
		panic("httpserver: encoding an answer: " + err.Error())
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)+1))
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}

// logServerError logs the cause of a 5xx, of a 503 only if none was logged within the last second.
func logServerError(ctx context.Context, r *http.Request, e *Error) {
	s := scopeFrom(ctx)
	// What fails because the client left is no fault of ours.
	if s == nil || ctx.Err() != nil && errors.Is(e.Cause, context.Canceled) {
		return
	}
	due := e.Status != http.StatusServiceUnavailable
	s.unavailable.Do(func() { due = true })
	if due {
		s.logger.LogAttrs(
			ctx, slog.LevelError, "request failed", s.attrs(slog.Int("status", e.Status), slog.String("method", r.Method),
				slog.String("pattern", r.Pattern), slog.Any("error", e.Cause))...,
		)
	}
}
