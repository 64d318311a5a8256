package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/schemas"
)

const (
	checkInterval  = time.Second
	restartWait    = time.Second
	minStaleAfter  = 3 * checkInterval
	defStaleAfter  = 15 * time.Second
	requestTimeout = 10 * time.Second
)

// ViewConfig configures a View.
type ViewConfig struct {
	Kafka kafka.Config
	// MasterKey opens the secrets of the config topic.
	MasterKey MasterKey
	// RedactionsOnly makes a view that knows redactions and nothing else, for those who are not given the master key. It
	// refuses everybody.
	RedactionsOnly bool
	// TrustedProxies are the addresses whose X-Forwarded-For header is believed. Default none: the address of a request
	// is that of the peer.
	TrustedProxies []netip.Prefix
	// StaleAfter is how long the view may go without having been found current before Ready reports it. At least 3 s;
	// default 15 s.
	StaleAfter time.Duration
	// UsageInterval is how often this process writes down which keys were used, for all the others: what they show of its
	// requests is at most that old. 1 ms to 1 h; default 1 min.
	UsageInterval time.Duration
}

// Validate fills in defaults and checks the rest.
func (c *ViewConfig) Validate() error {
	if c.StaleAfter == 0 {
		c.StaleAfter = defStaleAfter
	}
	if c.UsageInterval == 0 {
		c.UsageInterval = defUsageInterval
	}
	if c.UsageInterval < time.Millisecond || c.UsageInterval > time.Hour {
		return fmt.Errorf("config view: usage interval %v: must be 1 ms to 1 h", c.UsageInterval)
	}
	if c.StaleAfter < minStaleAfter {
		return fmt.Errorf("config view: stale after %v: must be at least %v", c.StaleAfter, minStaleAfter)
	}
	for _, p := range c.TrustedProxies {
		if !p.IsValid() {
			return errors.New("config view: a trusted proxy is not a valid address range")
		}
	}
	return c.Kafka.Validate()
}

// View is a live copy of the config topic. A change that was committed is seen by every view within milliseconds, by a
// broker that does not wake its readers within 250 ms. While Kafka is away a view answers from what it has, and says so
// in Ready.
type View struct {
	cfg     ViewConfig
	topic   string
	opts    []kgo.Opt
	logger  *slog.Logger
	metrics *viewMetrics
	usage   *usage

	// state is owned by Run.
	state *state
	// index is nil until everything that was there at start has been read; what it points at is never changed.
	index atomic.Pointer[index]

	mu sync.Mutex
	// changed is closed, and replaced, when the view has come further.
	changed chan struct{}
	// next is state.next of the published index.
	next int64
	// pending is an end of the topic that the view has not reached yet.
	pending *observation
	// currentAt is the latest moment of which the view is known to hold everything.
	currentAt time.Time
	// lastErr is why the view may not be current; nil while all is well.
	lastErr error
}

// observation is the end of the topic at a moment.
type observation struct {
	at  time.Time
	end int64
}

// NewView returns a View that is empty, and refuses everybody, until Run has read the config topic. reg may be nil.
func NewView(cfg ViewConfig, reg prometheus.Registerer, logger *slog.Logger) (*View, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	var s *sealer
	if !cfg.RedactionsOnly {
		var err error
		if s, err = newSealer(cfg.MasterKey); err != nil {
			return nil, fmt.Errorf("config view: %w", err)
		}
	}
	opts, err := cfg.Kafka.Options(logger)
	if err != nil {
		return nil, fmt.Errorf("config view: %w", err)
	}
	v := &View{
		cfg:    cfg,
		topic:  cfg.Kafka.Topic(schemas.TopicConfig),
		opts:   opts,
		logger: logger,
		state:  newState(s),

		changed: make(chan struct{}),
	}
	v.metrics = newViewMetrics(reg, v.age)
	v.usage = newUsage(cfg.Kafka)
	return v, nil
}

// Run follows the config topic until ctx ends, starting over where Kafka reports an error, and writes down which keys are
// used: at the end, within 2 s, what is not written yet. It returns nil.
func (v *View) Run(ctx context.Context) error {
	var usage sync.WaitGroup
	defer usage.Wait()
	if !v.cfg.RedactionsOnly {
		usage.Go(func() { v.usage.run(ctx, v.cfg.UsageInterval, v.opts, v.metrics, v.logger) })
	}
	for {
		err := v.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		v.logger.WarnContext(ctx, "config reader starts over", "error", err)
		v.metrics.restarts.Inc()
		v.fail(err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(restartWait):
		}
	}
}

// follow reads with one client from where the state stands. It returns at the first error.
func (v *View) follow(ctx context.Context) error {
	cl, err := kgo.NewClient(append(readOptions(v.topic, v.state.next), v.opts...)...)
	if err != nil {
		return fmt.Errorf("open config reader: %w", err)
	}
	defer cl.Close()
	ctx, cancel := context.WithCancel(ctx)
	var watcher sync.WaitGroup
	defer watcher.Wait()
	defer cancel()

	changed := false
	each := func(r *kgo.Record, result outcome, err error) {
		changed = changed || result != outcomeIgnored
		v.metrics.records[result].Inc()
		if err != nil {
			v.logger.WarnContext(ctx, "config record cannot be used", "offset", r.Offset, "error", err)
		}
	}
	asked := time.Now()
	if err := v.state.readTo(ctx, cl, v.topic, each); err != nil {
		return err
	}
	v.publish(true)
	v.observe(observation{at: asked, end: v.state.next})

	watcher.Go(func() { v.watch(ctx, cl) })
	for {
		changed = false
		if err := v.state.poll(ctx, cl, each); err != nil {
			return err
		}
		v.publish(changed)
	}
}

// watch compares the view with the end of the topic until ctx ends. It is what tells a topic without news from a reader
// that no longer reads.
func (v *View) watch(ctx context.Context, cl *kgo.Client) {
	tick := time.NewTicker(checkInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		at := time.Now()
		reqCtx, cancel := context.WithTimeout(ctx, requestTimeout)
		end, err := endOffset(reqCtx, cl, v.topic)
		cancel()
		if err != nil {
			v.fail(err)
			continue
		}
		v.observe(observation{at: at, end: end})
	}
}

// publish makes the state visible, and with it how far it goes.
func (v *View) publish(changed bool) {
	if changed && (v.state.stale || v.index.Load() == nil) {
		v.state.stale = false
		ix := newIndex(v.state)
		v.index.Store(ix)
		v.metrics.workspaces.Set(float64(len(ix.workspaces)))
		v.metrics.keys.Set(float64(ix.usableKeys))
	}
	if ix := v.index.Load(); ix != nil {
		redacted, broken := v.state.redactions.count()
		v.metrics.redactions.Set(float64(redacted))
		v.metrics.refused.Set(float64(ix.brokenObjects + broken))
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if changed || v.next != v.state.next {
		close(v.changed)
		v.changed = make(chan struct{})
	}
	v.next = v.state.next
	v.metrics.offset.Set(float64(v.next))
	if v.pending != nil && v.next >= v.pending.end {
		v.currentAt, v.pending = v.pending.at, nil
		v.metrics.lag.Set(0)
	}
}

// observe takes note of the end of the topic.
func (v *View) observe(o observation) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.lastErr = nil
	v.metrics.lag.Set(float64(max(0, o.end-v.next)))
	switch {
	case v.next >= o.end:
		v.currentAt, v.pending = o.at, nil
	case v.pending == nil:
		v.pending = &o
	}
}

func (v *View) fail(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.lastErr = err
}

// age returns how long ago the view was last known to be current, in seconds, and -1 before the first time.
func (v *View) age() float64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.currentAt.IsZero() {
		return -1
	}
	return time.Since(v.currentAt).Seconds()
}

// Ready returns nil once the view holds everything that was there at start, and an error that names the reason where it
// has not been current for StaleAfter, or where the master key opens no workspace.
func (v *View) Ready(context.Context) error {
	ix := v.index.Load()
	v.mu.Lock()
	defer v.mu.Unlock()
	why := v.lastErr
	switch {
	case ix == nil && why == nil:
		return errors.New("the config topic has not been read yet")
	case ix == nil:
		return fmt.Errorf("the config topic has not been read yet: %w", why)
	case time.Since(v.currentAt) > v.cfg.StaleAfter:
		if why == nil {
			why = fmt.Errorf("%d records behind, at offset %d", v.pending.behind(v.next), v.next)
		}
		return fmt.Errorf("config was last current %v ago: %w", time.Since(v.currentAt).Round(time.Second), why)
	case ix.broken != nil && len(ix.workspaces) == 0:
		return ix.broken
	}
	return nil
}

func (o *observation) behind(next int64) int64 {
	if o == nil {
		return 0
	}
	return o.end - next
}

// Workspace returns a workspace by its id.
func (v *View) Workspace(id [16]byte) (*Workspace, bool) {
	if ix := v.index.Load(); ix != nil {
		w, ok := ix.workspaces[id]
		return w, ok
	}
	return nil, false
}

// WorkspaceByName returns a workspace by its name.
func (v *View) WorkspaceByName(name string) (*Workspace, bool) {
	if ix := v.index.Load(); ix != nil {
		w, ok := ix.names[name]
		return w, ok
	}
	return nil, false
}

// Workspaces returns all workspaces in the order of their names.
func (v *View) Workspaces() []*Workspace {
	if ix := v.index.Load(); ix != nil {
		return slices.Clone(ix.sorted)
	}
	return nil
}

// Keys returns the keys of a workspace in the order of their creation, without those revoked.
func (v *View) Keys(workspace [16]byte) []*Key {
	if ix := v.index.Load(); ix != nil {
		return slices.Clone(ix.keys[workspace])
	}
	return nil
}

// Key returns a key of a workspace by its id, unless it was revoked.
func (v *View) Key(workspace, id [16]byte) (*Key, bool) {
	if ix := v.index.Load(); ix != nil {
		for _, k := range ix.keys[workspace] {
			if k.ID == id {
				return k, true
			}
		}
	}
	return nil, false
}

// LastUsed returns when a key was last good for a request: here, or elsewhere as far as it was written down. It is zero for
// a key that never was. known is false until what was written down before has been read.
func (v *View) LastUsed(id [16]byte) (at time.Time, known bool) {
	return v.usage.last(id), v.usage.complete.Load()
}

// Await waits until condition, which asks this view, is true, and is for those who have made a change and want to see
// it. It returns the error of ctx where that ends first.
func (v *View) Await(ctx context.Context, condition func() bool) error {
	for {
		v.mu.Lock()
		changed := v.changed
		v.mu.Unlock()
		if condition() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Redactions returns what was redacted, for as long as the view runs.
func (v *View) Redactions() *Redactions { return v.state.redactions }

// Current waits until the view holds everything that was committed before the call. It returns the error of ctx where
// that ends first, and one of Kafka's where it cannot be asked.
func (v *View) Current(ctx context.Context) error {
	cl, err := kgo.NewClient(v.opts...)
	if err != nil {
		return fmt.Errorf("open config reader: %w", err)
	}
	defer cl.Close()
	end, err := endOffset(ctx, cl, v.topic)
	if err != nil {
		return err
	}
	return v.Await(ctx, func() bool {
		v.mu.Lock()
		defer v.mu.Unlock()
		return v.index.Load() != nil && v.next >= end
	})
}

// index is the state arranged for the questions that are asked of it.
type index struct {
	workspaces  map[[16]byte]*Workspace
	names       map[string]*Workspace
	sorted      []*Workspace
	keys        map[[16]byte][]*Key
	credentials map[[32]byte]*credential
	usableKeys  int
	// broken is why one of brokenObjects cannot be used.
	broken        error
	brokenObjects int
}

// credential is what a key's text opens.
type credential struct {
	principal Principal
	// former is nil for the text that the key has now.
	former *FormerSecret
	// refusal is nil while the key may be used.
	refusal *httpserver.Error
}

// hash returns that of the text.
func (c *credential) hash() *[32]byte {
	if c.former != nil {
		return &c.former.Hash
	}
	return &c.principal.Key.Hash
}

// addFormer adds what the former texts of a key open.
func (ix *index) addFormer(p Principal, refusal *httpserver.Error) {
	for i := range p.Key.Former {
		f := &p.Key.Former[i]
		ix.credentials[f.Hash] = &credential{principal: p, former: f, refusal: refusal}
	}
}

// add adds what the text of a key opens.
func (ix *index) add(p Principal, refusal *httpserver.Error) {
	ix.credentials[p.Key.Hash] = &credential{principal: p, refusal: refusal}
}

func newIndex(s *state) *index {
	snap := s.snapshot()
	ix := &index{
		workspaces:  make(map[[16]byte]*Workspace, len(snap.Workspaces)),
		names:       make(map[string]*Workspace, len(snap.Workspaces)),
		sorted:      snap.Workspaces,
		keys:        make(map[[16]byte][]*Key, len(snap.Workspaces)),
		credentials: make(map[[32]byte]*credential, len(s.objects)),
		usableKeys:  len(snap.Keys),
	}
	for _, w := range snap.Workspaces {
		ix.workspaces[w.ID] = w
		ix.names[w.Name] = w
	}
	for _, o := range s.objects {
		if o.broken != nil && !o.deleted {
			ix.broken = o.broken
			ix.brokenObjects++
		}
		if o.key != nil && !o.usable() {
			ix.addFormer(Principal{Key: o.key}, refusalOf(o, nil))
			ix.add(Principal{Key: o.key}, refusalOf(o, nil))
		} else if o.key != nil && ix.workspaces[o.key.Workspace] == nil {
			owner := s.objects[recordKey(kindWorkspace, o.key.Workspace, o.key.Workspace)]
			ix.addFormer(Principal{Key: o.key}, refusalOf(o, owner))
			ix.add(Principal{Key: o.key}, refusalOf(o, owner))
		}
	}
	// Last, so that a key that can be used stands over anything else with its hash, its text over a former one.
	for _, k := range snap.Keys {
		ix.addFormer(Principal{Key: k, Workspace: ix.workspaces[k.Workspace]}, nil)
	}
	for _, k := range snap.Keys {
		ix.keys[k.Workspace] = append(ix.keys[k.Workspace], k)
		ix.add(Principal{Key: k, Workspace: ix.workspaces[k.Workspace]}, nil)
	}
	return ix
}
