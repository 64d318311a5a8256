package event

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"strconv"
)

// hashParts returns the first 8 bytes, big-endian, of SHA-256 over parts, each with a u32be length before it.
func hashParts(parts ...string) uint64 {
	var stack [256]byte
	buf := stack[:0]
	for _, p := range parts {
		buf = binary.BigEndian.AppendUint32(buf, uint32(len(p)))
		buf = append(buf, p...)
	}
	sum := sha256.Sum256(buf)
	return binary.BigEndian.Uint64(sum[:8])
}

// Lane returns the lane, 0 <= lane < lanes, of an event: all events of one resource share it, or all of one actor where
// no resource is named. lanes must be at least 1.
func Lane(resource, resourceID, actorID string, lanes uint32) uint32 {
	if resource == "" && resourceID == "" {
		return uint32(hashParts(actorID) % uint64(lanes))
	}
	return uint32(hashParts(resource, resourceID) % uint64(lanes))
}

// Partition returns the partition, 0 <= p < partitions, of a lane on the events, ledger and heads topics. Lanes of one
// workspace are on different partitions as long as it has no more lanes than there are partitions.
func Partition(workspace [16]byte, lane uint32, partitions int32) int32 {
	return int32((hashParts(string(workspace[:]))%uint64(partitions) + uint64(lane)) % uint64(partitions))
}

// RecordKey returns the Kafka key of an event: "<32 hex workspace>/<decimal lane>".
func RecordKey(workspace [16]byte, lane uint32) []byte {
	b := make([]byte, 0, 32+1+10)
	b = hex.AppendEncode(b, workspace[:])
	b = append(b, '/')
	return strconv.AppendUint(b, uint64(lane), 10)
}
