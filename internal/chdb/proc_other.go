//go:build !linux

package chdb

import "syscall"

// procAttr keeps a Ctrl-C at the terminal from reaching the child: the parent stops it when the services that use it
// are done. That the parent died, the child learns from its standard input alone.
func procAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
