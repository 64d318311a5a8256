package telemetry

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLoggerWritesJSONWhereNobodyReads(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	logger := NewLogger(f, slog.LevelWarn)
	logger.Info("silent")
	logger.Warn("partition halted", slog.Int("partition", 3))
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var line map[string]any
	if err := json.Unmarshal(text, &line); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	delete(line, "time")
	want := map[string]any{"level": "WARN", "msg": "partition halted", "partition": 3.0}
	if diff := cmp.Diff(want, line); diff != "" {
		t.Error(diff)
	}
}

func TestLoggerWritesTextOnATerminal(t *testing.T) {
	f, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0) // a character device, as a terminal is
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, ok := NewLogger(f, slog.LevelInfo).Handler().(*slog.TextHandler); !ok {
		t.Error("not a text handler")
	}
}

func TestRegistry(t *testing.T) {
	families, err := NewRegistry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range families {
		names = append(names, f.GetName())
	}
	all := strings.Join(names, " ")
	for _, want := range []string{"immutable_build_info", "go_goroutines", "process_resident_memory_bytes"} {
		if !strings.Contains(all, want) {
			t.Errorf("no %s in %s", want, all)
		}
	}
}
