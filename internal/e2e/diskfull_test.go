package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"getimmutable.dev/immutable/internal/loadgen"
)

// TestDiskFull fills the disk under `up`.
func TestDiskFull(t *testing.T) {
	long(t)
	data := smallDisk(t)
	s := newUp(t, immutable(t), data)
	t.Cleanup(func() { s.kill(t) })
	s.start()
	s.ready(t)
	l := s.startLoad(t, loadgen.Config{Seed: 801, KeyedPercent: 100}, loadgen.ClientConfig{}, 1_000_000)
	l.acknowledges(t, 2_000)
	filler := filepath.Join(data, "filler")
	for l.Stats().Unavailable == 0 {
		fill(t, filler, spared)
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

// smallDisk mounts a file system of 512 MiB until the test's end. Without the right to, the test is skipped, or fails where
// IMMUTABLE_REQUIRE_REAL=1 says that everything is expected to run.
func smallDisk(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=512m,mode=0700"); err != nil {
		if os.Getenv("IMMUTABLE_REQUIRE_REAL") == "1" {
			t.Fatalf("mounting a tmpfs: %v", err)
		}
		t.Skipf("mounting a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	return dir
}

// spared is what is left of a disk with ClickHouse on it: far less than our own limits (256, 128 and 64 MiB), and enough
// for the merges that it has begun. One of those that meets a disk with nothing left can publish a part whose index is
// empty.
const spared = 24 << 20

// fill appends to a file until no more than spare is left of the disk.
func fill(t *testing.T, path string, spare int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for {
		var disk syscall.Statfs_t
		if err := syscall.Statfs(path, &disk); err != nil {
			t.Fatal(err)
		}
		n := min(int64(disk.Bavail)*disk.Bsize-spare, 1<<20)
		if n <= 0 {
			return
		}
		if _, err := f.Write(make([]byte, n)); err != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
}
