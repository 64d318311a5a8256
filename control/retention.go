package control

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/schemas"
)

// Retention is for how long the topics that hold events may keep a record, from its time stamp on, by their
// configuration; negative is for ever. Kafka deletes a segment when the newest record in it has passed the retention, and
// begins another after segment.ms, so that it is the sum of both; it looks every five minutes.
type Retention struct{ Events, Ledger time.Duration }

// defSegmentMS is Kafka's own segment.ms.
const defSegmentMS = 7 * 24 * 60 * 60 * 1000

// Retention asks Kafka for it.
func (w *Writer) Retention(ctx context.Context) (Retention, error) {
	ctx, cancel := context.WithTimeout(ctx, w.cfg.Timeout)
	defer cancel()
	cl, err := kgo.NewClient(w.opts...)
	if err != nil {
		return Retention{}, fmt.Errorf("open kafka client: %w", err)
	}
	defer cl.Close()
	events, ledger := w.cfg.Kafka.Topic(schemas.TopicEvents), w.cfg.Kafka.Topic(schemas.TopicLedger)
	configs, err := kadm.NewClient(cl).DescribeTopicConfigs(ctx, events, ledger)
	if err != nil {
		return Retention{}, fmt.Errorf("ask for the retention of events: %w", err)
	}
	var kept Retention
	for topic, d := range map[string]*time.Duration{events: &kept.Events, ledger: &kept.Ledger} {
		config, err := configs.On(topic, nil)
		if err == nil {
			err = config.Err
		}
		if err == nil {
			*d, err = retentionOf(config.Configs)
		}
		if err != nil {
			return Retention{}, fmt.Errorf("ask for the retention of %s: %w", topic, err)
		}
	}
	return kept, nil
}

func retentionOf(configs []kadm.Config) (time.Duration, error) {
	retention, segment := int64(-1), int64(defSegmentMS)
	for _, c := range configs {
		var ms *int64
		switch c.Key {
		case "retention.ms":
			ms = &retention
		case "segment.ms":
			ms = &segment
		default:
			continue
		}
		var err error
		if *ms, err = strconv.ParseInt(c.MaybeValue(), 10, 64); err != nil {
			return 0, fmt.Errorf("%s: %w", c.Key, err)
		}
	}
	const longest = int64(math.MaxInt64 / time.Millisecond / 2)
	if retention < 0 || retention > longest || segment > longest {
		return -1, nil
	}
	return time.Duration(retention+segment) * time.Millisecond, nil
}
