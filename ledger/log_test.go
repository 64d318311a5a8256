package ledger

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/transparency-dev/formats/proof"
	"golang.org/x/mod/sumdb/note"
	"pgregory.net/rapid"
)

const testOrigin = "example.com/ledger"

// testStart is when the first entry of a testLog is made; each is ten seconds after the one before it.
var testStart = time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC)

// testLog is a whole installation's ledger, made by what a notary uses, with everything deterministic.
type testLog struct {
	storedTree // of the root log

	entries [][]byte
	keys    []testKey
	chains  []*testChainLog
	changes []uint64 // entries that are key changes
	m       Map
	epochs  map[uint64][]epochChain // by entry: each chain as it was
}

type epochChain struct {
	size  uint64
	root  Hash
	proof MapProof
}

// testChainLog is one chain.
type testChainLog struct {
	storedTree

	lane   uint32
	leaves []BundleLeaf // without Path
	hashes []Hash
}

// testKey is an Ed25519 key, or of a witness.
type testKey struct {
	name    string
	private ed25519.PrivateKey
	witness bool
	at      time.Time // of a witness's signatures
}

func newTestKey(name string, seed byte) testKey {
	return testKey{name: name, private: ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))}
}

func newTestWitness(name string, seed byte) testKey {
	k := newTestKey(name, seed)
	k.witness, k.at = true, testStart
	return k
}

func (k testKey) material() []byte {
	kind := byte(1)
	if k.witness {
		kind = 4
	}
	return append([]byte{kind}, k.private.Public().(ed25519.PublicKey)...)
}

func (k testKey) Name() string { return k.name }

func (k testKey) KeyHash() uint32 {
	h := sha256.Sum256(slices.Concat([]byte(k.name), []byte("\n"), k.material()))
	return binary.BigEndian.Uint32(h[:])
}

// Sign implements note.Signer: C2SP signed-note, or cosignature/v1 of C2SP tlog-cosignature.
func (k testKey) Sign(text []byte) ([]byte, error) {
	if !k.witness {
		return ed25519.Sign(k.private, text), nil
	}
	at := uint64(k.at.Unix())
	signature := ed25519.Sign(k.private, fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", at, text))
	return append(binary.BigEndian.AppendUint64(nil, at), signature...), nil
}

func (k testKey) vkey() string {
	return fmt.Sprintf("%s+%08x+%s", k.name, k.KeyHash(), base64.StdEncoding.EncodeToString(k.material()))
}

// newTestLog has one key and no chain.
func newTestLog(tb rapid.TB) *testLog {
	tb.Helper()
	l := &testLog{epochs: map[uint64][]epochChain{}}
	l.rotate(tb, newTestKey(testOrigin, 0))
	return l
}

func (l *testLog) key() testKey { return l.keys[len(l.keys)-1] }

func (l *testLog) enter(tb rapid.TB, e *Entry) {
	tb.Helper()
	e.Index, e.Previous, e.Time = l.Size, l.LastLeafHash, testStart.Add(time.Duration(l.Size)*10*time.Second)
	text, err := e.Encode()
	if err != nil {
		tb.Fatal(err)
	}
	l.entries = append(l.entries, text)
	l.add(EntryHash(text))
}

// rotate states the next key.
func (l *testLog) rotate(tb rapid.TB, key testKey) {
	tb.Helper()
	by := key
	if len(l.keys) > 0 {
		by = l.key()
	}
	signed, err := note.Sign(&note.Note{Text: KeyChangeText(testOrigin, l.Size, key.vkey())}, by)
	if err != nil {
		tb.Fatal(err)
	}
	l.changes = append(l.changes, l.Size)
	l.enter(tb, &Entry{Key: &KeyChange{VerifierKey: key.vkey(), Signature: string(signed)}})
	l.keys = append(l.keys, key)
}

var (
	testWorkspace   = Hex16{0: 1}
	testIncarnation = Hex16{0: 2}
)

// chain adds a chain with its genesis.
func (l *testLog) chain(tb rapid.TB) *testChainLog {
	tb.Helper()
	lane := uint32(len(l.chains))
	c := &testChainLog{lane: lane}
	c.Chain = NewChainID(testWorkspace, testIncarnation, lane)
	genesis := Genesis(testWorkspace, testIncarnation, lane, 4, testStart.UnixMicro(), 0)
	c.seal(&genesis, "", nil)
	l.chains = append(l.chains, c)
	return c
}

// seal puts a leaf on the chain.
func (c *testChainLog) seal(leaf *Leaf, body string, seed *Hex16) {
	hash, node := c.Append(leaf)
	c.store(hash, node)
	content := NewBundleLeaf(leaf, testWorkspace, testIncarnation, c.lane)
	content.Body, content.Seed = body, seed
	c.leaves = append(c.leaves, content)
	c.hashes = append(c.hashes, hash)
}

// event seals an event of this kind with a canonical body.
func (c *testChainLog) event(tb rapid.TB, kind Kind, body string) *BundleLeaf {
	tb.Helper()
	n := c.Size
	leaf := Leaf{
		Kind: kind, ID: uuid.NewSHA1(uuid.UUID(c.Chain), fmt.Append(nil, n)),
		RecordedAt: testStart.Add(time.Duration(n) * time.Millisecond).UnixMicro(), Partition: uint16(c.lane), Offset: n - 1,
	}
	drawn := sha256.Sum256(leaf.ID[:])
	seed := Hex16(drawn[:16])
	content := BundleLeaf{Body: body, Seed: &seed}
	root, count, err := content.bodyRoot()
	if err != nil {
		tb.Fatal(err)
	}
	leaf.BodyRoot, leaf.FieldCount = root, uint16(count)
	c.seal(&leaf, body, &seed)
	return &c.leaves[n]
}

// epoch enters all chains as they are.
func (l *testLog) epoch(tb rapid.TB) {
	tb.Helper()
	positions := make([]uint64, 4)
	for _, c := range l.chains {
		l.m.Set(c.Chain, c.Size, c.Root())
		positions[c.lane%4] = c.Size
	}
	var all []epochChain
	for _, c := range l.chains {
		all = append(all, epochChain{c.Size, c.Root(), l.m.Prove(c.Chain)})
	}
	l.epochs[l.Size] = all
	l.enter(tb, &Entry{Epoch: &Epoch{MapRoot: l.m.Root(), Chains: uint64(l.m.Len()), Positions: positions}})
}

// checkpoint signs the log at a size.
func (l *testLog) checkpoint(tb rapid.TB, size uint64, signers ...note.Signer) []byte {
	tb.Helper()
	signed, err := SignCheckpoint(&Checkpoint{Origin: testOrigin, Size: size, Root: l.rootAt(tb, size)}, signers...)
	if err != nil {
		tb.Fatal(err)
	}
	return signed
}

// bundle proves a leaf by the epoch that is the newest entry, in a checkpoint with these signatures: of the newest key, where
// there are none.
func (l *testLog) bundle(tb rapid.TB, c *testChainLog, sequence uint64, signers ...note.Signer) *Bundle {
	tb.Helper()
	if len(signers) == 0 {
		signers = []note.Signer{l.key()}
	}
	index := l.Size - 1
	at := l.epochs[index][c.lane]
	p := proof.TLogProof{Index: index, Checkpoint: l.checkpoint(tb, l.Size, signers...)}
	for _, h := range l.inclusion(tb, index, l.Size) {
		p.Hashes = append(p.Hashes, h)
	}
	b := &Bundle{
		BundleLeaf: c.withPath(tb, sequence, at.size), Size: at.size, Root: at.root, Map: at.proof,
		Epoch: string(l.entries[index]), LogProof: string(p.Marshal()),
	}
	for _, change := range l.changes {
		b.Keys = append(b.Keys, BundleKey{string(l.entries[change]), l.inclusion(tb, change, l.Size)})
	}
	return b
}

func (c *testChainLog) withPath(tb rapid.TB, sequence, size uint64) BundleLeaf {
	tb.Helper()
	leaf := c.leaves[sequence]
	if leaf.Seed != nil { // whoever spoils it spoils no other bundle
		seed := *leaf.Seed
		leaf.Seed = &seed
	}
	leaf.Path = c.inclusion(tb, sequence, size)
	return leaf
}

// redact withholds fields of a leaf, as a reader does after a redaction.
func redact(tb rapid.TB, l *BundleLeaf, paths ...string) {
	tb.Helper()
	fields, err := Fields(nil, []byte(l.Body))
	if err != nil {
		tb.Fatal(err)
	}
	l.Disclosure = Disclose(*l.Seed, fields, paths)
	l.Body, l.Seed = "", nil
}
