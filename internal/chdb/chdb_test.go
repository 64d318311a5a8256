package chdb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "chdb-server":
			os.Exit(RunChild(os.Args[2:]))
		case "orphan-maker":
			os.Exit(makeOrphan(os.Args[2], os.Args[3]))
		}
	}
	goleak.VerifyTestMain(m)
}

func library(t *testing.T) string {
	t.Helper()
	lib, err := FindLibrary(os.Getenv("IMMUTABLE_LIBCHDB"))
	if err != nil {
		t.Fatal(err)
	}
	return lib
}

func startServer(t *testing.T, cfg Config) *Server {
	t.Helper()
	cfg.Library = library(t)
	s, err := Start(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(cfg.Dir, logFile))
			t.Logf("clickhouse said: %s\nand logged: %s", s.output.Bytes(), log)
		}
		_ = s.Stop(context.WithoutCancel(t.Context()))
	})
	return s
}

func open(t *testing.T, s *Server, user, password string) driver.Conn {
	t.Helper()
	conn, err := clickhouse.Open(&clickhouse.Options{
		Addr: []string{s.NativeAddr()},
		Auth: clickhouse.Auth{Username: user, Password: password, Database: "default"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func exec1(t *testing.T, conn driver.Conn, query string) {
	t.Helper()
	if err := conn.Exec(t.Context(), query); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func count(t *testing.T, conn driver.Conn, query string) (n uint64) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), query).Scan(&n); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

// alive reports whether a process is there and not a zombie.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

func waitDead(t *testing.T, pid int) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for alive(pid) {
		select {
		case <-deadline:
			t.Fatalf("process %d still lives", pid)
		case <-tick.C:
		}
	}
}

func TestDataSurvivesStopAndKill(t *testing.T) {
	cfg := Config{Dir: filepath.Join(t.TempDir(), "a & b <'dir'>")}

	s := startServer(t, cfg)
	conn := open(t, s, s.User(), s.Password())
	exec1(t, conn, "CREATE DATABASE d")
	exec1(t, conn, "CREATE TABLE d.t (a UInt64) ENGINE = MergeTree ORDER BY a")
	exec1(t, conn, "INSERT INTO d.t SELECT number FROM numbers(100000)")
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if alive(s.PID()) {
		t.Fatal("the child lives after Stop")
	}

	s = startServer(t, cfg)
	conn = open(t, s, s.User(), s.Password())
	if n := count(t, conn, "SELECT count() FROM d.t"); n != 100_000 {
		t.Fatalf("after a stop: %d rows", n)
	}
	exec1(t, conn, "INSERT INTO d.t SELECT number FROM numbers(100000)")
	if err := unix.Kill(s.PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
	if err := s.Err(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("Err after a kill: %v", err)
	}

	s = startServer(t, cfg)
	conn = open(t, s, s.User(), s.Password())
	if n := count(t, conn, "SELECT count() FROM d.t"); n != 200_000 {
		t.Fatalf("after a kill: %d rows", n)
	}
}

func TestAccess(t *testing.T) {
	s := startServer(t, Config{Dir: t.TempDir()})
	exec1(t, open(t, s, s.User(), s.Password()), "CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a")

	for name, c := range map[string]struct {
		user, password, query string
		code                  int32
	}{
		"wrong password":          {s.User(), "wrong", "SELECT 1", 516},
		"no password":             {s.User(), "", "SELECT 1", 516},
		"files":                   {s.User(), s.Password(), "SELECT * FROM file('/etc/passwd', 'LineAsString')", 497},
		"networks":                {s.User(), s.Password(), "SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')", 497},
		"default reads":           {"default", "", "SELECT * FROM default.t", 497},
		"default stops listening": {"default", "", "SYSTEM STOP LISTEN TCP", 201},
		"default burns time":      {"default", "", "SELECT sum(number) FROM system.numbers", 201},
	} {
		t.Run(name, func(t *testing.T) {
			err := open(t, s, c.user, c.password).Exec(t.Context(), c.query)
			var e *clickhouse.Exception
			if !errors.As(err, &e) || e.Code != c.code {
				t.Errorf("got %v, want code %d", err, c.code)
			}
		})
	}

	t.Run("http", func(t *testing.T) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.HTTPAddr(), strings.NewReader("SELECT 42"))
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth(s.User(), s.Password())
		defer http.DefaultClient.CloseIdleConnections()
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "42\n" {
			t.Errorf("got %q, %v", body, err)
		}
	})

	t.Run("files' modes", func(t *testing.T) {
		for _, name := range []string{"users.xml", "config.xml"} {
			info, err := os.Stat(filepath.Join(s.cfg.Dir, name))
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v, %v", name, info.Mode(), err)
			}
		}
	})
}

// A client that breaks off, or speaks something else, must not end the server.
func TestSurvivesBrokenClients(t *testing.T) {
	s := startServer(t, Config{Dir: t.TempDir()})
	for _, addr := range []string{s.NativeAddr(), s.HTTPAddr()} {
		for _, send := range []string{"", "\x00", "\xff\xff\xff\xff", "GET / HTTP/1.1\r\n", "GET /?query=SELECT+*+FROM+numbers(10000000) HTTP/1.1\r\n\r\n"} {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(conn, send); err != nil {
				t.Fatal(err)
			}
			_ = conn.(*net.TCPConn).SetLinger(0) // close with a reset
			_ = conn.Close()
		}
	}
	conn := open(t, s, s.User(), s.Password())
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		rows, err := conn.Query(ctx, "SELECT number FROM numbers(100000000)")
		if err != nil {
			t.Fatal(err)
		}
		if !rows.Next() {
			t.Fatal(rows.Err())
		}
		cancel()
		_ = rows.Close()
	}
	if n := count(t, conn, "SELECT count() FROM numbers(7)"); n != 7 {
		t.Errorf("got %d", n)
	}
	select {
	case <-s.Done():
		t.Error(s.Err())
	default:
	}
}

func TestPortTaken(t *testing.T) {
	s := startServer(t, Config{Dir: t.TempDir()})
	cfg := Config{Dir: t.TempDir(), Library: library(t)}
	if err := cfg.setDefaults(); err != nil {
		t.Fatal(err)
	}
	httpPort, nativePort, err := ports(t.Context(), &cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := start(t.Context(), cfg, s.httpPort, nativePort); !errors.Is(err, errPortTaken) {
		t.Errorf("http port taken: %v", err)
	}
	if _, err := start(t.Context(), cfg, httpPort, s.native); !errors.Is(err, errPortTaken) {
		t.Errorf("native port taken: %v", err)
	}
}

func TestFolderTaken(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Library: library(t)}
	startServer(t, cfg)
	_, err := Start(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "Another server instance in same directory") {
		t.Errorf("second server on one folder: %v", err)
	}
}

// makeOrphan starts a server, prints its process id and is killed.
func makeOrphan(lib, dir string) int {
	s, err := Start(context.Background(), Config{Library: lib, Dir: dir}, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(s.PID())
	select {}
}

func TestEndsWithParent(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0], "orphan-maker", library(t), t.TempDir())
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 256)
	n, err := stdout.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(buf[:n])))
	if err != nil {
		t.Fatal(err)
	}
	if !alive(pid) {
		t.Fatal("the child does not live")
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	waitDead(t, pid)
}

func TestEndsWithStandardInput(t *testing.T) {
	s := startServer(t, Config{Dir: t.TempDir()})
	if err := s.stdin.Close(); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
}

func TestStopKillsAStoppedChild(t *testing.T) {
	s := startServer(t, Config{Dir: t.TempDir(), StopTimeout: 50 * time.Millisecond})
	if err := unix.Kill(s.PID(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestFindLibrary(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "libchdb.so")
	if _, err := FindLibrary(missing); err == nil || !strings.Contains(err.Error(), "npm ci") {
		t.Errorf("a missing explicit library: %v", err)
	}
	t.Chdir(t.TempDir())
	if _, err := FindLibrary(""); err == nil || !strings.Contains(err.Error(), "npm ci") {
		t.Errorf("no library anywhere: %v", err)
	}
	root, err := os.Getwd() // not t.TempDir's spelling, where that is a symbolic link
	if err != nil {
		t.Fatal(err)
	}
	want := filepath.Join(root, libraryPackage)
	if err := os.MkdirAll(filepath.Dir(want), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(want, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll("a/b", 0o755); err != nil {
		t.Fatal(err)
	}
	t.Chdir("a/b")
	if got, err := FindLibrary(""); err != nil || got != want {
		t.Errorf("in a folder above: %q, %v", got, err)
	}
}

func TestTailIsBounded(t *testing.T) {
	var out tail
	for range 10_000 {
		_, _ = out.Write([]byte("0123456789"))
	}
	_, _ = out.Write([]byte("end"))
	if got := out.Bytes(); len(got) != tailBytes || !strings.HasSuffix(string(got), "789end") {
		t.Errorf("%d bytes, %q", len(got), got[len(got)-6:])
	}
}

func BenchmarkStart(b *testing.B) {
	lib, err := FindLibrary(os.Getenv("IMMUTABLE_LIBCHDB"))
	if err != nil {
		b.Fatal(err)
	}
	var rss float64
	for b.Loop() {
		s, err := Start(b.Context(), Config{Dir: b.TempDir(), Library: lib}, slog.New(slog.DiscardHandler))
		if err != nil {
			b.Fatal(err)
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.PID()))
		if err != nil {
			b.Fatal(err)
		}
		_, after, _ := strings.Cut(string(status), "VmRSS:")
		kib, _ := strconv.ParseFloat(strings.Fields(after)[0], 64)
		rss = kib / 1024
		if err := s.Stop(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(rss, "idle-MiB")
}

// A relative folder is one of this process, not of the child, whose working directory it becomes.
func TestRelativeDir(t *testing.T) {
	t.Setenv("IMMUTABLE_LIBCHDB", library(t)) // which is found from here
	t.Chdir(t.TempDir())
	s := startServer(t, Config{Dir: "tables"})
	exec1(t, open(t, s, s.User(), s.Password()), "SELECT 1")
	if _, err := os.Stat("tables/users.xml"); err != nil {
		t.Error(err)
	}
}
