package realkafka

import (
	"os"
	"testing"
)

// ForBenchmark returns a real broker where IMMUTABLE_BENCH_KAFKA=apache asks for it, and nil otherwise: then a benchmark runs on
// the embedded one.
func ForBenchmark(b *testing.B) *Cluster {
	b.Helper()
	if os.Getenv("IMMUTABLE_BENCH_KAFKA") != "apache" {
		return nil
	}
	return Start(b, Config{})
}
