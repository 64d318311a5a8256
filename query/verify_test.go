package query

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"getimmutable.dev/immutable/ledger"
)

// leafAnswer is a line of GET /ledger/leaves, as a verifier reads it.
type leafAnswer struct {
	ledger.BundleLeaf
	Lanes           uint32      `json:"lanes"`
	LeafHash        ledger.Hash `json:"leaf_hash"`
	Node            string      `json:"node"`
	LedgerPartition *uint16     `json:"ledger_partition"`
	LedgerOffset    *uint64     `json:"ledger_offset"`
}

// leaves gets leaves, whose answer must be a 200 and whole.
func (r *rig) leaves(t tenant, chain ledger.ChainID, query string) (list []leafAnswer, last lastLine, body []byte) {
	r.tb.Helper()
	a := r.do(t.token, http.MethodGet, fmt.Sprintf("/api/v1/ledger/leaves?chain=%x&%s", chain, query))
	if a.status != http.StatusOK || a.header.Get("Content-Type") != kindNDJSON {
		r.tb.Fatalf("%d %v %s", a.status, a.header, a.body)
	}
	lines := bufio.NewScanner(bytes.NewReader(a.body))
	lines.Buffer(nil, 64<<20)
	ended := false
	for lines.Scan() {
		if bytes.HasPrefix(lines.Bytes(), []byte(`{"next"`)) {
			if err := json.Unmarshal(lines.Bytes(), &last); err != nil {
				r.tb.Fatal(err)
			}
			ended = true
			continue
		}
		var l leafAnswer
		d := json.NewDecoder(bytes.NewReader(lines.Bytes()))
		d.DisallowUnknownFields()
		if err := d.Decode(&l); err != nil {
			r.tb.Fatalf("%s: %v", lines.Bytes(), err)
		}
		list = append(list, l)
	}
	if !ended {
		r.tb.Fatalf("no last line: %s", a.body)
	}
	return list, last, a.body
}

// What the API gives of a chain is enough to compute it anew, down to its signed root.
func TestLeaves(t *testing.T) {
	r := newRig(t)
	l := r.newLoader(r.tenant)
	bodies := make([]string, 600)
	for i := range bodies {
		bodies[i] = fmt.Sprintf(proofBody, 0)
	}
	l.add(bodies...)
	want := l.chains()[0]
	for name, limit := range map[string]int{"one by one": 97, "at once": 10_000} {
		t.Run(name, func(t *testing.T) {
			var head ledger.Head
			next := lastLine{More: true}
			for next.More {
				var list []leafAnswer
				var body []byte
				list, next, body = r.leaves(r.tenant, want.Chain, fmt.Sprintf("from=%d&limit=%d", next.Next, limit))
				if bytes.Contains(body, []byte(`"path"`)) {
					t.Error("there is a path")
				}
				if len(list) > limit {
					t.Fatalf("%d leaves, want at most %d", len(list), limit)
				}
				for _, line := range list {
					leaf, err := line.Leaf()
					if err != nil {
						t.Fatal(err)
					}
					if line.Sequence == 0 {
						leaf.BodyRoot = ledger.Genesis(line.Workspace, line.Incarnation, line.Lane, line.Lanes, leaf.RecordedAt, leaf.Generation).BodyRoot
					} else if root, n, err := line.RecomputeRoot(); err != nil || root != leaf.BodyRoot || n != int(leaf.FieldCount) {
						t.Fatalf("leaf %d: body root %x over %d: %v", line.Sequence, root, n, err)
					}
					head.Chain = leaf.Chain
					hash, node := head.Append(leaf)
					var nodes []byte
					for _, h := range node {
						nodes = append(nodes, h[:]...)
					}
					if hash != line.LeafHash || line.Sequence != head.Size-1 || line.Node != hex.EncodeToString(nodes) ||
						line.LedgerOffset == nil || line.LedgerPartition == nil {
						t.Fatalf("leaf %d is %+v", head.Size-1, line)
					}
				}
			}
			if head.Root() != want.Root() || next.Next < head.Size {
				t.Errorf("root %x, want %x", head.Root(), want.Root())
			}
		})
	}
	if list, last, _ := r.leaves(r.tenant, want.Chain, "from=601"); len(list) != 0 || last != (lastLine{Next: 601}) {
		t.Errorf("beyond the end: %d leaves, %+v", len(list), last)
	}

	// A row that is missing is missing, and the next is described without it; one that is there twice comes twice.
	r.exec(t.Context(), "ALTER TABLE leaves DELETE WHERE sequence BETWEEN 10 AND 300 SETTINGS mutations_sync = 1")
	r.exec(t.Context(), "INSERT INTO leaves SELECT * REPLACE (unhex(repeat('cd', 32)) AS leaf_hash, ledger_offset + 1 AS ledger_offset) FROM leaves WHERE sequence = 305")
	r.exec(t.Context(), "ALTER TABLE events DELETE WHERE sequence = 307 SETTINGS mutations_sync = 1")
	list, last, _ := r.leaves(r.tenant, want.Chain, "from=8&limit=500")
	var sequences []uint64
	for _, line := range list[:9] {
		sequences = append(sequences, line.Sequence)
	}
	if !slices.Equal(sequences, []uint64{8, 9, 301, 302, 303, 304, 305, 305, 306}) || list[2].Previous != (ledger.Hash{}) || !last.More {
		t.Errorf("%v, %+v, %+v", sequences, list[2], last)
	}
	if gone := list[9]; gone.Sequence != 307 || gone.Body != "" || gone.Seed != nil || gone.BodyRoot != (ledger.Hash{}) {
		t.Errorf("a leaf without its event: %+v", gone)
	}
	if list, last, _ := r.leaves(r.tenant, want.Chain, "from=10&limit=100"); len(list) != 0 || !last.More || last.Next != 110 {
		t.Errorf("within the gap: %d leaves, %+v", len(list), last)
	}
}

func TestLeavesAreBounded(t *testing.T) {
	r := newRig(t, func(c *Config) { c.MaxLeavesBytes = 64 << 10 })
	l := r.newLoader(r.tenant)
	bodies := make([]string, 20)
	for i := range bodies {
		bodies[i] = fmt.Sprintf(`{"actor_id":"a","action":"x","metadata":{"m":"%s"}}`, strings.Repeat("m", 20_000))
	}
	l.add(bodies...)
	chain := l.chains()[0].Chain
	var got int
	last := lastLine{More: true}
	for requests := 0; last.More; requests++ {
		var list []leafAnswer
		var body []byte
		list, last, body = r.leaves(r.tenant, chain, fmt.Sprintf("from=%d&limit=10000", last.Next))
		if got += len(list); len(body) > 64<<10+30_000 || requests > 10 {
			t.Fatalf("%d bytes in answer %d", len(body), requests)
		}
	}
	if got != 21 {
		t.Errorf("%d leaves, want 21", got)
	}
}

// Events that are all as large as they can be are read a few at a time.
func TestLargeLeaves(t *testing.T) {
	r := newRig(t, func(c *Config) { c.MaxLeavesBytes = 64 << 20 })
	c, _ := r.synthetic(r.tenant, 130, 1)
	r.exec(t.Context(), "ALTER TABLE events UPDATE body = concat(body, repeat('x', 250000)) WHERE true SETTINGS mutations_sync = 1")
	leaves, size := 0, 0
	for last := (lastLine{More: true}); last.More; { // several, where the machine is slow
		var list []leafAnswer
		var body []byte
		list, last, body = r.leaves(r.tenant, c.Chain, fmt.Sprintf("from=%d", last.Next))
		leaves, size = leaves+len(list), size+len(body)
	}
	if leaves != 130 || size < 129*250_000 {
		t.Errorf("%d leaves of %d bytes", leaves, size)
	}
}

// A chain that has lost all of its leaves has an empty page: it is the workspace's for all that, as each of its lanes is. Of a chain that is no lane of
// the workspace now, leaves that are there are shown.
func TestLeavesOfALostChain(t *testing.T) {
	r := newRig(t)
	l := r.newLoader(r.tenant)
	l.add(manyBodies(3)...)
	former := ledger.NewChainID(r.workspace.ID, [16]byte{9}, 0)
	r.exec(t.Context(), "INSERT INTO leaves SELECT * REPLACE (unhex(?) AS chain) FROM leaves WHERE leaves.chain = unhex(?)", hex.EncodeToString(former[:]),
		fmt.Sprintf("%x", l.chains()[0].Chain))
	r.exec(t.Context(), "TRUNCATE TABLE events")
	for _, from := range []uint64{0, 7} {
		if list, last, _ := r.leaves(r.tenant, former, fmt.Sprintf("from=%d", from)); (len(list) > 0) != (from == 0) || last.More {
			t.Errorf("from %d: %d leaves, %+v", from, len(list), last)
		}
	}
	r.exec(t.Context(), "TRUNCATE TABLE leaves")
	for lane := range r.workspace.Lanes {
		chain := ledger.NewChainID(r.workspace.ID, r.workspace.Incarnation, lane)
		for _, from := range []uint64{0, 7} {
			if list, last, _ := r.leaves(r.tenant, chain, fmt.Sprintf("from=%d", from)); len(list) != 0 || last != (lastLine{Next: from}) {
				t.Errorf("lane %d from %d: %d leaves, %+v", lane, from, len(list), last)
			}
		}
	}
	for _, chain := range []ledger.ChainID{former, ledger.NewChainID(r.workspace.ID, r.workspace.Incarnation, r.workspace.Lanes)} {
		r.refused(r.do(r.token, http.MethodGet, fmt.Sprintf("/api/v1/ledger/leaves?chain=%x", chain)), http.StatusNotFound, "no such chain")
	}
}

func TestLeavesOfOthers(t *testing.T) {
	r := newRig(t)
	l := r.newLoader(r.tenant)
	l.add(manyBodies(3)...)
	chain := l.chains()[0].Chain
	stranger := r.newTenant("stranger")
	for query, status := range map[string]int{
		"chain=" + hex.EncodeToString(chain[:]): http.StatusNotFound,
		"":                                      http.StatusUnprocessableEntity,
		"chain=x":                               http.StatusUnprocessableEntity,
		"chain=" + strings.Repeat("0", 32):      http.StatusNotFound,
		"chain=" + strings.ToUpper(hex.EncodeToString(chain[:])): http.StatusUnprocessableEntity,
		"chain=0&chain=1": http.StatusBadRequest,
		"nonsense=1":      http.StatusBadRequest,
		"chain=" + strings.Repeat("0", 32) + "&limit=10001": http.StatusUnprocessableEntity,
		"chain=" + strings.Repeat("0", 32) + "&from=-1":     http.StatusUnprocessableEntity,
	} {
		if a := r.do(stranger.token, http.MethodGet, "/api/v1/ledger/leaves?"+query); a.status != status {
			t.Errorf("?%s: %d %s, want %d", query, a.status, a.body, status)
		}
	}
	if v := r.verdictOf(stranger, "", 200); v.EventsChecked != 0 {
		t.Errorf("a stranger verifies %+v", v)
	}
}

// verdict gets GET /verify of the first tenant.
func (r *rig) verdict(query string, status int) (v verdict) {
	r.tb.Helper()
	return r.verdictOf(r.tenant, query, status)
}

func (r *rig) verdictOf(t tenant, query string, status int) verdict {
	r.tb.Helper()
	a := r.do(t.token, http.MethodGet, "/api/v1/verify?"+query)
	if a.status != status {
		r.tb.Fatalf("GET /verify?%s: %d %s", query, a.status, a.body)
	}
	var v struct{ Data verdict }
	if err := json.Unmarshal(a.body, &v); err != nil {
		r.tb.Fatal(err)
	}
	return v.Data
}

func TestVerify(t *testing.T) {
	r := newRig(t)
	l := r.newLoader(r.tenant)
	n := r.newNotary()
	all := l.add(manyBodies(900)...)
	if v := r.verdict("", 200); !v.Valid || !v.Complete || v.EventsChecked != 900 || v.Checkpoint != nil || v.Breaks == nil || v.Uncovered < 900 {
		t.Errorf("without a checkpoint: %+v", v)
	}
	n.sign(l.chains())
	v := r.verdict("", 200)
	if !v.Valid || v.EventsChecked != 900 || v.Uncovered != 0 || v.Checkpoint == nil || v.Checkpoint.Size != n.Log.Size || v.Checkpoint.Root != n.Log.Root() {
		t.Errorf("%+v", v)
	}
	l.add(manyBodies(50)...) // not covered by a checkpoint yet
	if v := r.verdict("", 200); !v.Valid || v.EventsChecked != 950 || v.Uncovered != 50 {
		t.Errorf("with some that are newer: %+v", v)
	}
	// A limit that was reached is no pass.
	if v := r.verdict("limit=100", 200); v.Valid || v.Complete || v.EventsChecked > 100 || v.Unchecked == 0 || len(v.Breaks) > 0 {
		t.Errorf("100 of them: %+v", v)
	}
	at := func(i int) string {
		return url.QueryEscape(time.UnixMicro(all[i].recordedAt).UTC().Format(time.RFC3339Nano))
	}
	if v := r.verdict("from="+at(300)+"&to="+at(399), 200); !v.Valid || v.EventsChecked < 100 || v.EventsChecked > 400 {
		t.Errorf("a span of time: %+v", v)
	}
	if v := r.verdict("from=2030-01-01T00:00:00Z", 200); !v.Valid || v.EventsChecked != 0 {
		t.Errorf("an empty span of time: %+v", v)
	}
	for query, status := range map[string]int{
		"limit=0": 422, "limit=100001": 422, "from=x": 422, "nonsense=1": 400, "limit=1&limit=2": 400,
	} {
		r.verdict(query, status)
	}
}

// Each way to change the tables is found, and named.
func TestVerifyFinds(t *testing.T) {
	t.Parallel()
	const where = " WHERE sequence = 5"
	for _, tc := range []struct {
		name      string
		statement string
		want      []found // without chain, hashes and event
	}{
		{"a body", "ALTER TABLE events UPDATE body = replace(body, '4711', '4712')" + where, []found{{Type: breakHash, Sequence: 5}}},
		{"a body that is not canonical", "ALTER TABLE events UPDATE body = concat(body, ' ')" + where, []found{{Type: breakHash, Sequence: 5}}},
		{"a seed", "ALTER TABLE events UPDATE seed = unhex(repeat('01', 16))" + where, []found{{Type: breakHash, Sequence: 5}}},
		{"a time", "ALTER TABLE leaves UPDATE recorded_at = recorded_at + 1" + where, []found{{Type: breakHash, Sequence: 5}}},
		{"an id", "ALTER TABLE leaves UPDATE id = unhex(repeat('01', 16))" + where, []found{{Type: breakHash, Sequence: 5}}},
		{
			"a leaf's hash", "ALTER TABLE leaves UPDATE leaf_hash = unhex(repeat('01', 32))" + where,
			[]found{{Type: breakHash, Sequence: 5}, {Type: breakChain, Sequence: 6}},
		},
		{"a leaf", "ALTER TABLE leaves DELETE" + where, []found{{Type: breakMissing, Sequence: 5}}},
		{"the first", "ALTER TABLE leaves DELETE WHERE sequence = 0", []found{{Type: breakMissing, Sequence: 0}}},
		{"an event", "ALTER TABLE events DELETE" + where, []found{{Type: breakMissing, Sequence: 5}}},
		{"a run of leaves", "ALTER TABLE leaves DELETE WHERE sequence BETWEEN 5 AND 8", []found{{Type: breakMissing, Sequence: 5, LastSequence: 8}}},
		{"the end", "ALTER TABLE leaves DELETE WHERE sequence >= 9", []found{{Type: breakMissing, Sequence: 9, LastSequence: 10}}},
		{"everything", "ALTER TABLE leaves DELETE WHERE true", []found{{Type: breakMissing, Sequence: 0, LastSequence: 10}}},
		{
			"a leaf twice", "INSERT INTO leaves SELECT * REPLACE (unhex(repeat('01', 32)) AS leaf_hash, ledger_offset + 1 AS ledger_offset) FROM leaves" + where,
			[]found{{Type: breakChain, Sequence: 5}, {Type: breakChain, Sequence: 6}},
		},
		{"an event twice", "INSERT INTO events SELECT * REPLACE (ledger_offset + 1 AS ledger_offset) FROM events" + where, []found{{Type: breakChain, Sequence: 5}}},
		{"all leaves many times", "INSERT INTO leaves SELECT * FROM leaves ARRAY JOIN range(3)", []found{{Type: breakChain, Sequence: 0}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			l := r.newLoader(r.tenant)
			n := r.newNotary()
			bodies := make([]string, 10)
			for i := range bodies {
				bodies[i] = fmt.Sprintf(proofBody, 0)
			}
			l.add(bodies...)
			n.sign(l.chains())
			if v := r.verdict("", 200); !v.Valid {
				t.Fatalf("%+v", v)
			}
			settings := " SETTINGS mutations_sync = 1"
			if strings.HasPrefix(tc.statement, "INSERT") {
				settings = ""
			}
			r.exec(t.Context(), tc.statement+settings)
			v := r.verdict("", 200)
			if v.Valid || len(v.Breaks) != len(tc.want) {
				t.Fatalf("%+v", v)
			}
			chain := l.chains()[0].Chain
			for i, b := range v.Breaks {
				want := tc.want[i]
				if b.Type != want.Type || b.Sequence != want.Sequence || b.LastSequence != max(want.LastSequence, want.Sequence) ||
					b.Chain != hex.EncodeToString(chain[:]) {
					t.Errorf("break %d is %+v, want %+v", i, b, want)
				}
			}
		})
	}
}

// A chain that was written anew, consistent in itself, is not the one that was signed.
func TestVerifyFindsRewriting(t *testing.T) {
	r := newRig(t)
	l := r.newLoader(r.tenant)
	n := r.newNotary()
	l.add(fmt.Sprintf(proofBody, 0), fmt.Sprintf(proofBody, 0))
	n.sign(l.chains())
	signed := l.chains()[0]
	r.exec(t.Context(), "TRUNCATE TABLE leaves")
	r.exec(t.Context(), "TRUNCATE TABLE events")
	again := r.newLoader(r.tenant)
	again.add(fmt.Sprintf(proofBody, 0), fmt.Sprintf(proofBody, 0)) // with other ids
	v := r.verdict("", 200)
	if v.Valid || len(v.Breaks) != 1 || v.Breaks[0].Type != breakRoot || *v.Breaks[0].ExpectedHash != signed.Root() ||
		*v.Breaks[0].ActualHash != again.heads[signed.Lane].Root() {
		t.Errorf("%+v", v)
	}
}

func TestAnchors(t *testing.T) {
	r := newRig(t)
	if a := r.get(r.tenant, "/api/v1/anchors", nil); !strings.Contains(string(a.body), `"data":[]`) {
		t.Errorf("without any: %s", a.body)
	}
	n := r.newNotary()
	for i := range 7 {
		if i == 4 {
			for _, rec := range n.Rotate(t)[:1] {
				r.writeLog(rec)
			}
		}
		r.writeLog(n.Epoch(t)[0])
		r.writeLog(n.Checkpoint(t))
	}
	r.exec(t.Context(), "INSERT INTO checkpoints SELECT * REPLACE (witnesses + 1 AS witnesses, true AS quorum) FROM checkpoints WHERE size = 3")

	var ids []string
	for cursor := ""; ; {
		q := url.Values{"limit": {"3"}}
		if cursor != "" {
			q.Set("cursor", cursor)
		}
		var page struct {
			Data       []anchor
			Pagination pagination
		}
		a := r.get(r.tenant, "/api/v1/anchors", q)
		if err := json.Unmarshal(a.body, &page); err != nil || a.status != 200 || page.Pagination.Total != 7 {
			t.Fatalf("%d %s: %v", a.status, a.body, err)
		}
		for _, one := range page.Data {
			ids = append(ids, one.ID)
		}
		if !page.Pagination.HasMore {
			break
		}
		cursor = *page.Pagination.NextCursor
	}
	if want := []string{"9", "8", "7", "5", "4", "3", "2"}; !slices.Equal(ids, want) {
		t.Errorf("anchors %v, want %v", ids, want)
	}
	var one struct{ Data anchor }
	if err := json.Unmarshal(r.get(r.tenant, "/api/v1/anchors/3", nil).body, &one); err != nil {
		t.Fatal(err)
	}
	if a := one.Data; a.Size != 3 || a.Witnesses != 1 || !a.Quorum || a.Origin != n.Origin || !strings.HasPrefix(a.Note, n.Origin+"\n3\n") {
		t.Errorf("anchor 3: %+v", a)
	}
	check := func(id string, valid bool, problem string) {
		t.Helper()
		var v struct{ Data anchorVerdict }
		a := r.get(r.tenant, "/api/v1/anchors/"+id+"/verify", nil)
		if err := json.Unmarshal(a.body, &v); err != nil || a.status != 200 {
			t.Fatalf("%d %s: %v", a.status, a.body, err)
		}
		if v.Data.Valid != valid || !strings.Contains(v.Data.Problem, problem) || valid != (v.Data.Key != "" && *v.Data.ComputedRoot == v.Data.Root) {
			t.Errorf("anchor %s: %s", id, a.body)
		}
	}
	for _, id := range ids {
		check(id, true, "")
	}
	for _, id := range []string{"6", "0", "03", "x", "18446744073709551616"} {
		for _, path := range []string{"", "/verify"} {
			if a := r.get(r.tenant, "/api/v1/anchors/"+id+path, nil); a.status != http.StatusNotFound {
				t.Errorf("anchor %s: %d", id, a.status)
			}
		}
	}
	r.exec(t.Context(), "ALTER TABLE root_log UPDATE hash = unhex(repeat('01', 32)) WHERE entry_index = 7 SETTINGS mutations_sync = 1")
	check("9", false, "another root")
	check("3", true, "")
	r.exec(t.Context(), "ALTER TABLE checkpoints UPDATE note = replace(note, '\n2\n', '\n1\n') WHERE size = 2 SETTINGS mutations_sync = 1")
	check("2", false, "states size 1")
	r.exec(t.Context(), "ALTER TABLE root_log DELETE WHERE entry_index = 0 SETTINGS mutations_sync = 1")
	check("3", false, "missing")
}
