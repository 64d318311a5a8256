package ledger

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// stored returns the leaves of a chain as a store gives them, without what some stores do not keep.
func (c *testChainLog) stored(tb testing.TB) []StoredLeaf {
	tb.Helper()
	var all []StoredLeaf
	var head Head
	for i := range c.leaves {
		l, err := c.leaves[i].Leaf()
		if err != nil {
			tb.Fatal(err)
		}
		l.Previous, l.FieldCount, l.BodyRoot = Hash{}, 0, Hash{}
		s := StoredLeaf{Leaf: *l, Hash: c.hashes[i], Node: head.AppendHash(c.hashes[i]), LedgerOffset: 100 + 2*uint64(i), Body: []byte(c.leaves[i].Body)}
		if c.leaves[i].Seed != nil {
			s.Seed = *c.leaves[i].Seed
		}
		s.Disclosure = c.leaves[i].Disclosure
		all = append(all, s)
	}
	return all
}

func (c *testChainLog) identity() ChainIdentity {
	return ChainIdentity{testWorkspace, testIncarnation, c.lane, 4}
}

// verifyStored runs the verifier, with a mark at the chain's true size unless there are others.
func verifyStored(c *testChainLog, leaves []StoredLeaf, marks ...Mark) (faults []string, v *ChainVerifier) {
	if marks == nil {
		root := c.Root()
		marks = []Mark{{Size: c.Size, Want: &root}}
	}
	v = NewChainVerifier(c.identity(), marks, func(f *Fault) { faults = append(faults, f.String()) })
	var h ContentHasher
	for i := range leaves {
		h.Digest(&leaves[i])
		v.Add(&leaves[i])
	}
	v.Close()
	v.Conclude(RootUnknown)
	return faults, v
}

// newTestChain has a chain of n events with different values.
func newTestChain(tb testing.TB, n int) *testChainLog {
	tb.Helper()
	c := newTestLog(tb).chain(tb)
	for i := range n {
		c.event(tb, KindEvent, strings.Replace(testBody, "4711", fmt.Sprint(i), 1))
	}
	return c
}

func TestChainVerifier(t *testing.T) {
	c := newTestChain(t, 700)
	root := c.rootAt(t, 400)
	cut := Mark{ByOffset: true, Offset: 100 + 2*300}
	end := Mark{ByOffset: true, Offset: 1 << 40}
	want := c.Root()
	faults, v := verifyStored(c, c.stored(t), cut, Mark{Size: 400, Want: &root}, end, Mark{Size: 701, Want: &want})
	if faults != nil {
		t.Fatal(faults)
	}
	m := v.Marks()
	if m[0].Size != 300 || m[0].Root != c.rootAt(t, 300) || !m[0].Known || m[2].Size != 701 || m[2].Root != c.Root() {
		t.Errorf("marks: %+v", m)
	}
	if got := v.Counts(); got.Leaves != 701 || got.Size != 701 {
		t.Errorf("counts: %+v", got)
	}
}

// resign makes the stored hashes from sequence k on follow from the contents, as someone who rewrites the store would.
func resign(leaves []StoredLeaf, k, to int) {
	var h ContentHasher
	for i := k; i < to; i++ {
		h.Digest(&leaves[i])
		l := leaves[i].Leaf
		l.Previous = leaves[i-1].Hash
		l.BodyRoot, l.FieldCount, _ = leaves[i].ContentRoot()
		leaves[i].Hash = l.Hash()
	}
	var head Head
	for i := range leaves {
		leaves[i].Node = head.AppendHash(leaves[i].Hash)
	}
}

// Each way to change a stored chain has its verdict and place.
func TestChainFaults(t *testing.T) {
	c := newTestChain(t, 300)
	other := newTestLog(t)
	other.chain(t)
	foreign := other.chain(t)
	for range 60 {
		foreign.event(t, KindEvent, testBody)
	}
	id := func(i int) string { return c.leaves[i].ID }
	swap := func(l []StoredLeaf, i, j int) {
		l[i], l[j] = l[j], l[i]
		l[i].Sequence, l[j].Sequence = uint64(i), uint64(j)
	}
	for _, tc := range []struct {
		name  string
		spoil func(l []StoredLeaf) []StoredLeaf
		want  []string // beginnings of the faults, in order; chain left out
	}{
		{"a body", func(l []StoredLeaf) []StoredLeaf { l[50].Body[12] ^= 1; return l }, []string{"MODIFIED 50 " + id(50)}},
		{"two bodies in a row", func(l []StoredLeaf) []StoredLeaf { l[50].Body[12] ^= 1; l[51].Body[12] ^= 1; return l }, []string{"MODIFIED 50 " + id(50), "MODIFIED 51 " + id(51)}},
		{"the last body", func(l []StoredLeaf) []StoredLeaf { l[300].Body[12] ^= 1; return l }, []string{"MODIFIED 300 " + id(300)}},
		{"a seed", func(l []StoredLeaf) []StoredLeaf { l[50].Seed[3] ^= 1; return l }, []string{"MODIFIED 50 " + id(50)}},
		{"an id", func(l []StoredLeaf) []StoredLeaf { l[50].ID[3] ^= 1; return l }, []string{"MODIFIED 50 "}},
		{"a kind", func(l []StoredLeaf) []StoredLeaf { l[50].Kind = KindNote; return l }, []string{"MODIFIED 50 "}},
		{"recorded_at", func(l []StoredLeaf) []StoredLeaf { l[50].RecordedAt++; return l }, []string{"MODIFIED 50 "}},
		{"an input offset", func(l []StoredLeaf) []StoredLeaf { l[50].Offset += 9000; return l }, []string{"MODIFIED 50 "}},
		{"an input partition", func(l []StoredLeaf) []StoredLeaf { l[50].Partition ^= 1; return l }, []string{"MODIFIED 50 "}},
		{"a generation", func(l []StoredLeaf) []StoredLeaf { l[50].Generation ^= 1; return l }, []string{"MODIFIED 50 "}},
		{"a leaf hash", func(l []StoredLeaf) []StoredLeaf { l[50].Hash[3] ^= 1; return l }, []string{"MODIFIED 50 " + id(50)}},
		{"a node", func(l []StoredLeaf) []StoredLeaf { l[255].Node = []Hash{{1}}; return l }, []string{"MODIFIED 255 "}},
		{"no node", func(l []StoredLeaf) []StoredLeaf { l[255].Node = nil; return l }, []string{"MODIFIED 255 "}},
		{"a node too many", func(l []StoredLeaf) []StoredLeaf { l[256].Node = []Hash{{1}}; return l }, []string{"MODIFIED 256 "}},
		{"the genesis", func(l []StoredLeaf) []StoredLeaf { l[0].RecordedAt++; return l }, []string{"MODIFIED 0 "}},
		{"a body and its hash", func(l []StoredLeaf) []StoredLeaf {
			l[50].Body[12] ^= 1
			resign(l, 50, 51)
			return l
		}, []string{"MODIFIED 50..51 " + id(50)}},
		{"all from a body on", func(l []StoredLeaf) []StoredLeaf {
			l[50].Body[12] ^= 1
			resign(l, 50, 301)
			return l
		}, []string{"MODIFIED 0..300 "}},
		{"not canonical", func(l []StoredLeaf) []StoredLeaf {
			l[50].Body = []byte(strings.Replace(string(l[50].Body), ":", ": ", 1))
			return l
		}, []string{"NON-CANONICAL 50 " + id(50)}},
		{"the first leaf gone", func(l []StoredLeaf) []StoredLeaf { return l[1:] }, []string{"MISSING 0 "}},
		{"a leaf gone", func(l []StoredLeaf) []StoredLeaf { return slices.Delete(l, 50, 51) }, []string{"MISSING 50 "}},
		{"a run gone", func(l []StoredLeaf) []StoredLeaf { return slices.Delete(l, 50, 61) }, []string{"MISSING 50..60 "}},
		{"contents gone", func(l []StoredLeaf) []StoredLeaf { l[50].Body, l[51].Body = nil, nil; return l }, []string{"MISSING 50..51 "}},
		{"a hash gone", func(l []StoredLeaf) []StoredLeaf { l[50].Hash = Hash{}; return l }, []string{"MISSING 50 " + id(50)}},
		{"the end gone", func(l []StoredLeaf) []StoredLeaf { return l[:290] }, []string{"TRUNCATED 290..300 "}},
		{"all gone", func([]StoredLeaf) []StoredLeaf { return nil }, []string{"MISSING 0..300 "}},
		{"a leaf gone, the others renumbered", func(l []StoredLeaf) []StoredLeaf {
			l = slices.Delete(l, 50, 51)
			for i := 50; i < len(l); i++ {
				l[i].Sequence--
			}
			return l
		}, []string{"MISSING 50 "}},
		{"two neighbours swapped", func(l []StoredLeaf) []StoredLeaf { swap(l, 50, 51); return l }, []string{"REORDERED 50..51 "}},
		{"two leaves swapped", func(l []StoredLeaf) []StoredLeaf { swap(l, 50, 90); return l }, []string{"REORDERED 50 " + id(90), "REORDERED 90 " + id(50)}},
		{"contents of neighbours swapped", func(l []StoredLeaf) []StoredLeaf {
			swap(l, 50, 51)
			l[50].Hash, l[51].Hash = l[51].Hash, l[50].Hash
			return l
		}, []string{"REORDERED 50..51 "}},
		{"a block rotated", func(l []StoredLeaf) []StoredLeaf {
			first := l[50]
			copy(l[50:], l[51:70])
			l[69] = first
			for i := 50; i < 70; i++ {
				l[i].Sequence = uint64(i)
			}
			return l
		}, []string{"REORDERED 50..69 "}},
		{"a copy at the end", func(l []StoredLeaf) []StoredLeaf {
			l = append(l, l[50])
			l[301].Sequence = 301
			return l
		}, []string{"INSERTED 301 " + id(50)}},
		{"a copy beyond the end", func(l []StoredLeaf) []StoredLeaf {
			l = append(l, l[50])
			l[301].Sequence = 9000
			return l
		}, []string{"INSERTED 9000 " + id(50)}},
		{"another leaf of the sequence", func(l []StoredLeaf) []StoredLeaf {
			l = slices.Insert(l, 51, l[60])
			l[51].Sequence = 50
			return l
		}, []string{"INSERTED 50 " + id(60)}},
		{"another leaf of the sequence before it, with a hash that holds", func(l []StoredLeaf) []StoredLeaf {
			l = slices.Insert(l, 50, l[60])
			l[50].Sequence = 50
			resign(l, 50, 51)
			for i := range l {
				l[i].Node = nil
				if l[i].Sequence == 255 {
					l[i].Node = c.stored(t)[255].Node
				}
			}
			return l
		}, []string{"INSERTED 50 " + id(60)}},
		{"a leaf put in, the others renumbered", func(l []StoredLeaf) []StoredLeaf {
			l = slices.Insert(l, 50, l[60])
			for i := 50; i < len(l); i++ {
				l[i].Sequence = uint64(i)
			}
			return l
		}, []string{"INSERTED 50 " + id(60)}},
		{"a leaf twice", func(l []StoredLeaf) []StoredLeaf { return slices.Insert(l, 50, l[50]) }, []string{"DUPLICATE 50 " + id(50)}},
		{"a leaf three times", func(l []StoredLeaf) []StoredLeaf { return slices.Insert(l, 50, l[50], l[50]) }, []string{"DUPLICATE 50 ", "DUPLICATE 50 "}},
		{"a changed leaf twice", func(l []StoredLeaf) []StoredLeaf {
			l[50].RecordedAt++
			return slices.Insert(l, 50, l[50])
		}, []string{"DUPLICATE 50 ", "MODIFIED 50 "}},
		{"another leaf of the sequence under the same hash", func(l []StoredLeaf) []StoredLeaf {
			l = slices.Insert(l, 51, l[50])
			l[51].RecordedAt++
			return l
		}, []string{"INSERTED 50 "}},
		{"a leaf again under another hash", func(l []StoredLeaf) []StoredLeaf {
			l = slices.Insert(l, 51, l[50])
			l[51].Hash[0] ^= 1
			return l
		}, []string{"INSERTED 50 "}},
		{"a leaf again, later", func(l []StoredLeaf) []StoredLeaf { return slices.Insert(l, 60, l[50]) }, []string{"REORDERED 50 "}},
		{"a genesis with a body", func(l []StoredLeaf) []StoredLeaf { l[0].Body = []byte(testBody); return l }, []string{"MODIFIED 0 "}},
		{"a genesis with a seed", func(l []StoredLeaf) []StoredLeaf { l[0].Seed[0]++; return l }, []string{"MODIFIED 0 "}},
		{"a genesis with a disclosure", func(l []StoredLeaf) []StoredLeaf { l[0].Disclosure = []Disclosure{}; return l }, []string{"MODIFIED 0 "}},
		{"a disclosure out of order", func(l []StoredLeaf) []StoredLeaf {
			withhold(t, &l[50])
			slices.Reverse(l[50].Disclosure)
			return l
		}, []string{"NON-CANONICAL 50 "}},
		{"a leaf of another chain", func(l []StoredLeaf) []StoredLeaf {
			f := foreign.stored(t)[55]
			f.Chain, f.Sequence = c.Chain, 50
			l[50] = f
			return l
		}, []string{"CROSS-CHAIN 50 "}},
		{"a leaf that says it is of another chain", func(l []StoredLeaf) []StoredLeaf { l[50].Chain[0] ^= 1; return l }, []string{"CROSS-CHAIN 50 ", "MISSING 50 "}},
		{"a disclosure without a redaction", func(l []StoredLeaf) []StoredLeaf {
			withhold(t, &l[50], "/actor_id")
			return l
		}, []string{"WITHHELD 50 " + id(50)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			faults, _ := verifyStored(c, tc.spoil(c.stored(t)))
			var short []string
			for _, f := range faults {
				f = strings.NewReplacer(fmt.Sprintf(" chain %x", c.Chain), "", " sequence", "", " event", "").Replace(f)
				short = append(short, f)
			}
			if len(short) != len(tc.want) {
				t.Fatalf("want %q, found:\n%s", tc.want, strings.Join(short, "\n"))
			}
			for i, want := range tc.want {
				if place, _, _ := strings.Cut(short[i], ":"); !strings.HasPrefix(place+" ", want) {
					t.Errorf("want %q, found %s", want, short[i])
				}
			}
		})
	}
}

// withhold is redact of a stored leaf.
func withhold(tb testing.TB, l *StoredLeaf, paths ...string) {
	tb.Helper()
	fields, err := Fields(nil, l.Body)
	if err != nil {
		tb.Fatal(err)
	}
	l.Disclosure = Disclose(l.Seed, fields, paths)
	l.Body, l.Seed = nil, [16]byte{}
}

// A value that is missing is REDACTED where a redaction of the same chain covers it, and WITHHELD otherwise.
func TestChainRedactions(t *testing.T) {
	for name, tc := range map[string]struct {
		eventID func(c *testChainLog) string
		paths   string
		kind    Kind
		want    string
	}{
		"covered":           {func(c *testChainLog) string { return c.leaves[5].ID }, `["/actor_id","/metadata/old_value"]`, KindRedaction, "REDACTED"},
		"of another event":  {func(c *testChainLog) string { return c.leaves[6].ID }, `["/actor_id"]`, KindRedaction, "WITHHELD"},
		"of another path":   {func(c *testChainLog) string { return c.leaves[5].ID }, `["/metadata/old_value"]`, KindRedaction, "WITHHELD"},
		"not a redaction":   {func(c *testChainLog) string { return c.leaves[5].ID }, `["/actor_id"]`, KindEvent, "WITHHELD"},
		"of what stays":     {func(c *testChainLog) string { return c.leaves[5].ID }, `["/action","/occurred_at"]`, KindRedaction, "WITHHELD"},
		"names no event id": {func(*testChainLog) string { return "x" }, `["/actor_id"]`, KindRedaction, "WITHHELD"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newTestChain(t, 20)
			c.event(t, tc.kind, fmt.Sprintf(`{"action":"event.redacted","metadata":{"event_id":%q,"paths":%s}}`, tc.eventID(c), tc.paths))
			l := c.stored(t)
			path := "/actor_id"
			if name == "of what stays" {
				path = "/action"
			}
			withhold(t, &l[5], path)
			faults, v := verifyStored(c, l)
			if len(faults) != 1 || !strings.HasPrefix(faults[0], tc.want) || !strings.Contains(faults[0], "sequence 5 event "+c.leaves[5].ID) {
				t.Errorf("want %s, found %q", tc.want, faults)
			}
			if n := v.Counts(); n.Redacted+n.Withheld != 1 {
				t.Errorf("counts: %+v", n)
			}
		})
	}
}

// An event that is there twice, and of which one leaf is explained, does not explain the other.
func TestChainRedactionOfOneOfTwo(t *testing.T) {
	c := newTestChain(t, 3)
	first := c.leaves[2].ID
	c.event(t, KindEvent, testBody)
	c.event(t, KindRedaction, fmt.Sprintf(`{"action":"event.redacted","metadata":{"event_id":%q,"paths":["/metadata/old_value"]}}`, first))
	stored := c.stored(t)
	withhold(t, &stored[2], "/actor_id")
	withhold(t, &stored[4], "/metadata/old_value")
	stored[4].ID = stored[2].ID // its leaf is another then: what is withheld is looked at by id all the same
	faults, _ := verifyStored(c, stored)
	if !slices.ContainsFunc(faults, func(f string) bool { return strings.HasPrefix(f, "WITHHELD") && strings.Contains(f, "sequence 2 ") }) {
		t.Error(faults)
	}
}

// A redaction comes after what it redacts.
func TestChainRedactionBefore(t *testing.T) {
	c := newTestChain(t, 2)
	id := "00000000-0000-4000-8000-000000000000"
	c.event(t, KindRedaction, fmt.Sprintf(`{"action":"event.redacted","metadata":{"event_id":%q,"paths":["/actor_id"]}}`, id))
	c.event(t, KindEvent, testBody)
	l := c.stored(t)
	withhold(t, &l[4], "/actor_id")
	if faults, _ := verifyStored(c, l); len(faults) != 1 || !strings.HasPrefix(faults[0], "WITHHELD") {
		t.Error(faults)
	}
}

func TestChainTimeAnomaly(t *testing.T) {
	c := newTestChain(t, 20)
	root := c.Root()
	faults, _ := verifyStored(c, c.stored(t), Mark{Size: 21, Want: &root, Covered: testStart.Add(-5*time.Minute + 10*time.Millisecond)})
	if len(faults) != 10 || !strings.HasPrefix(faults[0], "TIME ANOMALY") || !strings.Contains(faults[0], "sequence 11 ") {
		t.Error(faults)
	}
}

// What an earlier run verified is a fork where the chain was written anew.
func TestChainRemembered(t *testing.T) {
	c := newTestChain(t, 20)
	anew := newTestChain(t, 30)
	old := c.rootAt(t, 15)
	root := anew.Root()
	old[0] ^= 1
	faults, _ := verifyStored(anew, anew.stored(t), Mark{Size: 15, Want: &old, Remembered: true}, Mark{Size: 31, Want: &root})
	if len(faults) != 1 || !strings.HasPrefix(faults[0], "FORKED") || !strings.Contains(faults[0], "sequence 0..14") {
		t.Error(faults)
	}
}

// What a signed chain can still say wrong: a place of the input twice.
func TestChainInputTwice(t *testing.T) {
	c := newTestChain(t, 20)
	l := c.stored(t)
	l[10].Offset = l[9].Offset
	resign(l, 10, len(l))
	if faults, _ := verifyStored(c, l, Mark{ByOffset: true}); len(faults) != 1 || !strings.HasPrefix(faults[0], "DUPLICATE") || !strings.Contains(faults[0], "sequence 10 ") {
		t.Error(faults)
	}
}

// A leaf that comes once more, after so many that do not fit together that nothing is waited for any more.
func TestChainAgainAfterTooMany(t *testing.T) {
	c := newTestChain(t, maxPending+100)
	honest := c.stored(t)
	l := slices.Clone(honest[:10])
	again := 0
	for i := 10; i < len(honest); i++ {
		spoilt := honest[i]
		spoilt.Hash[0] ^= 1
		spoilt.RecordedAt++
		l = append(l, spoilt)
		if i > maxPending-10 && i < maxPending+30 {
			l = append(l, honest[5])
			again++
		}
	}
	faults, _ := verifyStored(c, l)
	found := 0
	for _, f := range faults {
		if strings.HasPrefix(f, "REORDERED") && strings.Contains(f, "sequence 5 ") {
			found++
		}
	}
	if found != again {
		t.Errorf("%d of %d are found", found, again)
	}
}

// A store that keeps the previous hashes too: what they say is compared, and it repairs what is linked by nothing else.
func TestChainPrevious(t *testing.T) {
	c := newTestChain(t, 20)
	stored := func() []StoredLeaf {
		l := c.stored(t)
		for i := 1; i < len(l); i++ {
			l[i].Previous = c.hashes[i-1]
		}
		return l
	}
	l := stored()
	l[10].Previous[3] ^= 1
	l[14].Hash[3] ^= 1
	l[14].Body[12] ^= 1
	faults, v := verifyStored(c, l)
	if len(faults) != 2 || !strings.Contains(faults[0], "MODIFIED chain") || !strings.Contains(faults[0], "sequence 10 ") || !strings.Contains(faults[1], "sequence 14 ") {
		t.Error(faults)
	}
	if m := v.Marks()[0]; !m.Known || m.Root != c.Root() {
		t.Error("the root is not known")
	}
	if faults, _ := verifyStored(c, stored()); faults != nil {
		t.Error(faults)
	}
}

// What older epochs state is a fork where a later root holds: one finding, as narrow as they tell, and what it takes to show it to others.
func TestChainOlder(t *testing.T) {
	honest := newTestChain(t, 30)
	at := func(size uint64, wrong bool) Mark {
		root := honest.rootAt(t, size)
		if wrong {
			root[0] ^= 1
		}
		return Mark{Size: size, Want: &root, Older: true}
	}
	newest := func(wrong bool) Mark {
		m := at(31, wrong)
		m.Older = false
		return m
	}
	remembered := func(size uint64) Mark {
		m := at(size, true)
		m.Older, m.Remembered = false, true
		return m
	}
	for name, tc := range map[string]struct {
		marks []Mark
		want  []string
		forks int
	}{
		"honest":                 {[]Mark{at(5, false), at(15, false), newest(false)}, nil, 0},
		"between two":            {[]Mark{at(5, false), at(15, true), at(20, true), newest(false)}, []string{"FORKED 5..14"}, 1},
		"from the first on":      {[]Mark{at(5, true), newest(false)}, []string{"FORKED 0..4"}, 1},
		"back again":             {[]Mark{at(5, false), at(15, true), at(20, false), at(25, true), newest(false)}, []string{"FORKED 5..14", "FORKED 20..24"}, 2},
		"one size":               {[]Mark{at(5, false), at(15, false), at(15, true), newest(false)}, []string{"FORKED 5..14"}, 1},
		"the newest size":        {[]Mark{at(5, false), at(31, true), newest(false)}, []string{"FORKED 5..30"}, 1},
		"and not the newest":     {[]Mark{at(5, false), at(15, true), at(20, true), newest(true)}, []string{"MODIFIED 5..14"}, 0},
		"remembered otherwise":   {[]Mark{at(5, false), at(15, false), remembered(15), newest(false)}, []string{"FORKED 0..14"}, 1},
		"stated and remembered":  {[]Mark{at(5, false), at(15, true), remembered(15), newest(false)}, []string{"FORKED 5..14", "FORKED 0..14"}, 2},
		"the newest alone wrong": {[]Mark{at(5, false), at(15, false), newest(true)}, []string{"MODIFIED 15..30"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			faults, v := verifyStored(honest, honest.stored(t), tc.marks...)
			var found []string
			for _, f := range faults {
				words := strings.Fields(f)
				found = append(found, words[0]+" "+strings.TrimSuffix(words[4], ":"))
			}
			if !slices.Equal(found, tc.want) {
				t.Errorf("%v, want %v", faults, tc.want)
			}
			if len(v.Divergences()) != tc.forks {
				t.Errorf("%d divergences, want %d", len(v.Divergences()), tc.forks)
			}
			for _, d := range v.Divergences() {
				older, newer := v.Marks()[d.Older], v.Marks()[d.Newer]
				head := Head{Size: older.Size, Range: d.Range}
				if head.Root() == *older.Want || head.Root() != honest.rootAt(t, older.Size) {
					t.Error("it begins with another root")
				}
				if err := head.AppendSubtrees(newer.Size, d.Rest); err != nil || head.Root() != *newer.Want {
					t.Errorf("it does not lead to the newer root: %v", err)
				}
			}
		})
	}
}
