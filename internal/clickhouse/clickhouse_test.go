package clickhouse_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
	"getimmutable.dev/immutable/schemas"
)

func TestMain(m *testing.M) { os.Exit(clickhousetest.Main(m)) }

var quiet = slog.New(slog.DiscardHandler)

// files makes migrations out of name, content pairs.
func files(pairs ...string) fstest.MapFS {
	fs := fstest.MapFS{}
	for i := 0; i < len(pairs); i += 2 {
		fs["clickhouse/"+pairs[i]+".sql"] = &fstest.MapFile{Data: []byte(pairs[i+1])}
	}
	return fs
}

const (
	first  = "-- a comment;\nCREATE TABLE IF NOT EXISTS a (x UInt8)\nENGINE = MergeTree ORDER BY x;\n\nCREATE TABLE IF NOT EXISTS b (x UInt8) ENGINE = MergeTree ORDER BY x;\n"
	second = "ALTER TABLE a ADD COLUMN IF NOT EXISTS y UInt8;\n"
)

func newDatabase(t *testing.T) driver.Conn {
	t.Helper()
	s := clickhousetest.StartEmpty(t)
	conn := s.Conn(t)
	if err := clickhouse.CheckSchemaFiles(t.Context(), conn, files("0001_a", first)); !errors.Is(err, clickhouse.ErrSchemaOlder) {
		t.Errorf("check without a database: %v", err)
	}
	for range 2 {
		if err := clickhouse.CreateDatabase(t.Context(), s.Config()); err != nil {
			t.Fatal(err)
		}
	}
	return conn
}

func tables(t *testing.T, conn driver.Conn) []string {
	t.Helper()
	var names []string
	err := conn.QueryRow(t.Context(),
		"SELECT arraySort(groupArray(concat(table, '.', name))) FROM system.columns WHERE database = currentDatabase() AND table IN ('a', 'b')").
		Scan(&names)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestMigrate(t *testing.T) {
	ctx := t.Context()
	conn := newDatabase(t)
	one, two := files("0001_a", first), files("0001_a", first, "0002_b", second)
	changed := files("0001_a", first+"\n", "0002_b", second)

	if err := clickhouse.CheckSchemaFiles(ctx, conn, one); !errors.Is(err, clickhouse.ErrSchemaOlder) ||
		!strings.Contains(err.Error(), "immutable migrate") {
		t.Errorf("check of an empty database: %v", err)
	}
	for range 2 { // the second time, nothing is left to do
		if err := clickhouse.MigrateFiles(ctx, conn, one, quiet); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"a.x", "b.x"}, tables(t, conn)); diff != "" {
		t.Error(diff)
	}
	if err := clickhouse.CheckSchemaFiles(ctx, conn, one); err != nil {
		t.Errorf("check after the migration: %v", err)
	}
	if err := clickhouse.CheckSchemaFiles(ctx, conn, two); !errors.Is(err, clickhouse.ErrSchemaOlder) ||
		!strings.Contains(err.Error(), "0002_b") {
		t.Errorf("check by a newer program: %v", err)
	}
	if err := clickhouse.MigrateFiles(ctx, conn, changed, quiet); !errors.Is(err, clickhouse.ErrSchemaChanged) {
		t.Errorf("migration with a changed file: %v", err)
	}
	if diff := cmp.Diff([]string{"a.x", "b.x"}, tables(t, conn)); diff != "" {
		t.Errorf("a refused migration did something: %s", diff)
	}
	if err := clickhouse.MigrateFiles(ctx, conn, two, quiet); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a.x", "a.y", "b.x"}, tables(t, conn)); diff != "" {
		t.Error(diff)
	}
	if err := clickhouse.CheckSchemaFiles(ctx, conn, one); !errors.Is(err, clickhouse.ErrSchemaNewer) {
		t.Errorf("check by an older program: %v", err)
	}
	if err := clickhouse.MigrateFiles(ctx, conn, one, quiet); !errors.Is(err, clickhouse.ErrSchemaNewer) {
		t.Errorf("migration by an older program: %v", err)
	}
	if err := clickhouse.CheckSchemaFiles(ctx, conn, changed); !errors.Is(err, clickhouse.ErrSchemaChanged) {
		t.Errorf("check with a changed file: %v", err)
	}
}

// A migrator that was killed between two statements is followed by one that finishes.
func TestMigrateAfterHalf(t *testing.T) {
	conn := newDatabase(t)
	broken := files("0001_a", first+"SELECT throwIf(1);\n")
	if err := clickhouse.MigrateFiles(t.Context(), conn, broken, quiet); err == nil ||
		!strings.Contains(err.Error(), "0001_a, statement 3") {
		t.Fatalf("broken migration: %v", err)
	}
	if err := clickhouse.MigrateFiles(t.Context(), conn, files("0001_a", first), quiet); err != nil {
		t.Fatal(err)
	}
	if err := clickhouse.CheckSchemaFiles(t.Context(), conn, files("0001_a", first)); err != nil {
		t.Error(err)
	}
}

func TestMigrateAtOnce(t *testing.T) {
	s := clickhousetest.StartEmpty(t)
	var g errgroup.Group
	for range 8 {
		conn := s.Conn(t)
		g.Go(func() error {
			if err := clickhouse.CreateDatabase(t.Context(), s.Config()); err != nil {
				return err
			}
			return clickhouse.Migrate(t.Context(), conn, quiet)
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := clickhouse.CheckSchema(t.Context(), s.Conn(t)); err != nil {
		t.Error(err)
	}
}

func TestMigrationsMayRunTwice(t *testing.T) {
	migrations, err := clickhouse.Statements(schemas.Migrations)
	if err != nil {
		t.Fatal(err)
	}
	repeatable := regexp.MustCompile(`(?s)^(CREATE|ALTER|DROP)\b.*\bIF (NOT )?EXISTS\b|^ALTER TABLE \w+ MODIFY SETTING\b`)
	for _, statement := range migrations {
		if !repeatable.MatchString(statement) {
			t.Errorf("not of the form CREATE|ALTER|DROP ... IF [NOT] EXISTS, or ALTER TABLE ... MODIFY SETTING: %s", statement)
		}
	}
}

func TestMigrationNames(t *testing.T) {
	for name, fs := range map[string]fstest.MapFS{
		"no number": files("a", first),
		"a hole":    files("0001_a", first, "0003_c", second),
		"twice":     files("0001_a", first, "0001_b", second),
	} {
		if _, err := clickhouse.Statements(fs); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestConfig(t *testing.T) {
	password := t.TempDir() + "/password"
	if err := os.WriteFile(password, []byte("sesame\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		cfg  clickhouse.Config
		want string // in the error; "" for none
	}{
		"native":           {clickhouse.Config{DSN: "clickhouse://u:p@h:9000/d"}, ""},
		"tls":              {clickhouse.Config{DSN: "clickhouse://u:p@h:9440/d?secure=true"}, ""},
		"password file":    {clickhouse.Config{DSN: "clickhouse://u@h:9000/d", PasswordFile: password}, ""},
		"no password file": {clickhouse.Config{DSN: "clickhouse://u@h:9000/d", PasswordFile: password + "x"}, "password"},
		"http":             {clickhouse.Config{DSN: "http://h:8123/d"}, "native protocol"},
		"no database":      {clickhouse.Config{DSN: "clickhouse://h:9000"}, "must name a database"},
		"odd database":     {clickhouse.Config{DSN: "clickhouse://h:9000/a%60b"}, "database name"},
		"empty":            {clickhouse.Config{}, "DSN"},
		"ca without tls":   {clickhouse.Config{DSN: "clickhouse://h:9000/d", TLSCAFile: password}, "secure=true"},
		"no certificate":   {clickhouse.Config{DSN: "clickhouse://h:9000/d?secure=true", TLSCAFile: password}, "no certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.cfg.Validate()
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	opts, err := (&clickhouse.Config{DSN: "clickhouse://u@h:9000/d", PasswordFile: password}).Options()
	if err != nil || opts.Auth.Password != "sesame" || opts.Settings["async_insert"] != 0 {
		t.Errorf("options: %+v, %v", opts, err)
	}
}

func TestUnreachable(t *testing.T) {
	conn, err := clickhouse.Open(clickhouse.Config{DSN: "clickhouse://127.0.0.1:1/d"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := clickhouse.CheckSchema(context.WithoutCancel(t.Context()), conn); err == nil || errors.Is(err, clickhouse.ErrSchemaOlder) {
		t.Errorf("check of an unreachable server: %v", err)
	}
}
