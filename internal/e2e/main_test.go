package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
)

// binaries are built once for all tests, by the first that wants each. They belong to the test binary and not to a
// test, hence package variables.
var (
	binaryDir     string
	plainBinary   = sync.OnceValues(func() (string, error) { return goBuild("immutable") })
	crashBinary   = sync.OnceValues(func() (string, error) { return goBuild("immutable-crashpoints", "-tags=crashpoints") })
	movableBinary = sync.OnceValues(buildMovable)
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "chdb-server" {
		os.Exit(clickhousetest.Main(m))
	}
	var err error
	if binaryDir, err = os.MkdirTemp("", "immutable-e2e-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := clickhousetest.Main(m)
	_ = os.RemoveAll(binaryDir)
	os.Exit(code)
}

func goBuild(name string, flags ...string) (string, error) {
	path := filepath.Join(binaryDir, name)
	args := append([]string{"build", "-o", path}, flags...)
	cmd := exec.Command("go", append(args, "./cmd/immutable")...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return path, nil
}

// root is the project's folder as seen from the tests.
const root = "../.."

// immutable returns the path of the binary as it is shipped.
func immutable(t *testing.T) string {
	t.Helper()
	return built(t, plainBinary)
}

// crashing returns the path of a binary that IMMUTABLE_CRASH_AT can kill.
func crashing(t *testing.T) string {
	t.Helper()
	return built(t, crashBinary)
}

func built(t *testing.T, build func() (string, error)) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// program returns the path of a program that `make programs` builds. Where it is missing the test is skipped; with
// IMMUTABLE_REQUIRE_REAL=1 in the environment, as in continuous integration, it fails.
func program(t *testing.T, name string) string {
	t.Helper()
	path := abs(t, filepath.Join(root, "bin", name))
	if _, err := os.Stat(path); err != nil {
		const what = "`make programs` builds what is missing: %v"
		if os.Getenv("IMMUTABLE_REQUIRE_REAL") == "1" {
			t.Fatalf(what, err)
		}
		t.Skipf(what, err)
	}
	return path
}

// library returns the path of the embedded ClickHouse.
func library(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs(clickhousetest.Library(t))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// long skips a test of more than a few seconds in a short run.
func long(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes more than a few seconds")
	}
}
