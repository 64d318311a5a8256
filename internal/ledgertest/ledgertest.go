// Package ledgertest makes whole ledgers for tests, deterministically: chains of events, epochs, key changes and signed checkpoints, as the
// processor and the notary make them. A ledger can be written into ClickHouse's tables, served over HTTP as the API serves it, and rewritten with
// its own keys, as its operator could.
package ledgertest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/note"

	"getimmutable.dev/immutable/ledger"
)

// Origin of every log but those of NewLog.
const Origin = "example.com/ledger"

// Start is when the first entry is made, and the first event recorded.
var Start = time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC) //nolint:gochecknoglobals // a constant, but for its type

// Partitions of the ledger topic.
const Partitions = 4

// Key is an Ed25519 key of a log or, where At is set, of a witness.
type Key struct {
	name    string
	private ed25519.PrivateKey
	// At is the time of a witness's cosignatures.
	At time.Time
	// Of, where set, is a key whose name and hash the signatures claim.
	Of *Key
	// Instead, where set, is what is signed in place of a text.
	Instead func(text []byte) []byte
}

// NewKey returns the same key for the same name and seed.
func NewKey(name string, seed byte) Key {
	return Key{name: name, private: ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))}
}

// NewWitness returns a key that cosigns.
func NewWitness(name string, seed byte) Key {
	k := NewKey(name, seed)
	k.At = Start
	return k
}

func (k Key) material() []byte {
	kind := byte(1) // Ed25519 of C2SP signed-note
	if !k.At.IsZero() {
		kind = 4 // cosignature/v1 of C2SP tlog-cosignature
	}
	return append([]byte{kind}, k.private.Public().(ed25519.PublicKey)...)
}

// Name implements note.Signer.
func (k Key) Name() string { return k.name }

// KeyHash implements note.Signer.
func (k Key) KeyHash() uint32 {
	if k.Of != nil {
		return k.Of.KeyHash()
	}
	h := sha256.Sum256(slices.Concat([]byte(k.name), []byte("\n"), k.material()))
	return binary.BigEndian.Uint32(h[:])
}

// Sign implements note.Signer.
func (k Key) Sign(text []byte) ([]byte, error) {
	if k.Instead != nil {
		text = k.Instead(text)
	}
	if k.At.IsZero() {
		return ed25519.Sign(k.private, text), nil
	}
	at := uint64(k.At.Unix())
	signature := ed25519.Sign(k.private, fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", at, text))
	return append(binary.BigEndian.AppendUint64(nil, at), signature...), nil
}

// Verifier returns the line that a trust file has for the key.
func (k Key) Verifier() string {
	return fmt.Sprintf("%s+%08x+%s", k.name, k.KeyHash(), base64.StdEncoding.EncodeToString(k.material()))
}

// Leaf is a leaf with its content.
type Leaf struct {
	ledger.Leaf

	Hash ledger.Hash
	Node []ledger.Hash
	Body []byte
	Seed [16]byte
	// Disclosure is set once fields were erased; Body is what is left then.
	Disclosure []ledger.Disclosure
	// LedgerOffset is its place in the ledger topic.
	LedgerOffset uint64
}

// Chain is one chain.
type Chain struct {
	ledger.ChainIdentity

	ID        ledger.ChainID
	Partition uint16
	Leaves    []Leaf
}

// step is what an entry of the root log was made of.
type step struct {
	key   *Key
	sizes []uint64 // of each chain
	at    time.Time
}

// stated is what an epoch says of a chain.
type stated struct {
	size uint64
	root ledger.Hash
}

// Ledger is an installation's whole ledger. Change what is exported, then call Rebuild.
type Ledger struct {
	Chains []*Chain
	// Entries of the root log, and Nodes beside each.
	Entries [][]byte
	Nodes   [][]ledger.Hash
	// Checkpoints by size.
	Checkpoints map[uint64][]byte
	// Signers of checkpoints instead of the current key, and Cosigners with it.
	Signers, Cosigners []Key
	// Alter, where set, changes an entry of the root log before it is entered and signed.
	Alter func(*ledger.Entry)

	origin string
	waited time.Duration
	head   ledger.Head
	steps  []step
	keys   []Key
	maps   map[uint64]*ledger.Map
	stated map[uint64][]stated // by epoch, of each chain
	levels [][]ledger.Hash
	next   [Partitions]struct{ ledger, input uint64 }
	events int
}

// New returns a ledger with one key, that of seed 1.
func New() *Ledger { return NewOf(NewKey(Origin, 1)) }

// NewOf returns a ledger with one key, whose name is the log's origin.
func NewOf(key Key) *Ledger {
	l := &Ledger{origin: key.name}
	l.reset()
	l.Rotate(key)
	return l
}

func (l *Ledger) reset() {
	l.Entries, l.Nodes, l.Checkpoints, l.head = nil, nil, map[uint64][]byte{}, ledger.Head{}
	l.keys, l.maps, l.stated, l.levels = nil, map[uint64]*ledger.Map{}, map[uint64][]stated{}, nil
}

// Workspace of a number.
func Workspace(n byte) [16]byte { return [16]byte{0xaa, n} }

// Chain adds a chain; its genesis comes with its first event.
func (l *Ledger) Chain(workspace, incarnation byte, lane, lanes uint32) *Chain {
	c := &Chain{ChainIdentity: ledger.ChainIdentity{
		Workspace: Workspace(workspace), Incarnation: [16]byte{0xbb, incarnation}, Lane: lane, Lanes: lanes,
	}}
	c.ID, c.Partition = c.Chain(), uint16((uint32(workspace)+lane)%Partitions)
	l.Chains = append(l.Chains, c)
	return c
}

// Body returns the canonical body of event number n: some 450 bytes in 16 fields.
func Body(n int) []byte {
	return fmt.Appendf(nil, `{"action":"config.updated","action_category":"config","actor_id":"usr_%d","actor_name":"Ada Lovelace","actor_type":"user",`+
		`"flags":["secret:/metadata/new_value"],"ip_address":"10.0.%d.%d","metadata":{"nested":{"list":[1,true,"x"]},"new_value":"%d","old_value":"%04d","reason":"scheduled maintenance"},`+
		`"occurred_at":"2026-11-24T09:59:00.000000Z","resource":"service","resource_id":"svc_%d","session_id":"ses_%d",`+
		`"targets":[{"id":"t%d","type":"service"},{"type":"team"}],"tenant_id":"tnt_1","user_agent":"curl/8.5.0"}`,
		n%97, n/256%256, n%256, n+1, n%10000, n%13, n%7, n%5)
}

// Events seals n events of different content in a chain.
func (l *Ledger) Events(c *Chain, n int) {
	first := len(c.Leaves)
	for range n {
		l.put(c, ledger.KindEvent, Body(l.events))
	}
	c.Reseal(first)
}

// Seal puts an event with this canonical body on a chain, after its genesis where there is none yet.
func (l *Ledger) Seal(c *Chain, kind ledger.Kind, body []byte) *Leaf {
	first := len(c.Leaves)
	l.put(c, kind, body)
	c.Reseal(first)
	return &c.Leaves[len(c.Leaves)-1]
}

// put is Seal without the hashes.
func (l *Ledger) put(c *Chain, kind ledger.Kind, body []byte) {
	at := &l.next[c.Partition]
	recorded := Start.Add(time.Duration(l.events) * time.Millisecond).UnixMicro()
	if len(c.Leaves) == 0 {
		genesis := ledger.Genesis(c.Workspace, c.Incarnation, c.Lane, c.Lanes, recorded, 0)
		c.Leaves = append(c.Leaves, Leaf{Leaf: genesis, LedgerOffset: at.ledger})
		at.ledger++
	}
	drawn := sha256.Sum256(fmt.Appendf(nil, "event %d", l.events))
	leaf := Leaf{
		Leaf: ledger.Leaf{
			Kind: kind, ID: uuid.NewSHA1(uuid.UUID(c.ID), drawn[:]), RecordedAt: recorded, Partition: c.Partition, Offset: at.input,
		},
		Body: body, Seed: [16]byte(drawn[:16]), LedgerOffset: at.ledger,
	}
	l.events++
	at.ledger++
	at.input += 1 + uint64(l.events%3)/2 // a transaction's marker now and then
	c.Leaves = append(c.Leaves, leaf)
}

// Reseal makes the hashes of the chain follow from its contents, from a leaf on.
func (c *Chain) Reseal(from int) {
	head := ledger.Head{Chain: c.ID}
	for i := range c.Leaves {
		leaf := &c.Leaves[i]
		if i < from && i > 0 {
			head.AppendHash(leaf.Hash)
			continue
		}
		if leaf.Kind != ledger.KindGenesis && leaf.Disclosure == nil {
			root, n, err := ledger.RecomputeBodyRoot(leaf.Seed, leaf.Body)
			if err != nil {
				panic(fmt.Sprintf("ledgertest: %v in %s", err, leaf.Body))
			}
			leaf.BodyRoot, leaf.FieldCount = root, uint16(n)
		}
		leaf.Hash, leaf.Node = head.Append(&leaf.Leaf)
	}
}

// Redact seals a redaction of these paths of an event of the chain, and erases them.
func (l *Ledger) Redact(c *Chain, sequence int, paths ...string) *Leaf {
	text, err := json.Marshal(paths)
	if err != nil {
		panic(err)
	}
	r := l.Seal(c, ledger.KindRedaction, fmt.Appendf(nil, `{"action":"event.redacted","actor_id":"usr_1","metadata":{"event_id":%q,"paths":%s},`+
		`"occurred_at":"2026-11-24T09:59:00.000000Z"}`, uuid.UUID(c.Leaves[sequence].ID), text))
	c.Leaves[sequence].Erase(paths...)
	return r
}

// Erase takes the values of these paths out of a leaf. Every hash stays.
func (leaf *Leaf) Erase(paths ...string) {
	fields, err := ledger.Fields(nil, leaf.Body)
	if err != nil {
		panic(err)
	}
	leaf.Disclosure = ledger.Disclose(leaf.Seed, fields, paths)
	var body map[string]json.RawMessage
	if err := json.Unmarshal(leaf.Body, &body); err != nil {
		panic(err)
	}
	var metadata map[string]json.RawMessage
	if body["metadata"] != nil {
		if err := json.Unmarshal(body["metadata"], &metadata); err != nil {
			panic(err)
		}
	}
	for _, path := range paths {
		if name, ok := strings.CutPrefix(path, "/metadata/"); ok {
			delete(metadata, name)
		} else {
			delete(body, path[1:])
		}
	}
	delete(body, "metadata")
	if len(metadata) > 0 {
		body["metadata"], _ = json.Marshal(metadata)
	}
	leaf.Body, _ = json.Marshal(body) // its names are in the order of bytes, and nothing in it is escaped
	leaf.Seed = [16]byte{}
}

// Rotate states the next key.
func (l *Ledger) Rotate(key Key) { l.step(step{key: &key, at: l.clock()}) }

// Epoch enters all chains as they are, and signs a checkpoint.
func (l *Ledger) Epoch() {
	s := step{at: l.clock()}
	for i := range l.next {
		l.next[i].ledger++ // the marker of the transaction
	}
	for _, c := range l.Chains {
		s.sizes = append(s.sizes, uint64(len(c.Leaves)))
	}
	l.step(s)
}

// clock is ten seconds later for each entry, and not before the last event.
func (l *Ledger) clock() time.Time {
	return Start.Add(time.Duration(len(l.steps)) * 10 * time.Second).Add(time.Duration(l.events) * time.Millisecond).Add(l.waited)
}

// Wait lets time pass without an entry.
func (l *Ledger) Wait(d time.Duration) { l.waited += d }

// Now is when the newest entry was made.
func (l *Ledger) Now() time.Time { return l.steps[len(l.steps)-1].at }

// Key is the current key.
func (l *Ledger) Key() Key { return l.keys[len(l.keys)-1] }

func (l *Ledger) step(s step) {
	l.steps = append(l.steps, s)
	l.enter(s)
}

// Rebuild makes the root log anew from the chains as they are, with the same keys at the same times.
func (l *Ledger) Rebuild() {
	l.reset()
	for _, s := range l.steps {
		l.enter(s)
	}
}

func (l *Ledger) enter(s step) {
	e := &ledger.Entry{Index: l.head.Size, Previous: l.head.LastLeafHash, Time: s.at}
	if s.key != nil {
		by := *s.key
		if len(l.keys) > 0 {
			by = l.Key()
		}
		signed, err := note.Sign(&note.Note{Text: ledger.KeyChangeText(l.origin, e.Index, s.key.Verifier())}, by)
		if err != nil {
			panic(err)
		}
		e.Key = &ledger.KeyChange{VerifierKey: s.key.Verifier(), Signature: string(signed)}
		l.keys = append(l.keys, *s.key)
	} else {
		e.Epoch = l.epoch(s)
	}
	if l.Alter != nil {
		l.Alter(e)
	}
	text, err := e.Encode()
	if err != nil {
		panic(err)
	}
	hash := ledger.EntryHash(text)
	node := l.head.AppendHash(hash)
	l.Entries, l.Nodes = append(l.Entries, text), append(l.Nodes, node)
	for level, h := range append([]ledger.Hash{hash}, node...) {
		if len(l.levels) == level {
			l.levels = append(l.levels, nil)
		}
		l.levels[level] = append(l.levels[level], h)
	}
	if e.Epoch != nil {
		l.Checkpoints[l.head.Size] = l.Sign()
	}
}

func (l *Ledger) epoch(s step) *ledger.Epoch {
	m := new(ledger.Map)
	positions := make([]uint64, Partitions)
	var all []stated
	for i, size := range s.sizes {
		c := l.Chains[i]
		size = min(size, uint64(len(c.Leaves)))
		all = append(all, stated{size, c.Root(size)})
		if size == 0 {
			continue
		}
		m.Set(c.ID, size, c.Root(size))
		p := &positions[c.Partition]
		*p = max(*p, c.Leaves[size-1].LedgerOffset+2)
	}
	l.maps[l.head.Size], l.stated[l.head.Size] = m, all
	return &ledger.Epoch{MapRoot: m.Root(), Chains: uint64(m.Len()), Positions: positions}
}

// Root of the chain at a size.
func (c *Chain) Root(size uint64) ledger.Hash {
	var head ledger.Head
	for i := range c.Leaves[:size] {
		head.AppendHash(c.Leaves[i].Hash)
	}
	return head.Root()
}

// Sign signs a checkpoint of the root log as it is.
func (l *Ledger) Sign() []byte {
	signers := slices.Clone(l.Signers)
	if len(signers) == 0 {
		signers = []Key{l.Key()}
	}
	var all []note.Signer
	for _, k := range append(signers, l.Cosigners...) {
		all = append(all, k)
	}
	signed, err := ledger.SignCheckpoint(&ledger.Checkpoint{Origin: l.origin, Size: l.head.Size, Root: l.head.Root()}, all...)
	if err != nil {
		panic(err)
	}
	return signed
}

// Newest is the newest checkpoint.
func (l *Ledger) Newest() []byte {
	newest := uint64(0)
	for size := range l.Checkpoints {
		newest = max(newest, size)
	}
	return l.Checkpoints[newest]
}
