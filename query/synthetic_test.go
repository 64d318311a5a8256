package query

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"

	"getimmutable.dev/immutable/internal/notarytest"
	"getimmutable.dev/immutable/ledger"
)

const (
	syntheticBody  = `{"action":"config.updated","actor_id":"usr_1","metadata":{"new_value":"250","old_value":"4711"},"occurred_at":"2026-11-01T12:00:00.000000Z"}`
	syntheticStart = 1_793_534_400_000_000 // recorded_at of sequence 0, in microseconds; one leaf a microsecond
)

// synthetic fills leaves and events with a chain of n leaves, by SQL. The hashes are SHA-256 of their sequences, but for those at
// the genuine ones, which are leaves with the content that events has of every leaf; it returns the ids of their events.
func (r *rig) synthetic(t tenant, n uint64, genuine ...uint64) (c notarytest.Chain, ids []string) {
	r.tb.Helper()
	ctx := r.tb.Context()
	ws := t.workspace
	c = notarytest.Chain{Workspace: ws.ID, Incarnation: ws.Incarnation, Lanes: ws.Lanes}
	c.Chain = ledger.NewChainID(ws.ID, ws.Incarnation, 0)
	seed := [16]byte{15: 1}
	root, count, err := ledger.RecomputeBodyRoot(seed, []byte(syntheticBody))
	if err != nil {
		r.tb.Fatal(err)
	}
	batch, err := r.conn.PrepareBatch(ctx, "INSERT INTO leaves (part, workspace, chain, sequence, leaf_hash, node, id, kind, recorded_at, "+
		"input_offset, ledger_offset, incarnation, lanes)")
	if err != nil {
		r.tb.Fatal(err)
	}
	defer func() { _ = batch.Close() }()
	for sequence := range n {
		var le [8]byte
		binary.LittleEndian.PutUint64(le[:], sequence)
		hash := ledger.Hash(sha256.Sum256(le[:]))
		at := syntheticStart + int64(sequence)
		id := syntheticID(sequence, at)
		kind := ledger.KindEvent
		switch {
		case slices.Contains(genuine, sequence):
			leaf := ledger.Leaf{
				Chain: c.Chain, Sequence: sequence, Previous: c.LastLeafHash, Kind: kind, ID: id, RecordedAt: at, Offset: sequence,
				FieldCount: uint16(count), BodyRoot: root,
			}
			hash = leaf.Hash()
			ids = append(ids, uuid.UUID(id).String())
		case sequence == 0:
			genesis := ledger.Genesis(ws.ID, ws.Incarnation, 0, ws.Lanes, at, 0)
			hash, id, kind = genesis.Hash(), [16]byte{}, genesis.Kind
		}
		node := c.AppendHash(hash)
		if len(node) == 0 && sequence > 0 && !slices.Contains(genuine, sequence) {
			continue // by SQL
		}
		var nodes []byte
		for _, h := range node {
			nodes = append(nodes, h[:]...)
		}
		if err := batch.Append(uint32(202611), ws.ID[:], c.Chain[:], sequence, hash[:], nodes, id[:], uint8(kind), time.UnixMicro(at),
			sequence, sequence, ws.Incarnation[:], ws.Lanes); err != nil {
			r.tb.Fatal(err)
		}
	}
	if err := batch.Send(); err != nil {
		r.tb.Fatal(err)
	}
	const le = "reinterpretAsFixedString(number)"
	const digest = "SHA256(concat(" + le + ", unhex('01')))"
	id := fmt.Sprintf("if(number %% 2 = 1, concat(substring(%s, 1, 6), unhex('80'), substring(%[1]s, 8, 9)), concat("+
		"substring(reverse(reinterpretAsFixedString(toUInt64(intDiv(%d + number, 1000)))), 3, 6), unhex('70'), substring(%[1]s, 8, 9)))",
		digest, syntheticStart)
	r.exec(ctx, `INSERT INTO leaves (part, workspace, chain, sequence, leaf_hash, id, kind, recorded_at, input_offset, ledger_offset, incarnation, lanes)
		SELECT 202611, unhex(?), unhex(?), number, SHA256(`+le+`), `+id+`, 2,
			fromUnixTimestamp64Micro(toInt64(? + number)), number, number, unhex(?), ?
		FROM numbers(?) WHERE number > 0 AND (number + 1) % 256 != 0 AND NOT has(?, number)`,
		hexOf(ws.ID), hexOf(c.Chain), syntheticStart, hexOf(ws.Incarnation), ws.Lanes, n, genuine)
	r.exec(ctx, `INSERT INTO events (part, workspace, id, kind, occurred_at, recorded_at, body, chain, sequence, seed, input_offset, ledger_offset)
		SELECT 202611, unhex(?), `+id+`, 2, fromUnixTimestamp64Micro(toInt64(? + number)),
			fromUnixTimestamp64Micro(toInt64(? + number)), ?, unhex(?), number, unhex(?), number, number
		FROM numbers(1, ?)`, hexOf(ws.ID), syntheticStart, syntheticStart, syntheticBody, hexOf(c.Chain), hexOf(seed), n-1)
	return c, ids
}

// syntheticID is a UUIDv7 where the sequence is even, as of an event without an idempotency key, else a UUIDv8.
func syntheticID(sequence uint64, recordedAt int64) (id [16]byte) {
	var le, millis [8]byte
	binary.LittleEndian.PutUint64(le[:], sequence)
	digest := sha256.Sum256(append(le[:], 1))
	id = [16]byte(digest[:16])
	if id[6] = 0x80; sequence%2 == 0 {
		binary.BigEndian.PutUint64(millis[:], uint64(recordedAt)/1000)
		copy(id[:6], millis[2:])
		id[6] = 0x70
	}
	return id
}

func hexOf(id [16]byte) string { return hex.EncodeToString(id[:]) }

// proofPlaces is how many events BenchmarkProof proves: no two in one subtree of 65,536 leaves, of 10 million, as an auditor's are not.
const proofPlaces = 150

var benchLeaves = flag.Uint64("bench.leaves", 100_000, "leaves of the chain that BenchmarkProof proves in; 10,000,000 for the published figures")

// BenchmarkProof is GET /events/{id}/proof, and what a verifier reads: the least, the median and the 99th percentile in milliseconds. Before the proofs
// named cold nothing is remembered, as after a start; before the others what the proof of another event of the chain leaves.
//
//	go test ./query -run '^$' -bench Proof -benchtime 74x -bench.leaves 10000000
func BenchmarkProof(b *testing.B) {
	r := newRig(b, func(c *Config) { c.CheckpointInterval = 0 }) // the default: looking for checkpoints costs statements
	n := r.newNotary()
	size := *benchLeaves
	var sequences []uint64
	for i := range uint64(proofPlaces) {
		sequences = append(sequences, 2+(size-4)*i/(proofPlaces-1)/2*2+i%2) // keyed every other
	}
	c, ids := r.synthetic(r.tenant, size, sequences...)
	for _, table := range []string{"events", "leaves"} { // as after a while of background merges
		r.exec(b.Context(), "OPTIMIZE TABLE "+table+" FINAL")
	}
	n.sign([]notarytest.Chain{c})
	for _, id := range ids {
		r.holds(r.proof(r.tenant, id), n.trust(b))
	}
	for _, endpoint := range []struct {
		name string
		path func(i int) string
	}{
		{"cold", func(i int) string { return "/api/v1/events/" + ids[2*i%(len(ids)-2)] + "/proof" }},
		{"proof", func(i int) string { return "/api/v1/events/" + ids[2*i%(len(ids)-2)] + "/proof" }},
		{"keyed", func(i int) string { return "/api/v1/events/" + ids[(2*i+1)%(len(ids)-2)] + "/proof" }},
		{"leaves", func(i int) string {
			return "/api/v1/ledger/leaves?chain=" + hexOf(c.Chain) + "&from=" + strconv.FormatUint(size/20*uint64(i%20), 10)
		}},
		{"verify", func(int) string { return "/api/v1/verify" }},
		{"chains", func(int) string { return "/api/v1/ledger/chains" }},
		{"checkpoint", func(int) string { return "/api/v1/ledger/checkpoint" }},
	} {
		b.Run(endpoint.name, func(b *testing.B) {
			before := r.counter("immutable_query_hashes_read_total")
			var times []time.Duration
			for i := range b.N {
				if cold := endpoint.name == "cold"; cold || i%(len(ids)/2-1) == 0 {
					r.service.known.forget(c.Chain)
					if !cold {
						warming := r.counter("immutable_query_hashes_read_total")
						r.proof(r.tenant, ids[len(ids)-1])
						before += r.counter("immutable_query_hashes_read_total") - warming
					}
				}
				began := time.Now()
				if a := r.do(r.token, http.MethodGet, endpoint.path(i)); a.status != http.StatusOK {
					b.Fatalf("%d %s", a.status, a.body)
				}
				times = append(times, time.Since(began))
			}
			slices.Sort(times)
			at := func(quantile float64) float64 {
				return float64(times[int(quantile*float64(len(times)-1))].Microseconds()) / 1000
			}
			b.ReportMetric(at(0), "min-ms")
			b.ReportMetric(at(0.5), "p50-ms")
			b.ReportMetric(at(0.99), "p99-ms")
			b.ReportMetric((r.counter("immutable_query_hashes_read_total")-before)/float64(b.N), "hashes")
		})
	}
}
