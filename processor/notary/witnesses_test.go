package notary

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/merkle/testonly"
	"go.uber.org/goleak"
	"golang.org/x/mod/sumdb/note"

	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/witness"
)

// witnessedLog is a root log that grows.
type witnessedLog struct {
	t      *testing.T
	tree   *testonly.Tree
	signer note.Signer
	vkey   string
	proved atomic.Int32 // calls of prove
}

func newWitnessedLog(t *testing.T) *witnessedLog {
	t.Helper()
	private, vkey, err := note.GenerateKey(bytes.NewReader(make([]byte, 64)), "example.com/ledger")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	return &witnessedLog{t: t, tree: testonly.New(rfc6962.DefaultHasher), signer: signer, vkey: vkey}
}

// grow signs the log with n more entries.
func (l *witnessedLog) grow(n int) []byte {
	l.t.Helper()
	for range n {
		l.tree.AppendData(fmt.Append(nil, l.tree.Size()))
	}
	return l.sign(l.tree.Size())
}

func (l *witnessedLog) sign(size uint64, signers ...note.Signer) []byte {
	l.t.Helper()
	c := &ledger.Checkpoint{Origin: "example.com/ledger", Size: size, Root: ledger.Hash(l.tree.HashAt(size))}
	signed, err := ledger.SignCheckpoint(c, append([]note.Signer{l.signer}, signers...)...)
	if err != nil {
		l.t.Fatal(err)
	}
	return signed
}

func (l *witnessedLog) prove(_ context.Context, oldSize uint64) ([]ledger.Hash, error) {
	l.proved.Add(1)
	hashes, err := l.tree.ConsistencyProof(oldSize, l.tree.Size())
	proof := make([]ledger.Hash, len(hashes))
	for i, h := range hashes {
		proof[i] = ledger.Hash(h)
	}
	return proof, err
}

// realWitness runs until the test ends. asked counts its requests.
type realWitness struct {
	key   *witness.Key
	url   string
	asked atomic.Int32
	off   atomic.Bool // it answers 503
}

func (l *witnessedLog) witness(t *testing.T, name string) *realWitness {
	t.Helper()
	key, err := witness.CreateKey(filepath.Join(t.TempDir(), "key"), name, witness.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	trust, err := ledger.ParseTrust([]byte(l.vkey))
	if err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.DiscardHandler)
	s, err := witness.New(witness.Config{Dir: t.TempDir()}, key, trust, prometheus.NewRegistry(), logger)
	if err != nil {
		t.Fatal(err)
	}
	w := &realWitness{key: key}
	routes := httpserver.NewRouter(logger, s.Routes()...)
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.asked.Add(1)
		if w.off.Load() {
			rw.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		routes.ServeHTTP(rw, r)
	}))
	w.url = server.URL
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		server.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("witness: %v", err)
		}
	})
	for s.Ready(ctx) != nil {
		select {
		case err := <-ended:
			t.Fatalf("witness: %v", err)
		default:
		}
	}
	return w
}

// asker is the notary's side.
type asker struct {
	*witnesses

	t    *testing.T
	reg  *prometheus.Registry
	logs *bytes.Buffer
}

func newAsker(t *testing.T, cfg WitnessesConfig) *asker {
	t.Helper()
	a := &asker{t: t, reg: prometheus.NewRegistry(), logs: new(bytes.Buffer)}
	var err error
	a.witnesses, err = newWitnesses(cfg, a.reg, slog.New(slog.NewTextHandler(a.logs, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.close)
	return a
}

// count sums a metric over the labels that contain text.
func (a *asker) count(name, text string) (sum float64) {
	a.t.Helper()
	families, err := a.reg.Gather()
	if err != nil {
		a.t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "immutable_notary_witness_"+name && strings.Contains(fmt.Sprint(m.GetLabel()), text) {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func TestCosigning(t *testing.T) {
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, leaks) })
	l := newWitnessedLog(t)
	one, two := l.witness(t, "one.example"), l.witness(t, "two.example")
	policy := "log " + l.vkey + "\nwitness one " + one.key.VerifierKey + " " + one.url + "\nwitness two " + two.key.VerifierKey + " " + two.url + "/\n" +
		"group both all one two\nquorum both\n"
	trust, err := ledger.ParseTrust([]byte(policy))
	if err != nil {
		t.Fatal(err)
	}
	a := newAsker(t, WitnessesConfig{Policy: []byte(policy)})
	check := func(signed []byte, want int, wantQuorum bool) []byte {
		t.Helper()
		got, n, quorum := a.cosign(t.Context(), signed, l.prove)
		if n != want || quorum != wantQuorum || !bytes.HasPrefix(got, signed) {
			t.Fatalf("%q, %d, %v; want %d, %v; log: %s", got, n, quorum, want, wantQuorum, a.logs)
		}
		if _, f := trust.Open(got, nil, time.Now()); (f == nil) != wantQuorum {
			t.Fatalf("verifiers say of %q: %v", got, f)
		}
		return got
	}
	check(l.grow(5), 2, true)
	for range 3 {
		check(l.grow(3), 2, true)
	}
	if one.asked.Load() != 4 || l.proved.Load() != 6 {
		t.Errorf("%d requests and %d proofs for 4 checkpoints", one.asked.Load(), l.proved.Load())
	}
	// Who has cosigned is not asked again.
	again := check(l.grow(1), 2, true)
	if got := check(again, 2, true); !bytes.Equal(got, again) || one.asked.Load() != 5 {
		t.Errorf("%q became %q after %d requests", again, got, one.asked.Load())
	}

	// A notary that knows nothing learns from the witness where it is.
	a = newAsker(t, WitnessesConfig{Policy: []byte(policy)})
	check(l.grow(7), 2, true)
	if one.asked.Load() != 7 {
		t.Errorf("%d requests, want two more", one.asked.Load())
	}
	// And then it may sign the same size again. It sends no cosignature of others.
	a = newAsker(t, WitnessesConfig{Policy: []byte(policy)})
	check(l.grow(0), 2, true)
	others := l.sign(l.tree.Size(), stranger(t, "other.example"))
	if got := withoutCosignatures(others, "example.com/ledger"); !bytes.Equal(got, l.grow(0)) {
		t.Errorf("%q is sent", got)
	}
	check(others, 2, true)

	// One is away for two checkpoints.
	two.off.Store(true)
	alone := check(l.grow(2), 1, false)
	check(l.grow(2), 1, false)
	if a.count("errors_total", `value:"two"`) != 2 || a.count("errors_total", `"refused"`) != 2 || strings.Count(a.logs.String(), "a witness does not cosign") != 1 {
		t.Errorf("%v errors, log: %s", a.count("errors_total", ""), a.logs)
	}
	two.off.Store(false)
	if got, n, _ := a.cosign(t.Context(), alone, l.prove); n != 1 || !bytes.Equal(got, alone) {
		t.Errorf("an old checkpoint: %q, %d", got, n) // its proof is for a larger one
	}
	check(l.grow(0), 2, true)
	if strings.Count(a.logs.String(), "a witness cosigns again") != 1 || a.count("cosigned_entries", `"two"`) != float64(l.tree.Size()) {
		t.Errorf("%v entries, log: %s", a.count("cosigned_entries", `"two"`), a.logs)
	}
}

// The witness of github.com/transparency-dev/witness is one as ours is.
func TestForeignWitness(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds another module")
	}
	binary := filepath.Join(t.TempDir(), "independent")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, ".")
	build.Dir = "../../internal/e2e/independent"
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the witness: %v\n%s", err, out)
	}
	l := newWitnessedLog(t)
	cmd := exec.CommandContext(t.Context(), binary, "witness", "--log-vkey", l.vkey, "--name", "foreign.example/1")
	cmd.Stderr = t.Output()
	stdin, err := cmd.StdinPipe() // it ends with this
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var vkey, url string
	if _, err := fmt.Fscan(stdout, &vkey, &url); err != nil {
		t.Fatal(err)
	}
	policy := "log " + l.vkey + "\nwitness foreign " + vkey + " " + url + "\nquorum foreign\n"
	trust, err := ledger.ParseTrust([]byte(policy))
	if err != nil {
		t.Fatal(err)
	}
	// At each third size the notary has forgotten where the witness is.
	var a *asker
	for i := range 9 {
		if i%3 == 0 {
			a = newAsker(t, WitnessesConfig{Policy: []byte(policy)})
		}
		got, n, quorum := a.cosign(t.Context(), l.grow(i*i+1), l.prove)
		if n != 1 || !quorum {
			t.Fatalf("size %d: %q, %d, %v; log: %s", l.tree.Size(), got, n, quorum, a.logs)
		}
		if o, f := trust.Open(got, nil, time.Now()); f != nil || len(o.Witnesses) != 1 {
			t.Fatalf("verifiers say of %q: %v", got, f)
		}
	}
	if got, n, quorum := a.cosign(t.Context(), l.sign(5), l.prove); n != 0 || quorum || a.count("errors_total", `"ahead"`) != 1 {
		t.Errorf("an old one: %q, %d, %v; log: %s", got, n, quorum, a.logs)
	}
	if err := errors.Join(stdin.Close(), cmd.Wait()); err != nil {
		t.Errorf("the witness: %v", err)
	}
}

// stranger signs like a witness.
func stranger(t *testing.T, name string) *witness.Key {
	t.Helper()
	key, err := witness.CreateKey(filepath.Join(t.TempDir(), "key"), name, witness.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Whatever one witness does, the others are asked, nothing that it says is believed, and it is over in time.
func TestBadWitnesses(t *testing.T) {
	t.Parallel()
	l := newWitnessedLog(t)
	signed := l.grow(9)
	key, other := stranger(t, "bad.example"), stranger(t, "bad.example")
	// line is what a witness with this key answers to that checkpoint.
	line := func(key *witness.Key, signed []byte) []byte {
		t.Helper()
		n, err := note.Open(signed, note.VerifierList(mustVerifier(t, l.vkey)))
		if err != nil {
			t.Fatal(err)
		}
		_, line, err := ledger.Cosign(n, key)
		if err != nil {
			t.Fatal(err)
		}
		return line
	}
	good, others, smaller := line(key, signed), line(other, signed), line(key, l.sign(8))
	size := func(w http.ResponseWriter, text string) {
		w.Header().Set("Content-Type", "text/x.tlog.size")
		w.WriteHeader(http.StatusConflict)
		_, _ = fmt.Fprint(w, text)
	}
	var sizes atomic.Uint64
	for _, tc := range []struct {
		name   string
		answer http.HandlerFunc // nil: nobody listens
		reason string           // "" where it has cosigned
	}{
		{"a good one", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(good) }, ""},
		{"nobody", nil, witnessUnreachable},
		{"silence", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, witnessUnreachable},
		{"half an answer, then silence", func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write(good[:20])
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}, witnessUnreachable},
		{"half an answer", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(good[:20])
			panic(http.ErrAbortHandler)
		}, witnessUnreachable},
		{"500", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, witnessRefused},
		{"403", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "who are you?", http.StatusForbidden) }, witnessRefused},
		{"a good answer with another status", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusAccepted)
			_, _ = w.Write(good)
		}, witnessRefused},
		{"another place", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusTemporaryRedirect)
		}, witnessRefused},
		{"nothing", func(http.ResponseWriter, *http.Request) {}, witnessInvalid},
		{"a page", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "<html>") }, witnessInvalid},
		{"another key's signature", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(others) }, witnessInvalid},
		{"a signature of another size", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(smaller) }, witnessInvalid},
		{"too much", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(bytes.Repeat(good, 1000))
		}, witnessInvalid},
		{"without end", func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(good); err != nil {
					return
				}
			}
		}, witnessInvalid},
		{"a size that is none", func(w http.ResponseWriter, _ *http.Request) { size(w, "many\n") }, witnessInvalid},
		{"a size with a leading zero", func(w http.ResponseWriter, _ *http.Request) { size(w, "05\n") }, witnessInvalid},
		{"a size without its type", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusConflict)
			_, _ = fmt.Fprint(w, "5\n")
		}, witnessInvalid},
		{"the size that it was asked from", func(w http.ResponseWriter, _ *http.Request) { size(w, "0\n") }, witnessRefused},
		{"another size each time", func(w http.ResponseWriter, _ *http.Request) { size(w, fmt.Sprintln(sizes.Add(1)%8+1)) }, witnessRefused},
		{"more than there is", func(w http.ResponseWriter, _ *http.Request) { size(w, "10\n") }, witnessAhead},
		{"2^64-1", func(w http.ResponseWriter, _ *http.Request) { size(w, "18446744073709551615\n") }, witnessAhead},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			honest := l.witness(t, "good.example")
			url := "http://127.0.0.1:1"
			if tc.answer != nil {
				server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					// Only when the request is read does the server see that the client leaves.
					_, _ = io.Copy(io.Discard, r.Body)
					tc.answer(w, r)
				}))
				t.Cleanup(server.Close)
				url = server.URL
			}
			policy := "log " + l.vkey + "\nwitness bad " + key.VerifierKey + " " + url + "\nwitness good " + honest.key.VerifierKey + " " + honest.url + "\nquorum good\n"
			a := newAsker(t, WitnessesConfig{Policy: []byte(policy), Timeout: time.Second})
			for round := 1; round <= 2; round++ {
				began := time.Now()
				got, n, quorum := a.cosign(t.Context(), signed, l.prove)
				if took := time.Since(began); took > 10*time.Second {
					t.Errorf("it took %s", took)
				}
				want := 1
				if tc.reason == "" {
					want = 2
				}
				if n != want || !quorum || !strings.HasPrefix(string(got), string(signed)+"— ") || strings.Count(string(got), "—") != 1+want {
					t.Fatalf("%q, %d, %v; want %d", got, n, quorum, want)
				}
				if tc.reason == "" {
					continue
				}
				if errs := a.count("errors_total", `"`+tc.reason+`"`); errs != float64(round) || a.count("errors_total", "") != errs {
					t.Errorf("%v of %v errors are of reason %s in round %d; log: %s", errs, a.count("errors_total", ""), tc.reason, round, a.logs)
				}
				if tooLong := tc.name == "too much" || tc.name == "without end"; tooLong != strings.Contains(a.logs.String(), "longer than 65536 bytes") {
					t.Errorf("log: %s", a.logs)
				}
				if n := strings.Count(a.logs.String(), "\n"); n != 1 {
					t.Errorf("%d lines in the log after round %d: %s", n, round, a.logs)
				}
			}
		})
	}
}

func mustVerifier(t *testing.T, vkey string) note.Verifier {
	t.Helper()
	v, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// A proof that cannot be had is a reason of its own; and the caller's deadline goes before everything.
func TestWitnessesWithoutProof(t *testing.T) {
	l := newWitnessedLog(t)
	w := l.witness(t, "w.example")
	policy := "log " + l.vkey + "\nwitness w " + w.key.VerifierKey + " " + w.url + "\nquorum w"
	a := newAsker(t, WitnessesConfig{Policy: []byte(policy)})
	if _, n, quorum := a.cosign(t.Context(), l.grow(3), l.prove); n != 1 || !quorum {
		t.Fatal(a.logs)
	}
	next := l.grow(3)
	got, n, quorum := a.cosign(t.Context(), next, func(context.Context, uint64) ([]ledger.Hash, error) { return nil, errors.New("clickhouse is away") })
	if n != 0 || quorum || !bytes.Equal(got, next) || a.count("errors_total", witnessUnproved) != 1 {
		t.Errorf("%q, %d, %v, log: %s", got, n, quorum, a.logs)
	}
	ctx, cancel := context.WithCancel(t.Context())
	got, n, quorum = a.cosign(ctx, next, func(ctx context.Context, _ uint64) ([]ledger.Hash, error) {
		cancel()
		<-ctx.Done()
		return nil, ctx.Err()
	})
	if n != 0 || quorum || !bytes.Equal(got, next) || a.count("errors_total", witnessUnproved) != 2 {
		t.Errorf("%q, %d, %v, log: %s", got, n, quorum, a.logs)
	}
	if got, n, _ = a.cosign(t.Context(), []byte("x"), l.prove); n != 0 || string(got) != "x" {
		t.Errorf("no checkpoint: %q, %d", got, n)
	}
	if _, n, quorum = a.cosign(t.Context(), next, l.prove); n != 1 || !quorum {
		t.Errorf("%d, %v, log: %s", n, quorum, a.logs)
	}
}

func TestWitnessesConfig(t *testing.T) {
	l := newWitnessedLog(t)
	key := stranger(t, "w.example").VerifierKey
	many := "log " + l.vkey + "\nquorum none\n"
	for i := range maxWitnesses + 1 {
		many += fmt.Sprintf("witness w%d %s https://w.example/%d\n", i, stranger(t, fmt.Sprintf("w%d.example", i)).VerifierKey, i)
	}
	for _, tc := range []struct {
		name string
		cfg  WitnessesConfig
		want string
	}{
		{"a witness without URL", WitnessesConfig{Policy: []byte("log " + l.vkey + "\nwitness w " + key + "\nquorum w")}, ""},
		{"a key alone", WitnessesConfig{Policy: []byte(l.vkey)}, ""},
		{"15", WitnessesConfig{Policy: []byte(many[:strings.LastIndex(many, "witness")])}, ""},
		{"16", WitnessesConfig{Policy: []byte(many)}, "has room for 15"},
		{"nothing", WitnessesConfig{}, "names no log"},
		{"ftp", WitnessesConfig{Policy: []byte("log " + l.vkey + "\nwitness w " + key + " ftp://w.example\nquorum w")}, "URL of"},
		{"no host", WitnessesConfig{Policy: []byte("log " + l.vkey + "\nwitness w " + key + " /x\nquorum w")}, "URL of"},
		{"a password", WitnessesConfig{Policy: []byte("log " + l.vkey + "\nwitness w " + key + " https://a:b@w.example\nquorum w")}, "URL of"},
		{"a query", WitnessesConfig{Policy: []byte("log " + l.vkey + "\nwitness w " + key + " https://w.example/?x\nquorum w")}, "URL of"},
		{"limits", WitnessesConfig{Policy: []byte(l.vkey), Timeout: time.Hour, MaxAnswerBytes: 1}, "witness timeout"},
	} {
		w, err := newWitnesses(tc.cfg, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
		if err == nil && tc.name == "a key alone" {
			if got, n, quorum := w.cosign(t.Context(), l.grow(1), l.prove); n != 0 || !quorum || len(got) == 0 {
				t.Errorf("a policy without witnesses: %q, %d, %v", got, n, quorum)
			}
		}
	}
}
