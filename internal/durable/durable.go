// Package durable writes small files whole: what a power cut leaves is the file as it was, or the new one.
package durable

import (
	"errors"
	"os"
	"path/filepath"
)

// Replace makes content the content of a file of mode 0600, whether or not it is there. When it returns without an error, name and
// content survive a power cut.
func Replace(path string, content []byte) error { return write(path, content, os.Rename) }

// Create is Replace for a file that must not be there: fs.ErrExist.
func Create(path string, content []byte) error {
	// A link, unlike a rename, fails where the name is taken.
	return write(path, content, os.Link)
}

// write makes the file under another name, and places it once its content is on disk.
func write(path string, content []byte, place func(from, to string) error) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".*.tmp") // mode 0600, O_EXCL
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // a rename has taken it away already
	_, err = f.Write(content)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := place(f.Name(), path); err != nil {
		return err
	}
	// The name is durable with its folder.
	d, err := os.Open(dir) //nolint:gosec // where the caller's file is
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
