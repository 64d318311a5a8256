package ingest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/internal/crash"
	"getimmutable.dev/immutable/internal/httpserver"
)

// retryAfter is what a 503 asks a client to wait.
const retryAfter = time.Second

// Statuses of an event in an answer.
const (
	statusQueued    = "queued"
	statusDuplicate = "duplicate"
	statusRejected  = "rejected"
)

const (
	mediaJSON   = "application/json"
	mediaNDJSON = "application/x-ndjson"
)

// Routes returns the endpoints that write events.
func (s *Service) Routes() []httpserver.Route {
	one := newServer(s.decodeOne, s.writeOne, encodeOne, s.serverOptions()...)
	batch := newServer(s.decodeBatch, s.writeBatch, encodeBatch, s.serverOptions()...)
	return []httpserver.Route{
		{Method: http.MethodPost, Pattern: "/api/v1/events", Handler: s.guard(endpointEvent, event.MaxEventBytes, one)},
		{Method: http.MethodPost, Pattern: "/api/v1/events/batch", Handler: s.guard(endpointBatch, maxBatchBytes, batch)},
	}
}

// guard stands before decoding: who it is, whether writes are admitted, whether the caller has any rate left, and how
// much body, for how long, is read. Whatever is refused here costs no memory but the request's head.
func (s *Service) guard(endpoint string, limit int, next http.Handler) http.Handler {
	next = httpserver.LimitBody(limit, s.cfg.BodyTimeout, next)
	next = s.admit(next)
	next = control.Require(s.view, control.ScopeWrite, next)
	return s.count(endpoint, next)
}

func (s *Service) admit(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.cfg.Admit != nil {
			if err := s.cfg.Admit(); err != nil {
				httpserver.WriteError(w, r, unavailable(err.Error(), err))
				return
			}
		}
		if err := s.limits.charge(control.PrincipalFrom(r.Context()), 0, time.Now()); err != nil {
			httpserver.WriteError(w, r, err)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// count counts answers by their code, those of the guards among them.
func (s *Service) count(endpoint string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := &answer{ResponseWriter: w, code: http.StatusOK}
		next.ServeHTTP(a, r)
		s.metrics.answered(endpoint, a.code)
		if a.code == http.StatusAccepted {
			// The 202 is on its way, not in a buffer, before the point after it.
			_ = http.NewResponseController(w).Flush() // a client that left has no use for it
			crash.Point("ingest-after-202")
		}
	})
}

// answer remembers the status of what it passes on.
type answer struct {
	http.ResponseWriter
	code int
}

func (a *answer) WriteHeader(code int) {
	a.code = code
	a.ResponseWriter.WriteHeader(code)
}

// Unwrap is for http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// call is what go-kit's hooks, which see the context only, need of a request.
type call struct {
	request *http.Request
	start   time.Time
}

type callKey struct{}

func begin(ctx context.Context, r *http.Request) context.Context {
	return context.WithValue(ctx, callKey{}, &call{r, time.Now()})
}

func callFrom(ctx context.Context) *call {
	return ctx.Value(callKey{}).(*call)
}

// observe runs after the answer.
func (s *Service) observe(ctx context.Context, code int, _ *http.Request) {
	if code == http.StatusAccepted {
		s.metrics.acceptSeconds.Observe(time.Since(callFrom(ctx).start).Seconds())
	}
}

// countError sees every error before it is answered.
func (s *Service) countError(_ context.Context, err error) {
	if e, ok := errors.AsType[*produceError](err); ok {
		s.metrics.produceErrors.WithLabelValues(e.reason).Inc()
	}
}

func encodeError(ctx context.Context, err error, w http.ResponseWriter) {
	httpserver.WriteError(w, callFrom(ctx).request, err)
}

// decodeOne reads the body of POST /events.
func (s *Service) decodeOne(_ context.Context, r *http.Request) (submission, error) {
	if _, err := mediaType(r.Header, mediaJSON); err != nil {
		return submission{}, err
	}
	keys := r.Header.Values("Idempotency-Key")
	if len(keys) > 1 {
		return submission{}, httpserver.ValidationFailed("The header Idempotency-Key must be there once.")
	}
	body, err := s.bodies.read(r, event.MaxEventBytes)
	if err != nil {
		return submission{}, err
	}
	sub := submission{caller: callerOf(r), events: [][]byte{body.data}, body: body}
	if len(keys) == 1 {
		sub.idempotencyKey = keys[0]
	}
	return sub, nil
}

// decodeBatch reads the body of POST /events/batch.
func (s *Service) decodeBatch(_ context.Context, r *http.Request) (submission, error) {
	media, err := mediaType(r.Header, mediaJSON, mediaNDJSON)
	if err != nil {
		return submission{}, err
	}
	if r.Header.Get("Idempotency-Key") != "" {
		return submission{}, httpserver.ValidationFailed(
			"The header Idempotency-Key is for single events: give each event of a batch its own idempotency_key.")
	}
	body, err := s.bodies.read(r, maxBatchBytes)
	if err != nil {
		return submission{}, err
	}
	sub := submission{caller: callerOf(r), body: body}
	if media == mediaNDJSON {
		sub.events, err = splitLines(body.data, maxLinesEvents)
	} else if sub.events, sub.cut = cutJSON(body.data, maxBatchEvents); !sub.cut {
		sub.events, err = splitJSON(body.data, maxBatchEvents)
	}
	if err != nil {
		body.release()
		return submission{}, err
	}
	return sub, nil
}

func callerOf(r *http.Request) caller {
	return caller{
		principal:   control.PrincipalFrom(r.Context()),
		requestID:   httpserver.RequestID(r.Context()),
		traceparent: httpserver.Traceparent(r.Context()),
	}
}

// mediaType returns the request's media type, which must be one of allowed. A request without one is JSON.
func mediaType(h http.Header, allowed ...string) (string, error) {
	header := h.Get("Content-Type")
	if header == "" || header == mediaJSON {
		return mediaJSON, nil
	}
	media, params, err := mime.ParseMediaType(header)
	if err == nil {
		charset := strings.ToLower(params["charset"])
		for _, a := range allowed {
			if media == a && (charset == "" || charset == "utf-8" || charset == "utf8") {
				return media, nil
			}
		}
	}
	return "", httpserver.UnsupportedMedia(
		fmt.Sprintf("Content-Type must be %s, in UTF-8.", strings.Join(allowed, " or ")))
}

func unavailable(message string, cause error) *httpserver.Error {
	return httpserver.Unavailable(message, retryAfter, cause)
}

// malformed is the 400 of a body that cannot be read for what it claims to be.
func malformed(message string) *httpserver.Error {
	return &httpserver.Error{Status: http.StatusBadRequest, Code: httpserver.CodeInvalidJSON, Message: message}
}

// invalid is the 422 of a batch as a whole.
func invalid(field, message string) *httpserver.Error {
	return httpserver.ValidationFailed(field+" "+message+".", httpserver.Detail{Field: field, Message: message})
}

func encodeOne(_ context.Context, w http.ResponseWriter, o outcome) error {
	return writeAccepted(w, append(appendAccepted(make([]byte, 0, 80), o), '\n'))
}

func encodeBatch(_ context.Context, w http.ResponseWriter, outcomes []outcome) error {
	b := make([]byte, 0, 16+len(outcomes)*72)
	b = append(b, `{"events":[`...)
	for i, o := range outcomes {
		if i > 0 {
			b = append(b, ',')
		}
		if o.rejected == nil {
			b = appendAccepted(b, o)
			continue
		}
		item, err := json.Marshal(struct {
			Index   int                 `json:"index"`
			Status  string              `json:"status"`
			Error   string              `json:"error"`
			Message string              `json:"message"`
			Details []httpserver.Detail `json:"details,omitempty"`
		}{i, statusRejected, o.rejected.Code, o.rejected.Message, details(o.rejected)})
		if err != nil {
			return fmt.Errorf("encode the answer: %w", err)
		}
		b = append(b, item...)
	}
	return writeAccepted(w, append(b, "]}\n"...))
}

// appendAccepted appends {"id":"<uuid>","status":"..."}.
func appendAccepted(b []byte, o outcome) []byte {
	status := statusQueued
	if o.duplicate {
		status = statusDuplicate
	}
	b = append(b, `{"id":"`...)
	b = append(b, uuid.UUID(o.id).String()...)
	b = append(b, `","status":"`...)
	b = append(b, status...)
	return append(b, `"}`...)
}

// writeAccepted answers 202. A client that left before it does not make the events any less accepted.
func writeAccepted(w http.ResponseWriter, body []byte) error {
	h := w.Header()
	h.Set("Content-Type", mediaJSON)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(http.StatusAccepted)
	_, _ = w.Write(body)
	return nil
}
