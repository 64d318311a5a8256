package ingest

import (
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/schemas"
)

const kafkaAway = `{"error":"unavailable","message":"The events could not be written: send them again after Retry-After seconds."}`

// hold keeps the broker from answering produce requests until the function it returns is called; they are then
// executed.
func (r *rig) hold() (release func()) {
	gate := make(chan struct{})
	r.kafka.Fake.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		r.kafka.Fake.KeepControl()
		r.kafka.Fake.SleepControl(func() { <-gate })
		return nil, nil, false
	})
	once := sync.OnceFunc(func() { close(gate) })
	r.tb.Cleanup(once)
	return once
}

// unavailable checks that an answer is the 503 of an absent Kafka.
func (r *rig) unavailable(got response) {
	r.tb.Helper()
	r.want(got, http.StatusServiceUnavailable, kafkaAway)
	if got.header.Get("Retry-After") != "1" {
		r.tb.Errorf("Retry-After %q", got.header.Get("Retry-After"))
	}
}

// TestKafkaRestarts stops the broker, and starts it again at the same address with the same log.
func TestKafkaRestarts(t *testing.T) {
	dir := t.TempDir()
	cluster := kafkatest.Start(t, kfake.DataDir(dir))
	r := newRig(t, cluster, func(c *Config) { c.ProduceTimeout = 300 * time.Millisecond })
	r.queued(r.post(onePath, strings.NewReader(valid)))
	cluster.Fake.Close()
	produceErrors := r.service.metrics.produceErrors.WithLabelValues(reasonTimeout)
	moved(t, produceErrors, 3, func() {
		for range 3 {
			r.unavailable(r.post(onePath, strings.NewReader(valid)))
		}
	})
	if r.service.Ready(t.Context()) == nil {
		t.Error("ready without Kafka")
	}
	_, port, err := net.SplitHostPort(cluster.Config.Brokers[0])
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	again, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DataDir(dir), kfake.Ports(number))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(again.Close)
	var got response
	r.eventually("writes are accepted again", func() bool {
		got = r.post(onePath, strings.NewReader(valid))
		return got.code == http.StatusAccepted
	})
	r.queued(got)
	r.eventually("ready", func() bool { return r.service.Ready(t.Context()) == nil })
	r.eventually("nothing is left over", func() bool { return r.service.client.BufferedProduceRecords() == 0 })
}

// TestKafkaHangs has a broker that takes requests and answers none: what waits for it stays bounded, and is gone soon
// after it answers again.
func TestKafkaHangs(t *testing.T) {
	r := newRig(t, kafkatest.Start(t), func(c *Config) {
		c.ProduceTimeout = 100 * time.Millisecond
		c.MaxBufferedRecords = maxLinesEvents
	})
	release := r.hold()
	lines := strings.Repeat(valid+"\n", 6000)
	batch := func() response {
		return r.post(batchPath, strings.NewReader(lines), "Content-Type", mediaNDJSON)
	}
	moved(t, r.service.metrics.produceErrors.WithLabelValues(reasonTimeout), 1, func() { r.unavailable(batch()) })
	// The records of the first request may be at the broker: they stay until it answers or its connection is given up.
	moved(t, r.service.metrics.produceErrors.WithLabelValues(reasonFull), 1, func() { r.unavailable(batch()) })
	families, err := r.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for name, most := range map[string]int{
			"immutable_ingest_buffered_records": maxLinesEvents,
			"immutable_ingest_buffered_bytes":   r.service.cfg.MaxBufferedBytes,
		} {
			if got := family.GetMetric()[0].GetGauge().GetValue(); family.GetName() == name && (got < 6000 || got > float64(most)) {
				t.Errorf("%s is %g", name, got)
			}
		}
	}
	release()
	r.eventually("writes are accepted again", func() bool { return batch().code == http.StatusAccepted })
	r.eventually("nothing is left over", func() bool { return r.service.client.BufferedProduceRecords() == 0 })
}

func TestKafkaRefuses(t *testing.T) {
	r := newRig(t, kafkatest.Start(t), func(c *Config) { c.ProduceTimeout = 4 * time.Second })
	refused := r.service.metrics.produceErrors.WithLabelValues(reasonRefused)
	for _, err := range []*kerr.Error{
		kerr.TopicAuthorizationFailed, kerr.InvalidTimestamp, kerr.MessageTooLarge, kerr.InvalidRecord,
	} {
		t.Run(err.Message, func(t *testing.T) {
			r := r.with(t)
			before := r.records()
			r.kafka.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: err, Count: 1})
			moved(t, refused, 1, func() { r.unavailable(r.post(onePath, strings.NewReader(valid))) })
			if n := r.records(); n != before {
				t.Errorf("%d records were written", n-before)
			}
			r.queued(r.post(onePath, strings.NewReader(valid)))
		})
	}
	t.Run("part of a batch", func(t *testing.T) {
		r := r.with(t)
		// By actor, the events spread over all partitions; one of them fails.
		var events []string
		for i := range 20 {
			events = append(events, `{"actor_id":"a`+strconv.Itoa(i)+`","action":"a.b","idempotency_key":"k`+strconv.Itoa(i)+`"}`)
		}
		before := r.records()
		r.kafka.Fake.Fault(kfake.Fault{
			Keys: []kmsg.Key{kmsg.Produce}, Topic: r.kafka.Config.Topic(schemas.TopicEvents),
			Partitions: []int32{2}, Err: kerr.TopicAuthorizationFailed, Count: 1,
		})
		r.unavailable(r.post(batchPath, batchOf(events...)))
		written := r.records() - before
		if written == 0 || written == 20 {
			t.Fatalf("%d of 20 were written: the test needs some, not all", written)
		}
		// The retry says the truth of each: none was known to be accepted.
		for _, it := range decode[struct{ Events []item }](t, r.post(batchPath, batchOf(events...))).Events {
			if it.Status != statusQueued {
				t.Errorf("%+v", it)
			}
		}
		if n := r.records() - before - written; n != 20 {
			t.Errorf("the retry wrote %d records", n)
		}
	})
	t.Run("retriable", func(t *testing.T) {
		r := r.with(t)
		// Answered with an error, and written all the same: the client's own retry must not write it twice.
		before := r.records()
		r.kafka.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.RequestTimedOut, Count: 1})
		r.queued(r.post(onePath, strings.NewReader(valid)))
		if n := r.records() - before; n != 1 {
			t.Errorf("%d records were written", n)
		}
	})
}

// TestReady has a service that is set to another number of partitions than the topic's.
func TestReady(t *testing.T) {
	r := newRig(t, kafkatest.Start(t), nil)
	cfg := r.service.cfg
	cfg.Partitions = 3
	s, err := New(cfg, r.view, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Ready(t.Context()); !errors.Is(err, errStopped) {
		t.Errorf("before Run: %v", err)
	}
	run(t, s.Run)
	r.eventually("it says what is wrong", func() bool {
		err := s.Ready(t.Context())
		return err != nil && err.Error() == "topic immutable.events has 4 partitions, but ingest is set to 3"
	})
	if err := r.kafka.Fake.DeleteTopic("immutable.events"); err != nil {
		t.Fatal(err)
	}
	r.eventually("it says that the topic is gone", func() bool {
		return errors.Is(s.Ready(t.Context()), kerr.UnknownTopicOrPartition)
	})
}

// TestStop ends Run while a request waits for Kafka.
func TestStop(t *testing.T) {
	r := newRig(t, kafkatest.Start(t), nil)
	release := r.hold()
	got := make(chan response, 1)
	go func() { got <- r.post(onePath, strings.NewReader(valid)) }()
	r.eventually("the record is under way", func() bool { return r.service.client.BufferedProduceRecords() == 1 })
	r.stop()
	r.eventually("new writes are refused", func() bool { return r.service.Ready(t.Context()) != nil })
	moved(t, r.service.metrics.produceErrors.WithLabelValues(reasonStopping), 1, func() {
		r.unavailable(r.post(onePath, strings.NewReader(valid)))
	})
	select {
	case <-r.stopped:
		t.Fatal("stopped before the request in hand was answered")
	default:
	}
	release()
	r.queued(<-got)
	<-r.stopped
}
