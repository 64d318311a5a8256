package e2e_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/internal/notarytest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
	"getimmutable.dev/immutable/sinks/chwriter"
	"getimmutable.dev/immutable/sinks/rootlog"
)

const (
	proofOf       = "/api/v1/events/{id}/proof"
	verification  = "/api/v1/verify"
	anchors       = "/api/v1/anchors"
	anchor        = "/api/v1/anchors/{id}"
	anchorVerify  = "/api/v1/anchors/{id}/verify"
	chains        = "/api/v1/ledger/chains"
	leaves        = "/api/v1/ledger/leaves"
	checkpoint    = "/api/v1/ledger/checkpoint"
	logKey        = "/api/v1/ledger/key"
	tile          = "/api/v1/ledger/tile/{level}/{index}"
	entries       = "/api/v1/ledger/tile/entries/{index}"
	firstTile     = "000.p/1"
	writtenEvents = 3
)

// written has the real writers bring a small ledger into ClickHouse: events of the workspace main, sealed as the processor does,
// and what a notary has to say of them. It returns one event's id and its chain.
func (a *api) written() (id string, chain string, n *notarytest.Notary) {
	logger := slog.New(slog.NewTextHandler(a.t.Output(), nil))
	writer, err := chwriter.New(chwriter.Config{Kafka: a.kafka.Config, ClickHouse: a.db.Config(), Linger: time.Millisecond},
		a.view, prometheus.NewRegistry(), logger)
	a.must(err)
	a.run(writer.Run)
	log, err := rootlog.New(rootlog.Config{Kafka: a.kafka.Config, ClickHouse: a.db.Config()}, prometheus.NewRegistry(), logger)
	a.must(err)
	a.run(log.Run)

	main, ok := a.view.WorkspaceByName("main")
	if !ok {
		a.t.Fatal("no workspace main")
	}
	ws := main.ForEvents()
	c := notarytest.Chain{Workspace: ws.ID, Incarnation: ws.Incarnation, Lanes: ws.Lanes}
	build := event.NewBuilder()
	for i := range writtenEvents {
		r, err := build.Build(ws, event.Input{JSON: []byte(valid), RecordedAt: time.Now()})
		a.must(err)
		var e recordpb.Event
		a.must(proto.Unmarshal(r.Value, &e))
		c.Lane, id = r.Lane, uuid.UUID(r.ID).String()
		partition := event.Partition(ws.ID, r.Lane, a.kafka.Layout.Partitions)
		seal := func(leaf ledger.Leaf, e *recordpb.Event) {
			hash, _ := c.Append(&leaf)
			value, err := proto.Marshal(&recordpb.Sealed{
				Event: e, Chain: leaf.Chain[:], Sequence: leaf.Sequence, Previous: leaf.Previous[:], LeafHash: hash[:],
				Partition: uint32(leaf.Partition), Offset: leaf.Offset,
			})
			a.must(err)
			a.kafka.Produce(a.t, &kgo.Record{Topic: schemas.TopicLedger, Partition: partition, Key: r.Key, Value: value, Timestamp: time.Now()})
		}
		if i == 0 {
			c.Chain = ledger.NewChainID(ws.ID, ws.Incarnation, r.Lane)
			genesis := ledger.Genesis(ws.ID, ws.Incarnation, r.Lane, ws.Lanes, e.GetRecordedAt(), 0)
			seal(genesis, &recordpb.Event{
				Kind: recordpb.Kind_KIND_GENESIS, Workspace: e.Workspace, Incarnation: e.Incarnation, Lane: e.Lane, Lanes: e.Lanes,
				RecordedAt: e.RecordedAt, BodyRoot: genesis.BodyRoot[:],
			})
		}
		seal(ledger.Leaf{
			Kind: ledger.KindEvent, ID: r.ID, RecordedAt: e.GetRecordedAt(), Partition: uint16(partition), Offset: uint64(i),
			FieldCount: uint16(e.GetFieldCount()), BodyRoot: ledger.Hash(e.GetBodyRoot()),
		}, &e)
	}
	a.eventually(func() bool {
		a.send(call{method: http.MethodGet, path: logKey, status: 404}) // no notary yet
		res, err := http.NewRequestWithContext(a.t.Context(), http.MethodGet, a.url+"/api/v1/events/"+id, http.NoBody)
		a.must(err)
		res.Header.Set("Authorization", "Bearer "+a.tokens["read"])
		answer, err := http.DefaultClient.Do(res)
		a.must(err)
		defer func() { _ = answer.Body.Close() }()
		return answer.StatusCode == http.StatusOK
	})
	for _, path := range []string{checkpoint, tile, entries} {
		a.send(call{method: http.MethodGet, path: path, id: firstTile, status: 404})
	}
	n = notarytest.New("example.com/ledger")
	other := c
	other.Head = ledger.Head{Chain: ledger.ChainID{1}, Size: 1, Range: []ledger.Hash{{1}}}
	other.Workspace = [16]byte{1}
	notarytest.Commit(a.t, a.kafka, append(n.Rotate(a.t), n.Epoch(a.t, other)...)...)
	notarytest.Commit(a.t, a.kafka, n.Checkpoint(a.t))
	a.eventually(func() bool { return a.status(chains, "read") == http.StatusOK })
	a.send(call{method: http.MethodGet, path: proofOf, id: id, key: "read", status: 409})
	notarytest.Commit(a.t, a.kafka, n.Epoch(a.t, c)...)
	notarytest.Commit(a.t, a.kafka, n.Checkpoint(a.t))
	a.eventually(func() bool { return a.status("/api/v1/events/"+id+"/proof", "read") == http.StatusOK })
	return id, hex.EncodeToString(c.Chain[:]), n
}

func (a *api) status(path, key string) int {
	req, err := http.NewRequestWithContext(a.t.Context(), http.MethodGet, a.url+path, http.NoBody)
	a.must(err)
	req.Header.Set("Authorization", "Bearer "+a.tokens[key])
	res, err := http.DefaultClient.Do(req)
	a.must(err)
	_ = res.Body.Close()
	return res.StatusCode
}

// ledger produces every documented answer of the endpoints that prove.
func (a *api) ledger() {
	openapi3filter.RegisterBodyDecoder("application/x-ndjson", func(
		body io.Reader, _ http.Header, _ *openapi3.SchemaRef, _ openapi3filter.EncodingFn,
	) (any, error) {
		b, err := io.ReadAll(body)
		return string(b), err
	})
	id, chain, n := a.written()
	get := func(path, id, query, key string, status int) []byte {
		a.t.Helper()
		return a.send(call{method: http.MethodGet, path: path, id: id, query: query, key: key, status: status})
	}
	b, err := ledger.ParseBundle(get(proofOf, id, "", "read", 200))
	a.must(err)
	trust, err := ledger.ParseTrust(get(logKey, "", "", "", 200))
	a.must(err)
	if faults := b.Verify(trust, time.Now()).Faults; len(faults) > 0 {
		a.t.Errorf("the proof: %v", faults)
	}
	if !bytes.Contains(get(checkpoint, "", "", "", 200), []byte(n.Origin+"\n3\n")) {
		a.t.Error("the checkpoint is another")
	}
	get(tile, firstTile, "", "", 200)
	get(entries, firstTile, "", "", 200)
	get(chains, "", "", "read", 200)
	get(chains, "", "epoch=2&checkpoint=3", "read", 200)
	get(chains, "", "epoch=0", "read", 404)
	get(chains, "", "epoch=-1", "read", 422)
	get(checkpoint, "", "witnessed=x", "", 422)
	get(proofOf, id, "witnessed=x", "read", 422)
	get(proofOf, id, "witnessed=true", "read", 404)
	if got := bytes.Count(get(leaves, "", "chain="+chain+"&from=0&limit=10000", "read", 200), []byte("\n")); got != writtenEvents+2 {
		a.t.Errorf("%d lines of leaves", got)
	}
	get(leaves, "", "chain="+chain[:31]+"g", "read", 422)
	get(leaves, "", "chain="+hex.EncodeToString(make([]byte, 15))+"ff", "read", 404)
	get(verification, "", "from=2026-01-01T00:00:00Z&to=2126-01-01T00:00:00Z&limit=100000", "read", 200)
	get(verification, "", "limit=0", "read", 422)
	get(anchors, "", "", "read", 200)
	get(anchors, "", "limit=0", "read", 422)
	get(anchor, "3", "", "read", 200)
	get(anchorVerify, "3", "", "read", 200)
	a.parametersOf(anchors, "limit", "cursor")
	a.parametersOf(verification, "from", "to", "limit")
	a.parametersOf(leaves, "chain", "from", "limit")
	a.parametersOf(chains, "epoch", "checkpoint", "witnessed")
	a.parametersOf(checkpoint, "witnessed")
	for _, path := range []string{proofOf, verification, anchors, anchor, anchorVerify, chains, leaves} {
		one := map[string]string{proofOf: id, anchor: "3", anchorVerify: "3"}[path]
		get(path, one, "nonsense=1", "read", 400)
		get(path, one, "", "", 401)
		get(path, one, "", "nothing", 403)
		a.send(call{url: a.stopped, method: http.MethodGet, path: path, id: one, key: "read", status: 503})
		if one != "" {
			get(path, "nonsense", "", "read", 404)
		}
	}
	for _, path := range []string{checkpoint, logKey, tile, entries} {
		get(path, firstTile, "nonsense=1", "", 400)
		a.send(call{url: a.stopped, method: http.MethodGet, path: path, id: firstTile, status: 503})
	}

	conn := a.db.Conn(a.t)
	for _, statement := range []string{
		"ALTER TABLE root_log DELETE WHERE entry_index = 0 SETTINGS mutations_sync = 1",
		"ALTER TABLE events UPDATE body = concat(' ', body) WHERE id != unhex('" + hex.EncodeToString(make([]byte, 16)) + "') SETTINGS mutations_sync = 1",
		"INSERT INTO leaves SELECT * FROM leaves ARRAY JOIN range(20)",
	} {
		a.must(conn.Exec(a.t.Context(), statement))
	}
	for _, path := range []string{logKey, tile, entries} {
		get(path, firstTile, "", "", 500)
	}
	get(proofOf, id, "", "read", 500)
	get(chains, "", "checkpoint=3", "read", 500)
	get(leaves, "", "chain="+chain+"&from=2&limit=1", "read", 500)
}

// parametersOf holds the names of an endpoint's parameters to the description.
func (a *api) parametersOf(path string, want ...string) {
	a.t.Helper()
	var refusal struct {
		Details []struct{ Message string }
	}
	a.must(json.Unmarshal(a.send(call{method: http.MethodGet, path: path, query: "nonsense=1", key: "read", status: 400}), &refusal))
	for _, p := range a.doc.Paths.Value(path).Get.Parameters {
		if !bytes.Contains([]byte(refusal.Details[0].Message), []byte(p.Value.Name)) {
			a.t.Errorf("%s: %s is described, and not known: %s", path, p.Value.Name, refusal.Details[0].Message)
		}
	}
	if got := len(a.doc.Paths.Value(path).Get.Parameters); got != len(want) {
		a.t.Errorf("%s: %d parameters are described, want %v", path, got, want)
	}
}
