package devmode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"getimmutable.dev/immutable/internal/chdb"
	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/schemas"
)

const (
	testKey = "imk_sk_test_of_devmode"
	patient = 30 * time.Second // never reached when all is well
)

// TestMain lets this binary be the embedded ClickHouse's process.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "chdb-server" {
		os.Exit(chdb.RunChild(os.Args[2:]))
	}
	goleak.VerifyTestMain(m)
}

func config(t *testing.T, dir string) Config {
	t.Helper()
	cfg := Config{
		Dir: dir, HTTP: httpserver.Config{Addr: "127.0.0.1:0"}, Library: clickhousetest.Library(t), APIKey: testKey,
		MinFreeBytes: 1 << 20,
	}
	cfg.Kafka.TopicPrefix = schemas.DefaultTopicPrefix
	return cfg
}

type running struct {
	t    *testing.T
	stop func() error
	Started
}

// start runs an Up until stop is called, which returns what Run has returned.
func start(t *testing.T, cfg Config) *running {
	t.Helper()
	started := make(chan Started, 1)
	cfg.Started = func(s Started) { started <- s }
	up, err := New(cfg, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- up.Run(ctx) }()
	stopped := false
	r := &running{t: t, stop: func() error {
		stopped = true
		cancel()
		return <-done
	}}
	t.Cleanup(func() {
		if !stopped {
			_ = r.stop()
		}
	})
	select {
	case r.Started = <-started:
	case err := <-done:
		stopped = true
		t.Fatalf("ended at the start: %v", err)
	case <-time.After(patient):
		t.Fatal("has not started")
	}
	return r
}

// do returns status and body; 0 where there is no answer.
func (r *running) do(method, path, key, body string) (status int, answer string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, r.URL+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", "application/json")
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// post returns the status of one event.
func (r *running) post(action string) int {
	r.t.Helper()
	status, _ := r.do(http.MethodPost, "/api/v1/events", testKey, fmt.Sprintf(`{"actor_id":"me","action":%q}`, action))
	return status
}

// eventually waits until the events of an action are n.
func (r *running) eventually(action string, n int) {
	r.t.Helper()
	r.await(func() error {
		status, body := r.do(http.MethodGet, "/api/v1/events?limit=100&action="+action, testKey, "")
		var page struct{ Data []any }
		if err := json.Unmarshal([]byte(body), &page); status != http.StatusOK || err != nil || len(page.Data) != n {
			return fmt.Errorf("%d events %s, want %d: %d %s", len(page.Data), action, n, status, body)
		}
		return nil
	})
}

func (r *running) await(condition func() error) {
	r.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(patient)
	for {
		err := condition()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-timeout:
			r.t.Fatal(err)
		}
	}
}

func (r *running) ready() {
	r.t.Helper()
	r.await(func() error {
		if status, body := r.do(http.MethodGet, "/readyz", "", ""); status != http.StatusOK {
			return fmt.Errorf("readyz: %d %s", status, body)
		}
		return nil
	})
}

// TestUp starts, writes, reads, stops and starts again.
func TestUp(t *testing.T) {
	if testing.Short() {
		t.Skip("starts ClickHouse")
	}
	dir := filepath.Join(t.TempDir(), "data")
	cfg := config(t, dir)
	cfg.Internal.Addr = freeAddr(t)
	r := start(t, cfg)
	if r.DrawnKey != "" || !r.ChoseKey {
		t.Error("a key was drawn although one was chosen, or the chosen one was not made")
	}
	for range 3 {
		if status := r.post("deployment.started"); status != http.StatusAccepted {
			t.Fatalf("status %d", status)
		}
	}
	r.eventually("deployment.started", 3)
	r.ready()
	if status, body := r.do(http.MethodGet, "/nothing", "", ""); status != http.StatusNotFound || !strings.Contains(body, "not_found") {
		t.Errorf("got %d %s", status, body)
	}
	if status, body := r.do(http.MethodGet, "/metrics", "", ""); status != http.StatusOK || !strings.Contains(body, "immutable_ingest_") {
		t.Errorf("got %d %.200s", status, body)
	}
	if status, _ := r.do(http.MethodGet, "/debug/pprof/cmdline", "", ""); status != http.StatusNotFound {
		t.Errorf("profiles at the main address: %d", status)
	}
	internal := &running{t: t, Started: Started{URL: "http://" + cfg.Internal.Addr}}
	internal.ready()
	for path, want := range map[string]string{"/livez": "live", "/metrics": "immutable_ingest_", "/debug/pprof/": "goroutine"} {
		if status, body := internal.do(http.MethodGet, path, "", ""); status != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("internal %s: %d %.200s", path, status, body)
		}
	}

	second, err := New(config(t, dir), prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "another `immutable up` uses "+dir) {
		t.Errorf("a second up on the same data: %v", err)
	}
	for name, want := range map[string]fs.FileMode{"up.json": 0o600, "master.key": 0o600, ".": 0o700} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	before, err := ReadUpFile(dir)
	if err != nil {
		t.Fatal(err)
	}
	if before.HTTP != r.URL || before.Kafka == "" || before.ClickHouseHTTP == "" || before.ClickHousePassword == "" {
		t.Errorf("up.json: %+v", before)
	}
	stopping := time.Now()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	t.Logf("stopped in %v", time.Since(stopping))

	// The key that was chosen is there. Another is added to it.
	r = start(t, cfg)
	if r.ChoseKey {
		t.Error("a key that was there is said to be new")
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	cfg = config(t, dir)
	cfg.APIKey += "_again"
	r = start(t, cfg)
	t.Logf("started again in %v", r.Took)
	r.eventually("deployment.started", 3)
	if status, _ := r.do(http.MethodGet, "/api/v1/events", cfg.APIKey, ""); status != http.StatusOK {
		t.Errorf("the second key: %d", status)
	}
	after, err := ReadUpFile(dir)
	if err != nil {
		t.Fatal(err)
	}
	if after.Kafka != before.Kafka || after.ClickHouseNative != before.ClickHouseNative {
		t.Errorf("the engines moved: %+v, before %+v", after, before)
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
}

// TestClickHouseDies: events are accepted while there is none, and readable once it is back.
func TestClickHouseDies(t *testing.T) {
	if testing.Short() {
		t.Skip("starts ClickHouse")
	}
	r := start(t, config(t, t.TempDir()))
	r.post("before")
	r.eventually("before", 1)
	killChild(t)
	for range 5 {
		if status := r.post("meanwhile"); status != http.StatusAccepted {
			t.Errorf("without ClickHouse: status %d", status)
		}
	}
	r.eventually("meanwhile", 5)
	r.eventually("before", 1)
	if err := r.stop(); err != nil {
		t.Error(err)
	}
}

// killChild kills the one child of this process.
func killChild(t *testing.T) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	killed := 0
	for _, task := range tasks {
		text, _ := os.ReadFile(task) // the thread may have ended
		for field := range strings.FieldsSeq(string(text)) {
			var pid int
			if _, err := fmt.Sscan(field, &pid); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			killed++
		}
	}
	if killed != 1 {
		t.Fatalf("killed %d children", killed)
	}
}

// TestDiskFull: no 202 without room, and no restart once there is room again.
func TestDiskFull(t *testing.T) {
	if testing.Short() {
		t.Skip("starts ClickHouse")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256m"); err != nil {
		if os.Getenv("IMMUTABLE_REQUIRE_REAL") == "1" {
			t.Fatalf("mounting a small file system: %v", err)
		}
		t.Skipf("mounting a small file system: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	cfg := config(t, filepath.Join(dir, "data"))
	cfg.MinFreeBytes = 64 << 20
	r := start(t, cfg)
	r.post("room")
	r.eventually("room", 1)
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 300<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	status, body := r.do(http.MethodPost, "/api/v1/events", testKey, `{"actor_id":"me","action":"full"}`)
	if status != http.StatusServiceUnavailable || !strings.Contains(body, "unavailable") {
		t.Errorf("on a full disk: %d %s", status, body)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if status := r.post("room"); status != http.StatusAccepted {
		t.Errorf("room again: status %d", status)
	}
	r.eventually("room", 2)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r = start(t, cfg)
	r.eventually("room", 2)
	r.eventually("full", 0)
	if err := r.stop(); err != nil {
		t.Error(err)
	}
}

// freeAddr returns an address that nothing listens on.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return l.Addr().String()
}

// TestNoSecondMasterKey: a lost master key is not replaced by one that opens nothing.
func TestNoSecondMasterKey(t *testing.T) {
	for _, data := range []string{upFile, kafkaDir} {
		dir := t.TempDir()
		first, err := ensureMasterKey(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(filepath.Join(dir, data), 0o700); err != nil {
			t.Fatal(err)
		}
		if again, err := ensureMasterKey(dir); err != nil || again != first {
			t.Errorf("%s: the second start has another key, or none: %v", data, err)
		}
		path := filepath.Join(dir, masterKeyFile)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if _, err := ensureMasterKey(dir); err == nil || !strings.Contains(err.Error(), "restore "+path+" from a backup") {
			t.Errorf("%s: got %v", data, err)
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: a key was drawn: %v", data, err)
		}
	}
}

// The notary's key is drawn once, and not again where checkpoints were signed.
func TestNoSecondNotaryKey(t *testing.T) {
	dir := t.TempDir()
	path, err := ensureNotaryKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ensureNotaryKey(dir); err != nil {
		t.Fatal(err)
	}
	if again, err := os.ReadFile(path); err != nil || string(again) != string(first) {
		t.Errorf("the second start changed the key: %v", err)
	}
	if err := errors.Join(os.Remove(path), os.WriteFile(filepath.Join(dir, notaryLock), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := ensureNotaryKey(dir); err == nil || !strings.Contains(err.Error(), "restore "+path+" from a backup") {
		t.Errorf("with a lock file: %v", err)
	}
}

func TestConfigValidate(t *testing.T) {
	addr := httpserver.Config{Addr: "127.0.0.1:0"}
	for name, tc := range map[string]struct {
		cfg  Config
		want string
	}{
		"minimal":        {Config{Dir: "x", HTTP: addr}, ""},
		"no folder":      {Config{HTTP: addr}, "data folder"},
		"no address":     {Config{Dir: "x"}, "address"},
		"negative":       {Config{Dir: "x", HTTP: addr, MinFreeBytes: -1}, "negative"},
		"bad DSN":        {func() Config { c := Config{Dir: "x", HTTP: addr}; c.ClickHouse.DSN = "http://x/y"; return c }(), "clickhouse"},
		"bad broker":     {func() Config { c := Config{Dir: "x", HTTP: addr}; c.Kafka.Brokers = []string{"x"}; return c }(), "broker"},
		"engines beside": {func() Config { c := Config{Dir: "x", HTTP: addr}; c.Kafka.Brokers = []string{"x:1"}; return c }(), ""},
	} {
		_, err := New(tc.cfg, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMissingLibraryIsSaidAtOnce(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), HTTP: httpserver.Config{Addr: "127.0.0.1:0"}, Library: "/nowhere/libchdb.so"}
	up, err := New(cfg, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := up.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "npm ci") {
		t.Errorf("got %v", err)
	}
}
