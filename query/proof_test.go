package query

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/internal/notarytest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
)

const proofBody = `{"actor_id":"usr_1","action":"config.updated","resource":"service","resource_id":"r%d","metadata":{"old_value":"4711"}}`

// manyBodies are events of several lanes.
func manyBodies(n int) (bodies []string) {
	for i := range n {
		bodies = append(bodies, fmt.Sprintf(proofBody, i))
	}
	return bodies
}

// proof gets the proof of an event, which must be a 200.
func (r *rig) proof(t tenant, id string) *ledger.Bundle {
	r.tb.Helper()
	a := r.get(t, "/api/v1/events/"+id+"/proof", nil)
	if a.status != http.StatusOK {
		r.tb.Fatalf("proof of %s: %d %s\n%s", id, a.status, a.body, r.log)
	}
	if want := `attachment; filename="` + id + `.proof.json"`; a.header.Get("Content-Disposition") != want {
		r.tb.Errorf("Content-Disposition %q, want %q", a.header.Get("Content-Disposition"), want)
	}
	b, err := ledger.ParseBundle(a.body)
	if err != nil {
		r.tb.Fatal(err)
	}
	return b
}

func (r *rig) holds(b *ledger.Bundle, trust *ledger.Trust, want ...ledger.Verdict) {
	r.tb.Helper()
	var found []ledger.Verdict
	result := b.Verify(trust, time.Now())
	for _, f := range result.Faults {
		found = append(found, f.Verdict)
	}
	if !slices.Equal(found, want) || result.Checkpoint == nil {
		r.tb.Errorf("the proof of %s: %v, want %v", b.ID, result.Faults, want)
	}
}

func TestProof(t *testing.T) {
	r := newRig(t)
	l := r.newLoader(r.tenant)
	n := r.newNotary()
	trust := n.trust(t)
	all := l.add(manyBodies(700)...)
	if a := r.get(r.tenant, "/api/v1/events/"+all[0].id+"/proof", nil); a.status != http.StatusServiceUnavailable {
		t.Errorf("without a checkpoint: %d %s", a.status, a.body)
	}
	n.sign(l.chains())
	for i := 0; i < len(all); i += 37 {
		b := r.proof(r.tenant, all[i].id)
		r.holds(b, trust)
		if b.ID != all[i].id || b.Sequence != all[i].leaf.Sequence {
			t.Errorf("the proof of %s is one of %s", all[i].id, b.ID)
		}
	}

	// What is newer than the checkpoint cannot be proved yet.
	late := l.add(fmt.Sprintf(proofBody, 1))[0]
	a := r.get(r.tenant, "/api/v1/events/"+late.id+"/proof", nil)
	if a.status != http.StatusConflict || a.header.Get("Retry-After") != "10" || !strings.Contains(string(a.body), "checkpoint") {
		t.Errorf("before its checkpoint: %d %v %s", a.status, a.header, a.body)
	}
	n.commit(n.Rotate(t)...)
	n.sign(l.chains())
	r.holds(r.proof(r.tenant, late.id), trust)
	b := r.proof(r.tenant, all[650].id)
	r.holds(b, trust)
	if len(b.Keys) != 2 {
		t.Errorf("%d key changes, want 2", len(b.Keys))
	}
	text, err := b.Encode()
	if err != nil || len(text) > 10_000 {
		t.Errorf("a proof has %d bytes: %v", len(text), err)
	}

	for _, id := range []string{anyID, "nonsense"} {
		if a := r.get(r.tenant, "/api/v1/events/"+id+"/proof", nil); a.status != http.StatusNotFound {
			t.Errorf("event %s: %d %s", id, a.status, a.body)
		}
	}
	stranger := r.newTenant("stranger")
	if a := r.get(stranger, "/api/v1/events/"+late.id+"/proof", nil); a.status != http.StatusNotFound {
		t.Errorf("another workspace: %d %s", a.status, a.body)
	}
}

// A second implementation, written from the specification alone, believes what the server proves.
func TestPythonVerifiesProof(t *testing.T) {
	path, err := exec.LookPath("python3")
	if err != nil {
		if os.Getenv("IMMUTABLE_REQUIRE_REAL") == "1" {
			t.Fatalf("IMMUTABLE_REQUIRE_REAL=1: %v", err)
		}
		t.Skip(err)
	}
	r := newRig(t)
	l := r.newLoader(r.tenant)
	n := r.newNotary()
	event := l.add(manyBodies(30)...)[20]
	n.sign(l.chains())
	dir := t.TempDir()
	bundle, trust := filepath.Join(dir, "bundle.json"), filepath.Join(dir, "trust")
	key := r.do("", http.MethodGet, "/api/v1/ledger/key")
	for name, text := range map[string][]byte{
		bundle: r.get(r.tenant, "/api/v1/events/"+event.id+"/proof", nil).body, trust: key.body,
	} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.CommandContext(t.Context(), path, "../ledger/testdata/verify.py", "bundle", bundle, "--trust", trust).CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "VERIFIED" {
		t.Errorf("%v: %s", err, out)
	}
}

func TestProofOfRedactedEvent(t *testing.T) {
	r := newRig(t)
	l := r.newLoader(r.tenant)
	n := r.newNotary()
	trust := n.trust(t)
	event := l.add(fmt.Sprintf(proofBody, 0), fmt.Sprintf(proofBody, 0))[0]
	n.sign(l.chains())
	r.rewrite(r.tenant, event.id, "/metadata/old_value")
	unexplained := func() {
		t.Helper()
		a := r.get(r.tenant, "/api/v1/events/"+event.id+"/proof", nil)
		if a.status != http.StatusConflict || !strings.Contains(string(a.body), "redaction") {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	unexplained() // no redaction at all: a bundle would say WITHHELD
	l.kind = ledger.KindRedaction
	l.add(fmt.Sprintf(`{"actor_id":"key:1","action":"event.redacted","resource":"service","resource_id":"r0",
		"metadata":{"event_id":%q,"paths":["/metadata/old_value"]}}`, event.id))
	unexplained() // one before its checkpoint
	n.sign(l.chains())
	b := r.proof(r.tenant, event.id)
	r.holds(b, trust, ledger.Redacted)
	if len(b.Redactions) != 1 || b.Body != "" || b.Seed != nil || strings.Contains(fmt.Sprint(b.Disclosure), "4711") {
		t.Errorf("the bundle shows %+v", b.BundleLeaf)
	}
	if v := r.verdict("", 200); !v.Valid || v.EventsChecked != 3 {
		t.Errorf("GET /verify: %+v", v)
	}
}

// A clock that was wrong makes no proof wrong.
func TestProofOfLaterEvent(t *testing.T) {
	r := newRig(t)
	l := r.newLoader(r.tenant)
	l.clock = epoch.Add(time.Hour)
	n := r.newNotary()
	event := l.add(fmt.Sprintf(proofBody, 0))[0]
	n.sign(l.chains())
	r.holds(r.proof(r.tenant, event.id), n.trust(t), ledger.TimeAnomaly)
}

// ClickHouse goes away.
func TestProvingWithoutClickHouse(t *testing.T) {
	r := newRig(t, func(c *Config) { c.ClickHouse = clickhouse.Config{DSN: "clickhouse://127.0.0.1:9/db"} })
	r.started()
	for _, path := range []string{
		"events/" + anyID + "/proof", "verify", "anchors", "anchors/1", "anchors/1/verify", "ledger/chains", "ledger/checkpoint", "ledger/key",
		"ledger/tile/0/000", "ledger/tile/entries/000", "ledger/leaves?chain=" + strings.Repeat("0", 32),
	} {
		a := r.do(r.token, http.MethodGet, "/api/v1/"+path)
		if a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" {
			t.Errorf("%s: %d %v %s", path, a.status, a.header, a.body)
		}
	}
}

// A proof reads 256 hashes for each level of the chain's tree, where nothing is remembered: with 77 times as many leaves, one level more. Behind the last
// complete subtree of each level these chains have few.
func TestProofReadsFewHashes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n := r.newNotary()
	for _, of := range []struct {
		size   uint64
		levels float64
	}{{2_600, 2}, {200_000, 3}} {
		who := r.newTenant(fmt.Sprint(of.size))
		places := []uint64{1, of.size/2 + 77, of.size - 1}
		c, ids := r.synthetic(who, of.size, places...)
		n.sign([]notarytest.Chain{c})
		for i, id := range ids {
			r.service.known.forget(c.Chain)
			before := r.counter("immutable_query_hashes_read_total")
			r.holds(r.proof(who, id), n.trust(t))
			read := r.counter("immutable_query_hashes_read_total") - before
			t.Logf("%v hashes for the proof of %d of %d", read, places[i], of.size)
			if read < 2 || read > 256*of.levels+8 {
				t.Errorf("%v hashes were read for the proof of %d in a chain of %d", read, places[i], of.size)
			}
		}
	}
}

// Tampering with what a proof is made of is a 500 that is counted, and never a proof that does not hold.
func TestProofOfDamage(t *testing.T) {
	t.Parallel()
	for name, statement := range map[string]string{
		"body":           "ALTER TABLE events UPDATE body = replace(body, '4711', '4712') WHERE true",
		"not canonical":  "ALTER TABLE events UPDATE body = concat(' ', body) WHERE true",
		"seed":           "ALTER TABLE events UPDATE seed = unhex('000102030405060708090a0b0c0d0e0f') WHERE true",
		"disclosure":     "ALTER TABLE events UPDATE disclosure = '{' WHERE true",
		"a leaf":         "ALTER TABLE leaves UPDATE leaf_hash = unhex(repeat('ab', 32)) WHERE sequence = 2",
		"a missing leaf": "ALTER TABLE leaves DELETE WHERE sequence = 2",
		"all leaves":     "ALTER TABLE leaves DELETE WHERE true",
		"a time":         "ALTER TABLE events UPDATE recorded_at = recorded_at + 1 WHERE true",
		"a leaf twice":   "INSERT INTO leaves SELECT * REPLACE (unhex(repeat('cd', 32)) AS leaf_hash) FROM leaves",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			l := r.newLoader(r.tenant)
			n := r.newNotary()
			bodies := make([]string, 10)
			for i := range bodies {
				bodies[i] = fmt.Sprintf(proofBody, 0) // of one lane
			}
			all := l.add(bodies...)
			n.sign(l.chains())
			r.holds(r.proof(r.tenant, all[3].id), n.trust(t))
			settings := " SETTINGS mutations_sync = 1"
			if strings.HasPrefix(statement, "INSERT") {
				settings = ""
			}
			r.exec(t.Context(), statement+settings)
			a := r.get(r.tenant, "/api/v1/events/"+all[3].id+"/proof", nil)
			if a.status != http.StatusInternalServerError || !strings.Contains(string(a.body), "does not match its hashes") {
				t.Errorf("%d %s", a.status, a.body)
			}
			if r.counter("immutable_query_damaged_total") == 0 || !strings.Contains(r.log.String(), "damaged") {
				t.Error("it is not counted, or not logged")
			}
		})
	}
}

// A stored hash that is damaged is read again after it was repaired, although hashes of its level are remembered. Those of other chains stay, and a body that
// is damaged has none forgotten.
func TestProofOfRepairedDamage(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n := r.newNotary()
	c, ids := r.synthetic(r.tenant, 600, 3) // which needs the root of the leaves 256 to 511
	n.sign([]notarytest.Chain{c})
	flip := func() {
		r.exec(t.Context(), "ALTER TABLE leaves UPDATE node = reverse(node) WHERE sequence = 511 SETTINGS mutations_sync = 1")
	}
	refused := func() {
		t.Helper()
		if a := r.get(r.tenant, "/api/v1/events/"+ids[0]+"/proof", nil); a.status != http.StatusInternalServerError {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	other := ledger.ChainID{1}
	r.service.known.put(other, 1, map[uint64]ledger.Hash{0: {}})
	flip()
	refused()
	if r.knows(c.Chain, 1, 1) || !r.knows(other, 1, 0) {
		t.Error("the chain's node is remembered, or another chain's forgotten")
	}
	flip()
	r.holds(r.proof(r.tenant, ids[0]), n.trust(t))
	before := r.counter("immutable_query_hashes_read_total")
	r.proof(r.tenant, ids[0])
	first := r.counter("immutable_query_hashes_read_total") - before
	r.service.known.forget(c.Chain)
	r.proof(r.tenant, ids[0])
	if all := r.counter("immutable_query_hashes_read_total") - before - first; first != all-1 {
		t.Errorf("%v hashes were read with one of %v remembered", first, all)
	}
	r.exec(t.Context(), "ALTER TABLE events UPDATE body = replace(body, '4711', '4712') WHERE sequence = 3 SETTINGS mutations_sync = 1")
	refused()
	if !r.knows(c.Chain, 1, 1) {
		t.Error("nodes are forgotten for a body")
	}
}

// knows reports whether the root of a subtree is remembered.
func (r *rig) knows(chain ledger.ChainID, level int, n uint64) bool {
	left := r.service.known.take(chain, level, []ledger.Span{{Level: level, From: n, To: n + 1}}, map[uint64]ledger.Hash{})
	return len(left) == 0
}

func TestKnownNodesAreBounded(t *testing.T) {
	t.Parallel()
	k := knownNodes{nodes: map[nodeKey]ledger.Hash{}}
	for chain := range byte(3) {
		read := map[uint64]ledger.Hash{}
		for n := range uint64(maxKnown / 2) {
			read[n] = ledger.Hash{chain}
		}
		k.put(ledger.ChainID{chain}, 1, read)
	}
	if len(k.nodes) != maxKnown {
		t.Errorf("%d nodes are remembered", len(k.nodes))
	}
	found := map[uint64]ledger.Hash{}
	left := k.take(ledger.ChainID{2}, 1, []ledger.Span{{Level: 1, From: 0, To: maxKnown / 2}}, found)
	if len(found) == 0 || len(found)+len(left) != maxKnown/2 || found[left[0].From] != (ledger.Hash{}) {
		t.Errorf("%d found, %d left", len(found), len(left))
	}
}

// The notary's state in Kafka is not what its epoch says: no proof is made of it.
func TestProofOfAnotherMap(t *testing.T) {
	r := newRig(t)
	l := r.newLoader(r.tenant)
	n := r.newNotary()
	event := l.add(manyBodies(3)...)[0]
	n.sign(l.chains())
	// The chain's record with another root.
	other := l.chains()[0]
	other.Range[0][0] ^= 1
	records := n.Epoch(t, l.chains()...)
	records[0].Value = bytes.Replace(records[0].Value, rootOf(l.chains()[0]), rootOf(other), 1)
	n.commit(records...)
	n.commit(n.Checkpoint(t))
	r.eventually("the mismatch is seen", func() bool { return r.counter("immutable_query_map_mismatches_total") > 0 })
	a := r.get(r.tenant, "/api/v1/events/"+event.id+"/proof", nil)
	if a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if r.labelled("immutable_query_unavailable_total", reasonMap) == 0 || !strings.Contains(r.log.String(), "no proofs can be made") {
		t.Error("it is not counted, or not logged")
	}
	// The next epoch sets the chain right.
	n.sign(l.chains())
	r.holds(r.proof(r.tenant, event.id), n.trust(t))
}

func rootOf(c notarytest.Chain) []byte {
	root := c.Root()
	return root[:]
}

// The map stays at the newest epoch that a checkpoint covers, whatever else is on the topic, and is the same when it is read again.
func TestMapFollowsCheckpoints(t *testing.T) {
	r := newRig(t)
	l := r.newLoader(r.tenant)
	n := r.newNotary()
	trust := n.trust(t)
	first := l.add(manyBodies(50)...)
	n.sign(l.chains())
	signed := n.Log.Size
	// Epochs without a checkpoint.
	for range 3 {
		l.add(manyBodies(10)...)
		n.commit(n.Epoch(t, l.chains()...)...)
	}
	r.eventually("they are read", func() bool {
		r.service.roots.mu.RLock()
		defer r.service.roots.mu.RUnlock()
		return r.service.roots.reading.complete == n.Log.Size
	})
	b := r.proof(r.tenant, first[7].id)
	r.holds(b, trust)
	if at, err := ledger.ParseEntry([]byte(b.Epoch)); err != nil || at.Index != signed-1 {
		t.Errorf("proved at %v: %v", at, err)
	}
	n.commit(n.Checkpoint(t))
	n.await()
	r.holds(r.proof(r.tenant, first[7].id), trust)
	if n := r.counter("immutable_query_map_mismatches_total"); n != 0 {
		t.Errorf("%v mismatches", n)
	}

	// A service that starts now reads a state whose newest epoch is covered, or waits for that.
	l.add(manyBodies(10)...)
	n.commit(n.Epoch(t, l.chains()...)...)
	r.restart()
	if a := r.get(r.tenant, "/api/v1/events/"+first[7].id+"/proof", nil); a.status != http.StatusServiceUnavailable {
		t.Errorf("the newest state is of an epoch without a checkpoint: %d %s", a.status, a.body)
	}
	n.commit(n.Checkpoint(t))
	n.await()
	r.holds(r.proof(r.tenant, first[7].id), trust)
}

// More changes than are kept one by one wait for a checkpoint.
func TestMapCollapses(t *testing.T) {
	m := &chainMap{chains: map[ledger.ChainID]*chainRoot{}, workspaces: map[[16]byte][]*chainRoot{}}
	for epoch := range uint64(5) {
		for c := range byte(3) {
			m.pending = append(m.pending, change{epoch, chainRoot{chain: ledger.ChainID{c}, size: epoch + uint64(c)}})
		}
	}
	m.advance(1)
	if len(m.pending) != 9 || m.chains[ledger.ChainID{2}].size != 3 {
		t.Fatalf("at epoch 1: %+v", m)
	}
	m.collapse()
	if len(m.pending) != 3 || m.floor != 4 {
		t.Fatalf("%d changes from %d on", len(m.pending), m.floor)
	}
	m.advance(4)
	if len(m.pending) != 0 || m.chains[ledger.ChainID{2}].size != 6 || m.tree.Len() != 3 {
		t.Errorf("at epoch 4: %+v", m)
	}
}

// Kafka reports an error, and then goes away: what is known is proved on.
func TestProofsWithoutKafka(t *testing.T) {
	r := newRig(t)
	l := r.newLoader(r.tenant)
	n := r.newNotary()
	event := l.add(manyBodies(3)...)[0]
	n.sign(l.chains())
	topic := r.kafka.Config.Topic(schemas.TopicNotaryState)
	r.kafka.Fake.ControlKey(int16(kmsg.Fetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		fetch := req.(*kmsg.FetchRequest)
		resp := fetch.ResponseKind().(*kmsg.FetchResponse)
		for _, asked := range fetch.Topics {
			if asked.Topic != topic && asked.TopicID != r.kafka.Fake.TopicInfo(topic).TopicID {
				r.kafka.Fake.KeepControl()
				return nil, nil, false
			}
			answer := kmsg.NewFetchResponseTopic()
			answer.Topic, answer.TopicID = asked.Topic, asked.TopicID
			p := kmsg.NewFetchResponseTopicPartition()
			p.ErrorCode = kerr.OffsetOutOfRange.Code
			answer.Partitions = append(answer.Partitions, p)
			resp.Topics = append(resp.Topics, answer)
		}
		return resp, nil, true
	})
	r.eventually("it is read again", func() bool { return r.counter("immutable_query_map_restarts_total") > 0 })
	r.holds(r.proof(r.tenant, event.id), n.trust(t))
	l.add(manyBodies(3)...)
	n.sign(l.chains())
	r.kafka.Fake.Close()
	r.holds(r.proof(r.tenant, event.id), n.trust(t))
}

func TestChains(t *testing.T) {
	r := newRig(t)
	l := r.newLoader(r.tenant)
	stranger := r.newTenant("stranger")
	other := r.newLoader(stranger)
	n := r.newNotary()
	l.add(manyBodies(50)...)
	other.add(manyBodies(20)...)
	n.sign(slices.Concat(l.chains(), other.chains()))
	for _, tc := range []struct {
		tenant
		l *loader
	}{{r.tenant, l}, {stranger, other}} {
		a := r.get(tc.tenant, "/api/v1/ledger/chains", nil)
		var list struct{ Data chainList }
		if err := json.Unmarshal(a.body, &list); err != nil || a.status != http.StatusOK {
			t.Fatalf("%d %s: %v", a.status, a.body, err)
		}
		if len(list.Data.Chains) != len(tc.l.chains()) {
			t.Errorf("%d chains, want %d", len(list.Data.Chains), len(tc.l.chains()))
		}
		e, err := ledger.ParseEntry([]byte(list.Data.Epoch))
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range list.Data.Chains {
			if c.Workspace != ledger.Hex16(tc.workspace.ID) || c.Chain != ledger.NewChainID(c.Workspace, c.Incarnation, c.Lane) {
				t.Errorf("chain %x of workspace %x", c.Chain, c.Workspace)
			}
			if err := c.Map.VerifyPresent(c.Chain, c.Size, c.Root, e.Epoch.MapRoot); err != nil {
				t.Error(err)
			}
			if head := tc.l.heads[c.Lane]; c.Size != head.Size || c.Root != head.Root() || c.Lanes != tc.workspace.Lanes {
				t.Errorf("lane %d: %+v", c.Lane, c)
			}
		}
		p, err := ledger.ParseLogProof([]byte(list.Data.LogProof))
		if err != nil || p.Index != e.Index || len(list.Data.Keys) != 1 {
			t.Errorf("log proof %+v: %v", p, err)
		}
	}
	empty := r.newTenant("empty")
	if a := r.get(empty, "/api/v1/ledger/chains", nil); !strings.Contains(string(a.body), `"chains":[]`) {
		t.Errorf("a workspace without chains: %s", a.body)
	}
}

// What notary_state holds beside chains is no chain, and nothing that cannot be read.
func TestMapPassesOverOtherRecords(t *testing.T) {
	var m chainMap
	for _, key := range []string{"partition/3", "node/1/0", "key/0"} {
		if err := m.take(&kgo.Record{Key: []byte(key), Value: []byte{0xff}}); err != nil || len(m.pending) > 0 {
			t.Errorf("%s: %v, %d changes", key, err, len(m.pending))
		}
	}
	if err := m.take(&kgo.Record{Key: []byte("00112233445566778899aabbccddeeff"), Value: []byte{0xff}}); err == nil {
		t.Error("a chain that cannot be read")
	}
}
