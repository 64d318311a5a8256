package chwriter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/internal/clickhouse"
)

// writerProcess is this binary as a writer of its own, to be killed. args are the brokers, the topics' prefix and the DSN.
func writerProcess(args []string) int {
	cfg := Config{
		ClickHouse: clickhouse.Config{DSN: args[2]}, Instance: "killed",
		BatchRows: 20, Linger: time.Millisecond, SessionTimeout: 2 * time.Second,
	}
	cfg.Kafka.Brokers = strings.Split(args[0], ",")
	cfg.Kafka.TopicPrefix = args[1]
	view, err := control.NewView(control.ViewConfig{Kafka: cfg.Kafka, RedactionsOnly: true}, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	w, err := New(cfg, view, prometheus.NewRegistry(), slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() { _ = view.Run(ctx) }() // it ends with the process
	if err := w.Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func (r *rig) process(binary, crashAt string) *exec.Cmd {
	r.tb.Helper()
	k := r.kafka.Config
	cmd := exec.CommandContext(r.tb.Context(), binary, "writer", strings.Join(k.Brokers, ","), k.TopicPrefix, r.dsn)
	cmd.Env = append(os.Environ(), "IMMUTABLE_CRASH_AT="+crashAt)
	cmd.Stderr = r.tb.Output()
	if err := cmd.Start(); err != nil {
		r.tb.Fatal(err)
	}
	return cmd
}

func killed(err error) bool {
	exit, ok := errors.AsType[*exec.ExitError](err)
	return ok && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
}

// The writer dies at each of its crash points, several times, and others go on from what it left.
func TestCrashPoints(t *testing.T) {
	long(t)
	binary := filepath.Join(t.TempDir(), "writer.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-tags", "crashpoints", "-o", binary, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building with crash points: %v\n%s", err, out)
	}
	for _, point := range []string{"chwriter-after-insert", "chwriter-before-commit"} {
		t.Run(point, func(t *testing.T) {
			r := newRig(t)
			hits := 0
			for nth := range 6 {
				r.produce(150)
				err := r.process(binary, fmt.Sprint(point, ":", nth+1)).Wait()
				if !killed(err) {
					t.Fatalf("hit %d: the writer ended by itself: %v", nth+1, err)
				}
				hits++
			}
			cfg := r.config()
			cfg.Instance = "killed"
			w := r.start(cfg)
			r.check()
			t.Logf("%s: %d hits, %v batches taken over by the last writer", point, hits, w.metric("batches_taken_over_total"))
		})
	}
	t.Run("redactions", func(t *testing.T) { crashWhileRedacting(t, binary) })
}

// Writers are killed at any moment.
func kills(t *testing.T, r *rig) {
	t.Helper()
	for range 8 {
		cmd := r.process(os.Args[0], "")
		r.produce(200)
		written := r.count("SELECT count() FROM events")
		// Some time after it has begun, in the middle of what it does then.
		await(t, "waiting for the writer to begin", func() error {
			if r.count("SELECT count() FROM events") == written {
				return errors.New("no row")
			}
			return nil
		})
		<-time.After(rand.N(60 * time.Millisecond))
		r.produce(50)
		_ = cmd.Process.Kill()
		if err := cmd.Wait(); !killed(err) {
			t.Fatalf("the writer ended by itself: %v", err)
		}
	}
	cfg := r.config()
	cfg.Instance = "killed"
	r.start(cfg)
	r.check()
}
