package witness

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/ledger"
)

// sizeType is the media type of a size in C2SP tlog-witness.
const sizeType = "text/x.tlog.size"

// Routes are those of C2SP tlog-witness, submission and monitoring prefix both being the root, and the verifier key.
func (s *Service) Routes() []httpserver.Route {
	add := httpserver.LimitBody(ledger.MaxAddCheckpointBytes, s.cfg.BodyTimeout, http.HandlerFunc(s.serveAdd))
	return []httpserver.Route{
		{Method: http.MethodPost, Pattern: "/add-checkpoint", Handler: add},
		{Method: http.MethodGet, Pattern: "/{origin}/checkpoint", Handler: http.HandlerFunc(s.serveCheckpoint)},
		{Method: http.MethodGet, Pattern: "/key", Handler: http.HandlerFunc(s.serveKey)},
	}
}

func (s *Service) serveAdd(w http.ResponseWriter, r *http.Request) {
	select {
	case s.inHand <- struct{}{}:
		defer func() { <-s.inHand }()
	default:
		s.refuse(w, r, httpserver.Unavailable("The witness has as many requests in hand as it may.", time.Second, nil))
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		s.refuse(w, r, bodyError(err))
		return
	}
	begun := time.Now()
	line, err := s.add(r.Context(), body)
	var conflict *conflictError
	switch {
	case errors.As(err, &conflict):
		s.observe(strconv.Itoa(http.StatusConflict), begun, false)
		w.Header().Set("Content-Type", sizeType)
		w.WriteHeader(http.StatusConflict)
		_, _ = fmt.Fprintf(w, "%d\n", conflict.size) // a client that went away is nobody's error
	case err != nil:
		s.refuse(w, r, answerTo(err))
	default:
		s.observe(strconv.Itoa(http.StatusOK), begun, true)
		writeText(w, line)
	}
}

func bodyError(err error) *httpserver.Error {
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return httpserver.TooLarge(fmt.Sprintf("The request is longer than %d bytes.", tooLarge.Limit))
	}
	return &httpserver.Error{
		Status: http.StatusRequestTimeout, Code: httpserver.CodeRequestTimeout, Message: "The request did not arrive in time.",
	}
}

// answerTo gives each reason its status code. Everything that is said of a request is of what the client sent.
func answerTo(err error) *httpserver.Error {
	switch {
	case errors.Is(err, ledger.ErrRequest), errors.Is(err, ledger.ErrCheckpoint):
		return httpserver.BadRequest(err.Error())
	case errors.Is(err, ledger.ErrUnknownLog):
		return httpserver.NotFound(err.Error())
	case errors.Is(err, ledger.ErrNotSigned):
		return httpserver.Forbidden(err.Error())
	case errors.Is(err, errInconsistent):
		return httpserver.ValidationFailed(err.Error())
	case errors.Is(err, errStarting):
		return httpserver.Unavailable(err.Error(), time.Second, nil)
	default:
		return &httpserver.Error{
			Status: http.StatusInternalServerError, Code: httpserver.CodeInternal, Cause: err,
			Message: "The checkpoint could not be kept, so it is not cosigned.",
		}
	}
}

func (s *Service) refuse(w http.ResponseWriter, r *http.Request, err *httpserver.Error) {
	s.observe(strconv.Itoa(err.Status), time.Time{}, false)
	httpserver.WriteError(w, r, err)
}

// serveCheckpoint answers with the newest checkpoint that was cosigned.
func (s *Service) serveCheckpoint(w http.ResponseWriter, r *http.Request) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.store == nil {
		httpserver.WriteError(w, r, answerTo(errStarting))
		return
	}
	var signed []byte
	if l := s.byHash[r.PathValue("origin")]; l != nil {
		l.mu.Lock()
		signed = l.signed
		l.mu.Unlock()
	}
	if signed == nil {
		httpserver.WriteError(w, r, httpserver.NotFound("No checkpoint of this log was cosigned; the path has the SHA-256 of its origin."))
		return
	}
	w.Header().Set("Cache-Control", "no-cache")
	writeText(w, signed)
}

// serveKey answers with the line that policies need. It proves nothing: a key is to be had on another way.
func (s *Service) serveKey(w http.ResponseWriter, _ *http.Request) {
	writeText(w, []byte(s.key.VerifierKey+"\n"))
}

func writeText(w http.ResponseWriter, text []byte) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(text) // a client that went away is nobody's error
}
