package witness

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"filippo.io/mldsa"
	formatsnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"

	"getimmutable.dev/immutable/internal/durable"
	"getimmutable.dev/immutable/ledger"
)

// An Algorithm is how a witness signs: C2SP tlog-cosignature.
type Algorithm string

// Algorithms. Every verifier of cosignatures reads Ed25519; ML-DSA-44 also holds against a quantum computer, and makes
// checkpoints 3 kB longer.
const (
	Ed25519 Algorithm = "ed25519"
	MLDSA44 Algorithm = "ml-dsa-44"
)

// Types of keys in the signed-note specification.
const (
	typeEd25519 = 0x04
	typeMLDSA44 = 0x06
)

const (
	keyPrefix = "PRIVATE+KEY+"
	// maxNameBytes is what an ML-DSA-44 cosignature can state of a name.
	maxNameBytes = 255
	maxKeyBytes  = 1 << 10 // of the file
)

// Key is what a witness signs with.
type Key struct {
	note.Signer

	// VerifierKey is the public half (the vkey of C2SP signed-note), for policies.
	VerifierKey string

	verifier note.Verifier // the same
}

// CreateKey draws a key, writes it to a new file of mode 0600 and returns it. name should be a URL without a scheme that is
// the operator's own, like witness.example.com/w1.
func CreateKey(path, name string, algorithm Algorithm) (*Key, error) {
	if name == "" || len(name) > maxNameBytes || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsSpace) ||
		strings.Contains(name, "+") {
		return nil, fmt.Errorf("creating a witness's key: name %.300q: want 1 to %d bytes without white space and plus", name, maxNameBytes)
	}
	seed := make([]byte, ed25519.SeedSize) // ML-DSA-44's is as long
	rand.Read(seed)
	var kind byte
	switch algorithm {
	case Ed25519:
		kind = typeEd25519
	case MLDSA44:
		kind = typeMLDSA44
	default:
		return nil, fmt.Errorf("creating a witness's key: algorithm %q: want %s or %s", algorithm, Ed25519, MLDSA44)
	}
	public, err := publicHalf(kind, seed)
	if err != nil {
		return nil, fmt.Errorf("creating a witness's key: %w", err)
	}
	private := append([]byte{kind}, seed...)
	text := fmt.Sprintf("%s%s+%08x+%s", keyPrefix, name, keyHash(name, public), base64.StdEncoding.EncodeToString(private))
	k, err := parseKey(text)
	if err != nil {
		return nil, err
	}
	if err := durable.Create(path, []byte(text+"\n")); err != nil {
		return nil, fmt.Errorf("creating a witness's key: %w", err)
	}
	return k, nil
}

// LoadKey reads what CreateKey wrote. A file that others can read is refused.
func LoadKey(path string) (*Key, error) {
	f, err := os.Open(path) //nolint:gosec // the operator names the file
	if err != nil {
		return nil, fmt.Errorf("opening the witness's key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("opening the witness's key: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o027 != 0 {
		return nil, fmt.Errorf("the witness's key %s has mode %04o, so that others can read it: run chmod 600 on it", path, mode)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyBytes))
	if err != nil {
		return nil, fmt.Errorf("reading the witness's key: %w", err)
	}
	k, err := parseKey(strings.TrimSuffix(string(text), "\n"))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}

// parseKey says nothing of the text in its errors: it is secret.
func parseKey(text string) (*Key, error) {
	malformed := errors.New("this is no witness's key: want one line PRIVATE+KEY+NAME+HASH+KEY, as witness-key create writes it")
	rest, ok := strings.CutPrefix(text, keyPrefix)
	parts := strings.SplitN(rest, "+", 3) // base64 has a plus too
	if !ok || len(parts) != 3 {
		return nil, malformed
	}
	private, err := base64.StdEncoding.DecodeString(parts[2])
	// A log's key, type 0x01, is refused: with one key for both, one signature could be taken for the other.
	if err != nil || len(private) != 1+ed25519.SeedSize || private[0] != typeEd25519 && private[0] != typeMLDSA44 ||
		base64.StdEncoding.EncodeToString(private) != parts[2] { // the decoder skips line breaks
		return nil, malformed
	}
	public, err := publicHalf(private[0], private[1:])
	if err != nil {
		return nil, malformed
	}
	signer, err := formatsnote.NewSignerForCosignatureV1(text)
	if err != nil {
		return nil, malformed
	}
	vkey := fmt.Sprintf("%s+%08x+%s", parts[0], keyHash(parts[0], public), base64.StdEncoding.EncodeToString(public))
	v, err := ledger.NewWitnessVerifier(vkey)
	if err != nil || v.KeyHash() != signer.KeyHash() || parts[1] != fmt.Sprintf("%08x", signer.KeyHash()) {
		return nil, errors.New("the name or the hash in the witness's key is not that of the key: the file was changed")
	}
	return &Key{Signer: signer, VerifierKey: vkey, verifier: v}, nil
}

// publicHalf returns the type and the public key.
func publicHalf(kind byte, seed []byte) ([]byte, error) {
	if kind == typeEd25519 {
		return append([]byte{kind}, ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)...), nil
	}
	key, err := mldsa.NewPrivateKey(mldsa.MLDSA44(), seed)
	if err != nil {
		return nil, err
	}
	return append([]byte{kind}, key.PublicKey().Bytes()...), nil
}

// keyHash is the key ID of the signed-note specification.
func keyHash(name string, public []byte) uint32 {
	h := sha256.Sum256(slices.Concat([]byte(name), []byte("\n"), public))
	return binary.BigEndian.Uint32(h[:])
}
