package ledger

import (
	"encoding/base64"
	"fmt"
	"strings"

	formatsnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
)

// logKey verifies what one Ed25519 key signs.
type logKey struct {
	note.Verifier
	public string // the key itself: name and hash can be had by another key
}

func newLogKey(vkey string) (*logKey, error) {
	if strings.ContainsAny(vkey, " \t\r\n") {
		return nil, fmt.Errorf("verifier key %.200q: it holds white space", vkey)
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return nil, fmt.Errorf("verifier key %.200q: %w: want NAME+HASH+KEY of an Ed25519 key", vkey, err)
	}
	return &logKey{v, publicKey(vkey)}, nil
}

// publicKey returns the key in a vkey that has been parsed, without its type.
func publicKey(vkey string) string {
	parts := strings.SplitN(vkey, "+", 3) // base64 has a plus too
	key, err := base64.StdEncoding.DecodeString(parts[len(parts)-1])
	if err != nil || len(key) == 0 {
		return ""
	}
	return string(key[1:])
}

// NewWitnessVerifier returns the verifier of a witness's vkey: C2SP tlog-cosignature, types 0x04 and 0x06.
func NewWitnessVerifier(vkey string) (note.Verifier, error) {
	v, err := formatsnote.NewVerifierForCosignatureV1(vkey)
	if err != nil {
		return nil, fmt.Errorf("witness key %.200q: %w: want NAME+HASH+KEY of a cosignature", vkey, err)
	}
	// The library takes a log's key for a witness's, and any hash.
	if !strings.HasPrefix(vkey, keyID(v)+"+") {
		return nil, fmt.Errorf("witness key %.200q: the hash in it is not that of a cosignature key", vkey)
	}
	return v, nil
}

// keyID is what a signature line names a key by.
func keyID(v note.Verifier) string { return fmt.Sprintf("%s+%08x", v.Name(), v.KeyHash()) }

// KeyHistory is what the key changes of a root log say of who signs its checkpoints.
type KeyHistory []statedKey

type statedKey struct {
	*logKey
	index uint64
	entry *Entry
}

// Entries returns the key changes.
func (h KeyHistory) Entries() []*Entry {
	all := make([]*Entry, len(h))
	for i := range h {
		all[i] = h[i].entry
	}
	return all
}

// Append takes the next key change of the log of this origin: it must be signed by the key before it; the first must be
// entry 0 and signed by its own. Its errors wrap ErrEntry.
func (h *KeyHistory) Append(origin string, e *Entry) error {
	if e.Key == nil {
		return fmt.Errorf("%w: entry %d does not state a key", ErrEntry, e.Index)
	}
	key, err := newLogKey(e.Key.VerifierKey)
	if err != nil {
		return fmt.Errorf("%w: entry %d: %w", ErrEntry, e.Index, err)
	}
	by := key
	if n := len(*h); n > 0 {
		by = (*h)[n-1].logKey
		if e.Index <= (*h)[n-1].index {
			return fmt.Errorf("%w: key change %d comes after key change %d", ErrEntry, e.Index, (*h)[n-1].index)
		}
	} else if e.Index != 0 {
		return fmt.Errorf("%w: the first key change is entry %d, want entry 0", ErrEntry, e.Index)
	}
	if key.Name() != origin {
		return fmt.Errorf("%w: entry %d: key of %q in the log of %q", ErrEntry, e.Index, key.Name(), origin)
	}
	signed, err := note.Open([]byte(e.Key.Signature), note.VerifierList(by))
	if err != nil {
		return fmt.Errorf("%w: entry %d: the key before it has not signed the key change: %w", ErrEntry, e.Index, err)
	}
	if want := KeyChangeText(origin, e.Index, e.Key.VerifierKey); signed.Text != want {
		return fmt.Errorf("%w: entry %d: the signature is for another key change: %.300q", ErrEntry, e.Index, signed.Text)
	}
	*h = append(*h, statedKey{key, e.Index, e})
	return nil
}

// extend returns the believed keys and those that follow from them.
func (h KeyHistory) extend(believed []*logKey) []*logKey {
	all := believed
	follows := false
	for _, stated := range h {
		known := false
		for _, k := range believed {
			known = known || k.public == stated.public
		}
		if follows && !known {
			all = append(all, stated.logKey)
		}
		follows = follows || known
	}
	return all
}

// inRange says why a key may not sign a checkpoint of this size. A key change at index i is covered by sizes above i: from
// there on its key signs, up to the size that covers no more than what is before the next change. Where h is empty, nothing is known.
func (h KeyHistory) inRange(k *logKey, size uint64) error {
	var why error
	for i, stated := range h {
		if stated.public != k.public {
			continue
		}
		switch {
		case size <= stated.index:
			why = fmt.Errorf("key %s signs from size %d on, the checkpoint has size %d", keyID(k), stated.index+1, size)
		case i+1 < len(h) && size > h[i+1].index:
			why = fmt.Errorf("key %s signs up to size %d, the checkpoint has size %d", keyID(k), h[i+1].index, size)
		default:
			return nil
		}
	}
	if why == nil && len(h) > 0 {
		why = fmt.Errorf("the log has never stated key %s", keyID(k))
	}
	return why
}
