package localkafka

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// kfake compacts a partition by deleting its files and writing new ones, so a crash in between would lose all of it, the
// API keys and the ledger's heads among them. Therefore each compaction runs between two links: before it, every file
// gets a second name under compacting/, and a marker says that all have one; after it, the marker and the second names
// go. A start that finds the marker puts the old files back.
const (
	compactingDir  = "compacting"
	compactingMark = "complete"
)

// compactIfDue runs within the broker's loop: no request is handled until it returns.
func (s *Server) compactIfDue() {
	due := time.Since(s.compactedAt) >= s.cfg.CompactInterval
	if !due && !s.marked {
		return
	}
	err := s.endCompaction() // an earlier one that could not be ended is tried again without waiting
	if due {
		s.compactedAt = time.Now()
		if err == nil {
			err = s.compact()
		}
	}
	if err != nil && due {
		ctx := context.Background() //nolint:forbidigo // the broker's loop has none
		s.logger.LogAttrs(ctx, slog.LevelError, "local kafka does not compact", slog.Any("error", err))
	}
}

func (s *Server) compact() error {
	if err := s.Admit(); err != nil {
		return err // what kfake cannot write it drops
	}
	names, err := s.compacted()
	if err != nil {
		return err
	}
	s.marked = true // from the first attempt at it on
	if err := linkPartitions(s.cfg.Dir, names); err != nil {
		return errors.Join(err, s.endCompaction())
	}
	s.replaced = names
	s.cluster.Compact()
	return s.endCompaction()
}

// endCompaction makes a compaction final. Until it returns without an error the next start may put the old files back,
// so that nothing may be written to the new ones: onProduce and onEndTxn refuse while s.marked.
func (s *Server) endCompaction() error {
	if !s.marked {
		return nil
	}
	// The new files are on disk, each synced by kfake; their names are with their folders.
	for _, name := range s.replaced {
		err := syncDir(filepath.Join(s.cfg.Dir, "partitions", name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // its topic was deleted
			return err
		}
	}
	if err := dropMark(s.cfg.Dir); err != nil {
		return err
	}
	s.marked, s.replaced = false, nil
	return dropLinks(s.cfg.Dir)
}

// compacted returns the folders of the partitions of compacted topics: "<escaped topic>-<partition>".
func (s *Server) compacted() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.cfg.Dir, "partitions"))
	if err != nil {
		return nil, fmt.Errorf("listing partitions: %w", err)
	}
	var names []string
	for _, e := range entries {
		i := strings.LastIndexByte(e.Name(), '-')
		topic, err := url.PathUnescape(e.Name()[:max(i, 0)])
		if err != nil {
			return nil, fmt.Errorf("partition %s: %w", e.Name(), err)
		}
		info := s.cluster.TopicInfo(topic)
		if info == nil {
			continue
		}
		if policy := info.Configs["cleanup.policy"]; policy != nil && strings.Contains(*policy, "compact") {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// linkPartitions gives all files of some partitions a second name. When it returns without an error, a crash can be
// undone from here on.
func linkPartitions(dir string, names []string) error {
	backup := filepath.Join(dir, compactingDir)
	// What an earlier compaction has left behind must not be taken for this one's.
	if err := dropMark(dir); err != nil {
		return err
	}
	if err := dropLinks(dir); err != nil {
		return err
	}
	if err := os.Mkdir(backup, 0o700); err != nil {
		return fmt.Errorf("making a folder for links: %w", err)
	}
	for _, name := range names {
		from, to := filepath.Join(dir, "partitions", name), filepath.Join(backup, name)
		if err := os.Mkdir(to, 0o700); err != nil {
			return fmt.Errorf("making a folder for links: %w", err)
		}
		files, err := os.ReadDir(from)
		if err != nil {
			return fmt.Errorf("listing segments: %w", err)
		}
		for _, f := range files {
			if err := os.Link(filepath.Join(from, f.Name()), filepath.Join(to, f.Name())); err != nil {
				return fmt.Errorf("linking a segment: %w", err)
			}
		}
		if err := syncDir(to); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(backup, compactingMark), nil, 0o600); err != nil {
		return fmt.Errorf("marking the links complete: %w", err)
	}
	return errors.Join(syncDir(backup), syncDir(dir))
}

// restoreCompaction undoes a compaction that a crash has cut short.
func restoreCompaction(dir string) error {
	backup := filepath.Join(dir, compactingDir)
	if _, err := os.Stat(filepath.Join(backup, compactingMark)); errors.Is(err, fs.ErrNotExist) {
		return dropLinks(dir) // compaction had not begun, or was done
	} else if err != nil {
		return fmt.Errorf("looking for links: %w", err)
	}
	entries, err := os.ReadDir(backup)
	if err != nil {
		return fmt.Errorf("listing links: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		// A crash in here is repeated: a partition that was moved back is no longer among the entries.
		to := filepath.Join(dir, "partitions", e.Name())
		if err := os.RemoveAll(to); err != nil {
			return fmt.Errorf("removing half a compaction: %w", err)
		}
		if err := os.Rename(filepath.Join(backup, e.Name()), to); err != nil {
			return fmt.Errorf("putting segments back: %w", err)
		}
	}
	if err := syncDir(filepath.Join(dir, "partitions")); err != nil {
		return err
	}
	if err := dropMark(dir); err != nil {
		return err
	}
	return dropLinks(dir)
}

// dropMark makes links mean nothing: when it returns without an error, no start puts the old files back, even after a
// power cut. It may be repeated.
func dropMark(dir string) error {
	backup := filepath.Join(dir, compactingDir)
	if err := os.Remove(filepath.Join(backup, compactingMark)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the mark of a compaction: %w", err)
	}
	if err := syncDir(backup); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// dropLinks removes links that have no mark.
func dropLinks(dir string) error {
	if err := os.RemoveAll(filepath.Join(dir, compactingDir)); err != nil {
		return fmt.Errorf("removing links: %w", err)
	}
	return nil
}

// syncDir makes the names in a folder durable.
func syncDir(path string) error {
	d, err := os.Open(path) //nolint:gosec // a folder of ours
	if err != nil {
		return fmt.Errorf("opening a folder: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("syncing folder %s: %w", path, err)
	}
	return nil
}
