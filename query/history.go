package query

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"golang.org/x/sync/errgroup"

	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/ledger"
)

// history makes maps of all chains as older epochs have them, of the leaves in ClickHouse, one after the other, and keeps some.
type history struct {
	// wanted are maps to be made. What does not find a place in it is refused.
	wanted chan *making

	mu     sync.Mutex
	making map[uint64]*making // by epoch: what is in wanted, or being made
	kept   []*chainMap        // the one that was used last comes last
	cost   int                // of kept, in chains
}

// making is a map that is to be made. m and err are set before done is closed.
type making struct {
	at   *snapshot
	done chan struct{}
	m    *chainMap
	err  error
}

const (
	// maxWanted bounds the maps that wait to be made.
	maxWanted = 64
	// mapCost is what a map costs besides its chains, in chains.
	mapCost = 16
	// settleTime is how old an epoch is when ClickHouse must hold all that it covers: its notary does not wait for those who write leaves.
	settleTime = time.Minute
)

func newHistory() *history {
	return &history{wanted: make(chan *making, maxWanted), making: map[uint64]*making{}}
}

// find returns a map that is kept; nil if it is not. It is called with the lock held.
func (h *history) find(epoch uint64) *chainMap {
	i := slices.IndexFunc(h.kept, func(m *chainMap) bool { return m.epoch == epoch })
	if i < 0 {
		return nil
	}
	m := h.kept[i]
	h.kept = append(slices.Delete(h.kept, i, i+1), m)
	return m
}

// keep keeps a map, and forgets others where together they have more than most chains. It is called with the lock held.
func (h *history) keep(m *chainMap, most int) {
	h.cost += len(m.chains) + mapCost
	h.kept = append(h.kept, m)
	for h.cost > most && len(h.kept) > 1 {
		h.cost -= len(h.kept[0].chains) + mapCost
		h.kept = slices.Delete(h.kept, 0, 1)
	}
}

// olderMap returns the map of an epoch. Where making it takes longer than ctx lets the request wait, the error is a 503, and it
// is there for the next one.
func (s *Service) olderMap(ctx context.Context, at *snapshot) (*chainMap, error) {
	if n := at.epoch.Epoch.Chains; n > uint64(s.cfg.MaxHistoryChains) {
		return nil, httpserver.ValidationFailed(fmt.Sprintf(
			"Epoch %d has %d chains: maps of older epochs are made of at most %d (a setting of the installation).", at.index, n, s.cfg.MaxHistoryChains))
	}
	w, m, err := s.history.want(at)
	switch {
	case m != nil:
		return m, nil
	case err != nil:
		return nil, s.unavailable(reasonBusy, "Too many maps of older epochs are being made: send it again.", err)
	}
	select {
	case <-w.done:
		return w.m, w.err
	case <-ctx.Done():
		return nil, s.unavailable(reasonHistory, "The map of an older epoch is being made: send it again.", ctx.Err())
	}
}

var errManyWanted = errors.New("too many maps are wanted")

// want returns a map that is kept, or has it made.
func (h *history) want(at *snapshot) (*making, *chainMap, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if m := h.find(at.index); m != nil {
		return nil, m, nil
	}
	if w := h.making[at.index]; w != nil {
		return w, nil, nil
	}
	w := &making{at: at, done: make(chan struct{})}
	select {
	case h.wanted <- w:
		h.making[at.index] = w
		return w, nil, nil
	default:
		return nil, nil, errManyWanted
	}
}

// makeMaps makes what is wanted until ctx ends.
func (s *Service) makeMaps(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case w := <-s.history.wanted:
			began := time.Now()
			w.m, w.err = s.makeMap(ctx, w.at)
			s.metrics.mapMaking.Observe(time.Since(began).Seconds())
			h := s.history
			h.mu.Lock()
			delete(h.making, w.at.index)
			if w.err == nil {
				h.keep(w.m, s.cfg.MaxHistoryChains)
			}
			h.mu.Unlock()
			close(w.done)
		}
	}
}

// state is what chains an epoch has, as far as it is known before their roots are.
type state struct {
	epoch     uint64
	positions []uint64
	chains    map[ledger.ChainID]chainRoot
}

// makeMap makes the map of an epoch, which must have the root that the epoch states.
func (s *Service) makeMap(ctx context.Context, at *snapshot) (*chainMap, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.HistoryTimeout)
	defer cancel()
	want := at.epoch.Epoch
	newest, err := s.roots.state()
	if err != nil {
		return nil, err
	}
	from := s.nearest(newest, want.Positions)
	sizes, err := s.sizesBetween(ctx, &from, at.index, want.Positions)
	if err != nil {
		return nil, err
	}
	m := &chainMap{
		chains: map[ledger.ChainID]*chainRoot{}, workspaces: map[[16]byte][]*chainRoot{}, epoch: at.index, known: true, positions: want.Positions,
	}
	var changed []*chainRoot
	for id, before := range from.chains {
		if _, ok := sizes[id]; !ok && before.size > 0 {
			m.chains[id] = &before
		}
	}
	for id, size := range sizes {
		c, ok := newest.chains[id]
		switch {
		case !ok && at.index > newest.epoch:
			return nil, fmt.Errorf("%w: chain %x of epoch %d, of which only epoch %d has been read", errMapUnknown, id, at.index, newest.epoch)
		case !ok:
			return nil, s.notThere(at, fmt.Errorf("chain %x is not in the newest epoch", id))
		case size == 0:
			continue
		}
		c.size = size
		m.chains[id] = &c
		changed = append(changed, &c)
	}
	if uint64(len(m.chains)) != want.Chains {
		return nil, s.notThere(at, fmt.Errorf("it states %d chains, there are %d", want.Chains, len(m.chains)))
	}
	if err := s.rootsOf(ctx, changed); isDamage(err) {
		return nil, s.notThere(at, err)
	} else if err != nil {
		return nil, err
	}
	for id, c := range m.chains {
		m.tree.Set(id, c.size, c.root)
		m.workspaces[c.workspace] = append(m.workspaces[c.workspace], c)
	}
	if root := m.tree.Root(); root != want.MapRoot {
		s.known.forget(slices.Collect(maps.Keys(sizes))...) // which of them is wrong cannot be told
		return nil, s.notThere(at, fmt.Errorf("its map root is %x, the chains give %x", want.MapRoot, root))
	}
	for _, of := range m.workspaces {
		slices.SortFunc(of, compareChains)
	}
	return m, nil
}

// notThere says that an epoch's map cannot be made: what is stored is damaged, unless the epoch is so young that its leaves may be about
// to be written.
func (s *Service) notThere(at *snapshot, err error) error {
	s.metrics.mapFailures.Inc()
	if time.Since(at.epoch.Time) < settleTime {
		return fmt.Errorf("%w: epoch %d: %v", errMapUnknown, at.index, err) //nolint:errorlint // it is no damage yet
	}
	return fmt.Errorf("%w: epoch %d: %w", errDamaged, at.index, err)
}

// state returns a copy of the newest epoch's chains.
func (r *roots) state() (state, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if err := r.usable(); err != nil {
		return state{}, err
	}
	n := state{r.serving.epoch, r.current.epoch.Epoch.Positions, make(map[ledger.ChainID]chainRoot, len(r.serving.chains))}
	for id, c := range r.serving.chains {
		n.chains[id] = *c
	}
	return n, nil
}

// nearest returns the known state with the fewest leaves between it and a cut: the newest, one that is kept, or the beginning.
func (s *Service) nearest(newest state, cut []uint64) state {
	best, least := state{}, distance(nil, cut)
	if d := distance(newest.positions, cut); d < least {
		best, least = newest, d
	}
	h := s.history
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range h.kept {
		d := distance(m.positions, cut)
		if d >= least {
			continue
		}
		best, least = state{epoch: m.epoch, positions: m.positions, chains: make(map[ledger.ChainID]chainRoot, len(m.chains))}, d
		for id, c := range m.chains {
			best.chains[id] = *c
		}
	}
	return best
}

// distance is the number of ledger offsets between two cuts.
func distance(a, b []uint64) (n uint64) {
	for p := range max(len(a), len(b)) {
		x, y := positionAt(a, p), positionAt(b, p)
		n += max(x, y) - min(x, y)
	}
	return n
}

// positionAt is 0 for a partition that there was not yet.
func positionAt(positions []uint64, p int) uint64 {
	if p < len(positions) {
		return positions[p]
	}
	return 0
}

// sizesBetween returns the sizes at an epoch's cut of those chains that have another one there than in a known state.
func (s *Service) sizesBetween(ctx context.Context, from *state, epoch uint64, cut []uint64) (map[ledger.ChainID]uint64, error) {
	later := from.chains == nil || from.epoch < epoch
	low, high := from.positions, cut
	if !later {
		low, high = cut, from.positions
	}
	sizes := map[ledger.ChainID]uint64{}
	if distance(low, high) == 0 {
		return sizes, nil
	}
	st := sizesStatement(low, high, later, limits{timeout: s.cfg.HistoryTimeout})
	err := s.run(ctx, statementSizes, st, func(rows driver.Rows) error {
		var id ledger.ChainID
		var size uint64
		err := rows.Scan((*[16]byte)(&id), &size)
		sizes[id] = size
		return err
	})
	return sizes, err
}

// sizesStatement asks for the sizes that chains have at the later of two cuts, or at the earlier one, where they differ. The outermost
// offsets are what the index of offsets understands.
func sizesStatement(low, high []uint64, later bool, l limits) *statement {
	least, most := ^uint64(0), uint64(0)
	from, to := make([]uint64, len(high)), make([]uint64, len(high))
	for p := range high {
		from[p], to[p] = positionAt(low, p), high[p]
		if from[p] < to[p] {
			least, most = min(least, from[p]), max(most, to[p])
		}
	}
	size := "min(sequence)"
	if later {
		size = "max(sequence) + 1"
	}
	st := selectChains("chain, " + size)
	st.and("ledger_offset >= ", st.bind("UInt64", least), " AND ledger_offset < ", st.bind("UInt64", most))
	st.and("ledger_offset >= arrayElement(", st.bind("Array(UInt64)", from), ", ledger_partition + 1) AND ledger_offset < arrayElement(",
		st.bind("Array(UInt64)", to), ", ledger_partition + 1)")
	st.write("\nGROUP BY chain")
	return st.settings(l)
}

const (
	// chainsAtOnce are the chains of which one statement reads hashes, and rootReaders the statements at the same time.
	chainsAtOnce = 512
	rootReaders  = 2
)

// rootsOf fills in the roots that chains have at their sizes.
func (s *Service) rootsOf(ctx context.Context, list []*chainRoot) error {
	slices.SortFunc(list, func(a, b *chainRoot) int { return bytes.Compare(a.chain[:], b.chain[:]) }) // as they are stored
	reading, ctx := errgroup.WithContext(ctx)
	reading.SetLimit(rootReaders)
	for some := range slices.Chunk(list, chainsAtOnce) {
		reading.Go(func() error { return s.someRoots(ctx, some) })
	}
	return reading.Wait()
}

// someRoots is rootsOf with one statement for each level.
func (s *Service) someRoots(ctx context.Context, list []*chainRoot) error {
	found := make([]map[nodeKey]ledger.Hash, maxLevels)
	for level := range maxLevels {
		wanted := map[ledger.ChainID][]ledger.Span{}
		for _, c := range list {
			for _, span := range ledger.PerfectSubtrees(c.size).Spans() {
				if span.Level == level {
					wanted[c.chain] = append(wanted[c.chain], span)
				}
			}
		}
		if len(wanted) == 0 {
			continue
		}
		var err error
		if found[level], err = s.levelOfChains(ctx, level, wanted); err != nil {
			return err
		}
	}
	for _, c := range list {
		plan := ledger.PerfectSubtrees(c.size)
		var stored [][]ledger.Hash
		for _, span := range plan.Spans() {
			hashes := make([]ledger.Hash, 0, span.To-span.From)
			for n := span.From; n < span.To; n++ {
				h, ok := found[span.Level][nodeKey{c.chain, span.Level, n}]
				if !ok {
					return fmt.Errorf("%w: chain %x: hash %d of level %d is missing", errDamaged, c.chain, n, span.Level)
				}
				hashes = append(hashes, h)
			}
			stored = append(stored, hashes)
		}
		subtrees, err := plan.Build(stored)
		if err != nil {
			return err
		}
		head := ledger.Head{Size: c.size, Range: subtrees}
		c.root = head.Root()
	}
	return nil
}

// rememberedFrom is the lowest level of which the maps of older epochs remember hashes: below it they read hundreds of each chain, which no other map
// needs and which would displace those of proofs.
const rememberedFrom = 2

// levelOfChains reads hashes of one level of several chains.
func (s *Service) levelOfChains(ctx context.Context, level int, wanted map[ledger.ChainID][]ledger.Span) (map[nodeKey]ledger.Hash, error) {
	found := map[nodeKey]ledger.Hash{}
	if level >= rememberedFrom {
		for id, spans := range wanted {
			known := map[uint64]ledger.Hash{}
			left := s.known.take(id, level, spans, known)
			for n, h := range known {
				found[nodeKey{id, level, n}] = h
			}
			if wanted[id] = left; len(left) == 0 {
				delete(wanted, id)
			}
		}
		if len(wanted) == 0 {
			return found, nil
		}
	}
	st := levelOfChainsStatement(level, wanted, limits{timeout: s.cfg.HistoryTimeout})
	read := map[ledger.ChainID]map[uint64]ledger.Hash{}
	err := s.run(ctx, statementMapHashes, st, func(rows driver.Rows) error {
		var id ledger.ChainID
		var index uint64
		var text string
		if err := rows.Scan((*[16]byte)(&id), &index, &text); err != nil {
			return err
		}
		k := nodeKey{id, level, (index+1)>>(8*level) - 1}
		known, twice := found[k]
		if len(text) != len(ledger.Hash{}) || twice && known != ledger.Hash([]byte(text)) {
			return fmt.Errorf("%w: chain %x: hash %d of level %d is %d bytes, or two", errDamaged, id, k.n, level, len(text))
		}
		found[k] = ledger.Hash([]byte(text))
		if read[id] == nil {
			read[id] = map[uint64]ledger.Hash{}
		}
		read[id][k.n] = found[k]
		s.metrics.hashesRead.Inc()
		return nil
	})
	if err == nil && level >= rememberedFrom {
		for id, hashes := range read {
			s.known.put(id, level, hashes)
		}
	}
	return found, err
}

// levelOfChainsStatement asks for the stored hashes of spans of one level of several chains. A condition for each chain would take ClickHouse
// longer to understand than to answer; a set of primary keys does not.
func levelOfChainsStatement(level int, wanted map[ledger.ChainID][]ledger.Span, l limits) *statement {
	hash := "leaf_hash"
	if level > 0 {
		hash = "substring(node, " + strconv.Itoa(32*(level-1)+1) + ", 32)"
	}
	var ids eventIDs
	var from, to []uint64
	for _, id := range slices.SortedFunc(maps.Keys(wanted), func(a, b ledger.ChainID) int { return bytes.Compare(a[:], b[:]) }) {
		for _, span := range wanted[id] {
			if n := len(ids); n > 0 && ids[n-1] == id && to[n-1] == span.From {
				to[n-1] = span.To
				continue
			}
			ids, from, to = append(ids, id), append(from, span.From), append(to, span.To)
		}
	}
	st := selectChains("chain, sequence, " + hash)
	st.and("(chain, sequence) IN (SELECT span.1, (arrayJoin(range(span.2, span.3)) + 1) * ", strconv.FormatUint(1<<(8*level), 10),
		" - 1 FROM (SELECT arrayJoin(arrayZip(", st.bindIDs(ids), ", ", st.bind("Array(UInt64)", from), ", ", st.bind("Array(UInt64)", to), ")) AS span))")
	return st.settings(l)
}

// compareChains orders the chains of a workspace.
func compareChains(a, b *chainRoot) int {
	return cmp.Or(bytes.Compare(a.incarnation[:], b.incarnation[:]), cmp.Compare(a.lane, b.lane))
}
