package event

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"time"
)

// idSource draws ids and seeds.
type idSource struct {
	random  func([]byte)
	scratch [16]byte
	sum     [sha256.Size]byte
	// last is the newest UUIDv7's time in microseconds, and tail its last 62 bits.
	last int64
	tail uint64
	// mac is keyed with secret: setting it up costs more than using it, and events come in runs of one workspace.
	mac    hash.Hash
	secret [32]byte
}

func (s *idSource) seed() [16]byte {
	s.random(s.scratch[:16])
	return [16]byte(s.scratch[:16])
}

// v7 returns a UUIDv7 (RFC 9562, section 5.7) of an event accepted at t: milliseconds, then the microseconds within as
// twelve bits (section 6.2, method 3), then 62 random bits. Ids of one source and microsecond ascend (method 2), so that
// the events of a batch keep their order.
func (s *idSource) v7(t time.Time) [16]byte {
	micros := t.UnixMicro()
	s.random(s.scratch[:8])
	random := binary.BigEndian.Uint64(s.scratch[:8])
	if micros == s.last {
		s.tail += 1 + random>>32
	} else {
		s.last, s.tail = micros, random>>3 // One bit of the 62 stays free for the increments.
	}
	var id [16]byte
	millis, rest := uint64(micros/1000), uint64(micros%1000)
	binary.BigEndian.PutUint64(id[:8], millis<<16|rest*4096/1000)
	binary.BigEndian.PutUint64(id[8:], s.tail)
	return mark(id, 7)
}

// v8 returns a UUIDv8 (RFC 9562, section 5.8) of the first 16 bytes of HMAC-SHA-256(secret, message).
func (s *idSource) v8(secret *[32]byte, message []byte) [16]byte {
	if s.mac == nil || s.secret != *secret {
		s.secret = *secret
		s.mac = hmac.New(sha256.New, s.secret[:])
	}
	s.mac.Reset()
	s.mac.Write(message)
	return mark([16]byte(s.mac.Sum(s.sum[:0])), 8)
}

// keyDigestLabel stands before an idempotency key whose digest is taken. No message that an id derives from begins with
// it: those begin with a workspace's id, a UUID, whose ninth byte has its first bit set, and all of this is ASCII.
const keyDigestLabel = "immutable/redacted-idempotency-key/1\x00"

// KeyDigest returns the first 16 bytes of HMAC-SHA-256(IdempotencySecret, label || key). It stands for the idempotency key
// of a redacted event, whose key is not used again, and tells those nothing who do not have the secret.
func (w *Workspace) KeyDigest(key string) [16]byte {
	mac := hmac.New(sha256.New, w.IdempotencySecret[:])
	mac.Write([]byte(keyDigestLabel + key))
	return [16]byte(mac.Sum(nil))
}

// mark sets version and variant of a UUID.
func mark(id [16]byte, version byte) [16]byte {
	id[6] = id[6]&0x0f | version<<4
	id[8] = id[8]&0x3f | 0x80
	return id
}
