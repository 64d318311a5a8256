package chdb

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"unsafe"

	"github.com/ebitengine/purego"
	"golang.org/x/sys/unix"
)

// The queries that make clickhouse-local a server on both protocols and keep it one: the last never ends. defaultQuota
// in config.go allows the passwordless default user, as which they run, these three and no more.
const serveQueries = "SYSTEM START LISTEN HTTP; SYSTEM START LISTEN TCP; " +
	"SELECT sleepEachRow(1) FROM system.numbers FORMAT Null SETTINGS max_block_size=1"

// RunChild is the child process: it turns the process into a ClickHouse server and returns the exit code when that
// ends. args are the library's path and the configuration file's, as Start passes them. The process must do nothing
// else, for the library takes over its signal handlers. It ends when its standard input does, which is how it learns
// of its parent's death on every platform.
func RunChild(args []string) int {
	if len(args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: chdb-server LIBRARY CONFIG (started by immutable itself)")
		return 2
	}
	if err := runChild(args[0], args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func runChild(library, config string) error {
	// Standard input is where the parent's end shows; it is kept under another number. ClickHouse gets a terminal there,
	// and believes that it talks to a person: without one it aborts at the first connection that breaks or has a wrong
	// password (ClickHouse issue 115666, mended in 26.8), and would take a pipe for data to load.
	watch, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("keeping standard input: %w", err)
	}
	terminal, err := openTerminal()
	if err != nil {
		return err
	}
	if err := unix.Dup2(terminal, 0); err != nil {
		return fmt.Errorf("replacing standard input: %w", err)
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.NewFile(uintptr(watch), "parent"))
		_ = unix.Kill(unix.Getpid(), unix.SIGKILL) // the tables survive it, and nobody is left to answer
	}()

	runtime.LockOSThread()
	lib, err := purego.Dlopen(library, purego.RTLD_NOW|purego.RTLD_GLOBAL)
	if err != nil {
		return fmt.Errorf("loading %s: %w", library, err)
	}
	var queryCmdline func(argc int32, argv **byte) uintptr
	var resultError func(result uintptr) string
	purego.RegisterLibFunc(&queryCmdline, lib, "chdb_query_cmdline")
	purego.RegisterLibFunc(&resultError, lib, "chdb_result_error")

	args := []string{
		"clickhouse", "--config-file", config, "--query", serveQueries,
		"--interactive", "--disable_suggestion", "--progress", "off",
	}
	argv := make([]*byte, len(args)+1) // ends with a null pointer, as in C
	for i, arg := range args {
		argv[i] = unsafe.SliceData(append([]byte(arg), 0)) //nolint:gosec // a C string; argv keeps it alive
	}
	result := queryCmdline(int32(len(args)), &argv[0])
	runtime.KeepAlive(argv)
	if msg := resultError(result); msg != "" {
		return errors.New(msg)
	}
	return errors.New("clickhouse ended by itself")
}
