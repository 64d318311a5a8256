package ledger

import (
	"bytes"
	"crypto/sha256"
	"testing"
)

func TestShortHasher(t *testing.T) {
	s := newShortHasher()
	if s.resumable == nil {
		t.Error("this Go's SHA-256 has another binary form: the slow way is taken")
	}
	slow := &shortHasher{Hash: sha256.New()}
	for n := range 400 {
		text := bytes.Repeat([]byte{byte(n)}, n)
		if got := s.sum(bytes.Clone(text)); got != sha256.Sum256(text) {
			t.Fatalf("%d bytes: %x", n, got)
		}
		if slow.sum(text) != sha256.Sum256(text) {
			t.Fatalf("%d bytes, the slow way", n)
		}
	}
	seed := [16]byte{1, 2, 3}
	for _, body := range []string{testBody, "{}", `{"a":1}`} {
		var h ContentHasher
		root, n, err := h.bodyRoot(seed, []byte(body))
		want, wantN, wantErr := RecomputeBodyRoot(seed, []byte(body))
		if root != want || n != wantN || err != nil || wantErr != nil {
			t.Errorf("%s: %x over %d, want %x over %d", body, root, n, want, wantN)
		}
	}
}
