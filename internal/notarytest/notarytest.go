// Package notarytest makes what the notary writes, for tests of those who read it: a root log with signed checkpoints, and the
// state of the chains that its epochs cover.
package notarytest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// deadline is how long the broker may take over a transaction. It is never reached when all is well.
const deadline = 30 * time.Second

// Chain is a chain as an epoch finds it.
type Chain struct {
	ledger.Head
	Workspace, Incarnation [16]byte
	Lane, Lanes            uint32
}

// Notary is a root log. Everything in it follows from what is entered.
type Notary struct {
	// Origin is the log's.
	Origin string
	// Start is the time of entry 0; each entry is ten seconds after the one before it.
	Start time.Time
	// Log is the tree over the entries so far.
	Log ledger.Head
	// Positions are the cut of the next epoch. New sets four partitions without leaves.
	Positions []uint64
	// Map has every chain at its last epoch.
	Map ledger.Map

	keys []key
}

// New returns a root log without entries: Rotate enters the first.
func New(origin string) *Notary {
	return &Notary{Origin: origin, Start: time.Now().UTC().Truncate(time.Microsecond), Positions: make([]uint64, 4)}
}

// key is an Ed25519 key as a signed note knows it. It implements note.Signer.
type key struct {
	name    string
	private ed25519.PrivateKey
}

func (k key) material() []byte {
	return append([]byte{1}, k.private.Public().(ed25519.PublicKey)...)
}

func (k key) Name() string { return k.name }

func (k key) KeyHash() uint32 {
	h := sha256.Sum256(slices.Concat([]byte(k.name), []byte("\n"), k.material()))
	return binary.BigEndian.Uint32(h[:])
}

func (k key) Sign(text []byte) ([]byte, error) { return ed25519.Sign(k.private, text), nil }

func (k key) verifier() string {
	return fmt.Sprintf("%s+%08x+%s", k.name, k.KeyHash(), base64.StdEncoding.EncodeToString(k.material()))
}

// VerifierKey returns the newest key, as a line of text without its end.
func (n *Notary) VerifierKey() string { return n.keys[len(n.keys)-1].verifier() }

// Rotate enters the next key.
func (n *Notary) Rotate(tb testing.TB) []*kgo.Record {
	tb.Helper()
	next := key{n.Origin, ed25519.NewKeyFromSeed(bytes.Repeat([]byte{byte(len(n.keys))}, ed25519.SeedSize))}
	by := next
	if len(n.keys) > 0 {
		by = n.keys[len(n.keys)-1]
	}
	signed, err := note.Sign(&note.Note{Text: ledger.KeyChangeText(n.Origin, n.Log.Size, next.verifier())}, by)
	if err != nil {
		tb.Fatal(err)
	}
	n.keys = append(n.keys, next)
	return n.enter(tb, &ledger.Entry{Key: &ledger.KeyChange{VerifierKey: next.verifier(), Signature: string(signed)}})
}

// Epoch enters an epoch in which these chains have changed.
func (n *Notary) Epoch(tb testing.TB, changed ...Chain) []*kgo.Record {
	tb.Helper()
	index := n.Log.Size
	var records []*kgo.Record
	for _, c := range changed {
		root := c.Root()
		n.Map.Set(c.Chain, c.Size, root)
		head := &recordpb.ChainHead{
			Chain: c.Chain[:], Workspace: c.Workspace[:], Incarnation: c.Incarnation[:], Lane: c.Lane, Lanes: c.Lanes,
			Size: c.Size, Root: root[:], LastLeafHash: c.LastLeafHash[:],
		}
		for _, h := range c.Range {
			head.Range = append(head.Range, h[:]...)
		}
		records = append(records, record(tb, schemas.TopicNotaryState, fmt.Sprintf("%x", c.Chain),
			&recordpb.NotaryChain{Head: head, Epoch: index}))
	}
	return append(records, n.enter(tb, &ledger.Entry{Epoch: &ledger.Epoch{
		MapRoot: n.Map.Root(), Chains: uint64(n.Map.Len()), Positions: slices.Clone(n.Positions),
	}})...)
}

func (n *Notary) enter(tb testing.TB, e *ledger.Entry) []*kgo.Record {
	tb.Helper()
	e.Index, e.Previous, e.Time = n.Log.Size, n.Log.LastLeafHash, n.Start.Add(time.Duration(n.Log.Size)*10*time.Second)
	text, err := e.Encode()
	if err != nil {
		tb.Fatal(err)
	}
	hash := ledger.EntryHash(text)
	entry := &recordpb.LogEntry{Entry: text, Hash: hash[:]}
	for _, h := range n.Log.AppendHash(hash) {
		entry.Node = append(entry.Node, h[:]...)
	}
	root := n.Log.Root()
	entry.Size, entry.Root = n.Log.Size, root[:]
	state := &recordpb.NotaryLog{Size: n.Log.Size, LastEntryHash: hash[:]}
	for _, h := range n.Log.Range {
		state.Range = append(state.Range, h[:]...)
	}
	return []*kgo.Record{
		record(tb, schemas.TopicCheckpoints, fmt.Sprint("entry/", e.Index), entry),
		record(tb, schemas.TopicNotaryState, "log", state),
	}
}

// Checkpoint signs the root log as it is, with the newest key and as many more signers as there are witnesses.
func (n *Notary) Checkpoint(tb testing.TB, witnesses ...note.Signer) *kgo.Record {
	tb.Helper()
	root := n.Log.Root()
	signers := append([]note.Signer{n.keys[len(n.keys)-1]}, witnesses...)
	signed, err := ledger.SignCheckpoint(&ledger.Checkpoint{Origin: n.Origin, Size: n.Log.Size, Root: root}, signers...)
	if err != nil {
		tb.Fatal(err)
	}
	return record(tb, schemas.TopicCheckpoints, fmt.Sprint("checkpoint/", n.Log.Size), &recordpb.SignedCheckpoint{
		Size: n.Log.Size, Root: root[:], Note: signed, Witnesses: uint32(len(witnesses)), Quorum: len(witnesses) > 0,
		PublishedAt: time.Now().UnixMicro(),
	})
}

func record(tb testing.TB, topic, key string, m proto.Message) *kgo.Record {
	tb.Helper()
	value, err := proto.Marshal(m)
	if err != nil {
		tb.Fatal(err)
	}
	return &kgo.Record{Topic: topic, Key: []byte(key), Value: value}
}

// Commit appends records in one transaction.
func Commit(tb testing.TB, c *kafkatest.Cluster, records ...*kgo.Record) {
	tb.Helper()
	cl := c.Client(tb, kgo.TransactionalID(c.Config.Group(schemas.TransactionalIDNotary)), kgo.ProducerLinger(0),
		kgo.RecordPartitioner(kgo.ManualPartitioner()))
	defer cl.Close()
	ctx, cancel := context.WithTimeout(tb.Context(), deadline)
	defer cancel()
	if err := cl.BeginTransaction(); err != nil {
		tb.Fatalf("beginning a transaction: %v", err)
	}
	for _, r := range records {
		r.Topic = c.Config.Topic(r.Topic)
	}
	if err := cl.ProduceSync(ctx, records...).FirstErr(); err != nil {
		tb.Fatalf("producing: %v", err)
	}
	if err := cl.EndTransaction(ctx, kgo.TryCommit); err != nil {
		tb.Fatalf("ending a transaction: %v", err)
	}
}
