package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"getimmutable.dev/immutable/internal/durable"
	"getimmutable.dev/immutable/ledger"
)

const (
	memoryFormat   = "immutable/memory/1"
	maxMemoryBytes = 256 << 20
)

// memory is what earlier runs have accepted: nothing inside a ledger can show that it was rolled back as a whole.
type memory struct {
	Format string `json:"format"`
	// Logs by origin.
	Logs map[string]*rememberedLog `json:"logs"`
}

// rememberedLog is the last accepted checkpoint of a log.
type rememberedLog struct {
	// Checkpoint is the signed note.
	Checkpoint string `json:"checkpoint"`
	// Range, LastHash and Keys are what replaying the root log from there on needs: the subtree roots of its tree at the checkpoint's size, the
	// hash of its last entry, and the key changes before it.
	Range    []ledger.Hash `json:"range"`
	LastHash ledger.Hash   `json:"last_hash"`
	Keys     []string      `json:"keys"`
	// Epoch is the newest epoch's entry.
	Epoch string `json:"epoch"`
	// Chains by id, as they were recomputed then.
	Chains map[ledger.ChainID]rememberedChain `json:"chains"`
	// Sources says which workspace an API key has read, by the key's fingerprint.
	Sources map[string]rememberedWorkspace `json:"sources,omitzero"`
}

type rememberedChain struct {
	Workspace ledger.Hex16 `json:"workspace"`
	Size      uint64       `json:"size"`
	Root      ledger.Hash  `json:"root"`
	// Stated is what the epoch of then proves of it, so that it convicts who states something else; nil from the operator's tables.
	Stated *ledger.StatedChain `json:"stated,omitzero"`
}

type rememberedWorkspace struct {
	Workspace   ledger.Hex16 `json:"workspace"`
	Incarnation ledger.Hex16 `json:"incarnation"`
}

// loadMemory reads a memory file; one that is not there is empty.
func loadMemory(path string) (*memory, error) {
	m := &memory{Format: memoryFormat, Logs: map[string]*rememberedLog{}}
	if path == "" {
		return m, nil
	}
	text, err := readFile(path, maxMemoryBytes)
	if errors.Is(err, os.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the memory: %w", err)
	}
	if err := json.Unmarshal(text, m, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("reading the memory in %s: %w", path, err)
	}
	if m.Format != memoryFormat {
		return nil, fmt.Errorf("reading the memory in %s: format %.40q, want %q", path, m.Format, memoryFormat)
	}
	if m.Logs == nil { // null
		m.Logs = map[string]*rememberedLog{}
	}
	for origin, l := range m.Logs {
		if err := l.check(origin); err != nil {
			return nil, fmt.Errorf("reading the memory in %s: log %q: %w", path, origin, err)
		}
	}
	return m, nil
}

// check says whether what is remembered of a log belongs together.
func (l *rememberedLog) check(origin string) error {
	if l == nil {
		return errors.New("it is null")
	}
	c, err := ledger.ParseCheckpoint([]byte(l.Checkpoint))
	if err != nil {
		return err
	}
	head := ledger.Head{Size: c.Size, Range: l.Range}
	if err := head.Check(); err != nil {
		return err
	}
	if c.Origin != origin || head.Root() != c.Root {
		return errors.New("its hashes are not those of its checkpoint")
	}
	if _, err := keyHistory(origin, l.Keys); err != nil {
		return err
	}
	if e, err := ledger.ParseEntry([]byte(l.Epoch)); err != nil || e.Epoch == nil {
		return errors.New("its newest epoch cannot be read")
	}
	return nil
}

// keyHistory reads key changes.
func keyHistory(origin string, entries []string) (ledger.KeyHistory, error) {
	var keys ledger.KeyHistory
	for _, text := range entries {
		e, err := ledger.ParseEntry([]byte(text))
		if err == nil {
			err = keys.Append(origin, e)
		}
		if err != nil {
			return nil, fmt.Errorf("key changes: %w", err)
		}
	}
	return keys, nil
}

// updateMemory reads a memory file, lets change have it, and replaces it, while no other run does: what another run has written since this one read
// it is not lost. After it, power may fail and the file is the old one or the new one. The error wraps ErrUsage.
func updateMemory(ctx context.Context, path string, wait time.Duration, change func(*memory) error) error {
	unlock, err := lockMemory(ctx, path, wait)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	defer unlock()
	m, err := loadMemory(path)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	if err := change(m); err != nil {
		return err
	}
	text, err := json.Marshal(m, jsontext.WithIndent(" "), json.Deterministic(true))
	if err == nil {
		err = writeFile(path, text)
	}
	if err != nil {
		return fmt.Errorf("%w: writing the memory: %w", ErrUsage, err)
	}
	return nil
}

// lockPoll is how often a lock that somebody has is tried again.
const lockPoll = 50 * time.Millisecond

// lockMemory keeps other runs from changing a memory file, until unlock is called or the process ends. It locks a file beside it, as the memory itself is
// replaced by another file each time.
func lockMemory(ctx context.Context, path string, wait time.Duration) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("locking the memory: %w", err)
	}
	name := path + ".lock"
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600) //nolint:gosec // beside the file that the user named
	if err != nil {
		return nil, fmt.Errorf("locking the memory: %w", err)
	}
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, errors.Join(fmt.Errorf("locking the memory with %s: %w", name, err), f.Close())
		}
		select {
		case <-tick.C:
		case <-timeout.C:
			return nil, errors.Join(fmt.Errorf("another run has locked the memory with %s for %s", name, wait), f.Close())
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("locking the memory with %s: %w", name, ctx.Err()), f.Close())
		}
	}
}

// openMemory is loadMemory for a run that will write it: a file that cannot be locked is said before all the work, not after it.
func openMemory(ctx context.Context, cfg *Config) (*memory, error) {
	if cfg.MemoryFile != "" {
		unlock, err := lockMemory(ctx, cfg.MemoryFile, cfg.MemoryWait)
		if err != nil {
			return nil, err
		}
		unlock()
	}
	return loadMemory(cfg.MemoryFile)
}

// merge adds what another run has remembered of the log meanwhile by the same checkpoint: of each chain the larger size. It returns a chain of which
// both cannot be true.
func (l *rememberedLog) merge(other *rememberedLog) (forked *ledger.ChainID) {
	for _, id := range slices.SortedFunc(maps.Keys(other.Chains), compareChains) {
		c, own := other.Chains[id], l.Chains[id]
		if own.Size == c.Size && own.Root != c.Root {
			return &id
		}
		if own.Size < c.Size {
			l.Chains[id] = c
		}
	}
	for source, w := range other.Sources {
		if _, both := l.Sources[source]; !both {
			l.Sources[source] = w
		}
	}
	return nil
}

func compareChains(a, b ledger.ChainID) int { return bytes.Compare(a[:], b[:]) }

// writeFile replaces a file, and makes the folder that it is in.
func writeFile(path string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return durable.Replace(path, text)
}

// readFile reads a file of at most this many bytes.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path) //nolint:gosec // the file that the user named
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var b bytes.Buffer
	if _, err := b.ReadFrom(io.LimitReader(f, limit+1)); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if int64(b.Len()) > limit {
		return nil, fmt.Errorf("reading %s: it has more than %d bytes", path, limit)
	}
	return b.Bytes(), nil
}
