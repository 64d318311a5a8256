// Command immutable is all of Immutable: each service, `up` with all of them in one process, and the commands that set
// an installation up. Flags, environment and the settings file are read here and nowhere else.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"getimmutable.dev/immutable/internal/chdb"
	"getimmutable.dev/immutable/internal/telemetry"
	"getimmutable.dev/immutable/verify"
)

// Exit codes; `verify` has its own.
const (
	exitFailure = 1
	exitUsage   = 2
)

// version is set by the linker.
var version = "unknown" //nolint:gochecknoglobals // -ldflags -X needs a variable

// cli is every subcommand and what they have in common.
type cli struct {
	Up         upCmd         `cmd:"" help:"Run everything in this process: the quick start."`
	Ingest     ingestCmd     `cmd:"" help:"Run the service that accepts events over HTTP and writes them to Kafka."`
	Processor  processorCmd  `cmd:"" help:"Run the service that numbers and hash-chains every event, exactly once."`
	Notary     notaryCmd     `cmd:"" help:"Run the service that states the whole ledger in a signed checkpoint every few seconds."`
	Sinks      sinksCmd      `cmd:"" help:"Run the service that writes the ledger to ClickHouse."`
	Query      queryCmd      `cmd:"" help:"Run the service that answers what happened, over HTTP."`
	Witness    witnessCmd    `cmd:"" help:"Run a witness: cosign the checkpoints of logs that keep to their past."`
	WitnessKey witnessKeyCmd `cmd:"" help:"Create the key of a witness."`
	Topics     topicsCmd     `cmd:"" help:"Create or check the Kafka topics."`
	Migrate    migrateCmd    `cmd:"" help:"Create or update the ClickHouse tables."`
	Rebuild    rebuildCmd    `cmd:"" help:"Have what ClickHouse lost written again from the ledger."`
	Check      checkCmd      `cmd:"" help:"Say what is wrong with Kafka, ClickHouse, topics, tables, clocks, certificates and disks, and what to do."`
	Workspaces workspacesCmd `cmd:"" help:"Create, list, change or delete workspaces."`
	Keys       keysCmd       `cmd:"" help:"Create, list or revoke API keys."`
	NotaryKey  notaryKeyCmd  `cmd:"" help:"Create, show or rotate the key that signs checkpoints."`
	Verify     verifyCmd     `cmd:"" help:"Verify events, the ledger or the tables, believing nobody but a trust file."`
	Health     healthCmd     `cmd:"" help:"Ask a service on this machine whether it is ready: exit code 0 if so."`
	Version    versionCmd    `cmd:"" help:"Print the version."`

	Config   string     `help:"YAML file of settings, each named like its flag." placeholder:"FILE"`
	LogLevel slog.Level `help:"Least severe messages to log: debug, info, warn or error." default:"info" placeholder:"LEVEL"`
}

const description = "A record of every change to production systems that nobody can quietly rewrite.\n\n" +
	"Every flag is also an environment variable, IMMUTABLE_ and the flag in upper case, and a setting in the YAML file that " +
	"--config names. A flag goes before the environment, and that before the file."

// process is what a subcommand gets besides its flags.
type process struct {
	stdout, stderr io.Writer
	logger         *slog.Logger
}

func main() {
	// The embedded ClickHouse's process is this program too. It takes no flags of ours.
	if len(os.Args) > 1 && os.Args[1] == "chdb-server" {
		os.Exit(chdb.RunChild(os.Args[2:]))
	}
	os.Exit(run(os.Args[1:]))
}

// run returns the exit code. --help exits by itself.
func run(args []string) int {
	fail := func(code int, format string, a ...any) int {
		fmt.Fprintf(os.Stderr, "immutable: "+format+"\n", a...)
		return code
	}
	settings, err := loadSettings(args)
	if err != nil {
		return fail(exitUsage, "error: %v", err)
	}
	var c cli
	parser, err := kong.New(
		&c, kong.Name("immutable"), kong.Description(description), kong.DefaultEnvars("IMMUTABLE"),
		kong.ConfigureHelp(kong.HelpOptions{NoExpandSubcommands: true, WrapUpperBound: 120}), kong.Resolvers(settings),
		kong.ValueFormatter(valueHelp),
	)
	if err != nil {
		return fail(exitFailure, "error: %v", err) // a tag in this package is wrong; any test finds it
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	parsed, err := parser.Parse(args)
	if err != nil {
		code := exitUsage
		if args[0] == "verify" {
			code = verify.ExitUsage
			if slices.Contains(args, "--json") {
				_ = printReport(os.Stdout, verify.Failed(fmt.Errorf("%w: %w", verify.ErrUsage, err))) // stderr has it too
			}
		}
		return fail(code, "error: %v\nimmutable --help lists the commands, and immutable COMMAND --help its flags.", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	parsed.BindTo(ctx, (*context.Context)(nil))
	err = parsed.Run(&process{
		stdout: os.Stdout, stderr: os.Stderr, logger: telemetry.NewLogger(os.Stderr, c.LogLevel),
	})
	code, told := exitOf(parsed.Command(), err)
	if told {
		return code
	}
	return fail(code, "%v", err)
}

// valueHelp shows the default too: kong leaves it out where there is a placeholder.
func valueHelp(v *kong.Value) string {
	text := kong.DefaultHelpValueFormatter(v)
	if v.Default == "" || v.Tag == nil || v.Tag.PlaceHolder == "" {
		return text
	}
	if help, env, ok := strings.Cut(text, " ($"); ok {
		return help + " Default: " + v.Default + " ($" + env
	}
	return text + " Default: " + v.Default
}
