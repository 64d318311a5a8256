package httpserver

import (
	"context"
	"net/http"
	"net/http/pprof"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// readyTimeout is how long one check may take before it counts as not ready.
const readyTimeout = 2 * time.Second

// Check is one thing that a service depends on.
type Check struct {
	// Ready returns nil, or why not. Calls run side by side, each with a deadline of 2 s.
	Ready func(ctx context.Context) error
	// Name of the dependency, as in "kafka" or "clickhouse".
	Name string
}

// HealthRoutes are /livez (200 while the process serves), /readyz (200, or 503 whose details say which dependency is not
// ready and why) and /metrics.
func HealthRoutes(reg prometheus.Gatherer, checks ...Check) []Route {
	live := func(w http.ResponseWriter, _ *http.Request) {
		WriteJSON(w, http.StatusOK, map[string]string{"status": "live"})
	}
	ready := func(w http.ResponseWriter, r *http.Request) {
		reasons := runChecks(r.Context(), checks)
		if len(reasons) > 0 {
			WriteError(w, r, &Error{
				Status: http.StatusServiceUnavailable, Code: CodeUnavailable, Message: "Not ready.", Details: reasons,
				RetryAfter: time.Second,
			})
			return
		}
		WriteJSON(w, http.StatusOK, map[string]string{"status": "ready"})
	}
	return []Route{
		{Method: http.MethodGet, Pattern: "/livez", Handler: http.HandlerFunc(live)},
		{Method: http.MethodGet, Pattern: "/readyz", Handler: http.HandlerFunc(ready)},
		{Method: http.MethodGet, Pattern: "/metrics", Handler: promhttp.HandlerFor(reg, promhttp.HandlerOpts{})},
	}
}

// runChecks returns the reasons of those that are not ready, in the order of checks.
func runChecks(ctx context.Context, checks []Check) []Detail {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	errs := make([]error, len(checks))
	var wg sync.WaitGroup
	for i, c := range checks {
		wg.Go(func() { errs[i] = c.Ready(ctx) })
	}
	wg.Wait()
	var reasons []Detail
	for i, err := range errs {
		if err != nil {
			reasons = append(reasons, Detail{Field: checks[i].Name, Message: err.Error()})
		}
	}
	return reasons
}

// DebugRoutes are net/http/pprof's under /debug/pprof/. They belong on an internal address, whose WriteTimeout must be
// longer than the profiles to be taken.
func DebugRoutes() []Route {
	get := func(pattern string, h http.HandlerFunc) Route {
		return Route{Method: http.MethodGet, Pattern: pattern, Handler: h}
	}
	return []Route{
		get("/debug/pprof/{profile...}", pprof.Index),
		get("/debug/pprof/cmdline", pprof.Cmdline),
		get("/debug/pprof/profile", pprof.Profile),
		get("/debug/pprof/symbol", pprof.Symbol),
		get("/debug/pprof/trace", pprof.Trace),
	}
}
