package main

import (
	"cmp"
	"fmt"
	"runtime"

	"getimmutable.dev/immutable/internal/telemetry"
)

type versionCmd struct{}

// Run prints one line.
func (versionCmd) Run(p *process) error {
	_, revision := telemetry.Version()
	_, err := fmt.Fprintf(p.stdout, "immutable %s (%s, %s %s/%s)\n",
		cmp.Or(version, "unknown"), revision, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}
