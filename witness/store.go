package witness

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"getimmutable.dev/immutable/internal/crash"
)

// The folder has these files of each log, before the suffix the SHA-256 of its origin in hexadecimal.
const (
	checkpointSuffix = ".checkpoint" // the newest checkpoint, with the log's signature and the witness's
	forkSuffix       = ".fork"       // the first two checkpoints of one size that contradict each other
)

// lockName is the file that says that a process has the folder.
const lockName = "lock"

// maxStoredBytes is more than a checkpoint that was read can have grown to.
const maxStoredBytes = 256 << 10

// store is the folder of one process.
type store struct {
	dir  string
	lock *os.File
}

// openStore takes the folder, which it makes if need be, until close or the process's end, however it ends.
func openStore(dir string) (*store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil { //nolint:gosec // the operator names the folder
		return nil, fmt.Errorf("making the witness's folder: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600) //nolint:gosec // a file of ours
	if err != nil {
		return nil, fmt.Errorf("locking the witness's folder: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = fmt.Errorf("another witness uses %s: two of them could cosign what contradicts", dir)
		}
		return nil, errors.Join(fmt.Errorf("locking the witness's folder: %w", err), f.Close())
	}
	return &store{dir: dir, lock: f}, nil
}

// close gives the folder back.
func (s *store) close() error { return s.lock.Close() }

func originHash(origin string) string {
	h := sha256.Sum256([]byte(origin))
	return hex.EncodeToString(h[:])
}

// load returns the log's newest checkpoint, nil where none was ever cosigned.
func (s *store) load(origin string) ([]byte, error) {
	f, err := os.Open(filepath.Join(s.dir, originHash(origin)+checkpointSuffix)) //nolint:gosec // a file of ours
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("opening the newest checkpoint of %s: %w", origin, err)
	}
	defer f.Close()
	signed, err := io.ReadAll(io.LimitReader(f, maxStoredBytes))
	if err != nil {
		return nil, fmt.Errorf("reading the newest checkpoint of %s: %w", origin, err)
	}
	return signed, nil
}

// save makes signed the log's newest checkpoint. When it returns nil, that outlives a power cut. When it fails, the disk has
// either the old or the new one: both are safe as long as nobody gets the signature.
func (s *store) save(origin string, signed []byte) error {
	return s.replace(originHash(origin)+checkpointSuffix, signed)
}

// saveFork keeps the first proof of a fork of a log, and says whether this is it. One goroutine at a time calls it for a log.
func (s *store) saveFork(origin string, evidence []byte) (first bool, err error) {
	name := originHash(origin) + forkSuffix
	if _, err := os.Lstat(filepath.Join(s.dir, name)); !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return true, s.replace(name, evidence)
}

// replace writes a file whole or not at all. One goroutine at a time calls it for a name.
func (s *store) replace(name string, content []byte) error {
	path := filepath.Join(s.dir, name)
	if err := writeFile(path+".tmp", content); err != nil {
		return err
	}
	crash.Point("witness-before-rename")
	if err := os.Rename(path+".tmp", path); err != nil {
		return err
	}
	crash.Point("witness-before-sync")
	return syncDir(s.dir)
}

// writeFile returns when the content is on the disk. The name may not be: syncDir.
func writeFile(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600) //nolint:gosec // a file of ours
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir) //nolint:gosec // a folder of ours
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
