package chwriter

import (
	"testing"

	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
	"getimmutable.dev/immutable/internal/kafka/realkafka"
)

func TestRealBroker(t *testing.T) {
	brokers := realkafka.Start(t, realkafka.Config{})
	rig := func(t *testing.T) *rig {
		t.Helper()
		return newRigWith(t, brokers.Installation(t), clickhousetest.Start(t).DSN())
	}
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) { s.run(t, rig(t)) })
	}
	t.Run("the broker dies and comes back", func(t *testing.T) {
		r := rig(t)
		w := r.start(r.config())
		for range 2 {
			r.produce(500)
			brokers.Kill(1)
			brokers.Restart(t, 1)
			r.produce(500)
			r.check()
		}
		w.awaitReady()
	})
}
