package notary

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"getimmutable.dev/immutable/internal/durable"
	"getimmutable.dev/immutable/ledger"
)

// lockFile holds the last checkpoint that this machine has signed: what it knows beside the topics. Where these were
// brought back from a backup, or lost their end, the file stays, and nothing is signed that contradicts it.
type lockFile struct{ path string }

// read returns the checkpoint, nil where nothing was ever signed here.
func (l lockFile) read() (*ledger.Checkpoint, error) {
	text, err := os.ReadFile(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // there is none
	}
	if err != nil {
		return nil, fmt.Errorf("reading the lock file: %w", err)
	}
	c, err := ledger.ParseCheckpoint(text)
	if err != nil {
		return nil, halt(haltLock, "the lock file %s: %w", l.path, err)
	}
	return c, nil
}

// check refuses, with a haltError, a root log that does not continue what the file says was signed.
func (l lockFile) check(ctx context.Context, log *rootLog, prove proveFunc) error {
	c, err := l.read()
	if err != nil || c == nil {
		return err
	}
	err = log.extends(ctx, c, prove)
	if errors.Is(err, ledger.ErrProof) {
		return halt(haltLock, "the root log does not continue the checkpoint of size %d in the lock file %s: %w", c.Size, l.path, err)
	}
	return err
}

// write replaces the file. When it returns without an error the checkpoint is on disk and may be published.
func (l lockFile) write(signed []byte) error {
	if err := durable.Replace(l.path, signed); err != nil {
		return fmt.Errorf("writing the lock file: %w", err)
	}
	return nil
}
