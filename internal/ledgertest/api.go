package ledgertest

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/transparency-dev/formats/proof"

	"getimmutable.dev/immutable/ledger"
)

// Server serves a ledger as the API does, to the holder of APIKey, who belongs to one workspace. Replace Ledger under the lock between two requests to
// show another one.
type Server struct {
	sync.Mutex

	Ledger    *Ledger
	Workspace [16]byte
	// Key is the API key that is taken; empty for APIKey.
	Key string
	// Incarnation and Lanes of the workspace; where Lanes is 0, those of its last chain.
	Incarnation [16]byte
	Lanes       uint32
	// Hidden chains are left out of every answer.
	Hidden map[ledger.ChainID]bool
	// Refuse, where set, says which requests are answered 503.
	Refuse func(uri string) bool
	// Spoil, where set, changes the answer to a path before it is sent. The path has a query where that asks for an epoch or for witnesses.
	Spoil func(path string, answer []byte) []byte
}

// APIKey is the key that Server takes.
const APIKey = "imk_test"

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.Lock()
	defer s.Unlock()
	path, ok := strings.CutPrefix(r.URL.Path, "/api/v1")
	if !ok {
		http.NotFound(w, r)
		return
	}
	var answer []byte
	var err error
	q := r.URL.Query()
	asked := path
	if q.Has("epoch") || q.Has("witnessed") {
		asked += "?" + r.URL.RawQuery
	}
	if s.Refuse != nil && s.Refuse(asked) {
		http.Error(w, "unavailable", http.StatusServiceUnavailable)
		return
	}
	switch {
	case path == "/ledger/checkpoint":
		size := s.Ledger.newestSize()
		if q.Get("witnessed") == "true" {
			size = s.Ledger.witnessed()
		}
		answer = s.Ledger.Checkpoints[size]
	case strings.HasPrefix(path, "/ledger/tile/"):
		answer, err = s.Ledger.tile(strings.TrimPrefix(path, "/ledger/tile/"))
	case r.Header.Get("Authorization") != "Bearer "+cmp.Or(s.Key, APIKey):
		http.Error(w, "unauthorized", http.StatusUnauthorized)
		return
	case path == "/ledger/chains":
		answer, err = s.chains(q)
	case path == "/ledger/leaves":
		answer, err = s.leaves(r)
	default:
		err = fmt.Errorf("no such path: %s", path)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	if s.Spoil != nil {
		answer = s.Spoil(asked, answer)
	}
	_, _ = w.Write(answer) //nolint:gosec // to a test
}

// tile answers C2SP tlog-tiles.
func (l *Ledger) tile(path string) ([]byte, error) {
	level, name, _ := strings.Cut(path, "/")
	name, partial, _ := strings.Cut(name, ".p/")
	width := uint64(256)
	if partial != "" {
		width, _ = strconv.ParseUint(partial, 10, 64)
	}
	var n uint64
	for part := range strings.SplitSeq(name, "/") {
		digits, err := strconv.ParseUint(strings.TrimPrefix(part, "x"), 10, 64)
		if err != nil {
			return nil, err
		}
		n = n*1000 + digits
	}
	from, to := n*256, n*256+width
	var b []byte
	if level == "entries" {
		if to > uint64(len(l.Entries)) {
			return nil, fmt.Errorf("there are %d entries", len(l.Entries))
		}
		for _, e := range l.Entries[from:to] {
			b = append(binary.BigEndian.AppendUint16(b, uint16(len(e))), e...)
		}
		return b, nil
	}
	k, err := strconv.Atoi(level)
	if err != nil || k >= len(l.levels) || to > uint64(len(l.levels[k])) {
		return nil, fmt.Errorf("no tile %s", path)
	}
	for _, h := range l.levels[k][from:to] {
		b = append(b, h[:]...)
	}
	return b, nil
}

// path proves an entry in the root log as it was at a size.
func (l *Ledger) path(index, size uint64) ([]ledger.Hash, error) {
	p, err := ledger.PlanInclusion(index, size)
	if err != nil {
		return nil, err
	}
	return build(p, l.levels)
}

func build(p *ledger.ProofPlan, levels [][]ledger.Hash) ([]ledger.Hash, error) {
	var stored [][]ledger.Hash
	for _, s := range p.Spans() {
		stored = append(stored, append([]ledger.Hash(nil), levels[s.Level][s.From:s.To]...))
	}
	return p.Build(stored)
}

// lastEpoch is the index of the newest epoch before a size.
func (l *Ledger) lastEpoch(size uint64) uint64 {
	i := size - 1
	for l.steps[i].key != nil {
		i--
	}
	return i
}

// proofs returns what proves an epoch by the checkpoint of a size.
func (l *Ledger) proofs(index, size uint64) (epoch, logProof string, keys []ledger.BundleKey, err error) {
	signed, ok := l.Checkpoints[size]
	if !ok || index >= size || l.steps[index].key != nil {
		return "", "", nil, fmt.Errorf("no epoch %d, or no checkpoint of size %d", index, size)
	}
	path, err := l.path(index, size)
	if err != nil {
		return "", "", nil, err
	}
	p := proof.TLogProof{Index: index, Checkpoint: signed}
	for _, h := range path {
		p.Hashes = append(p.Hashes, h)
	}
	for i, s := range l.steps[:size] {
		if s.key == nil {
			continue
		}
		path, err := l.path(uint64(i), size)
		if err != nil {
			return "", "", nil, err
		}
		keys = append(keys, ledger.BundleKey{Entry: string(l.Entries[i]), Path: path})
	}
	return string(l.Entries[index]), string(p.Marshal()), keys, nil
}

// witnessed is the size of the newest checkpoint that a witness has signed, 0 where there is none.
func (l *Ledger) witnessed() (newest uint64) {
	for size, signed := range l.Checkpoints {
		if size > newest && bytes.Count(signed, []byte("\n— ")) > 1 {
			newest = size
		}
	}
	return newest
}

// newestSize is that of the newest checkpoint.
func (l *Ledger) newestSize() (newest uint64) {
	for size := range l.Checkpoints {
		newest = max(newest, size)
	}
	return newest
}

// chains answers GET /ledger/chains.
func (s *Server) chains(q url.Values) ([]byte, error) {
	l := s.Ledger
	size := l.newestSize()
	if q.Get("witnessed") == "true" {
		size = l.witnessed()
	}
	if q.Has("checkpoint") {
		size, _ = strconv.ParseUint(q.Get("checkpoint"), 10, 64)
	}
	if l.Checkpoints[size] == nil {
		return nil, fmt.Errorf("no such checkpoint")
	}
	index := l.lastEpoch(size)
	if q.Has("epoch") {
		index, _ = strconv.ParseUint(q.Get("epoch"), 10, 64)
	}
	epoch, logProof, keys, err := l.proofs(index, size)
	if err != nil {
		return nil, err
	}
	incarnation, lanes := s.Incarnation, s.Lanes
	chains, absent, there := []map[string]any{}, []map[string]any{}, map[ledger.ChainID]bool{}
	for i, c := range l.Chains {
		if c.Workspace != s.Workspace {
			continue
		}
		if s.Lanes == 0 {
			incarnation, lanes = c.Incarnation, c.Lanes
		}
		if i >= len(l.stated[index]) || l.stated[index][i].size == 0 {
			continue
		}
		is := l.stated[index][i]
		if there[c.ID] = true; s.Hidden[c.ID] {
			continue
		}
		chains = append(chains, map[string]any{
			"workspace": ledger.Hex16(c.Workspace), "incarnation": ledger.Hex16(c.Incarnation), "lane": c.Lane, "lanes": c.Lanes, "chain": c.ID,
			"size": is.size, "root": is.root, "map": l.maps[index].Prove(c.ID),
		})
	}
	for lane := range lanes {
		if id := ledger.NewChainID(s.Workspace, incarnation, lane); !there[id] {
			absent = append(absent, map[string]any{"lane": lane, "chain": id, "map": l.maps[index].Prove(id)})
		}
	}
	return json.Marshal(map[string]any{"data": map[string]any{
		"workspace": ledger.Hex16(s.Workspace), "incarnation": ledger.Hex16(incarnation), "lanes": lanes, "epoch": epoch, "log_proof": logProof, "keys": keys,
		"chains": chains, "absent": absent,
	}})
}

// leaves answers GET /ledger/leaves.
func (s *Server) leaves(r *http.Request) ([]byte, error) {
	from, _ := strconv.Atoi(r.URL.Query().Get("from"))
	limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
	for _, c := range s.Ledger.Chains {
		if fmt.Sprintf("%x", c.ID) != r.URL.Query().Get("chain") || c.Workspace != s.Workspace {
			continue
		}
		var b []byte
		next := from
		i := 0
		for i < len(c.Leaves) && c.Leaves[i].Sequence < uint64(from) {
			i++
		}
		for ; i < len(c.Leaves) && limit > 0; limit-- {
			line, err := c.line(&c.Leaves[i])
			if err != nil {
				return nil, err
			}
			b = append(append(b, line...), '\n')
			next = int(c.Leaves[i].Sequence) + 1
			i++
		}
		return fmt.Appendf(b, `{"next":%d,"more":%t}`+"\n", next, i < len(c.Leaves)), nil
	}
	return nil, fmt.Errorf("no such chain")
}

// bundleLeaf describes a leaf with its content.
func (c *Chain) bundleLeaf(f *Leaf) ledger.BundleLeaf {
	b := ledger.NewBundleLeaf(&f.Leaf, c.Workspace, c.Incarnation, c.Lane)
	if f.Kind == ledger.KindGenesis {
		return b
	}
	if f.Disclosure != nil {
		b.Disclosure = slices.Clone(f.Disclosure)
		return b
	}
	seed := ledger.Hex16(f.Seed)
	b.Body, b.Seed = string(f.Body), &seed
	return b
}

// line is a line of GET /ledger/leaves.
func (c *Chain) line(f *Leaf) ([]byte, error) {
	text, err := json.Marshal(c.bundleLeaf(f))
	if err != nil {
		return nil, err
	}
	members := map[string]any{}
	if err := json.Unmarshal(text, &members); err != nil {
		return nil, err
	}
	delete(members, "path")
	members["recorded_at"] = c.bundleLeaf(f).RecordedAt
	for name, n := range map[string]uint64{"sequence": f.Sequence, "offset": f.Offset} {
		members[name] = n
	}
	members["leaf_hash"], members["ledger_partition"], members["ledger_offset"] = f.Hash, c.Partition, f.LedgerOffset
	if len(f.Node) > 0 {
		members["node"] = fmt.Sprintf("%x", join(f.Node))
	}
	if f.Kind == ledger.KindGenesis {
		members["lanes"] = c.Lanes
	}
	return json.Marshal(members)
}

// Bundle proves a leaf by the newest epoch.
func (l *Ledger) Bundle(c *Chain, sequence uint64) (*ledger.Bundle, error) {
	index := l.lastEpoch(l.newestSize())
	var is stated
	for i := range l.Chains {
		if l.Chains[i] == c {
			is = l.stated[index][i]
		}
	}
	size := is.size
	b := &ledger.Bundle{Size: size, Root: is.root, Map: l.maps[index].Prove(c.ID)}
	var err error
	if b.Epoch, b.LogProof, b.Keys, err = l.proofs(index, l.newestSize()); err != nil {
		return nil, err
	}
	levels := [][]ledger.Hash{nil}
	var head ledger.Head
	for i := range c.Leaves[:size] {
		levels[0] = append(levels[0], c.Leaves[i].Hash)
		for k, h := range head.AppendHash(c.Leaves[i].Hash) {
			if len(levels) == k+1 {
				levels = append(levels, nil)
			}
			levels[k+1] = append(levels[k+1], h)
		}
	}
	prove := func(sequence uint64) (ledger.BundleLeaf, error) {
		leaf := c.bundleLeaf(&c.Leaves[sequence])
		p, err := ledger.PlanInclusion(sequence, size)
		if err == nil {
			leaf.Path, err = build(p, levels)
		}
		return leaf, err
	}
	if b.BundleLeaf, err = prove(sequence); err != nil {
		return nil, err
	}
	for i := range c.Leaves[:size] {
		if c.Leaves[i].Kind == ledger.KindRedaction {
			r, err := prove(uint64(i))
			if err != nil {
				return nil, err
			}
			b.Redactions = append(b.Redactions, r)
		}
	}
	return b, nil
}
