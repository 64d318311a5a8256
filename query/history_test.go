package query

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/transparency-dev/formats/proof"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/ledgertest"
	"getimmutable.dev/immutable/internal/notarytest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
)

// shownChains is an answer of GET /ledger/chains.
type shownChains struct {
	chainList

	at *proof.TLogProof
}

// chains gets the chains of a tenant.
func (r *rig) chains(t tenant, q url.Values) *shownChains {
	r.tb.Helper()
	a := r.get(t, "/api/v1/ledger/chains", q)
	if a.status != http.StatusOK {
		r.tb.Fatalf("chains?%s: %d %s\n%s", q.Encode(), a.status, a.body, r.log)
	}
	var c struct{ Data shownChains }
	if err := json.Unmarshal(a.body, &c); err != nil {
		r.tb.Fatal(err)
	}
	var err error
	if c.Data.at, err = ledger.ParseLogProof([]byte(c.Data.LogProof)); err != nil {
		r.tb.Fatal(err)
	}
	return &c.Data
}

// holds checks everything that an answer proves.
func (c *shownChains) holds(tb testing.TB, t tenant) {
	tb.Helper()
	stated, err := ledger.ParseCheckpoint(c.at.Checkpoint)
	if err != nil {
		tb.Fatal(err)
	}
	var path []ledger.Hash
	for _, h := range c.at.Hashes {
		path = append(path, h)
	}
	if err := ledger.VerifyInclusion(ledger.EntryHash([]byte(c.Epoch)), c.at.Index, stated.Size, path, stated.Root); err != nil {
		tb.Error(err)
	}
	e, err := ledger.ParseEntry([]byte(c.Epoch))
	if err != nil {
		tb.Fatal(err)
	}
	lanes := map[uint32]bool{}
	for _, is := range c.Chains {
		lanes[is.Lane] = true
		if err := is.Map.VerifyPresent(is.Chain, is.Size, is.Root, e.Epoch.MapRoot); err != nil {
			tb.Error(err)
		}
	}
	for _, is := range c.Absent {
		lanes[is.Lane] = true
		if want := ledger.NewChainID(t.workspace.ID, t.workspace.Incarnation, is.Lane); is.Chain != want {
			tb.Errorf("lane %d has chain %x, want %x", is.Lane, is.Chain, want)
		}
		if err := is.Map.VerifyAbsent(is.Chain, e.Epoch.MapRoot); err != nil {
			tb.Error(err)
		}
	}
	if c.Workspace != t.workspace.ID || c.Incarnation != t.workspace.Incarnation || c.Lanes != t.workspace.Lanes || len(lanes) != int(c.Lanes) {
		tb.Errorf("%d of %d lanes are shown, of workspace %x", len(lanes), c.Lanes, c.Workspace)
	}
}

// epochs enters six epochs, in which two workspaces grow.
func (r *rig) epochs(other tenant) (n *notary, indexes []uint64, sizes []uint64) {
	r.tb.Helper()
	l, m := r.newLoader(r.tenant), r.newLoader(other)
	n = r.newNotary()
	for i := range 6 {
		l.add(manyBodies(1 + 300*(i%3))...)
		m.offset = l.offset
		if i > 1 {
			m.add(manyBodies(40)...)
		}
		l.offset = m.offset
		n.Positions[0] = l.offset
		indexes = append(indexes, n.Log.Size)
		n.sign(append(l.chains(), m.chains()...))
		size := uint64(0)
		for _, c := range l.chains() {
			size += c.Size
		}
		sizes = append(sizes, size)
	}
	n.commit(n.Rotate(r.tb)...)
	n.sign(nil)
	return n, indexes, sizes
}

func TestOlderChains(t *testing.T) {
	r := newRig(t)
	other := r.newTenant("other")
	n, indexes, sizes := r.epochs(other)
	for _, i := range []int{5, 0, 3, 2, 4, 1, 3} {
		q := values("epoch", fmt.Sprint(indexes[i]))
		for _, who := range []tenant{r.tenant, other} {
			c := r.chains(who, q)
			c.holds(t, who)
			if c.at.Index != indexes[i] {
				t.Errorf("epoch %d, want %d", c.at.Index, indexes[i])
			}
			size := uint64(0)
			for _, is := range c.Chains {
				size += is.Size
			}
			if who == other && (i < 2) != (len(c.Chains) == 0) || who != other && size != sizes[i] {
				t.Errorf("epoch %d: %d chains of %d leaves, want %d", indexes[i], len(c.Chains), size, sizes[i])
			}
		}
	}
	c := r.chains(r.tenant, values("epoch", fmt.Sprint(indexes[1]), "checkpoint", fmt.Sprint(indexes[2]+1)))
	c.holds(t, r.tenant)
	if stated, err := ledger.ParseCheckpoint(c.at.Checkpoint); err != nil || stated.Size != indexes[2]+1 {
		t.Errorf("checkpoint of size %d: %v", stated.Size, err)
	}
	r.chains(r.tenant, values("checkpoint", fmt.Sprint(indexes[3]+1))).holds(t, r.tenant)
	for query, want := range map[string]int{
		"epoch=0": 404, "epoch=" + fmt.Sprint(n.Log.Size): 404, "epoch=9007199254740991": 404, "epoch=-1": 422, "epoch=01": 422, "epoch=x": 422,
		"epoch=9007199254740992": 422, "epoch=1&epoch=2": 400, "checkpoint=1000": 404, "checkpoint=2&epoch=2": 404, "checkpoint=0": 404,
		"checkpoint=2&witnessed=true": 422, "witnessed=yes": 422, "witnessed=true": 404, "nonsense=1": 400,
	} {
		if a := r.do(r.token, http.MethodGet, "/api/v1/ledger/chains?"+query); a.status != want {
			t.Errorf("%s: %d %s, want %d", query, a.status, a.body, want)
		}
	}
}

// Maps are kept up to a limit, and made again.
func TestOlderMapsAreBounded(t *testing.T) {
	r := newRig(t)
	_, indexes, _ := r.epochs(r.newTenant("other"))
	r.service.cfg.MaxHistoryChains = 2*mapCost + 8
	for range 2 {
		for _, index := range indexes[:5] {
			r.chains(r.tenant, values("epoch", fmt.Sprint(index))).holds(t, r.tenant)
		}
	}
	h := r.service.history
	h.mu.Lock()
	if cost := h.cost; cost > r.service.cfg.MaxHistoryChains || len(h.kept) == 0 || len(h.making) > 0 {
		t.Errorf("maps of %d chains are kept", cost)
	}
	h.mu.Unlock()
	r.service.cfg.MaxHistoryChains = 1
	a := r.get(r.tenant, "/api/v1/ledger/chains", values("epoch", fmt.Sprint(indexes[4])))
	if a.status != http.StatusUnprocessableEntity || !strings.Contains(string(a.body), "at most 1 ") {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// What was written anew since an epoch is no proof of it: a 500 that is counted.
func TestOlderChainsOfDamage(t *testing.T) {
	r := newRig(t)
	_, indexes, _ := r.epochs(r.newTenant("other"))
	for _, statement := range []string{
		"ALTER TABLE leaves UPDATE leaf_hash = unhex(repeat('ab', 32)) WHERE sequence = 0",
		"ALTER TABLE leaves DELETE WHERE sequence = 1",
	} {
		r.exec(t.Context(), statement+" SETTINGS mutations_sync = 1")
		a := r.get(r.tenant, "/api/v1/ledger/chains", values("epoch", fmt.Sprint(indexes[0])))
		if a.status != http.StatusInternalServerError || !strings.Contains(string(a.body), "does not match its hashes") {
			t.Errorf("%s: %d %s", statement, a.status, a.body)
		}
	}
	if r.counter("immutable_query_older_map_mismatches_total") != 2 || r.counter("immutable_query_damaged_total") != 2 {
		t.Error("it is not counted")
	}
	// Its newest epoch is another thing: it is known from Kafka.
	r.chains(r.tenant, nil).holds(t, r.tenant)
}

// A map that meets the root of a damaged subtree has it forgotten, also where the epoch is too young for that to be called damage: when it is repaired, the
// map is made. What is remembered of other chains stays.
func TestOlderChainsOfRepairedDamage(t *testing.T) {
	t.Parallel()
	const size = 65_536 + 300
	for name, tc := range map[string]struct {
		start  time.Time
		status int
	}{
		"old":   {epoch, http.StatusInternalServerError},
		"young": {time.Now().UTC().Truncate(time.Microsecond).Add(time.Hour), http.StatusServiceUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			n := r.newNotary()
			n.Start = tc.start
			c, _ := r.synthetic(r.tenant, size)
			n.Positions[0] = size
			index := n.Log.Size
			n.sign([]notarytest.Chain{c})
			// One leaf more, the last one's hash again.
			r.exec(t.Context(), "INSERT INTO leaves SELECT * REPLACE (sequence + 1 AS sequence, ledger_offset + 1 AS ledger_offset) FROM leaves WHERE input_offset = ?",
				size-1)
			c.AppendHash(c.LastLeafHash)
			n.Positions[0]++
			n.sign([]notarytest.Chain{c})
			r.eventually("the newer epoch is read", func() bool {
				at, _, err := r.service.roots.chainsOf(r.workspace.ID)
				return err == nil && at.index > index
			})
			other := ledger.ChainID{1}
			r.service.known.put(other, rememberedFrom, map[uint64]ledger.Hash{0: {}})
			flip := func() {
				r.exec(t.Context(), "ALTER TABLE leaves UPDATE node = reverse(node) WHERE sequence = 65535 SETTINGS mutations_sync = 1")
			}
			flip()
			q := values("epoch", fmt.Sprint(index))
			if a := r.get(r.tenant, "/api/v1/ledger/chains", q); a.status != tc.status || r.counter("immutable_query_older_map_mismatches_total") != 1 {
				t.Errorf("%d %s", a.status, a.body)
			}
			flip()
			r.chains(r.tenant, q).holds(t, r.tenant)
			if !r.knows(c.Chain, 2, 0) || !r.knows(other, rememberedFrom, 0) {
				t.Error("the root of 65,536 leaves is not remembered, or another chain's is forgotten")
			}
		})
	}
}

// An epoch that ClickHouse has and this instance has not read from Kafka is not damaged, though it has chains that nobody here knows: a 503 until it
// is read.
func TestChainsOfAnEpochNotReadYet(t *testing.T) {
	r := newRig(t)
	l := r.newLoader(r.tenant)
	l.add(manyBodies(1)...)
	n := r.newNotary()
	n.Positions[0] = l.offset
	n.sign(l.chains())
	l.add(manyBodies(40)...)
	n.Positions[0] = l.offset
	index := n.Log.Size
	behind := [][]*kgo.Record{n.Epoch(t, l.chains()...), {n.Checkpoint(t)}}
	for _, rec := range slices.Concat(behind...) {
		if rec.Topic == schemas.TopicCheckpoints {
			r.writeLog(rec)
		}
	}
	q := values("epoch", fmt.Sprint(index))
	a := r.get(r.tenant, "/api/v1/ledger/chains", q)
	if a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" || r.labelled("immutable_query_unavailable_total", "map") != 1 {
		t.Errorf("%d %s", a.status, a.body)
	}
	if r.counter("immutable_query_older_map_mismatches_total") != 0 || r.counter("immutable_query_damaged_total") != 0 {
		t.Error("it counts as damage")
	}
	for _, records := range behind {
		notarytest.Commit(t, r.kafka, records...)
	}
	n.await()
	r.eventually("the epoch is read", func() bool { return r.get(r.tenant, "/api/v1/ledger/chains", q).status == http.StatusOK })
	r.chains(r.tenant, q).holds(t, r.tenant)
}

// A map takes longer than a request waits.
func TestOlderMapTakesLong(t *testing.T) {
	r := newRig(t)
	_, indexes, _ := r.epochs(r.newTenant("other"))
	h := r.service.history
	h.mu.Lock()
	for i := range maxWanted {
		h.making[1<<60+uint64(i)] = &making{}
	}
	h.making[indexes[1]] = &making{done: make(chan struct{})} // never made
	h.mu.Unlock()
	r.service.cfg.RequestTimeout /= 10
	a := r.get(r.tenant, "/api/v1/ledger/chains", values("epoch", fmt.Sprint(indexes[1])))
	if a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" || r.labelled("immutable_query_unavailable_total", "history") != 1 {
		t.Errorf("%d %s", a.status, a.body)
	}
	full := newHistory()
	for i := range maxWanted {
		if _, _, err := full.want(&snapshot{index: uint64(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := full.want(&snapshot{index: maxWanted}); err == nil {
		t.Error("more maps are wanted than may be")
	}
}

// While witnesses do not answer, the newest checkpoint that one has signed is served.
func TestWitnessed(t *testing.T) {
	r := newRig(t)
	l := r.newLoader(r.tenant)
	n := r.newNotary()
	none := r.do("", http.MethodGet, "/api/v1/ledger/checkpoint?witnessed=true")
	if none.status != http.StatusNotFound {
		t.Errorf("%d %s", none.status, none.body)
	}
	sign := func(witnesses ...ledgertest.Key) {
		n.Positions[0] = l.offset
		if len(witnesses) > 0 {
			n.sign(l.chains(), witnesses[0])
		} else {
			n.sign(l.chains())
		}
	}
	first := l.add(manyBodies(20)...)[7]
	sign(ledgertest.NewWitness("one.example", 11))
	size := n.Log.Size
	l.add(manyBodies(30)...)
	sign()
	late := l.add(manyBodies(30)...)[29]
	sign()
	signed := r.do("", http.MethodGet, "/api/v1/ledger/checkpoint?witnessed=true")
	c, err := ledger.ParseCheckpoint(signed.body)
	if err != nil || c.Size != size {
		t.Errorf("%v %s", err, signed.body)
	}
	older := r.chains(r.tenant, values("witnessed", "true"))
	older.holds(t, r.tenant)
	if string(older.at.Checkpoint) != string(signed.body) || older.at.Index != size-1 {
		t.Errorf("%s", older.LogProof)
	}
	for id, want := range map[string]int{first.id: 200, late.id: 409} {
		a := r.get(r.tenant, "/api/v1/events/"+id+"/proof", values("witnessed", "true"))
		if a.status != want {
			t.Errorf("%d %s", a.status, a.body)
		}
		if want != http.StatusOK {
			continue
		}
		b, err := ledger.ParseBundle(a.body)
		if err != nil {
			t.Fatal(err)
		}
		r.holds(b, n.trust(t))
		if !strings.Contains(b.LogProof, "one.example") {
			t.Error(b.LogProof)
		}
	}
	for query, want := range map[string]int{"witnessed=1": 422, "epoch=1": 400, "witnessed=false": 200} {
		if a := r.do("", http.MethodGet, "/api/v1/ledger/checkpoint?"+query); a.status != want {
			t.Errorf("%s: %d %s", query, a.status, a.body)
		}
	}
}

func FuzzParseAsked(f *testing.F) {
	f.Add("epoch=7&checkpoint=9&witnessed=false")
	f.Add("witnessed=true")
	f.Fuzz(func(t *testing.T, query string) {
		q, err := parseAsked(query, paramEpoch, paramCheckpoint, paramWitnessed)
		if err != nil {
			refusal(t, err)
			return
		}
		if q.witnessed && q.checkpoint != nil || q.epoch != nil && *q.epoch > ledger.MaxIndex {
			t.Errorf("%s: %+v", query, q)
		}
	})
}
