package ledger

import (
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"hash"
)

// shortHasher computes SHA-256 of many short messages. Of such a hash crypto/sha256 spends more time on the padding, a copy of its state and
// the way to it than on the one or two blocks themselves. Here the message is padded (FIPS 180-4, section 5.1.1) where it was put together, so that
// the state after its last block, which the hash gives away for resuming, is the digest. It is for one goroutine.
type shortHasher struct {
	hash.Hash

	resumable encoding.BinaryAppender
	message   []byte
	state     []byte
}

// magicSize is what stands before the state in the binary form of a SHA-256 hash.
const magicSize = 4

func newShortHasher() *shortHasher {
	h := sha256.New()
	s := &shortHasher{Hash: h}
	// Without that form, or with another one, the usual way is gone.
	if a, ok := h.(encoding.BinaryAppender); ok {
		s.resumable = a
		if s.sum([]byte("probe")) != sha256.Sum256([]byte("probe")) {
			s.resumable = nil
		}
	}
	return s
}

// sum returns the SHA-256 of a message, and may append to it.
func (s *shortHasher) sum(message []byte) Hash {
	if s.resumable == nil {
		return sha256.Sum256(message)
	}
	bits := uint64(len(message)) * 8
	message = append(message, 0x80)
	for len(message)%sha256.BlockSize != sha256.BlockSize-8 {
		message = append(message, 0)
	}
	message = binary.BigEndian.AppendUint64(message, bits)
	s.Reset()
	_, _ = s.Write(message) // it never fails
	state, err := s.resumable.AppendBinary(s.state[:0])
	if err != nil || len(state) < magicSize+sha256.Size {
		return Hash{} // the probe finds it
	}
	s.state = state
	return Hash(state[magicSize:])
}

// commitment is Commitment.
func (s *shortHasher) commitment(seed [16]byte, path, value []byte) Hash {
	salt := s.salt(seed, path)
	m := append(s.message[:0], 0x01)
	m = append(m, salt[:16]...)
	m = binary.BigEndian.AppendUint16(m, uint16(len(path)))
	m = append(m, path...)
	m = append(m, value...)
	s.message = m
	return s.sum(m)
}

func (s *shortHasher) salt(seed [16]byte, path []byte) Hash {
	m := append(s.message[:0], seed[:]...)
	m = append(m, path...)
	s.message = m
	return s.sum(m)
}

// bodyRoot is BodyRoot.
func (s *shortHasher) bodyRoot(commitments [][32]byte) Hash {
	m := append(s.message[:0], bodyRootDomain...)
	m = binary.BigEndian.AppendUint16(m, uint16(len(commitments)))
	for i := range commitments {
		m = append(m, commitments[i][:]...)
	}
	s.message = m
	return s.sum(m)
}
