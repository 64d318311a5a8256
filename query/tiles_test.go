package query

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"getimmutable.dev/immutable/ledger"
)

// tileReader reads the root log as golang.org/x/mod/sumdb does, over HTTP.
type tileReader struct{ rig *rig }

func (tileReader) Height() int { return 8 }

func (t tileReader) ReadTiles(tiles []tlog.Tile) (data [][]byte, err error) {
	for _, tile := range tiles {
		path := strings.Replace(tile.Path(), "tile/8/", "tile/", 1) // C2SP leaves out the height
		a := t.rig.do("", http.MethodGet, "/api/v1/ledger/"+path)
		if a.status != http.StatusOK {
			return nil, fmt.Errorf("%s: %d %s", path, a.status, a.body)
		}
		data = append(data, a.body)
	}
	return data, nil
}

func (tileReader) SaveTiles([]tlog.Tile, [][]byte) {}

// An independent reader of tiled logs makes every proof of what is served.
func TestTiles(t *testing.T) {
	long(t)
	r := newRig(t)
	n := r.newNotary()
	for range 600 {
		for _, rec := range n.Epoch(t) {
			if strings.HasPrefix(string(rec.Key), "entry/") {
				r.writeLog(rec)
			}
		}
	}
	r.writeLog(n.Checkpoint(t))
	size := int64(n.Log.Size)
	signed := r.do("", http.MethodGet, "/api/v1/ledger/checkpoint")
	verifier, err := note.NewVerifier(strings.TrimSuffix(string(r.do("", http.MethodGet, "/api/v1/ledger/key").body), "\n"))
	if err != nil {
		t.Fatal(err)
	}
	opened, err := note.Open(signed.body, note.VerifierList(verifier))
	if err != nil {
		t.Fatal(err)
	}
	checkpoint, err := ledger.ParseCheckpoint(signed.body)
	if err != nil || opened.Text != checkpoint.Text() || checkpoint.Size != n.Log.Size {
		t.Fatalf("%s: %v", opened.Text, err)
	}
	tree := tlog.Tree{N: size, Hash: tlog.Hash(checkpoint.Root)}
	hashes := tlog.TileHashReader(tree, tileReader{r})
	for _, index := range []int64{0, 1, 255, 256, 511, 512, size - 1} {
		p, err := tlog.ProveRecord(size, index, hashes)
		if err != nil {
			t.Fatalf("entry %d: %v", index, err)
		}
		bundle := r.bundle(uint64(index)/256, uint64(size))
		entry := bundle[index%256]
		if err := tlog.CheckRecord(p, size, tree.Hash, index, tlog.RecordHash(entry)); err != nil {
			t.Errorf("entry %d: %v", index, err)
		}
	}
	if _, err := tlog.ProveTree(size, 300, hashes); err != nil {
		t.Error(err)
	}

	full := r.do("", http.MethodGet, "/api/v1/ledger/tile/0/001")
	if len(full.body) != 8192 || full.header.Get("Content-Type") != kindBytes || full.header.Get("Cache-Control") != cacheForEver {
		t.Errorf("a full tile: %d bytes, %v", len(full.body), full.header)
	}
	if got := signed.header.Get("Content-Type"); got != "text/plain; charset=utf-8" || signed.header.Get("Cache-Control") != cacheShortly {
		t.Errorf("the checkpoint: %v", signed.header)
	}
	if part := r.do("", http.MethodGet, "/api/v1/ledger/tile/0/001.p/7"); string(part.body) != string(full.body[:7*32]) {
		t.Errorf("a part of it: %d %d bytes", part.status, len(part.body))
	}
	for _, path := range []string{
		"0/003", "0/002.p/90", "0/002", "1/000", "1/000.p/3", "2/000.p/1", "63/000.p/1", "64/000", "00/000", "0/1", "0/0001", "0/x000/001",
		"0/001.p/0", "0/001.p/256", "0/001.p/07", "0/001.p/", "0/001/002", "0/x001", "-1/000", "0/-01", "0/+01", "entries/003", "entries/002.p/90",
		"0/x999/x999/x999/x999/x999/999", "0/x999/x999/x999/x999/x999/x999/x999/999",
	} {
		if a := r.do("", http.MethodGet, "/api/v1/ledger/tile/"+path); a.status != http.StatusNotFound {
			t.Errorf("tile %s: %d", path, a.status)
		}
	}
}

// bundle returns the entries of a bundle, of the width that a tree of this size has.
func (r *rig) bundle(index, size uint64) (entries [][]byte) {
	r.tb.Helper()
	path := fmt.Sprintf("/api/v1/ledger/tile/entries/%03d", index)
	if width := size - index*256; width < 256 {
		path += fmt.Sprintf(".p/%d", width)
	}
	for _, encoding := range []string{"identity", "gzip"} {
		req, err := http.NewRequestWithContext(r.tb.Context(), http.MethodGet, r.url+path, http.NoBody)
		if err != nil {
			r.tb.Fatal(err)
		}
		if encoding == "identity" {
			req.Header.Set("Accept-Encoding", encoding) // else the client asks for gzip and takes it off
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			r.tb.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil || res.StatusCode != http.StatusOK || res.Uncompressed != (encoding == "gzip") {
			r.tb.Fatalf("%s: %d, %v, uncompressed %t", path, res.StatusCode, err, res.Uncompressed)
		}
		entries = entries[:0]
		for len(b) > 0 {
			n := int(b[0])<<8 | int(b[1])
			entries = append(entries, b[2:2+n])
			b = b[2+n:]
		}
	}
	return entries
}

func TestPublicWithoutCheckpoint(t *testing.T) {
	r := newRig(t)
	for _, path := range []string{"checkpoint", "key", "tile/0/000", "tile/entries/000.p/1"} {
		if a := r.do("", http.MethodGet, "/api/v1/ledger/"+path); a.status != http.StatusNotFound {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
		if a := r.do("", http.MethodGet, "/api/v1/ledger/"+path+"?x=1"); a.status != http.StatusBadRequest {
			t.Errorf("%s with a parameter: %d", path, a.status)
		}
	}
}

// A tile whose rows are gone, or were changed, is never served in part.
func TestDamagedTiles(t *testing.T) {
	long(t)
	r := newRig(t)
	n := r.newNotary()
	for range 300 {
		r.writeLog(n.Epoch(t)[0])
	}
	r.writeLog(n.Checkpoint(t))
	r.exec(t.Context(), "ALTER TABLE root_log DELETE WHERE entry_index = 7 SETTINGS mutations_sync = 1")
	r.exec(t.Context(), "ALTER TABLE root_log UPDATE node = '' WHERE entry_index = 255 SETTINGS mutations_sync = 1")
	for _, path := range []string{"tile/0/000", "tile/entries/000", "tile/1/000.p/1"} {
		if a := r.do("", http.MethodGet, "/api/v1/ledger/"+path); a.status != http.StatusInternalServerError {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	if n := r.counter("immutable_query_damaged_total"); n != 3 {
		t.Errorf("%v counted", n)
	}
	if a := r.do("", http.MethodGet, "/api/v1/ledger/tile/0/001.p/45"); a.status != http.StatusOK {
		t.Errorf("what is whole: %d", a.status)
	}
}

func FuzzTile(f *testing.F) {
	for _, seed := range []string{"000", "x001/x234/067.p/5", "001.p/255", "x/000", ".p/1"} {
		f.Add("0", seed)
	}
	f.Fuzz(func(t *testing.T, level, path string) {
		tl, ok := parseTile(level, path)
		if !ok {
			return
		}
		c2sp := tlog.Tile{H: 8, L: tl.level, N: int64(tl.first / 256), W: int(tl.width)}
		if want := fmt.Sprintf("tile/8/%s/%s", level, path); tl.first/256 < 1<<62 && c2sp.Path() != want {
			t.Errorf("%s is read as %s", want, c2sp.Path())
		}
	})
}
