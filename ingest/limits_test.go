package ingest

import (
	"strings"
	"testing"
	"time"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
)

func TestLimits(t *testing.T) {
	principal := func(key, workspace control.Limit) *control.Principal {
		return &control.Principal{
			Key:       &control.Key{ID: [16]byte{1}, RateLimit: key},
			Workspace: &control.Workspace{ID: [16]byte{2}, Settings: control.Settings{RateLimit: workspace}},
		}
	}
	type step struct {
		at   time.Duration // since the start
		n    int
		wait time.Duration // 0: taken
	}
	for _, c := range []struct {
		name           string
		key, workspace control.Limit
		steps          []step
	}{
		{"none", control.Limit{}, control.Limit{}, []step{{0, 1_000_000, 0}, {0, 1_000_000, 0}}},
		{"single events", control.Limit{PerSecond: 2, Burst: 2}, control.Limit{}, []step{
			{0, 1, 0},
			{0, 0, 0},
			{0, 1, 0},
			{0, 1, 500 * time.Millisecond},
			{0, 0, 500 * time.Millisecond},
			{500 * time.Millisecond, 1, 0},
			{500 * time.Millisecond, 1, 500 * time.Millisecond},
		}},
		{"a refusal costs nothing", control.Limit{PerSecond: 10, Burst: 10}, control.Limit{}, []step{
			{0, 5, 0}, {0, 6, 100 * time.Millisecond}, {0, 6, 100 * time.Millisecond}, {0, 5, 0},
		}},
		{"burst by default", control.Limit{PerSecond: 10}, control.Limit{}, []step{
			{0, 10, 0}, {0, 1, 100 * time.Millisecond},
		}},
		{"less than one a second", control.Limit{PerSecond: 0.1}, control.Limit{}, []step{
			{0, 1, 0}, {0, 1, 10 * time.Second},
		}},
		{"a batch beyond the burst is paid off", control.Limit{PerSecond: 10, Burst: 10}, control.Limit{}, []step{
			{0, 1, 0},
			{0, 35, 100 * time.Millisecond},
			{100 * time.Millisecond, 35, 0},
			{100 * time.Millisecond, 1, 2600 * time.Millisecond},
			{2700 * time.Millisecond, 1, 0},
		}},
		{"the workspace's", control.Limit{PerSecond: 100, Burst: 100}, control.Limit{PerSecond: 1, Burst: 1}, []step{
			{0, 1, 0}, {0, 1, time.Second}, {time.Second, 1, 0},
		}},
		{"the key pays nothing for what the workspace refuses", control.Limit{PerSecond: 1, Burst: 2}, control.Limit{PerSecond: 100, Burst: 1}, []step{
			{0, 1, 0}, {0, 1, 10 * time.Millisecond}, {10 * time.Millisecond, 1, 0},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, start := newLimits(), time.Now()
			p := principal(c.key, c.workspace)
			for i, s := range c.steps {
				wait := l.take(p, s.n, start.Add(s.at))
				if diff := wait - s.wait; diff < -time.Millisecond || diff > time.Millisecond {
					t.Errorf("step %d: wait %s, want %s", i, wait, s.wait)
				}
			}
		})
	}
	t.Run("a changed limit holds at once", func(t *testing.T) {
		l, now := newLimits(), time.Now()
		slow, fast := control.Limit{PerSecond: 1}, control.Limit{PerSecond: 1000}
		l.take(principal(slow, control.Limit{}), 1, now)
		if l.take(principal(slow, control.Limit{}), 1, now) == 0 || l.take(principal(fast, control.Limit{}), 100, now) != 0 {
			t.Error("the old limit holds")
		}
	})
}

func TestRateLimited(t *testing.T) {
	r := newRig(t, kafkatest.Start(t), nil)
	_, r.token = r.key(control.NewKey{RateLimit: control.Limit{PerSecond: 0.1, Burst: 3}})
	limited := func(got response, retryAfter string) {
		t.Helper()
		r.want(got, 429, `{"error":"rate_limited","message":"The rate limit of this key or of its workspace is used up: send again after Retry-After seconds."}`)
		if got.header.Get("Retry-After") != retryAfter {
			t.Errorf("Retry-After %q, want %s", got.header.Get("Retry-After"), retryAfter)
		}
	}
	r.queued(r.post(onePath, strings.NewReader(valid)))
	written := r.records()
	// A batch of three needs three, of which two are left; two are enough for two.
	limited(r.post(batchPath, batchOf(valid, valid, valid)), "10")
	r.batch(r.post(batchPath, batchOf(valid, valid)), 2)
	// Nothing is left: the body is not even read.
	body := &neverRead{}
	req := r.request("POST", onePath, body)
	req.ContentLength = 10
	req.Header.Set("Expect", "100-continue")
	moved(t, r.service.metrics.requests.WithLabelValues(endpointEvent, "429"), 1, func() { limited(r.send(req), "10") })
	if body.read {
		t.Error("the body was read")
	}
	if n := r.records() - written; n != 2 {
		t.Errorf("%d records were written, want 2", n)
	}
}
