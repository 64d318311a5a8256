package e2e

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// TestCheckFindsEveryFault shows that the check that the other tests rely on can fail, in each of the ways that
// matter, and that it names the place.
func TestCheckFindsEveryFault(t *testing.T) {
	long(t)
	const events = 1_200 // 300 for each chain, so that one completes a node of 256 leaves
	none := func(*recordpb.Event) bool { return false }
	all := func(*recordpb.Event) bool { return true }
	// busiest returns the partition that the faults are put on.
	busiest := func(h *handmade) (most int32) {
		for p := range h.inputs {
			if len(h.inputs[p]) > len(h.inputs[most]) {
				most = p
			}
		}
		return most
	}
	// victim is an event in the middle of the busiest partition, without a retry.
	victim := func(h *handmade) *recordpb.Event { return h.inputs[busiest(h)][70] }
	is := func(ev *recordpb.Event) func(*recordpb.Event) bool {
		return func(other *recordpb.Event) bool { return other == ev }
	}
	retryOf := func(ev *recordpb.Event) string { return strings.Replace(string(ev.GetBody()), "eng", "adm", 1) }

	for _, tc := range []struct {
		name  string
		spoil func(t *testing.T, h *handmade)
		// want are parts of the faults; none for a sound installation.
		want []string
	}{
		{"sound", func(*testing.T, *handmade) {}, nil},
		{"dropped event", func(_ *testing.T, h *handmade) {
			h.seal(is(victim(h)), none)
		}, []string{"and not in the ledger", "acknowledged, and not in the ledger"}},
		{"dropped leaf", func(_ *testing.T, h *handmade) {
			p := busiest(h)
			h.sealed[p] = slices.Delete(h.sealed[p], 70, 71)
		}, []string{"sequence 71", "want sequence 70"}},
		{"dropped end of the ledger", func(_ *testing.T, h *handmade) {
			p := busiest(h)
			h.sealed[p] = h.sealed[p][:len(h.sealed[p])-1]
		}, []string{"the head says size", "the partition record says"}},
		{"event sealed twice", func(_ *testing.T, h *handmade) {
			h.seal(none, all)
		}, []string{"sealed twice"}},
		{"altered body", func(_ *testing.T, h *handmade) {
			p := busiest(h)
			ev := cloneEvent(h.sealed[p][70])
			ev.Body = []byte(retryOf(ev))
		}, []string{"sequence 70", "differs from the record at events/", "body root"}},
		{"altered event, sealed as if it had been sent so", func(t *testing.T, h *handmade) {
			t.Helper()
			ev := victim(h)
			setBody(t, ev, strings.Replace(string(ev.GetBody()), `"n":`, `"n":1`, 1))
			h.seal(none, none)
		}, []string{"its body differs from what was acknowledged"}},
		{"reordered leaves", func(_ *testing.T, h *handmade) {
			s := h.sealed[busiest(h)]
			s[70], s[71] = s[71], s[70]
		}, []string{"want sequence 70"}},
		{"unlinked leaf", func(_ *testing.T, h *handmade) {
			h.sealed[busiest(h)][70].Previous = make([]byte, 32)
		}, []string{"sequence 70", "previous is 0000"}},
		{"other leaf hash", func(_ *testing.T, h *handmade) {
			h.sealed[busiest(h)][70].LeafHash = bytes.Repeat([]byte{7}, 32)
		}, []string{"sequence 70", "leaf hash 0707"}},
		{"node left out", func(_ *testing.T, h *handmade) {
			h.sealed[busiest(h)][255].Node = nil
		}, []string{"sequence 255", "node"}},
		{"no genesis", func(_ *testing.T, h *handmade) {
			p := busiest(h)
			h.sealed[p] = h.sealed[p][1:]
		}, []string{"does not begin with a genesis"}},
		{"head of another root", func(_ *testing.T, h *handmade) {
			h.chainHeads[busiest(h)].Root = make([]byte, 32)
		}, []string{"the head says size"}},
		{"no head", func(_ *testing.T, h *handmade) {
			delete(h.chainHeads, busiest(h))
		}, []string{"no head"}},
		{"partition record that does not add up", func(_ *testing.T, h *handmade) {
			h.partitionHeads[busiest(h)].Skipped = 1
		}, []string{"is not leaves"}},
		{"partition record that counts what is not there", func(_ *testing.T, h *handmade) {
			head := h.partitionHeads[busiest(h)]
			head.Duplicates--
			head.Skipped++
		}, []string{"accounts for"}},
		{"committed past the partition record", func(_ *testing.T, h *handmade) {
			h.committed[busiest(h)]++
		}, []string{"the group has committed"}},
		{"dead letter of a sealed event", func(_ *testing.T, h *handmade) {
			h.dead = append(h.dead, inputPosition{busiest(h), 70})
		}, []string{"dead letter", "which is sealed"}},
		{"acknowledged and never accepted", func(_ *testing.T, h *handmade) {
			h.acks[[16]byte{0xff}] = []byte("{}")
		}, []string{"event ff000000-0000-0000-0000-000000000000: acknowledged"}},
		{"row missing in leaves", func(_ *testing.T, h *handmade) {
			h.leaves = slices.Delete(h.leaves, 5, 6)
		}, []string{"0 rows in leaves", "rows in leaves, chains of"}},
		{"row missing in events", func(_ *testing.T, h *handmade) {
			h.events = slices.Delete(h.events, 5, 6)
		}, []string{"0 rows in events, want 1"}},
		{"row twice in events", func(_ *testing.T, h *handmade) {
			h.events = append(h.events, h.events[5])
		}, []string{"2 rows in events, want 1"}},
		{"altered row", func(_ *testing.T, h *handmade) {
			h.events[5].body = "{}"
		}, []string{"its row in events"}},
		{"row of a leaf that is not in the ledger", func(_ *testing.T, h *handmade) {
			row := *h.leaves[5]
			row.sealed = &recordpb.Sealed{
				Event: row.sealed.GetEvent(), Chain: row.sealed.GetChain(), Sequence: 9_999, LeafHash: row.sealed.GetLeafHash(),
			}
			h.leaves = append(h.leaves, &row)
		}, []string{"sequence 9999", "no leaf in the ledger"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := makeEvents(t, events)
			h.seal(none, none)
			tc.spoil(t, h)
			in, ackLog := h.start(t)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			r, err := checkInstallation(ctx, in, ackLog)
			if err != nil {
				t.Fatal(err)
			}
			if tc.want == nil {
				if r.err() != nil || r.Inputs != events+1 || r.Leaves != events+handmadeLanes || r.Chains != handmadeLanes ||
					r.Duplicates != 1 || r.Acknowledged != events {
					t.Errorf("%s: %v", r, r.err())
				}
				return
			}
			faults := strings.Join(r.faults, "\n")
			for _, want := range tc.want {
				if !strings.Contains(faults, want) {
					t.Errorf("no fault says %q:\n%s", want, faults)
				}
			}
		})
	}
}

// cloneEvent gives a sealed record an event of its own, which can be changed without changing the input.
func cloneEvent(s *recordpb.Sealed) *recordpb.Event {
	s.Event = proto.CloneOf(s.GetEvent())
	return s.GetEvent()
}

func TestCheckWaitsForWhatIsUnderWay(t *testing.T) {
	none := func(*recordpb.Event) bool { return false }
	for _, tc := range []struct {
		name  string
		spoil func(h *handmade)
		want  string
	}{
		{"processor behind", func(h *handmade) {
			for p := range h.committed {
				h.committed[p]--
			}
		}, "waiting for the processor"},
		{"writer behind", func(h *handmade) { h.events = h.events[:10] }, "waiting for the tables"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := makeEvents(t, 100)
			h.seal(none, none)
			tc.spoil(h)
			in, _ := h.start(t)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			if _, err := checkInstallation(ctx, in); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want it to say %q", err, tc.want)
			}
		})
	}
}

// TestCheckReadsOpenTransactions ends a transaction only after the check has asked how far it is to read.
func TestCheckReadsOpenTransactions(t *testing.T) {
	cluster := kafkatest.Start(t)
	topic := cluster.Config.Topic(schemas.TopicLedger)
	producer := cluster.Client(t, kgo.TransactionalID("open"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err := producer.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := producer.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Value: []byte("x")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	// The first offsets, then the last ones.
	asked := make(chan struct{}, 2)
	cl := cluster.Client(t, kgo.WithHooks(onRead(func(key int16) {
		if key == kmsg.ListOffsets.Int16() {
			asked <- struct{}{}
		}
	})))
	var g errgroup.Group
	var values []string
	g.Go(func() error {
		c := &check{in: installation{brokers: cluster.Config.Brokers, prefix: cluster.Config.TopicPrefix}, cl: cl, adm: kadm.NewClient(cl)}
		return c.read(t.Context(), topic, func(r *kgo.Record) { values = append(values, string(r.Value)) })
	})
	<-asked
	<-asked
	if err := producer.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	if err := g.Wait(); err != nil || !slices.Equal(values, []string{"x"}) {
		t.Errorf("read %q, %v", values, err)
	}
}

// onRead is called with the key of each request that a broker has answered.
type onRead func(key int16)

func (f onRead) OnBrokerRead(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, err error) {
	if err == nil {
		f(key)
	}
}
