//go:build !crashpoints

// Package crash lets a test kill the process at a named place. Only binaries built with the tag crashpoints can.
package crash

// Point does nothing in a shipped binary.
func Point(string) {}
