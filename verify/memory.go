package verify

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

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
	// Sources says which workspace an API key has read where, by the key's fingerprint and the URL.
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

// save replaces the file: after it, power may fail and the file is the old one or the new one.
func (m *memory) save(path string) error {
	text, err := json.Marshal(m, jsontext.WithIndent(" "), json.Deterministic(true))
	if err != nil {
		return fmt.Errorf("writing the memory: %w", err)
	}
	if err := writeFile(path, text); err != nil {
		return fmt.Errorf("writing the memory: %w", err)
	}
	return nil
}

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
