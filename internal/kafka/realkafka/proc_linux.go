package realkafka

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// procAttr makes the kernel kill a broker when the test binary dies, and keeps a Ctrl-C at the terminal from reaching it.
func procAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}

// freeze stops every thread of a child and waits until they have stopped: until then they may go on answering.
func freeze(p *os.Process) error {
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	for {
		// It leaves the child's end to whoever waits for that.
		err := unix.Waitid(unix.P_PID, p.Pid, nil, unix.WSTOPPED, nil)
		if err == nil {
			return nil
		}
		if err != unix.EINTR {
			return fmt.Errorf("waiting for process %d to stop: %w", p.Pid, err)
		}
	}
}
