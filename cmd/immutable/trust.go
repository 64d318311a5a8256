package main

import (
	"fmt"
	"io"
	"os"

	"getimmutable.dev/immutable/ledger"
)

// maxTrustBytes is far above what a policy needs.
const maxTrustBytes = 1 << 20

// readPolicy reads a file of trusted keys; nil for no path.
func readPolicy(path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path) //nolint:gosec // the file that the user named
	if err != nil {
		return nil, fmt.Errorf("opening the trusted keys: %w", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	text, err := io.ReadAll(io.LimitReader(f, maxTrustBytes+1))
	if err != nil {
		return nil, fmt.Errorf("reading the trusted keys: %w", err)
	}
	if len(text) > maxTrustBytes {
		return nil, fmt.Errorf("%s is longer than %d bytes", path, maxTrustBytes)
	}
	return text, nil
}

// loadTrust reads whose checkpoints are believed.
func loadTrust(path string) (*ledger.Trust, error) {
	text, err := readPolicy(path)
	if err != nil {
		return nil, err
	}
	trust, err := ledger.ParseTrust(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return trust, nil
}
