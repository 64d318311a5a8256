// Package chdb runs ClickHouse as a child process: libchdb, the library form of clickhouse-local, told to listen. It
// serves the quick start and the tests; production has a ClickHouse of its own.
package chdb

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
)

// Server is a running child.
type Server struct {
	cfg              Config
	httpPort, native int

	cmd    *exec.Cmd
	stdin  io.WriteCloser // the child ends when this does
	output tail
	done   chan struct{}
	err    error // why it ended; written before done is closed
}

// errPortTaken: another process took a port between our choice and the child's listening.
var errPortTaken = errors.New("port taken")

const portAttempts = 5

// Start starts a child on cfg.Dir and returns once it answers, on both protocols, at addresses that the kernel chose.
// It outlives ctx, which bounds only the start: end it with Stop. It also ends with this process, however that ends.
func Start(ctx context.Context, cfg Config, logger *slog.Logger) (*Server, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("creating the clickhouse folder: %w", err)
	}
	var errs []error
	for range portAttempts {
		httpPort, nativePort, err := ports(ctx, &cfg)
		if err != nil {
			return nil, err
		}
		s, err := start(ctx, cfg, httpPort, nativePort)
		if err == nil {
			return s, nil
		}
		errs = append(errs, err)
		if !errors.Is(err, errPortTaken) || cfg.NativePort != 0 {
			break
		}
		logger.WarnContext(ctx, "clickhouse port was taken, choosing another", "http_port", httpPort, "native_port", nativePort)
	}
	return nil, fmt.Errorf("starting clickhouse: %w", errors.Join(errs...))
}

// ports returns those of the configuration, or two that nobody listened on a moment ago.
func ports(ctx context.Context, cfg *Config) (httpPort, nativePort int, err error) {
	if cfg.NativePort != 0 {
		return cfg.HTTPPort, cfg.NativePort, nil
	}
	var ports [2]int
	for i := range ports {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return 0, 0, fmt.Errorf("asking for a free port: %w", err)
		}
		defer func() { _ = l.Close() }() // both open until both are known, so that they differ
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	return ports[0], ports[1], nil
}

func start(ctx context.Context, cfg Config, httpPort, nativePort int) (*Server, error) {
	marker := randomHex()
	config, err := writeConfig(&cfg, httpPort, nativePort, marker)
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, httpPort: httpPort, native: nativePort, done: make(chan struct{})}
	args := append(cfg.Executable[1:len(cfg.Executable):len(cfg.Executable)], cfg.Library, config)
	s.cmd = exec.Command(cfg.Executable[0], args...) //nolint:gosec,noctx // our own executable; it outlives ctx
	s.cmd.Dir = cfg.Dir
	s.cmd.Stdout, s.cmd.Stderr = &s.output, &s.output
	s.cmd.SysProcAttr = procAttr()
	s.cmd.WaitDelay = time.Second
	if s.stdin, err = s.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("starting the child: %w", err)
	}

	started := make(chan error, 1)
	go func() {
		// The kernel sends Pdeathsig when the thread that forked ends, so that thread stays as long as the child.
		runtime.LockOSThread()
		err := s.cmd.Start()
		started <- err
		if err == nil {
			s.err = s.cmd.Wait()
			close(s.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting the child: %w", err)
	}

	ctx, cancel := context.WithTimeout(ctx, cfg.StartTimeout)
	defer cancel()
	if err := s.waitReady(ctx, marker); err != nil {
		s.kill()
		if bytes.Contains(s.output.Bytes(), []byte("Address already in use")) {
			err = fmt.Errorf("%w: %w", errPortTaken, err)
		}
		return nil, fmt.Errorf("%w; its last output: %s", err, bytes.TrimSpace(s.output.Bytes()))
	}
	return s, nil
}

// waitReady asks for the marker until it comes. HTTP needs no question of its own: the child starts it first, and ends
// when it cannot.
func (s *Server) waitReady(ctx context.Context, marker string) error {
	conn, err := clickhouse.Open(&clickhouse.Options{
		Addr:        []string{s.NativeAddr()},
		Auth:        clickhouse.Auth{Username: s.cfg.User, Password: s.cfg.Password, Database: "default"},
		DialTimeout: s.cfg.StartTimeout,
	})
	if err != nil {
		return fmt.Errorf("opening a connection to the child: %w", err)
	}
	defer func() { _ = conn.Close() }()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var got string
		err := conn.QueryRow(ctx, "SELECT getMacro('marker')").Scan(&got)
		if err == nil && got == marker {
			return nil
		}
		if err == nil {
			return errPortTaken
		}
		// One of serveQueries failed. The child does not end by itself: it waits for a person to try again.
		if bytes.Contains(s.output.Bytes(), []byte("DB::Exception")) {
			return errors.New("the child reports an error")
		}
		select {
		case <-s.done:
			return fmt.Errorf("the child ended: %w", s.err)
		case <-ctx.Done():
			return fmt.Errorf("no answer from the child: %w; last attempt: %w", context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

// NativeAddr is the host:port of the native protocol.
func (s *Server) NativeAddr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.native)) }

// HTTPAddr is the host:port of the HTTP interface.
func (s *Server) HTTPAddr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.httpPort)) }

// User and Password are what both interfaces want.
func (s *Server) User() string { return s.cfg.User }

// Password belongs to User.
func (s *Server) Password() string { return s.cfg.Password }

// DSN is what internal/clickhouse takes; it names Config.Database.
func (s *Server) DSN() string {
	u := url.URL{
		Scheme: "clickhouse", User: url.UserPassword(s.cfg.User, s.cfg.Password),
		Host: s.NativeAddr(), Path: "/" + s.cfg.Database,
	}
	return u.String()
}

// PID is the child's process id.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Done is closed when the child has ended, for whatever reason.
func (s *Server) Done() <-chan struct{} { return s.done }

// Err says, after Done, how the child ended and what it said last; ClickHouse's own log is clickhouse.log in Dir.
func (s *Server) Err() error {
	<-s.done
	return fmt.Errorf("clickhouse ended: %w; its last output: %s", s.err, bytes.TrimSpace(s.output.Bytes()))
}

// Stop ends the child with SIGTERM and waits; after Config.StopTimeout, or when ctx ends, it kills it. What was
// inserted is safe either way. It may be called more than once.
func (s *Server) Stop(ctx context.Context) error {
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
	timer := time.NewTimer(s.cfg.StopTimeout)
	defer timer.Stop()
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
	case <-timer.C:
	}
	s.kill()
	return nil
}

func (s *Server) kill() {
	_ = s.cmd.Process.Kill() // it may have ended already
	<-s.done
}

func randomHex() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// tail keeps the last tailBytes written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailBytes = 4096

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - tailBytes; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

// Bytes returns a copy.
func (t *tail) Bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.Clone(t.buf)
}
