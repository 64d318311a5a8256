package e2e

import (
	"crypto/rand"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// TestCheckFindsFaultsOfTheRootLog is TestCheckFindsEveryFault for what the notary writes.
func TestCheckFindsFaultsOfTheRootLog(t *testing.T) {
	const origin = "log.example/e2e"
	private, verifier, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	marshal := func(m proto.Message) []byte {
		t.Helper()
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, tc := range []struct {
		name, want string
		epoch      func(*ledger.Epoch)
		entry      func(*recordpb.LogEntry)
		checkpoint func(*ledger.Checkpoint)
	}{
		{name: "sound"},
		{name: "another map root", want: "states map root", epoch: func(e *ledger.Epoch) { e.MapRoot[0] ^= 1 }},
		{name: "another number of chains", want: "states map root", epoch: func(e *ledger.Epoch) { e.Chains++ }},
		{name: "another root of the log", want: "the log makes", entry: func(m *recordpb.LogEntry) { m.Root[0] ^= 1 }},
		{name: "another root signed", want: "are signed, which", checkpoint: func(c *ledger.Checkpoint) { c.Root[0] ^= 1 }},
		{name: "more signed than there is", want: "are signed, which", checkpoint: func(c *ledger.Checkpoint) { c.Size = 9 }},
		{name: "entry altered", want: "checkpoints/1", entry: func(m *recordpb.LogEntry) {
			m.Entry = []byte(strings.Replace(string(m.GetEntry()), `"index":1`, `"index":2`, 1))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cluster := kafkatest.Start(t)
			cl := cluster.Client(t)
			c := &check{
				in: installation{brokers: cluster.Config.Brokers, prefix: cluster.Config.TopicPrefix}, cl: cl, adm: kadm.NewClient(cl),
				chains: map[ledger.ChainID]*chain{},
			}
			one := &chain{partition: 1}
			one.leaves = []leaf{{hash: ledger.Hash{1}, ledgerOffset: 0}, {hash: ledger.Hash{2}, ledgerOffset: 1}, {hash: ledger.Hash{3}, ledgerOffset: 7}}
			c.chains[ledger.ChainID{1}] = one
			var head ledger.Head // at the epoch, two leaves
			head.AppendHash(ledger.Hash{1})
			head.AppendHash(ledger.Hash{2})
			var tree ledger.Map
			tree.Set(ledger.ChainID{1}, 2, head.Root())
			epoch := &ledger.Epoch{MapRoot: tree.Root(), Chains: 1, Positions: []uint64{0, 7, 0, 0}}
			if tc.epoch != nil {
				tc.epoch(epoch)
			}
			signed, err := note.Sign(&note.Note{Text: ledger.KeyChangeText(origin, 0, verifier)}, signer)
			if err != nil {
				t.Fatal(err)
			}
			var log ledger.Head
			var records []*kgo.Record
			for i, e := range []*ledger.Entry{{Key: &ledger.KeyChange{VerifierKey: verifier, Signature: string(signed)}}, {Epoch: epoch}} {
				e.Index, e.Previous, e.Time = uint64(i), log.LastLeafHash, time.Unix(1e9, 0)
				text, err := e.Encode()
				if err != nil {
					t.Fatal(err)
				}
				log.AppendHash(ledger.EntryHash(text))
				root := log.Root()
				m := &recordpb.LogEntry{Entry: text, Size: log.Size, Root: root[:]}
				if i == 1 && tc.entry != nil {
					tc.entry(m)
				}
				records = append(records, &kgo.Record{Topic: schemas.TopicCheckpoints, Key: fmt.Append(nil, "entry/", i), Value: marshal(m)})
			}
			state := &ledger.Checkpoint{Origin: origin, Size: 2, Root: log.Root()}
			if tc.checkpoint != nil {
				tc.checkpoint(state)
			}
			text, err := ledger.SignCheckpoint(state, signer)
			if err != nil {
				t.Fatal(err)
			}
			m := &recordpb.SignedCheckpoint{Size: state.Size, Root: state.Root[:], Note: text}
			records = append(records, &kgo.Record{Topic: schemas.TopicCheckpoints, Key: []byte("checkpoint/2"), Value: marshal(m)})
			cluster.Produce(t, records...)
			if err := c.readCheckpoints(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := c.compareEpochs(t.Context()); err != nil {
				t.Fatal(err)
			}
			if faults := strings.Join(c.faults, "\n"); (tc.want == "") != (faults == "") || !strings.Contains(faults, tc.want) {
				t.Errorf("want %q:\n%s", tc.want, faults)
			}
			if tc.want == "" && c.Checkpoints != 1 {
				t.Errorf("%d checkpoints", c.Checkpoints)
			}
		})
	}
}
