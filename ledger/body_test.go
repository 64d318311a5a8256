package ledger

import (
	"crypto/sha256"
	"encoding/binary"
	"testing"

	"pgregory.net/rapid"
)

// Commitments and body roots by their definition, for any sizes.
func TestBody(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed := [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "seed"))
		n := rapid.IntRange(0, 80).Draw(t, "fields")
		want := binary.BigEndian.AppendUint16([]byte("immutable/body/1\x00"), uint16(n))
		var commitments [][32]byte
		for range n {
			path := rapid.SliceOfN(rapid.Byte(), 0, 600).Draw(t, "path")
			value := rapid.SliceOfN(rapid.Byte(), 0, 600).Draw(t, "value")
			salt := sha256.Sum256(append(append([]byte{}, seed[:]...), path...))
			opening := append([]byte{1}, salt[:16]...)
			opening = binary.BigEndian.AppendUint16(opening, uint16(len(path)))
			commitment := sha256.Sum256(append(append(opening, path...), value...))

			got := Commitment(seed, path, value)
			if got != commitment {
				t.Fatalf("commitment %x, want %x", got, commitment)
			}
			if Salt(seed, path) != [16]byte(salt[:16]) || SaltedCommitment(Salt(seed, path), path, value) != got {
				t.Fatal("a disclosed salt does not open the commitment")
			}
			commitments = append(commitments, got)
			want = append(want, commitment[:]...)
		}
		if got := BodyRoot(commitments); got != sha256.Sum256(want) {
			t.Fatalf("body root of %d fields is %x", n, got)
		}
	})
}

// Where one part ends and the next begins is in the hash.
func TestCommitmentParts(t *testing.T) {
	var salt [16]byte
	if SaltedCommitment(salt, []byte("/a"), []byte("1")) == SaltedCommitment(salt, []byte("/"), []byte("a1")) {
		t.Error("path and value run into each other")
	}
	if BodyRoot(nil) == BodyRoot(make([][32]byte, 1)) {
		t.Error("no field and one have the same root")
	}
}
