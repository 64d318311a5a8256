//go:build !linux

package chdb

import "errors"

func openTerminal() (int, error) {
	return 0, errors.New("the embedded clickhouse runs on Linux only")
}
