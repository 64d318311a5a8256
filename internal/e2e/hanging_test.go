package e2e

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os/exec"
	"regexp"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
	"getimmutable.dev/immutable/internal/kafka/realkafka"
	"getimmutable.dev/immutable/schemas"
)

// TestHangingTransaction leaves a transaction open in every partition of the ledger that Kafka's coordinator does not know
// of. The processor waits, immutable check names the commands that end them, and then everything is sealed.
func TestHangingTransaction(t *testing.T) {
	long(t)
	t.Parallel()
	broker := realkafka.Start(t, realkafka.Config{Properties: map[string]string{
		"transaction.partition.verification.enable": "false", // or Kafka would not let it begin
	}})
	s := newServices(t, broker.EmptyInstallation(), clickhousetest.StartEmpty(t).DSN())
	for p := range s.layout.Partitions {
		hang(t, broker, s.e.prefix+schemas.TopicLedger, p)
	}
	id := s.post(t, []byte(`{"actor_id":"e2e","action":"transaction.hung"}`))
	processor := s.service("processor")
	admin := kadm.NewClient(broker.Client(t))
	if hung := s.endHanging(t, admin); hung != int(s.layout.Partitions) {
		t.Errorf("check names %d hanging transactions, want %d", hung, s.layout.Partitions)
	}
	began := time.Now()
	eventually(t, recovery, func() error { return s.tryGet(t.Context(), "/events/"+id, nil, new(map[string]any)) })
	t.Logf("readable %s after the transactions ended", time.Since(began).Round(10*time.Millisecond))
	if hung := s.endHanging(t, admin); hung > 0 {
		t.Errorf("check still names %d hanging transactions", hung)
	}
	t.Logf("check: %s", s.check(t, 2))
	for _, p := range []*process{processor, s.ingest.Load(), s.query.Load(), s.sinks} {
		p.stop(t)
	}
}

// hang writes a record of a transaction that the partition was never added to, as a delayed request did before Kafka 3.6.
func hang(t *testing.T, broker *realkafka.Cluster, topic string, partition int32) {
	t.Helper()
	cl := broker.Client(t, kgo.MaxVersions(kversion.V3_7_0()))
	init := kmsg.NewPtrInitProducerIDRequest()
	init.TransactionalID = new(fmt.Sprint("hanging-", partition))
	init.TransactionTimeoutMillis = 10_000
	var producer *kmsg.InitProducerIDResponse
	eventually(t, startLimit, func() (err error) {
		if producer, err = init.RequestWith(t.Context(), cl); err == nil {
			err = kerr.ErrorForCode(producer.ErrorCode)
		}
		return err
	})

	record := kmsg.Record{Value: []byte("x")}
	record.Length = int32(len(record.AppendTo(nil)) - 1)
	now := time.Now().UnixMilli()
	batch := kmsg.RecordBatch{
		PartitionLeaderEpoch: -1, Magic: 2, Attributes: 1 << 4, // transactional
		FirstTimestamp: now, MaxTimestamp: now, ProducerID: producer.ProducerID, ProducerEpoch: producer.ProducerEpoch,
		NumRecords: 1, Records: record.AppendTo(nil),
	}
	const toLength, toCRC = 8 + 4, 8 + 4 + 4 + 1 + 4 // what is before their end
	encoded := batch.AppendTo(nil)
	binary.BigEndian.PutUint32(encoded[toLength-4:], uint32(len(encoded)-toLength))
	binary.BigEndian.PutUint32(encoded[toCRC-4:], crc32.Checksum(encoded[toCRC:], crc32.MakeTable(crc32.Castagnoli)))

	req := kmsg.NewPtrProduceRequest()
	req.TransactionID, req.Acks, req.TimeoutMillis = init.TransactionalID, -1, 10_000
	to, at := kmsg.NewProduceRequestTopic(), kmsg.NewProduceRequestTopicPartition()
	to.Topic, at.Partition, at.Records = topic, partition, encoded
	to.Partitions = append(to.Partitions, at)
	req.Topics = append(req.Topics, to)
	resp, err := cl.Broker(1).Request(t.Context(), req)
	if err == nil {
		err = kerr.ErrorForCode(resp.(*kmsg.ProduceResponse).Topics[0].Partitions[0].ErrorCode)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// diagnosis is what immutable check says.
func (s *services) diagnosis(t *testing.T) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	defer cancel()
	// With a problem its status is 1.
	out, err := exec.CommandContext(ctx, immutable(t), flattenArgs([]any{"check", s.target(), s.tableFlags(), s.layoutFlags()})...).CombinedOutput()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatal(err)
	}
	return out
}

// aborts is the command that ends a hanging transaction.
var aborts = regexp.MustCompile(`kafka-transactions\.sh --bootstrap-server \S+ abort --topic (\S+) --partition (\d+) --start-offset (\d+)`)

// endHanging does what the commands that immutable check names do, through Kafka's API, and returns how many there were.
func (s *services) endHanging(t *testing.T, admin *kadm.Client) int {
	t.Helper()
	commands := aborts.FindAllSubmatch(s.diagnosis(t), -1)
	for _, command := range commands {
		var partition int32
		var from int64
		if _, err := fmt.Sscan(string(command[2])+" "+string(command[3]), &partition, &from); err != nil {
			t.Fatal(err)
		}
		where := kadm.TopicsSet{}
		where.Add(string(command[1]), partition)
		described, err := admin.DescribeProducers(t.Context(), where)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range described.SortedProducers() {
			if p.CurrentTxnStartOffset != from {
				continue
			}
			answers, err := admin.WriteTxnMarkers(t.Context(), kadm.TxnMarkers{
				ProducerID: p.ProducerID, ProducerEpoch: p.ProducerEpoch, CoordinatorEpoch: max(0, p.CoordinatorEpoch), Topics: where,
			})
			answers.EachPartition(func(r kadm.TxnMarkersPartitionResponse) { err = errors.Join(err, r.Err) })
			if err != nil {
				t.Fatalf("%s: %v", command[0], err)
			}
		}
	}
	return len(commands)
}
