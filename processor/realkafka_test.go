package processor

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/internal/kafka/realkafka"
)

// What kfake cannot show: it is one process that does one thing at a time. Real brokers answer a commit before its
// markers are written, raise a producer's epoch with each transaction, and go on with what a client has long given up.

func TestRealBroker(t *testing.T) {
	brokers := realkafka.Start(t, realkafka.Config{Proxied: true})
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) { s.run(t, brokers.Installation(t)) })
	}
	for _, step := range steps {
		for i, drop := range []bool{true, false} {
			// Both instances at each step would take another minute.
			instance := []string{"", "0"}[i]
			t.Run(fmt.Sprintf("killed at: %s, dropped %t, instance %q", step.name, drop, instance), func(t *testing.T) {
				defer brokers.Intercept(nil)
				killedAt(t, brokers.Installation(t), clientsOf(t, brokers), step.is, drop, instance)
			})
		}
		t.Run("zombie at: "+step.name, func(t *testing.T) {
			defer brokers.Intercept(nil)
			zombieAt(t, brokers.Installation(t), clientsOf(t, brokers), step.is)
		})
	}
	for _, tt := range []struct {
		name     string
		verdict  realkafka.Verdict
		restarts bool
	}{
		{"commit takes effect, unknown error", realkafka.Verdict{Answer: unknownServerError}, true},
		{"commit takes effect, connection lost", realkafka.Verdict{LoseAnswer: true}, false},
		{"commit is lost", realkafka.Verdict{Drop: true}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			defer brokers.Intercept(nil)
			ambiguousEnd(t, brokers.Installation(t), brokers, tt.verdict, tt.restarts)
		})
	}
}

// clientsOf is the interceptor of a real broker. It shows what a transaction consists of, to save the decoding of the rest.
func clientsOf(t *testing.T, brokers *realkafka.Cluster) interceptor {
	t.Helper()
	return func(see func(kmsg.Request) bool) {
		brokers.Intercept(func(r *realkafka.Request) realkafka.Verdict {
			switch kmsg.Key(r.Key) {
			case kmsg.Produce, kmsg.TxnOffsetCommit, kmsg.EndTxn:
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

// ambiguousEnd has a processor not learn what became of one of its commits.
func ambiguousEnd(
	t *testing.T, c *kafkatest.Cluster, brokers *realkafka.Cluster, verdict realkafka.Verdict, restarts bool,
) {
	t.Helper()
	p := start(t, testConfig(c))
	produce(t, c, 0, 500)
	awaitSealed(t, c)
	var met atomic.Bool
	brokers.Intercept(func(r *realkafka.Request) realkafka.Verdict {
		if r.Key != int16(kmsg.EndTxn) || !met.CompareAndSwap(false, true) {
			return realkafka.Verdict{}
		}
		return verdict
	})
	produce(t, c, 500, 1000)
	awaitSealed(t, c) // the commit took effect, which the processor may not know yet
	await(t, "as many sessions as there must be", func(context.Context) error {
		if sessions := p.metric(t, "sessions_total"); !met.Load() || (sessions > 1) != restarts {
			return fmt.Errorf("%v sessions, a commit met: %t", sessions, met.Load())
		}
		return nil
	})
	await(t, "ready", p.Ready)
	produce(t, c, 1500, 500)
	awaitSealed(t, c)
	p.stop(t)
	checkTopics(t, c, 2*blockLeaves).wantTotals(t, 2000, 0, 0)
}
