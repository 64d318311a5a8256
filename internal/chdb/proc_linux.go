package chdb

import "syscall"

// procAttr makes the kernel kill the child when the parent dies, and keeps a Ctrl-C at the terminal from reaching it:
// the parent stops it when the services that use it are done.
func procAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
