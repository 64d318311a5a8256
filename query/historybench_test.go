package query

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"net/http"
	"testing"

	"getimmutable.dev/immutable/internal/notarytest"
	"getimmutable.dev/immutable/ledger"
)

var benchChains = flag.Int("bench.chains", 100, "chains of BenchmarkOlderChains, which have bench.leaves together; 1,000 for the published figures")

// BenchmarkOlderChains is GET /ledger/chains of an older epoch whose map has to be made: with nothing kept, and where the map of an epoch a
// thousandth of the ledger before it is.
//
//	go test ./query -run '^$' -bench OlderChains -benchtime 5x -bench.leaves 10000000 -bench.chains 1000
func BenchmarkOlderChains(b *testing.B) {
	r := newRig(b)
	n := r.newNotary()
	ws := r.workspace
	chains, each := *benchChains, *benchLeaves/uint64(*benchChains)
	var list []notarytest.Chain
	var ids []string
	for i := range chains {
		c := notarytest.Chain{Workspace: ws.ID, Incarnation: ws.Incarnation, Lanes: ws.Lanes}
		if i > 0 { // of other workspaces
			binary.BigEndian.PutUint32(c.Workspace[:], uint32(i))
		}
		c.Chain = ledger.NewChainID(c.Workspace, c.Incarnation, 0)
		list, ids = append(list, c), append(ids, hex.EncodeToString(c.Chain[:]))
	}
	// All have the same hashes: SHA-256 of their sequences.
	shares := []uint64{100, 101, 500, 900, 999, 1000}
	heads := map[uint64]ledger.Head{}
	var head ledger.Head
	var at []uint64
	var nodes []string
	for sequence := range each {
		var le [8]byte
		binary.LittleEndian.PutUint64(le[:], sequence)
		if node := head.AppendHash(sha256.Sum256(le[:])); len(node) > 0 {
			text := ""
			for _, h := range node {
				text += hex.EncodeToString(h[:])
			}
			at, nodes = append(at, sequence), append(nodes, text)
		}
		for _, share := range shares {
			if head.Size == each*share/1000 {
				heads[share] = head.Clone()
			}
		}
	}
	r.exec(b.Context(), `INSERT INTO leaves (part, workspace, chain, sequence, leaf_hash, node, kind, ledger_partition, ledger_offset, incarnation, lanes)
		SELECT 202611, unhex(?), unhex(arrayElement(?, toUInt32(number % ? + 1))) AS id, intDiv(number, ?) AS n,
			SHA256(reinterpretAsFixedString(n)), unhex(transform(n, ?, ?, '')), 2, number % 4, number, unhex(?), ? FROM numbers(?)`,
		hexOf(ws.ID), ids, chains, chains, at, nodes, hexOf(ws.Incarnation), ws.Lanes, each*uint64(chains))
	r.exec(b.Context(), "OPTIMIZE TABLE leaves FINAL")
	epochs := map[uint64]uint64{}
	for _, share := range shares {
		for i := range list {
			list[i].Head = heads[share]
			list[i].Chain = ledger.NewChainID(list[i].Workspace, list[i].Incarnation, 0)
		}
		for p := range n.Positions {
			n.Positions[p] = heads[share].Size * uint64(chains)
		}
		epochs[share] = n.Log.Size
		n.sign(list)
	}
	h := r.service.history
	spent := func() (sizes, hashes float64) {
		return r.seconds(statementSizes), r.seconds(statementMapHashes)
	}
	forget := func() {
		h.mu.Lock()
		h.kept, h.cost = nil, 0
		h.mu.Unlock()
	}
	get := func(b *testing.B, share uint64) {
		b.Helper()
		target := fmt.Sprintf("/api/v1/ledger/chains?epoch=%d", epochs[share])
		for {
			a := r.do(r.token, http.MethodGet, target)
			if a.status == http.StatusOK {
				return
			}
			if a.status != http.StatusServiceUnavailable {
				b.Fatalf("%d %s", a.status, a.body)
			}
		}
	}
	for _, share := range shares[:5] {
		b.Run(fmt.Sprintf("%d of 1000", share), func(b *testing.B) {
			s0, h0 := spent()
			for range b.N {
				b.StopTimer()
				forget()
				b.StartTimer()
				get(b, share)
			}
			s1, h1 := spent()
			b.ReportMetric((s1-s0)*1000/float64(b.N), "sizes-ms")
			b.ReportMetric((h1-h0)*1000/float64(b.N), "hashes-ms") // of statements side by side
		})
	}
	b.Run("101 after 100", func(b *testing.B) {
		for range b.N {
			b.StopTimer()
			forget()
			get(b, 100)
			b.StartTimer()
			get(b, 101)
		}
	})
	b.Run("kept", func(b *testing.B) {
		for range b.N {
			get(b, 500)
		}
	})
}

// seconds is what a statement has taken so far.
func (r *rig) seconds(statement string) (sum float64) {
	r.tb.Helper()
	families, err := r.reg.Gather()
	if err != nil {
		r.tb.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "immutable_query_statement_duration_seconds" {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == statement {
				sum += m.GetHistogram().GetSampleSum()
			}
		}
	}
	return sum
}
