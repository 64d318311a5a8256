package query

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/internal/httpserver"
)

// Endpoints, a label of immutable_query_requests_total.
const (
	endpointEvents     = "events"
	endpointEvent      = "event"
	endpointKeys       = "keys"
	endpointKey        = "key"
	endpointRoll       = "key_roll"
	endpointSettings   = "settings"
	endpointWorkspaces = "workspaces"
	endpointWorkspace  = "workspace"
	endpointRedact     = "event_redact"

	endpointProof        = "proof"
	endpointCheckpoint   = "checkpoint"
	endpointTile         = "tile"
	endpointEntries      = "entries"
	endpointLogKey       = "log_key"
	endpointChains       = "chains"
	endpointLeaves       = "leaves"
	endpointVerify       = "verify"
	endpointAnchors      = "anchors"
	endpointAnchor       = "anchor"
	endpointAnchorVerify = "anchor_verify"
)

// retryAfter is what a 503 asks a client to wait.
const retryAfter = time.Second

// Routes returns the endpoints that read events, those that prove them, and those that manage.
func (s *Service) Routes() []httpserver.Route {
	get := func(pattern string, h http.Handler) httpserver.Route {
		return httpserver.Route{Method: http.MethodGet, Pattern: "/api/v1" + pattern, Handler: h}
	}
	return append(s.manageRoutes(),
		get("/events", s.reader(endpointEvents, inJSON(s.listEvents))),
		get("/events/{id}", s.reader(endpointEvent, inJSON(s.getEvent))),
		httpserver.Route{
			Method: http.MethodPost, Pattern: "/api/v1/events/{id}/redact",
			Handler: s.manager(endpointRedact, withoutParameters(s.redactEvent)),
		},
		get("/events/{id}/proof", s.reader(endpointProof, s.getProof)),
		get("/verify", s.reader(endpointVerify, inJSON(s.verify))),
		get("/anchors", s.reader(endpointAnchors, inJSON(s.listAnchors))),
		get("/anchors/{id}", s.reader(endpointAnchor, inJSON(s.getAnchor))),
		get("/anchors/{id}/verify", s.reader(endpointAnchorVerify, inJSON(s.verifyAnchor))),
		get("/ledger/chains", s.reader(endpointChains, inJSON(s.listChains))),
		get("/ledger/leaves", s.reader(endpointLeaves, s.listLeaves)),
		// Whoever has a checkpoint or a proof may check it: these need no key.
		get("/ledger/checkpoint", s.public(endpointCheckpoint, s.getCheckpoint)),
		get("/ledger/key", s.public(endpointLogKey, s.getLogKey)),
		get("/ledger/tile/{level}/{index...}", s.public(endpointTile, s.getTile)),
		get("/ledger/tile/entries/{index...}", s.public(endpointEntries, s.getEntries)),
	)
}

// content is a 200.
type content struct {
	body []byte
	kind string // its Content-Type
	// cache is its Cache-Control; "" is no-store.
	cache string
	// file is what a browser saves it as; "" for what is not to be saved.
	file string
	// encoding is its Content-Encoding, "" for none; where it may have one, the answer varies with Accept-Encoding.
	encoding string
	varies   bool
}

const (
	kindJSON   = "application/json"
	kindNDJSON = "application/x-ndjson"
	kindText   = "text/plain; charset=utf-8"
	kindBytes  = "application/octet-stream"
)

// reading answers a request of a key that may read a workspace.
type reading func(ctx context.Context, workspace [16]byte, r *http.Request) (content, error)

// inJSON makes content of JSON text.
func inJSON(respond func(context.Context, [16]byte, *http.Request) ([]byte, error)) reading {
	return func(ctx context.Context, workspace [16]byte, r *http.Request) (content, error) {
		body, err := respond(ctx, workspace, r)
		return content{body: body, kind: kindJSON}, err
	}
}

// reader answers keys with the scope events:read.
func (s *Service) reader(endpoint string, respond reading) http.Handler {
	return control.Require(s.view, control.ScopeRead, s.public(endpoint, func(ctx context.Context, r *http.Request) (content, error) {
		return respond(ctx, control.PrincipalFrom(ctx).Workspace.ID, r)
	}))
}

// public answers everybody with what respond returns: content, or an error.
func (s *Service) public(endpoint string, respond func(ctx context.Context, r *http.Request) (content, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := s.respond(r, respond)
		status := http.StatusOK
		if err != nil {
			status = s.refuse(w, r, err)
		} else {
			c.write(w)
		}
		s.metrics.requests.WithLabelValues(endpoint, strconv.Itoa(status)).Inc()
	})
}

// respond calls next with a deadline, once there is a slot and while Run runs. Nothing is held while the client reads
// the answer.
func (s *Service) respond(
	r *http.Request, next func(ctx context.Context, r *http.Request) (content, error),
) (content, error) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		return content{}, s.unavailable(reasonBusy, "Too many requests are being answered: send it again.", nil)
	}
	if !s.running.TryRLock() {
		return content{}, s.unavailable(reasonStopping, "The service is starting or stopping: send it again.", errStopped)
	}
	defer s.running.RUnlock()
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.RequestTimeout)
	defer cancel()
	return next(ctx, r)
}

// listEvents is GET /events.
func (s *Service) listEvents(ctx context.Context, workspace [16]byte, r *http.Request) ([]byte, error) {
	req, err := parsePage(r.URL.RawQuery)
	if err != nil {
		return nil, err
	}
	if req.concealed, err = s.erasures.concealed(workspace, &req.filter); err != nil {
		return nil, s.unavailable(reasonBusy, "Redactions are being carried out: send it again.", err)
	}
	digest := req.digest(workspace)
	var after *position
	if req.cursor != "" {
		p, err := decodeCursor(req.cursor, digest)
		if err != nil {
			return nil, err
		}
		after = &p
	}

	// The count runs beside the page, on a connection of its own, and is bounded to take no longer than most pages.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		counting sync.WaitGroup
		total    *uint64
		countErr error
	)
	if req.total {
		counting.Go(func() {
			if total, countErr = s.count(ctx, workspace, &req.filter); countErr != nil {
				cancel()
			}
		})
	}
	events, more, err := s.page(ctx, workspace, &req, after)
	var leaves hashes
	if err == nil {
		leaves, err = s.leaves(ctx, workspace, events)
	}
	if err != nil {
		cancel()
	}
	counting.Wait()
	if err := cause(err, countErr); err != nil {
		return nil, err
	}
	next := ""
	if more {
		next = encodeCursor(events[len(events)-1].position(), digest)
	}
	return s.renderPage(events, leaves, next, total)
}

// cause returns which of two errors, of which either may have cancelled the other, came first.
func cause(page, count error) error {
	if page == nil || (count != nil && errors.Is(page, context.Canceled)) {
		return count
	}
	return page
}

func (s *Service) renderPage(events []row, leaves hashes, next string, total *uint64) ([]byte, error) {
	size := 200
	for i := range events {
		size += len(events[i].body)*5/4 + 900
	}
	b := make([]byte, 0, size)
	b = append(b, `{"data":[`...)
	renderer := s.renderers.Get().(*renderer)
	defer s.renderers.Put(renderer)
	for i := range events {
		if i > 0 {
			b = append(b, ',')
		}
		var err error
		if b, err = renderer.appendEvent(b, &events[i], leaves); err != nil {
			return nil, err
		}
	}
	b = append(b, `],"pagination":{"has_more":`...)
	b = strconv.AppendBool(b, next != "")
	b = append(b, `,"next_cursor":`...)
	if next == "" {
		b = append(b, "null"...)
	} else {
		b = append(b, '"')
		b = append(b, next...)
		b = append(b, '"')
	}
	b = append(b, `,"total":`...)
	if total == nil {
		b = append(b, "null"...)
	} else {
		b = strconv.AppendUint(b, *total, 10)
	}
	return append(b, "}}\n"...), nil
}

// getEvent is GET /events/{id}. An id that is no UUID is one that no event has.
func (s *Service) getEvent(ctx context.Context, workspace [16]byte, r *http.Request) ([]byte, error) {
	if err := noParameters(r); err != nil {
		return nil, err
	}
	notFound := httpserver.NotFound("There is no event with this id in the workspace of the API key.")
	id, ok := pathID(r)
	if !ok {
		return nil, notFound
	}
	events, err := s.event(ctx, workspace, id)
	if err != nil {
		return nil, err
	}
	if len(events) == 0 {
		return nil, notFound
	}
	leaves, err := s.leaves(ctx, workspace, events)
	if err != nil {
		return nil, err
	}
	renderer := s.renderers.Get().(*renderer)
	defer s.renderers.Put(renderer)
	b, err := renderer.appendEvent([]byte(`{"data":`), &events[0], leaves)
	return append(b, "}\n"...), err
}

// refuse answers with an error and returns its status.
func (s *Service) refuse(w http.ResponseWriter, r *http.Request, err error) int {
	e, ok := errors.AsType[*httpserver.Error](err)
	switch {
	case ok:
	case r.Context().Err() != nil:
		// The client went away and the statements with it: nobody reads this.
		e = httpserver.Unavailable("The request was cancelled.", retryAfter, nil)
	default:
		e = s.classify(err)
	}
	if e == nil {
		httpserver.WriteError(w, r, err)
		return http.StatusInternalServerError
	}
	httpserver.WriteError(w, r, e)
	return e.Status
}

// classify returns the answer to a failure of ClickHouse, or nil where it is our fault.
func (s *Service) classify(err error) *httpserver.Error {
	const narrow = "Reading took too long: ask for a shorter time, or filter by more."
	switch code := exceptionCode(err); {
	case errors.Is(err, errMapUnknown):
		return s.unavailable(reasonMap, "No proof can be made at the moment: the state of all chains is not known, or is not the one "+
			"that was signed. Send it again.", err)
	case errors.Is(err, errDamaged):
		s.metrics.damaged.Inc()
		return &httpserver.Error{
			Status: http.StatusInternalServerError, Code: httpserver.CodeInternal, Cause: err,
			Message: "What is stored of the ledger does not match its hashes: ask the operator to verify it. GET /verify names the place.",
		}
	case code == codeTimeoutExceeded, code == codeTooManyRows, errors.Is(err, context.DeadlineExceeded):
		return s.unavailable(reasonTimeout, narrow, err)
	case slices.Contains([]int32{codeTooManyQueries, codeMemoryLimit}, code):
		return s.unavailable(reasonBusy, "The database has too much to do: send it again.", err)
	case code != 0, errors.Is(err, errBody), errors.Is(err, errScan):
		return nil
	}
	return s.unavailable(reasonAway, "The database cannot be reached: send it again.", err)
}

func (s *Service) unavailable(reason, message string, cause error) *httpserver.Error {
	s.metrics.unavailable[reason].Inc()
	return httpserver.Unavailable(message, retryAfter, cause)
}

// write answers 200. A client that left is nobody's error.
func (c *content) write(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Type", c.kind)
	h.Set("Content-Length", strconv.Itoa(len(c.body)))
	h.Set("Cache-Control", cmp.Or(c.cache, "no-store"))
	h.Set("X-Content-Type-Options", "nosniff")
	if c.file != "" {
		h.Set("Content-Disposition", `attachment; filename="`+c.file+`"`)
	}
	if c.varies {
		h.Set("Vary", "Accept-Encoding")
	}
	if c.encoding != "" {
		h.Set("Content-Encoding", c.encoding)
	}
	_, _ = w.Write(c.body) //nolint:gosec // never text/html, and nosniff: no browser takes it for a page
}
