package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/perf/benchfmt"
)

// figure is a ratio of two arms of one Go benchmark.
type figure struct {
	name string
	pkg  string // folder of the package, from the module's root
	// bench is the benchmark without "Benchmark"; arm and base are two of its sub-benchmarks, "" for itself.
	bench, arm, base string
	// unit of the metric that is compared.
	unit string
	goal string
}

// sample is a metric of both arms in one repetition.
type sample struct{ arm, base float64 }

// measure runs the benchmark count times, each time both arms one after the other.
func (f *figure) measure(ctx context.Context, root, dir string, count int, benchtime string) ([]sample, error) {
	binary := filepath.Join(dir, strings.ReplaceAll(f.pkg, "/", "-")+".test")
	if _, err := os.Stat(binary); err != nil {
		build := exec.CommandContext(ctx, "go", "test", "-c", "-o", binary, "./"+f.pkg)
		build.Dir = root
		if out, err := build.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("building its test: %w\n%s", err, out)
		}
	}
	pattern := "^Benchmark" + f.bench + "$"
	if f.arm != "" {
		pattern += "/^(" + f.arm + "|" + f.base + ")$"
	}
	samples := make([]sample, 0, count)
	for range count {
		cmd := exec.CommandContext(ctx, binary, "-test.run", "^$", "-test.bench", pattern, "-test.benchtime", benchtime)
		cmd.Dir = filepath.Join(root, f.pkg)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("%w\n%s", err, out)
		}
		s, err := f.parse(bytes.NewReader(out))
		if err != nil {
			return nil, fmt.Errorf("%w\n%s", err, out)
		}
		samples = append(samples, s)
	}
	return samples, nil
}

// parse reads the metric of both arms.
func (f *figure) parse(out io.Reader) (sample, error) {
	values := make(map[string]float64)
	reader := benchfmt.NewReader(out, f.name)
	for reader.Scan() {
		result, ok := reader.Result().(*benchfmt.Result)
		if !ok {
			continue
		}
		base, parts := result.Name.Parts()
		arm := ""
		for _, p := range parts {
			if name, ok := strings.CutPrefix(string(p), "/"); ok && string(base) == f.bench {
				arm = name
			}
		}
		if v, ok := result.Value(f.unit); ok {
			values[arm] = v
		}
	}
	if err := reader.Err(); err != nil {
		return sample{}, fmt.Errorf("reading its output: %w", err)
	}
	s := sample{arm: values[f.arm], base: 1}
	if f.base != "" {
		s.base = values[f.base]
	}
	if s.arm == 0 || s.base == 0 {
		return sample{}, fmt.Errorf("no metric %s of both arms", f.unit)
	}
	return s, nil
}

func (f *figure) print(w io.Writer, samples []sample) {
	var arm, base, ratio []float64
	for _, s := range samples {
		arm = append(arm, s.arm)
		base = append(base, s.base)
		ratio = append(ratio, s.arm/s.base)
	}
	if f.base == "" {
		row(w, f.name, spread(arm)+" "+f.unit, "", "", f.goal)
		return
	}
	row(w, f.name, spread(arm)+" "+f.unit, f.base+": "+spread(base), spread(ratio), f.goal)
}

// spread returns the median with the least and the greatest.
func spread(values []float64) string {
	slices.Sort(values)
	n := len(values)
	median := (values[(n-1)/2] + values[n/2]) / 2
	return fmt.Sprintf("%s [%s, %s]", short(median), short(values[0]), short(values[n-1]))
}

func short(v float64) string {
	switch {
	case v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

// figures in the order of the table.
var figures = []figure{
	{"event: parse, gate, canonical form, commitments, record", "event", "Build", "", "", "ns/op", ""},
	{"ingest, one event a request", "ingest", "Single", "ingest", "bare", "cpu-us/event", ""},
	{"ingest, JSON batches of 100", "ingest", "Batch100", "json", "raw", "cpu-us/event", "< 12 us"},
	{"ingest, NDJSON batches of 100", "ingest", "Batch100", "ndjson", "raw", "cpu-us/event", "< 12 us"},
}
