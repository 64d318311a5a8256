package httpserver

import (
	"errors"
	"io"
	"net/http"
	"time"
)

// LimitBody gives the client until timeout to send its body, of which no more than limit bytes are read. The connection
// of one that takes longer is closed.
func LimitBody(limit int, timeout time.Duration, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		// A writer without deadlines is a test's; the server's own has them.
		if rc.SetReadDeadline(time.Now().Add(timeout)) == nil {
			r.Body = &timedBody{r.Body, rc}
		}
		r.Body = http.MaxBytesReader(w, r.Body, int64(limit))
		next.ServeHTTP(w, r)
	})
}

// timedBody lifts the deadline once the body is there, because the server keeps reading, to notice a client that
// leaves, and a deadline that passed would cancel the request.
type timedBody struct {
	io.ReadCloser
	rc *http.ResponseController
}

func (b *timedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		_ = b.rc.SetReadDeadline(time.Time{}) // it was set before, so it can be
	}
	return n, err
}
