package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// process is a child in a process group of its own, which ends with the test, or with this process.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string // path of its standard output and error
	done chan struct{}
}

// start runs a program. Its output goes to a file, whose end is shown when the test fails.
func start(t *testing.T, name string, env []string, program string, args ...string) *process {
	t.Helper()
	log, err := os.CreateTemp(t.TempDir(), name+"-*.log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p := &process{name: name, log: log.Name(), done: make(chan struct{})}
	p.cmd = exec.Command(program, args...)
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The kernel counts the thread that forked as the parent: it must live as long as the child.
		runtime.LockOSThread()
		defer close(p.done)
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	t.Cleanup(func() {
		p.killGroup(t)
		if t.Failed() {
			t.Logf("%s %v ended with %v; the end of its output:\n%s", name, args, p.cmd.ProcessState, p.tail(30))
		}
	})
	return p
}

// freeAddr returns an address that nothing listens on, for a program that cannot be asked which it has taken.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (p *process) tail(lines int) string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	for i, line := range all {
		all[i] = line[:min(len(line), 600)] // a child's output can be in it
	}
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

func (p *process) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatalf("sending %v to %s: %v", sig, p.name, err)
	}
}

// killGroup ends the process and its children at once, as a power cut would, and waits for the process.
func (p *process) killGroup(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Errorf("killing %s: %v", p.name, err)
	}
	p.wait(t, 30*time.Second)
}

// wait returns when the process has ended, and fails the test when it has not by then.
func (p *process) wait(t *testing.T, limit time.Duration) *os.ProcessState {
	t.Helper()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-p.done:
		return p.cmd.ProcessState
	case <-timer.C:
		t.Fatalf("%s runs still, %v later:\n%s", p.name, limit, p.tail(40))
		return nil
	}
}

// stop asks the process to end, and fails the test unless it does so cleanly and in time.
func (p *process) stop(t *testing.T) {
	t.Helper()
	p.signal(t, syscall.SIGTERM)
	if state := p.wait(t, stopLimit); state.ExitCode() != 0 {
		t.Fatalf("%s ended with %v:\n%s", p.name, state, p.tail(40))
	}
}

// killedBy says whether a signal ended the process.
func killedBy(state *os.ProcessState, sig syscall.Signal) bool {
	status, ok := state.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == sig
}

// child returns the pid of the one child of the process that has word in its command line.
func (p *process) child(word string) (int, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for _, task := range tasks {
		pids, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has ended
		}
		for pid := range strings.FieldsSeq(string(pids)) {
			cmdline, err := os.ReadFile("/proc/" + pid + "/cmdline")
			if err == nil && bytes.Contains(cmdline, []byte(word)) {
				return strconv.Atoi(pid)
			}
		}
	}
	return 0, fmt.Errorf("%s has no child %q", p.name, word)
}

// eventually waits until condition returns nil, and fails the test with its last error when it does not within limit.
func eventually(t *testing.T, limit time.Duration, condition func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if err := poll(ctx, condition); err != nil {
		t.Fatal(err)
	}
}
