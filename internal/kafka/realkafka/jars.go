package realkafka

import (
	"context"
	_ "embed" // pom.xml, log4j2.properties
	"encoding/xml"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// The files that say what a broker is made of and how it logs.
var (
	//go:embed pom.xml
	pom []byte
	//go:embed log4j2.properties
	log4j []byte
)

// requireJava skips the test where there is no Java or no Maven; where IMMUTABLE_REQUIRE_REAL is 1 it fails.
func requireJava(tb testing.TB) {
	tb.Helper()
	for _, program := range []string{"java", "mvn"} {
		if _, err := exec.LookPath(program); err != nil {
			const what = "a real Kafka needs Java 17 and Maven: %v"
			if os.Getenv("IMMUTABLE_REQUIRE_REAL") == "1" {
				tb.Fatalf(what, err)
			}
			tb.Skipf(what, err)
		}
	}
}

// resolve returns the folder that holds the broker's jars. The first call on a machine fetches them with Maven, into the user's cache; test binaries that call it at the same time wait for that one.
func resolve(ctx context.Context) (string, error) {
	var project struct {
		Version string `xml:"properties>kafka.version"`
	}
	if err := xml.Unmarshal(pom, &project); err != nil {
		return "", fmt.Errorf("pom.xml: %w", err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	parent := filepath.Join(cache, "immutable")
	dir := filepath.Join(parent, "kafka-"+project.Version)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(parent, 0o750); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o600) //nolint:gosec // in the user's cache
	if err != nil {
		return "", err
	}
	defer func() { _ = lock.Close() }()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("locking %s: %w", lock.Name(), err)
	}
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	return dir, fetch(ctx, parent, dir)
}

// fetch makes dir, all of it or nothing.
func fetch(ctx context.Context, parent, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, fetchLimit)
	defer cancel()
	unfinished, err := os.MkdirTemp(parent, "fetching-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(unfinished) }()
	if err := os.WriteFile(filepath.Join(unfinished, "pom.xml"), pom, 0o600); err != nil {
		return err
	}
	mvn := exec.CommandContext(ctx, "mvn", "-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime",
		"-DoutputDirectory=libs")
	mvn.Dir = unfinished
	if out, err := mvn.CombinedOutput(); err != nil {
		return fmt.Errorf("fetching kafka with maven: %w\n%s", err, out)
	}
	return os.Rename(unfinished, dir)
}
