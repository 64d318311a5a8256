package loadgen

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Format is how events are put into requests.
type Format string

// The three forms of the API.
const (
	// Single is POST /events, one event a request.
	Single Format = "single"
	// Batch is POST /events/batch with {"events":[...]}, at most 1,000 events a request.
	Batch Format = "batch"
	// NDJSON is POST /events/batch with an event a line, at most 10,000 events a request.
	NDJSON Format = "ndjson"
)

const (
	maxResponseBytes = 4 << 20
	minBackoff       = 20 * time.Millisecond
	maxBackoff       = time.Second
)

// ClientConfig says where and how to post.
type ClientConfig struct {
	// BaseURL ends in /api/v1.
	BaseURL string
	// APIKey has the scope events:write.
	APIKey string
	// Format, default Batch.
	Format Format
	// EventsPerRequest, default 100; always 1 with Single.
	EventsPerRequest int
	// Concurrency is the number of requests in flight, default 4.
	Concurrency int
	// RequestTimeout of one attempt, default 30 s.
	RequestTimeout time.Duration
	// EventsPerSecond bounds the rate of all requests together; 0 means no bound.
	EventsPerSecond int
	// Transport, default a new one with a connection for each request in flight.
	Transport http.RoundTripper
}

// Validate reports what is wrong with the configuration, and sets defaults.
func (c *ClientConfig) Validate() error {
	if u, err := url.Parse(c.BaseURL); err != nil || u.Host == "" {
		return fmt.Errorf("base URL %q has no host", c.BaseURL)
	}
	if c.Format == "" {
		c.Format = Batch
	}
	if c.EventsPerRequest == 0 {
		c.EventsPerRequest = 100
	}
	var limit int
	switch c.Format {
	case Single:
		c.EventsPerRequest, limit = 1, 1
	case Batch:
		limit = 1_000
	case NDJSON:
		limit = 10_000
	default:
		return fmt.Errorf("unknown format %q", c.Format)
	}
	if c.EventsPerRequest < 1 || c.EventsPerRequest > limit {
		return fmt.Errorf("events per request must be 1 to %d", limit)
	}
	if c.Concurrency == 0 {
		c.Concurrency = 4
	}
	if c.RequestTimeout == 0 {
		c.RequestTimeout = 30 * time.Second
	}
	if c.Concurrency < 1 || c.RequestTimeout < 0 || c.EventsPerSecond < 0 {
		return errors.New("concurrency, request timeout and rate must be positive")
	}
	if c.Transport == nil {
		c.Transport = &http.Transport{MaxIdleConnsPerHost: c.Concurrency, IdleConnTimeout: 30 * time.Second}
	}
	return nil
}

// Stats counts what happened to the events of a client.
type Stats struct {
	// Queued and Duplicates were acknowledged, and are in the log.
	Queued, Duplicates int64
	// Rejected were answered with an error of their own.
	Rejected int64
	// Unknown got no answer, or one that says nothing of whether the event was stored, and were not sent again.
	Unknown int64
	// Unavailable and RateLimited count answers 503 and 429; Failed counts attempts without a whole answer.
	Unavailable, RateLimited, Failed int64
}

// Acknowledged is the number of lines in the acknowledgement log.
func (s Stats) Acknowledged() int64 { return s.Queued + s.Duplicates }

// Client posts the events of a generator. An attempt that failed is repeated only where that cannot store an event
// twice: when every event of the request has an idempotency key, or when the server refused it before looking at it
// (429).
type Client struct {
	cfg  ClientConfig
	http *http.Client
	acks *AckLog
	rate *rate.Limiter

	genMu sync.Mutex
	gen   *Generator

	queued, duplicates, rejected, unknown, unavailable, rateLimited, failed atomic.Int64
}

// NewClient returns a client that posts gen's events and writes what is acknowledged to acks.
func NewClient(cfg ClientConfig, gen *Generator, acks *AckLog) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("load client: %w", err)
	}
	limit := rate.Inf
	if cfg.EventsPerSecond > 0 {
		limit = rate.Limit(cfg.EventsPerSecond)
	}
	return &Client{
		cfg: cfg, http: &http.Client{Transport: cfg.Transport}, gen: gen, acks: acks,
		rate: rate.NewLimiter(limit, cfg.EventsPerRequest),
	}, nil
}

// Stats may be called at any time.
func (c *Client) Stats() Stats {
	return Stats{
		Queued: c.queued.Load(), Duplicates: c.duplicates.Load(), Rejected: c.rejected.Load(), Unknown: c.unknown.Load(),
		Unavailable: c.unavailable.Load(), RateLimited: c.rateLimited.Load(), Failed: c.failed.Load(),
	}
}

// Run takes the next events of the generator and posts them, until each is acknowledged, rejected or unknown, or ctx
// ends. Its error is the log's, or an answer that makes going on pointless (such as 401); not ctx's.
func (c *Client) Run(ctx context.Context, events int) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var left atomic.Int64
	left.Store(int64(events))
	var workers sync.WaitGroup
	for range c.cfg.Concurrency {
		workers.Go(func() {
			w := worker{Client: c}
			for ctx.Err() == nil {
				n := min(int64(c.cfg.EventsPerRequest), left.Add(-int64(c.cfg.EventsPerRequest))+int64(c.cfg.EventsPerRequest))
				if n <= 0 {
					return
				}
				if c.rate.WaitN(ctx, int(n)) != nil {
					return // ctx has ended
				}
				w.fill(int(n))
				if err := w.deliver(ctx); err != nil {
					stop(err)
				}
			}
		})
	}
	workers.Wait()
	c.http.CloseIdleConnections()
	if fatal, ok := errors.AsType[*fatalError](context.Cause(ctx)); ok {
		return fatal
	}
	return nil
}

// fatalError ends a run.
type fatalError struct{ error }

func (e *fatalError) Unwrap() error { return e.error }

// worker builds and delivers one request at a time.
type worker struct {
	*Client
	body []byte
	// sums[i] is of event i of the request.
	sums  [][32]byte
	keyed bool
	acks  []Ack
}

// fill puts the next n events into the request.
func (w *worker) fill(n int) {
	w.genMu.Lock()
	defer w.genMu.Unlock()
	w.body, w.sums, w.keyed = w.body[:0], w.sums[:0], true
	if w.cfg.Format == Batch {
		w.body = append(w.body, `{"events":[`...)
	}
	for i := range n {
		if i > 0 && w.cfg.Format == Batch {
			w.body = append(w.body, ',')
		}
		start := len(w.body)
		var keyed bool
		w.body, keyed = w.gen.Append(w.body)
		w.keyed = w.keyed && keyed
		w.sums = append(w.sums, sha256.Sum256(w.body[start:]))
		if w.cfg.Format == NDJSON {
			w.body = append(w.body, '\n')
		}
	}
	if w.cfg.Format == Batch {
		w.body = append(w.body, `]}`...)
	}
}

// deliver posts the request until it is settled or ctx ends.
func (w *worker) deliver(ctx context.Context) error {
	backoff := minBackoff
	for {
		wait, again, err := w.attempt(ctx)
		if err != nil {
			return err
		}
		if !again {
			return nil
		}
		if wait == 0 {
			wait = backoff/2 + rand.N(backoff/2) //nolint:gosec // jitter
			backoff = min(2*backoff, maxBackoff)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			w.unknown.Add(int64(len(w.sums)))
			return nil
		case <-timer.C:
		}
	}
}

// attempt posts the request once. It reports whether to post it again, and after how long (0: the caller's choice).
func (w *worker) attempt(ctx context.Context) (wait time.Duration, again bool, err error) {
	r := w.post(ctx)
	switch r.status {
	case http.StatusAccepted:
		results, whole := w.results(r.body)
		if !whole {
			w.failed.Add(1)
			return 0, w.repeat(), nil
		}
		return 0, false, w.settle(results)
	case http.StatusTooManyRequests:
		w.rateLimited.Add(1)
		return r.retryAfter, true, nil
	case http.StatusServiceUnavailable:
		w.unavailable.Add(1)
		return r.retryAfter, w.repeat(), nil
	case 0, http.StatusInternalServerError, http.StatusBadGateway, http.StatusGatewayTimeout:
		w.failed.Add(1)
		return 0, w.repeat(), nil
	case http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusRequestEntityTooLarge, http.StatusConflict:
		w.rejected.Add(int64(len(w.sums)))
		return 0, false, nil
	default:
		return 0, false, &fatalError{fmt.Errorf("posting events: status %d: %.200s", r.status, r.body)}
	}
}

// repeat says whether the request may be posted again, and counts its events as unknown where not.
func (w *worker) repeat() bool {
	if !w.keyed {
		w.unknown.Add(int64(len(w.sums)))
	}
	return w.keyed
}

// reply is the answer to one attempt; status 0 stands for none, or for one that broke off.
type reply struct {
	status     int
	retryAfter time.Duration
	body       []byte
}

func (w *worker) post(ctx context.Context) reply {
	ctx, cancel := context.WithTimeout(ctx, w.cfg.RequestTimeout)
	defer cancel()
	path, contentType := "/events/batch", "application/json"
	switch w.cfg.Format {
	case Single:
		path = "/events"
	case NDJSON:
		contentType = "application/x-ndjson"
	case Batch:
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.cfg.BaseURL+path, bytes.NewReader(w.body))
	if err != nil {
		return reply{}
	}
	req.Header.Set("Authorization", "Bearer "+w.cfg.APIKey)
	req.Header.Set("Content-Type", contentType)
	resp, err := w.http.Do(req)
	if err != nil {
		return reply{}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxResponseBytes))
	if err != nil {
		return reply{}
	}
	return reply{status: resp.StatusCode, retryAfter: retryAfter(resp.Header), body: body}
}

// result is one event's part of a 202.
type result struct {
	ID     string `json:"id"`
	Status string `json:"status"`
}

// results reads a 202, and reports whether it accounts for every event of the request.
func (w *worker) results(body []byte) ([]result, bool) {
	var answer struct {
		result
		Events []result `json:"events"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, false
	}
	if w.cfg.Format == Single {
		return []result{answer.result}, answer.ID != ""
	}
	return answer.Events, len(answer.Events) == len(w.sums)
}

// settle logs the acknowledged events, then counts all.
func (w *worker) settle(results []result) error {
	now := time.Now()
	var queued, duplicates, rejected int64
	w.acks = w.acks[:0]
	for i, r := range results {
		switch r.Status {
		case "queued":
			queued++
		case "duplicate":
			duplicates++
		case "rejected":
			rejected++
			continue
		default:
			return &fatalError{fmt.Errorf("event answered with status %q", r.Status)}
		}
		w.acks = append(w.acks, Ack{ID: r.ID, SHA256: w.sums[i], At: now})
	}
	if err := w.Client.acks.Write(w.acks); err != nil {
		return &fatalError{err}
	}
	w.queued.Add(queued)
	w.duplicates.Add(duplicates)
	w.rejected.Add(rejected)
	return nil
}

// retryAfter reads the header of that name in seconds; 0 when there is none.
func retryAfter(h http.Header) time.Duration {
	seconds, err := strconv.Atoi(h.Get("Retry-After"))
	if err != nil || seconds < 0 {
		return 0
	}
	return time.Duration(min(seconds, 60)) * time.Second
}
