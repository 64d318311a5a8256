package query

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"golang.org/x/sync/errgroup"

	"getimmutable.dev/immutable/ledger"
)

// errDamaged says that what ClickHouse holds of the ledger is not what its hashes say. It is counted where it is answered.
var errDamaged = errors.New("what is stored of the ledger is damaged")

func isDamage(err error) bool { return errors.Is(err, errDamaged) }

// storedTree is where the hashes of one tree are: leaf hashes, and beside the last leaf of each complete subtree of 256^k
// leaves, k >= 1, its root.
type storedTree struct {
	name        string // for errors
	index, hash string // columns
	// from begins a statement on the tree's rows.
	from func(columns string) *statement
	// known has roots of subtrees that were read before; nil where everything is to be read.
	known *knownNodes
	chain ledger.ChainID
}

// knownNodes remembers the roots of complete subtrees. They lie far apart in ClickHouse, so that each of 65,536 leaves and more costs a range of its
// own, every proof in a chain needs those behind its newest leaf, and they never change. What is proved with one is verified like all else, and who
// finds that it does not hold has the chain's forgotten: a damaged one may have been repaired.
type knownNodes struct {
	mu    sync.Mutex
	nodes map[nodeKey]ledger.Hash
}

type nodeKey struct {
	chain ledger.ChainID
	level int
	n     uint64
}

// maxKnown is how many nodes are remembered, of about 150 bytes.
const maxKnown = 100_000

// take fills in what is known of a level, and returns what is left to be read.
func (k *knownNodes) take(chain ledger.ChainID, level int, spans []ledger.Span, into map[uint64]ledger.Hash) (left []ledger.Span) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, span := range spans {
		for n := span.From; n < span.To; n++ {
			if h, ok := k.nodes[nodeKey{chain, level, n}]; ok {
				into[n] = h
				continue
			}
			left = append(left, ledger.Span{Level: level, From: n, To: n + 1})
		}
	}
	return left
}

// put remembers what was read. When there is no room, some of the others are forgotten.
func (k *knownNodes) put(chain ledger.ChainID, level int, read map[uint64]ledger.Hash) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for n, h := range read {
		k.nodes[nodeKey{chain, level, n}] = h
	}
	for key := range k.nodes {
		if len(k.nodes) <= maxKnown {
			return
		}
		delete(k.nodes, key)
	}
}

// forget makes all of some chains be read again.
func (k *knownNodes) forget(chains ...ledger.ChainID) {
	of := make(map[ledger.ChainID]bool, len(chains))
	for _, id := range chains {
		of[id] = true
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	maps.DeleteFunc(k.nodes, func(key nodeKey, _ ledger.Hash) bool { return of[key.chain] })
}

func chainTree(workspace [16]byte, chain ledger.ChainID) storedTree {
	return storedTree{
		name: fmt.Sprintf("chain %x", chain), index: "sequence", hash: "leaf_hash", chain: chain,
		from: func(columns string) *statement {
			s := selectFrom(columns, "leaves", workspace)
			s.and("chain = ", s.bindID(chain))
			return s
		},
	}
}

func rootLogTree() storedTree {
	return storedTree{
		name: "root log", index: "entry_index", hash: "hash",
		from: func(columns string) *statement { return selectPublic(columns, "root_log") },
	}
}

// maxLevels is above the number of levels that a tree can have.
const maxLevels = 9

// hashes reads stored hashes, one statement for each level, and returns those of each span.
func (s *Service) hashes(ctx context.Context, t storedTree, spans []ledger.Span) ([][]ledger.Hash, error) {
	levels := map[int][]ledger.Span{}
	for _, span := range spans {
		levels[span.Level] = append(levels[span.Level], span)
	}
	// The levels are read side by side: what takes time is that their hashes lie apart.
	var reading errgroup.Group
	found := make([]map[uint64]ledger.Hash, maxLevels)
	for level, wanted := range levels {
		reading.Go(func() (err error) {
			found[level], err = s.level(ctx, t, level, wanted)
			return err
		})
	}
	if err := reading.Wait(); err != nil {
		return nil, err
	}
	all := make([][]ledger.Hash, len(spans))
	for i, span := range spans {
		all[i] = make([]ledger.Hash, 0, span.To-span.From)
		for n := span.From; n < span.To; n++ {
			h, ok := found[span.Level][n]
			if !ok {
				return nil, fmt.Errorf("%w: %s: hash %d of level %d is missing", errDamaged, t.name, n, span.Level)
			}
			all[i] = append(all[i], h)
		}
	}
	return all, nil
}

// level reads the hashes of one level, by their number in it.
func (s *Service) level(ctx context.Context, t storedTree, level int, spans []ledger.Span) (map[uint64]ledger.Hash, error) {
	found := map[uint64]ledger.Hash{}
	remember := t.known != nil && level > 0
	if remember {
		if spans = t.known.take(t.chain, level, spans, found); len(spans) == 0 {
			return found, nil
		}
	}
	st := levelStatement(t, level, spans, limits{timeout: s.cfg.RequestTimeout})
	err := s.run(ctx, statementHashes, st, func(rows driver.Rows) error {
		var index uint64
		var text string
		if err := rows.Scan(&index, &text); err != nil {
			return err
		}
		n := (index+1)>>(8*level) - 1
		known, twice := found[n]
		if len(text) != len(ledger.Hash{}) || twice && known != ledger.Hash([]byte(text)) {
			return fmt.Errorf("%w: %s: hash %d of level %d is %d bytes, or two", errDamaged, t.name, n, level, len(text))
		}
		found[n] = ledger.Hash([]byte(text))
		s.metrics.hashesRead.Inc()
		return nil
	})
	if err == nil && remember {
		t.known.put(t.chain, level, found)
	}
	return found, err
}

// levelStatement asks for the stored hashes of spans of one level.
func levelStatement(t storedTree, level int, spans []ledger.Span, l limits) *statement {
	spans = slices.Clone(spans)
	slices.SortFunc(spans, func(a, b ledger.Span) int { return cmp.Compare(a.From, b.From) })
	if level > 0 {
		var last []uint64 // leaves that have the hashes
		for _, span := range spans {
			for n := span.From; n < span.To; n++ {
				last = append(last, (n+1)<<(8*level)-1)
			}
		}
		st := t.from(t.index + ", substring(node, " + strconv.Itoa(32*(level-1)+1) + ", 32)")
		st.and(t.index, " IN ", st.bind("Array(UInt64)", slices.Compact(last)))
		return st.settings(l)
	}
	st := t.from(t.index + ", " + t.hash)
	var ranges []string
	for i := 0; i < len(spans); {
		from, to := spans[i].From, spans[i].To
		for i++; i < len(spans) && spans[i].From <= to; i++ {
			to = max(to, spans[i].To)
		}
		ranges = append(ranges, t.index+" BETWEEN "+st.bind("UInt64", from)+" AND "+st.bind("UInt64", to-1))
	}
	st.and(joinOr(ranges))
	return st.settings(l)
}

// checkpointRow is a row of the table checkpoints.
type checkpointRow struct {
	size      uint64
	root      ledger.Hash
	note      []byte
	witnesses uint16
	quorum    bool
	published int64 // microseconds since the Unix epoch
}

const checkpointColumns = "size, root, note, witnesses, quorum, toUnixTimestamp64Micro(published_at)"

func (c *checkpointRow) scan(rows driver.Rows) error {
	return rows.Scan(&c.size, (*[32]byte)(&c.root), &c.note, &c.witnesses, &c.quorum, &c.published)
}

// newestCheckpoint returns the one of the largest size, with the most cosignatures; nil if there is none.
func (s *Service) newestCheckpoint(ctx context.Context) (*checkpointRow, error) {
	return s.checkpoint(ctx, newestCheckpointStatement())
}

func newestCheckpointStatement() *statement {
	st := selectPublic(checkpointColumns, "checkpoints")
	st.write("\nORDER BY size DESC, witnesses DESC\nLIMIT 1")
	return st
}

// witnessedCheckpointStatement asks for the checkpoint of the largest size that has a cosignature, with the most of them.
func witnessedCheckpointStatement() *statement {
	st := selectPublic(checkpointColumns, "checkpoints")
	st.and("witnesses > 0")
	st.write("\nORDER BY size DESC, witnesses DESC\nLIMIT 1")
	return st
}

// checkpointAtStatement asks for the checkpoint of a size with the most cosignatures.
func checkpointAtStatement(size uint64) *statement {
	st := selectPublic(checkpointColumns, "checkpoints")
	st.and("size = ", st.bind("UInt64", size))
	st.write("\nORDER BY witnesses DESC\nLIMIT 1")
	return st
}

// checkpoint runs a statement for one checkpoint; nil if there is none.
func (s *Service) checkpoint(ctx context.Context, st *statement) (found *checkpointRow, err error) {
	err = s.run(ctx, statementCheckpoints, st.settings(limits{timeout: s.cfg.RequestTimeout}), func(rows driver.Rows) error {
		found = new(checkpointRow)
		return found.scan(rows)
	})
	return found, err
}

// entryRow is an entry of the root log, as stored.
type entryRow struct {
	index uint64
	text  []byte
}

// entries runs a statement for entries in order; one that is there twice comes once.
func (s *Service) entries(ctx context.Context, st *statement) (list []entryRow, err error) {
	err = s.run(ctx, statementEntries, st.settings(limits{timeout: s.cfg.RequestTimeout}), func(rows driver.Rows) error {
		var e entryRow
		if err := rows.Scan(&e.index, &e.text); err != nil {
			return err
		}
		if n := len(list); n > 0 && list[n-1].index == e.index {
			return nil
		}
		list = append(list, e)
		return nil
	})
	return list, err
}

const entryColumns = "entry_index, entry"

// entriesStatement asks for entries from one index to another, both among them.
func entriesStatement(first, last uint64) *statement {
	st := selectPublic(entryColumns, "root_log")
	st.and("entry_index BETWEEN ", st.bind("UInt64", first), " AND ", st.bind("UInt64", last))
	st.write("\nORDER BY entry_index")
	return st
}

// newestEpoch returns the last epoch before a size of the root log; nil if there is none.
func (s *Service) newestEpoch(ctx context.Context, size uint64) (*entryRow, error) {
	list, err := s.entries(ctx, newestEpochStatement(size))
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return &list[0], nil
}

func newestEpochStatement(size uint64) *statement {
	st := selectPublic(entryColumns, "root_log")
	st.and("type = 'epoch' AND entry_index < ", st.bind("UInt64", size))
	st.write("\nORDER BY entry_index DESC\nLIMIT 1")
	return st
}

// epochStatement asks for the epoch of an index.
func epochStatement(index uint64) *statement {
	st := selectPublic(entryColumns, "root_log")
	st.and("type = 'epoch' AND entry_index = ", st.bind("UInt64", index))
	st.write("\nLIMIT 1")
	return st
}

// maxKeyChanges bounds the key changes of a log that proofs are made of; a bundle may not have more.
const maxKeyChanges = 1000

// keyChanges returns the key changes before a size of the root log.
func (s *Service) keyChanges(ctx context.Context, size uint64) ([]entryRow, error) {
	return s.entries(ctx, keyChangesStatement(size))
}

func keyChangesStatement(size uint64) *statement {
	st := selectPublic(entryColumns, "root_log")
	st.and("type = 'key' AND entry_index < ", st.bind("UInt64", size))
	st.write("\nORDER BY entry_index\nLIMIT ", strconv.Itoa(2*maxKeyChanges))
	return st
}
