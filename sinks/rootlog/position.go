package rootlog

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// position is where the tables stand, and what the next records must follow from.
type position struct {
	head ledger.Head // of the entries that root_log has without a gap
	// roots are those at the sizes above rootsFrom, the last of them at head.Size.
	roots     []ledger.Hash
	rootsFrom uint64
}

// keptRoots is how many roots are remembered: a checkpoint comes a few entries after the one that it ends with.
const keptRoots = 1024

// entry is a row of root_log.
type entry struct {
	*ledger.Entry
	record *recordpb.LogEntry
}

// readEntry reads a record of an entry, and refuses one whose hash is not that of its bytes.
func readEntry(value []byte) (*entry, error) {
	e := &entry{record: new(recordpb.LogEntry)}
	err := proto.Unmarshal(value, e.record)
	if err != nil {
		return nil, fmt.Errorf("decoding the entry: %w", err)
	}
	if e.Entry, err = ledger.ParseEntry(e.record.GetEntry()); err != nil {
		return nil, err
	}
	if hash := ledger.EntryHash(e.record.GetEntry()); !bytes.Equal(hash[:], e.record.GetHash()) {
		return nil, fmt.Errorf("entry %d has hash %x, and its bytes have %x", e.Index, e.record.GetHash(), hash)
	}
	return e, nil
}

// append takes the next entry. Its index is head.Size.
func (p *position) append(e *entry) error {
	if e.Previous != p.head.LastLeafHash {
		return fmt.Errorf("entry %d follows hash %x, and the entry before it has %x", e.Index, e.Previous, p.head.LastLeafHash)
	}
	next := p.head.Clone()
	var node []byte
	for _, h := range next.AppendHash(ledger.Hash(e.record.GetHash())) {
		node = append(node, h[:]...)
	}
	root := next.Root()
	switch {
	case !bytes.Equal(node, e.record.GetNode()):
		return fmt.Errorf("entry %d completes nodes %x, and its record has %x", e.Index, node, e.record.GetNode())
	case e.record.GetSize() != next.Size || !bytes.Equal(e.record.GetRoot(), root[:]):
		return fmt.Errorf("entry %d leads to root %x at size %d, and its record has %x at %d",
			e.Index, root, next.Size, e.record.GetRoot(), e.record.GetSize())
	}
	p.head = next
	p.roots = append(p.roots, root)
	if extra := len(p.roots) - keptRoots; extra >= keptRoots {
		p.roots, p.rootsFrom = slices.Clone(p.roots[extra:]), p.rootsFrom+uint64(extra)
	}
	return nil
}

// checkpoint is a row of checkpoints.
type checkpoint struct {
	*recordpb.SignedCheckpoint
	root ledger.Hash
}

// checkpointKey tells rows of checkpoints apart.
type checkpointKey struct {
	size      uint64
	witnesses uint16
}

func (c *checkpoint) key() checkpointKey { return checkpointKey{c.GetSize(), uint16(c.GetWitnesses())} }

// maxWitnesses is more than a checkpoint has signatures.
const maxWitnesses = 1000

// readCheckpoint reads a record of a signed checkpoint, and refuses one whose note says something else. Its signatures are for
// those to check who have been told whom to believe.
func readCheckpoint(value []byte) (*checkpoint, error) {
	c := &checkpoint{SignedCheckpoint: new(recordpb.SignedCheckpoint)}
	if err := proto.Unmarshal(value, c.SignedCheckpoint); err != nil {
		return nil, fmt.Errorf("decoding the checkpoint: %w", err)
	}
	stated, err := ledger.ParseCheckpoint(c.GetNote())
	if err != nil {
		return nil, err
	}
	if stated.Size == 0 || stated.Size != c.GetSize() || !bytes.Equal(stated.Root[:], c.GetRoot()) {
		return nil, fmt.Errorf("the checkpoint of size %d and root %x has a note of size %d and root %x",
			c.GetSize(), c.GetRoot(), stated.Size, stated.Root)
	}
	if c.GetWitnesses() > maxWitnesses {
		return nil, fmt.Errorf("the checkpoint of size %d has %d witnesses, at most %d are possible", c.GetSize(), c.GetWitnesses(), maxWitnesses)
	}
	c.root = stated.Root
	return c, nil
}

// rootAt returns the root of the root log at a size, 1 to head.Size.
func (w *Writer) rootAt(ctx context.Context, p *position, size uint64) (ledger.Hash, error) {
	if size > p.rootsFrom {
		return p.roots[size-p.rootsFrom-1], nil
	}
	h, err := w.readHead(ctx, size)
	if err != nil {
		return ledger.Hash{}, err
	}
	return h.Root(), nil
}
