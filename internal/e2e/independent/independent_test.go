package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"

	"getimmutable.dev/immutable/ledger"
)

const testOrigin = "example.com/ledger"

func newKey(t *testing.T, name string, seed byte) (note.Signer, string) {
	t.Helper()
	private, vkey, err := note.GenerateKey(bytes.NewReader(bytes.Repeat([]byte{seed}, 64)), name)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	return signer, vkey
}

// rootLog is one as it is stored: each entry, its hash, and the roots of the subtrees that it completes.
type rootLog struct {
	ledger.Head

	entries [][]byte
	levels  [][]ledger.Hash // level k has the roots of complete subtrees of 256^k entries
	signer  note.Signer
	vkey    string
}

func newRootLog(t *testing.T, size int) *rootLog {
	t.Helper()
	l := &rootLog{levels: make([][]ledger.Hash, 8)}
	l.signer, l.vkey = newKey(t, testOrigin, 1)
	at := time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC)
	for i := range uint64(size) {
		e := &ledger.Entry{Index: i, Previous: l.LastLeafHash, Time: at.Add(time.Duration(i) * 10 * time.Second)}
		if i == 0 {
			signed, err := note.Sign(&note.Note{Text: ledger.KeyChangeText(testOrigin, 0, l.vkey)}, l.signer)
			if err != nil {
				t.Fatal(err)
			}
			e.Key = &ledger.KeyChange{VerifierKey: l.vkey, Signature: string(signed)}
		} else {
			e.Epoch = &ledger.Epoch{MapRoot: ledger.Hash{byte(i)}, Chains: i, Positions: []uint64{i, 2 * i}}
		}
		text, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		hash := ledger.EntryHash(text)
		l.entries = append(l.entries, text)
		l.levels[0] = append(l.levels[0], hash)
		for k, root := range l.AppendHash(hash) {
			l.levels[k+1] = append(l.levels[k+1], root)
		}
	}
	return l
}

// files are those of C2SP tlog-tiles.
func (l *rootLog) files(t *testing.T) map[string][]byte {
	t.Helper()
	signed, err := ledger.SignCheckpoint(&ledger.Checkpoint{Origin: testOrigin, Size: l.Size, Root: l.Root()}, l.signer)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{"checkpoint": signed}
	for level, hashes := range l.levels {
		for i := range hashes {
			path := layout.TilePath(uint64(level), uint64(i/256), layout.PartialTileSize(uint64(level), uint64(i/256), l.Size))
			files[path] = append(files[path], hashes[i][:]...)
		}
	}
	for i, entry := range l.entries {
		path := layout.EntriesPath(uint64(i/256), layout.PartialTileSize(0, uint64(i/256), l.Size))
		files[path] = append(binary.BigEndian.AppendUint16(files[path], uint16(len(entry))), entry...)
	}
	return files
}

// Another implementation reads our root log, at sizes around those where tiles fill, and sees each byte that is changed.
func TestCheck(t *testing.T) {
	sizes := []int{1, 2, 255, 256, 257, 1000}
	if !testing.Short() {
		sizes = append(sizes, 65536, 66_000)
	}
	for _, size := range sizes {
		l := newRootLog(t, size)
		files := l.files(t)
		if code := checkFiles(t, files, l.vkey); code != 0 {
			t.Errorf("size %d: exit code %d", size, code)
		}
		if size > 1000 {
			continue
		}
		_, other := newKey(t, testOrigin, 2)
		if code := checkFiles(t, files, other); code != 1 {
			t.Errorf("size %d, another key: exit code %d", size, code)
		}
		for path := range files {
			changed := map[string][]byte{}
			for p, content := range files {
				changed[p] = bytes.Clone(content)
			}
			changed[path][len(changed[path])/2] ^= 1
			if code := checkFiles(t, changed, l.vkey); code != 1 {
				t.Errorf("size %d, %s is changed: exit code %d", size, path, code)
			}
		}
	}
}

func checkFiles(t *testing.T, files map[string][]byte, vkey string) int {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content, ok := files[strings.TrimPrefix(r.URL.Path, "/api/v1/ledger/")]
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(content)
	}))
	defer server.Close()
	return run([]string{"check", "--url", server.URL + "/api/v1/ledger/", "--vkey", vkey})
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"x"}, {"check"}, {"check", "--url", "http://127.0.0.1:1/"}, {"witness", "--name", "x"}, {"check", "--x"}} {
		if code := run(args); code != 2 {
			t.Errorf("%v: exit code %d", args, code)
		}
	}
	if code := run([]string{"check", "--url", "http://127.0.0.1:1/", "--vkey", "x"}); code != 1 {
		t.Errorf("no key: exit code %d", code)
	}
}

// Tessera's logs are cosigned by our witness, which runs as its operator would run it: Tessera is what asks, proves and
// checks the answer.
func TestWitnessOfTessera(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "immutable")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "./cmd/immutable")
	build.Dir = "../../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	for _, algorithm := range []string{"ed25519", "ml-dsa-44"} {
		t.Run(algorithm, func(t *testing.T) { witnessOfTessera(t, binary, algorithm) })
	}
}

func witnessOfTessera(t *testing.T, binary, algorithm string) {
	t.Helper()
	dir := t.TempDir()
	signer, vkey := newKey(t, "example.com/tessera", 3)
	trustFile := filepath.Join(dir, "trust")
	if err := os.WriteFile(trustFile, []byte(vkey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(dir, "w.key")
	out, err := exec.CommandContext(t.Context(), binary, "witness-key", "create", "--file", key, "--name", "w.example/1", "--algorithm", algorithm).Output()
	if err != nil {
		t.Fatal(err)
	}
	witnessKey := strings.TrimSpace(string(out))
	address := startWitness(t, binary, "--data", filepath.Join(dir, "data"), "--key-file", key, "--trust", trustFile)

	at, err := url.Parse("http://" + address)
	if err != nil {
		t.Fatal(err)
	}
	w, err := tessera.NewWitness(witnessKey, at)
	if err != nil {
		t.Fatal(err)
	}
	trust, err := ledger.ParseTrust([]byte("log " + vkey + "\nwitness w " + witnessKey + "\nquorum w\n"))
	if err != nil {
		t.Fatal(err)
	}
	storage := filepath.Join(dir, "log")
	// The second time it knows only what is in its files.
	for round := range 2 {
		driver, err := posix.New(t.Context(), posix.Config{Path: storage})
		if err != nil {
			t.Fatal(err)
		}
		options := tessera.NewAppendOptions().WithCheckpointSigner(signer).WithBatching(4, 50*time.Millisecond).
			WithCheckpointInterval(100*time.Millisecond).WithWitnesses(tessera.NewWitnessGroup(1, w), nil)
		appender, shutdown, reader, err := tessera.NewAppender(t.Context(), driver, options)
		if err != nil {
			t.Fatal(err)
		}
		awaiter := tessera.NewPublicationAwaiter(t.Context(), reader.ReadCheckpoint, 20*time.Millisecond)
		for i := range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			_, signed, err := awaiter.Await(ctx, appender.Add(ctx, tessera.NewEntry(fmt.Appendf(nil, "%d %d", round, i))))
			cancel()
			if err != nil {
				t.Fatal(err)
			}
			opened, fault := trust.Open(signed, nil, time.Now())
			if fault != nil || len(opened.Witnesses) != 1 || opened.Size == 0 {
				t.Fatalf("%q: %+v, %v", signed, opened, fault)
			}
		}
		if err := shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// startWitness returns the address that it prints.
func startWitness(t *testing.T, binary string, args ...string) string {
	t.Helper()
	// Not of the test's context, which ends before its clean-up: the witness is to end by itself.
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), binary, append([]string{"witness", "--addr", "127.0.0.1:0", "--internal-addr", "127.0.0.1:0"}, args...)...)
	logs, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the witness: %v", err)
		}
	})
	return servingAt(t, logs)
}

// servingAt reads the log until it says where the API is, and goes on reading in the background.
func servingAt(t *testing.T, logs io.Reader) string {
	t.Helper()
	found := make(chan string, 1)
	go func() { // ends with the process
		lines := bufio.NewScanner(logs)
		for lines.Scan() {
			var line struct{ Msg, Address string }
			if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "serving" {
				found <- line.Address
			}
		}
		close(found)
	}()
	address := <-found
	if address == "" {
		t.Fatal("the witness ended")
	}
	return address
}
