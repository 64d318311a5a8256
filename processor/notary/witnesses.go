package notary

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"getimmutable.dev/immutable/ledger"
)

// maxWitnesses is what a checkpoint has room for beside the log's own signature.
const maxWitnesses = 15

// WitnessesConfig is what an operator sets of the witnesses. The zero value of every field but Policy means its default.
type WitnessesConfig struct {
	// Policy is the text of a C2SP tlog-policy file, the one that verifiers use. Its witnesses that have a URL are asked, at most
	// 15. No default.
	Policy []byte
	// Timeout is how long each witness may take for one checkpoint, in all. 1 ms to 1 min, default 5 s.
	Timeout time.Duration
	// MaxAnswerBytes bounds what is read of an answer. 1 KiB to 1 MiB, default 64 KiB.
	MaxAnswerBytes int
}

func (c WitnessesConfig) withDefaults() WitnessesConfig {
	if c.Timeout == 0 {
		c.Timeout = 5 * time.Second
	}
	if c.MaxAnswerBytes == 0 {
		c.MaxAnswerBytes = 64 << 10
	}
	return c
}

// Validate returns every setting that is out of its range. It does not read the policy.
func (c WitnessesConfig) Validate() error {
	var errs []error
	d := c.withDefaults()
	if d.Timeout < time.Millisecond || d.Timeout > time.Minute {
		errs = append(errs, fmt.Errorf("witness timeout is %s: it must be 1 ms to 1 min", d.Timeout))
	}
	if d.MaxAnswerBytes < 1<<10 || d.MaxAnswerBytes > 1<<20 {
		errs = append(errs, fmt.Errorf("max witness answer bytes is %d: it must be 1 KiB to 1 MiB", d.MaxAnswerBytes))
	}
	return errors.Join(errs...)
}

// Reasons why a witness has not cosigned, a label of immutable_notary_witness_errors_total.
const (
	witnessUnreachable = "unreachable" // no answer in time
	witnessRefused     = "refused"     // it knows no such log or key, or is not able to
	witnessInvalid     = "invalid"     // its answer is not a cosignature of its own, or is too long
	witnessAhead       = "ahead"       // it has cosigned more than there is
	witnessUnproved    = "unproved"    // no proof could be made from what it has cosigned
)

// witnessError is a reason and what led to it.
type witnessError struct {
	cause  error
	reason string
}

func (e *witnessError) Error() string { return e.cause.Error() }
func (e *witnessError) Unwrap() error { return e.cause }

// witnesses are those that are asked to cosign: the client of C2SP tlog-witness.
type witnesses struct {
	cfg    WitnessesConfig
	trust  *ledger.Trust
	client *http.Client
	logger *slog.Logger
	asked  []*askedWitness
}

// askedWitness is one of them. One call of cosign at a time uses it.
type askedWitness struct {
	ledger.Witness

	url      string
	label    string // of its metrics
	size     uint64 // of the checkpoint that it cosigned last, as far as is known
	down     bool   // it did not cosign last time; that was logged
	errors   *prometheus.CounterVec
	cosigned prometheus.Gauge
}

// newWitnesses reads the policy and asks nobody.
func newWitnesses(cfg WitnessesConfig, reg prometheus.Registerer, logger *slog.Logger) (*witnesses, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("witnesses: %w", err)
	}
	trust, err := ledger.ParseTrust(cfg.Policy)
	if err != nil {
		return nil, fmt.Errorf("witnesses: %w", err)
	}
	f := promauto.With(reg)
	failures := f.NewCounterVec(prometheus.CounterOpts{
		Name: "immutable_notary_witness_errors_total",
		Help: "Checkpoints that a witness was asked to cosign and did not, by witness and reason.",
	}, []string{"witness", "reason"})
	cosigned := f.NewGaugeVec(prometheus.GaugeOpts{
		Name: "immutable_notary_witness_cosigned_entries",
		Help: "Size of the newest checkpoint that a witness has cosigned since the start, by witness; 0 for none.",
	}, []string{"witness"})
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 1, IdleConnTimeout: 2 * time.Minute,
		MaxResponseHeaderBytes: 16 << 10, TLSHandshakeTimeout: cfg.withDefaults().Timeout,
	}
	w := &witnesses{cfg: cfg.withDefaults(), trust: trust, logger: logger, client: &http.Client{
		Transport: transport,
		// A witness is where the policy says.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	for _, known := range trust.Witnesses() {
		if known.URL == "" {
			continue
		}
		u, err := url.Parse(known.URL)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return nil, fmt.Errorf("witnesses: URL of %.80q: want http or https, a host and a path", known.Label)
		}
		label := strings.ToValidUTF8(known.Label, "\uFFFD")
		w.asked = append(w.asked, &askedWitness{
			Witness: known, url: strings.TrimSuffix(u.String(), "/") + "/add-checkpoint", label: label,
			errors: failures.MustCurryWith(prometheus.Labels{"witness": label}), cosigned: cosigned.WithLabelValues(label),
		})
	}
	if len(w.asked) > maxWitnesses {
		return nil, fmt.Errorf("witnesses: the policy has %d with a URL, a checkpoint has room for %d", len(w.asked), maxWitnesses)
	}
	for _, x := range w.asked {
		for _, reason := range []string{witnessUnreachable, witnessRefused, witnessInvalid, witnessAhead, witnessUnproved} {
			x.errors.WithLabelValues(reason)
		}
	}
	return w, nil
}

// close frees the connections that are kept for the next checkpoint.
func (w *witnesses) close() { w.client.CloseIdleConnections() }

// cosign asks every witness at once to cosign a signed checkpoint, but for those that already have, and returns it with the
// cosignatures that are on it then, their number, and whether they meet the policy's quorum (as none does where that asks for
// none). It returns when all have answered or failed: at the end of ctx or of the timeout at the latest. A witness that
// fails is counted, and logged once until it cosigns again.
//
// prove returns the consistency proof from oldSize, above 0 and below the checkpoint's size, to the checkpoint. It is called by
// several goroutines and must return when its ctx ends.
//
// One goroutine at a time calls cosign.
func (w *witnesses) cosign(
	ctx context.Context, signed []byte, prove func(ctx context.Context, oldSize uint64) ([]ledger.Hash, error),
) (note []byte, n int, quorum bool) {
	c, err := ledger.ParseCheckpoint(signed)
	if err != nil {
		w.logger.ErrorContext(ctx, "no witness was asked about what is no checkpoint", slog.Any("error", err))
		return signed, 0, false
	}
	ctx, cancel := context.WithTimeout(ctx, w.cfg.Timeout)
	defer cancel()
	var asked []*askedWitness
	_, signatures, _ := bytes.Cut(signed, []byte("\n\n"))
	for _, x := range w.asked {
		if _, err := x.Cosignature(signed, signatures, time.Now()); err != nil {
			asked = append(asked, x)
		}
	}
	lines := make([][]byte, len(asked))
	errs := make([]error, len(asked))
	own := withoutCosignatures(signed, c.Origin)
	var wg sync.WaitGroup
	for i, x := range asked {
		wg.Go(func() { lines[i], errs[i] = w.ask(ctx, x, c, own, prove) })
	}
	wg.Wait()
	note = bytes.Clone(signed)
	for i, x := range asked {
		x.observe(ctx, w.logger, c.Size, errs[i])
		note = append(note, lines[i]...)
	}
	if _, err := ledger.ParseCheckpoint(note); err != nil {
		w.logger.ErrorContext(ctx, "the cosignatures have no room on the checkpoint", slog.Any("error", err))
		return signed, 0, false
	}
	names, quorum := w.trust.Cosigned(note, time.Now())
	return note, len(names), quorum
}

// withoutCosignatures leaves the signatures in the log's own name: some witnesses read no more than 10 kB, which a few
// cosignatures of type ML-DSA-44 fill.
func withoutCosignatures(signed []byte, origin string) []byte {
	text, signatures, _ := bytes.Cut(signed, []byte("\n\n"))
	own := append(bytes.Clone(text), "\n\n"...)
	for line := range bytes.Lines(signatures) {
		if bytes.HasPrefix(line, []byte("— "+origin+" ")) {
			own = append(own, line...)
		}
	}
	return own
}

// observe logs the first of several failures, and the first success after them.
func (x *askedWitness) observe(ctx context.Context, logger *slog.Logger, size uint64, err error) {
	if failed, ok := errors.AsType[*witnessError](err); ok {
		x.errors.WithLabelValues(failed.reason).Inc()
		if !x.down {
			logger.WarnContext(ctx, "a witness does not cosign", slog.String("witness", x.label), slog.String("reason", failed.reason),
				slog.Uint64("size", size), slog.Any("error", err))
		}
		x.down = true
		return
	}
	x.cosigned.Set(float64(size))
	if x.down {
		logger.InfoContext(ctx, "a witness cosigns again", slog.String("witness", x.label), slog.Uint64("size", size))
	}
	x.down = false
}

// ask returns the line of one witness. Where that has cosigned another size than is known, it is asked once more from there.
// Its errors are *witnessError.
func (w *witnesses) ask(
	ctx context.Context, x *askedWitness, c *ledger.Checkpoint, signed []byte, prove func(context.Context, uint64) ([]ledger.Hash, error),
) ([]byte, error) {
	for again := false; ; again = true {
		request := ledger.AddCheckpoint{OldSize: min(x.size, c.Size), Checkpoint: signed}
		if request.OldSize > 0 && request.OldSize < c.Size {
			proof, err := prove(ctx, request.OldSize)
			if err != nil {
				return nil, &witnessError{fmt.Errorf("proving size %d from size %d: %w", c.Size, request.OldSize, err), witnessUnproved}
			}
			request.Proof = proof
		}
		body, err := request.Encode()
		if err != nil {
			return nil, &witnessError{err, witnessUnproved}
		}
		status, kind, answer, err := w.post(ctx, x.url, body)
		switch {
		case err != nil:
			return nil, err
		case status == http.StatusOK:
			line, err := x.Cosignature(signed, answer, time.Now())
			if err != nil {
				return nil, &witnessError{err, witnessInvalid}
			}
			x.size = c.Size
			return line, nil
		case status != http.StatusConflict:
			return nil, &witnessError{fmt.Errorf("status %d: %.200q", status, answer), witnessRefused}
		}
		size, err := parseSize(kind, answer)
		switch {
		case err != nil:
			return nil, &witnessError{err, witnessInvalid}
		case size > c.Size:
			return nil, &witnessError{fmt.Errorf("it has cosigned size %d, the checkpoint has size %d", size, c.Size), witnessAhead}
		case again || size == request.OldSize:
			return nil, &witnessError{fmt.Errorf("it was asked from size %d and then wants size %d", request.OldSize, size), witnessRefused}
		}
		x.size = size
	}
}

// newest asks every witness at once for the newest checkpoint that it has of a log (C2SP tlog-witness, monitoring), and returns
// those that one of the log's keys has signed: whatever else is true of them, the log has stated them. own names these keys. Who does
// not answer until ctx ends, or has none, is passed over: a witness that is away holds nothing up.
func (w *witnesses) newest(ctx context.Context, origin string, own *ledger.Trust) (all []*ledger.Checkpoint) {
	hash := sha256.Sum256([]byte(origin))
	found := make([]*ledger.Checkpoint, len(w.asked))
	var asking sync.WaitGroup
	for i, x := range w.asked {
		asking.Go(func() {
			at := fmt.Sprintf("%s/%x/checkpoint", strings.TrimSuffix(x.url, "/add-checkpoint"), hash)
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, http.NoBody)
			if err != nil {
				return
			}
			status, _, answer, err := w.do(req)
			if err != nil || status != http.StatusOK {
				return
			}
			if c, _, err := own.OpenLog(answer); err == nil && c.Origin == origin {
				found[i] = c
			}
		})
	}
	asking.Wait()
	for _, c := range found {
		if c != nil {
			all = append(all, c)
		}
	}
	return all
}

// post returns the status, the media type and the body of the answer.
func (w *witnesses) post(ctx context.Context, to string, body []byte) (status int, kind string, answer []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return 0, "", nil, &witnessError{err, witnessUnreachable}
	}
	req.Header.Set("Content-Type", "text/plain; charset=utf-8")
	return w.do(req)
}

func (w *witnesses) do(req *http.Request) (status int, kind string, answer []byte, err error) {
	resp, err := w.client.Do(req)
	if err != nil {
		return 0, "", nil, &witnessError{err, witnessUnreachable}
	}
	answer, err = io.ReadAll(io.LimitReader(resp.Body, int64(w.cfg.MaxAnswerBytes)+1))
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return 0, "", nil, &witnessError{fmt.Errorf("reading the answer: %w", err), witnessUnreachable}
	}
	if len(answer) > w.cfg.MaxAnswerBytes {
		return 0, "", nil, &witnessError{fmt.Errorf("its answer is longer than %d bytes", w.cfg.MaxAnswerBytes), witnessInvalid}
	}
	return resp.StatusCode, resp.Header.Get("Content-Type"), answer, nil
}

// parseSize reads the answer of a witness that has cosigned another size.
func parseSize(kind string, answer []byte) (uint64, error) {
	if media, _, err := mime.ParseMediaType(kind); err != nil || media != "text/x.tlog.size" {
		return 0, fmt.Errorf("a size of type %.80q", kind)
	}
	digits, ok := strings.CutSuffix(string(answer), "\n")
	size, err := strconv.ParseUint(digits, 10, 64)
	if !ok || err != nil || strconv.FormatUint(size, 10) != digits {
		return 0, fmt.Errorf("a size that is none: %.80q", answer)
	}
	return size, nil
}
