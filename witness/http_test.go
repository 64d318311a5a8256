package witness

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"getimmutable.dev/immutable/ledger"
)

// Each case of C2SP tlog-witness. The witness has cosigned size 5.
func TestStatusCodes(t *testing.T) {
	key, vkey := logKey(t, testOrigin, 1)
	rotated, rotatedVkey := logKey(t, testOrigin, 2)
	stranger, _ := logKey(t, testOrigin, 3)
	elsewhere, _ := logKey(t, "example.com/other", 1)
	empty, emptyVkey := logKey(t, "example.com/empty", 4)
	l, fork := newTestLog(key, 9, 9, ""), newTestLog(key, 9, 3, "fork")
	later := newTestLog(rotated, 9, 9, "")
	unknown, other := newTestLog(elsewhere, 9, 9, ""), newTestLog(empty, 9, 9, "")
	trust := mustTrust(t, "log "+vkey+"\nlog "+rotatedVkey+"\nlog "+emptyVkey+"\nquorum none")
	checkpoint := l.checkpoint(t, 7)
	wrongEmpty, err := ledger.SignCheckpoint(&ledger.Checkpoint{Origin: "example.com/empty", Root: ledger.Hash{1}}, empty)
	if err != nil {
		t.Fatal(err)
	}
	proof := l.proof(t, 5, 7)
	with := func(old uint64, proof []ledger.Hash, signed []byte) []byte {
		return encode(t, &ledger.AddCheckpoint{OldSize: old, Proof: proof, Checkpoint: signed})
	}
	// A signature line with the key's name and hash, but made by another key.
	disguised := l.checkpoint(t, 7, disguise{stranger, key})
	text, _, _ := bytes.Cut(checkpoint, []byte("\n\n"))
	extended, err := note.Sign(&note.Note{Text: string(text) + "\nmore\n"}, key)
	if err != nil {
		t.Fatal(err)
	}
	crowded := bytes.Clone(checkpoint)
	for i := range 16 {
		one, _ := logKey(t, "example.com/"+strconv.Itoa(i), byte(i))
		signed, err := note.Sign(&note.Note{Text: string(text) + "\n"}, one)
		if err != nil {
			t.Fatal(err)
		}
		crowded = append(crowded, signed[len(text)+2:]...)
	}
	for _, tc := range []struct {
		name string
		body []byte
		want int
		says string // in the answer
	}{
		{"the next", with(5, proof, checkpoint), 200, ""},
		{"the same", with(5, nil, l.checkpoint(t, 5)), 200, ""},
		{"the next by the next key", with(5, later.proof(t, 5, 8), later.checkpoint(t, 8)), 200, ""},
		{"with a stranger's signature beside", with(5, proof, l.checkpoint(t, 7, key, stranger)), 200, ""},
		{"of an empty log", with(0, nil, other.checkpoint(t, 0)), 200, ""},

		{"nothing", nil, 400, "empty line"},
		{"no size", []byte("old\n\n" + string(checkpoint)), 400, "first line"},
		{"no checkpoint", []byte("old 5\n\nx"), 400, "invalid checkpoint"},
		{"an unsigned checkpoint", []byte("old 5\n\n" + testOrigin + "\n7\nAAAA\n"), 400, "invalid checkpoint"},
		{"an extension line", with(5, proof, extended), 400, "three lines"},
		{"17 signatures", with(5, proof, crowded), 400, "17 signatures"},
		{"64 hashes", []byte("old 5\n" + strings.Repeat("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n", 64) + "\n" + string(checkpoint)), 400, "more than 63"},
		{"the old size above the new", with(8, nil, checkpoint), 400, "above"},
		{"the old size above the new, and wrong", with(6, nil, l.checkpoint(t, 5)), 400, "above"},

		{"by a stranger", with(5, proof, l.checkpoint(t, 7, stranger)), 403, "no believed key"},
		{"in the key's name, by a stranger", with(5, proof, disguised), 403, "no believed key"},
		{"another root under the signature", with(5, proof, bytes.Replace(checkpoint, []byte("\n7\n"), []byte("\n6\n"), 1)), 403, "no believed key"},

		{"an unknown log", with(0, nil, unknown.checkpoint(t, 7)), 404, "unknown log"},

		{"from nothing", with(0, nil, checkpoint), 409, "5\n"},
		{"from an older one", with(4, l.proof(t, 4, 7), checkpoint), 409, "5\n"},
		{"from a newer one", with(6, l.proof(t, 6, 7), checkpoint), 409, "5\n"},
		{"an older one", with(3, nil, l.checkpoint(t, 3)), 409, "5\n"},
		{"a log never seen", with(3, nil, other.checkpoint(t, 3)), 409, "0\n"},

		{"no proof", with(5, nil, checkpoint), 422, "invalid proof"},
		{"another proof", with(5, l.proof(t, 5, 8), checkpoint), 422, "invalid proof"},
		{"a proof too long", with(5, append(l.proof(t, 5, 7), ledger.Hash{}), checkpoint), 422, "invalid proof"},
		{"a fork", with(5, fork.proof(t, 5, 7), fork.checkpoint(t, 7)), 422, "invalid proof"},
		{"a fork of the same size", with(5, nil, fork.checkpoint(t, 5)), 422, "proof of a fork"},
		{"a proof of the same", with(5, proof, l.checkpoint(t, 5)), 422, "invalid proof"},
		{"a proof from nothing", with(0, proof, other.checkpoint(t, 7)), 422, "nothing can be proved"},
		{"an empty log with another root", with(0, nil, wrongEmpty), 422, "empty log"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := startCleanly(t, Config{Dir: t.TempDir()}, trust)
			cosigned(t, w.post(l.request(t, 0, 5)), l.checkpoint(t, 5))
			before := w.metric("requests_total", "")
			got := w.post(tc.body)
			if got.code != tc.want || !strings.Contains(got.body, tc.says) {
				t.Fatalf("status %d: %q, want %d with %q", got.code, got.body, tc.want, tc.says)
			}
			if w.metric("requests_total", "") != before+1 || w.metric("requests_total", fmt.Sprintf(`"%d"`, tc.want)) < 1 {
				t.Error("it was not counted")
			}
			switch tc.want {
			case http.StatusOK:
				a, err := ledger.ParseAddCheckpoint(tc.body)
				if err != nil {
					t.Fatal(err)
				}
				cosigned(t, got, a.Checkpoint)
			case http.StatusConflict:
				if got.body != tc.says || got.kind != "text/x.tlog.size" {
					t.Errorf("%q of type %q", got.body, got.kind)
				}
				fallthrough
			default:
				// It has forgotten nothing, and nothing came to it.
				cosigned(t, w.post(l.request(t, 5, 6)), l.checkpoint(t, 6))
			}
		})
	}
}

type disguise struct {
	note.Signer

	as note.Signer
}

func (d disguise) KeyHash() uint32 { return d.as.KeyHash() }

// What was cosigned can be read, and the first proof of a fork is kept.
func TestMonitoring(t *testing.T) {
	key, vkey := logKey(t, testOrigin, 1)
	l, fork := newTestLog(key, 9, 9, ""), newTestLog(key, 9, 3, "fork")
	cfg := Config{Dir: t.TempDir()}
	w := startCleanly(t, cfg, mustTrust(t, vkey))
	path := "/" + originHash(testOrigin) + "/checkpoint"
	if code, body := w.get(path); code != http.StatusNotFound {
		t.Errorf("%d %s", code, body)
	}
	if code, _ := w.get("/" + originHash("x") + "/checkpoint"); code != http.StatusNotFound {
		t.Error(code)
	}
	if code, body := w.get("/key"); code != http.StatusOK || body != testKey(t).VerifierKey+"\n" {
		t.Errorf("%d %s", code, body)
	}
	first := w.post(l.request(t, 0, 4))
	cosigned(t, first, l.checkpoint(t, 4))
	code, body := w.get(path)
	if want := string(l.checkpoint(t, 4)) + first.body; code != http.StatusOK || body != want {
		t.Errorf("%d %q, want %q", code, body, want)
	}
	trust := mustTrust(t, "log "+vkey+"\nwitness w "+testKey(t).VerifierKey+"\nquorum w")
	if o, f := trust.Open([]byte(body), nil, time.Now()); f != nil || o.Size != 4 {
		t.Errorf("%+v, %v", o, f)
	}
	for range 2 {
		if a := w.post(fork.request(t, 4, 4)); a.code != http.StatusUnprocessableEntity {
			t.Errorf("%+v", a)
		}
	}
	cosigned(t, w.post(l.request(t, 4, 6)), l.checkpoint(t, 6))
	if a := w.post(fork.request(t, 6, 6)); a.code != http.StatusUnprocessableEntity {
		t.Errorf("%+v", a)
	}
	evidence, err := os.ReadFile(statePath(cfg.Dir, forkSuffix))
	if err != nil {
		t.Fatal(err)
	}
	if want := string(l.checkpoint(t, 4)) + first.body + "\n" + string(fork.checkpoint(t, 4)); string(evidence) != want {
		t.Errorf("%q, want %q", evidence, want)
	}
	if n := strings.Count(w.logs.String(), "contradict each other"); n != 1 || w.metric("forks_total", testOrigin) != 3 {
		t.Errorf("%v forks counted, %d logged", w.metric("forks_total", testOrigin), n)
	}
	if w.metric("cosigned_entries", testOrigin) != 6 || w.metric("cosign_seconds", "") != 2 {
		t.Errorf("%v entries, %v seconds", w.metric("cosigned_entries", testOrigin), w.metric("cosign_seconds", ""))
	}
}

func TestRequestLimits(t *testing.T) {
	key, vkey := logKey(t, testOrigin, 1)
	l := newTestLog(key, 9, 9, "")
	w := startCleanly(t, Config{Dir: t.TempDir(), MaxRequests: 1, BodyTimeout: 200 * time.Millisecond}, mustTrust(t, vkey))
	if a := w.post(bytes.Repeat([]byte("x"), ledger.MaxAddCheckpointBytes+1)); a.code != http.StatusRequestEntityTooLarge {
		t.Errorf("a long one: %+v", a)
	}
	for _, method := range []string{http.MethodGet, http.MethodPut} {
		req, err := http.NewRequestWithContext(t.Context(), method, w.url+"/add-checkpoint", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusMethodNotAllowed && resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %d", method, resp.StatusCode)
		}
	}

	// While a request does not end, there is no place for another.
	body, half := io.Pipe()
	slow := make(chan int, 1)
	go func() {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.url+"/add-checkpoint", body)
		if err != nil {
			slow <- 0
			return
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			slow <- 0
			return
		}
		resp.Body.Close()
		slow <- resp.StatusCode
	}()
	if _, err := half.Write([]byte("old 0\n")); err != nil {
		t.Fatal(err)
	}
	for len(w.inHand) == 0 && t.Context().Err() == nil {
	}
	if a := w.post(l.request(t, 0, 4)); a.code != http.StatusServiceUnavailable {
		t.Errorf("beside another: %+v", a)
	}
	if code := <-slow; code != http.StatusRequestTimeout {
		t.Errorf("the slow one: %d", code)
	}
	half.Close()
	for len(w.inHand) > 0 && t.Context().Err() == nil {
	}
	cosigned(t, w.post(l.request(t, 0, 4)), l.checkpoint(t, 4))
	w.stop()
	if err := w.Ready(t.Context()); err == nil {
		t.Error("it is ready after it was stopped")
	}
	if _, err := w.add(t.Context(), l.request(t, 4, 5)); err == nil {
		t.Error("it cosigns after it was stopped")
	}
}
