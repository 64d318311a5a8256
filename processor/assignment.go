package processor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// assignment is what the group has assigned to a session: the state of each partition that it seals, and why it does not
// seal the others. The loop, the group's callbacks and Ready share it.
type assignment struct {
	metrics *metrics

	mu         sync.Mutex
	joined     bool
	pending    map[int32]bool // assigned, and not taken over yet
	partitions map[int32]*partition
	halted     map[int32]halt
	wasRevoked bool
	wake       context.CancelFunc // ends the poll that is on, nil if none
	// joins that are under way or must follow; settled is closed when there are none, nil then.
	joins   int
	settled chan struct{}
	// failed is why the group has gone on without this session.
	failed error
}

// halt is why an assigned partition is not sealed.
type halt struct {
	reason error
	kind   string // the label of the metric
	// retry is when to try again; zero: when an operator has looked and started the processor again.
	retry time.Time
}

func newAssignment(m *metrics) *assignment {
	return &assignment{
		metrics: m, pending: make(map[int32]bool), partitions: make(map[int32]*partition), halted: make(map[int32]halt),
	}
}

// join is called when the group has answered a join, with the partitions that it brought, if any.
func (a *assignment) join(added []int32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.joined {
		a.metrics.lags.keep(added) // others may have what the session before this one had
	}
	a.joined = true
	for _, n := range added {
		a.pending[n] = true
	}
	a.expectJoins(max(0, a.joins-1))
}

// rejoin is called when the group asks all members to join anew, and when partitions are given up: joins more follow.
func (a *assignment) rejoin(joins int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.expectJoins(max(joins, a.joins))
}

// expectJoins sets a.joins; a.mu is held.
func (a *assignment) expectJoins(n int) {
	a.joins = n
	switch {
	case n > 0 && a.settled == nil:
		a.settled = make(chan struct{})
	case n == 0 && a.settled != nil:
		close(a.settled)
		a.settled = nil
	}
}

// fail ends the session with err.
func (a *assignment) fail(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failed = err
	a.expectJoins(0)
	if a.wake != nil {
		a.wake()
	}
}

// awaitJoins waits until no join is under way, and says whether that is so: ctx may end before. A transaction that is
// open meanwhile waits with its commit for the answer, and then commits as a member of the generation before, which the
// group refuses. An error says that the session has failed.
func (a *assignment) awaitJoins(ctx context.Context) (settled bool, err error) {
	a.mu.Lock()
	wait := a.settled
	a.mu.Unlock()
	if wait != nil {
		select {
		case <-wait:
		case <-ctx.Done():
			return false, nil
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return true, a.failed
}

// joining says whether a join is under way.
func (a *assignment) joining() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.joins > 0
}

// takenOver hands over what a take-over came to.
func (a *assignment) takenOver(partitions map[int32]*partition, halted map[int32]halt) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for n, p := range partitions {
		// In place of whatever is there: the state of a partition that went away and came back is never used again.
		a.partitions[n] = p
		delete(a.halted, n)
		delete(a.pending, n)
	}
	for n, h := range halted {
		a.halted[n] = h
		delete(a.partitions, n)
		delete(a.pending, n)
	}
	a.observe()
}

// drop forgets partitions that were revoked or lost.
//
// GroupTransactSession leaves out this call where a second rebalance follows the first before the loop has seen that.
// What is left over then is memory, until the partition comes back or the session ends: takenOver replaces it before a
// record of it can be delivered.
func (a *assignment) drop(numbers []int32) {
	if len(numbers) == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, n := range numbers {
		delete(a.pending, n)
		delete(a.partitions, n)
		delete(a.halted, n)
		a.metrics.forget(n)
	}
	a.wasRevoked = true
	if a.wake != nil {
		a.wake()
	}
	a.observe()
}

// clear forgets everything, but for how far behind the partitions are: until the next session has joined, they are
// nobody else's that this process knows of.
func (a *assignment) clear() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.pending)
	clear(a.partitions)
	clear(a.halted)
	a.observe()
}

// untilRevoked returns a context that also ends when partitions are dropped before the next call of takeRevoked.
func (a *assignment) untilRevoked(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.wake != nil {
		a.wake()
	}
	a.wake = cancel
	if a.wasRevoked {
		cancel()
	}
	return ctx
}

// takeRevoked says whether partitions were dropped since it last did.
func (a *assignment) takeRevoked() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	revoked := a.wasRevoked
	a.wasRevoked = false
	if a.wake != nil {
		a.wake()
		a.wake = nil
	}
	return revoked
}

// partition returns the state of a partition that is sealed here.
func (a *assignment) partition(number int32) (*partition, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p, ok := a.partitions[number]
	return p, ok
}

// publish makes steps of a committed transaction the state of their partitions.
func (a *assignment) publish(steps []*step) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range steps {
		s.publish()
		a.metrics.window(s.p)
	}
	a.observe()
}

// retryDue says whether a halted partition is to be tried again.
func (a *assignment) retryDue(now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, h := range a.halted {
		if !h.retry.IsZero() && !now.Before(h.retry) {
			return true
		}
	}
	return false
}

func (a *assignment) ready() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.joined {
		return errors.New("seal: not joined")
	}
	var errs []error
	for _, n := range slices.Sorted(maps.Keys(a.halted)) {
		errs = append(errs, fmt.Errorf("seal: partition %d is halted: %w", n, a.halted[n].reason))
	}
	if len(a.pending) > 0 {
		errs = append(errs, fmt.Errorf("seal: taking over partitions %v", slices.Sorted(maps.Keys(a.pending))))
	}
	return errors.Join(errs...)
}

// observe sets the gauges. a.mu is held.
func (a *assignment) observe() {
	halted := make(map[string]int, len(a.halted))
	for _, h := range a.halted {
		halted[h.kind]++
	}
	for reason, gauge := range a.metrics.halted {
		gauge.Set(float64(halted[reason]))
	}
	a.metrics.sealing.Set(float64(len(a.partitions)))
	chains := 0
	for _, p := range a.partitions {
		chains += len(p.chains)
	}
	a.metrics.chains.Set(float64(chains))
}
