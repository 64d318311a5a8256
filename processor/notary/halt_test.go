package notary

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// halts waits until a notary has halted for a reason, with want in what readiness says, and checks that nothing was signed.
func halts(t *testing.T, n *running, reason, want string) {
	t.Helper()
	await(t, "halting because of "+reason, func(ctx context.Context) error {
		err := n.Ready(ctx)
		if err == nil {
			return errors.New("is ready")
		}
		if s := err.Error(); !strings.Contains(s, "halted ("+reason+"): ") || !strings.Contains(s, want) {
			return fmt.Errorf("ready: %w", err)
		}
		return nil
	})
	if got := n.metric(t, "halted"); got != 1 {
		t.Errorf("the metric says that %v reasons halt it", got)
	}
	if got := n.metric(t, "leading"); got != 1 {
		t.Error("it does not lead any more: a standby would pass over the cause")
	}
}

// sealSome has events sealed and stated, and returns the configuration of the notary that did and has ended.
func sealSome(t *testing.T, c *kafkatest.Cluster) Config {
	t.Helper()
	sealer(t, c)
	produceEvents(t, c, 3, 0, 500)
	cfg := testConfig(t, c)
	n := start(t, cfg)
	awaitCovered(t, c, 500)
	n.stop(t)
	return cfg
}

// lastSealed returns the last record of the ledger's partition 1.
func lastSealed(t *testing.T, c *kafkatest.Cluster) (*kgo.Record, *recordpb.Sealed) {
	t.Helper()
	records, err := readAll(t.Context(), t, c, kadm.NewClient(c.Client(t)), schemas.TopicLedger)
	if err != nil {
		t.Fatal(err)
	}
	var last *kgo.Record
	for _, r := range records {
		if r.Partition == 1 && !genesis(t, r) {
			last = r
		}
	}
	m := new(recordpb.Sealed)
	if err := proto.Unmarshal(last.Value, m); err != nil {
		t.Fatal(err)
	}
	return last, m
}

// followOn returns a leaf that follows on m, as the processor would have sealed it.
func followOn(m *recordpb.Sealed) *recordpb.Sealed {
	next := proto.CloneOf(m)
	next.Sequence++
	next.Previous = m.GetLeafHash()
	next.Event.Id = fillBytes(16, m.GetSequence(), 77)
	next.Offset++
	rehash(next)
	return next
}

func rehash(m *recordpb.Sealed) {
	e := m.GetEvent()
	leaf := ledger.Leaf{
		Chain: ledger.ChainID(m.GetChain()), Sequence: m.GetSequence(), Previous: ledger.Hash(m.GetPrevious()),
		Kind: ledger.Kind(e.GetKind()), RecordedAt: e.GetRecordedAt(), Generation: uint16(m.GetGeneration()),
		Partition: uint16(m.GetPartition()), Offset: m.GetOffset(), FieldCount: uint16(e.GetFieldCount()),
		BodyRoot: ledger.Hash(e.GetBodyRoot()),
	}
	copy(leaf.ID[:], e.GetId())
	hash := leaf.Hash()
	m.LeafHash, m.Node = hash[:], nil
}

// A record on the ledger topic that the processor has not written.
func TestHaltsOnTamperedLeaves(t *testing.T) {
	c := kafkatest.Start(t)
	cfg := sealSome(t, c)
	record, last := lastSealed(t, c)
	admin := kadm.NewClient(c.Client(t))
	for _, tt := range []struct {
		name, want string
		tamper     func(*recordpb.Sealed)
	}{
		{"none", "", func(*recordpb.Sealed) {}},
		{"body root", "its content has leaf hash", func(m *recordpb.Sealed) { m.Event.BodyRoot[0] ^= 1 }},
		{"id", "its content has leaf hash", func(m *recordpb.Sealed) { m.Event.Id[0] ^= 1 }},
		{"kind", "its content has leaf hash", func(m *recordpb.Sealed) { m.Event.Kind = recordpb.Kind_KIND_NOTE }},
		{"genesis", "kind 1", func(m *recordpb.Sealed) { m.Event.Kind = recordpb.Kind_KIND_GENESIS; rehash(m) }},
		{"recorded at", "its content has leaf hash", func(m *recordpb.Sealed) { m.Event.RecordedAt++ }},
		{"field count", "its content has leaf hash", func(m *recordpb.Sealed) { m.Event.FieldCount++ }},
		{"input offset", "its content has leaf hash", func(m *recordpb.Sealed) { m.Offset++ }},
		{"input partition", "its content has leaf hash", func(m *recordpb.Sealed) { m.Partition++ }},
		{"generation", "its content has leaf hash", func(m *recordpb.Sealed) { m.Generation++ }},
		{"leaf hash", "its content has leaf hash", func(m *recordpb.Sealed) { m.LeafHash[31] ^= 1 }},
		{"node", "it completes subtrees", func(m *recordpb.Sealed) { m.Node = make([]byte, 32) }},
		{"previous", "the leaf before it is", func(m *recordpb.Sealed) { m.Previous = make([]byte, 32); rehash(m) }},
		{"repeated", "the chain goes on at sequence", func(m *recordpb.Sealed) { m.Sequence--; rehash(m) }},
		{"left out", "the chain goes on at sequence", func(m *recordpb.Sealed) { m.Sequence++; rehash(m) }},
		{"lane", "it is of lane", func(m *recordpb.Sealed) { m.Event.Lane = (m.Event.Lane + 1) % testPartitions }},
		{"lanes", "it is of lane", func(m *recordpb.Sealed) { m.Event.Lanes++ }},
		{"workspace", "it is of lane", func(m *recordpb.Sealed) { m.Event.Workspace[0] ^= 1 }},
		{"incarnation", "it is of lane", func(m *recordpb.Sealed) { m.Event.Incarnation[0] ^= 1 }},
		{"chain afresh", "the chain goes on at sequence 0", func(m *recordpb.Sealed) { m.Chain[0] ^= 1 }},
		{"chain id short", "field 2: it has 8 bytes", func(m *recordpb.Sealed) { m.Chain = m.Chain[:8] }},
		{"no event", "fields are missing", func(m *recordpb.Sealed) { m.Event = nil }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := followOn(last)
			tt.tamper(m)
			value, err := proto.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			// The pure core says it; one of these goes through Kafka below.
			s := restored(t, c, admin)
			err = s.take(1, uint64(record.Offset)+10, value)
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			var h *haltError
			if !errors.As(err, &h) || h.reason != haltLedger || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	m := followOn(last)
	m.Event.BodyRoot[0] ^= 1
	value, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	c.Produce(t, &kgo.Record{Topic: schemas.TopicLedger, Partition: 1, Key: record.Key, Value: value})
	halts(t, start(t, cfg), haltLedger, "its content has leaf hash")
}

// restored returns the chains as a take-over of notary_state restores them.
func restored(t *testing.T, c *kafkatest.Cluster, admin *kadm.Client) *chains {
	t.Helper()
	records, err := readAll(t.Context(), t, c, admin, schemas.TopicNotaryState)
	if err != nil {
		t.Fatal(err)
	}
	r := newRestorer(testOrigin, testPartitions)
	for _, record := range records {
		if err := r.state(record.Key, record.Value); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.resume(); err != nil {
		t.Fatal(err)
	}
	return r.chains
}

// headOf returns a head of the chain of m at its size, of leaves that are not those of the ledger from there on.
func headOf(t *testing.T, s *chains, m *recordpb.Sealed, more int) *kgo.Record {
	t.Helper()
	c := *s.by[ledger.ChainID(m.GetChain())]
	c.head = c.head.Clone()
	for i := range more {
		c.head.AppendHash(ledger.Hash(fillBytes(32, uint64(i))))
	}
	value, err := proto.Marshal(c.message(0).GetHead())
	if err != nil {
		t.Fatal(err)
	}
	return &kgo.Record{Topic: schemas.TopicHeads, Partition: 1, Key: []byte(fmt.Sprintf("%x", c.head.Chain)), Value: value}
}

func TestHaltsOnOtherHeads(t *testing.T) {
	long(t)
	t.Run("ahead of the ledger's end", func(t *testing.T) {
		c := kafkatest.Start(t)
		cfg := sealSome(t, c)
		_, last := lastSealed(t, c)
		c.Produce(t, headOf(t, restored(t, c, kadm.NewClient(c.Client(t))), last, 3))
		halts(t, start(t, cfg), haltHeads, "the ledger comes to")
	})
	t.Run("another root of the same size", func(t *testing.T) {
		c := kafkatest.Start(t)
		cfg := sealSome(t, c)
		_, last := lastSealed(t, c)
		s := restored(t, c, kadm.NewClient(c.Client(t)))
		// Another chain of the same name and size.
		own := s.by[ledger.ChainID(last.GetChain())]
		other := *own
		other.head = ledger.Head{Chain: own.head.Chain}
		for i := range own.head.Size {
			other.head.AppendHash(ledger.Hash(fillBytes(32, i)))
		}
		value, err := proto.Marshal(other.message(0).GetHead())
		if err != nil {
			t.Fatal(err)
		}
		c.Produce(t, &kgo.Record{
			Topic: schemas.TopicHeads, Partition: 1, Key: []byte(fmt.Sprintf("%x", own.head.Chain)), Value: value,
		})
		halts(t, start(t, cfg), haltHeads, "heads states root")
	})
	t.Run("a chain without leaves", func(t *testing.T) {
		c := kafkatest.Start(t)
		cfg := sealSome(t, c)
		fresh := &chain{lanes: 1}
		fresh.head.Chain = ledger.NewChainID(fresh.workspace, fresh.incarnation, 0)
		fresh.head.AppendHash(ledger.Hash{1})
		value, err := proto.Marshal(fresh.message(0).GetHead())
		if err != nil {
			t.Fatal(err)
		}
		c.Produce(t, &kgo.Record{Topic: schemas.TopicHeads, Partition: 2, Key: []byte("x"), Value: value})
		halts(t, start(t, cfg), haltHeads, "the ledger has no leaf of it")
	})
	t.Run("malformed", func(t *testing.T) {
		c := kafkatest.Start(t)
		cfg := sealSome(t, c)
		c.Produce(t, &kgo.Record{Topic: schemas.TopicHeads, Partition: 2, Key: []byte("x"), Value: []byte{1}})
		halts(t, start(t, cfg), haltHeads, "the head under")
	})
}

// A head that is ahead of what was read is compared when the ledger has come to it, and found out there.
func TestComparesHeadsThatAreAhead(t *testing.T) {
	c := kafkatest.Start(t)
	sealSome(t, c)
	_, last := lastSealed(t, c)
	next := followOn(last)
	value, err := proto.Marshal(next)
	if err != nil {
		t.Fatal(err)
	}
	for _, right := range []bool{true, false} {
		s := restored(t, c, kadm.NewClient(c.Client(t)))
		head := *s.by[ledger.ChainID(last.GetChain())]
		head.head = head.head.Clone()
		hash := ledger.Hash(next.GetLeafHash())
		if !right {
			hash[0] ^= 1
		}
		head.head.AppendHash(hash)
		stated, err := proto.Marshal(head.message(0).GetHead())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.stated(1, []byte("x"), stated); err != nil {
			t.Fatal(err)
		}
		if err := s.take(1, s.positions[1], value); (err == nil) != right {
			t.Errorf("a head that is right: %v: %v", right, err)
		}
		if s.compared != 1 {
			t.Errorf("%d heads compared", s.compared)
		}
	}
}

// Retention, or somebody, has removed leaves that no epoch covers.
func TestHaltsWhereLeavesAreLost(t *testing.T) {
	for _, began := range []bool{true, false} {
		t.Run(fmt.Sprintf("after a first epoch %t", began), func(t *testing.T) {
			c := kafkatest.Start(t)
			var cfg Config
			if began {
				cfg = sealSome(t, c)
				produceEvents(t, c, 3, 500, 500)
			} else {
				sealer(t, c)
				produceEvents(t, c, 3, 0, 1000)
				cfg = testConfig(t, c)
			}
			admin := kadm.NewClient(c.Client(t))
			await(t, "sealing", func(ctx context.Context) error {
				records, err := readAll(ctx, t, c, admin, schemas.TopicLedger)
				if len(records) != 1012 {
					return fmt.Errorf("%d leaves: %w", len(records), errors.Join(err))
				}
				return nil
			})
			ends, err := admin.ListEndOffsets(t.Context(), c.Config.Topic(schemas.TopicLedger))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := admin.DeleteRecords(t.Context(), ends.Offsets()); err != nil {
				t.Fatal(err)
			}
			halts(t, start(t, cfg), haltLost, "were deleted before they were in an epoch")
		})
	}
}

// remake loses a topic's records.
func remake(t *testing.T, c *kafkatest.Cluster, topic string) {
	t.Helper()
	if err := c.Fake.DeleteTopic(c.Config.Topic(topic)); err != nil {
		t.Fatal(err)
	}
	if err := kafka.CreateTopics(t.Context(), c.Client(t), schemas.Topics(c.Layout)); err != nil {
		t.Fatal(err)
	}
}

func TestHaltsOnLostTopics(t *testing.T) {
	long(t)
	for _, tt := range []struct {
		name, reason, want string
		lose               []string
	}{
		{"ledger", haltLost, "which ends at 0: it was truncated", []string{schemas.TopicLedger}},
		{"notary_state", haltState, "it can be rebuilt where the notary is given ClickHouse", []string{schemas.TopicNotaryState}},
		{"checkpoints", haltState, "checkpoints has 0 entries", []string{schemas.TopicCheckpoints}},
		{"all", haltLock, "entries, the root log 0", []string{schemas.TopicCheckpoints, schemas.TopicNotaryState}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := kafkatest.Start(t)
			cfg := sealSome(t, c)
			for _, topic := range tt.lose {
				remake(t, c, topic)
			}
			halts(t, start(t, cfg), tt.reason, tt.want)
		})
	}
}

// Records of the notary's own topics that it has not written.
func TestHaltsOnOtherState(t *testing.T) {
	c := kafkatest.Start(t)
	cfg := sealSome(t, c)
	admin := kadm.NewClient(c.Client(t))
	state, err := readAll(t.Context(), t, c, admin, schemas.TopicNotaryState)
	if err != nil {
		t.Fatal(err)
	}
	checkpoints, err := readAll(t.Context(), t, c, admin, schemas.TopicCheckpoints)
	if err != nil {
		t.Fatal(err)
	}
	newest := func(prefix string) *kgo.Record {
		for i := range state {
			if r := state[len(state)-1-i]; hasPrefix(r.Key, prefix) {
				return r
			}
		}
		t.Fatalf("no %s", prefix)
		return nil
	}
	var chainRecord *kgo.Record
	for _, r := range state {
		if len(r.Key) == 32 {
			chainRecord = r
		}
	}
	edit := func(r *kgo.Record, m proto.Message, change func()) []byte {
		t.Helper()
		if err := proto.Unmarshal(r.Value, m); err != nil {
			t.Fatal(err)
		}
		change()
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	// A chain that is as it should be, and one leaf longer than at the newest epoch.
	grown := new(recordpb.NotaryChain)
	longer := edit(chainRecord, grown, func() {
		c, err := restoreChain(grown.GetHead())
		if err != nil {
			t.Fatal(err)
		}
		c.head.AppendHash(ledger.Hash{1})
		grown.Head = c.message(0).GetHead()
	})
	part, log, key, ch := new(recordpb.NotaryPartition), new(recordpb.NotaryLog), new(recordpb.LogEntry), new(recordpb.NotaryChain)
	for _, tt := range []struct {
		want  string
		key   string
		value []byte
	}{
		{"the newest epoch comes to ledger offsets", "partition/1", edit(newest("partition/1"), part, func() { part.Next++ })},
		{"the newest epoch has map root", string(chainRecord.Key), longer},
		{"subtree roots", "log", edit(newest("log"), log, func() { log.Size ^= 1 })},
		{"notary_state makes root", "log", edit(newest("log"), log, func() { log.Range[0] ^= 1 })},
		{"notary_state makes root", "log", edit(newest("log"), log, func() { log.LastEntryHash[0] ^= 1 })},
		{"the last key change", "log", edit(newest("log"), log, func() { log.LastKey = 1 })},
		{"nodes of a root log", "node/1/0", []byte("\x0a\x2000000000000000000000000000000000")},
		{"it has 2 bytes, must have 32", "node/1/0", []byte("\x0a\x0200")},
		{"a key change in notary_state", "key/1", edit(newest("key/0"), key, func() {})},
		{"a key change in notary_state", "key/0", edit(newest("key/0"), key, func() {
			key.Entry = bytes.Replace(key.Entry, []byte(`"index":0`), []byte(`"index":9`), 1)
		})},
		{"is no NotaryLog", "log", []byte{1}},
		{"is no NotaryPartition", "partition/1", []byte{1}},
		{"an id or hash", "x", nil},
		{"is that of chain", strings.Repeat("0", 32), chainRecord.Value},
		{"does not follow from its subtrees", string(chainRecord.Key), edit(chainRecord, ch, func() { ch.Head.Range[0] ^= 1 })},
		{"is not the one of its workspace", string(chainRecord.Key), edit(chainRecord, ch, func() { ch.Head.Lane++ })},
	} {
		t.Run(tt.want, func(t *testing.T) {
			err := takeOverFrom(append(slices.Clip(state), &kgo.Record{Key: []byte(tt.key), Value: tt.value}), checkpoints)
			var h *haltError
			if !errors.As(err, &h) || h.reason != haltState || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v", err)
			}
		})
	}
	if err := takeOverFrom(state, checkpoints); err != nil {
		t.Error(err)
	}
	var fewer []*kgo.Record
	for _, r := range state {
		if string(r.Key) != string(chainRecord.Key) {
			fewer = append(fewer, r)
		}
	}
	if err := takeOverFrom(fewer, checkpoints); err == nil || !strings.Contains(err.Error(), "the newest epoch is of 12 chains") {
		t.Errorf("without a chain: %v", err)
	}
	if err := takeOverFrom(state, checkpoints[:len(checkpoints)-2]); err == nil {
		t.Error("without the last entry: no error")
	}
	// One of these through Kafka.
	c.Produce(t, &kgo.Record{Topic: schemas.TopicNotaryState, Key: []byte("partition/1"), Value: edit(newest("partition/1"), part, func() { part.Next++ })})
	halts(t, start(t, cfg), haltState, "the newest epoch comes to ledger offsets")
}

func takeOverFrom(state, checkpoints []*kgo.Record) error {
	r := newRestorer(testOrigin, testPartitions)
	for _, record := range state {
		if err := r.state(record.Key, record.Value); err != nil {
			return err
		}
	}
	if err := r.resume(); err != nil {
		return err
	}
	from := r.tailFrom(1)
	for _, record := range checkpoints {
		if record.Offset >= from {
			if err := r.tail.checkpoints(record.Key, record.Value); err != nil {
				return err
			}
		}
	}
	return r.finish()
}

// A checkpoint on the topic that is not of this log.
func TestHaltsOnAForgedCheckpoint(t *testing.T) {
	c := kafkatest.Start(t)
	cfg := sealSome(t, c)
	k, err := loadKeys(cfg.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := ledger.SignCheckpoint(&ledger.Checkpoint{Origin: testOrigin, Size: 2, Root: ledger.Hash{1}}, k.newest())
	if err != nil {
		t.Fatal(err)
	}
	value, err := proto.Marshal(&recordpb.SignedCheckpoint{Size: 2, Root: make([]byte, 32), Note: signed})
	if err != nil {
		t.Fatal(err)
	}
	c.Produce(t, &kgo.Record{Topic: schemas.TopicCheckpoints, Key: []byte("checkpoint/2"), Value: value})
	halts(t, start(t, cfg), haltState, "does not continue its newest signed checkpoint")
}
