package clickhouse

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"getimmutable.dev/immutable/schemas"
)

// Errors that Migrate and CheckSchema wrap.
var (
	// ErrSchemaOlder: `immutable migrate` has to run first.
	ErrSchemaOlder = errors.New("the clickhouse tables are older than this program: run `immutable migrate`")
	// ErrSchemaNewer: a later version of the program migrated the tables.
	ErrSchemaNewer = errors.New("the clickhouse tables are newer than this program: use the version that migrated them, or a later one")
	// ErrSchemaChanged: a migration that was applied is not the one that this program has under that number.
	ErrSchemaChanged = errors.New("an applied clickhouse migration differs from this program's")
)

// IsSchemaError reports whether an error says that the tables are not this program's, which waiting does not change.
func IsSchemaError(err error) bool {
	return errors.Is(err, ErrSchemaOlder) || errors.Is(err, ErrSchemaNewer) || errors.Is(err, ErrSchemaChanged)
}

// ClickHouse error codes (src/Common/ErrorCodes.cpp).
const (
	codeUnknownTable    = 60
	codeUnknownDatabase = 81
)

// migration is one embedded file.
type migration struct {
	version    uint32
	name       string
	checksum   string // hexadecimal SHA-256 of the file
	statements []string
}

// applied is a row of schema_migrations.
type applied struct {
	version        uint32
	name, checksum string
}

const createMigrations = `CREATE TABLE IF NOT EXISTS schema_migrations
(
    version    UInt32,
    name       String,
    checksum   String,
    applied_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = MergeTree
ORDER BY version`

// Migrate applies the migrations that are missing, in order; the database must exist (CreateDatabase). There are no
// steps back. Two processes may do it at once, and one that was killed may be followed by another: there is no lock to
// take in ClickHouse, so every statement is one that may run twice (IF NOT EXISTS), a migration is recorded after its
// last statement, and a second record of it says the same. It refuses tables that are newer than this program, or that
// were made by files with other content.
func Migrate(ctx context.Context, conn driver.Conn, logger *slog.Logger) error {
	migrations, err := load(schemas.Migrations)
	if err != nil {
		return err
	}
	return migrate(ctx, conn, migrations, logger)
}

func migrate(ctx context.Context, conn driver.Conn, migrations []migration, logger *slog.Logger) error {
	if err := conn.Exec(ctx, createMigrations); err != nil {
		return fmt.Errorf("creating schema_migrations: %w", err)
	}
	done, err := readApplied(ctx, conn)
	if err != nil {
		return err
	}
	missing, err := compare(migrations, done)
	if err != nil {
		return err
	}
	for _, m := range missing {
		for i, statement := range m.statements {
			if err := conn.Exec(ctx, statement); err != nil {
				return fmt.Errorf("clickhouse migration %s, statement %d: %w", m.name, i+1, err)
			}
		}
		err := conn.Exec(ctx, "INSERT INTO schema_migrations (version, name, checksum) VALUES (?, ?, ?)",
			m.version, m.name, m.checksum)
		if err != nil {
			return fmt.Errorf("recording clickhouse migration %s: %w", m.name, err)
		}
		logger.InfoContext(ctx, "clickhouse migration applied", "version", m.version, "name", m.name)
	}
	return nil
}

// CheckSchema reports whether the tables are those of this program. Its errors wrap ErrSchemaOlder, ErrSchemaNewer or
// ErrSchemaChanged, unless ClickHouse cannot be asked.
func CheckSchema(ctx context.Context, conn driver.Conn) error {
	migrations, err := load(schemas.Migrations)
	if err != nil {
		return err
	}
	return check(ctx, conn, migrations)
}

func check(ctx context.Context, conn driver.Conn, migrations []migration) error {
	done, err := readApplied(ctx, conn)
	if e, ok := errors.AsType[*clickhouse.Exception](err); ok && (e.Code == codeUnknownTable || e.Code == codeUnknownDatabase) {
		return fmt.Errorf("%w (there are none yet)", ErrSchemaOlder)
	}
	if err != nil {
		return err
	}
	missing, err := compare(migrations, done)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w (%s is not applied)", ErrSchemaOlder, missing[0].name)
	}
	return nil
}

// compare returns the migrations that are not done.
func compare(migrations []migration, done []applied) (missing []migration, err error) {
	missing = slices.Clone(migrations)
	for _, a := range done {
		i := slices.IndexFunc(migrations, func(m migration) bool { return m.version == a.version })
		if i < 0 {
			return nil, fmt.Errorf("%w (%s is applied)", ErrSchemaNewer, a.name)
		}
		if m := migrations[i]; m.checksum != a.checksum {
			return nil, fmt.Errorf("%w: %s was applied with checksum %s and is %s here",
				ErrSchemaChanged, a.name, a.checksum, m.checksum)
		}
		missing = slices.DeleteFunc(missing, func(m migration) bool { return m.version == a.version })
	}
	return missing, nil
}

func readApplied(ctx context.Context, conn driver.Conn) (done []applied, err error) {
	rows, err := conn.Query(ctx, "SELECT DISTINCT version, name, checksum FROM schema_migrations ORDER BY version")
	if err != nil {
		return nil, fmt.Errorf("reading schema_migrations: %w", err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var a applied
		if err := rows.Scan(&a.version, &a.name, &a.checksum); err != nil {
			return nil, fmt.Errorf("reading schema_migrations: %w", err)
		}
		done = append(done, a)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading schema_migrations: %w", err)
	}
	return done, nil
}

// load reads clickhouse/NNNN_name.sql, in the order of the numbers, which begin at 1 and have no holes.
func load(files fs.FS) ([]migration, error) {
	paths, err := fs.Glob(files, "clickhouse/*.sql")
	if err != nil {
		return nil, fmt.Errorf("listing the clickhouse migrations: %w", err)
	}
	migrations := make([]migration, 0, len(paths))
	for _, p := range paths {
		content, err := fs.ReadFile(files, p)
		if err != nil {
			return nil, fmt.Errorf("reading a clickhouse migration: %w", err)
		}
		name := strings.TrimSuffix(path.Base(p), ".sql")
		number, _, _ := strings.Cut(name, "_")
		version, err := strconv.ParseUint(number, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("clickhouse migration %s: the name must begin with a number: %w", p, err)
		}
		sum := sha256.Sum256(content)
		migrations = append(migrations, migration{
			version: uint32(version), name: name, checksum: hex.EncodeToString(sum[:]), statements: split(string(content)),
		})
	}
	slices.SortFunc(migrations, func(a, b migration) int { return cmp.Compare(a.version, b.version) })
	for i, m := range migrations {
		if m.version != uint32(i)+1 {
			return nil, fmt.Errorf("clickhouse migration %s: number %d is due", m.name, i+1)
		}
	}
	return migrations, nil
}

// split returns the statements of a file without their comment lines. A statement ends with a semicolon at the end of
// a line.
func split(content string) []string {
	var statements []string
	var b strings.Builder
	for line := range strings.Lines(content) {
		if strings.HasPrefix(strings.TrimSpace(line), "--") {
			continue
		}
		b.WriteString(line)
		if s := strings.TrimSpace(b.String()); strings.HasSuffix(s, ";") {
			statements = append(statements, strings.TrimSuffix(s, ";"))
			b.Reset()
		}
	}
	if s := strings.TrimSpace(b.String()); s != "" {
		statements = append(statements, s)
	}
	return statements
}
