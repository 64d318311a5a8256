package ledger

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	formatsnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
)

// What a log and its witnesses say to each other: C2SP tlog-witness and tlog-cosignature.

const (
	// maxProofLines is the most hashes that the tlog-witness specification lets a client send.
	maxProofLines = 63
	// proofLineBytes is a hash in base64 and the end of its line.
	proofLineBytes = 44 + 1
	// maxOldLineBytes is "old ", 20 digits and the end of the line.
	maxOldLineBytes = 4 + 20 + 1
	// MaxAddCheckpointBytes bounds the body of a request to a witness.
	MaxAddCheckpointBytes = maxOldLineBytes + maxProofLines*proofLineBytes + 1 + maxCheckpointBytes
)

// Why a witness refuses a request before it looks at what it knows of the log.
var (
	// ErrRequest is wrapped by the errors of requests that are not in their form.
	ErrRequest = errors.New("invalid request to a witness")
	// ErrUnknownLog means that a trust file names no key of the checkpoint's origin.
	ErrUnknownLog = errors.New("unknown log")
	// ErrNotSigned means that no key that a trust file names has signed the checkpoint.
	ErrNotSigned = errors.New("no believed key has signed the checkpoint")
	// ErrCosignature is wrapped by the errors of what a witness answered.
	ErrCosignature = errors.New("invalid cosignature")
)

// An AddCheckpoint asks a witness to cosign: the body of add-checkpoint in C2SP tlog-witness.
type AddCheckpoint struct {
	// OldSize is of the checkpoint that the witness cosigned last, 0 for none.
	OldSize uint64
	// Proof is the consistency proof from there to Checkpoint, at most 63 hashes.
	Proof []Hash
	// Checkpoint is signed by its log.
	Checkpoint []byte
}

// Encode returns the body. Its errors wrap ErrRequest.
func (a *AddCheckpoint) Encode() ([]byte, error) {
	if len(a.Proof) > maxProofLines {
		return nil, fmt.Errorf("%w: a proof of %d hashes, at most %d are sent", ErrRequest, len(a.Proof), maxProofLines)
	}
	b := fmt.Appendf(nil, "old %d\n", a.OldSize)
	for _, h := range a.Proof {
		b = append(base64.StdEncoding.AppendEncode(b, h[:]), '\n')
	}
	b = append(b, '\n')
	return append(b, a.Checkpoint...), nil
}

// ParseAddCheckpoint reads what Encode writes and nothing else. It looks at no signature, and into no checkpoint. Its errors
// wrap ErrRequest.
func ParseAddCheckpoint(body []byte) (*AddCheckpoint, error) {
	if len(body) > MaxAddCheckpointBytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are read", ErrRequest, len(body), MaxAddCheckpointBytes)
	}
	head, checkpoint, ok := bytes.Cut(body, []byte("\n\n"))
	if !ok {
		return nil, fmt.Errorf("%w: want an old size line, the lines of a proof, an empty line and a checkpoint", ErrRequest)
	}
	old, proof, _ := strings.Cut(string(head), "\n")
	digits, ok := strings.CutPrefix(old, "old ")
	size, err := strconv.ParseUint(digits, 10, 64)
	if !ok || err != nil || strconv.FormatUint(size, 10) != digits {
		return nil, fmt.Errorf("%w: first line %.40q: want 'old' and a size", ErrRequest, old)
	}
	a := &AddCheckpoint{OldSize: size, Checkpoint: checkpoint}
	if len(head) == len(old) {
		return a, nil
	}
	for line := range strings.SplitSeq(proof, "\n") {
		h, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(h) != len(Hash{}) || base64.StdEncoding.EncodeToString(h) != line {
			return nil, fmt.Errorf("%w: line %.80q of the proof: want 32 bytes in base64", ErrRequest, line)
		}
		if len(a.Proof) == maxProofLines {
			return nil, fmt.Errorf("%w: more than %d hashes in the proof", ErrRequest, maxProofLines)
		}
		a.Proof = append(a.Proof, Hash(h))
	}
	return a, nil
}

// OpenLog checks that a believed key of the checkpoint's log has signed it, and returns the checkpoint and the note without
// signatures that are nobody's here. Whether witnesses have signed is not asked, nor in which range a key
// signs: a witness sees no key changes. Its errors wrap ErrCheckpoint, ErrUnknownLog or ErrNotSigned.
func (t *Trust) OpenLog(signed []byte) (*Checkpoint, *note.Note, error) {
	c, err := ParseCheckpoint(signed)
	if err != nil {
		return nil, nil, err
	}
	keys := t.logsOf(c.Origin)
	if len(keys) == 0 {
		return nil, nil, fmt.Errorf("%w: %.200q", ErrUnknownLog, c.Origin)
	}
	verifiers := make([]note.Verifier, len(keys))
	for i, k := range keys {
		verifiers[i] = k
	}
	n, err := note.Open(signed, note.VerifierList(verifiers...))
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrNotSigned, err)
	}
	n.UnverifiedSigs = nil
	return c, n, nil
}

// Origins returns the logs that the trust file names, each once, in its order.
func (t *Trust) Origins() []string {
	var origins []string
	seen := map[string]bool{}
	for _, k := range t.logs {
		if !seen[k.Name()] {
			seen[k.Name()] = true
			origins = append(origins, k.Name())
		}
	}
	return origins
}

// A Witness is one that a trust file names.
type Witness struct {
	note.Verifier

	// Label is its name in the trust file, which means nothing outside of it.
	Label string
	// URL is where it takes checkpoints (the submission prefix of C2SP tlog-witness); "" where the file does not say.
	URL string
}

// Witnesses returns those that the trust file names, in its order.
func (t *Trust) Witnesses() []Witness { return t.witnesses }

// Cosigned returns the witnesses whose cosignatures on the note are valid, by NAME+HASH, and whether they meet the quorum.
// Who else has signed it is not asked. A cosignature without a time, or from after now plus five minutes, does not count.
func (t *Trust) Cosigned(signed []byte, now time.Time) (witnesses []string, quorum bool) {
	verifiers := make([]note.Verifier, len(t.witnesses))
	for i, w := range t.witnesses {
		verifiers[i] = w
	}
	n, err := note.Open(signed, note.VerifierList(verifiers...))
	if err != nil {
		return nil, t.quorum.met(nil)
	}
	witnesses, _, quorum = t.count(n.Sigs, now)
	return witnesses, quorum
}

// count looks for the witnesses among signatures that are valid. seen is the latest time since when enough of them have cosigned; zero where they are not enough,
// or none has to.
func (t *Trust) count(sigs []note.Signature, now time.Time) (witnesses []string, seen time.Time, quorum bool) {
	type cosignature struct {
		witness note.Verifier
		at      time.Time
	}
	var all []cosignature
	cosigned := map[note.Verifier]bool{}
	for _, sig := range sigs {
		for _, w := range t.witnesses {
			if sig.Name == w.Name() && sig.Hash == w.KeyHash() && !cosigned[w.Verifier] && madeBefore(sig, now.Add(MaxClockSkew)) {
				at, _ := formatsnote.CoSigV1Timestamp(sig) // madeBefore has read it
				all = append(all, cosignature{w.Verifier, at})
				cosigned[w.Verifier] = true
				witnesses = append(witnesses, keyID(w))
			}
		}
	}
	if quorum = t.quorum.met(cosigned); !quorum || !t.Witnessed() {
		return witnesses, time.Time{}, quorum
	}
	// The newest first, until they are enough.
	slices.SortStableFunc(all, func(a, b cosignature) int { return b.at.Compare(a.at) })
	clear(cosigned)
	for _, c := range all {
		cosigned[c.witness] = true
		if seen = c.at; t.quorum.met(cosigned) {
			break
		}
	}
	return witnesses, seen, quorum
}

// Cosign adds a witness's signature to a note whose signatures have been verified, and returns the signed note and the line
// that was added.
func Cosign(n *note.Note, signer note.Signer) (signed, line []byte, err error) {
	sig, err := signer.Sign([]byte(n.Text))
	if err != nil {
		return nil, nil, fmt.Errorf("cosigning: %w", err)
	}
	b := append(binary.BigEndian.AppendUint32(nil, signer.KeyHash()), sig...)
	line = fmt.Appendf(nil, "— %s %s\n", signer.Name(), base64.StdEncoding.EncodeToString(b))
	signed, err = note.Sign(n)
	if err != nil {
		return nil, nil, fmt.Errorf("cosigning: %w", err)
	}
	signed = append(signed, line...)
	if _, err := ParseCheckpoint(signed); err != nil {
		return nil, nil, fmt.Errorf("cosigning: %w", err)
	}
	return signed, line, nil
}

// Cosignature finds a witness's line in what it answered to a checkpoint: lines of signatures, of which those of other keys
// do not count. The signature must be valid, made at most five minutes from now, and not without a time. Its errors wrap
// ErrCosignature.
func (w Witness) Cosignature(signed, answer []byte, now time.Time) (line []byte, err error) {
	if len(answer) > maxCheckpointBytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are read", ErrCosignature, len(answer), maxCheckpointBytes)
	}
	text, _, ok := bytes.Cut(signed, []byte("\n\n"))
	if !ok {
		return nil, fmt.Errorf("%w: the checkpoint has no signatures", ErrCosignature)
	}
	// Only what the witness says now is looked at, not what the note has of it already.
	n, err := note.Open(bytes.Join([][]byte{text, answer}, []byte("\n\n")), note.VerifierList(w))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCosignature, err)
	}
	sig := n.Sigs[0] // note.Open leaves one of each key
	at, err := formatsnote.CoSigV1Timestamp(sig)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrCosignature, err)
	case at.Unix() <= 0:
		return nil, fmt.Errorf("%w: it has no time", ErrCosignature)
	case at.After(now.Add(MaxClockSkew)):
		return nil, fmt.Errorf("%w: it is from %s, more than %s ahead", ErrCosignature, at.UTC().Format(time.RFC3339), MaxClockSkew)
	}
	return fmt.Appendf(nil, "— %s %s\n", sig.Name, sig.Base64), nil
}
