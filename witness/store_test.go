package witness

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/ledger"
)

// What cannot be written is not cosigned, and nothing is forgotten or learnt by it.
func TestDiskFails(t *testing.T) {
	key, vkey := logKey(t, testOrigin, 1)
	l, fork := newTestLog(key, 9, 9, ""), newTestLog(key, 9, 5, "fork")
	for _, tc := range []struct {
		name        string
		spoil, mend func(dir, path string) error
	}{
		{"a full disk", func(_, path string) error { return os.Symlink("/dev/full", path+".tmp") }, func(_, path string) error { return os.Remove(path + ".tmp") }},
		{"no folder", func(dir, _ string) error { return os.Rename(dir, dir+".away") }, func(dir, _ string) error { return os.Rename(dir+".away", dir) }},
		{"a name that is taken", func(_, path string) error {
			return errors.Join(os.Rename(path, path+".away"), os.MkdirAll(filepath.Join(path, "x"), 0o700))
		}, func(_, path string) error { return errors.Join(os.RemoveAll(path), os.Rename(path+".away", path)) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := Config{Dir: filepath.Join(t.TempDir(), "data")}
			trust := mustTrust(t, vkey)
			w := startCleanly(t, cfg, trust)
			cosigned(t, w.post(l.request(t, 0, 4)), l.checkpoint(t, 4))
			path := statePath(cfg.Dir, checkpointSuffix)
			if err := tc.spoil(cfg.Dir, path); err != nil {
				t.Fatal(err)
			}
			a := w.post(l.request(t, 4, 6))
			if a.code != http.StatusInternalServerError || strings.Contains(a.body, "—") || strings.Contains(a.body, cfg.Dir) {
				t.Errorf("%+v", a)
			}
			if w.metric("write_errors_total", "") != 1 || w.Ready(t.Context()) == nil || !strings.Contains(w.logs.String(), "request failed") {
				t.Errorf("%v write errors, ready: %v, log: %s", w.metric("write_errors_total", ""), w.Ready(t.Context()), w.logs)
			}
			if err := tc.mend(cfg.Dir, path); err != nil {
				t.Fatal(err)
			}
			// The other branch is as good as the one whose signature did not leave.
			cosigned(t, w.post(fork.request(t, 4, 6)), fork.checkpoint(t, 6))
			if err := w.Ready(t.Context()); err != nil {
				t.Error(err)
			}
			w.stop()
			w = startCleanly(t, cfg, trust)
			if a := w.post(l.request(t, 6, 6)); a.code != http.StatusUnprocessableEntity {
				t.Errorf("what was not cosigned: %+v", a)
			}
		})
	}
}

// What is on the disk is what was cosigned, or the witness does not start.
func TestStateThatCannotBeBelieved(t *testing.T) {
	key, vkey := logKey(t, testOrigin, 1)
	l := newTestLog(key, 9, 9, "")
	_, other := logKey(t, testOrigin, 2)
	for _, tc := range []struct {
		name  string
		trust string
		spoil func(string) string
		want  string // "" where it starts
	}{
		{"as written", vkey, nil, ""},
		{"the log has another key now", other, nil, ""},
		{"the witness has another key now", vkey, func(s string) string {
			head, _, _ := strings.Cut(s, "— w.example/1")
			return head
		}, ""},
		{"both", other, func(s string) string {
			head, _, _ := strings.Cut(s, "— w.example/1")
			return head
		}, "is not what was written"},
		{"another size", vkey, func(s string) string { return strings.Replace(s, "\n4\n", "\n3\n", 1) }, "is not what was written"},
		{"half", vkey, func(s string) string { return s[:len(s)/2] }, "is not what was written"},
		{"nothing", vkey, func(string) string { return "" }, "is not what was written"},
		{"of another log", vkey, func(s string) string { return strings.Replace(s, testOrigin, "example.com/other", 1) }, `it is of "example.com/other"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := Config{Dir: t.TempDir()}
			w := startCleanly(t, cfg, mustTrust(t, vkey))
			if !strings.Contains(w.logs.String(), "no checkpoint of this log was ever cosigned") {
				t.Errorf("it does not say that it knows nothing: %s", w.logs)
			}
			cosigned(t, w.post(l.request(t, 0, 4)), l.checkpoint(t, 4))
			w.stop()
			path := statePath(cfg.Dir, checkpointSuffix)
			if tc.spoil != nil {
				text, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(tc.spoil(string(text))), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if tc.want == "" {
				again := startCleanly(t, cfg, mustTrust(t, tc.trust))
				if got := again.logs.String(); got != "" || again.metric("cosigned_entries", testOrigin) != 4 {
					t.Errorf("%v, log: %s", again.metric("cosigned_entries", testOrigin), got)
				}
				return
			}
			s, err := New(cfg, testKey(t), mustTrust(t, tc.trust), prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			if err := runShortly(t, s); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

// runShortly is for what must not run. It does not wait for ever where it does.
func runShortly(t *testing.T, s *Service) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	return s.Run(ctx)
}

func TestOneProcess(t *testing.T) {
	_, vkey := logKey(t, testOrigin, 1)
	cfg := Config{Dir: t.TempDir()}
	w := startCleanly(t, cfg, mustTrust(t, vkey))
	second, err := New(cfg, testKey(t), mustTrust(t, vkey), prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := runShortly(t, second); err == nil || !strings.Contains(err.Error(), "another witness uses") {
		t.Errorf("beside another: %v", err)
	}
	w.stop()
	startCleanly(t, cfg, mustTrust(t, vkey))
}

// Of two branches that are submitted at once, one is cosigned.
func TestForkAtOnce(t *testing.T) {
	key, vkey := logKey(t, testOrigin, 1)
	const n = 20
	branches := []*testLog{newTestLog(key, n+1, 0, "a"), newTestLog(key, n+1, 0, "b")}
	w := startCleanly(t, Config{Dir: t.TempDir()}, mustTrust(t, vkey))
	known := uint64(0)
	for to := uint64(1); to <= n; to++ {
		var wg sync.WaitGroup
		answers := make([]answer, 8)
		for i := range answers {
			body := branches[i%2].request(t, known, to)
			wg.Go(func() { answers[i], _ = post(w.url, body) })
		}
		wg.Wait()
		signed := [2]int{}
		for i, a := range answers {
			if a.code == http.StatusOK {
				cosigned(t, a, branches[i%2].checkpoint(t, to))
				signed[i%2]++
			} else if a.code != http.StatusConflict && a.code != http.StatusUnprocessableEntity {
				t.Fatalf("%+v", a)
			}
		}
		if (signed[0] == 0) == (signed[1] == 0) {
			t.Fatalf("size %d: %d signatures on one branch, %d on the other", to, signed[0], signed[1])
		}
		// Whichever it was goes on: the other cannot, but the next size is offered of both.
		if signed[0] == 0 {
			branches[0], branches[1] = branches[1], branches[0]
		}
		known = to
	}
}

// witnessProcess is this binary as a witness of its own, to be killed. args are its folder and the log's verifier key.
func witnessProcess(args []string) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	trust, err := ledger.ParseTrust([]byte(args[1]))
	if err != nil {
		return fail(err)
	}
	key, err := LoadKey(filepath.Join(args[0], "..", "key"))
	if err != nil {
		return fail(err)
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	s, err := New(Config{Dir: args[0]}, key, trust, prometheus.NewRegistry(), logger)
	if err != nil {
		return fail(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	server := httptest.NewServer(httpserver.NewRouter(logger, s.Routes()...))
	defer server.Close()
	fmt.Println(server.URL)
	if err := s.Run(ctx); err != nil {
		return fail(err)
	}
	return 0
}

// The witness dies between any two steps of keeping a checkpoint. What comes after it never contradicts what left it.
func TestCrashPoints(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "witness.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-tags", "crashpoints", "-o", binary, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building with crash points: %v\n%s", err, out)
	}
	key, vkey := logKey(t, testOrigin, 1)
	l, fork := newTestLog(key, 9, 9, ""), newTestLog(key, 9, 5, "fork")
	for _, tc := range []struct {
		point string
		kept  uint64 // size that the next process knows
	}{
		{"witness-before-rename", 4}, {"witness-before-sync", 7}, {"witness-before-answer", 7},
	} {
		t.Run(tc.point, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			k, err := CreateKey(filepath.Join(dir, "..", "key"), "w.example/killed", Ed25519)
			if err != nil {
				t.Fatal(err)
			}
			killed := func(crashAt string) (url string, wait func() error) {
				cmd := exec.CommandContext(t.Context(), binary, "witness", dir, vkey)
				cmd.Env = append(os.Environ(), "IMMUTABLE_CRASH_AT="+crashAt)
				cmd.Stderr = t.Output()
				out, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				if _, err := fmt.Fscanln(out, &url); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
				return url, cmd.Wait
			}
			url, wait := killed(tc.point + ":2")
			if a := submit(t, url, l.request(t, 0, 4)); a.code != http.StatusOK {
				t.Fatalf("before it dies: %+v", a)
			}
			if a, err := post(url, l.request(t, 4, 7)); err == nil {
				t.Fatalf("it dies while it answers, and answers %+v", a)
			}
			exit, ok := errors.AsType[*exec.ExitError](wait())
			if !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("it ended by itself: %v", exit)
			}
			url, _ = killed("")
			// Neither branch's signature has left; whichever the disk has, the other one has no chance.
			want := http.StatusOK
			if tc.kept == 7 {
				want = http.StatusUnprocessableEntity
			}
			if a := submit(t, url, fork.request(t, tc.kept, 7)); a.code != want {
				t.Errorf("the fork: %+v, want %d", a, want)
			}
			want = http.StatusUnprocessableEntity + http.StatusOK - want
			a := submit(t, url, l.request(t, 7, 7))
			if a.code != want {
				t.Errorf("the other: %+v, want %d", a, want)
			}
			if want == http.StatusOK {
				v := ledger.Witness{Verifier: k.verifier}
				if _, err := v.Cosignature(l.checkpoint(t, 7), []byte(a.body), time.Now()); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// submit sends a request until the witness has begun.
func submit(t *testing.T, url string, body []byte) answer {
	t.Helper()
	for {
		a, err := post(url, body)
		if err != nil {
			t.Fatal(err)
		}
		if a.code != http.StatusServiceUnavailable {
			return a
		}
	}
}
