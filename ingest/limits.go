package ingest

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/internal/httpserver"
)

// maxBuckets bounds the keys and workspaces whose rates are being followed. One that was forgotten starts afresh.
const maxBuckets = 10_000

// limits follows the rate of every key and every workspace that has a limit, in events.
type limits struct {
	mu      sync.Mutex
	buckets *recent[[16]byte, *bucket] // by key id and workspace id
}

type bucket struct {
	limit control.Limit // as configured when the bucket was made
	*rate.Limiter
}

func newLimits() *limits {
	return &limits{buckets: newRecent[[16]byte, *bucket](maxBuckets)}
}

// take charges n events to the principal's key and workspace, or returns how long the client should wait, with nothing
// charged. A batch larger than a burst needs a full bucket and leaves it in debt: it is possible, and the mean rate
// holds. With n = 0 nothing is charged: the answer is what it would be for one event.
func (l *limits) take(p *control.Principal, n int, now time.Time) (wait time.Duration) {
	if p.Key.RateLimit.PerSecond <= 0 && p.Workspace.Settings.RateLimit.PerSecond <= 0 {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	buckets := [...]*bucket{
		l.bucket(p.Key.ID, p.Key.RateLimit),
		l.bucket(p.Workspace.ID, p.Workspace.Settings.RateLimit),
	}
	for _, b := range buckets {
		if b == nil {
			continue
		}
		missing := float64(min(max(n, 1), b.Burst())) - b.TokensAt(now)
		if missing > 0 {
			wait = max(wait, time.Duration(missing/float64(b.Limit())*float64(time.Second)))
		}
	}
	if wait > 0 {
		return wait
	}
	for _, b := range buckets {
		for left := n; b != nil && left > 0; left -= b.Burst() {
			b.ReserveN(now, min(left, b.Burst()))
		}
	}
	return 0
}

// bucket returns nil where there is no limit.
func (l *limits) bucket(id [16]byte, limit control.Limit) *bucket {
	if limit.PerSecond <= 0 {
		return nil
	}
	if b, ok := l.buckets.get(id); ok && b.limit == limit {
		return b
	}
	burst := limit.Burst
	if burst <= 0 {
		burst = max(1, int(limit.PerSecond))
	}
	b := &bucket{limit, rate.NewLimiter(rate.Limit(limit.PerSecond), burst)}
	l.buckets.put(id, b)
	return b
}

// charge takes n events from the principal's limits, or returns the 429.
func (l *limits) charge(p *control.Principal, n int, now time.Time) error {
	wait := l.take(p, n, now)
	if wait <= 0 {
		return nil
	}
	return httpserver.RateLimited(
		"The rate limit of this key or of its workspace is used up: send again after Retry-After seconds.", wait)
}
