package verify_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"getimmutable.dev/immutable/internal/ledgertest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/verify"
)

// Of the leaves that no epoch covers, a stated number is read; the rest is not checked, and it is said so.
func TestLedgerTail(t *testing.T) {
	l := newLedger()
	c := l.Chains[0]
	l.Events(c, 300)
	a := newAPI(t, l)
	for tail, read := range map[uint64]uint64{100: 100, 299: 299, 300: 300, 1000: 300} {
		r, err := verify.Ledger(t.Context(), a.config(), verify.API{URL: a.url, Key: ledgertest.APIKey, LeavesPerRequest: 37, MaxTail: tail})
		if err != nil || r.Exit != verify.ExitVerified || len(r.Faults) != 1 || *r.Faults[0].Last != 100+read {
			t.Fatalf("%v, %s", err, r.Text())
		}
		said := strings.Contains(strings.Join(r.NotChecked, "\n"), fmt.Sprintf("chain %x: leaves from sequence %d on", c.ID, 101+tail))
		if said != (tail < 300) {
			t.Errorf("%d: %s", tail, r.Text())
		}
	}
}

// A page that takes too much is asked for again with fewer leaves, and what fits is verified.
func TestLedgerLargePages(t *testing.T) {
	l := newLedger()
	a := newAPI(t, l)
	var mu sync.Mutex
	limits := map[int]int{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if limit, err := strconv.Atoi(r.URL.Query().Get("limit")); err == nil {
			mu.Lock()
			limits[limit]++
			mu.Unlock()
		}
		a.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	api := verify.API{URL: server.URL, Key: ledgertest.APIKey, LeavesPerRequest: 64, MaxPageBytes: 40 << 10, MaxPagesBytes: 50 << 10}
	r, err := verify.Ledger(t.Context(), a.config(), api)
	if err != nil || r.Exit != verify.ExitVerified || r.Leaves != 237 {
		t.Fatalf("%v, %s", err, r.Text())
	}
	small := 0
	for limit, n := range limits {
		if 1 < limit && limit < 32 {
			small += n
		}
	}
	if limits[64] == 0 || small == 0 {
		t.Errorf("asked for %v", limits)
	}
	// One leaf that is too large is not verified.
	api.MaxPageBytes = 1 << 10
	if r, err = verify.Ledger(t.Context(), a.config(), api); err != nil || r.Exit != verify.ExitUndecided || !strings.Contains(r.Text(), "too large") {
		t.Errorf("%v, %s", err, r.Text())
	}
}

// When the time is over, what was found counts.
func TestLedgerTimeout(t *testing.T) {
	l := newLedger()
	l.Chains[0].Leaves[10].Hash[3] ^= 1
	a := newAPI(t, l)
	second := fmt.Sprintf("%x", l.Chains[1].ID)
	for name, exit := range map[string]int{second: verify.ExitTampered, "/ledger/chains": verify.ExitUndecided, "/ledger/tile": verify.ExitUndecided} {
		done := make(chan struct{})
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, name) || r.URL.Query().Get("chain") == name {
				select {
				case <-done:
				case <-r.Context().Done():
				}
				return
			}
			a.ServeHTTP(w, r)
		}))
		cfg := a.config()
		cfg.Timeout = 500 * time.Millisecond
		r, err := verify.Ledger(t.Context(), cfg, verify.API{URL: server.URL, Key: ledgertest.APIKey})
		close(done)
		server.Close()
		if err != nil || r.Exit != exit || !strings.Contains(r.Text(), "the time for the whole verification is over") {
			t.Errorf("%s: %v, %s", name, err, r.Text())
		}
		if exit == verify.ExitTampered && r.Found[ledger.Modified] == 0 {
			t.Error(r.Text())
		}
	}
}

// A map that is signed counts the leaves of a chain: where the API has none of it, they are missing. A 404 says nothing of that: a proxy may have
// said it.
func TestLedgerChainGone(t *testing.T) {
	a := newAPI(t, newLedger())
	gone := fmt.Sprintf("%x", a.Ledger.Chains[1].ID)
	for _, tc := range []struct {
		name  string
		which func(r *http.Request) bool
		do    http.HandlerFunc
		exit  int
		found []string
		text  string
	}{
		{
			"an empty page", func(r *http.Request) bool { return r.URL.Query().Get("chain") == gone },
			func(w http.ResponseWriter, r *http.Request) {
				_, _ = fmt.Fprintf(w, `{"next":%s,"more":false}`+"\n", r.URL.Query().Get("from"))
			},
			verify.ExitTampered,
			[]string{"MISSING chain " + gone + " sequence 0..135"},
			"",
		},
		{"404 of a chain", func(r *http.Request) bool { return r.URL.Query().Get("chain") == gone }, http.NotFound, verify.ExitUndecided, nil, "404"},
		{"404 of all", func(r *http.Request) bool { return r.URL.Query().Has("chain") }, http.NotFound, verify.ExitUndecided, nil, "404"},
		{"404 of what follows", func(r *http.Request) bool { return r.URL.Query().Get("from") == "50" }, http.NotFound, verify.ExitUndecided, nil, "404"},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if tc.which(r) {
				tc.do(w, r)
				return
			}
			a.ServeHTTP(w, r)
		}))
		r, err := verify.Ledger(t.Context(), a.config(), verify.API{URL: server.URL, Key: ledgertest.APIKey, LeavesPerRequest: 50})
		server.Close()
		if err != nil {
			t.Fatal(err)
		}
		var found []string
		for _, f := range r.Faults {
			found = append(found, short(f))
		}
		if r.Exit != tc.exit || !slices.Equal(found, tc.found) || !strings.Contains(strings.Join(r.Undecided, "\n"), tc.text) {
			t.Errorf("%s: %v, %s", tc.name, found, r.Text())
		}
	}
}

// The notary does not wait for those who write the tables: what an epoch covers may not be there yet, and is no tampering.
func TestLedgerSettles(t *testing.T) {
	for name, begin := range map[string]func(c *ledgertest.Chain) (arrive func()){
		"leaves": func(c *ledgertest.Chain) func() {
			all := c.Leaves
			c.Leaves = all[:90]
			return func() { c.Leaves = all }
		},
		"the whole chain": func(c *ledgertest.Chain) func() {
			all := c.Leaves
			c.Leaves = nil
			return func() { c.Leaves = all }
		},
		"content": func(c *ledgertest.Chain) func() {
			body, seed := c.Leaves[100].Body, c.Leaves[100].Seed
			c.Leaves[100].Body, c.Leaves[100].Seed = nil, [16]byte{}
			return func() { c.Leaves[100].Body, c.Leaves[100].Seed = body, seed }
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, newLedger())
			c := a.Ledger.Chains[0]
			arrive := begin(c)
			asked := 0
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Query().Get("chain") == fmt.Sprintf("%x", c.ID) {
					a.Lock()
					if asked++; asked == 3 {
						arrive()
					}
					a.Unlock()
				}
				a.ServeHTTP(w, r)
			}))
			t.Cleanup(server.Close)
			a.url = server.URL
			cfg := a.config()
			cfg.Settle = time.Minute
			if r := a.verify(cfg); r.Exit != verify.ExitVerified || len(r.Faults) > 0 {
				t.Error(r.Text())
			}
		})
	}
}

// A writer that is further behind than is waited for looks like one that has lost the end, and the finding says so.
func TestWriterFurtherBehind(t *testing.T) {
	const hint = "a writer that is further behind than --settle looks like that too"
	check := func(name, want string, r *verify.Report) {
		t.Helper()
		if r.Exit != verify.ExitTampered || !slices.ContainsFunc(r.Faults, func(f *ledger.Fault) bool {
			return strings.HasPrefix(f.String(), want) && strings.HasSuffix(f.Detail, hint)
		}) {
			t.Errorf("%s: want %s with the hint: %s", name, want, r.Text())
		}
	}
	l := newLedger()
	s := newTables(t, l)
	c, whole := l.Chains[0], l.Chains[2]
	for _, table := range []string{"leaves", "events"} {
		s.exec("ALTER TABLE %s DELETE WHERE chain = unhex('%x') AND sequence > 95", table, c.ID)
	}
	check("clickhouse", "TRUNCATED: the chains do not give the map of epoch 6", s.verify(s.config()))
	s.exec("ALTER TABLE leaves DELETE WHERE chain = unhex('%x')", whole.ID)
	s.exec("ALTER TABLE events DELETE WHERE chain = unhex('%x')", whole.ID)
	check("clickhouse, a whole chain", "MISSING: epoch ", s.verify(s.config()))
	s = newTables(t, l)
	s.exec("ALTER TABLE events DELETE WHERE chain = unhex('%x') AND sequence > 95", c.ID)
	check("clickhouse, content", fmt.Sprintf("MISSING chain %x sequence 96..100", c.ID), s.verify(s.config()))
	a := newAPI(t, l)
	c.Leaves = c.Leaves[:96]
	check("ledger", fmt.Sprintf("TRUNCATED chain %x", c.ID), a.verify(a.config()))
	c.Leaves = append(c.Leaves[:50:50], c.Leaves[60:]...) // in the middle it is no writer
	for _, f := range a.verify(a.config()).Faults {
		if f.Verdict == ledger.Missing && strings.Contains(f.Detail, hint) {
			t.Error(f)
		}
	}
}

// Nor does the API's map come with the checkpoint: what is proven by the epoch before is asked for again.
func TestLedgerMapSettles(t *testing.T) {
	l := newLedger()
	l.Epoch() // the same leaves
	_, now := ask(t, l)
	before := *now
	before.Data.Epoch, before.Data.LogProof = string(l.Entries[6]), logProof(t, l, 6)
	text, err := json.Marshal(before)
	if err != nil {
		t.Fatal(err)
	}
	a := newAPI(t, l)
	asked := 0
	a.Spoil = func(path string, answer []byte) []byte {
		if path != "/ledger/chains" {
			return answer
		}
		if asked++; asked < 3 {
			return text
		}
		return answer
	}
	cfg := a.config()
	cfg.Settle = time.Minute
	if r := a.verify(cfg); r.Exit != verify.ExitVerified || asked != 3 {
		t.Errorf("asked %d times: %s", asked, r.Text())
	}
}

// A leaf that no epoch covers and whose content is being written is not missing, and what follows it is not checked.
func TestLedgerTailWithoutContent(t *testing.T) {
	l := newLedger()
	c := l.Chains[0]
	l.Events(c, 10)
	for i := 107; i < 111; i++ {
		c.Leaves[i].Body, c.Leaves[i].Seed = nil, [16]byte{}
	}
	r := newAPI(t, l).verify((&api{&ledgertest.Server{Ledger: l}, t, ""}).config())
	want := []string{fmt.Sprintf("UNSEALED TAIL chain %x sequence 101..106", c.ID)}
	if r.Exit != verify.ExitVerified || !slices.Equal(faults(r), want) || !strings.Contains(r.Text(), "leaves from sequence 107 on") {
		t.Error(r.Text())
	}
	l.Epoch()
	r = newAPI(t, l).verify((&api{&ledgertest.Server{Ledger: l}, t, ""}).config())
	if r.Exit != verify.ExitTampered || r.Found[ledger.Missing] == 0 {
		t.Error(r.Text())
	}
}
