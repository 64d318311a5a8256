package notary

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// blockEntries is the number of entries of the root log under one node: a complete block.
const blockEntries = 256

// rootLog is the root log as far as it is committed and read back, with all that proving its consistency takes: the nodes of
// every complete block, and the entry hashes of the last one and of the one that is open.
type rootLog struct {
	head ledger.Head // size 0: nothing was ever committed
	time time.Time   // of the last entry
	// keys are all key changes, key is the verifier key of the last one, which is entry keyIndex.
	keys     ledger.KeyHistory
	key      string
	keyIndex uint64
	// firstKey is the verifier key of entry 0.
	firstKey string
	origin   string
	epoch    *ledger.Epoch // the newest, entry epochIndex; nil: none
	// epochIndex is known only of what append has taken in.
	epochIndex uint64
	// blocks are the complete ones.
	blocks []block
	// levels[k] are the roots of the complete subtrees of 256^(k+1) entries; upper is the tree over the blocks that they
	// follow from.
	levels [][]ledger.Hash
	upper  ledger.Head
	// recent are the hashes of the entries from recentFrom on, which is where a block begins.
	recent     []ledger.Hash
	recentFrom uint64
}

// block is a complete run of blockEntries entries: their root, and where the last one is on the checkpoints topic.
type block struct {
	root   ledger.Hash
	offset int64
}

// record returns what to commit of the entry that follows, e without its Index and Previous. It changes nothing.
func (l *rootLog) record(e *ledger.Entry) (*recordpb.LogEntry, error) {
	e.Index, e.Previous = l.head.Size, l.head.LastLeafHash
	if e.Time.Before(l.time) {
		// A clock that was set back: the log's time does not go back with it.
		e.Time = l.time
	}
	text, err := e.Encode()
	if err != nil {
		return nil, err
	}
	hash := ledger.EntryHash(text)
	head := l.head.Clone()
	node := head.AppendHash(hash)
	root := head.Root()
	return &recordpb.LogEntry{Entry: text, Hash: hash[:], Node: join(node), Size: head.Size, Root: root[:]}, nil
}

// append takes in a committed entry, which is at this offset of the checkpoints topic. The error says how it does not
// follow; l cannot be used any more then.
func (l *rootLog) append(m *recordpb.LogEntry, offset int64) (*ledger.Entry, error) {
	e, err := ledger.ParseEntry(m.GetEntry())
	if err != nil {
		return nil, err
	}
	hash := ledger.EntryHash(m.GetEntry())
	switch {
	case e.Index != l.head.Size || e.Previous != l.head.LastLeafHash:
		return nil, fmt.Errorf("entry %d does not follow on %d entries, the last of which is %x", e.Index, l.head.Size, l.head.LastLeafHash)
	case e.Time.Before(l.time):
		return nil, fmt.Errorf("entry %d is older than the one before it", e.Index)
	case !bytes.Equal(hash[:], m.GetHash()):
		return nil, fmt.Errorf("entry %d has hash %x, its record says %x", e.Index, hash, m.GetHash())
	}
	if e.Key != nil {
		if err := l.mine(e); err != nil {
			return nil, err
		}
		if err := l.stateKey(e); err != nil {
			return nil, err
		}
	} else {
		l.epoch, l.epochIndex = e.Epoch, e.Index
	}
	node := l.head.AppendHash(hash)
	root := l.head.Root()
	switch {
	case m.GetSize() != l.head.Size || !bytes.Equal(root[:], m.GetRoot()):
		return nil, fmt.Errorf("with entry %d the root is %x at size %d, its record says %x at %d",
			e.Index, root, l.head.Size, m.GetRoot(), m.GetSize())
	case !bytes.Equal(join(node), m.GetNode()):
		return nil, fmt.Errorf("entry %d completes subtrees %x, its record says %x", e.Index, node, m.GetNode())
	}
	l.time = e.Time
	l.recent = append(l.recent, hash)
	if len(node) > 0 {
		l.complete(block{node[0], offset})
		l.trim()
	}
	return e, nil
}

// mine refuses a root log of another origin.
func (l *rootLog) mine(e *ledger.Entry) error {
	if !strings.HasPrefix(e.Key.VerifierKey, l.origin+"+") {
		return halt(haltKey, "the root log on the topics states key %.300q, the keys in the key file are of origin %q", e.Key.VerifierKey, l.origin)
	}
	return nil
}

// stateKey takes in an entry that states a key.
func (l *rootLog) stateKey(e *ledger.Entry) error {
	if err := l.keys.Append(l.origin, e); err != nil {
		return err
	}
	l.key, l.keyIndex = e.Key.VerifierKey, e.Index
	if len(l.keys) == 1 {
		l.firstKey = l.key
	}
	return nil
}

// complete takes in the next complete block.
func (l *rootLog) complete(b block) {
	l.blocks = append(l.blocks, b)
	level := 0
	for _, root := range append([]ledger.Hash{b.root}, l.upper.AppendHash(b.root)...) {
		if level == len(l.levels) {
			l.levels = append(l.levels, nil)
		}
		l.levels[level] = append(l.levels[level], root)
		level++
	}
}

// trim lets go of the hashes of all complete blocks but the last.
func (l *rootLog) trim() {
	if keep := uint64(max(0, len(l.blocks)-1)) * blockEntries; keep > l.recentFrom {
		l.recent = slices.Clone(l.recent[keep-l.recentFrom:])
		l.recentFrom = keep
	}
}

// after returns the log's record of notary_state for when m is its last entry.
func (l *rootLog) after(m *recordpb.LogEntry, keyIndex uint64) *recordpb.NotaryLog {
	head := l.head.Clone()
	head.AppendHash(ledger.Hash(m.GetHash()))
	return summary(&head, keyIndex)
}

func summary(head *ledger.Head, keyIndex uint64) *recordpb.NotaryLog {
	return &recordpb.NotaryLog{
		Size: head.Size, LastEntryHash: head.LastLeafHash[:], Range: join(head.Range), LastKey: keyIndex,
	}
}

// checkpoint states the log as it is.
func (l *rootLog) checkpoint() *ledger.Checkpoint {
	return &ledger.Checkpoint{Origin: l.origin, Size: l.head.Size, Root: l.head.Root()}
}

// proveFunc returns the proof that the first oldSize entries of a root log are its beginning.
type proveFunc = func(ctx context.Context, oldSize uint64) ([]ledger.Hash, error)

// prove returns the consistency proof (RFC 6962, 2.1.2) of the log with its first size entries; read gives the entry
// hashes of a complete block that are not in memory. It may be called by several at once while nothing is appended.
func (l *rootLog) prove(ctx context.Context, size uint64, read func(ctx context.Context, block uint64) ([]ledger.Hash, error)) ([]ledger.Hash, error) {
	switch {
	case size > l.head.Size:
		return nil, fmt.Errorf("the root log has %d entries, not %d", l.head.Size, size)
	case size == 0 || size == l.head.Size:
		return nil, nil
	}
	plan, err := ledger.PlanConsistency(size, l.head.Size)
	if err != nil {
		return nil, err
	}
	var stored [][]ledger.Hash
	for _, span := range plan.Spans() {
		switch {
		case span.Level > 0:
			stored = append(stored, slices.Clone(l.levels[span.Level-1][span.From:span.To]))
		case span.From >= l.recentFrom:
			stored = append(stored, slices.Clone(l.recent[span.From-l.recentFrom:span.To-l.recentFrom]))
		default:
			// A span of level 0 lies within a block.
			number := span.From / blockEntries
			hashes, err := read(ctx, number)
			if err != nil {
				return nil, fmt.Errorf("reading entries of the root log from %d on: %w", number*blockEntries, err)
			}
			stored = append(stored, slices.Clone(hashes[span.From-number*blockEntries:span.To-number*blockEntries]))
		}
	}
	return plan.Build(stored)
}

// extends says how the log does not continue the one of a checkpoint: then the error wraps ledger.ErrProof.
func (l *rootLog) extends(ctx context.Context, c *ledger.Checkpoint, prove proveFunc) error {
	now := l.checkpoint()
	switch {
	case c.Origin != now.Origin:
		return fmt.Errorf("%w: it is of log %q, this is %q", ledger.ErrProof, c.Origin, now.Origin)
	case c.Size > now.Size:
		return fmt.Errorf("%w: it has %d entries, the root log %d", ledger.ErrProof, c.Size, now.Size)
	}
	proof, err := prove(ctx, c.Size)
	if err != nil {
		return err
	}
	return ledger.VerifyConsistency(c.Size, now.Size, proof, c.Root, now.Root)
}
