//go:build !linux

package realkafka

import (
	"os"
	"syscall"
)

// procAttr keeps a Ctrl-C at the terminal from reaching a broker. Where the test binary is killed, its brokers go on.
func procAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}

// freeze stops a child.
func freeze(p *os.Process) error { return p.Signal(syscall.SIGSTOP) }
