package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"getimmutable.dev/immutable/internal/loadgen"
)

// crashPoints are the places where a crash could lose or repeat something, with the hits at which to crash: of the
// first few the process has hardly begun, of the last it is in full work.
var crashPoints = []struct {
	name string
	hits []int
}{
	{"ingest-before-202", []int{1, 7, 60}},
	{"ingest-after-202", []int{1, 7, 60}},
	{"seal-after-produce", []int{1, 2, 9}},
	{"seal-before-end", []int{1, 2, 9}},
	{"seal-after-end", []int{1, 2, 9}},
	{"notary-after-entry", []int{1, 9}},
	{"notary-after-end", []int{1, 9}},
	{"notary-after-lock", []int{1, 9}},
	{"chwriter-after-insert", []int{1, 2, 9}},
	{"chwriter-before-commit", []int{1, 2, 9}},
}

// TestCrashPoints kills `up` at each place under load, starts it again and checks everything, each time.
func TestCrashPoints(t *testing.T) {
	long(t)
	var counts []string
	for i, point := range crashPoints {
		t.Run(point.name, func(t *testing.T) {
			s := newUp(t, crashing(t), t.TempDir())
			s.start()
			s.ready(t)
			s.stop(t) // workspace and key are there
			for j, hit := range point.hits {
				s.start(fmt.Sprintf("IMMUTABLE_CRASH_AT=%s:%d", point.name, hit), manyEpochs)
				seed := uint64(10_000 + 100*i + j)
				l := s.startLoad(t, loadgen.Config{Seed: seed, KeyedPercent: 100}, loadgen.ClientConfig{EventsPerRequest: 20}, 1_000_000)
				if state := s.process.wait(t, time.Minute); !killedBy(state, syscall.SIGKILL) {
					t.Fatalf("%s:%d: ended with %v:\n%s", point.name, hit, state, s.process.tail(40))
				}
				s.start(manyEpochs)
				s.ready(t)
				l.acknowledges(t, 200)
				l.quit(t)
				r := s.check(t, 200)
				t.Logf("%s:%d: %s; %+v", point.name, hit, r, l.Stats())
				if j == len(point.hits)-1 {
					s.audited(t).tables(t, r.Leaves)
				}
				s.stop(t)
			}
			counts = append(counts, fmt.Sprintf("%s %d", point.name, len(point.hits)))
		})
	}
	t.Logf("crashes: %s", strings.Join(counts, ", "))
}

// TestRandomKills kills everything at moments that a seed chooses, ten times (IMMUTABLE_E2E_KILLS; 200 in a soak) under
// one load. The seed is printed; IMMUTABLE_E2E_SEED sets it.
func TestRandomKills(t *testing.T) {
	long(t)
	kills := int(envUint(t, "IMMUTABLE_E2E_KILLS", inSoak(200, 10)))
	seed := envUint(t, "IMMUTABLE_E2E_SEED", uint64(time.Now().UnixNano()))
	t.Logf("IMMUTABLE_E2E_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	s := newUp(t, immutable(t), t.TempDir())
	l := s.startLoad(t, loadgen.Config{Seed: seed, KeyedPercent: 100}, loadgen.ClientConfig{EventsPerRequest: 50}, 100_000_000)
	for i := range kills {
		s.start()
		// Every third kill may hit the start itself.
		if i%3 != 2 {
			s.ready(t)
			l.acknowledges(t, 1)
		}
		timer := time.NewTimer(time.Duration(r.Int64N(int64(1500 * time.Millisecond))))
		<-timer.C
		if !s.process.running() {
			t.Fatalf("ended by itself:\n%s", s.process.tail(40))
		}
		if r.IntN(2) == 0 {
			s.kill(t)
			continue
		}
		// The main process alone: its child must notice.
		s.process.signal(t, syscall.SIGKILL)
		s.process.wait(t, stopLimit)
	}
	s.start(manyEpochs)
	s.ready(t)
	l.acknowledges(t, 500)
	l.quit(t)
	report := s.check(t, 500)
	t.Logf("%d kills: %s; %+v", kills, report, l.Stats())
	s.audited(t).tables(t, report.Leaves)
	s.stop(t)
}

// inSoak returns soak under `make soak`, else usual.
func inSoak(soak, usual uint64) uint64 {
	if os.Getenv("IMMUTABLE_SOAK") != "" {
		return soak
	}
	return usual
}

// envUint returns the number in an environment variable, or value where there is none.
func envUint(t *testing.T, name string, value uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return value
	}
	value, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatal(errors.Join(fmt.Errorf("%s is not a number", name), err))
	}
	return value
}
