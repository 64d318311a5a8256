package ledger

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"
)

// The root log is the one Merkle tree (RFC 6962) that a whole installation is checked by: docs/design/ledger-spec.md, Root
// log. Its entries are lines of canonical JSON.

// ErrEntry is wrapped by the errors of entries that do not belong into a root log.
var ErrEntry = errors.New("invalid entry of the root log")

// Kinds of entries.
const (
	entryEpoch = "epoch"
	entryKey   = "key"
)

// timeLayout is RFC 3339 in UTC with six digits of a second.
const timeLayout = "2006-01-02T15:04:05.000000Z"

// MaxIndex is the largest index of an entry: larger integers are not exact in JSON.
const MaxIndex = 1<<53 - 1

// An Entry is an entry of the root log.
type Entry struct {
	// Index is the entry's place in the root log, at most MaxIndex.
	Index uint64
	// Previous is EntryHash of the entry before it; zero at index 0.
	Previous Hash
	// Time is when it was made, in UTC and microseconds.
	Time time.Time
	// Exactly one of them is set.
	Epoch *Epoch
	Key   *KeyChange
}

// An Epoch states all chains at once.
type Epoch struct {
	// MapRoot is the root of the Map over all chains.
	MapRoot Hash
	// Chains is the number of chains in the map, at most MaxIndex.
	Chains uint64
	// Positions holds, for each partition of the ledger topic, the offset that the next leaf after the epoch has or is
	// beyond: the epoch covers exactly what is before them. At most 65,536.
	Positions []uint64
}

// A KeyChange states the key that signs every checkpoint that covers it, until the next KeyChange. The first entry of a root
// log is one.
type KeyChange struct {
	// VerifierKey is the vkey of the C2SP signed-note specification, of an Ed25519 key whose name is the log's origin.
	VerifierKey string
	// Signature is the note (C2SP signed-note) in which the key before it, and in the first entry the key itself, states the
	// change: KeyChangeText signed.
	Signature string
}

// KeyChangeText returns what the note of a KeyChange says.
func KeyChangeText(origin string, index uint64, verifierKey string) string {
	return fmt.Sprintf("immutable/key/1\n%s\n%d\n%s\n", origin, index, verifierKey)
}

// EntryHash is the leaf hash of an entry: RFC 6962, section 2.1.
func EntryHash(entry []byte) Hash {
	h := sha256.New()
	h.Write([]byte{0x00})
	h.Write(entry)
	return Hash(h.Sum(nil))
}

// entryJSON has the members in their canonical order.
type entryJSON struct {
	Chains    *uint64 `json:"chains,omitzero"`
	Index     uint64  `json:"index"`
	Key       string  `json:"key,omitempty"`
	MapRoot   *Hash   `json:"map_root,omitzero"`
	Positions *string `json:"positions,omitzero"`
	Previous  Hash    `json:"previous"`
	Signature string  `json:"signature,omitempty"`
	Time      string  `json:"time"`
	Type      string  `json:"type"`
}

// Encode returns the entry's canonical JSON.
func (e *Entry) Encode() ([]byte, error) {
	j := entryJSON{Index: e.Index, Previous: e.Previous, Time: e.Time.UTC().Format(timeLayout)}
	switch {
	case e.Epoch != nil && e.Key == nil:
		positions := make([]byte, 0, 8*len(e.Epoch.Positions))
		for _, p := range e.Epoch.Positions {
			positions = binary.BigEndian.AppendUint64(positions, p)
		}
		text := hex.EncodeToString(positions)
		j.Type, j.Chains, j.MapRoot, j.Positions = entryEpoch, &e.Epoch.Chains, &e.Epoch.MapRoot, &text
	case e.Key != nil && e.Epoch == nil:
		j.Type, j.Key, j.Signature = entryKey, e.Key.VerifierKey, e.Key.Signature
	default:
		return nil, fmt.Errorf("%w: want an epoch or a key", ErrEntry)
	}
	if e.Index > MaxIndex || e.Epoch != nil && e.Epoch.Chains > MaxIndex {
		return nil, fmt.Errorf("%w: a number is larger than %d", ErrEntry, uint64(MaxIndex))
	}
	b, err := json.Marshal(&j)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEntry, err)
	}
	return b, nil
}

// ParseEntry reads what Encode writes and nothing else. Its errors wrap ErrEntry.
func ParseEntry(text []byte) (*Entry, error) {
	var j entryJSON
	if err := json.Unmarshal(text, &j); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEntry, err)
	}
	at, err := time.Parse(timeLayout, j.Time)
	if err != nil {
		return nil, fmt.Errorf("%w: time: %w", ErrEntry, err)
	}
	e := &Entry{Index: j.Index, Previous: j.Previous, Time: at}
	switch {
	case j.Type == entryEpoch && j.Chains != nil && j.MapRoot != nil && j.Positions != nil:
		positions, err := hex.DecodeString(*j.Positions)
		if err != nil || len(positions)%8 != 0 || len(positions) > 8<<16 {
			return nil, fmt.Errorf("%w: positions are not 16 hexadecimal digits for each partition", ErrEntry)
		}
		e.Epoch = &Epoch{MapRoot: *j.MapRoot, Chains: *j.Chains}
		for ; len(positions) > 0; positions = positions[8:] {
			e.Epoch.Positions = append(e.Epoch.Positions, binary.BigEndian.Uint64(positions))
		}
	case j.Type == entryKey:
		e.Key = &KeyChange{VerifierKey: j.Key, Signature: j.Signature}
	default:
		return nil, fmt.Errorf("%w: type %.40q, or a member of it is missing", ErrEntry, j.Type)
	}
	encoded, err := e.Encode()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(encoded, text) {
		return nil, fmt.Errorf("%w: it is not in canonical form", ErrEntry)
	}
	return e, nil
}
