package chdb

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// openTerminal returns a terminal on which nobody types.
func openTerminal() (int, error) {
	primary, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("opening /dev/ptmx: %w", err)
	}
	// primary stays open as long as the process lives: without it the terminal hangs up.
	if err := unix.IoctlSetPointerInt(primary, unix.TIOCSPTLCK, 0); err != nil {
		return 0, fmt.Errorf("unlocking a terminal: %w", err)
	}
	terminal, err := unix.IoctlRetInt(primary, unix.TIOCGPTPEER)
	if err != nil {
		return 0, fmt.Errorf("opening a terminal: %w", err)
	}
	return terminal, nil
}
