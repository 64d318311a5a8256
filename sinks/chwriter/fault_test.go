package chwriter

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

func TestClickHouseDown(t *testing.T) {
	long(t)
	s := newServer(t)
	r := newRigOn(t, s.DSN())
	cfg := r.config()
	cfg.QueueBytes, cfg.BatchBytes, cfg.FetchBytes = 64<<10, 64<<10, 64<<10
	w := r.start(cfg)
	r.produce(200)
	r.check()
	w.awaitReady()

	for range 2 {
		s.kill(t)
		for range 12 {
			r.produce(100)
		}
		await(t, "waiting for the outage to show", func() error {
			if err := w.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "clickhouse") {
				return errors.New("ready")
			}
			if w.metric("insert_retries_total") == 0 {
				return errors.New("no retry counted")
			}
			return nil
		})
		await(t, "waiting for the queues to fill", func() error {
			if w.metric("queued_bytes") < 4*64<<10 {
				return errors.New("not full")
			}
			return nil
		})
		// For each partition the limit and one fetch, which is 64 KiB before decompression.
		if n := w.metric("queued_bytes"); n > 4*(64+4*64)<<10 {
			t.Errorf("%v bytes queued", n)
		}
		if w.metric("lag_records") == 0 || w.metric("lag_seconds") == 0 {
			t.Error("no lag shown")
		}
		if n := w.metric("outage"); n != 1 {
			t.Errorf("%v systems have an outage, want one", n)
		}
		if n := w.metric("partitions"); n != 4 {
			t.Errorf("%v partitions are left", n)
		}
		s.start(t)
		await(t, "waiting for clickhouse", func() error { return r.conn.Ping(t.Context()) })
		r.check()
		w.awaitReady()
	}
}

func TestWaitsForClickHouseAtStart(t *testing.T) {
	long(t)
	s := newServer(t)
	r := newRigOn(t, s.DSN())
	r.produce(10)
	s.kill(t)
	w := r.start(r.config())
	await(t, "waiting for the outage to show", func() error {
		if err := w.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "clickhouse: ") {
			return errors.New("ready")
		}
		return nil
	})
	s.start(t)
	await(t, "waiting for clickhouse", func() error { return r.conn.Ping(t.Context()) })
	r.check()
	w.awaitReady()
}

func TestRefusesAnotherSchema(t *testing.T) {
	db := clickhousetest.StartEmpty(t)
	cfg := Config{ClickHouse: db.Config()}
	cfg.Kafka.Brokers = []string{"127.0.0.1:1"}
	w, err := New(cfg, nil, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Run(t.Context()); !errors.Is(err, clickhouse.ErrSchemaOlder) {
		t.Errorf("Run without tables: %v", err)
	}
}

func (r *rig) produceTo(partition int32, value []byte) {
	r.tb.Helper()
	r.kafka.Produce(r.tb, &kgo.Record{Topic: schemas.TopicLedger, Partition: partition, Value: value, Timestamp: time.Now()})
}

// A record that cannot be what was sealed halts its partition; what stands before it, and other partitions, go on.
func TestHaltsAtABadRecord(t *testing.T) {
	long(t)
	tampered := func(change func(*recordpb.Sealed)) func(*rig, []byte) []byte {
		return func(r *rig, good []byte) []byte {
			var s recordpb.Sealed
			if err := proto.Unmarshal(good, &s); err != nil {
				r.tb.Fatal(err)
			}
			change(&s)
			bad, err := proto.Marshal(&s)
			if err != nil {
				r.tb.Fatal(err)
			}
			return bad
		}
	}
	for name, c := range map[string]struct {
		bad    func(*rig, []byte) []byte
		reason string
	}{
		"truncated": {func(_ *rig, good []byte) []byte { return good[:len(good)-3] }, "not a protobuf message"},
		"empty":     {func(*rig, []byte) []byte { return nil }, "chain has 0 bytes"},
		"changed body": {tampered(func(s *recordpb.Sealed) {
			s.Event.Body = []byte(strings.Replace(string(s.Event.Body), `"action":"`, `"action":"x`, 1))
		}), "body root is"},
		"changed seed":     {tampered(func(s *recordpb.Sealed) { s.Event.Seed[0]++ }), "body root is"},
		"changed sequence": {tampered(func(s *recordpb.Sealed) { s.Sequence++ }), "leaf hash is"},
		"unknown kind":     {tampered(func(s *recordpb.Sealed) { s.Event.Kind = 9 }), "kind 9"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.produce(100)
			ends := r.ends()
			good := r.ledger()[2]
			traced := tampered(func(s *recordpb.Sealed) {
				s.Event.RequestId, s.Event.Traceparent = "req-7", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
			})(r, good[len(good)-1].Value)
			r.produceTo(2, c.bad(r, traced))
			r.produceTo(2, good[0].Value) // what follows must not be written
			w := r.start(r.config())
			w.awaitHalted("ledger partition 2 is halted", c.reason, "offset "+ends[2])
			ids := "request_id=req-7 trace_id=4bf92f3577b34da6a3ce929d0e0e4736"
			if strings.Contains(w.log.String(), ids) != (name != "empty") {
				t.Errorf("the log should have %s where the record has: %s", ids, w.log)
			}
			r.check()
			r.produceEvents(t, w)
			if n := w.metric("halted_partitions"); n != 1 {
				t.Errorf("%v halted partitions", n)
			}
			if got := r.committed()[2]; got != ends[2] {
				t.Errorf("committed %q, want %q", got, ends[2])
			}
			w.stop() // and a restart halts again
			r.start(r.config()).awaitHalted("ledger partition 2 is halted", c.reason)
		})
	}
}

// produceEvents shows that a partition which is not halted goes on.
func (r *rig) produceEvents(t *testing.T, w *running) {
	t.Helper()
	before := w.metric("batches_total")
	for _, rec := range r.sealer.events(50) {
		if rec.Partition == 1 {
			r.kafka.Produce(t, rec)
		}
	}
	await(t, "waiting for another partition's batch", func() error {
		if w.metric("batches_total") == before {
			return errors.New("none")
		}
		return nil
	})
}

func (r *rig) deleteRecords(partition int32, before int64) {
	r.tb.Helper()
	offsets := make(kadm.Offsets)
	offsets.Add(kadm.Offset{Topic: r.kafka.Config.Topic(schemas.TopicLedger), Partition: partition, At: before})
	if _, err := r.admin.DeleteRecords(r.tb.Context(), offsets); err != nil {
		r.tb.Fatal(err)
	}
}

// Retention has removed records that were not written.
func TestHaltsWhenRecordsHaveGone(t *testing.T) {
	for name, c := range map[string]struct {
		committed *kadm.Offset
		reason    string
	}{
		"never committed":    {nil, "the topic begins at 5"},
		"committed":          {&kadm.Offset{At: 3}, "have gone from the topic"},
		"announced":          {&kadm.Offset{At: 3, Metadata: "7"}, "have gone from the topic"},
		"end of batch wrong": {&kadm.Offset{At: 5, Metadata: "1000"}, ""},
		"metadata unknown":   {&kadm.Offset{At: 7, Metadata: "member-1"}, "not the end of a batch"},
		"metadata below":     {&kadm.Offset{At: 7, Metadata: "6"}, "not the end of a batch"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.produce(100)
			r.deleteRecords(0, 5)
			if c.committed != nil {
				r.setCommitted(map[int32]kadm.Offset{0: *c.committed})
			}
			w := r.start(r.config())
			if c.reason == "" { // it waits for the rest of the batch, and halts when that cannot come any more
				r.produceTo(0, nil)
				w.awaitReady()
				return
			}
			w.awaitHalted("ledger partition 0 is halted", c.reason)
		})
	}
}

func TestConfigValidate(t *testing.T) {
	good := func() Config {
		c := Config{ClickHouse: clickhouse.Config{DSN: "clickhouse://h:9000/d"}}
		c.Kafka.Brokers = []string{"h:9092"}
		return c
	}
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"good":      {func(*Config) {}, ""},
		"no kafka":  {func(c *Config) { c.Kafka.Brokers = nil }, "broker"},
		"no dsn":    {func(c *Config) { c.ClickHouse.DSN = "" }, "DSN"},
		"rows":      {func(c *Config) { c.BatchRows = 1_048_449 }, "batch rows"},
		"negative":  {func(c *Config) { c.Linger = -1 }, "linger"},
		"inserters": {func(c *Config) { c.Inserters = 65 }, "inserters"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := good()
			c.change(&cfg)
			err := cfg.Validate()
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if _, newErr := New(cfg, nil, prometheus.NewRegistry(), slog.New(slog.DiscardHandler)); (newErr == nil) != (err == nil) {
				t.Errorf("New says %v, Validate %v", newErr, err)
			}
		})
	}
}

func TestRunEndsBeforeClickHouseIsThere(t *testing.T) {
	cfg := Config{ClickHouse: clickhouse.Config{DSN: "clickhouse://127.0.0.1:1/d"}}
	cfg.Kafka.Brokers = []string{"127.0.0.1:1"}
	w, err := New(cfg, nil, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Run(ctx); err != nil {
		t.Error(err)
	}
}

func TestAnOutageEndsWhenNothingFailsAnyMore(t *testing.T) {
	var o outages
	refused := errors.New("refused")
	o.begin(systemClickHouse, 1, refused)
	o.begin(systemClickHouse, 1, refused)
	o.begin(systemClickHouse, 2, refused)
	o.end(systemClickHouse, 1)
	if err := o.err(); !errors.Is(err, refused) {
		t.Errorf("partition 2 still fails: %v", err)
	}
	o.end(systemClickHouse, 2)
	o.end(systemKafka, noPartition)
	if err := o.err(); err != nil {
		t.Errorf("nothing fails: %v", err)
	}
}
