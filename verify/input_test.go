package verify_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/internal/ledgertest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
	"getimmutable.dev/immutable/verify"
)

// sharedPartition is a ledger of two chains in one partition of the input, in turns.
func sharedPartition() *ledgertest.Ledger {
	l := ledgertest.New()
	a, b := l.Chain(1, 1, 0, 1), l.Chain(5, 1, 0, 1)
	for range 30 {
		l.Events(a, 1)
		l.Events(b, 2)
	}
	l.Epoch()
	return l
}

// A place in the input is that of one leaf, and leaves of different chains keep their order too. Both ledgers are signed: only the accounting shows it.
func TestInputAccounting(t *testing.T) {
	for _, tc := range []struct {
		want string
		do   func(a, b *ledgertest.Chain)
	}{
		// The ninth leaf of one chain is between the sixteenth and seventeenth of the other.
		{"DUPLICATE", func(a, b *ledgertest.Chain) { a.Leaves[9].Offset = b.Leaves[16].Offset }},
		{"REORDERED", func(a, b *ledgertest.Chain) { a.Leaves[9].Offset = b.Leaves[16].Offset - 1 }},
		{"COLUMN MISMATCH", func(a, b *ledgertest.Chain) { a.Leaves[9].LedgerOffset = b.Leaves[16].LedgerOffset }},
	} {
		t.Run(tc.want, func(t *testing.T) {
			l := sharedPartition()
			tc.do(l.Chains[0], l.Chains[1])
			l.Chains[0].Reseal(1)
			l.Rebuild()
			s := newTables(t, l)
			r := s.verify(s.config())
			if want := fmt.Sprintf("%s chain %x sequence 9 ", tc.want, l.Chains[0].ID); r.Exit != verify.ExitTampered || len(r.Faults) != 1 || !strings.HasPrefix(short(r.Faults[0]), want) {
				t.Errorf("want %s: %s", want, r.Text())
			}
		})
	}
}

// sealedTopic is the ledger topic up to one past the chain's leaf of this sequence, as an epoch covers it. Leaves that change knows may be others there.
func sealedTopic(t *testing.T, c *ledgertest.Chain, last int, change func(sequence int, s *recordpb.Sealed)) []*kgo.Record {
	t.Helper()
	var records []*kgo.Record
	add := func(value []byte) { // none where a transaction's marker would be
		records = append(records, &kgo.Record{Topic: schemas.TopicLedger, Partition: int32(c.Partition), Value: value})
	}
	for i := range c.Leaves[:last+1] {
		leaf := &c.Leaves[i]
		for uint64(len(records)) < leaf.LedgerOffset {
			add(nil)
		}
		sealed := &recordpb.Sealed{
			Event: &recordpb.Event{Id: leaf.ID[:]}, Chain: slices.Clone(c.ID[:]), Sequence: leaf.Sequence, LeafHash: slices.Clone(leaf.Hash[:]),
			Generation: uint32(leaf.Generation), Partition: uint32(leaf.Partition), Offset: leaf.Offset,
		}
		if change != nil {
			change(i, sealed)
		}
		value, err := proto.Marshal(sealed)
		if err != nil {
			t.Fatal(err)
		}
		add(value)
	}
	add(nil)
	return records
}

// verifyWith verifies the tables with the topics of a cluster.
func (s *tables) verifyWith(t *testing.T, cluster *kafkatest.Cluster) *verify.Report {
	t.Helper()
	r, err := verify.ClickHouse(t.Context(), s.config(), verify.Tables{ClickHouse: s.server.Config(), Kafka: cluster.Config})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// stranger is an event that has no leaf, for an offset.
func stranger(offset uint64) *recordpb.Event {
	return &recordpb.Event{Id: fmt.Appendf(nil, "%016d", offset)}
}

// eventsTopic is the events topic up to an offset, with the chain's events at the offsets of their leaves, and others as filler has them.
func eventsTopic(t *testing.T, c *ledgertest.Chain, end uint64, filler func(offset uint64) *recordpb.Event) []*kgo.Record {
	t.Helper()
	at := map[uint64]*ledgertest.Leaf{}
	for i := range c.Leaves[1:] {
		at[c.Leaves[1+i].Offset] = &c.Leaves[1+i]
	}
	var records []*kgo.Record
	for offset := range end {
		e := filler(offset)
		if leaf := at[offset]; leaf != nil {
			e = &recordpb.Event{Id: leaf.ID[:]}
		}
		value, err := proto.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, &kgo.Record{Topic: schemas.TopicEvents, Partition: int32(c.Partition), Value: value})
	}
	return records
}

// TestTail: of the leaves that no epoch covers, those that the ledger topic does not have were inserted.
func TestTail(t *testing.T) {
	l := ledgertest.New()
	c := l.Chain(1, 1, 0, 1) // in partition 1
	l.Events(c, 20)
	b := l.Chain(2, 1, 0, 1) // in another one
	l.Events(b, 5)
	l.Epoch()
	l.Events(c, 6)
	cluster := kafkatest.Start(t)
	cluster.Produce(t, sealedTopic(t, b, 5, nil)...)
	records := sealedTopic(t, c, 24, func(i int, s *recordpb.Sealed) {
		switch i {
		case 22:
			s.Sequence++
		case 23:
			s.LeafHash[0] ^= 1
		case 24:
			s.Chain[0] ^= 1
		}
	})
	retry := func(uint64) *recordpb.Event { return &recordpb.Event{Id: c.Leaves[5].ID[:]} } // there is no gap in the input
	records = append(records, eventsTopic(t, c, c.Leaves[26].Offset+1, retry)...)
	cluster.Produce(t, records...)
	// The last leaf is one that no epoch ever comes to.
	c.Leaves[26].LedgerOffset = 1 << 60
	s := newTables(t, l)
	r := s.verifyWith(t, cluster)
	var inserted []uint64
	for _, f := range r.Faults {
		if f.Verdict == ledger.Inserted && *f.Chain == c.ID && f.EventID != "" {
			inserted = append(inserted, *f.Sequence)
		}
	}
	slices.Sort(inserted)
	if want := []uint64{22, 23, 24, 25, 26}; r.Exit != verify.ExitTampered || !slices.Equal(inserted, want) {
		t.Errorf("inserted %v, want %v:\n%s", inserted, want, r.Text())
	}
	// Nor does it know what Kafka has deleted, or does not say.
	again := func(want string) {
		t.Helper()
		r := s.verifyWith(t, cluster)
		if !strings.Contains(strings.Join(r.Undecided, "\n"), want) {
			t.Errorf("want %q: %s", want, r.Text())
		}
	}
	topic := cluster.Config.Topic(schemas.TopicLedger)
	if err := cluster.Fake.DeleteRecords(topic, 1, cluster.Fake.PartitionInfo(topic, 1).HighWatermark); err != nil {
		t.Fatal(err)
	}
	again("Kafka does not have their place any more")
	asked := 0
	cluster.Fake.Fault(kfake.Fault{
		Keys: []kmsg.Key{kmsg.ListOffsets}, Topic: topic, Partitions: []int32{1}, Err: kerr.InvalidRequest, Count: -1,
		When: func(kmsg.Request) bool { // after the topic was known again
			asked++
			return asked > 2
		},
	})
	again("leaves that no signed epoch covers yet were sealed: partition 1 of " + topic)
	// Without Kafka it says that it does not know.
	r = s.verify(s.config())
	if text := r.Text(); r.Exit != verify.ExitVerified || !strings.Contains(text, "6 leaves that no signed epoch covers yet were sealed") {
		t.Error(text)
	}
	s.exec("ALTER TABLE leaves UPDATE recorded_at = recorded_at - 600 WHERE sequence = 26")
	if text := s.verify(s.config()).Text(); !strings.Contains(text, "1 leaves that no signed epoch covers were recorded more than") {
		t.Error(text)
	}
}

// TestOtherKafka: what another Kafka than the ledger's has, and has not, says nothing.
func TestOtherKafka(t *testing.T) {
	l := ledgertest.New()
	c := l.Chain(1, 1, 0, 1) // in partition 1
	l.Events(c, 300)
	l.Epoch()
	l.Events(c, 3)
	s := newTables(t, l)
	for _, tc := range []struct {
		name    string
		records func() []*kgo.Record
		want    string
	}{
		{"an empty one", func() []*kgo.Record { return nil }, "partition 1 of immutable.ledger ends at offset 0, and the newest epoch covers it up to 302"},
		{"a shorter one", func() []*kgo.Record { return sealedTopic(t, c, 298, nil) }, "ends at offset 300, and"},
		{"one with other leaves", func() []*kgo.Record {
			return sealedTopic(t, c, 303, func(_ int, s *recordpb.Sealed) { s.LeafHash[0] ^= 1 })
		}, "the tables have 0 of the 1 leaves, at their offsets"},
		{"one with other chains", func() []*kgo.Record {
			return sealedTopic(t, c, 303, func(_ int, s *recordpb.Sealed) { s.Chain[0] ^= 1 })
		}, "is not the last one of its chain"},
		{"a copy at other offsets", func() []*kgo.Record {
			return append([]*kgo.Record{{Topic: schemas.TopicLedger, Partition: 1}}, sealedTopic(t, c, 303, nil)...)
		}, "the tables have 0 of the 1 leaves, at their offsets"},
		{"a copy without markers", func() []*kgo.Record {
			return slices.DeleteFunc(sealedTopic(t, c, 303, nil), func(r *kgo.Record) bool { return r.Value == nil })
		}, "is not the last one of its chain"},
		{"one that has aborted all of late", func() []*kgo.Record {
			records := sealedTopic(t, c, 303, nil)
			for _, r := range records[302-256 : 302] {
				r.Value = nil
			}
			return records
		}, "nothing shows that"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cluster := kafkatest.Start(t)
			records := tc.records()
			for range c.Leaves[303].Offset + 1 { // none of which has a leaf
				records = append(records, &kgo.Record{Topic: schemas.TopicEvents, Partition: 1, Value: []byte("x")})
			}
			cluster.Produce(t, records...)
			r := s.verifyWith(t, cluster)
			if r.Exit != verify.ExitUndecided || r.Found[ledger.Inserted]+r.Found[ledger.InputGap] > 0 || len(r.Undecided) != 2 {
				t.Error(r.Text())
			}
			for _, said := range r.Undecided {
				if !strings.Contains(said, tc.want) {
					t.Errorf("want %q: %s", tc.want, said)
				}
			}
		})
	}
	// Without an epoch nothing says where the ledger topic should be.
	s.exec("TRUNCATE TABLE checkpoints")
	r := s.verifyWith(t, kafkatest.Start(t))
	if r.Exit != verify.ExitUndecided || !strings.Contains(strings.Join(r.Undecided, "\n"), "has a leaf: nothing shows that") {
		t.Error(r.Text())
	}
}

// TestOtherEventsTopic: the ledger topic is the ledger's, the events topic is not, or cannot be read.
func TestOtherEventsTopic(t *testing.T) {
	l := ledgertest.New()
	c := l.Chain(1, 1, 0, 1) // in partition 1
	l.Events(c, 60)
	l.Epoch()
	s := newTables(t, l)
	last := c.Leaves[60].Offset
	run := func(t *testing.T, events []*kgo.Record, prepare func(*kafkatest.Cluster)) *verify.Report {
		t.Helper()
		cluster := kafkatest.Start(t)
		cluster.Produce(t, sealedTopic(t, c, 60, nil)...)
		cluster.Produce(t, events...)
		if prepare != nil {
			prepare(cluster)
		}
		return s.verifyWith(t, cluster)
	}
	empty := ledgertest.New().Chain(1, 1, 0, 1)
	empty.Leaves = c.Leaves[:1]
	for _, tc := range []struct {
		name    string
		events  []*kgo.Record
		prepare func(*kafkatest.Cluster)
		want    []string
	}{
		{"empty", nil, nil, []string{"whether the places in the events topic that 60 leaves name were written: nothing shows"}},
		{"of others", eventsTopic(t, empty, last+5, stranger), nil, []string{"whether every record of the events topic has a leaf, of partition 1: nothing shows"}},
		{"its own, and unreadable", eventsTopic(t, c, last+5, stranger), func(cluster *kafkatest.Cluster) {
			cluster.Fake.Fault(kfake.Fault{
				Keys: []kmsg.Key{kmsg.Fetch}, Topic: cluster.Config.Topic(schemas.TopicEvents), Err: kerr.TopicAuthorizationFailed, Count: -1,
				When: func(req kmsg.Request) bool { // not where the topic is known again, which is further on
					topics := req.(*kmsg.FetchRequest).Topics
					return len(topics) > 0 && topics[0].Partitions[0].FetchOffset == 0
				},
			})
		}, []string{"whether every record of the events topic has a leaf: reading kafka: TOPIC_AUTHORIZATION_FAILED"}},
		{"its own, of which the old is deleted", eventsTopic(t, c, last+5, stranger), func(cluster *kafkatest.Cluster) {
			if err := cluster.Fake.DeleteRecords(cluster.Config.Topic(schemas.TopicEvents), 1, int64(last)+1); err != nil {
				t.Fatal(err)
			}
		}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := run(t, tc.events, tc.prepare)
			begins := func(said, want string) bool { return strings.HasPrefix(said, want) }
			if len(r.Faults) > 0 || !slices.EqualFunc(r.Undecided, tc.want, begins) {
				t.Errorf("want %q: %s", tc.want, r.Text())
			}
		})
	}
	// Of a chain with faults nothing is known, and nothing is said of Kafka.
	s.exec("ALTER TABLE leaves DELETE WHERE sequence = 60")
	r := run(t, eventsTopic(t, c, last+5, stranger), nil)
	if r.Exit != verify.ExitTampered || r.Found[ledger.InputGap]+r.Found[ledger.Inserted] > 0 ||
		!strings.Contains(strings.Join(r.Undecided, "\n"), "has a leaf: nothing shows that the Kafka") {
		t.Error(r.Text())
	}
}

// TestNewPartition: no epoch covers a leaf of a partition yet. What the others show of the topics counts for it too.
func TestNewPartition(t *testing.T) {
	l := ledgertest.New()
	a := l.Chain(1, 1, 0, 1) // in partition 1
	l.Events(a, 30)
	l.Epoch()
	b := l.Chain(2, 1, 0, 1) // in partition 2
	l.Events(b, 10)
	s := newTables(t, l)
	retry := func(uint64) *recordpb.Event { return &recordpb.Event{Id: a.Leaves[5].ID[:]} }
	for _, tc := range []struct {
		name   string
		events [][]*kgo.Record
		exit   int
		gaps   bool
	}{
		{"sound", [][]*kgo.Record{eventsTopic(t, a, 60, retry), eventsTopic(t, b, b.Leaves[10].Offset+1, retry)}, verify.ExitVerified, false},
		{"with gaps", [][]*kgo.Record{eventsTopic(t, a, 60, retry), eventsTopic(t, b, b.Leaves[10].Offset+1, stranger)}, verify.ExitTampered, true},
		{"beside one that is another's", [][]*kgo.Record{eventsTopic(t, b, 60, retry), eventsTopic(t, b, b.Leaves[10].Offset+1, stranger)}, verify.ExitUndecided, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cluster := kafkatest.Start(t)
			cluster.Produce(t, sealedTopic(t, a, 30, nil)...)
			cluster.Produce(t, sealedTopic(t, b, 10, nil)...)
			for i, events := range tc.events {
				for _, r := range events {
					r.Partition = int32(1 + i)
				}
				cluster.Produce(t, events...)
			}
			r := s.verifyWith(t, cluster)
			if r.Exit != tc.exit || (r.Found[ledger.InputGap] > 0) != tc.gaps || r.Found[ledger.Inserted] > 0 {
				t.Error(r.Text())
			}
		})
	}
}

// A generation of the input is not left again.
func TestInputGenerations(t *testing.T) {
	l := sharedPartition()
	a, b := l.Chains[0], l.Chains[1]
	for i := 9; i < len(a.Leaves); i++ {
		a.Leaves[i].Generation = 1
	}
	a.Reseal(9)
	l.Rebuild()
	s := newTables(t, l)
	r := s.verify(s.config())
	want := fmt.Sprintf("REORDERED chain %x sequence 17 ", b.ID)
	if r.Exit != verify.ExitTampered || !slices.ContainsFunc(r.Faults, func(f *ledger.Fault) bool { return strings.HasPrefix(short(f), want) }) {
		t.Errorf("want %s: %s", want, r.Text())
	}
}

// TestInputGap: a record of the events topic that later records were sealed past has a leaf, or is on the dlq, or is the second of its id.
func TestInputGap(t *testing.T) {
	l := ledgertest.New()
	c := l.Chain(1, 1, 0, 1) // in partition 1
	l.Events(c, 60)
	l.Epoch()
	s := newTables(t, l)
	cluster := kafkatest.Start(t)
	sealed := map[uint64]bool{}
	last := uint64(0)
	for _, leaf := range c.Leaves[1:] {
		sealed[leaf.Offset] = true
		last = leaf.Offset
	}
	topic := cluster.Config.Topic(schemas.TopicEvents)
	var dead []*kgo.Record
	var gaps []uint64
	records := eventsTopic(t, c, last+5, func(offset uint64) *recordpb.Event { // the last ones are not sealed yet
		e := stranger(offset)
		if sealed[offset] || offset > last {
			return e
		}
		switch len(gaps) + len(dead) {
		case 0: // lost
			gaps = append(gaps, offset)
			return e
		case 1: // sealed before: a retry
			dead = append(dead, nil)
			return &recordpb.Event{Id: c.Leaves[5].ID[:]}
		case 2: // lost, and something else put in its place on the dlq
			gaps = append(gaps, offset)
		}
		value, err := proto.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if len(gaps) == 2 && gaps[1] == offset {
			value = nil
		}
		dead = append(dead, &kgo.Record{Topic: schemas.TopicDLQ, Value: value, Headers: []kgo.RecordHeader{
			{Key: schemas.DLQHeaderTopic, Value: []byte(topic)},
			{Key: schemas.DLQHeaderPartition, Value: []byte("1")},
			{Key: schemas.DLQHeaderOffset, Value: []byte(strconv.FormatUint(offset, 10))},
		}})
		return e
	})
	dead = dead[1:]
	cluster.Produce(t, records...)
	cluster.Produce(t, dead...)
	cluster.Produce(t, sealedTopic(t, c, 60, nil)...)
	if len(dead) < 5 {
		t.Fatalf("%d dead letters", len(dead))
	}
	r := s.verifyWith(t, cluster)
	slices.SortFunc(r.Faults, func(a, b *ledger.Fault) int { return strings.Compare(a.Detail, b.Detail) })
	var found, want []string
	for _, f := range r.Faults {
		found = append(found, f.String())
	}
	for _, offset := range gaps {
		want = append(want, fmt.Sprintf("INPUT GAP: partition 1, offset %d of the events topic has no leaf, and later records have", offset))
	}
	slices.Sort(want)
	if r.Exit != verify.ExitTampered || !slices.Equal(found, want) {
		t.Errorf("want %q:\n%s", want, r.Text())
	}
	if said := fmt.Sprintf("%d records of partition 1 of the events topic have no leaf and are on the dlq", len(dead)-1); !strings.Contains(r.Text(), said) {
		t.Errorf("want %q:\n%s", said, r.Text())
	}
}

// What is beyond the bounds of the accounting is not taken for sealed.
func TestInputBeyondBounds(t *testing.T) {
	for _, tc := range []struct {
		name string
		last uint64 // offset of the last leaf's record
		exit int
		want string
	}{
		// All that are looked into are retries of one event.
		{"many retries", 10_100, verify.ExitUndecided, "has 10061 records without a leaf; 10000 were looked into"},
		{"an offset that was never written", 1 << 60, verify.ExitTampered, "its event is at offset 1152921504606846976 of partition 1 of the events topic, where nothing was written yet"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := ledgertest.New()
			c := l.Chain(1, 1, 0, 1) // in partition 1
			l.Events(c, 40)
			c.Leaves[40].Offset = tc.last
			c.Reseal(40)
			l.Epoch()
			s := newTables(t, l)
			cluster := kafkatest.Start(t)
			cluster.Produce(t, eventsTopic(t, c, 10_101, func(uint64) *recordpb.Event { return &recordpb.Event{Id: c.Leaves[5].ID[:], Keyed: true} })...)
			cluster.Produce(t, sealedTopic(t, c, 40, nil)...)
			r := s.verifyWith(t, cluster)
			if r.Exit != tc.exit || len(r.Undecided)+len(r.Faults) != 1 || !strings.Contains(r.Text(), tc.want) {
				t.Errorf("want %q: %s", tc.want, r.Text())
			}
		})
	}
}

// Where Kafka does not say a second time how far the events topic goes, a leaf beyond that may have been sealed meanwhile.
func TestInputBeyondEndUnknown(t *testing.T) {
	l := ledgertest.New()
	c := l.Chain(1, 1, 0, 1) // in partition 1
	l.Events(c, 5)
	l.Epoch()
	s := newTables(t, l)
	cluster := kafkatest.Start(t)
	cluster.Produce(t, sealedTopic(t, c, 5, nil)...)
	asked := 0
	cluster.Fake.Fault(kfake.Fault{
		Keys: []kmsg.Key{kmsg.ListOffsets}, Topic: cluster.Config.Topic(schemas.TopicEvents), Partitions: []int32{1}, Err: kerr.InvalidRequest, Count: -1,
		When: func(kmsg.Request) bool { // after the beginning and the end
			asked++
			return asked > 2
		},
	})
	r := s.verifyWith(t, cluster)
	if r.Exit != verify.ExitUndecided || len(r.Faults) > 0 || len(r.Undecided) != 1 || !strings.Contains(r.Undecided[0], "ledger partition 1: asking kafka") {
		t.Error(r.Text())
	}
}
