package processor

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/schemas"
)

// TestLags holds that the age of what waits grows until it is sealed, whatever becomes of sessions.
func TestLags(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLags()
		reg := prometheus.NewPedanticRegistry()
		reg.MustRegister(l)
		want := func(want map[string]float64) {
			t.Helper()
			families, err := reg.Gather()
			if err != nil {
				t.Fatal(err)
			}
			got := make(map[string]float64)
			for _, f := range families {
				for _, m := range f.GetMetric() {
					name := f.GetName()[len("immutable_processor_seal_lag_"):]
					got[name+" "+m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		}
		l.set(0, 5, 5)
		l.set(1, 5, 12)
		want(map[string]float64{"records 0": 0, "seconds 0": 0, "records 1": 7, "seconds 1": 0})

		accepted := time.Now()
		l.fetched(1, 20, accepted)
		time.Sleep(3 * time.Second)
		l.fetched(1, 30, time.Now())
		want(map[string]float64{"records 0": 0, "seconds 0": 0, "records 1": 25, "seconds 1": 3})

		// The next session: nothing was sealed meanwhile.
		l.keep([]int32{1})
		l.set(1, 5, 30)
		want(map[string]float64{"records 1": 25, "seconds 1": 3})

		l.sealed(1, 29, accepted.Add(2*time.Second))
		want(map[string]float64{"records 1": 1, "seconds 1": 1})
		l.sealed(1, 30, accepted.Add(3*time.Second))
		want(map[string]float64{"records 1": 0, "seconds 1": 0})
		l.forget(1)
		want(map[string]float64{})
	})
}

// TestDeadLettersAreTraced holds that the log says of each record on the dlq where it came from, and not what it was.
func TestDeadLettersAreTraced(t *testing.T) {
	c := kafkatest.Start(t)
	e := newEvent(1, 0, 7, true)
	e.RequestId, e.Traceparent = "req-7", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	elsewhere := eventRecord(t, e)
	elsewhere.Partition = (elsewhere.Partition + 1) % testPartitions
	c.Produce(t, elsewhere, &kgo.Record{Topic: schemas.TopicEvents, Partition: 2, Value: []byte("hunter2")})

	p := newProcessor(t, testConfig(c))
	var log bytes.Buffer
	p.logger = slog.New(slog.NewJSONHandler(&log, nil))
	p.start(t)
	awaitSealed(t, c)
	p.stop(t)

	if strings.Contains(log.String(), "hunter2") {
		t.Errorf("a payload is in the log: %s", &log)
	}
	traced, lines := 0, 0
	for text := range strings.Lines(log.String()) {
		var line struct {
			Msg, Partition, Offset, Error string

			RequestID string `json:"request_id"`
			TraceID   string `json:"trace_id"`
		}
		if !strings.Contains(text, "record sent to the dlq") {
			continue
		}
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatal(err)
		}
		lines++
		if line.Partition == "" || line.Offset == "" || line.Error == "" {
			t.Errorf("says too little: %s", text)
		}
		if line.RequestID == "req-7" && line.TraceID == "4bf92f3577b34da6a3ce929d0e0e4736" {
			traced++
		}
	}
	if lines != 2 || traced != 1 {
		t.Errorf("%d lines, %d of them with the trace, want 2 and 1: %s", lines, traced, &log)
	}
}
