package notary

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"getimmutable.dev/immutable/internal/kafka/kafkatest"
)

// scenarios are what is tested on kfake and on a real broker.
var scenarios = []struct {
	name string
	run  func(*testing.T, *kafkatest.Cluster)
}{
	{"states what is there and what arrives", statesWhatIsThereAndWhatArrives},
	{"goes on where the last one ended", goesOnWhereTheLastOneEnded},
	{"two notaries", twoNotaries},
	{"a take-over waits for open transactions", takeOverWaitsForOpenTransactions},
}

func TestScenarios(t *testing.T) {
	for i, s := range scenarios {
		if testing.Short() && i > 0 {
			break
		}
		t.Run(s.name, func(t *testing.T) { s.run(t, kafkatest.Start(t)) })
	}
}

func statesWhatIsThereAndWhatArrives(t *testing.T, c *kafkatest.Cluster) {
	t.Helper()
	sealer(t, c)
	produceEvents(t, c, 3, 0, 2000)
	n := start(t, testConfig(t, c))
	await(t, "ready", n.Ready)
	awaitCovered(t, c, 2000)
	produceEvents(t, c, 3, 2000, 2000)
	a := awaitCovered(t, c, 4000)
	n.stop(t)
	if a.epochs[len(a.epochs)-1].Chains != 12 || a.keys != 1 {
		t.Errorf("%d chains, %d keys, want 12 and 1", a.epochs[len(a.epochs)-1].Chains, a.keys)
	}
	for name, want := range map[string]float64{
		"leaves_total": 4012, "chains": 12, "sessions_total": 1, "failed_sessions_total": 0, "halted": 0, "leading": 0,
		"unwitnessed_entries": 0, "behind_offsets": 0,
	} {
		if got := n.metric(t, name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if got := n.metric(t, "heads_compared_total"); got < 12 {
		t.Errorf("%v heads were compared", got)
	}
	if err := n.Ready(t.Context()); err == nil {
		t.Error("ready after its end")
	}
}

func goesOnWhereTheLastOneEnded(t *testing.T, c *kafkatest.Cluster) {
	t.Helper()
	sealer(t, c)
	cfg := testConfig(t, c)
	for i := range 4 {
		produceEvents(t, c, 3, i*500, 500)
		n := start(t, cfg)
		awaitCovered(t, c, (i+1)*500)
		n.stop(t)
	}
}

// Silence is evidence too.
func TestIdleEpochs(t *testing.T) {
	long(t)
	c := kafkatest.Start(t)
	cfg := testConfig(t, c)
	cfg.EpochInterval, cfg.IdleInterval = 10*time.Millisecond, 10*time.Millisecond
	n := start(t, cfg)
	await(t, "epochs without leaves", func(context.Context) error {
		return atLeast(n.metric(t, "epochs_total"), 600)
	})
	// Over two blocks of entries and into the third: what a take-over finds, and what a node is.
	n.stop(t)
	n = start(t, cfg)
	await(t, "more of them", func(context.Context) error { return atLeast(n.metric(t, "epochs_total"), 10) })
	n.stop(t)
	if _, err := auditTopics(t.Context(), t, c, kadm.NewClient(c.Client(t))); err != nil {
		t.Fatal(err)
	}
}

func atLeast(got, want float64) error {
	if got < want {
		return fmt.Errorf("%v of %v", got, want)
	}
	return nil
}
