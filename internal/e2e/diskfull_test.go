package e2e

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"getimmutable.dev/immutable/internal/loadgen"
)

// TestDiskFull fills the disk under `up`. It needs a file system of its own, and so the right to mount one: without it the
// test is skipped, or fails where IMMUTABLE_REQUIRE_REAL=1 says that everything is expected to run.
func TestDiskFull(t *testing.T) {
	long(t)
	data := t.TempDir()
	if err := syscall.Mount("tmpfs", data, "tmpfs", 0, "size=512m,mode=0700"); err != nil {
		if os.Getenv("IMMUTABLE_REQUIRE_REAL") == "1" {
			t.Fatalf("mounting a tmpfs: %v", err)
		}
		t.Skipf("mounting a tmpfs: %v", err)
	}
	s := newUp(t, immutable(t), data)
	t.Cleanup(func() {
		s.kill(t)
		if err := syscall.Unmount(data, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	s.start()
	s.ready(t)
	l := s.startLoad(t, loadgen.Config{Seed: 801, KeyedPercent: 100}, loadgen.ClientConfig{}, 1_000_000)
	l.acknowledges(t, 2_000)
	filler := filepath.Join(data, "filler")
	for l.Stats().Unavailable == 0 {
		fill(t, filler)
		if err := t.Context().Err(); err != nil {
			t.Fatalf("the disk is full and no request was answered with 503: %+v", l.Stats())
		}
	}
	full := l.Stats()
	eventually(t, time.Minute, func() error {
		if more := l.Stats().Unavailable - full.Unavailable; more < 5 {
			return fmt.Errorf("%d requests more were answered with 503", more)
		}
		return nil
	})
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	l.acknowledges(t, 2_000)
	t.Logf("accepted again %v after there was space", time.Since(began))
	l.quit(t)
	s.ready(t)
	t.Logf("check: %s; %+v", s.check(t, 4_000), l.Stats())
	s.stop(t)
}

// fill appends to a file until the disk has no space left.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		if errors.Is(err, syscall.ENOSPC) {
			return
		}
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; size /= 2 {
		for err == nil {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, io.ErrShortWrite) {
			t.Fatal(err)
		}
		err = nil
	}
}
