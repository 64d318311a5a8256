package control

import (
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"getimmutable.dev/immutable/internal/kafka/realkafka"
)

func TestRealBroker(t *testing.T) {
	brokers := realkafka.Start(t, realkafka.Config{Proxied: true})
	t.Run("one writer", func(t *testing.T) { writersRace(t, brokers.Installation(t), 1, 4, 3) })
	t.Run("several writers", func(t *testing.T) { writersRace(t, brokers.Installation(t), 3, 2, 3) })
	t.Run("a stalled rival", func(t *testing.T) { stalledRivalIsFenced(t, brokers.Installation(t)) })
	t.Run("a rival in between", func(t *testing.T) { writerFencedTriesAgain(t, brokers.Installation(t)) })
	t.Run("last use of keys", func(t *testing.T) { keysLastUsed(t, brokers.Installation(t)) })
	for name, verdict := range map[string]realkafka.Verdict{
		"committed, unknown error": {Answer: func(resp kmsg.Response) {
			resp.(*kmsg.EndTxnResponse).ErrorCode = kerr.UnknownServerError.Code
		}},
		"committed, answer lost": {LoseAnswer: true},
		"commit lost":            {Drop: true},
	} {
		t.Run(name, func(t *testing.T) {
			defer brokers.Intercept(nil)
			unknownOutcomeIsSettled(t, brokers.Installation(t), func() *atomic.Bool {
				var met atomic.Bool
				brokers.Intercept(func(r *realkafka.Request) realkafka.Verdict {
					if r.Key != int16(kmsg.EndTxn) || !met.CompareAndSwap(false, true) {
						return realkafka.Verdict{}
					}
					return verdict
				})
				return &met
			})
		})
	}
}
