package control

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"getimmutable.dev/immutable/internal/durable"
)

// MasterKey is the one secret of an installation: the keys under which secrets are sealed derive from it. Every service
// of an installation has the same. Without it no workspace opens: every API key is answered 503, and nothing can be
// changed. The ledger can still be verified. Back it up.
type MasterKey [32]byte

// String hides the key from logs and from %v.
func (MasterKey) String() string { return "***" }

// GoString hides the key from %#v.
func (MasterKey) GoString() string { return "***" }

// LoadMasterKey reads a file that CreateMasterKey wrote: 64 hexadecimal characters and a newline. Its mode must keep out
// everybody but its owner and, for reading, its group, because a mounted secret belongs to a group.
func LoadMasterKey(path string) (MasterKey, error) {
	f, err := os.Open(path) //nolint:gosec // the operator names the file
	if err != nil {
		return MasterKey{}, fmt.Errorf("open master key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return MasterKey{}, fmt.Errorf("open master key: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o027 != 0 {
		return MasterKey{}, fmt.Errorf("master key %s has mode %04o, so that others can read it: run chmod 600 on it", path, mode)
	}
	text, err := io.ReadAll(io.LimitReader(f, 128))
	if err != nil {
		return MasterKey{}, fmt.Errorf("read master key: %w", err)
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(key) != len(MasterKey{}) {
		// The decoder's error would quote a character of the key.
		return MasterKey{}, fmt.Errorf("master key %s is not 64 hexadecimal characters: restore it from a backup", path)
	}
	return MasterKey(key), nil
}

// CreateMasterKey draws a key and writes it to path with mode 0600. It refuses to replace a file: fs.ErrExist. When it
// returns without an error the file is complete and on disk; it is never there in part.
func CreateMasterKey(path string) (MasterKey, error) {
	var key MasterKey
	rand.Read(key[:])
	if err := durable.Create(path, []byte(hex.EncodeToString(key[:])+"\n")); err != nil {
		return MasterKey{}, fmt.Errorf("create master key: %w", err)
	}
	return key, nil
}

// sealedVersion is the first byte of everything sealed: AES-256-GCM under HKDF-SHA256(master key, "config/1"), a random
// nonce of 12 bytes, the ciphertext, the tag.
const sealedVersion = 1

// sealer seals the secrets of the config topic, each bound to the object that it belongs to.
type sealer struct {
	aead cipher.AEAD
}

func newSealer(master MasterKey) (*sealer, error) {
	if master == (MasterKey{}) {
		return nil, errors.New("no master key was given")
	}
	key, err := hkdf.Key(sha256.New, master[:], nil, "config/1", 32)
	if err != nil {
		return nil, fmt.Errorf("derive the key for config secrets: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("derive the key for config secrets: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("derive the key for config secrets: %w", err)
	}
	return &sealer{aead}, nil
}

// seal binds secret to identity, which must be unique among everything sealed.
func (s *sealer) seal(secret []byte, identity string) []byte {
	box := s.aead.Seal(nil, nil, secret, []byte(identity)) //nolint:gosec // the AEAD draws the nonce itself
	return append([]byte{sealedVersion}, box...)
}

// open returns ErrMasterKey where sealed was made under another master key or for another identity, or was changed.
func (s *sealer) open(sealed []byte, identity string) ([]byte, error) {
	if len(sealed) == 0 || sealed[0] != sealedVersion {
		return nil, errors.New("sealed secret is of a version that this build does not know")
	}
	secret, err := s.aead.Open(nil, nil, sealed[1:], []byte(identity))
	if err != nil {
		return nil, fmt.Errorf("%w: the secret was sealed under another key, or changed since; "+
			"start every service with the master key file that this installation was created with", ErrMasterKey)
	}
	return secret, nil
}
