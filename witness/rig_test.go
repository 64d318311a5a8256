package witness

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/merkle/testonly"
	"go.uber.org/goleak"
	"golang.org/x/mod/sumdb/note"
	"pgregory.net/rapid"

	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/ledger"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "witness" {
		os.Exit(witnessProcess(os.Args[2:]))
	}
	goleak.VerifyTestMain(m)
}

const testOrigin = "example.com/ledger"

// testLog is a root log, or a branch of one.
type testLog struct {
	tree   *testonly.Tree
	origin string
	signer note.Signer
}

// logKey draws the same key for a seed.
func logKey(tb rapid.TB, origin string, seed byte) (signer note.Signer, vkey string) {
	tb.Helper()
	private, vkey, err := note.GenerateKey(bytes.NewReader(bytes.Repeat([]byte{seed}, 64)), origin)
	if err != nil {
		tb.Fatal(err)
	}
	signer, err = note.NewSigner(private)
	if err != nil {
		tb.Fatal(err)
	}
	return signer, vkey
}

// newTestLog has as many entries. Those from fork on are of this branch.
func newTestLog(signer note.Signer, size, fork int, branch string) *testLog {
	l := &testLog{tree: testonly.New(rfc6962.DefaultHasher), origin: signer.Name(), signer: signer}
	for i := range size {
		entry := fmt.Sprint(i)
		if i >= fork {
			entry += branch
		}
		l.tree.AppendData([]byte(entry))
	}
	return l
}

func (l *testLog) root(size uint64) ledger.Hash {
	if size == 0 {
		return sha256.Sum256(nil)
	}
	return ledger.Hash(l.tree.HashAt(size))
}

func (l *testLog) checkpoint(tb rapid.TB, size uint64, signers ...note.Signer) []byte {
	tb.Helper()
	if len(signers) == 0 {
		signers = []note.Signer{l.signer}
	}
	signed, err := ledger.SignCheckpoint(&ledger.Checkpoint{Origin: l.origin, Size: size, Root: l.root(size)}, signers...)
	if err != nil {
		tb.Fatal(err)
	}
	return signed
}

func (l *testLog) proof(tb rapid.TB, from, to uint64) []ledger.Hash {
	tb.Helper()
	if from == 0 || from >= to {
		return nil
	}
	hashes, err := l.tree.ConsistencyProof(from, to)
	if err != nil {
		tb.Fatal(err)
	}
	proof := make([]ledger.Hash, len(hashes))
	for i, h := range hashes {
		proof[i] = ledger.Hash(h)
	}
	return proof
}

// request asks to go from one size to another.
func (l *testLog) request(tb rapid.TB, from, to uint64) []byte {
	tb.Helper()
	return encode(tb, &ledger.AddCheckpoint{OldSize: from, Proof: l.proof(tb, from, to), Checkpoint: l.checkpoint(tb, to)})
}

func encode(tb rapid.TB, a *ledger.AddCheckpoint) []byte {
	tb.Helper()
	body, err := a.Encode()
	if err != nil {
		tb.Fatal(err)
	}
	return body
}

// testKey is a witness's key; each call makes the same.
func testKey(tb rapid.TB) *Key {
	tb.Helper()
	k, err := parseKey("PRIVATE+KEY+w.example/1+a9595a9b+BAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH")
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

func mustTrust(tb rapid.TB, text string) *ledger.Trust {
	tb.Helper()
	trust, err := ledger.ParseTrust([]byte(text))
	if err != nil {
		tb.Fatal(err)
	}
	return trust
}

// running is a witness that runs.
type running struct {
	*Service

	tb   rapid.TB
	reg  *prometheus.Registry
	url  string
	logs *bytes.Buffer
	stop func()
}

// start returns when the witness is ready.
func start(tb rapid.TB, cfg Config, trust *ledger.Trust) *running {
	tb.Helper()
	r := &running{tb: tb, reg: prometheus.NewRegistry(), logs: new(bytes.Buffer)}
	logger := slog.New(slog.NewTextHandler(r.logs, nil))
	var err error
	r.Service, err = New(cfg, testKey(tb), trust, r.reg, logger)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	server := httptest.NewServer(httpserver.NewRouter(logger, r.Routes()...))
	r.url = server.URL
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		server.Close()
		cancel()
		if err := <-ended; err != nil {
			tb.Errorf("running: %v", err)
		}
	}
	for r.Ready(ctx) != nil {
		select {
		case err := <-ended:
			cancel()
			server.Close()
			tb.Fatalf("running: %v", err)
		default:
		}
	}
	return r
}

func startCleanly(t *testing.T, cfg Config, trust *ledger.Trust) *running {
	t.Helper()
	r := start(t, cfg, trust)
	t.Cleanup(r.stop)
	return r
}

type answer struct {
	body string
	kind string
	code int
}

func (r *running) post(body []byte) answer {
	r.tb.Helper()
	a, err := post(r.url, body)
	if err != nil {
		r.tb.Fatal(err)
	}
	return a
}

func post(url string, body []byte) (answer, error) {
	resp, err := http.Post(url+"/add-checkpoint", "text/plain", bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return answer{string(text), resp.Header.Get("Content-Type"), resp.StatusCode}, err
}

func (r *running) get(path string) (int, string) {
	r.tb.Helper()
	resp, err := http.Get(r.url + path)
	if err != nil {
		r.tb.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		r.tb.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// cosigned checks that an answer is the witness's cosignature of a checkpoint.
func cosigned(tb rapid.TB, a answer, checkpoint []byte) {
	tb.Helper()
	if a.code != http.StatusOK {
		tb.Fatalf("status %d: %s", a.code, a.body)
	}
	n, err := note.Open(append(bytes.Clone(checkpoint), a.body...), note.VerifierList(testKey(tb).verifier))
	if err != nil || len(n.Sigs) != 1 {
		tb.Fatalf("%q does not cosign %q: %v", a.body, checkpoint, err)
	}
}

// metric sums a metric's values over the labels that contain text.
func (r *running) metric(name, text string) float64 {
	r.tb.Helper()
	families, err := r.reg.Gather()
	if err != nil {
		r.tb.Fatal(err)
	}
	sum, found := 0.0, false
	for _, f := range families {
		if f.GetName() != "immutable_witness_"+name {
			continue
		}
		for _, m := range f.GetMetric() {
			if !strings.Contains(fmt.Sprint(m.GetLabel()), text) {
				continue
			}
			found = true
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	if !found && text == "" {
		r.tb.Fatalf("there is no metric %s", name)
	}
	return sum
}

func statePath(dir, suffix string) string { return filepath.Join(dir, originHash(testOrigin)+suffix) }
