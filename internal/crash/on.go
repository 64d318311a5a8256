//go:build crashpoints

// Package crash lets a test kill the process at a named place. Only binaries built with the tag crashpoints can.
package crash

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

var (
	place, nth, _ = strings.Cut(os.Getenv("IMMUTABLE_CRASH_AT"), ":")
	after, _      = strconv.ParseInt(nth, 10, 64)
	hits          atomic.Int64
)

// Point kills the process with SIGKILL, as a power cut would, when name is the place in IMMUTABLE_CRASH_AT
// ("name:N") and this is its Nth hit, N counting from 1.
func Point(name string) {
	if name == place && hits.Add(1) == after {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // SIGKILL is on its way: nothing after this point may run
	}
}
