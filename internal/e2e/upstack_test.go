package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"getimmutable.dev/immutable/schemas"
)

// upStack is `immutable up`: one process, and engines inside it.
type upStack struct {
	*stack
	process *process // of the last start
	data    string
	binary  string
	stale   atomic.Pointer[os.FileInfo] // of the up.json that the last start left
}

// upFile is DATA/up.json.
type upFile struct {
	HTTP               string `json:"http"`
	Kafka              string `json:"kafka"`
	ClickHouseNative   string `json:"clickhouse_native"`
	ClickHouseUser     string `json:"clickhouse_user"`
	ClickHousePassword string `json:"clickhouse_password"`
	Database           string `json:"database"`
}

// newUp prepares `immutable up` on a directory. It is not started.
func newUp(t *testing.T, binary, data string) *upStack {
	t.Helper()
	s := &upStack{data: data, binary: binary}
	address := func(string) (string, error) {
		f, err := s.upFile()
		if err != nil {
			return "", err
		}
		return strings.TrimPrefix(f.HTTP, "http://"), nil
	}
	where := func() (engines, error) {
		f, err := s.upFile()
		if err != nil {
			return engines{}, err
		}
		dsn := url.URL{
			Scheme: "clickhouse", Host: f.ClickHouseNative, Path: "/" + f.Database,
			User: url.UserPassword(f.ClickHouseUser, f.ClickHousePassword),
		}
		return engines{[]string{f.Kafka}, schemas.DefaultTopicPrefix, dsn.String()}, nil
	}
	s.stack = newStack(t, address, where)
	return s
}

// up starts `immutable up` on an empty directory and waits until it is ready.
func up(t *testing.T) *upStack {
	t.Helper()
	s := newUp(t, immutable(t), t.TempDir())
	s.start()
	s.ready(t)
	return s
}

// start starts the process and does not wait for it. env is added to that of this start only.
func (s *upStack) start(env ...string) {
	s.t.Helper()
	s.forget()
	env = append(env, "IMMUTABLE_API_KEY="+s.key)
	s.process = start(s.t, "up", env, s.binary, "up", "--addr=127.0.0.1:0", "--data="+s.data, "--libchdb="+library(s.t))
}

// ready waits until every service in it answers that it is ready.
func (s *upStack) ready(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startLimit)
	defer cancel()
	err := poll(ctx, func() error {
		if !s.process.running() {
			cancel()
			return errors.New("it has ended")
		}
		status, _, body, err := s.do(ctx, http.MethodGet, "http://"+queryHost+"/readyz", nil, nil)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("readyz: %d %s", status, body)
		}
		return err
	})
	if err != nil {
		t.Fatalf("waiting until immutable is ready: %v", err)
	}
}

// kill ends the process and its ClickHouse at once, as a power cut would.
func (s *upStack) kill(t *testing.T) {
	t.Helper()
	if pid, err := s.process.child("chdb-server"); err == nil {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	s.process.killGroup(t)
}

// stop asks the process to end, and fails the test unless it does so cleanly and in time.
func (s *upStack) stop(t *testing.T) {
	t.Helper()
	s.process.stop(t)
}

// forget makes the up.json of the last start count for nothing.
func (s *upStack) forget() {
	if info, err := os.Stat(filepath.Join(s.data, "up.json")); err == nil {
		s.stale.Store(&info)
	}
}

// upFile reads what the running `up` wrote.
func (s *upStack) upFile() (*upFile, error) {
	path := filepath.Join(s.data, "up.json")
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("not started yet: %w", err)
	}
	if stale := s.stale.Load(); stale != nil && os.SameFile(*stale, info) {
		return nil, errors.New("not started yet: up.json is that of the last start")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f := new(upFile)
	if err := json.Unmarshal(b, f); err != nil {
		return nil, fmt.Errorf("up.json: %w", err)
	}
	return f, nil
}
