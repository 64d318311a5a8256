package ledger

import (
	"crypto/sha256"
	"encoding/binary"
)

// Field commitments and the body root keep an event's content out of its leaf: a value can be erased later while every
// hash stays the same (docs/design/ledger-spec.md, Body).

const bodyRootDomain = "immutable/body/1\x00"

// Commitment returns the commitment to one field: SHA-256(0x01 || salt || u16be(len path) || path || value) with
// salt = SHA-256(seed || path)[:16]. path is an RFC 6901 pointer of at most 65535 bytes and value its RFC 8785 form.
func Commitment(seed [16]byte, path, value []byte) [32]byte {
	salt := Salt(seed, path)
	return SaltedCommitment(salt, path, value)
}

// Salt returns SHA-256(seed || path)[:16], what a disclosure of one field needs instead of the seed.
func Salt(seed [16]byte, path []byte) [16]byte {
	var stack [128]byte
	buf := append(stack[:0], seed[:]...)
	buf = append(buf, path...)
	sum := sha256.Sum256(buf)
	return [16]byte(sum[:16])
}

// SaltedCommitment is Commitment for a field whose salt is at hand.
func SaltedCommitment(salt [16]byte, path, value []byte) [32]byte {
	var stack [512]byte
	buf := append(stack[:0], 0x01)
	buf = append(buf, salt[:]...)
	buf = binary.BigEndian.AppendUint16(buf, uint16(len(path)))
	buf = append(buf, path...)
	buf = append(buf, value...)
	return sha256.Sum256(buf)
}

// BodyRoot returns SHA-256("immutable/body/1" 0x00 || u16be(n) || c_1 || ... || c_n) over the n <= 65535 commitments of
// a body, sorted by path in byte order.
func BodyRoot(commitments [][32]byte) [32]byte {
	var stack [len(bodyRootDomain) + 2 + 32*32]byte
	buf := append(stack[:0], bodyRootDomain...)
	buf = binary.BigEndian.AppendUint16(buf, uint16(len(commitments)))
	for i := range commitments {
		buf = append(buf, commitments[i][:]...)
	}
	return sha256.Sum256(buf)
}
