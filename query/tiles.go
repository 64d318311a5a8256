package query

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"

	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/ledger"
)

// The root log as C2SP tlog-tiles has it: what a checkpoint covers, and no more.

const (
	// tileWidth is the number of hashes, or entries, of a full tile.
	tileWidth = 256
	// maxTileLevel is the highest at which there could be a tile: indices of entries have 53 bits.
	maxTileLevel = 63

	cacheForEver = "public, max-age=31536000, immutable"
	cacheShortly = "public, max-age=2"
)

func noCheckpoint() error {
	return httpserver.NotFound("There is no signed checkpoint yet: the first follows the start of the notary.")
}

func noTile() error {
	return httpserver.NotFound("The newest checkpoint has no such tile: see c2sp.org/tlog-tiles for which there are.")
}

// covering returns the newest checkpoint. The error is a 404 where there is none.
func (s *Service) covering(ctx context.Context) (*checkpointRow, error) {
	c, err := s.newestCheckpoint(ctx)
	if err == nil && c == nil {
		err = noCheckpoint()
	}
	return c, err
}

// getCheckpoint is GET /ledger/checkpoint.
func (s *Service) getCheckpoint(ctx context.Context, r *http.Request) (content, error) {
	q, err := parseAsked(r.URL.RawQuery, paramWitnessed)
	if err != nil {
		return content{}, err
	}
	c, err := s.askedCheckpoint(ctx, q)
	if err != nil {
		return content{}, err
	}
	return content{body: c.note, kind: kindText, cache: cacheShortly}, nil
}

// getLogKey is GET /ledger/key: the key that signs the newest checkpoint, as a line. Whom to believe a client has to know from
// elsewhere; this is for those who set that up.
func (s *Service) getLogKey(ctx context.Context, r *http.Request) (content, error) {
	if err := noParameters(r); err != nil {
		return content{}, err
	}
	c, err := s.covering(ctx)
	if err != nil {
		return content{}, err
	}
	changes, err := s.keyChanges(ctx, c.size)
	if err != nil {
		return content{}, err
	}
	if len(changes) == 0 {
		return content{}, fmt.Errorf("%w: no key change before size %d", errDamaged, c.size)
	}
	e, err := ledger.ParseEntry(changes[len(changes)-1].text)
	if err != nil || e.Key == nil {
		return content{}, fmt.Errorf("%w: entry %d states no key: %w", errDamaged, changes[len(changes)-1].index, err)
	}
	return content{body: []byte(e.Key.VerifierKey + "\n"), kind: kindText, cache: cacheShortly}, nil
}

// tile is what a tile's path names: elements first to first+width-1 of its level.
type tile struct {
	level int
	first uint64
	width uint64
}

// parseTile reads <N>[.p/<W>]: N in elements of three digits, each but the last after an x, and W from 1 to 255. There is one way
// to write each.
func parseTile(level, path string) (tile, bool) {
	l, err := strconv.Atoi(level)
	if err != nil || l < 0 || l > maxTileLevel || strconv.Itoa(l) != level {
		return tile{}, false
	}
	t := tile{level: l, width: tileWidth}
	index, width, partial := strings.Cut(path, ".p/")
	if partial {
		w, err := strconv.ParseUint(width, 10, 16)
		if err != nil || w < 1 || w >= tileWidth || strconv.FormatUint(w, 10) != width {
			return tile{}, false
		}
		t.width = w
	}
	elements := strings.Split(index, "/")
	if len(elements) > 6 { // 10^18 tiles
		return tile{}, false
	}
	var n uint64
	for i, e := range elements {
		if i < len(elements)-1 {
			var ok bool
			if e, ok = strings.CutPrefix(e, "x"); !ok {
				return tile{}, false
			}
		}
		v, err := strconv.ParseUint(e, 10, 16)
		if err != nil || len(e) != 3 || e[0] == '+' || i == 0 && v == 0 && len(elements) > 1 {
			return tile{}, false
		}
		n = n*1000 + v
	}
	if n > math.MaxUint64/tileWidth-1 {
		return tile{}, false
	}
	t.first = n * tileWidth
	return t, true
}

// covered says whether the tree of a size has all of the tile.
func (t *tile) covered(size uint64) bool {
	shift := 8 * t.level
	return t.level < maxLevels-1 && t.first+t.width <= size>>shift
}

// coveredTile returns the tile of the request's path where the newest checkpoint covers it, else a 404.
func (s *Service) coveredTile(ctx context.Context, r *http.Request, level string) (tile, error) {
	if err := noParameters(r); err != nil {
		return tile{}, err
	}
	t, ok := parseTile(level, r.PathValue("index"))
	if !ok {
		return tile{}, noTile()
	}
	c, err := s.covering(ctx)
	if err != nil {
		return tile{}, err
	}
	if !t.covered(c.size) {
		return tile{}, noTile()
	}
	return t, nil
}

// getTile is GET /ledger/tile/<L>/<N>[.p/<W>].
func (s *Service) getTile(ctx context.Context, r *http.Request) (content, error) {
	t, err := s.coveredTile(ctx, r, r.PathValue("level"))
	if err != nil {
		return content{}, err
	}
	hashes, err := s.hashes(ctx, rootLogTree(), []ledger.Span{{Level: t.level, From: t.first, To: t.first + t.width}})
	if err != nil {
		return content{}, err
	}
	var body []byte
	for _, h := range hashes[0] {
		body = append(body, h[:]...)
	}
	return content{body: body, kind: kindBytes, cache: cacheForEver}, nil
}

// getEntries is GET /ledger/tile/entries/<N>[.p/<W>]: each entry after its length as u16be.
func (s *Service) getEntries(ctx context.Context, r *http.Request) (content, error) {
	t, err := s.coveredTile(ctx, r, "0")
	if err != nil {
		return content{}, err
	}
	list, err := s.entries(ctx, entriesStatement(t.first, t.first+t.width-1))
	if err != nil {
		return content{}, err
	}
	var body []byte
	for i, e := range list {
		if e.index != t.first+uint64(i) || len(e.text) > math.MaxUint16 {
			return content{}, fmt.Errorf("%w: root log: entry %d of %d bytes in the place of %d", errDamaged, e.index, len(e.text), t.first+uint64(i))
		}
		body = binary.BigEndian.AppendUint16(body, uint16(len(e.text)))
		body = append(body, e.text...)
	}
	if uint64(len(list)) != t.width {
		return content{}, fmt.Errorf("%w: root log: %d of %d entries from %d on", errDamaged, len(list), t.width, t.first)
	}
	c := content{body: body, kind: kindBytes, cache: cacheForEver, varies: true}
	if acceptsGzip(r) {
		c.body, c.encoding = compressed(body), "gzip"
	}
	return c, nil
}

// acceptsGzip says whether the client has named gzip, and not to refuse it.
func acceptsGzip(r *http.Request) bool {
	for _, line := range r.Header.Values("Accept-Encoding") {
		for offer := range strings.SplitSeq(line, ",") {
			name, quality, _ := strings.Cut(offer, ";")
			q, given := strings.CutPrefix(strings.ReplaceAll(quality, " ", ""), "q=")
			refused := given && strings.Trim(q, "0.") == ""
			if strings.EqualFold(strings.TrimSpace(name), "gzip") && !refused {
				return true
			}
		}
	}
	return false
}

func compressed(b []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, _ = z.Write(b) // into memory
	_ = z.Close()
	return out.Bytes()
}
