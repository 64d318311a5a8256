package notary

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/internal/kafka/realkafka"
	"getimmutable.dev/immutable/schemas"
)

// What kfake cannot show: it is one process that does one thing at a time. Real brokers answer a commit before its
// markers are written, raise a producer's epoch with each transaction, and go on with what a client has long given up.

func TestRealBroker(t *testing.T) {
	brokers := realkafka.Start(t, realkafka.Config{Proxied: true})
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) { s.run(t, brokers.Installation(t)) })
	}
	for step := range int32(stepsOfEpoch) {
		drop := step%2 == 0
		t.Run(fmt.Sprintf("killed at step %d, dropped %t", step, drop), func(t *testing.T) {
			defer brokers.Intercept(nil)
			killedAt(t, brokers.Installation(t), clientsOf(t, brokers), step, drop)
		})
	}
	for _, tt := range []struct {
		name     string
		nth      int32
		verdict  realkafka.Verdict
		restarts bool
	}{
		{"epoch takes effect, unknown error", 1, realkafka.Verdict{Answer: unknownServerError}, true},
		{"epoch takes effect, connection lost", 1, realkafka.Verdict{LoseAnswer: true}, false},
		{"checkpoint takes effect, unknown error", 2, realkafka.Verdict{Answer: unknownServerError}, true},
		{"checkpoint is lost", 2, realkafka.Verdict{Drop: true}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			defer brokers.Intercept(nil)
			ambiguousEnd(t, brokers.Installation(t), brokers, tt.nth, tt.verdict, tt.restarts)
		})
	}
	t.Run("kills at random", func(t *testing.T) { killsAtRandom(t, brokers.Installation(t)) })
}

// clientsOf is the interceptor of a real broker.
func clientsOf(t *testing.T, brokers *realkafka.Cluster) interceptor {
	t.Helper()
	return func(see func(kmsg.Request) bool) {
		brokers.Intercept(func(r *realkafka.Request) realkafka.Verdict {
			switch kmsg.Key(r.Key) {
			case kmsg.Produce, kmsg.EndTxn:
				if r.BetweenBrokers {
					return realkafka.Verdict{}
				}
				req, err := r.Decode()
				if err != nil {
					t.Error(err)
					return realkafka.Verdict{}
				}
				return realkafka.Verdict{Drop: see(req)}
			default:
				return realkafka.Verdict{}
			}
		})
	}
}

func unknownServerError(resp kmsg.Response) {
	resp.(*kmsg.EndTxnResponse).ErrorCode = kerr.UnknownServerError.Code
}

// ambiguousEnd has a notary not learn what became of the nth of its commits from now on.
func ambiguousEnd(
	t *testing.T, c *kafkatest.Cluster, brokers *realkafka.Cluster, nth int32, verdict realkafka.Verdict, restarts bool,
) {
	t.Helper()
	sealer(t, c)
	n := start(t, testConfig(t, c))
	produceEvents(t, c, 3, 0, 300)
	awaitCovered(t, c, 300)
	var seen atomic.Int32
	brokers.Intercept(func(r *realkafka.Request) realkafka.Verdict {
		if r.Key != int16(kmsg.EndTxn) || r.BetweenBrokers {
			return realkafka.Verdict{}
		}
		req, err := r.Decode()
		if err != nil {
			t.Error(err)
			return realkafka.Verdict{}
		}
		if end, ok := req.(*kmsg.EndTxnRequest); !ok || end.TransactionalID != c.Config.Group(schemas.TransactionalIDNotary) ||
			seen.Add(1) != nth {
			return realkafka.Verdict{}
		}
		return verdict
	})
	produceEvents(t, c, 3, 300, 300)
	awaitCovered(t, c, 600)
	await(t, "as many sessions as there must be", func(context.Context) error {
		if sessions := n.metric(t, "sessions_total"); seen.Load() < nth || (sessions > 1) != restarts {
			return fmt.Errorf("%v sessions, commits met: %d", sessions, seen.Load())
		}
		return nil
	})
	await(t, "ready", n.Ready)
	produceEvents(t, c, 3, 600, 300)
	awaitCovered(t, c, 900)
	n.stop(t)
}

// killsAtRandom kills two notaries, each on a machine of its own, at moments that a seed chooses, while events are sealed.
func killsAtRandom(t *testing.T, c *kafkatest.Cluster) {
	t.Helper()
	const seed = 5
	rng := rand.New(rand.NewPCG(seed, 0))
	sealer(t, c)
	first := testConfig(t, c)
	second := sharing(t, first)
	machines := []Config{first, second}
	on := []*process{startProcess(t, first), startProcess(t, second)}
	events, kills := 0, 0
	for end := time.Now().Add(18 * time.Second); time.Now().Before(end); kills++ {
		if rng.IntN(3) > 0 { // else the take-over is hit too
			awaitCovered(t, c, events)
		}
		produceEvents(t, c, 3, events, 50)
		events += 50
		timer := time.NewTimer(time.Duration(rng.Int64N(int64(150 * time.Millisecond))))
		<-timer.C
		i := rng.IntN(2)
		on[i].kill()
		checkLock(t, c, machines[i])
		on[i] = startProcess(t, machines[i])
	}
	a := awaitCovered(t, c, events)
	for i, p := range on {
		p.kill()
		checkLock(t, c, machines[i])
	}
	t.Logf("seed %d: %d kills, %d entries, %d signed checkpoints of %d events", seed, kills, a.entries, len(a.checkpoints), events)
}
