package e2e

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/schemas"
)

// TestReplayedRecords writes all records of the events topic a second time, as they are, past ingest: none of them, with an idempotency key or
// without, gets a second leaf.
func TestReplayedRecords(t *testing.T) {
	long(t)
	s := up(t)
	const events = 20
	for i := range events {
		body := []byte(`{"actor_id":"a","action":"card.blocked","resource":"card","resource_id":"` + string(rune('a'+i)) + `"}`)
		if i%2 == 0 {
			body = append(body[:len(body)-1], (`,"idempotency_key":"` + string(rune('a'+i)) + `"}`)...)
		}
		s.post(t, body)
	}
	before := s.check(t, events)

	e := s.where(t)
	topic := e.prefix + schemas.TopicEvents
	client, err := kgo.NewClient(kgo.SeedBrokers(e.brokers...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var copies []*kgo.Record
	for len(copies) < before.Inputs {
		fetches := client.PollFetches(t.Context())
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			copies = append(copies, &kgo.Record{Topic: topic, Partition: r.Partition, Key: r.Key, Value: r.Value, Timestamp: r.Timestamp})
		})
	}
	if err := client.ProduceSync(t.Context(), copies...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	after := s.check(t, events)
	if after.Inputs != 2*before.Inputs || after.Duplicates != before.Inputs || after.Leaves != before.Leaves {
		t.Errorf("%d records written again: before %s, after %s", len(copies), before, after)
	}
	s.stop(t)
}
