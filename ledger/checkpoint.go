package ledger

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/transparency-dev/formats/proof"
	"golang.org/x/mod/sumdb/note"
)

// ErrCheckpoint is wrapped by the errors of checkpoints that cannot be read.
var ErrCheckpoint = errors.New("invalid checkpoint")

const (
	// maxCheckpointBytes is above what 16 signatures of any kind need.
	maxCheckpointBytes = 128 << 10
	// maxSignatures is what the signed-note specification asks verifiers to accept.
	maxSignatures = 16
)

// A Checkpoint states a root log: C2SP tlog-checkpoint, without extension lines.
type Checkpoint struct {
	// Origin names the log.
	Origin string
	// Size is the number of its entries.
	Size uint64
	// Root is their RFC 6962 tree hash.
	Root Hash
}

// Text returns the checkpoint's three lines: what is signed.
func (c *Checkpoint) Text() string {
	return fmt.Sprintf("%s\n%d\n%s\n", c.Origin, c.Size, base64.StdEncoding.EncodeToString(c.Root[:]))
}

// ParseCheckpoint reads a signed checkpoint without looking at its signatures. It refuses extension lines, any other form
// of the same numbers, more than 16 signatures and whatever is not a signed note. Its errors wrap ErrCheckpoint.
func ParseCheckpoint(signed []byte) (*Checkpoint, error) {
	if len(signed) > maxCheckpointBytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are read", ErrCheckpoint, len(signed), maxCheckpointBytes)
	}
	// Without a known key, the error has the note where all else is well.
	_, err := note.Open(signed, note.VerifierList())
	var unverified *note.UnverifiedNoteError
	if !errors.As(err, &unverified) {
		return nil, fmt.Errorf("%w: %w", ErrCheckpoint, err)
	}
	if n := len(unverified.Note.UnverifiedSigs); n > maxSignatures {
		return nil, fmt.Errorf("%w: %d signatures, at most %d are read", ErrCheckpoint, n, maxSignatures)
	}
	lines := strings.Split(unverified.Note.Text, "\n")
	if len(lines) != 4 || lines[3] != "" {
		return nil, fmt.Errorf("%w: want three lines: origin, size, root; there are %d", ErrCheckpoint, len(lines)-1)
	}
	size, err := strconv.ParseUint(lines[1], 10, 64)
	if err != nil {
		return nil, fmt.Errorf("%w: size: %w", ErrCheckpoint, err)
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(root) != len(Hash{}) {
		return nil, fmt.Errorf("%w: root %.80q: want 32 bytes in base64", ErrCheckpoint, lines[2])
	}
	c := &Checkpoint{Origin: lines[0], Size: size, Root: Hash(root)}
	if c.Origin == "" || c.Text() != unverified.Note.Text {
		return nil, fmt.Errorf("%w: its lines are not in their only form", ErrCheckpoint)
	}
	return c, nil
}

// SignCheckpoint returns the checkpoint as a note signed by all signers.
func SignCheckpoint(c *Checkpoint, signers ...note.Signer) ([]byte, error) {
	signed, err := note.Sign(&note.Note{Text: c.Text()}, signers...)
	if err != nil {
		return nil, fmt.Errorf("signing checkpoint of size %d: %w", c.Size, err)
	}
	if _, err := ParseCheckpoint(signed); err != nil {
		return nil, err
	}
	return signed, nil
}

// ParseLogProof reads a proof that an entry is in a signed root log: C2SP tlog-proof, without extra data. It refuses any other
// form of the same proof. Its errors wrap ErrProof.
func ParseLogProof(text []byte) (*proof.TLogProof, error) {
	p := new(proof.TLogProof)
	if err := p.Unmarshal(text); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProof, err)
	}
	if p.ExtraData != nil || !bytes.Equal(p.Marshal(), text) {
		return nil, fmt.Errorf("%w: the lines of the log proof are not in their only form", ErrProof)
	}
	return p, nil
}
