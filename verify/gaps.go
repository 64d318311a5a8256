package verify

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strconv"
	"strings"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	protobuf "google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

const (
	// maxInputs is how many offsets of one partition of the events topic are compared: a bit each.
	maxInputs = 1 << 32
	// maxDead is how many records of the events topic that are on the dlq are kept: some 40 bytes each.
	maxDead = 1_000_000
	// minUnkept is the size from which on the dlq has only where a record is, in bytes: less than what Kafka takes with headers.
	minUnkept = 512 << 10
	// maxUnsealed is how many records without a leaf are looked into.
	maxUnsealed = 10_000
)

// unsealedInput is what is not decided where Kafka does not answer.
const unsealedInput = "whether every record of the events topic has a leaf"

// gaps finds records of the events topic that have no leaf although later ones have. The zero gaps, where no Kafka was named, finds none.
type gaps struct {
	topics *topics
	// inputs of the partition at hand: one bit for each offset from start on, up to and without end.
	start, end uint64
	bits       []uint64
	next       uint64 // one past the largest
	generation uint16
	partition  int32
	tooMany    bool
	beyond     []inputRow        // leaves of the ledger partition at hand whose place is not before end, maxUnsealed at most
	dead       map[input]deadSum // what is on the dlq, maxDead and one of them at most
}

// deadSum is the beginning of the SHA-256 of what is on the dlq in place of a record; zero of one that was too large for it.
type deadSum [8]byte

func deadSumOf(value []byte) (sum deadSum) {
	if len(value) > 0 {
		whole := sha256.Sum256(value)
		copy(sum[:], whole[:])
	}
	return sum
}

// input is a place in the events topic.
type input struct {
	partition int32
	offset    int64
}

// newGaps asks Kafka for the bounds of its topics. Where it does not answer, or is not the ledger's, there is the zero gaps beside the error.
func (v *tableVerifier) newGaps(ctx context.Context) (*gaps, error) {
	t, err := v.topics, v.noTopics
	if err != nil {
		return &gaps{}, err
	}
	if t == nil {
		v.report.notChecked("%s: no Kafka was named", unsealedInput)
		return &gaps{}, nil
	}
	g := &gaps{topics: t, partition: -1}
	if g.dead, err = g.deadLetters(ctx); err != nil {
		return &gaps{}, err
	}
	return g, nil
}

// sealed notes the place of a leaf in the input.
func (g *gaps) sealed(r *inputRow) {
	if g.topics == nil {
		return
	}
	if g.partition != int32(r.partition) || g.generation < r.generation {
		topic := g.topics.Topic(schemas.TopicEvents)
		start, _ := g.topics.starts.Lookup(topic, int32(r.partition))
		end, _ := g.topics.ends.Lookup(topic, int32(r.partition))
		*g = gaps{
			topics: g.topics, beyond: g.beyond, dead: g.dead,
			partition: int32(r.partition), generation: r.generation,
			start: uint64(max(start.Offset, 0)), end: uint64(max(end.Offset, 0)), bits: g.bits[:0],
		}
	}
	if r.generation < g.generation || r.offset < g.start {
		return
	}
	if r.offset >= g.end {
		if len(g.beyond) < maxUnsealed {
			g.beyond = append(g.beyond, *r)
		}
		return
	}
	at := r.offset - g.start
	if at >= maxInputs {
		g.tooMany = true
		return
	}
	for uint64(len(g.bits)) <= at/64 {
		g.bits = append(g.bits, 0)
	}
	g.bits[at/64] |= 1 << (at % 64)
	g.next = max(g.next, r.offset+1)
}

// has says whether a leaf names an offset.
func (g *gaps) has(offset uint64) bool {
	at := offset - g.start
	return at/64 < uint64(len(g.bits)) && g.bits[at/64]>>(at%64)&1 == 1
}

// checkBeyond reports leaves of chains without faults whose place in the input was not written when they had been read.
func (g *gaps) checkBeyond(ctx context.Context, v *tableVerifier, faulty map[ledger.ChainID]bool) error {
	beyond := g.beyond
	if g.beyond = nil; len(beyond) == 0 {
		return nil
	}
	asking, cancel := context.WithTimeout(ctx, kafkaWait)
	defer cancel()
	topic := g.topics.Topic(schemas.TopicEvents)
	ends, err := g.topics.admin.ListEndOffsets(asking, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("asking kafka: %w", err)
	}
	untied := 0
	for _, r := range beyond {
		if !g.topics.ties(int32(r.partition)) {
			untied++
			continue
		}
		end, _ := ends.Lookup(topic, int32(r.partition))
		if !faulty[r.chain] && r.offset >= uint64(max(end.Offset, 0)) {
			v.report.fault(leafFault(ledger.Inserted, &ledger.Leaf{Chain: r.chain, Sequence: r.sequence, ID: r.id},
				"its event is at offset %d of partition %d of the events topic, where nothing was written yet", r.offset, r.partition))
		}
	}
	if untied > 0 {
		v.report.undecided("whether the places in the events topic that %d leaves name were written: %v", untied, errNotTied)
	}
	return nil
}

// check reads what the events topic still has of the partition, up to the last place that a leaf names.
func (g *gaps) check(ctx context.Context, v *tableVerifier, ledgerPartition uint16) error {
	if g.topics == nil || g.partition != int32(ledgerPartition) || g.next <= g.start {
		return nil
	}
	if g.tooMany {
		v.report.undecided("partition %d of the events topic has more than %d offsets", g.partition, uint64(maxInputs))
	}
	if !g.topics.ties(g.partition) {
		v.report.undecided("%s, of partition %d: %v", unsealedInput, g.partition, errNotTied)
		return nil
	}
	unsealed := map[[16]byte][]uint64{}
	total, dead := 0, 0
	span := kafka.Span{Topic: g.topics.Topic(schemas.TopicEvents), Partition: g.partition, From: int64(g.start), To: int64(g.next)}
	err := g.topics.read(ctx, []kafka.Span{span}, func(r *kgo.Record) {
		if g.has(uint64(r.Offset)) {
			return
		}
		sum, is := g.dead[input{r.Partition, r.Offset}]
		if is && (sum == deadSumOf(r.Value) || sum == deadSum{} && len(r.Value) >= minUnkept) {
			dead++
			return
		}
		if total++; total > maxUnsealed {
			return
		}
		e := new(recordpb.Event)
		id := [16]byte{}
		if err := protobuf.Unmarshal(r.Value, e); err == nil && len(e.GetId()) == 16 {
			id = [16]byte(e.GetId())
		}
		unsealed[id] = append(unsealed[id], uint64(r.Offset))
	})
	if err != nil {
		v.report.undecided("%s: %v", unsealedInput, err)
		return ctx.Err()
	}
	if dead > 0 {
		v.report.notef("%d records of partition %d of the events topic have no leaf and are on the dlq: the processor has refused them", dead, g.partition)
	}
	if total > maxUnsealed {
		v.report.undecided("partition %d of the events topic has %d records without a leaf; %d were looked into", g.partition, total, maxUnsealed)
	}
	if total > 0 && len(g.dead) > maxDead {
		v.report.undecided("partition %d of the events topic has %d records without a leaf: the dlq has more than %d, and they may be among the others", g.partition, total, maxDead)
		return nil
	}
	return g.tell(ctx, v, unsealed)
}

// tell reports those that are not the second record of an id that has a leaf.
func (g *gaps) tell(ctx context.Context, v *tableVerifier, unsealed map[[16]byte][]uint64) error {
	known, err := v.store.known(ctx, unsealed)
	if err != nil {
		return err
	}
	for id, offsets := range unsealed {
		if known[id] {
			continue
		}
		for _, offset := range offsets {
			v.report.faultf(ledger.InputGap, "partition %d, offset %d of the events topic has no leaf, and later records have", g.partition, offset)
		}
	}
	return nil
}

// known says which of some ids have a leaf: a second record of one is a retry, or was written again.
func (s *store) known(ctx context.Context, ids map[[16]byte][]uint64) (map[[16]byte]bool, error) {
	known := map[[16]byte]bool{}
	var list []string
	for id := range ids {
		if id != [16]byte{} {
			list = append(list, sql(id[:]))
		}
	}
	if len(list) == 0 {
		return known, nil
	}
	found := proto.ColFixedStr{Size: 16}
	text := "SELECT DISTINCT id FROM leaves WHERE id IN (" + strings.Join(list, ",") + ")"
	err := s.query(ctx, text, proto.Results{{Name: "id", Data: &found}}, func(rows int) error {
		for i := range rows {
			known[[16]byte(found.Row(i))] = true
		}
		return nil
	})
	return known, err
}

// deadLetters reads which records of the events topic are on the dlq.
func (g *gaps) deadLetters(ctx context.Context) (map[input]deadSum, error) {
	dead := map[input]deadSum{}
	events := g.topics.Topic(schemas.TopicEvents)
	topic := g.topics.Topic(schemas.TopicDLQ)
	starts, ends, err := g.topics.bounds(ctx, topic, g.topics.admin.ListCommittedOffsets)
	if err != nil {
		return nil, err
	}
	var spans []kafka.Span
	ends.Each(func(end kadm.ListedOffset) {
		if start, ok := starts.Lookup(topic, end.Partition); ok {
			spans = append(spans, kafka.Span{Topic: topic, Partition: end.Partition, From: start.Offset, To: end.Offset})
		}
	})
	err = g.topics.read(ctx, spans, func(r *kgo.Record) {
		var from, partition, offset string
		for _, h := range r.Headers {
			switch h.Key {
			case schemas.DLQHeaderTopic:
				from = string(h.Value)
			case schemas.DLQHeaderPartition:
				partition = string(h.Value)
			case schemas.DLQHeaderOffset:
				offset = string(h.Value)
			}
		}
		p, errPartition := strconv.ParseInt(partition, 10, 32)
		o, errOffset := strconv.ParseInt(offset, 10, 64)
		if from == events && errPartition == nil && errOffset == nil && len(dead) <= maxDead {
			dead[input{int32(p), o}] = deadSumOf(r.Value)
		}
	})
	return dead, err
}
