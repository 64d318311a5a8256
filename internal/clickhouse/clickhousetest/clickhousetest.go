// Package clickhousetest gives tests a real ClickHouse: one child process for all tests of a test binary, and a
// database of its own for each. A test binary that uses it has
//
//	func TestMain(m *testing.M) { os.Exit(clickhousetest.Main(m)) }
package clickhousetest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"go.uber.org/goleak"

	"getimmutable.dev/immutable/internal/chdb"
	"getimmutable.dev/immutable/internal/clickhouse"
)

// shared is the child of this test binary, started by the first test that wants it. It belongs to the binary and not
// to a test, hence a package variable.
var shared struct {
	once   sync.Once
	server *chdb.Server
	dir    string
	err    error
}

// Main runs the tests and ends the child; where the tests passed it also looks for leaked goroutines. In the child
// itself, which is this binary again, it is ClickHouse.
func Main(m *testing.M) int {
	if len(os.Args) > 1 && os.Args[1] == "chdb-server" {
		return chdb.RunChild(os.Args[2:])
	}
	code := m.Run()
	if shared.server != nil {
		_ = shared.server.Stop(context.Background()) //nolint:forbidigo // there is no test any more to take it from
	}
	if shared.dir != "" {
		_ = os.RemoveAll(shared.dir)
	}
	if code != 0 {
		return code
	}
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// Library returns the path of libchdb.so. A test that needs it fails where it is missing; it is never skipped.
func Library(tb testing.TB) string {
	tb.Helper()
	library, err := chdb.FindLibrary(os.Getenv("IMMUTABLE_LIBCHDB"))
	if err != nil {
		tb.Fatal(err)
	}
	return library
}

// Server is a database of the shared child.
type Server struct {
	// Chdb is the child: its addresses and its user. Other tests use it at the same time.
	Chdb *chdb.Server
	// Database is this test's own.
	Database string
}

// Start returns a new database with every migration applied; it is dropped at the test's end.
func Start(tb testing.TB) *Server {
	tb.Helper()
	s := StartEmpty(tb)
	if err := clickhouse.CreateDatabase(tb.Context(), s.Config()); err != nil {
		tb.Fatal(err)
	}
	if err := clickhouse.Migrate(tb.Context(), s.Conn(tb), slog.New(slog.DiscardHandler)); err != nil {
		tb.Fatal(err)
	}
	return s
}

// StartEmpty is Start without creating the database.
func StartEmpty(tb testing.TB) *Server {
	tb.Helper()
	library := Library(tb)
	shared.once.Do(func() {
		shared.dir, shared.err = os.MkdirTemp("", "immutable-clickhouse-") //nolint:usetesting // it outlives this test
		if shared.err != nil {
			return
		}
		cfg := chdb.Config{Library: library, Dir: shared.dir}
		shared.server, shared.err = chdb.Start(tb.Context(), cfg, slog.New(slog.DiscardHandler))
	})
	if shared.err != nil {
		tb.Fatal(shared.err)
	}
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	s := &Server{Chdb: shared.server, Database: "test_" + hex.EncodeToString(b[:])}
	tb.Cleanup(func() {
		conn, err := clickhouse.Open(clickhouse.Config{DSN: s.dsn("default")})
		if err != nil {
			tb.Error(err)
			return
		}
		defer func() { _ = conn.Close() }()
		ctx := context.WithoutCancel(tb.Context()) // that ends before the cleanup runs
		if err := conn.Exec(ctx, "DROP DATABASE IF EXISTS "+s.Database+" SYNC"); err != nil {
			tb.Errorf("dropping the test's database: %v", err)
		}
	})
	return s
}

// DSN names the test's database.
func (s *Server) DSN() string { return s.dsn(s.Database) }

func (s *Server) dsn(database string) string {
	dsn := s.Chdb.DSN()
	return dsn[:strings.LastIndex(dsn, "/")+1] + database
}

// Config is what a service takes.
func (s *Server) Config() clickhouse.Config { return clickhouse.Config{DSN: s.DSN()} }

// Conn returns a pool of connections to the test's database, closed at the test's end.
func (s *Server) Conn(tb testing.TB) driver.Conn {
	tb.Helper()
	conn, err := clickhouse.Open(s.Config())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := conn.Close(); err != nil {
			tb.Errorf("closing clickhouse: %v", err)
		}
	})
	return conn
}
