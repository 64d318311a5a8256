package main

import (
	"bytes"
	"errors"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/twmb/franz-go/pkg/kfake"

	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
	"getimmutable.dev/immutable/internal/devmode"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/internal/ledgertest"
	"getimmutable.dev/immutable/verify"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"immutable": main})
}

// TestScripts runs testdata/script/*.txtar: what a user types, and what comes of it. In a script, `kafka` starts a broker
// and sets KAFKA to its address, `started` waits for a file, `revoke` revokes a workspace's only key,
// `ledger` serves a ledger; LIBCHDB is the path of the embedded ClickHouse's library.
func TestScripts(t *testing.T) {
	var library string
	if !testing.Short() {
		library = clickhousetest.Library(t)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Condition: func(cond string) (bool, error) {
			return cond == "clickhouse" && library != "", nil
		},
		Setup: func(env *testscript.Env) error {
			env.Vars = append(env.Vars, "LIBCHDB="+library)
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"kafka": func(ts *testscript.TestScript, _ bool, _ []string) {
				fake, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DataDir(ts.MkAbs("kafka")))
				ts.Check(err)
				ts.Defer(fake.Close)
				ts.Setenv("KAFKA", fake.ListenAddrs()[0])
			},
			"started": started,
			"ledger":  startLedger,
			"exits":   exits,
			"key":     key,
		},
	})
}

// startLedger serves a ledger as the API does, and sets LEDGER to its URL. It writes the trust files log and stranger, and proof.json, the proof of an
// event with a redaction.
func startLedger(ts *testscript.TestScript, _ bool, _ []string) {
	l := ledgertest.New()
	c := l.Chain(1, 1, 0, 1)
	l.Events(c, 30)
	l.Redact(c, 7, "/metadata/old_value")
	l.Epoch()
	bundle, err := l.Bundle(c, 7)
	ts.Check(err)
	text, err := bundle.Encode()
	ts.Check(err)
	for name, content := range map[string]string{
		"proof.json": string(text), "log": l.Key().Verifier(), "stranger": ledgertest.NewKey(ledgertest.Origin, 9).Verifier(),
	} {
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(content), 0o600))
	}
	server := httptest.NewServer(&ledgertest.Server{Ledger: l, Workspace: ledgertest.Workspace(1)})
	ts.Defer(server.Close)
	ts.Setenv("LEDGER", server.URL)
}

// exits runs a command that ends with an exit code, as in `exits 3 immutable verify`.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d, %v", code, err)
	}
}

// started waits for a file: `up` writes up.json when it serves.
func started(ts *testscript.TestScript, _ bool, args []string) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(time.Minute)
	for {
		if _, err := os.Stat(ts.MkAbs(args[0])); err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-timeout:
			ts.Fatalf("%s has not come within a minute", args[0])
		}
	}
}

// key does something with the only key of a workspace, as in `key revoke default`.
func key(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(ts.Exec("immutable", "keys", "list", "--data", "data", "--workspace", args[1]))
	lines := strings.Split(strings.TrimSpace(ts.ReadFile("stdout")), "\n")
	id, _, _ := strings.Cut(lines[len(lines)-1], " ")
	ts.Check(ts.Exec("immutable", append([]string{"keys", args[0], "--data", "data", id}, args[2:]...)...))
}

// TestPrecedence: a flag goes before the environment, and that before the file.
func TestPrecedence(t *testing.T) {
	cluster := kafkatest.Start(t)
	file := filepath.Join(t.TempDir(), "settings.yaml")
	text := "kafka: [127.0.0.1:1]\npartitions: 12\nallow-single-replica: true\nlog-level: error\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	check := []string{"topics", "check", "--config", file}
	if code := run(append(check, "--kafka", cluster.Config.Brokers[0])); code != exitFailure {
		t.Errorf("12 partitions from the file: exit code %d", code)
	}
	if code := run(append(check, "--kafka", cluster.Config.Brokers[0], "--partitions", "4")); code != 0 {
		t.Errorf("a flag before the file: exit code %d", code)
	}
	t.Setenv("IMMUTABLE_KAFKA", cluster.Config.Brokers[0])
	t.Setenv("IMMUTABLE_PARTITIONS", "4")
	if code := run(check); code != 0 {
		t.Errorf("the environment before the file: exit code %d", code)
	}
	if code := run(append(check, "--partitions", "5")); code != exitFailure {
		t.Errorf("a flag before the environment: exit code %d", code)
	}
	t.Setenv("IMMUTABLE_CONFIG", file)
	if code := run([]string{"topics", "check"}); code != 0 {
		t.Errorf("the file from the environment: exit code %d", code)
	}
}

func TestExitCodes(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want int
	}{
		{[]string{"version"}, 0},
		{[]string{"topics", "check"}, exitFailure},
		{[]string{"frobnicate"}, exitUsage},
		{[]string{"up", "--frobnicate"}, exitUsage},
		{[]string{"topics", "check", "--config", "missing.yaml"}, exitUsage},
		{[]string{"verify", "frobnicate"}, verify.ExitUsage},
		{[]string{"verify", "event", "--trust=missing", "--no-memory", "missing"}, verify.ExitUsage},
	} {
		if got := run(tc.args); got != tc.want {
			t.Errorf("%v: exit code %d, want %d", tc.args, got, tc.want)
		}
	}
}

// TestUpReplicas: the embedded Kafka has one replica, and one elsewhere at least three unless fewer are allowed.
func TestUpReplicas(t *testing.T) {
	elsewhere := kafkaFlags{Kafka: []string{"127.0.0.1:1"}}
	for name, tc := range map[string]struct {
		cmd     upCmd
		want    int16
		wantErr string
		warns   bool
	}{
		"embedded":          {upCmd{}, 1, "", true},
		"embedded, three":   {upCmd{Replicas: 3}, 0, "single replica", false},
		"real":              {upCmd{Kafkas: elsewhere}, 3, "", false},
		"real, five":        {upCmd{Kafkas: elsewhere, Replicas: 5}, 5, "", false},
		"real, one":         {upCmd{Kafkas: elsewhere, Replicas: 1}, 0, "--allow-single-replica", false},
		"real, allowed":     {upCmd{Kafkas: elsewhere, AllowSingleReplica: true}, 1, "", true},
		"embedded, allowed": {upCmd{AllowSingleReplica: true}, 1, "", true},
	} {
		var log bytes.Buffer
		tc.cmd.Partitions = 4
		got, err := tc.cmd.replicas(t.Context(), slog.New(slog.NewTextHandler(&log, nil)))
		if tc.wantErr != "" {
			if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || got != tc.want || strings.Contains(log.String(), "level=WARN") != tc.warns {
			t.Errorf("%s: %d replicas, %v, logged %q", name, got, err, &log)
		}
	}
}

func TestAnnounceShowsAKeyOnce(t *testing.T) {
	for name, tc := range map[string]struct {
		started devmode.Started
		chosen  string
		want    string
	}{
		"drawn":           {devmode.Started{DrawnKey: "imk_sk_drawn"}, "", "Bearer imk_sk_drawn'"},
		"chosen, new":     {devmode.Started{ChoseKey: true}, "imk_sk_chosen", "Bearer imk_sk_chosen'"},
		"chosen, not new": {devmode.Started{}, "imk_sk_chosen", "Bearer YOUR_KEY'"},
		"a later start":   {devmode.Started{}, "", "Bearer YOUR_KEY'"},
	} {
		var out bytes.Buffer
		announce(&out, tc.started, tc.chosen)
		made := tc.want != "Bearer YOUR_KEY'"
		if !strings.Contains(out.String(), tc.want) || strings.Contains(out.String(), "imk_sk_") != made {
			t.Errorf("%s: %s", name, &out)
		}
	}
}
