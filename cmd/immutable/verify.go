package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/verify"
)

type verifyCmd struct {
	Event      verifyEventCmd      `cmd:"" help:"Verify the proof of one event, offline."`
	Ledger     verifyLedgerCmd     `cmd:"" help:"Verify everything that the API serves to an API key."`
	ClickHouse verifyClickHouseCmd `cmd:"" name:"clickhouse" help:"Verify the operator's own tables, down to each column."`
}

// Help is shown by --help.
func (verifyCmd) Help() string {
	return "Believes nobody but the keys and witnesses of the trust file, and what it has verified before. Every hash is recomputed from content, each " +
		"finding is named with its place, and what was not checked is listed. Exit code 0: verified; 1: tampering is proven; 2: not decided, as data " +
		"or proof is missing or withheld; 3: usage; 4: no believed key has signed, or too few witnesses."
}

// verifyFlags are of all that verifies.
type verifyFlags struct {
	Trust    string `help:"File of what is believed, obtained in another way than the ledger: the log's verifier key, or a C2SP tlog-policy." placeholder:"FILE" required:""`
	Memory   string `help:"File that remembers what was accepted: the next run must be consistent with it. Default: immutable/verify.json in the user's config folder." placeholder:"FILE"`
	NoMemory bool   `help:"Remember nothing: a rollback or a fork between two runs is then not seen."`
	Evidence string `help:"Folder that the two signed checkpoints of a fork are written to." default:"." placeholder:"DIR"`
	JSON     bool   `name:"json" help:"Print JSON."`
}

// config reads what the flags name.
func (f *verifyFlags) config() (verify.Config, error) {
	cfg := verify.Config{Now: time.Now(), EvidenceDir: f.Evidence, MemoryFile: f.Memory}
	var err error
	if cfg.Trust, err = loadTrust(f.Trust); err != nil {
		return cfg, fmt.Errorf("%w: %w", verify.ErrUsage, err)
	}
	switch {
	case f.NoMemory && f.Memory != "":
		return cfg, fmt.Errorf("%w: --memory and --no-memory exclude one another", verify.ErrUsage)
	case !f.NoMemory && f.Memory == "":
		dir, err := os.UserConfigDir()
		if err != nil {
			return cfg, fmt.Errorf("%w: --memory or --no-memory is required: %w", verify.ErrUsage, err)
		}
		cfg.MemoryFile = filepath.Join(dir, "immutable", "verify.json")
	}
	return cfg, nil
}

// print prints a report, and returns its exit code as an error. As JSON there is a report of an error too.
func (f *verifyFlags) print(p *process, r *verify.Report, failed error) error {
	if failed != nil && !f.JSON {
		return failed
	}
	if failed != nil {
		r = verify.Failed(failed)
	}
	var err error
	if f.JSON {
		err = printReport(p.stdout, r)
	} else {
		_, err = io.WriteString(p.stdout, r.Text())
	}
	if err != nil {
		return fmt.Errorf("writing what was found: %w", err)
	}
	if failed != nil {
		return failed
	}
	if r.Exit != verify.ExitVerified {
		return &exitError{code: r.Exit}
	}
	return nil
}

func printReport(w io.Writer, r *verify.Report) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(r)
}

type verifyEventCmd struct {
	verifyFlags
	MaxAge time.Duration `help:"Greatest age of the epoch that the proof is by; 0 for any."`
	File   string        `arg:"" help:"The proof: what GET /events/{id}/proof answers."`
}

// Run prints what was found.
func (c *verifyEventCmd) Run(p *process) error {
	cfg, err := c.config()
	if err != nil {
		return c.print(p, nil, err)
	}
	cfg.MaxAge = c.MaxAge
	r, err := verify.Event(cfg, c.File)
	return c.print(p, r, err)
}

type verifyLedgerCmd struct {
	verifyFlags
	MaxAge  time.Duration `help:"Greatest age of the newest epoch; 0 for any. There is one each minute." default:"10m"`
	Timeout time.Duration `help:"Longest time for the whole verification; what is not verified by then is not decided. 0 for any." default:"0"`
	Settle  time.Duration `help:"Longest time to wait for leaves that the newest epoch covers and that are not there yet." default:"1m"`
	URL     string        `name:"url" help:"Where the API is, as in https://audit.example.com." placeholder:"URL" required:""`
	APIKey  string        `name:"api-key" help:"API key of scope events:read." placeholder:"KEY" required:""`
	Epochs  int           `help:"How many epochs the chains are compared with: the newest, the oldest, some evenly spread and as many at random." default:"64"`
}

// Run prints what was found.
func (c *verifyLedgerCmd) Run(ctx context.Context, p *process) error {
	cfg, err := c.config()
	if err != nil {
		return c.print(p, nil, err)
	}
	cfg.MaxAge, cfg.Timeout, cfg.Settle, cfg.Epochs = c.MaxAge, c.Timeout, c.Settle, c.Epochs
	cfg.Progress = progress(p.stderr)
	boundMemory()
	r, err := verify.Ledger(ctx, cfg, verify.API{URL: c.URL, Key: c.APIKey})
	return c.print(p, r, err)
}

const (
	// memoryOfLedger is from where on garbage is collected as soon as there is some: what is kept may be half of what a server makes the verifier take.
	memoryOfLedger = 192 << 20
	// memoryOfCore is that for each core after the second, which verifies one more chain.
	memoryOfCore = 32 << 20
)

// boundMemory lets the collector work harder where much is kept, unless GOMEMLIMIT says something else.
func boundMemory() {
	if debug.SetMemoryLimit(-1) == math.MaxInt64 {
		debug.SetMemoryLimit(memoryOfLedger + memoryOfCore*int64(max(runtime.GOMAXPROCS(0)-2, 0)))
	}
}

type verifyClickHouseCmd struct {
	verifyFlags
	kafkaFlags
	MaxAge       time.Duration `help:"Greatest age of the newest epoch; 0 for any. There is one each minute." default:"10m"`
	DSN          string        `name:"dsn" help:"ClickHouse on its native protocol; ?secure=true for TLS." placeholder:"clickhouse://USER:PASSWORD@HOST:PORT/DATABASE" required:""`
	PasswordFile string        `name:"clickhouse-password-file" help:"File that holds the password instead." placeholder:"FILE"`
	CA           string        `name:"clickhouse-tls-ca" help:"PEM file of the certificates to trust instead of the system's." placeholder:"FILE"`
	Epochs       int           `help:"How many epochs are recomputed: the newest, the oldest, some evenly spread and as many at random." default:"64"`
	Timeout      time.Duration `help:"Longest time for the whole verification; what is not verified by then is not decided. 0 for any." default:"0"`
	Settle       time.Duration `help:"Longest time to wait for rows that the newest epoch covers and that are not there yet." default:"1m"`
}

// Run prints what was found.
func (c *verifyClickHouseCmd) Run(ctx context.Context, p *process) error {
	cfg, err := c.verifyFlags.config()
	if err != nil {
		return c.print(p, nil, err)
	}
	cfg.MaxAge, cfg.Timeout, cfg.Epochs, cfg.Settle, cfg.Progress = c.MaxAge, c.Timeout, c.Epochs, c.Settle, progress(p.stderr)
	r, err := verify.ClickHouse(ctx, cfg, verify.Tables{
		ClickHouse: clickhouse.Config{DSN: c.DSN, PasswordFile: c.PasswordFile, TLSCAFile: c.CA}, Kafka: c.kafkaFlags.config(),
	})
	return c.print(p, r, err)
}

// progressEvery is how often a terminal is told.
const progressEvery = 200 * time.Millisecond

// progress writes to a terminal how far a verification is; elsewhere it is nil.
func progress(w io.Writer) func(leaves, of uint64) {
	f, ok := w.(*os.File)
	if !ok {
		return nil
	}
	if info, err := f.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return nil
	}
	var last time.Time
	return func(leaves, of uint64) {
		if now := time.Now(); now.Sub(last) >= progressEvery || leaves >= of {
			last = now
			fmt.Fprintf(f, "\r%d of %d leaves", leaves, max(leaves, of))
			if leaves >= of {
				fmt.Fprintln(f)
			}
		}
	}
}

// exitError ends the program with a code; what there is to say has been printed.
type exitError struct{ code int }

func (e *exitError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// exitOf returns the exit code that a subcommand's error means, and whether the user has been told.
func exitOf(command string, err error) (code int, told bool) {
	exit, isExit := errors.AsType[*exitError](err)
	switch {
	case err == nil:
		return 0, true
	case isExit:
		return exit.code, true
	case errors.Is(err, verify.ErrUsage):
		return verify.ExitUsage, false
	case strings.HasPrefix(command, "verify "):
		return verify.ExitUndecided, false
	default:
		return exitFailure, false
	}
}
