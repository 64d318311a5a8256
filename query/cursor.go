package query

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"

	"getimmutable.dev/immutable/internal/httpserver"
)

// position is a place in an order of (time, id): of events by when they occurred, of what is configured by when it was
// created.
type position struct {
	at int64 // microseconds since the Unix epoch
	id [16]byte
}

// A cursor is base64url, without padding, of
//
//	version (1) || time in microseconds i64be || id (16) || check (16)
//
// with check = SHA-256(digest of the request || all before check)[:16]. The position gives no right to anything: every
// statement is confined to the caller's workspace. The check tells a cursor that was changed, or that belongs to other
// filters, another order or another workspace, from one that a page has returned.
const (
	cursorVersion = 1
	checkBytes    = 16
	cursorBytes   = 1 + 8 + 16 + checkBytes
)

func encodeCursor(p position, digest [sha256.Size]byte) string {
	b := make([]byte, 0, cursorBytes)
	b = append(b, cursorVersion)
	b = binary.BigEndian.AppendUint64(b, uint64(p.at))
	b = append(b, p.id[:]...)
	b = append(b, cursorCheck(b, digest)...)
	return base64.RawURLEncoding.EncodeToString(b)
}

func decodeCursor(text string, digest [sha256.Size]byte) (position, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) != cursorBytes || b[0] != cursorVersion {
		return position{}, badCursor("is not one that a page of this version has returned: begin again without it.")
	}
	fields, check := b[:cursorBytes-checkBytes], b[cursorBytes-checkBytes:]
	if subtle.ConstantTimeCompare(check, cursorCheck(fields, digest)) != 1 {
		return position{}, badCursor("belongs to a request with other filters, another order or another workspace: " +
			"send the parameters of the first page with it, or begin again without it.")
	}
	return position{
		at: int64(binary.BigEndian.Uint64(fields[1:9])),
		id: [16]byte(fields[9:25]),
	}, nil
}

func cursorCheck(fields []byte, digest [sha256.Size]byte) []byte {
	sum := sha256.Sum256(append(digest[:], fields...))
	return sum[:checkBytes]
}

func badCursor(problem string) error {
	return httpserver.BadRequest("cursor "+problem, httpserver.Detail{Field: paramCursor, Message: problem})
}
