package chdb

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Config says which library to run, on which data.
type Config struct {
	// Executable is the command that runs RunChild with the arguments appended to it. Default: this executable with
	// the subcommand "chdb-server".
	Executable []string
	// Library is the path of libchdb.so, as FindLibrary returns it. Required.
	Library string
	// Dir holds the tables, the log and the configuration; created with mode 0700. One process at a time. Required.
	Dir string
	// User may do everything with tables and nothing with files or networks. Default "immutable".
	User string
	// Password of User. Default: 128 random bits, drawn anew at each start.
	Password string
	// Database that DSN names; it is not created here. Default "immutable".
	Database string
	// HTTPPort and NativePort to listen on, both or neither. Default: the kernel's choice.
	HTTPPort, NativePort int
	// MemoryLimitBytes is what queries and merges may take together; ClickHouse lowers it to 90 % of the machine's
	// memory. Default 2 GiB.
	MemoryLimitBytes int64
	// KeepFreeBytes of the disk are left alone: an insert or a merge that would reach into them is refused at its start.
	// One that meets a full disk on its way can leave a part that cannot be read. Default 128 MiB.
	KeepFreeBytes int64
	// StartTimeout is how long the child may take to answer. Default 60 s: it loads every part of every table.
	StartTimeout time.Duration
	// StopTimeout is how long it may take to end after SIGTERM before it is killed. Default 5 s.
	StopTimeout time.Duration
}

func (c *Config) setDefaults() error {
	if c.Library == "" || c.Dir == "" {
		return errors.New("chdb: Library and Dir are required")
	}
	var err error
	if c.Dir, err = filepath.Abs(c.Dir); err != nil { // the child's working directory is Dir
		return fmt.Errorf("finding the clickhouse folder: %w", err)
	}
	if (c.HTTPPort == 0) != (c.NativePort == 0) {
		return errors.New("chdb: HTTPPort and NativePort go together")
	}
	if len(c.Executable) == 0 {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("finding the executable to run clickhouse with: %w", err)
		}
		c.Executable = []string{self, "chdb-server"}
	}
	if c.User == "" {
		c.User = "immutable"
	}
	if c.Password == "" {
		c.Password = randomHex()
	}
	if c.Database == "" {
		c.Database = "immutable"
	}
	if c.MemoryLimitBytes == 0 {
		c.MemoryLimitBytes = 2 << 30
	}
	if c.KeepFreeBytes == 0 {
		c.KeepFreeBytes = 128 << 20
	}
	if c.StartTimeout == 0 {
		c.StartTimeout = time.Minute
	}
	if c.StopTimeout == 0 {
		c.StopTimeout = 5 * time.Second
	}
	return nil
}

// libraryPackage is where npm puts the library.
const libraryPackage = "node_modules/@chdb/lib-linux-x64-gnu/libchdb.so"

// FindLibrary returns the path of libchdb.so: explicit where that is not empty, else the npm package's in the working
// directory, beside the executable, or in a parent of either. The error of a missing one names the command that
// installs it.
func FindLibrary(explicit string) (string, error) {
	if explicit != "" {
		if _, err := os.Stat(explicit); err != nil { //nolint:gosec // the operator's choice of a file to load
			return "", fmt.Errorf("the ClickHouse library: %w; `npm ci` in the source folder installs one", err)
		}
		return filepath.Abs(explicit)
	}
	var roots []string
	if wd, err := os.Getwd(); err == nil {
		roots = append(roots, wd)
	}
	if self, err := os.Executable(); err == nil {
		roots = append(roots, filepath.Dir(self))
	}
	for _, dir := range roots {
		for {
			path := filepath.Join(dir, libraryPackage)
			if _, err := os.Stat(path); err == nil {
				return path, nil
			}
			parent := filepath.Dir(dir)
			if parent == dir {
				break
			}
			dir = parent
		}
	}
	return "", fmt.Errorf("no %s in %s or a folder above: run `npm ci` in the source folder, or name the library",
		libraryPackage, strings.Join(roots, " or "))
}

// defaultQuota is how many queries the user default may run: those of serveQueries. clickhouse-local runs them as
// default, which must have no password; afterwards nobody can use it.
const defaultQuota = 3

// writeConfig writes ClickHouse's two configuration files into c.Dir and returns the main one's path. marker is what
// getMacro('marker') answers on this child and no other.
func writeConfig(c *Config, httpPort, nativePort int, marker string) (string, error) {
	password := sha256.Sum256([]byte(c.Password))
	users := fmt.Sprintf(`<clickhouse>
  <profiles><default/></profiles>
  <quotas>
    <default/>
    <start><interval><duration>2147483647</duration><queries>%d</queries></interval></start>
  </quotas>
  <users>
    <default>
      <no_password/>
      <networks><ip>127.0.0.1</ip></networks>
      <profile>default</profile>
      <quota>start</quota>
      <grants>
        <query>GRANT SYSTEM LISTEN ON *.*</query>
        <query>GRANT SELECT ON system.numbers</query>
      </grants>
    </default>
    <%[2]s>
      <password_sha256_hex>%[3]s</password_sha256_hex>
      <networks><ip>127.0.0.1</ip></networks>
      <profile>default</profile>
      <quota>default</quota>
      <grants>
        <query>GRANT SHOW, SELECT, INSERT, ALTER, CREATE, DROP, TRUNCATE, OPTIMIZE, CHECK, KILL QUERY, SYSTEM ON *.*</query>
        <query>GRANT TABLE ENGINE ON *</query>
      </grants>
    </%[2]s>
  </users>
</clickhouse>
`, defaultQuota, c.User, hex.EncodeToString(password[:]))

	usersPath := filepath.Join(c.Dir, "users.xml")
	config := fmt.Sprintf(`<clickhouse>
  <users_config>%s</users_config>
  <path>%s</path>
  <listen_host>127.0.0.1</listen_host>
  <http_port>%d</http_port>
  <tcp_port>%d</tcp_port>
  <macros><marker>%s</marker></macros>
  <max_server_memory_usage>%d</max_server_memory_usage>
  <storage_configuration><disks><default>
    <keep_free_space_bytes>%d</keep_free_space_bytes>
  </default></disks></storage_configuration>
  <mark_cache_size>268435456</mark_cache_size>
  <log-level>warning</log-level>
  <logger><log>%s</log><size>10M</size><count>1</count></logger>
</clickhouse>
`, escape(usersPath), escape(filepath.Join(c.Dir, "tables")), httpPort, nativePort, marker, c.MemoryLimitBytes,
		c.KeepFreeBytes, escape(filepath.Join(c.Dir, logFile)))

	configPath := filepath.Join(c.Dir, "config.xml")
	for path, content := range map[string]string{usersPath: users, configPath: config} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			return "", fmt.Errorf("writing the clickhouse configuration: %w", err)
		}
	}
	return configPath, nil
}

// logFile holds ClickHouse's warnings and errors: two files of at most 10 MB.
const logFile = "clickhouse.log"

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder takes everything
	return b.String()
}
