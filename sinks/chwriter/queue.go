package chwriter

import (
	"context"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// queue holds the fetched records of one partition until they are written: the poll loop puts, run takes. At its limit
// it pauses the partition's fetching, so that the poll loop never waits and other partitions go on.
type queue struct {
	limitBytes    int
	pause, resume func()

	// wake has a token when something that run may wait for has changed.
	wake chan struct{}

	mu      sync.Mutex
	records []*kgo.Record
	bytes   int
	paused  bool
	// unlimited while run waits for the end of a range that may be larger than the limit.
	unlimited bool
	// headAt is when the first of records came.
	headAt time.Time
	// oldest is the time stamp of the oldest record that is not written; zero if there is none.
	oldest time.Time
	// next is the offset after the last record written, high the end of the partition as of the last fetch.
	next, high int64
}

func newQueue(limitBytes int, next int64, pause, resume func()) queue {
	return queue{limitBytes: limitBytes, pause: pause, resume: resume, next: next, wake: make(chan struct{}, 1)}
}

func size(r *kgo.Record) int { return len(r.Key) + len(r.Value) }

// put adds fetched records.
func (q *queue) put(records []*kgo.Record, high int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.high = high
	if len(records) == 0 {
		return
	}
	if len(q.records) == 0 {
		q.headAt = time.Now()
	}
	if q.oldest.IsZero() {
		q.oldest = records[0].Timestamp
	}
	q.records = append(q.records, records...)
	for _, r := range records {
		q.bytes += size(r)
	}
	if !q.paused && !q.unlimited && q.bytes >= q.limitBytes {
		q.paused = true
		q.pause()
	}
	q.signal()
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// wrote says that every record before next is written.
func (q *queue) wrote(next int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.next, q.oldest = next, time.Time{}
	if len(q.records) > 0 {
		q.oldest = q.records[0].Timestamp
	}
}

// outcome is how a wait ended.
type outcome int

const (
	ready     outcome = iota // what was waited for is there
	timedOut                 // it did not come in time
	draining                 // the writer stops
	cancelled                // the partition is closed
)

// wait waits until is reports true, at most for d; a negative d has no end. is is called with the lock held.
func (q *queue) wait(ctx context.Context, drain <-chan struct{}, d time.Duration, is func() bool) outcome {
	var timeout <-chan time.Time
	if d >= 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		timeout = timer.C
	}
	for {
		q.mu.Lock()
		ok := is()
		q.mu.Unlock()
		select {
		case <-ctx.Done():
			return cancelled
		case <-drain:
			return draining
		default:
		}
		if ok {
			return ready
		}
		select {
		case <-ctx.Done():
			return cancelled
		case <-drain:
			return draining
		case <-timeout:
			return timedOut
		case <-q.wake:
		}
	}
}

// waitRecord waits for a record.
func (q *queue) waitRecord(ctx context.Context, drain <-chan struct{}, d time.Duration) outcome {
	return q.wait(ctx, drain, d, func() bool { return len(q.records) > 0 })
}

// waitBatch waits, when there is a record, for others to go with it: at most linger from its coming.
func (q *queue) waitBatch(ctx context.Context, drain <-chan struct{}, linger time.Duration, rows, bytes int) {
	q.mu.Lock()
	left := linger - time.Since(q.headAt)
	q.mu.Unlock()
	q.wait(ctx, drain, max(left, 0), func() bool { return len(q.records) >= rows || q.bytes >= bytes })
}

// waitThrough waits for the record at offset last, or one after it.
func (q *queue) waitThrough(ctx context.Context, drain <-chan struct{}, last int64) outcome {
	q.mu.Lock()
	q.unlimited = true
	q.unpause()
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		q.unlimited = false
		q.mu.Unlock()
	}()
	return q.wait(ctx, drain, -1, func() bool {
		return len(q.records) > 0 && q.records[len(q.records)-1].Offset >= last
	})
}

// take removes records from the head: as long as there are at most rows, they reach bytes with the last one only, and
// more agrees to add the record cur after prev.
func (q *queue) take(rows, bytes int, more func(prev, cur int64) bool) []*kgo.Record {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, taken := 0, 0
	for n < len(q.records) && n < rows && taken < bytes {
		if n > 0 && !more(q.records[n-1].Offset, q.records[n].Offset) {
			break
		}
		taken += size(q.records[n])
		n++
	}
	records := q.records[:n:n]
	// What stays moves to memory of its own: the batch must not be kept by it.
	q.records = append([]*kgo.Record(nil), q.records[n:]...)
	q.bytes -= taken
	q.headAt = time.Now()
	if q.bytes <= q.limitBytes/2 {
		q.unpause()
	}
	return records
}

// unpause is called with the lock held.
func (q *queue) unpause() {
	if q.paused {
		q.paused = false
		q.resume()
	}
}

// queueStatus is what the metrics say of a queue.
type queueStatus struct {
	bytes  int
	lag    int64
	oldest time.Time
	next   int64 // every record before it is written
}

func (q *queue) status() queueStatus {
	q.mu.Lock()
	defer q.mu.Unlock()
	return queueStatus{bytes: q.bytes, lag: max(0, q.high-max(q.next, 0)), oldest: q.oldest, next: max(q.next, 0)}
}
