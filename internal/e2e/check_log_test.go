package e2e

import (
	"context"
	"sort"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// readCheckpoints recomputes the root log from its entries' texts, and holds every signed checkpoint to it. It comes before the ledger
// is read, so that this has every leaf of its epochs.
func (c *check) readCheckpoints(ctx context.Context) error {
	var (
		log   ledger.Head
		roots = []ledger.Hash{log.Root()} // by size
		keys  ledger.KeyHistory
		trust *ledger.Trust
		last  time.Time
	)
	return c.read(ctx, c.topic(schemas.TopicCheckpoints), func(r *kgo.Record) {
		if strings.HasPrefix(string(r.Key), "checkpoint/") {
			m := new(recordpb.SignedCheckpoint)
			if err := proto.Unmarshal(r.Value, m); err != nil || trust == nil {
				c.fault("checkpoints/%d: %v, a key was stated before: %t", r.Offset, err, trust != nil)
				return
			}
			o, fault := trust.Open(m.GetNote(), keys, time.Now())
			switch {
			case fault != nil:
				c.fault("checkpoints/%d: %v", r.Offset, fault)
			case o.Size >= uint64(len(roots)) || o.Root != roots[o.Size] || o.Size != m.GetSize() || o.Root != ledger.Hash(m.GetRoot()):
				c.fault("checkpoints/%d: size %d and root %x are signed, which the %d entries before it have not", r.Offset, o.Size, o.Root, len(roots)-1)
			default:
				c.Checkpoints++
			}
			return
		}
		m := new(recordpb.LogEntry)
		var e *ledger.Entry
		err := proto.Unmarshal(r.Value, m)
		if err == nil {
			e, err = ledger.ParseEntry(m.GetEntry())
		}
		if err != nil {
			c.fault("checkpoints/%d: %v", r.Offset, err)
			return
		}
		if e.Index != log.Size || e.Previous != log.LastLeafHash || e.Time.Before(last) {
			c.fault("checkpoints/%d: entry %d does not follow on %d", r.Offset, e.Index, log.Size)
		}
		last = e.Time
		node := log.AppendHash(ledger.EntryHash(m.GetEntry()))
		roots = append(roots, log.Root())
		if ledger.Hash(m.GetRoot()) != log.Root() || string(flatten(node)) != string(m.GetNode()) {
			c.fault("checkpoints/%d: entry %d has root %x, the log makes %x", r.Offset, e.Index, m.GetRoot(), log.Root())
		}
		if e.Key == nil {
			c.epochs = append(c.epochs, e.Epoch)
			return
		}
		origin, _, _ := strings.Cut(e.Key.VerifierKey, "+")
		if err := keys.Append(origin, e); err != nil {
			c.fault("checkpoints/%d: %v", r.Offset, err)
		}
		if trust == nil {
			if trust, err = ledger.ParseTrust([]byte(e.Key.VerifierKey)); err != nil {
				c.fault("checkpoints/%d: %v", r.Offset, err)
			}
		}
	})
}

// compareEpochs recomputes the maps of up to ten epochs, the newest among them, from the ledger's leaves before their positions.
func (c *check) compareEpochs(context.Context) error {
	for i := len(c.epochs) - 1; i >= 0; i -= 1 + len(c.epochs)/10 {
		e := c.epochs[i]
		var tree ledger.Map
		for id, ch := range c.chains {
			if int(ch.partition) >= len(e.Positions) {
				c.fault("epoch %d is of %d partitions", i, len(e.Positions))
				return nil
			}
			next := e.Positions[ch.partition]
			n := sort.Search(len(ch.leaves), func(i int) bool { return uint64(ch.leaves[i].ledgerOffset) >= next })
			if n == 0 {
				continue
			}
			var head ledger.Head
			for _, leaf := range ch.leaves[:n] {
				head.AppendHash(leaf.hash)
			}
			tree.Set(id, head.Size, head.Root())
		}
		if tree.Root() != e.MapRoot || uint64(tree.Len()) != e.Chains {
			c.fault("epoch %d of %d states map root %x of %d chains, the ledger makes %x of %d",
				i, len(c.epochs), e.MapRoot, e.Chains, tree.Root(), tree.Len())
		}
	}
	return nil
}
