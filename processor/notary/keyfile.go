package notary

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"getimmutable.dev/immutable/internal/durable"
)

// A key file holds C2SP signed-note private keys, one a line, "PRIVATE+KEY+<origin>+<hash>+<key>", the newest last. Their
// name, which is the same for all, is the root log's origin.

const (
	// maxKeys of a key file: more than one a month for a life.
	maxKeys = 1000
	// maxKeyFileBytes is above what that many need with the longest origins.
	maxKeyFileBytes = 1 << 20
)

// keyPair is a key that signs checkpoints.
type keyPair struct {
	note.Signer
	verifier string // in text
	private  string // in text
}

// keys are those of a key file.
type keys []*keyPair

// newest is what new checkpoints are to be signed with.
func (k keys) newest() *keyPair { return k[len(k)-1] }

// find returns the key of a verifier key in text, nil where there is none.
func (k keys) find(verifier string) *keyPair {
	for _, pair := range k {
		if pair.verifier == verifier {
			return pair
		}
	}
	return nil
}

func newKeyPair(private string) (*keyPair, error) {
	signer, err := note.NewSigner(private)
	if err != nil {
		return nil, errors.New("it is not PRIVATE+KEY+<origin>+<hash>+<key> of an Ed25519 key") // the cause may quote it
	}
	parts := strings.SplitN(private, "+", 5)
	seed, err := base64.StdEncoding.DecodeString(parts[len(parts)-1])
	if err != nil || len(seed) != 1+ed25519.SeedSize {
		return nil, errors.New("it is not a key of type Ed25519")
	}
	public := ed25519.NewKeyFromSeed(seed[1:]).Public().(ed25519.PublicKey) // what it documents
	verifier, err := note.NewEd25519VerifierKey(signer.Name(), public)
	if err != nil {
		return nil, fmt.Errorf("its verifier key: %w", err)
	}
	return &keyPair{Signer: signer, verifier: verifier, private: private}, nil
}

// generateKey draws a key of this origin.
func generateKey(origin string) (*keyPair, error) {
	private, _, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return nil, fmt.Errorf("drawing a key: %w", err)
	}
	pair, err := newKeyPair(private)
	if err != nil {
		return nil, fmt.Errorf("origin %q: want a name without white space and plus signs: %w", origin, err)
	}
	return pair, nil
}

// loadKeys reads a key file. Its mode must keep out everybody but its owner and, for reading, its group, because a mounted
// secret belongs to a group.
func loadKeys(path string) (keys, error) {
	f, err := os.Open(path) //nolint:gosec // the operator names the file
	if err != nil {
		return nil, fmt.Errorf("opening the notary's key file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("opening the notary's key file: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o027 != 0 {
		return nil, fmt.Errorf("the notary's key file %s has mode %04o, so that others can read it: run chmod 600 on it", path, mode)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("reading the notary's key file: %w", err)
	}
	k, err := parseKeys(text)
	if err != nil {
		return nil, fmt.Errorf("the notary's key file %s: %w", path, err)
	}
	return k, nil
}

func parseKeys(text []byte) (keys, error) {
	if len(text) > maxKeyFileBytes {
		return nil, fmt.Errorf("it has more than %d bytes", maxKeyFileBytes)
	}
	var k keys
	number := 0
	for line := range bytes.Lines(text) {
		number++
		private := strings.TrimRight(string(line), "\r\n")
		if private == "" {
			continue
		}
		pair, err := newKeyPair(private)
		switch {
		case err != nil:
			return nil, fmt.Errorf("line %d: %w", number, err)
		case len(k) > 0 && pair.Name() != k[0].Name():
			return nil, fmt.Errorf("line %d: a key of origin %q, those before it are of %q", number, pair.Name(), k[0].Name())
		case k.find(pair.verifier) != nil:
			return nil, fmt.Errorf("line %d: the key is there already", number)
		case len(k) == maxKeys:
			return nil, fmt.Errorf("it has more than %d keys", maxKeys)
		}
		k = append(k, pair)
	}
	if len(k) == 0 {
		return nil, errors.New("it has no key: `immutable notary-key create` makes one")
	}
	return k, nil
}

// CreateKey draws the first key of a root log of this origin, writes it to a new file with mode 0600, and returns the
// verifier key. Without an origin it draws one too: localhost/immutable/ and 32 hexadecimal digits. It refuses to replace a file:
// fs.ErrExist. When it returns without an error the file is on disk.
func CreateKey(path, origin string) (verifier string, err error) {
	if origin == "" {
		var name [16]byte
		_, _ = rand.Read(name[:]) // never fails
		origin = "localhost/immutable/" + hex.EncodeToString(name[:])
	}
	pair, err := generateKey(origin)
	if err != nil {
		return "", err
	}
	if err := durable.Create(path, []byte(pair.private+"\n")); err != nil {
		return "", fmt.Errorf("creating the notary's key file: %w", err)
	}
	return pair.verifier, nil
}

// VerifierKey returns the verifier key of the newest key in a file.
func VerifierKey(path string) (string, error) {
	k, err := loadKeys(path)
	if err != nil {
		return "", err
	}
	return k.newest().verifier, nil
}

// RotateKey draws another key, appends it to the file, and returns its verifier key. The notary states it in the root log
// when it is next started, signed by the key before it, which therefore stays in the file.
func RotateKey(path string) (verifier string, err error) {
	k, err := loadKeys(path)
	if err != nil {
		return "", err
	}
	pair, err := generateKey(k.newest().Name())
	if err != nil {
		return "", err
	}
	var text []byte
	for _, old := range k {
		text = append(text, old.private+"\n"...)
	}
	if err := durable.Replace(path, append(text, pair.private+"\n"...)); err != nil {
		return "", fmt.Errorf("writing the notary's key file: %w", err)
	}
	return pair.verifier, nil
}
