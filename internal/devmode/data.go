package devmode

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/processor/notary"
	"getimmutable.dev/immutable/schemas"
)

// Names within the data folder.
const (
	lockFile      = "lock"
	masterKeyFile = "master.key"
	notaryKeyFile = "notary.key"
	// notaryLock is what the notary remembers beside the topics. It is not for backups: an old one would hide a loss.
	notaryLock    = "notary.lock"
	upFile        = "up.json"
	kafkaDir      = "kafka"
	clickhouseDir = "clickhouse"
)

// UpFile is DATA/up.json: where everything of the running, or the last, `up` is, for kcat, ClickHouse's clients,
// notebooks and our own subcommands. It holds a password and has mode 0600.
type UpFile struct {
	HTTP               string `json:"http"`              // http://127.0.0.1:8080
	Kafka              string `json:"kafka"`             // 127.0.0.1:9092[,...]
	ClickHouseHTTP     string `json:"clickhouse_http"`   // http://127.0.0.1:8123; "" for a server elsewhere
	ClickHouseNative   string `json:"clickhouse_native"` // 127.0.0.1:9000
	ClickHouseUser     string `json:"clickhouse_user"`
	ClickHousePassword string `json:"clickhouse_password"`
	Database           string `json:"database"`
	TopicPrefix        string `json:"topic_prefix"`
	Partitions         int32  `json:"partitions"`
	Replicas           int16  `json:"replicas"`
}

// ReadUpFile reads up.json of a data folder; fs.ErrNotExist where no `up` has ever run.
func ReadUpFile(dir string) (*UpFile, error) {
	text, err := os.ReadFile(filepath.Join(dir, upFile)) //nolint:gosec // a file of ours
	if err != nil {
		return nil, fmt.Errorf("reading what `immutable up` wrote: %w", err)
	}
	f := new(UpFile)
	if err := json.Unmarshal(text, f); err != nil {
		return nil, fmt.Errorf("reading %s: %w", filepath.Join(dir, upFile), err)
	}
	return f, nil
}

// Brokers of Kafka, host:port.
func (f *UpFile) Brokers() []string { return strings.Split(f.Kafka, ",") }

// Layout of the topics.
func (f *UpFile) Layout() schemas.TopicLayout {
	return schemas.TopicLayout{
		Prefix: f.TopicPrefix, Partitions: f.Partitions, Replicas: f.Replicas, LedgerRetentionDays: LedgerRetentionDays,
	}
}

// write replaces up.json at once: nobody reads half of it.
func (f *UpFile) write(dir string) error {
	text, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding %s: %w", upFile, err)
	}
	path := filepath.Join(dir, upFile)
	if err := os.WriteFile(path+".tmp", append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("writing %s: %w", upFile, err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return fmt.Errorf("writing %s: %w", upFile, err)
	}
	return nil
}

// MasterKey reads the master key of a data folder.
func MasterKey(dir string) (control.MasterKey, error) {
	return control.LoadMasterKey(filepath.Join(dir, masterKeyFile))
}

// ensureMasterKey creates the master key at the first start. Where there is data already it does not: under another key
// nothing that is configured there could be read.
func ensureMasterKey(dir string) (control.MasterKey, error) {
	key, err := MasterKey(dir)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	for _, name := range []string{upFile, kafkaDir} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return control.MasterKey{}, fmt.Errorf(
				"%[1]s is missing, and the data in %[2]s cannot be opened without it: restore %[1]s from a backup",
				filepath.Join(dir, masterKeyFile), dir)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return control.MasterKey{}, fmt.Errorf("looking for data that needs a master key: %w", err)
		}
	}
	return control.CreateMasterKey(filepath.Join(dir, masterKeyFile))
}

// ensureNotaryKey creates the notary's key file at the first start, for a root log with a name of its own, and returns its
// path. Where the notary has signed, which its lock file shows, it does not: under another key it would be another log.
func ensureNotaryKey(dir string) (path string, err error) {
	path = filepath.Join(dir, notaryKeyFile)
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return path, err
	}
	if _, err := os.Lstat(filepath.Join(dir, notaryLock)); !errors.Is(err, fs.ErrNotExist) {
		return path, errors.Join(fmt.Errorf("%[1]s is missing, and checkpoints were signed with it: restore %[1]s from a backup", path), err)
	}
	if _, err := notary.CreateKey(path, ""); err != nil {
		return path, err
	}
	return path, nil
}

// lock takes the data folder for this process, until the returned function or the process's end, however it ends.
func lock(dir string) (unlock func() error, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the data folder: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600) //nolint:gosec // a file of ours
	if err != nil {
		return nil, fmt.Errorf("locking the data folder: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		owner, _ := os.ReadFile(f.Name()) // for the message only
		err = fmt.Errorf("locking the data folder: %w", err)
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = fmt.Errorf("another `immutable up` uses %s (process %s): stop it, or give this one another data folder",
				dir, strings.TrimSpace(string(owner)))
		}
		return nil, errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Truncate(0), writeString(f, strconv.Itoa(os.Getpid())+"\n")); err != nil {
		return nil, errors.Join(fmt.Errorf("locking the data folder: %w", err), f.Close())
	}
	return f.Close, nil // closing gives the lock back
}

func writeString(f *os.File, s string) error {
	_, err := f.WriteString(s)
	return err
}

// portOf returns the port of host:port, 0 where there is none.
func portOf(addr string) int {
	_, text, err := net.SplitHostPort(addr)
	if err != nil {
		return 0
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return 0
	}
	return port
}
