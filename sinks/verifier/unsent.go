package verifier

import (
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
)

// unsent are events that Kafka has refused, until the next run.
type unsent struct {
	most int

	mu      sync.Mutex
	records []*kgo.Record
}

func (u *unsent) put(r *kgo.Record) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.records) < u.most {
		u.records = append(u.records, &kgo.Record{Topic: r.Topic, Partition: r.Partition, Key: r.Key, Value: r.Value, Timestamp: r.Timestamp})
	}
}

// take empties it.
func (u *unsent) take() []*kgo.Record {
	u.mu.Lock()
	defer u.mu.Unlock()
	records := u.records
	u.records = nil
	return records
}
