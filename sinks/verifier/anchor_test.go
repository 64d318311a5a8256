package verifier

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// FuzzState: whatever is on the topic, what is taken in is of one form, and nothing panics.
func FuzzState(f *testing.F) {
	identity := ledger.ChainIdentity{Workspace: [16]byte{1}, Incarnation: [16]byte{2}, Lane: 1, Lanes: 2}
	id := identity.Chain()
	head := &recordpb.ChainHead{
		Chain: id[:], Workspace: identity.Workspace[:], Incarnation: identity.Incarnation[:], Lane: 1, Lanes: 2, Size: 3,
		Root: make([]byte, 32), LastLeafHash: make([]byte, 32), Range: make([]byte, 64),
	}
	for _, seed := range []struct {
		key string
		m   proto.Message
	}{
		{fmt.Sprintf("%x", id), &recordpb.NotaryChain{Head: head, Epoch: 7}},
		{"log", &recordpb.NotaryLog{Size: 2, LastEntryHash: make([]byte, 32), Range: make([]byte, 32)}},
		{"partition/1", &recordpb.NotaryPartition{Next: 1}},
	} {
		value, err := proto.Marshal(seed.m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(seed.key), value)
	}
	f.Fuzz(func(t *testing.T, key, value []byte) {
		s := newNotaryState()
		if err := s.take(&kgo.Record{Key: key, Value: value}); err != nil {
			return
		}
		if err := s.log.Check(); err != nil {
			t.Error(err)
		}
		for id, c := range s.chains {
			if c.Chain() != id || c.size == 0 || !bytes.Equal(key, fmt.Appendf(nil, "%x", id)) || s.tree.Len() != 1 {
				t.Errorf("%q became %+v", key, c)
			}
		}
	})
}

// TestTold: a fault is told once, and a run of leaves not in pieces.
func TestTold(t *testing.T) {
	told := newTold(10)
	at := func(v ledger.Verdict, places ...uint64) *ledger.Fault {
		f := &ledger.Fault{Verdict: v, Chain: &ledger.ChainID{1}}
		if len(places) > 0 {
			f.Sequence = &places[0]
		}
		if len(places) > 1 {
			f.Last = &places[1]
		}
		return f
	}
	for _, tt := range []struct {
		fault *ledger.Fault
		want  bool
	}{
		{at(ledger.Modified), true},
		{at(ledger.Modified), false},
		{at(ledger.Missing, 10, 20), true},
		{at(ledger.Missing, 12), false},
		{at(ledger.Missing, 21, 30), true},
		{at(ledger.Missing, 10, 30), false},
		{at(ledger.Missing, 10, 31), true},
		{at(ledger.Modified, 12), true},
		{at(ledger.InvalidProof), false}, // its chain has faults of known place
		{&ledger.Fault{Verdict: ledger.Modified}, true},
		{&ledger.Fault{Verdict: ledger.Modified}, false},
		{at(ledger.Missing, 40), true},
		{at(ledger.Missing, 50), true},
		{at(ledger.Missing, 60), true},
		{at(ledger.Missing, 70), true},
		{at(ledger.Missing, 80), false}, // there is no room
	} {
		if got := told.add(tt.fault); got != tt.want {
			t.Errorf("%v: %v, want %v", tt.fault, got, tt.want)
		}
	}
}
