package e2e

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/loadgen"
	"getimmutable.dev/immutable/schemas"
)

// processors lets processors come, go, hang and come back as zombies under load. However they take over from each
// other, there is one chain.
func processors(t *testing.T, s *services) {
	t.Helper()
	g := newSealGroup(t, s)
	began := time.Now()
	done := func(what string) {
		t.Logf("%6.1f s: %s", time.Since(began).Seconds(), what)
	}
	// A light load: what heaps up while nobody seals is only waited for afterwards.
	l := s.startLoad(t, loadgen.Config{Seed: 501, KeyedPercent: 100},
		loadgen.ClientConfig{EventsPerRequest: 5, EventsPerSecond: 500}, 100_000_000)

	first := s.service("processor")
	g.shared(t, 1)
	g.advances(t, 500)
	done("one processor")

	second := s.service("processor")
	g.shared(t, 2)
	g.advances(t, 500)
	done("a second came")

	// The first hangs for longer than its session, and comes back when others have its partitions.
	first.signal(t, syscall.SIGSTOP)
	g.shared(t, 1)
	g.advances(t, 500)
	first.signal(t, syscall.SIGCONT)
	g.shared(t, 2)
	g.advances(t, 500)
	done("the first hung and came back")

	// A crash, and a third that takes over what the dead one had.
	second.killGroup(t)
	third := s.service("processor")
	g.shared(t, 2)
	g.advances(t, 500)
	done("the second was killed, a third came")

	// Both hang at once; both come back.
	first.signal(t, syscall.SIGSTOP)
	third.signal(t, syscall.SIGSTOP)
	g.shared(t, 0)
	first.signal(t, syscall.SIGCONT)
	third.signal(t, syscall.SIGCONT)
	g.shared(t, 2)
	g.advances(t, 500)
	done("both hung and came back")

	first.stop(t)
	g.shared(t, 1)
	g.advances(t, 500)
	done("the first stopped")
	l.quit(t)
	t.Logf("check: %s; %+v", s.check(t, 3_000), l.Stats())
	third.stop(t)
}

// sealGroup watches the processors' consumer group.
type sealGroup struct {
	adm        *kadm.Client
	name       string
	topic      string
	partitions int32
}

func newSealGroup(t *testing.T, s *services) *sealGroup {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(s.e.brokers...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return &sealGroup{
		adm: kadm.NewClient(cl), name: s.e.prefix + schemas.GroupSeal, topic: s.e.prefix + schemas.TopicEvents,
		partitions: s.layout.Partitions,
	}
}

// shared waits until the group has this many members, and each partition one owner.
func (g *sealGroup) shared(t *testing.T, members int) {
	t.Helper()
	eventually(t, 90*time.Second, func() error {
		groups, err := g.adm.DescribeGroups(t.Context(), g.name)
		if err != nil {
			return err
		}
		var owned []int32
		group := groups[g.name]
		for _, m := range group.Members {
			assigned, ok := m.Assigned.AsConsumer()
			if !ok || len(assigned.Topics) == 0 {
				return fmt.Errorf("a member of %d has no partition yet", len(group.Members))
			}
			for _, topic := range assigned.Topics {
				owned = append(owned, topic.Partitions...)
			}
		}
		slices.Sort(owned)
		if len(group.Members) != members || (members > 0 && len(slices.Compact(owned)) != int(g.partitions)) {
			return fmt.Errorf("%d members, want %d; partitions %v are owned", len(group.Members), members, owned)
		}
		return nil
	})
}

// advances waits until every partition has been sealed further, and n inputs more altogether.
func (g *sealGroup) advances(t *testing.T, n int64) {
	t.Helper()
	committed := func() (sum int64, each map[int32]int64) {
		offsets, err := g.adm.FetchOffsets(t.Context(), g.name)
		if err != nil {
			t.Fatal(err)
		}
		each = map[int32]int64{}
		for p, o := range offsets[g.topic] {
			each[p] = max(0, o.At)
			sum += each[p]
		}
		return sum, each
	}
	from, before := committed()
	eventually(t, 90*time.Second, func() error {
		sum, now := committed()
		for p := range g.partitions {
			if now[p] <= before[p] {
				return fmt.Errorf("partition %d stands still at %d", p, now[p])
			}
		}
		if sum-from < n {
			return fmt.Errorf("%d of %d inputs sealed", sum-from, n)
		}
		return nil
	})
}
