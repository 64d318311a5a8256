package httpserver

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// deadlines records the deadlines that a handler sets.
type deadlines struct {
	http.ResponseWriter
	set []time.Time
}

func (d *deadlines) SetReadDeadline(at time.Time) error { d.set = append(d.set, at); return nil }

// TestDeadlineLifted checks that a client that sent its body may wait for its answer longer than for its body.
func TestDeadlineLifted(t *testing.T) {
	w := &deadlines{ResponseWriter: httptest.NewRecorder()}
	h := LimitBody(100, time.Minute, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if len(w.set) != 1 || time.Until(w.set[0]) > time.Minute || time.Until(w.set[0]) < time.Second {
			t.Errorf("before the body is read: %v", w.set)
		}
		if _, err := io.ReadAll(r.Body); err != nil {
			t.Error(err)
		}
		if len(w.set) != 2 || !w.set[1].IsZero() {
			t.Errorf("after the body was read: %v", w.set)
		}
	}))
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", strings.NewReader("{}")))
}
