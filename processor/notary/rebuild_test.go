package notary

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// insertLeaves writes the ledger's leaves to ClickHouse, all but those that leave drops, and one twice, as a writer that was killed
// does.
func insertLeaves(t *testing.T, c *kafkatest.Cluster, db *clickhousetest.Server, drop func(*recordpb.Sealed) bool) {
	t.Helper()
	records, err := readAll(t.Context(), t, c, kadmOf(t, c), schemas.TopicLedger)
	if err != nil {
		t.Fatal(err)
	}
	batch, err := db.Conn(t).PrepareBatch(t.Context(), `INSERT INTO leaves
		(part, workspace, incarnation, lane, lanes, chain, sequence, leaf_hash, kind, recorded_at, ledger_partition, ledger_offset)`)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = batch.Close() }() // Send has the error that matters
	for i, r := range records {
		m := new(recordpb.Sealed)
		if err := proto.Unmarshal(r.Value, m); err != nil {
			t.Fatal(err)
		}
		if drop(m) {
			continue
		}
		e := m.GetEvent()
		for range 1 + min(1, i%100/99) {
			err := batch.Append(uint32(210001+i%3), string(e.GetWorkspace()), string(e.GetIncarnation()), e.GetLane(), e.GetLanes(),
				string(m.GetChain()), m.GetSequence(), string(m.GetLeafHash()), uint8(e.GetKind()), time.UnixMicro(e.GetRecordedAt()),
				uint16(r.Partition), uint64(r.Offset))
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := batch.Send(); err != nil {
		t.Fatal(err)
	}
}

func TestRebuildsLostState(t *testing.T) {
	long(t)
	c := kafkatest.Start(t)
	cfg := testConfig(t, c)
	cfg.EpochInterval, cfg.IdleInterval = 10*time.Millisecond, 10*time.Millisecond
	sealer(t, c)
	produceEvents(t, c, 3, 0, 1000)
	n := start(t, cfg)
	awaitCovered(t, c, 1000)
	await(t, "over a block of entries", func(context.Context) error { return atLeast(n.metric(t, "entries"), 300) })
	n.stop(t)
	if _, err := RotateKey(cfg.KeyFile); err != nil {
		t.Fatal(err)
	}
	n = start(t, cfg)
	await(t, "the other key", func(context.Context) error { return atLeast(n.metric(t, "epochs_total"), 3) })
	n.stop(t)
	before := newestState(t, c)

	// More leaves than the newest epoch covers: they are no part of what is rebuilt.
	produceEvents(t, c, 4, 1000, 500)
	await(t, "sealing", func(ctx context.Context) error {
		records, err := readAll(ctx, t, c, kadmOf(t, c), schemas.TopicLedger)
		if len(records) != 1516 {
			return fmt.Errorf("%d leaves: %w", len(records), errors.Join(err))
		}
		return nil
	})
	remake(t, c, schemas.TopicNotaryState)
	db := clickhousetest.Start(t)
	cfg.ClickHouse = db.Config()

	// Rows that are not all there make another map.
	n = start(t, cfg)
	halts(t, n, haltState, "the newest epoch is of 12 chains, there are 0")
	n.stop(t)
	insertLeaves(t, c, db, func(m *recordpb.Sealed) bool { return m.GetSequence() == 7 })
	n = start(t, cfg)
	halts(t, n, haltState, "ClickHouse lacks leaf 7 of chain")
	n.stop(t)

	db = clickhousetest.Start(t)
	cfg.ClickHouse = db.Config()
	insertLeaves(t, c, db, func(*recordpb.Sealed) bool { return false })
	// The writer is behind: that is waited for.
	commitWriter(t, c, 1)
	n = start(t, cfg)
	await(t, "waiting for ClickHouse's writer", func(ctx context.Context) error {
		if err := n.Ready(ctx); err == nil || !strings.Contains(err.Error(), "ClickHouse's writer is at ledger offset 1") {
			return fmt.Errorf("ready: %w", errors.Join(err))
		}
		return nil
	})
	commitWriter(t, c, 1<<40)
	a := awaitCovered(t, c, 1500)
	n.stop(t)
	if a.keys != 2 {
		t.Errorf("%d keys", a.keys)
	}
	// And what was written is what had been lost: the next take-over reads it.
	after := newestState(t, c)
	for key := range before {
		if _, ok := after[key]; !ok {
			t.Errorf("%s was not rebuilt", key)
		}
	}
	for _, key := range []string{"node/1/0", "key/0"} {
		if string(before[key]) != string(after[key]) {
			t.Errorf("%s was rebuilt otherwise", key)
		}
	}
	n = start(t, cfg)
	await(t, "ready", n.Ready)
	n.stop(t)
}

// newestState returns notary_state by key.
func newestState(t *testing.T, c *kafkatest.Cluster) map[string][]byte {
	t.Helper()
	records, err := readAll(t.Context(), t, c, kadmOf(t, c), schemas.TopicNotaryState)
	if err != nil {
		t.Fatal(err)
	}
	newest := make(map[string][]byte)
	for _, r := range records {
		newest[string(r.Key)] = r.Value
	}
	return newest
}

// commitWriter says for ClickHouse's writer that it has come to an offset of every partition.
func commitWriter(t *testing.T, c *kafkatest.Cluster, at int64) {
	t.Helper()
	var offsets kadm.Offsets
	for p := range int32(testPartitions) {
		offsets.AddOffset(c.Config.Topic(schemas.TopicLedger), p, at, -1)
	}
	if err := kadmOf(t, c).CommitAllOffsets(t.Context(), c.Config.Group(schemas.GroupClickHouse), offsets); err != nil {
		t.Fatal(err)
	}
}
