package query

import (
	"context"
	"crypto/sha256"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/ledger"
)

// anchor is a signed checkpoint under the name that clients know.
type anchor struct {
	ID        string      `json:"id"`
	Size      uint64      `json:"size"`
	Root      ledger.Hash `json:"root"`
	Origin    string      `json:"origin"`
	Note      string      `json:"note"`
	Witnesses uint16      `json:"witnesses"`
	Quorum    bool        `json:"quorum"`
	CreatedAt string      `json:"created_at"`
}

func (c *checkpointRow) anchor() anchor {
	a := anchor{
		ID: strconv.FormatUint(c.size, 10), Size: c.size, Root: c.root, Note: string(c.note), Witnesses: c.witnesses, Quorum: c.quorum,
		CreatedAt: event.FormatTime(time.UnixMicro(c.published)),
	}
	if stated, err := ledger.ParseCheckpoint(c.note); err == nil {
		a.Origin = stated.Origin
	}
	return a
}

// listAnchors is GET /anchors: the newest first, one of each size.
func (s *Service) listAnchors(ctx context.Context, workspace [16]byte, r *http.Request) ([]byte, error) {
	limit, cursor, err := parseList(r.URL.RawQuery)
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(append([]byte("immutable/cursor/anchors/1\x00"), workspace[:]...))
	before := uint64(1) << 63
	if cursor != "" {
		after, err := decodeCursor(cursor, digest)
		if err != nil {
			return nil, err
		}
		before = uint64(after.at)
	}
	rows := make([]anchor, 0, limit+1)
	st := anchorsStatement(before, limit+1, limits{timeout: s.cfg.RequestTimeout})
	err = s.run(ctx, statementCheckpoints, st, func(r driver.Rows) error {
		var c checkpointRow
		err := c.scan(r)
		rows = append(rows, c.anchor())
		return err
	})
	if err != nil {
		return nil, err
	}
	total := 0
	st = selectPublic("uniqExact(size)", "checkpoints")
	err = s.run(ctx, statementCheckpoints, st.settings(limits{timeout: s.cfg.RequestTimeout}), func(r driver.Rows) error {
		var n uint64
		err := r.Scan(&n)
		total = int(n)
		return err
	})
	if err != nil {
		return nil, err
	}
	pages := pagination{HasMore: len(rows) > limit, Total: total}
	if pages.HasMore {
		rows = rows[:limit]
		next := encodeCursor(position{at: int64(rows[limit-1].Size)}, digest)
		pages.NextCursor = &next
	}
	return inJSONObject(map[string]any{"data": rows, "pagination": pages})
}

func anchorsStatement(before uint64, limit int, l limits) *statement {
	st := selectPublic(checkpointColumns, "checkpoints")
	st.and("size < ", st.bind("UInt64", before))
	st.write("\nORDER BY size DESC, witnesses DESC\nLIMIT 1 BY size\nLIMIT ", strconv.Itoa(limit))
	return st.settings(l)
}

// anchor returns the checkpoint that the request's path names. The error is a 404 where there is none.
func (s *Service) anchor(ctx context.Context, r *http.Request) (*checkpointRow, error) {
	if err := noParameters(r); err != nil {
		return nil, err
	}
	notFound := httpserver.NotFound("There is no anchor with this id: GET /anchors lists them.")
	id := r.PathValue("id")
	size, err := strconv.ParseUint(id, 10, 53)
	if err != nil || strconv.FormatUint(size, 10) != id {
		return nil, notFound
	}
	c, err := s.checkpoint(ctx, checkpointAtStatement(size))
	if err == nil && c == nil {
		err = notFound
	}
	return c, err
}

// getAnchor is GET /anchors/{id}.
func (s *Service) getAnchor(ctx context.Context, _ [16]byte, r *http.Request) ([]byte, error) {
	c, err := s.anchor(ctx, r)
	if err != nil {
		return nil, err
	}
	return inData(c.anchor())
}

// anchorVerdict is GET /anchors/{id}/verify.
type anchorVerdict struct {
	ID    string `json:"id"`
	Valid bool   `json:"valid"`
	Size  uint64 `json:"size"`
	// Root is what the checkpoint states, ComputedRoot what the stored root log has at its size; null where that cannot be told.
	Root         ledger.Hash  `json:"root"`
	ComputedRoot *ledger.Hash `json:"computed_root"`
	// Key is NAME+HASH of the log's key that has signed it, "" where none has that the root log states for this size.
	Key     string `json:"key"`
	Problem string `json:"problem"`
}

// verifyAnchor is GET /anchors/{id}/verify: by what the server itself holds, the keys that the log states among it. Who does not
// trust the server has `immutable verify`.
func (s *Service) verifyAnchor(ctx context.Context, _ [16]byte, r *http.Request) ([]byte, error) {
	c, err := s.anchor(ctx, r)
	if err != nil {
		return nil, err
	}
	v := anchorVerdict{ID: strconv.FormatUint(c.size, 10), Size: c.size, Root: c.root}
	var problems []string
	root, err := s.rootAt(ctx, c.size)
	switch {
	case isDamage(err):
		problems = append(problems, err.Error())
	case err != nil:
		return nil, err
	default:
		if v.ComputedRoot = &root; root != c.root {
			problems = append(problems, "the stored root log leads to another root")
		}
	}
	v.Key, err = s.signedBy(ctx, c)
	switch {
	case isDamage(err):
		problems = append(problems, err.Error())
	case err != nil:
		return nil, err
	}
	v.Problem = strings.Join(problems, "; ")
	v.Valid = v.Problem == ""
	return inData(v)
}
