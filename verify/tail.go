package verify

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/twmb/franz-go/pkg/kgo"
	protobuf "google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

const (
	// maxTail is how many leaves that no epoch covers are compared with the ledger topic: some hours of a notary that stands still.
	maxTail = 1_000_000
	// tailTimeout bounds the reading of the ledger topic.
	tailTimeout = 5 * time.Minute
	// sealedLate is how long before the newest epoch a leaf that no epoch covers was recorded at least, to be spoken of.
	sealedLate = 5 * time.Minute
)

// tailRow is a leaf that no epoch covers.
type tailRow struct {
	chain      ledger.ChainID
	sequence   uint64
	id         [16]byte
	hash       ledger.Hash
	recordedAt int64
}

// tailPlace is where the ledger topic has a leaf.
type tailPlace struct {
	partition uint16
	offset    uint64
}

// checkTail looks at the leaves that no epoch covers yet, of which nothing in the tables says that they were sealed: each is what the ledger topic has
// at its offset. Whoever writes into the tables alone is found out by that, or by the next epoch if it covers the offset.
func (v *tableVerifier) checkTail(ctx context.Context) error {
	if len(v.epochs) == 0 {
		return nil
	}
	newest := v.epochs[len(v.epochs)-1]
	rows, err := v.store.tail(ctx, newest.Epoch.Positions)
	if err != nil || len(rows) == 0 {
		return err
	}
	if len(rows) > maxTail {
		v.report.undecided("more than %d leaves are covered by no signed epoch: %d were compared with the ledger topic", maxTail, maxTail)
	}
	if v.noTopics != nil {
		v.report.undecided("whether %d leaves that no signed epoch covers yet were sealed: %v", len(rows), v.noTopics)
		return nil
	}
	if v.topics == nil {
		v.report.notChecked("whether %d leaves that no signed epoch covers yet were sealed: no Kafka was named", len(rows))
		late := 0
		for _, r := range rows {
			if time.UnixMicro(r.recordedAt).Before(newest.Time.Add(-sealedLate)) {
				late++
			}
		}
		if late > 0 {
			v.report.notef("%d leaves that no signed epoch covers were recorded more than %s before the newest one: they were sealed late, or "+
				"inserted into the tables; a later epoch, or --kafka, tells", late, sealedLate)
		}
		return nil
	}
	reading, cancel := context.WithTimeout(ctx, tailTimeout)
	defer cancel()
	unread, err := v.compareTail(reading, rows)
	if err != nil {
		v.report.undecided("whether %d leaves that no signed epoch covers yet were sealed: %v", len(rows), err)
		return ctx.Err()
	}
	if unread > 0 {
		v.report.undecided("whether %d leaves that no signed epoch covers yet were sealed: Kafka does not have their place any more", unread)
	}
	return nil
}

// compareTail reports the rows that the ledger topic does not have. unread are those at offsets that it has deleted.
func (v *tableVerifier) compareTail(ctx context.Context, rows map[tailPlace]tailRow) (unread int, err error) {
	topic, admin := v.topics.Topic(schemas.TopicLedger), v.topics.admin
	asking, cancel := context.WithTimeout(ctx, kafkaWait)
	defer cancel()
	starts, err := admin.ListStartOffsets(asking, topic)
	if err != nil {
		return 0, err
	}
	// After the rows were read: what a writer has put there is committed by now.
	ends, err := admin.ListCommittedOffsets(asking, topic)
	if err != nil {
		return 0, err
	}
	spans := map[uint16]*kafka.Span{}
	for at := range rows {
		start, _ := starts.Lookup(topic, int32(at.partition))
		end, ok := ends.Lookup(topic, int32(at.partition))
		switch {
		case ok && (start.Err != nil || end.Err != nil):
			return 0, fmt.Errorf("partition %d of %s: %w", at.partition, topic, cmp.Or(start.Err, end.Err))
		case !ok || at.offset >= uint64(end.Offset):
			continue // it stays in rows: the topic has no such place
		case at.offset < uint64(start.Offset):
			delete(rows, at)
			unread++
			continue
		}
		s := spans[at.partition]
		if s == nil {
			s = &kafka.Span{Topic: topic, Partition: int32(at.partition), From: int64(at.offset)}
			spans[at.partition] = s
		}
		s.From, s.To = min(s.From, int64(at.offset)), max(s.To, int64(at.offset)+1)
	}
	var list []kafka.Span
	for _, s := range spans {
		list = append(list, *s)
	}
	err = v.topics.read(ctx, list, func(r *kgo.Record) {
		at := tailPlace{uint16(r.Partition), uint64(r.Offset)}
		if row, ok := rows[at]; ok && row.is(r.Value) {
			delete(rows, at)
		}
	})
	if err != nil {
		return 0, err
	}
	for at, row := range rows {
		v.report.fault(leafFault(ledger.Inserted, &ledger.Leaf{Chain: row.chain, Sequence: row.sequence, ID: row.id},
			"no signed epoch covers the leaf, and the ledger topic does not have it at offset %d of partition %d", at.offset, at.partition))
	}
	return unread, nil
}

// is says whether a record of the ledger topic is the row's leaf. What the row's content gives is compared with its hash elsewhere.
func (r *tailRow) is(value []byte) bool {
	s := new(recordpb.Sealed)
	return protobuf.Unmarshal(value, s) == nil && string(s.GetChain()) == string(r.chain[:]) && s.GetSequence() == r.sequence &&
		string(s.GetLeafHash()) == string(r.hash[:])
}

// tail reads the leaves from these offsets of the ledger's partitions on, and those of partitions that have none: one more than maxTail at most. Of
// several rows at one place, which are a fault already, it has one.
func (s *store) tail(ctx context.Context, positions []uint64) (map[tailPlace]tailRow, error) {
	var (
		chain, id, hash  = proto.ColFixedStr{Size: 16}, proto.ColFixedStr{Size: 16}, proto.ColFixedStr{Size: 32}
		partition        proto.ColUInt16
		sequence, offset proto.ColUInt64
		at               proto.ColInt64
	)
	columns := proto.Results{
		{Name: "chain", Data: &chain},
		{Name: "sequence", Data: &sequence},
		{Name: "id", Data: &id},
		{Name: "leaf_hash", Data: &hash},
		{Name: "ledger_partition", Data: &partition},
		{Name: "ledger_offset", Data: &offset},
		{Name: "at", Data: &at},
	}
	beyond := []string{fmt.Sprintf("ledger_partition >= %d", len(positions))}
	for p, position := range positions {
		beyond = append(beyond, fmt.Sprintf("ledger_partition = %d AND ledger_offset >= %d", p, position))
	}
	rows := map[tailPlace]tailRow{}
	text := fmt.Sprintf("SELECT chain, sequence, id, leaf_hash, ledger_partition, ledger_offset, toUnixTimestamp64Micro(recorded_at) AS at FROM leaves "+
		"WHERE %s LIMIT %d", strings.Join(beyond, " OR "), maxTail+1)
	err := s.query(ctx, text, columns, func(n int) error {
		for i := range n {
			rows[tailPlace{partition[i], offset[i]}] = tailRow{
				ledger.ChainID(chain.Row(i)), sequence[i], [16]byte(id.Row(i)), ledger.Hash(hash.Row(i)), at[i],
			}
		}
		return nil
	})
	return rows, err
}
