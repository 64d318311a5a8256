package verify

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"getimmutable.dev/immutable/ledger"
)

// API says where the API is.
type API struct {
	// URL of the installation, https://HOST or http://HOST:PORT; /api/v1 is appended. Required.
	URL string
	// Key is an API key of scope events:read. Required.
	Key string
	// RequestTimeout of one request, answer included. Default 1 min.
	RequestTimeout time.Duration
	// Attempts for one request, the first included: of what is answered by 429 or 5xx, or cut off. Default 4.
	Attempts int
	// Backoff before the second attempt, doubled for each after it up to 30 s; a Retry-After of the answer goes before it. Default 500 ms.
	Backoff time.Duration
	// LeavesPerRequest, 1 to 10000. Default 5000.
	LeavesPerRequest int
	// MaxAnswerBytes of an answer that is no stream of leaves. Default 32 MiB.
	MaxAnswerBytes int64
	// MaxOlderBytes is what is kept in memory of the answers of all older epochs, about, each of which is checked before the next is asked for.
	// Default 96 MiB.
	MaxOlderBytes int64
	// MaxLineBytes of one leaf. Default 2 MiB: an event has at most 256 KiB, and JSON in JSON twice that.
	MaxLineBytes int
	// MaxPageBytes is what one page of leaves may take in memory, about. A larger one is asked for again with half the leaves. Default 16 MiB.
	MaxPageBytes int64
	// MaxPagesBytes is what all pages may take that are being read or verified, of all chains. Default 64 MiB, at least MaxPageBytes.
	MaxPagesBytes int64
	// MaxTail is how many leaves of a chain are read beyond those that the newest epoch covers; what follows is listed as not checked.
	// Default 100,000.
	MaxTail uint64
}

func (a API) withDefaults() API {
	if a.RequestTimeout == 0 {
		a.RequestTimeout = time.Minute
	}
	if a.Attempts == 0 {
		a.Attempts = 4
	}
	if a.Backoff == 0 {
		a.Backoff = 500 * time.Millisecond
	}
	if a.LeavesPerRequest == 0 {
		a.LeavesPerRequest = 5000
	}
	if a.MaxAnswerBytes == 0 {
		a.MaxAnswerBytes = 32 << 20
	}
	if a.MaxOlderBytes == 0 {
		a.MaxOlderBytes = 96 << 20
	}
	if a.MaxLineBytes == 0 {
		a.MaxLineBytes = 2 << 20
	}
	if a.MaxPageBytes == 0 {
		a.MaxPageBytes = 16 << 20
	}
	if a.MaxPagesBytes == 0 {
		a.MaxPagesBytes = max(64<<20, a.MaxPageBytes)
	}
	if a.MaxTail == 0 {
		a.MaxTail = 100_000
	}
	return a
}

// Validate reports what cannot be worked with.
func (a *API) Validate() error {
	u, err := url.Parse(a.URL)
	switch {
	case err != nil:
		return fmt.Errorf("the URL: %w", err)
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "", u.RawQuery != "", u.User != nil:
		return errors.New("the URL must be http://HOST:PORT or https://HOST")
	case a.Key == "":
		return errors.New("an API key is required: one of scope events:read")
	case a.Attempts < 0 || a.RequestTimeout < 0 || a.Backoff < 0 || a.MaxAnswerBytes < 0 || a.MaxOlderBytes < 0 || a.MaxLineBytes < 0:
		return errors.New("numbers and durations must not be negative")
	case a.MaxPageBytes < 0 || a.MaxPagesBytes < a.MaxPageBytes:
		return errors.New("the pages together must be at least as large as one of them")
	case a.LeavesPerRequest < 0 || a.LeavesPerRequest > 10_000:
		return errors.New("leaves per request must be 1 to 10000")
	}
	return nil
}

const (
	maxBackoff = 30 * time.Second
	// maxRetryAfter bounds what an answer can make this wait.
	maxRetryAfter = time.Minute
)

// client asks the API. It believes nothing of an answer but its size, which it bounds.
type client struct {
	API

	base string
	http *http.Client
}

func newClient(a API) *client {
	return &client{
		API: a, base: strings.TrimSuffix(a.URL, "/") + "/api/v1",
		http: &http.Client{
			// An answer that unpacks to more than was sent is not asked for, nor is a way elsewhere followed with the key.
			Transport:     &http.Transport{DisableCompression: true, Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 16, MaxResponseHeaderBytes: 64 << 10},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

func (c *client) close() { c.http.CloseIdleConnections() }

// errAnswer is wrapped by the errors of answers that another attempt does not change.
var errAnswer = errors.New("answer")

// statusError is an answer that is not 200.
type statusError struct {
	path   string
	status int
	text   string
	after  time.Duration
}

func (e *statusError) Error() string {
	return fmt.Sprintf("GET %s: %d %s: %.200q", e.path, e.status, http.StatusText(e.status), e.text)
}

// get asks for a path and hands the answer's body to read. It tries again where the answer is 429 or 5xx, where it is cut off and where there is none.
func (c *client) get(ctx context.Context, path string, read func(io.Reader) error) error {
	backoff := c.Backoff
	for attempt := 1; ; attempt++ {
		err := c.once(ctx, path, read)
		status, isStatus := errors.AsType[*statusError](err)
		final := errors.Is(err, errAnswer) || isStatus && status.status != http.StatusTooManyRequests && status.status < 500
		if err == nil || final || attempt == c.Attempts || ctx.Err() != nil {
			return err
		}
		wait := backoff
		if isStatus && status.after > 0 {
			wait = min(status.after, maxRetryAfter)
		}
		backoff = min(2*backoff, maxBackoff)
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}

func (c *client) once(ctx context.Context, path string, read func(io.Reader) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.RequestTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, http.NoBody)
	if err != nil {
		return fmt.Errorf("GET %s: %w: %w", path, errAnswer, err)
	}
	req.Header.Set("Authorization", "Bearer "+c.Key)
	req.Header.Set("Accept-Encoding", "identity")
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("asking the API: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // what has come of an explanation
		seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
		return &statusError{path, resp.StatusCode, string(text), time.Duration(max(seconds, 0)) * time.Second}
	}
	if e := resp.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return fmt.Errorf("GET %s: %w: it is packed (%.40q), which was not asked for", path, errAnswer, e)
	}
	if err := read(resp.Body); err != nil {
		return fmt.Errorf("GET %s: %w", path, err)
	}
	return nil
}

// bytes returns a whole answer.
func (c *client) bytes(ctx context.Context, path string, limit int64) (all []byte, err error) {
	err = c.get(ctx, path, func(body io.Reader) error {
		var b bytes.Buffer
		if _, err := b.ReadFrom(io.LimitReader(body, limit+1)); err != nil {
			return err
		}
		if int64(b.Len()) > limit {
			return fmt.Errorf("%w: it has more than %d bytes", errAnswer, limit)
		}
		all = b.Bytes()
		return nil
	})
	return all, err
}

// lines hands each line of an answer to line; begin is called before the first of each attempt.
func (c *client) lines(ctx context.Context, path string, begin func(), line func([]byte) error, end func() error) error {
	return c.get(ctx, path, func(body io.Reader) error {
		begin()
		s := bufio.NewScanner(body)
		s.Buffer(make([]byte, 0, 64<<10), c.MaxLineBytes)
		s.Split(wholeLines)
		for s.Scan() {
			if err := line(s.Bytes()); err != nil {
				return err
			}
		}
		if errors.Is(s.Err(), bufio.ErrTooLong) {
			return fmt.Errorf("%w: a line has more than %d bytes", errAnswer, c.MaxLineBytes)
		}
		if s.Err() != nil {
			return s.Err()
		}
		return end()
	})
}

var errCutOff = errors.New("the answer was cut off")

// wholeLines is bufio.ScanLines for lines that each end with a newline, the last one too: what comes before the end of a connection is no line.
func wholeLines(data []byte, atEOF bool) (advance int, token []byte, err error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF && len(data) > 0 {
		return 0, nil, errCutOff
	}
	return 0, nil, nil
}

// logTiles is the root log as tiles: C2SP tlog-tiles. Level 0 has the entry hashes, and level k >= 1 the nodes of a row.
type logTiles struct {
	*client

	size uint64 // of the checkpoint
}

const tileWidth = 256

// tilePath is the path of a tile with this many elements, 1 to 256.
func tilePath(level string, n uint64, width uint64) string {
	path := strconv.FormatUint(n%1000, 10)
	for len(path) < 3 {
		path = "0" + path
	}
	for n /= 1000; n > 0; n /= 1000 {
		path = fmt.Sprintf("x%03d/%s", n%1000, path)
	}
	path = "/ledger/tile/" + level + "/" + path
	if width < tileWidth {
		path += fmt.Sprintf(".p/%d", width)
	}
	return path
}

// tile reads a tile, or the full one in its place: a partial one may be gone once the full one is there.
func (t *logTiles) tile(ctx context.Context, level string, n, width uint64, limit int64) (b []byte, full bool, err error) {
	b, err = t.bytes(ctx, tilePath(level, n, width), limit)
	if status, ok := errors.AsType[*statusError](err); ok && status.status == http.StatusNotFound && width < tileWidth {
		if b, err := t.bytes(ctx, tilePath(level, n, tileWidth), limit); err == nil {
			return b, true, nil
		}
	}
	return b, false, err
}

// hashes reads a tile of hashes.
func (t *logTiles) hashes(ctx context.Context, level int, n, width uint64) ([]ledger.Hash, error) {
	b, full, err := t.tile(ctx, strconv.Itoa(level), n, width, tileWidth*tlog.HashSize)
	if err != nil {
		return nil, err
	}
	if full && uint64(len(b)) == tileWidth*tlog.HashSize {
		b = b[:width*tlog.HashSize]
	}
	if uint64(len(b)) != width*tlog.HashSize {
		return nil, fmt.Errorf("%w: tile %d/%d of width %d has %d bytes", errAnswer, level, n, width, len(b))
	}
	return hashes(b)
}

// entries reads a bundle of entries: each after its length, u16be.
func (t *logTiles) entries(ctx context.Context, n, width uint64) ([][]byte, error) {
	b, full, err := t.tile(ctx, "entries", n, width, tileWidth*(2+math.MaxUint16))
	if err != nil {
		return nil, err
	}
	var all [][]byte
	for len(b) > 0 {
		if len(b) < 2 || len(b) < 2+int(b[0])<<8+int(b[1]) {
			return nil, fmt.Errorf("%w: entry bundle %d is cut off", errAnswer, n)
		}
		size := int(b[0])<<8 + int(b[1])
		all, b = append(all, b[2:2+size]), b[2+size:]
	}
	if full && len(all) == tileWidth {
		all = all[:width]
	}
	if uint64(len(all)) != width {
		return nil, fmt.Errorf("%w: entry bundle %d of width %d has %d entries", errAnswer, n, width, len(all))
	}
	return all, nil
}

// rows implements rootLog: entries, and beside each what the tiles have of it.
func (t *logTiles) rows(ctx context.Context, from, to uint64, each func(*logRow) error) error {
	above := &upperTiles{logTiles: t, tiles: map[int]*upperTile{}}
	for n := from / tileWidth; n*tileWidth < to; n++ {
		width := min(tileWidth, t.size-n*tileWidth)
		entries, err := t.entries(ctx, n, width)
		if err != nil {
			return err
		}
		stored, err := t.hashes(ctx, 0, n, width)
		if err != nil {
			return err
		}
		for i := range width {
			row := logRow{index: n*tileWidth + i, entry: entries[i], hash: stored[i]}
			if row.index < from || row.index >= to {
				continue
			}
			if row.node, err = above.node(ctx, row.index); err != nil {
				return err
			}
			if err := each(&row); err != nil {
				return err
			}
		}
	}
	return nil
}

// upperTiles keeps the last tile of each level above 0.
type upperTiles struct {
	*logTiles

	tiles map[int]*upperTile
}

type upperTile struct {
	n      uint64
	hashes []ledger.Hash
}

// node returns the roots of the complete subtrees of 256^k entries, k >= 1, that end with an entry.
func (u *upperTiles) node(ctx context.Context, index uint64) (node []ledger.Hash, err error) {
	level := 0
	for at := index + 1; at%tileWidth == 0; {
		at /= tileWidth
		level++
		element := at - 1
		tile := u.tiles[level]
		if n := element / tileWidth; tile == nil || tile.n != n {
			tile = &upperTile{n: n}
			width := min(tileWidth, u.size>>(8*level)-n*tileWidth)
			if tile.hashes, err = u.hashes(ctx, level, n, width); err != nil {
				return nil, err
			}
			u.tiles[level] = tile
		}
		node = append(node, tile.hashes[element%tileWidth])
	}
	return node, nil
}
