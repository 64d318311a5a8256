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
	// know the topic again, and tiedEvents how many of the events of the leaves there, to know the events topic again.
	tiedOffsets, tiedEvents = 256, 16
	// maxTied is how many leaves are looked for in the tables, so that the statement stays small.
	maxTied = 1000
)

// topics are those of the ledger's own Kafka.
type topics struct {
	kafka.Config

	opts   []kgo.Opt
	client *kgo.Client
	admin  *kadm.Client
	// starts and ends of the partitions of the events topic, and whether those are the ledger's of which that can be told.
	starts, ends kadm.ListedOffsets
	tied         map[int32]bool
}

// ties says whether a partition of the events topic is the ledger's. One of which no leaf tells it, as no epoch covers any there yet, is if all of which it
// can be told are.
func (t *topics) ties(p int32) bool {
	if tied, told := t.tied[p]; told {
		return tied
	}
	for _, tied := range t.tied {
		if !tied {
			return false
		}
	}
	return len(t.tied) > 0
}

var (
	errOtherKafka = errors.New("the Kafka that was named is not that of this ledger, or has lost what was sealed")
	errNotTied    = errors.New("nothing shows that the Kafka that was named is that of this ledger")
)

// openTopics reaches the Kafka that was named, and makes sure that it is the ledger's: what it does not have, or has beside the ledger, says
// nothing otherwise. Close the client.
func (v *tableVerifier) openTopics(ctx context.Context, results []*chainResult) (*topics, error) {
	t := &topics{Config: v.tables.Kafka, tied: map[int32]bool{}}
	var err error
	if t.opts, err = t.Options(slog.New(slog.DiscardHandler)); err != nil {
		return nil, err
	}
	if t.client, err = kgo.NewClient(t.opts...); err != nil {
		return nil, fmt.Errorf("opening kafka: %w", err)
	}
	t.admin = kadm.NewClient(t.client)
	recent, err := v.checkTied(ctx, t, results)
	if err == nil {
		err = t.tie(ctx, recent)
	}
	if err != nil {
		t.client.Close()
		return nil, err
	}
	return t, nil
}

// sealedPlace is what a record of the ledger topic says of a leaf.
type sealedPlace struct {
	chain      ledger.ChainID
	sequence   uint64
	hash       ledger.Hash
	id         string
	at         int64 // offset on the ledger topic
	generation uint32
	offset     int64 // on the events topic
}

// checkTied: each partition of the ledger topic is as long as the newest epoch says, and the last leaf before there is the last one that the epoch
// covers of its chain, and at the offset that the tables name: nobody signs that, and a copy of the topic may have other markers. It returns what it has
// read of the partitions that it knows again.
func (v *tableVerifier) checkTied(ctx context.Context, t *topics, results []*chainResult) (map[int32][]sealedPlace, error) {
	if len(v.epochs) == 0 {
		return nil, errNotTied
	}
	topic := t.Topic(schemas.TopicLedger)
	starts, ends, err := t.bounds(ctx, topic, t.admin.ListCommittedOffsets)
	if err != nil {
		return nil, err
	}
	var spans []kafka.Span
	for p, position := range v.epochs[len(v.epochs)-1].Epoch.Positions {
		start, _ := starts.Lookup(topic, int32(p))
		end, _ := ends.Lookup(topic, int32(p)) // of a partition that is not there, 0
		if uint64(end.Offset) < position {
			return nil, fmt.Errorf("%w: partition %d of %s ends at offset %d, and the newest epoch covers it up to %d", errOtherKafka, p, topic, end.Offset, position)
		}
		from := max(start.Offset, int64(position)-tiedOffsets)
		spans = append(spans, kafka.Span{Topic: topic, Partition: int32(p), From: from, To: int64(position)})
	}
	recent := map[int32][]sealedPlace{}
	err = t.read(ctx, spans, func(r *kgo.Record) {
		s := new(recordpb.Sealed)
		if protobuf.Unmarshal(r.Value, s) == nil && len(s.GetChain()) == len(ledger.ChainID{}) && len(s.GetLeafHash()) == len(ledger.Hash{}) {
			list := append(recent[r.Partition], sealedPlace{
				ledger.ChainID(s.GetChain()), s.GetSequence(), ledger.Hash(s.GetLeafHash()), string(s.GetEvent().GetId()), r.Offset, s.GetGeneration(), int64(s.GetOffset()),
			})
			recent[r.Partition] = list[max(0, len(list)-tiedEvents):]
		}
	})
	if err != nil {
		return nil, err
	}
	return recent, v.checkLast(ctx, topic, recent, results)
}

// checkLast compares the last leaf of each partition with what the newest epoch covers. Chains with faults are left out.
func (v *tableVerifier) checkLast(ctx context.Context, topic string, recent map[int32][]sealedPlace, results []*chainResult) error {
	chains := map[ledger.ChainID]*chainResult{}
	for _, r := range results {
		chains[r.id] = r
	}
	var wanted []string
	for _, p := range slices.Sorted(maps.Keys(recent)) {
		last := recent[p][len(recent[p])-1]
		r := chains[last.chain]
		switch {
		case r != nil && (r.faults > 0 || r.err != nil):
			delete(recent, p)
		case r == nil || r.marks[len(v.epochs)-1].Size != last.sequence+1:
			return fmt.Errorf("%w: leaf %d of chain %x is the last one of partition %d of %s before where the newest epoch covers it up to, and is not the last one of its chain that the epoch covers",
				errOtherKafka, last.sequence, last.chain, p, topic)
		case len(wanted) < maxTied:
			wanted = append(wanted, fmt.Sprintf("(%s,%d,%s,%d,%d)", sql(last.chain[:]), last.sequence, sql(last.hash[:]), p, last.at))
		}
	}
	if len(wanted) == 0 {
		return fmt.Errorf("%w: %s has no leaf of a chain without faults any more that a signed epoch covers", errNotTied, topic)
	}
	found, err := v.store.number(ctx, "SELECT uniqExact(chain, sequence) FROM leaves WHERE (chain, sequence, leaf_hash, ledger_partition, ledger_offset) IN ("+
		strings.Join(wanted, ",")+")")
	if err == nil && found < uint64(len(wanted)) {
		err = fmt.Errorf("%w: the tables have %d of the %d leaves, at their offsets, that are the last ones of their partitions of %s that the newest epoch covers",
			errOtherKafka, found, len(wanted), topic)
	}
	return err
}

// bounds asks for the bounds of a topic's partitions.
func (t *topics) bounds(
	ctx context.Context, topic string, listEnds func(context.Context, ...string) (kadm.ListedOffsets, error),
) (starts, ends kadm.ListedOffsets, err error) {
	ctx, cancel := context.WithTimeout(ctx, kafkaWait)
	defer cancel()
	if starts, err = t.admin.ListStartOffsets(ctx, topic); err == nil {
		ends, err = listEnds(ctx, topic)
	}
	if err == nil {
		err = cmp.Or(starts.Error(), ends.Error())
	}
	if err != nil {
		return nil, nil, fmt.Errorf("asking kafka: %w", err)
	}
	return starts, ends, nil
}

// tie finds out which partitions of the events topic are the ledger's, of those of which leaves tell it: those that have one of the last events that were
// sealed at the offset that its leaf names, or nothing as old as those any more.
func (t *topics) tie(ctx context.Context, recent map[int32][]sealedPlace) (err error) {
	topic := t.Topic(schemas.TopicEvents)
	if t.starts, t.ends, err = t.bounds(ctx, topic, t.admin.ListEndOffsets); err != nil {
		return err
	}
	ids := map[input]string{}
	var spans []kafka.Span
	for p, places := range recent {
		start, _ := t.starts.Lookup(topic, p)
		end, _ := t.ends.Lookup(topic, p)
		newest := places[len(places)-1]
		if newest.offset < start.Offset {
			t.tied[p] = true
			continue
		}
		t.tied[p] = false
		span := kafka.Span{Topic: topic, Partition: p, From: newest.offset}
		for _, place := range places {
			if place.generation == newest.generation && place.offset >= start.Offset && place.offset < end.Offset {
				ids[input{p, place.offset}] = place.id
				span.From, span.To = min(span.From, place.offset), max(span.To, place.offset+1)
			}
		}
		spans = append(spans, span)
	}
	return t.read(ctx, spans, func(r *kgo.Record) {
		e := new(recordpb.Event)
		if id, is := ids[input{r.Partition, r.Offset}]; is && protobuf.Unmarshal(r.Value, e) == nil && string(e.GetId()) == id {
			t.tied[r.Partition] = true
		}
	})
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
