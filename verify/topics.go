package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	protobuf "google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

const (
	// kafkaWait is how long to wait for Kafka's next answer.
	kafkaWait = 30 * time.Second
	// tiedOffsets is how many offsets of a partition of the ledger topic, below the one up to which the newest epoch covers it, are looked at to
	// know the topic again.
	tiedOffsets = 256
	// maxTied is how many leaves are looked for in the tables, so that the statement stays small.
	maxTied = 1000
)

// topics are those of the ledger's own Kafka.
type topics struct {
	kafka.Config

	opts   []kgo.Opt
	client *kgo.Client
	admin  *kadm.Client
}

var (
	errOtherKafka = errors.New("the Kafka that was named is not that of this ledger, or has lost what was sealed")
	errNotTied    = errors.New("nothing shows that the Kafka that was named is that of this ledger")
)

// openTopics reaches the Kafka that was named, and makes sure that it is the ledger's: what it does not have, or has beside the ledger, says
// nothing otherwise. Close the client.
func (v *tableVerifier) openTopics(ctx context.Context) (*topics, error) {
	t := &topics{Config: v.tables.Kafka}
	var err error
	if t.opts, err = t.Options(slog.New(slog.DiscardHandler)); err != nil {
		return nil, err
	}
	if t.client, err = kgo.NewClient(t.opts...); err != nil {
		return nil, fmt.Errorf("opening kafka: %w", err)
	}
	t.admin = kadm.NewClient(t.client)
	if err := v.checkTied(ctx, t); err != nil {
		t.client.Close()
		return nil, err
	}
	return t, nil
}

// checkTied: each partition of the ledger topic is as long as the newest epoch says, and one of the last leaves before that is in the tables. It goes
// by what leaves commit to, as nobody signs at which offset the tables say that they are.
func (v *tableVerifier) checkTied(ctx context.Context, t *topics) error {
	if len(v.epochs) == 0 {
		return errNotTied
	}
	topic := t.Topic(schemas.TopicLedger)
	asking, cancel := context.WithTimeout(ctx, kafkaWait)
	defer cancel()
	starts, err := t.admin.ListStartOffsets(asking, topic)
	if err != nil {
		return fmt.Errorf("asking kafka: %w", err)
	}
	ends, err := t.admin.ListCommittedOffsets(asking, topic)
	if err != nil {
		return fmt.Errorf("asking kafka: %w", err)
	}
	if err := cmp.Or(starts.Error(), ends.Error()); err != nil {
		return fmt.Errorf("asking kafka: %w", err)
	}
	var spans []kafka.Span
	for p, position := range v.epochs[len(v.epochs)-1].Epoch.Positions {
		start, _ := starts.Lookup(topic, int32(p))
		end, _ := ends.Lookup(topic, int32(p)) // of a partition that is not there, 0
		if uint64(end.Offset) < position {
			return fmt.Errorf("%w: partition %d of %s ends at offset %d, and the newest epoch covers it up to %d", errOtherKafka, p, topic, end.Offset, position)
		}
		from := max(start.Offset, int64(position)-tiedOffsets)
		spans = append(spans, kafka.Span{Topic: topic, Partition: int32(p), From: from, To: int64(position)})
	}
	sealed := map[int32]string{} // the last of each partition
	err = t.read(ctx, spans, func(r *kgo.Record) {
		s := new(recordpb.Sealed)
		if protobuf.Unmarshal(r.Value, s) == nil && len(s.GetChain()) == len(ledger.ChainID{}) && len(s.GetLeafHash()) == len(ledger.Hash{}) {
			sealed[r.Partition] = fmt.Sprintf("(%s,%d,%s)", sql(s.GetChain()), s.GetSequence(), sql(s.GetLeafHash()))
		}
	})
	if err != nil {
		return err
	}
	if len(sealed) == 0 {
		return fmt.Errorf("%w: %s has no leaf any more that a signed epoch covers", errNotTied, topic)
	}
	some := slices.Collect(maps.Values(sealed))
	some = some[:min(len(some), maxTied)]
	found, err := v.store.number(ctx, "SELECT count() FROM leaves WHERE (chain, sequence, leaf_hash) IN ("+strings.Join(some, ",")+")")
	if err == nil && found == 0 {
		err = fmt.Errorf("%w: the tables have none of the %d leaves that are the last of their partitions of %s that the newest epoch covers", errOtherKafka, len(some), topic)
	}
	return err
}

// read calls each with the committed records of the spans, those of a partition in order. What Kafka has deleted meanwhile is left out; that it does not say
// anything for kafkaWait is an error.
func (t *topics) read(ctx context.Context, spans []kafka.Span, each func(*kgo.Record)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(kafkaWait, func() { cancel(fmt.Errorf("kafka has not answered for %s", kafkaWait)) })
	defer silence.Stop()
	err := kafka.Read(ctx, spans, func(r *kgo.Record) bool {
		silence.Reset(kafkaWait)
		each(r)
		return true
	}, append(slices.Clip(t.opts), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxBytes(8<<20))...)
	if err != nil {
		return fmt.Errorf("reading kafka: %w", errors.Join(err, context.Cause(ctx)))
	}
	return nil
}
