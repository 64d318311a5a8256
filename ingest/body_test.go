package ingest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"

	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
)

func gzipped(tb testing.TB, text []byte) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(text); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// zstded is one frame, streamed, so that it does not say how long it is.
func zstded(tb testing.TB, text []byte, options ...zstd.EOption) []byte {
	tb.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, options...)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := io.Copy(w, io.MultiReader(bytes.NewReader(text))); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

func TestEncodings(t *testing.T) {
	r := newRig(t, kafkatest.Start(t), nil)
	zeros := make([]byte, 64<<20)
	lines := []byte(strings.Repeat(valid+"\n", 100))
	bombMessage := `{"error":"too_large","message":"The body must be at most 8388608 bytes, before and after decompression."}`
	for encoding, compress := range map[string]func([]byte) []byte{
		"gzip": func(b []byte) []byte { return gzipped(t, b) },
		"zstd": func(b []byte) []byte { return zstded(t, b) },
	} {
		for _, c := range []struct {
			name   string
			body   []byte
			events int // 0: an error
			code   int
			want   string
		}{
			{name: "whole", body: compress(lines), events: 100},
			{name: "two members", body: append(compress(lines), compress(lines)...), events: 200},
			{name: "a line over two members", body: append(compress(lines[:30]), compress(lines[30:])...), events: 100},
			{
				name: "truncated", body: compress(lines)[:20],
				code: 400, want: `{"error":"invalid_json","message":"The body is not valid ` + encoding + `, or is truncated."}`,
			},
			{
				name: "truncated at its end", body: bytes.TrimSuffix(compress(lines), compress(lines)[len(compress(lines))-1:]),
				code: 400, want: `{"error":"invalid_json","message":"The body is not valid ` + encoding + `, or is truncated."}`,
			},
			{
				name: "second member truncated", body: append(compress(lines), compress(lines)[:9]...),
				code: 400, want: `{"error":"invalid_json","message":"The body is not valid ` + encoding + `, or is truncated."}`,
			},
			{
				name: "plain", body: lines,
				code: 400, want: `{"error":"invalid_json","message":"The body is not valid ` + encoding + `, or is truncated."}`,
			},
			{
				name: "trailing garbage", body: append(compress(lines), "garbage"...),
				code: 400, want: `{"error":"invalid_json","message":"The body is not valid ` + encoding + `, or is truncated."}`,
			},
			{name: "bomb", body: compress(zeros), code: 413, want: bombMessage},
			{name: "bomb in members", body: bytes.Repeat(compress(zeros[:1<<20]), 64), code: 413, want: bombMessage},
		} {
			t.Run(encoding+"/"+c.name, func(t *testing.T) {
				r := r.with(t)
				got := r.post(batchPath, bytes.NewReader(c.body), "Content-Encoding", encoding, "Content-Type", mediaNDJSON)
				if c.events > 0 {
					r.batch(got, c.events)
					return
				}
				r.want(got, c.code, c.want)
			})
		}
		t.Run(encoding+"/one", func(t *testing.T) {
			r := r.with(t)
			r.queued(r.post(onePath, bytes.NewReader(compress([]byte(valid))), "Content-Encoding", strings.ToUpper(encoding)))
		})
	}
	t.Run("zstd/empty", func(t *testing.T) {
		// No frame at all is a body of no bytes, which is not JSON.
		got := r.with(t).post(onePath, http.NoBody, "Content-Encoding", "zstd")
		if got.code != 400 {
			t.Errorf("%d: %s", got.code, got.body)
		}
	})
	t.Run("gzip/empty", func(t *testing.T) {
		r.with(t).want(r.post(onePath, http.NoBody, "Content-Encoding", "gzip"), 400,
			`{"error":"invalid_json","message":"The body is not valid gzip, or is truncated."}`)
	})
	t.Run("zstd/window", func(t *testing.T) {
		// The encoder makes a window as large as it was told for a stream that does not say how long it is.
		body := zstded(t, zeros[:7<<20], zstd.WithWindowSize(64<<20), zstd.WithSingleSegment(false))
		r.with(t).want(r.post(batchPath, bytes.NewReader(body), "Content-Encoding", "zstd"), 413,
			`{"error":"too_large","message":"The window of a zstd frame must be at most 8388608 bytes."}`)
	})
	if used := r.service.bodies.used.Load(); used != 0 {
		t.Errorf("%d bytes of bodies are still charged", used)
	}
}

// TestSlowClient opens connections that never send what they announced.
func TestSlowClient(t *testing.T) {
	r := newRig(t, kafkatest.Start(t), func(c *Config) { c.BodyTimeout = 50 * time.Millisecond })
	for name, head := range map[string]string{
		"announced": "Content-Length: 100\r\n\r\n{",
		"chunked":   "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
		"silent":    "Content-Length: 100\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(r.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(deadline)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(conn, "POST /api/v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"+
				"Authorization: Bearer "+r.token+"\r\n"+head); err != nil {
				t.Fatal(err)
			}
			answer, err := io.ReadAll(conn) // to the end of the connection
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.HasPrefix(answer, []byte("HTTP/1.1 408 ")) || !bytes.Contains(answer, []byte(`"error":"request_timeout"`)) {
				t.Errorf("%s", answer)
			}
		})
	}
}

func TestBodiesBound(t *testing.T) {
	r := newRig(t, kafkatest.Start(t), func(c *Config) { c.MaxBodiesBytes = 32 << 20 })
	// A byte less than 8 MiB: the end of a body that fills its buffer may be told by a read of its own, for which the
	// buffer grows.
	text := []byte(`{"events":[` + strings.Repeat(" ", 8<<20-14) + "]}")
	if len(text) > maxBatchBytes {
		t.Fatal("the test's body is itself too large")
	}
	// Four clients send all but the end of a large batch: each holds 8 MiB.
	writers := make([]*io.PipeWriter, 4)
	answers := make(chan response, len(writers))
	for i := range writers {
		body, w := io.Pipe()
		writers[i] = w
		go func() { answers <- r.post(batchPath, body) }()
		if _, err := w.Write(text[:len(text)-1]); err != nil {
			t.Fatal(err)
		}
	}
	full := int64(32 << 20)
	r.eventually("the bound is reached", func() bool { return r.service.bodies.used.Load() > full-firstBodyBytes })
	got := r.post(onePath, strings.NewReader(valid))
	r.want(got, 503, `{"error":"unavailable","message":"Too many request bodies are being read: send again after Retry-After seconds."}`)
	if got.header.Get("Retry-After") != "1" {
		t.Errorf("Retry-After %q", got.header.Get("Retry-After"))
	}
	if v := value(t, r.service.metrics.bodiesBytes); v != float64(r.service.bodies.used.Load()) {
		t.Errorf("the gauge says %g", v)
	}
	for _, w := range writers {
		if _, err := w.Write(text[len(text)-1:]); err != nil {
			t.Fatal(err)
		}
		w.Close()
	}
	for range writers {
		if a := <-answers; a.code != 422 {
			t.Errorf("%d: %s", a.code, a.body)
		}
	}
	r.queued(r.post(onePath, strings.NewReader(valid)))
	if used := r.service.bodies.used.Load(); used != 0 {
		t.Errorf("%d bytes are still charged", used)
	}
}

// FuzzBody checks that no body is read beyond the limit, that each failure is an answer, and that nothing stays
// charged.
func FuzzBody(f *testing.F) {
	for _, encoding := range []string{"", "gzip", "zstd", "x-gzip", "br"} {
		f.Add(encoding, []byte(valid))
		f.Add(encoding, gzipped(f, []byte(valid)))
		f.Add(encoding, zstded(f, []byte(valid)))
		f.Add(encoding, zstded(f, make([]byte, 1<<20)))
	}
	const limit = 64 << 10
	f.Fuzz(func(t *testing.T, encoding string, body []byte) {
		b := newBodies(32<<20, newMetrics(prometheus.NewRegistry()).bodiesBytes)
		req := httptest.NewRequestWithContext(context.Background(), http.MethodPost, onePath, bytes.NewReader(body))
		req.Header.Set("Content-Encoding", encoding)
		buf, err := b.read(req, limit)
		if err == nil {
			if len(buf.data) > limit {
				t.Errorf("%d bytes were read", len(buf.data))
			}
			buf.release()
		} else if e, ok := errors.AsType[*httpserver.Error](err); !ok || e.Status < 400 || e.Status > 499 {
			t.Errorf("%v", err)
		}
		if b.used.Load() != 0 || len(b.inflater) != cap(b.inflater) {
			t.Errorf("%d bytes charged, %d of %d inflaters there", b.used.Load(), len(b.inflater), cap(b.inflater))
		}
	})
}
