package notary

import (
	"context"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// BenchmarkTake is what a leaf costs the notary once it is fetched.
func BenchmarkTake(b *testing.B) {
	s := &simulated{t: b, heads: make(map[ledger.ChainID]*chain)}
	for ws := range uint64(3) {
		for lane := range uint32(testPartitions) {
			s.seal(ws, lane, 10_000)
		}
	}
	b.ReportAllocs()
	var c *chains
	p, at := 0, 0
	for b.Loop() {
		for c == nil || at == len(s.ledger[p]) {
			if at = 0; c == nil || p == testPartitions-1 {
				c, p = newChains(testPartitions), 0
				continue
			}
			p++
		}
		if err := c.take(int32(p), uint64(at), s.ledger[p][at]); err != nil {
			b.Fatal(err)
		}
		at++
	}
}

// BenchmarkEpoch is what an epoch costs in which each of 10,000 chains has changed, without Kafka.
func BenchmarkEpoch(b *testing.B) {
	s := newChains(testPartitions)
	all := manyChains(10_000)
	for _, c := range all {
		s.add(c)
	}
	n := byte(0)
	for b.Loop() {
		n++
		for _, c := range all {
			c.head.AppendHash(ledger.Hash{n})
			s.changed = append(s.changed, c)
		}
		s.epoch()
		for _, c := range s.changed {
			if _, err := encode(c.message(1)); err != nil {
				b.Fatal(err)
			}
		}
		s.settle()
	}
}

// BenchmarkBacklog is the time per leaf of an epoch over 240,000 leaves that wait on the broker, fetching and signing included.
func BenchmarkBacklog(b *testing.B) {
	c := kafkatest.Start(b)
	s := &simulated{t: b, heads: make(map[ledger.ChainID]*chain)}
	for ws := range uint64(3) {
		for lane := range uint32(testPartitions) {
			s.seal(ws, lane, 20_000-1)
		}
	}
	leaves := 0
	for p, values := range s.ledger {
		records := make([]*kgo.Record, len(values))
		for i, v := range values {
			records[i] = &kgo.Record{Topic: schemas.TopicLedger, Partition: int32(p), Value: v}
		}
		c.Produce(b, records...)
		leaves += len(values)
	}
	for b.Loop() {
		b.StopTimer()
		// Each time another root log, over the same ledger.
		for _, topic := range []string{schemas.TopicCheckpoints, schemas.TopicNotaryState} {
			if err := c.Fake.DeleteTopic(c.Config.Topic(topic)); err != nil {
				b.Fatal(err)
			}
		}
		if err := kafka.CreateTopics(b.Context(), c.Client(b), schemas.Topics(c.Layout)); err != nil {
			b.Fatal(err)
		}
		cfg := testConfig(b, c)
		b.StartTimer()
		n := start(b, cfg)
		await(b, "an epoch of everything", func(context.Context) error { return atLeast(n.metric(b, "leaves_total"), float64(leaves)) })
		b.StopTimer()
		n.stop(b)
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*leaves), "ns/leaf")
}

func manyChains(n int) []*chain {
	all := make([]*chain, n)
	for i := range all {
		c := &chain{lanes: 1, workspace: [16]byte(fillBytes(16, uint64(i), 2))}
		c.head.Chain = ledger.NewChainID(c.workspace, c.incarnation, 0)
		for j := range 1000 + i%1000 {
			c.head.AppendHash(ledger.Hash{byte(j)})
		}
		all[i] = c
	}
	return all
}

// BenchmarkTakeOver is the time from start to ready where the last leader has left 10,000 chains.
func BenchmarkTakeOver(b *testing.B) {
	c := kafkatest.Start(b)
	cfg := testConfig(b, c)
	k, err := loadKeys(cfg.KeyFile)
	if err != nil {
		b.Fatal(err)
	}
	s := &simulated{t: b, state: make(map[string][]byte), keys: k, now: time.Now().Add(-time.Hour)}
	s.takeOver()
	s.commit(k.newest())
	for _, chain := range manyChains(10_000) {
		s.chains.add(chain)
		s.chains.changed = append(s.chains.changed, chain)
	}
	s.commit(nil)
	for range 600 {
		s.commit(nil)
	}
	note, err := ledger.SignCheckpoint(s.log.checkpoint(), k.newest())
	if err != nil {
		b.Fatal(err)
	}
	signed, err := encode(&recordpb.SignedCheckpoint{Size: s.log.head.Size, Note: note})
	if err != nil {
		b.Fatal(err)
	}
	var records []*kgo.Record
	for _, r := range s.checkpoints {
		if r == nil { // in the place of a marker, so that the offsets are those of the nodes
			r = &kgo.Record{Key: []byte(checkpointKey), Value: signed}
		}
		records = append(records, &kgo.Record{Topic: schemas.TopicCheckpoints, Key: r.Key, Value: r.Value})
	}
	for key, value := range s.state {
		records = append(records, &kgo.Record{Topic: schemas.TopicNotaryState, Key: []byte(key), Value: value})
	}
	c.Produce(b, records...)
	for b.Loop() {
		n := start(b, cfg)
		await(b, "ready", n.Ready)
		b.StopTimer()
		n.stop(b)
		b.StartTimer()
	}
}
