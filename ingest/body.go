package ingest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"

	"getimmutable.dev/immutable/internal/httpserver"
)

const (
	// firstBodyBytes is the first allocation of a body; it doubles as bytes arrive, so that a length which is only
	// announced costs nothing.
	firstBodyBytes = 4 << 10
	// maxPooledBodyBytes bounds a buffer that is kept for the next request.
	maxPooledBodyBytes = 64 << 10
	// maxWindowBytes bounds the window that a zstd frame may ask for: what RFC 8878, section 3.1.1.1.2, recommends every
	// decoder to support.
	maxWindowBytes = 8 << 20
)

var errBodiesFull = errors.New("the limit on request bodies in memory is reached")

// bodies reads request bodies into memory that is bounded over all of them.
type bodies struct {
	max      int64
	used     atomic.Int64
	gauge    prometheus.Gauge
	buffers  sync.Pool      // of *buffer, empty
	inflater chan *inflater // as many as may inflate at once; each is lent to one request
}

func newBodies(maxBytes int64, gauge prometheus.Gauge) *bodies {
	b := &bodies{max: maxBytes, gauge: gauge}
	b.buffers.New = func() any { return new(buffer) }
	// Inflating is all CPU, on bytes that have arrived: more at once would only hold more windows.
	b.inflater = make(chan *inflater, runtime.GOMAXPROCS(0))
	for range cap(b.inflater) {
		b.inflater <- new(inflater)
	}
	return b
}

func (b *bodies) charge(n int) error {
	if b.used.Add(int64(n)) > b.max {
		b.used.Add(int64(-n))
		return errBodiesFull
	}
	b.gauge.Add(float64(n))
	return nil
}

func (b *bodies) discharge(n int) {
	b.used.Add(int64(-n))
	b.gauge.Sub(float64(n))
}

// A buffer is one body. Its capacity is charged to bodies until release.
type buffer struct {
	data   []byte
	bodies *bodies // nil once released
}

// empty returns a buffer whose capacity is charged; the caller releases it.
func (b *bodies) empty() (*buffer, error) {
	buf := b.buffers.Get().(*buffer)
	if err := b.charge(cap(buf.data)); err != nil {
		b.buffers.Put(buf)
		return nil, err
	}
	buf.bodies = b
	return buf, nil
}

// release gives the buffer back; neither it nor its data may be used afterwards. Releasing nil does nothing.
func (buf *buffer) release() {
	if buf == nil {
		return
	}
	b := buf.bodies
	buf.bodies = nil
	b.discharge(cap(buf.data))
	if cap(buf.data) > maxPooledBodyBytes {
		return
	}
	buf.data = buf.data[:0]
	b.buffers.Put(buf)
}

// fill appends r up to its end. More than limit bytes are an *http.MaxBytesError.
func (buf *buffer) fill(r io.Reader, limit int) error {
	for {
		if len(buf.data) == cap(buf.data) {
			grown := max(firstBodyBytes, 2*cap(buf.data))
			if err := buf.bodies.charge(grown - cap(buf.data)); err != nil {
				return err
			}
			data := make([]byte, len(buf.data), grown)
			copy(data, buf.data)
			buf.data = data
		}
		n, err := r.Read(buf.data[len(buf.data):cap(buf.data)])
		buf.data = buf.data[:len(buf.data)+n]
		if len(buf.data) > limit {
			return &http.MaxBytesError{Limit: int64(limit)}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// read returns the request's body, inflated: at most limit bytes before and after. The errors are *httpserver.Error.
// The caller releases the buffer.
func (b *bodies) read(r *http.Request, limit int) (*buffer, error) {
	encoding, err := contentEncoding(r.Header)
	if err != nil {
		return nil, err
	}
	if r.ContentLength > int64(limit) {
		return nil, bodyError(&http.MaxBytesError{Limit: int64(limit)}, encoding, limit)
	}
	buf, err := b.empty()
	if err != nil {
		return nil, bodyError(err, encoding, limit)
	}
	if err := buf.fill(r.Body, limit); err != nil {
		buf.release()
		return nil, bodyError(err, "", limit)
	}
	if encoding == "" {
		return buf, nil
	}
	defer buf.release()
	inflated, err := b.inflate(r, buf.data, encoding, limit)
	if err != nil {
		return nil, bodyError(err, encoding, limit)
	}
	return inflated, nil
}

func (b *bodies) inflate(r *http.Request, data []byte, encoding string, limit int) (*buffer, error) {
	var in *inflater
	select {
	case in = <-b.inflater:
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	defer func() { b.inflater <- in }()
	buf, err := b.empty()
	if err != nil {
		return nil, err
	}
	src, err := in.reset(data, encoding)
	if err == nil {
		err = buf.fill(src, limit)
	}
	in.src.Reset(nil)
	if err != nil {
		buf.release()
		return nil, err
	}
	return buf, nil
}

// inflater holds what decompression can use again.
type inflater struct {
	src  bytes.Reader
	gzip *gzip.Reader
	zstd *zstd.Decoder
}

// reset returns a reader of data, inflated. Several gzip members, or zstd frames, follow one another as one body.
func (in *inflater) reset(data []byte, encoding string) (io.Reader, error) {
	in.src.Reset(data)
	if encoding == "zstd" {
		if in.zstd == nil {
			var err error
			// With a concurrency of 1 it decodes in the caller's goroutine and starts none.
			in.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
				zstd.WithDecoderMaxWindow(maxWindowBytes))
			if err != nil {
				return nil, fmt.Errorf("make a zstd decoder: %w", err)
			}
		}
		return in.zstd, in.zstd.Reset(&in.src)
	}
	if in.gzip == nil {
		in.gzip = new(gzip.Reader)
	}
	if err := in.gzip.Reset(&in.src); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return in.gzip, nil
}

// contentEncoding returns "gzip", "zstd" or "", which is no compression.
func contentEncoding(h http.Header) (string, error) {
	switch encoding := strings.ToLower(strings.Join(h.Values("Content-Encoding"), ", ")); encoding {
	case "", "identity":
		return "", nil
	case "gzip", "x-gzip":
		return "gzip", nil
	case "zstd":
		return "zstd", nil
	default:
		return "", httpserver.UnsupportedMedia("Content-Encoding must be gzip or zstd, or left out.")
	}
}

// bodyError says what went wrong while reading a body; encoding is "" where the fault lies before decompression.
func bodyError(err error, encoding string, limit int) error {
	var tooLarge *http.MaxBytesError
	var netErr net.Error
	switch {
	case errors.As(err, &tooLarge):
		message := fmt.Sprintf("The body must be at most %d bytes", limit)
		if encoding != "" {
			message += ", before and after decompression"
		}
		return httpserver.TooLarge(message + ".")
	case errors.Is(err, errBodiesFull):
		return unavailable("Too many request bodies are being read: send again after Retry-After seconds.", err)
	case errors.As(err, &netErr) && netErr.Timeout():
		return &httpserver.Error{
			Status: http.StatusRequestTimeout, Code: httpserver.CodeRequestTimeout,
			Message: "The body did not arrive in time: send it faster, or in smaller batches.",
		}
	case encoding != "" && (errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded)):
		return httpserver.TooLarge(fmt.Sprintf("The window of a zstd frame must be at most %d bytes.", maxWindowBytes))
	case encoding != "":
		return malformed(fmt.Sprintf("The body is not valid %s, or is truncated.", encoding))
	default:
		return malformed("The body could not be read to its end.")
	}
}
