package notary

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// audit is what a stranger finds on the topics with nothing but the log's first key. It computes everything anew, in
// another way than the notary: all leaves into a tree for each epoch, all entries into one.
type audit struct {
	entries     int
	roots       []ledger.Hash // by size
	epochs      []*ledger.Epoch
	keys        int
	checkpoints []*recordpb.SignedCheckpoint
	newest      uint64 // size of the newest signed checkpoint
	covered     int    // leaves in the newest epoch that it covers, without genesis leaves
}

// auditTopics reads checkpoints and the ledger. An error is a fault of the notary, or that something moved meanwhile.
func auditTopics(ctx context.Context, tb testing.TB, c *kafkatest.Cluster, admin *kadm.Client) (*audit, error) {
	tb.Helper()
	records, err := readAll(ctx, tb, c, admin, schemas.TopicCheckpoints)
	if err != nil {
		return nil, err
	}
	leaves, err := readAll(ctx, tb, c, admin, schemas.TopicLedger)
	if err != nil {
		return nil, err
	}
	a := new(audit)
	var (
		log    ledger.Head
		roots  = []ledger.Hash{log.Root()} // by size
		keys   ledger.KeyHistory
		first  string
		last   time.Time
		bySize = make(map[uint64][]byte)
		closed = make(map[uint64]int) // epochs before this size
	)
	for _, r := range records {
		if hasPrefix(r.Key, checkpointKey) {
			m := new(recordpb.SignedCheckpoint)
			if err := proto.Unmarshal(r.Value, m); err != nil {
				tb.Fatal(err)
			}
			trust, err := ledger.ParseTrust([]byte(first))
			if err != nil {
				tb.Fatal(err)
			}
			o, fault := trust.Open(m.GetNote(), keys, time.Now())
			if fault != nil {
				tb.Fatalf("the checkpoint at offset %d: %v", r.Offset, fault)
			}
			if o.Size != m.GetSize() || o.Size >= uint64(len(roots)) || o.Root != roots[o.Size] || o.Root != ledger.Hash(m.GetRoot()) {
				tb.Fatalf("the checkpoint at offset %d, of size %d, does not state the %d entries before it", r.Offset, o.Size, len(roots)-1)
			}
			if other, ok := bySize[o.Size]; ok && string(other) != string(m.GetRoot()) {
				tb.Fatalf("two roots of size %d were signed", o.Size)
			}
			bySize[o.Size] = m.GetRoot()
			a.checkpoints = append(a.checkpoints, m)
			a.newest = max(a.newest, o.Size)
			continue
		}
		m := new(recordpb.LogEntry)
		if err := proto.Unmarshal(r.Value, m); err != nil {
			tb.Fatal(err)
		}
		e, err := ledger.ParseEntry(m.GetEntry())
		if err != nil {
			tb.Fatal(err)
		}
		if e.Index != log.Size || e.Previous != log.LastLeafHash || string(r.Key) != fmt.Sprint(entryKey, e.Index) {
			tb.Fatalf("entry %d, %q, does not follow on %d entries", e.Index, r.Key, log.Size)
		}
		if e.Time.Before(last) {
			tb.Fatalf("entry %d is older than the one before it", e.Index)
		}
		last = e.Time
		hash := ledger.EntryHash(m.GetEntry())
		if node := log.AppendHash(hash); string(join(node)) != string(m.GetNode()) || ledger.Hash(m.GetHash()) != hash {
			tb.Fatalf("entry %d: hash or node", e.Index)
		}
		if ledger.Hash(m.GetRoot()) != log.Root() || m.GetSize() != log.Size {
			tb.Fatalf("entry %d: root or size", e.Index)
		}
		roots = append(roots, log.Root())
		if e.Key != nil {
			if first == "" {
				first = e.Key.VerifierKey
			}
			if err := keys.Append(testOrigin, e); err != nil {
				tb.Fatal(err)
			}
			a.keys++
		} else {
			a.epochs = append(a.epochs, e.Epoch)
		}
		closed[log.Size] = len(a.epochs)
		a.entries++
	}
	a.roots = roots
	checkEpochs(tb, leaves, a.epochs)
	if n := closed[a.newest]; n > 0 {
		e := a.epochs[n-1]
		for _, r := range leaves {
			if uint64(r.Offset) < e.Positions[r.Partition] && !genesis(tb, r) {
				a.covered++
			}
		}
	}
	return a, nil
}

func genesis(tb testing.TB, r *kgo.Record) bool {
	tb.Helper()
	m := new(recordpb.Sealed)
	if err := proto.Unmarshal(r.Value, m); err != nil {
		tb.Fatal(err)
	}
	return m.GetSequence() == 0
}

// checkEpochs recomputes the newest epoch's map root, and one in the middle, from the ledger topic's leaf hashes.
func checkEpochs(tb testing.TB, leaves []*kgo.Record, epochs []*ledger.Epoch) {
	tb.Helper()
	if len(epochs) == 0 {
		return
	}
	for i := 1; i < len(epochs); i++ {
		for p := range epochs[i].Positions {
			if epochs[i].Positions[p] < epochs[i-1].Positions[p] {
				tb.Fatalf("epoch %d goes back on partition %d", i, p)
			}
		}
	}
	for _, e := range slices.Compact([]*ledger.Epoch{epochs[len(epochs)/2], epochs[len(epochs)-1]}) {
		heads := make(map[ledger.ChainID]*ledger.Head)
		for _, r := range leaves {
			if uint64(r.Offset) >= e.Positions[r.Partition] {
				continue
			}
			m := new(recordpb.Sealed)
			if err := proto.Unmarshal(r.Value, m); err != nil {
				tb.Fatal(err)
			}
			id := ledger.ChainID(m.GetChain())
			if heads[id] == nil {
				heads[id] = &ledger.Head{Chain: id}
			}
			if heads[id].Size != m.GetSequence() {
				tb.Fatalf("leaf %d of chain %x, want %d", m.GetSequence(), id, heads[id].Size)
			}
			heads[id].AppendHash(ledger.Hash(m.GetLeafHash()))
		}
		var tree ledger.Map
		for id, h := range heads {
			tree.Set(id, h.Size, h.Root())
		}
		if tree.Root() != e.MapRoot || uint64(tree.Len()) != e.Chains {
			tb.Fatalf("an epoch states map root %x of %d chains, want %x of %d", e.MapRoot, e.Chains, tree.Root(), tree.Len())
		}
	}
}
