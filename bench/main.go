// Command bench measures Immutable against what it is made of and prints a table of ratios: absolute times differ from
// machine to machine, ratios within one run less so. It alternates the arms of each figure (A B A B ...), and gives
// medians with their spread. Nothing here fails because something was slow: the goals are printed beside the results.
//
//	go run . [-count 6] [-run regexp] [-benchtime 1s] [-kafka apache]
//
// The benchmarks themselves are Go benchmarks in the packages that they measure. What only the whole program can show
// (memory, accepted to readable, neighbours) is measured on `immutable up` as a child process.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"text/tabwriter"
)

func main() {
	count := flag.Int("count", 6, "repetitions of each arm")
	benchtime := flag.String("benchtime", "1s", "as in go test")
	run := flag.String("run", ".", "which figures, by a regular expression over their names")
	kafka := flag.String("kafka", "", "apache: a real broker, for the figures that can use one (Java and Maven needed)")
	events := flag.Int("events", 200_000, "events to load for the figures of the whole program")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := bench(ctx, *count, *benchtime, *run, *kafka, *events); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, count int, benchtime, run, kafka string, events int) error {
	if count < 1 {
		return errors.New("-count must be at least 1")
	}
	if kafka != "" && kafka != "apache" {
		return errors.New("-kafka must be apache, or left out")
	}
	if err := os.Setenv("IMMUTABLE_BENCH_KAFKA", kafka); err != nil { // for the benchmarks
		return err
	}
	want, err := regexp.Compile(run)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	dir, err := os.MkdirTemp("", "immutable-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	root, err := filepath.Abs("..")
	if err != nil {
		return err
	}

	fmt.Printf("%s, %d cores, %s; %d repetitions, arms alternating; median [min, max]\n\n",
		runtime.Version(), runtime.NumCPU(), runtime.GOARCH, count)
	table := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(table, "| figure\t| this\t| divided by\t| ratio\t| goal\t|")
	fmt.Fprintln(table, "|---\t|---\t|---\t|---\t|---\t|")
	for _, f := range figures {
		if !want.MatchString(f.name) || f.kafka != kafka && f.kafka != anyKafka {
			continue
		}
		fmt.Fprintf(os.Stderr, "measuring %s\n", f.name)
		runs, err := f.measure(ctx, root, dir, count, benchtime)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		f.print(table, runs)
	}
	if want.MatchString("whole program") && kafka == "" {
		fmt.Fprintln(os.Stderr, "measuring the whole program")
		if err := wholeProgram(ctx, table, root, dir, events); err != nil {
			return fmt.Errorf("whole program: %w", err)
		}
	}
	if want.MatchString(hundredName) {
		fmt.Fprintln(os.Stderr, "measuring "+hundredName)
		if err := hundredWorkspaces(ctx, table, root, dir, count, events); err != nil {
			return fmt.Errorf("%s: %w", hundredName, err)
		}
	}
	return table.Flush()
}

// row prints one line of the table.
func row(w io.Writer, cells ...string) {
	fmt.Fprintln(w, "| "+strings.Join(cells, "\t| ")+"\t|")
}
