package processor

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/internal/kafka/realkafka"
	"getimmutable.dev/immutable/schemas"
)

// TestSchedules holds after each step of random schedules, and not only at their end, what a ledger must never lose: each
// chain is gapless and linked, no input is in it twice, and every root that was ever read is that of the same leaves later.
func TestSchedules(t *testing.T) {
	t.Parallel()
	for seed := range inSoak(200, 6) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			play(t, shortSessionCluster(t), uint64(seed))
		})
	}
}

// TestRealSchedules is the same on a real broker, which answers a commit before all its markers are written.
func TestRealSchedules(t *testing.T) {
	brokers := realkafka.Start(t, realkafka.Config{})
	for seed := range inSoak(100, 2) {
		t.Run(fmt.Sprintf("seed %d", 1000+seed), func(t *testing.T) {
			play(t, brokers.Installation(t), uint64(1000+seed))
		})
	}
}

func inSoak(long, short int) int {
	if os.Getenv("IMMUTABLE_SOAK") != "" {
		return long
	}
	return short
}

// play has two processors, each a process of its own and one of them with a name, come and go while input arrives, as a
// seed has it, and then seals what is left.
func play(t *testing.T, c *kafkatest.Cluster, seed uint64) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 0))
	var processes [2]*process
	var paused [2]bool
	seen := make(map[string]map[uint64]string) // roots by chain and size
	produced := 0
	for range 16 {
		who := rng.IntN(2)
		p, act := processes[who], "start"
		switch {
		case rng.IntN(2) == 0:
			n := 1 + rng.IntN(700)
			act = fmt.Sprintf("and %d events", n)
			produce(t, c, produced, n)
			produced += n
		case p == nil:
			processes[who] = startProcess(t, c, strings.Repeat("named", who))
		case paused[who]:
			act = "resume"
			p.signal(syscall.SIGCONT)
			paused[who] = false
		default:
			act = []string{"settle", "settle", "kill", "pause", "stop"}[rng.IntN(5)]
			switch act {
			case "settle":
				awaitSealed(t, c)
			case "pause":
				p.signal(syscall.SIGSTOP)
				paused[who] = true
			case "kill":
				p.kill()
				processes[who] = nil
			case "stop":
				p.signal(syscall.SIGTERM)
				p.ends(t)
				processes[who] = nil
			}
		}
		t.Logf("processor %d: %s", who, act)
		if err := checkLedger(t, c, seen); err != nil {
			t.Fatal(err)
		}
	}
	for who := range processes {
		if processes[who] == nil {
			processes[who] = startProcess(t, c, strings.Repeat("named", who))
		}
		processes[who].signal(syscall.SIGCONT)
	}
	awaitSealed(t, c)
	for _, p := range processes {
		p.kill()
	}
	if err := checkLedger(t, c, seen); err != nil {
		t.Fatal(err)
	}
	checkTopics(t, c, 2*blockLeaves).wantTotals(t, produced, 0, 0)
}

// ends waits until the process has ended as it was asked to.
func (p *process) ends(t *testing.T) {
	t.Helper()
	timer := time.AfterFunc(deadline, func() { _ = p.Process.Kill() })
	defer timer.Stop()
	<-p.logged
	err := p.Wait()
	// One that was only just started has no handler yet.
	if status := p.ProcessState.Sys().(syscall.WaitStatus); err != nil && status.Signal() != syscall.SIGTERM {
		t.Errorf("the processor ended with %v", err)
	}
}

// checkLedger checks the leaves that are on the ledger topic now, and that their trees begin with those seen before.
func checkLedger(t *testing.T, c *kafkatest.Cluster, seen map[string]map[uint64]string) error {
	t.Helper()
	checks := make(map[int32]*partitionCheck)
	counts := make(map[int32]int)
	for _, r := range readTopic(t, c, schemas.TopicLedger) {
		k := checks[r.Partition]
		if k == nil {
			k = newPartitionCheck(r.Partition)
			checks[r.Partition] = k
		}
		if err := k.leaf(counts[r.Partition], r); err != nil {
			return fmt.Errorf("ledger partition %d, offset %d: %w", r.Partition, r.Offset, err)
		}
		counts[r.Partition]++
	}
	now := make(map[string]*checkedChain)
	for _, k := range checks {
		maps.Copy(now, k.chains)
	}
	for id, roots := range seen {
		for size, root := range roots {
			if now[id] == nil || now[id].roots[size] != root {
				return fmt.Errorf("chain %s at size %d is not what it was", id, size)
			}
		}
	}
	for id, chain := range now {
		if seen[id] == nil {
			seen[id] = make(map[uint64]string)
		}
		seen[id][chain.size] = chain.roots[chain.size]
	}
	return nil
}
