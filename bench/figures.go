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

// figures in the order of the table.
var figures = []figure{
	{
		name: "event: gate, canonical form, scan, commitments, record", pkg: "event", bench: "Build/plain",
		this: metric{"plain", "cpu-ns/op"},
	},
	{
		name: "event: the scan for secrets alone", pkg: "event", bench: "Scan/clean",
		this: metric{"clean", "cpu-ns/op"}, goal: "<= 3 us",
	},
	{
		name: "ingest, one event a request, against a bare handler", pkg: "ingest", bench: "Single",
		this: metric{"ingest", "events/s"}, base: metric{"bare", "events/s"}, goal: ">= 0.75", kafka: anyKafka,
	},
	{
		name: "ingest, JSON batches of 100, against raw produce", pkg: "ingest", bench: "Batch100",
		this: metric{"json", "cpu-us/event"}, base: metric{"raw", "cpu-us/event"}, goal: "< 12 us", kafka: anyKafka,
	},
	{
		name: "ingest, NDJSON batches of 100, against raw produce", pkg: "ingest", bench: "Batch100",
		this: metric{"ndjson", "cpu-us/event"}, base: metric{"raw", "cpu-us/event"}, goal: "< 12 us", kafka: anyKafka,
	},
	{
		name: "ingest, p99 at half of its top rate, against raw produce", pkg: "ingest", bench: "HalfRate", benchtime: "20000x",
		this: metric{"ingest", "p99-ms"}, base: metric{"raw", "p99-ms"}, goal: "<= 2.0", kafka: anyKafka,
	},
	{
		name: "sealing without Kafka, against a bare SHA-256 chain that syncs as often", pkg: "processor", bench: "SealCore", benchtime: "7x",
		this: metric{"", "sealed/s"}, base: metric{"", "chained/s"}, goal: ">= 0.5", once: true,
	},
	{
		name: "seal, against a plain exactly-once copy", pkg: "processor", bench: "SealTopic/sync", benchtime: "7x",
		this: metric{"sync", "sealed/s"}, base: metric{"sync", "copied/s"}, goal: ">= 0.60", once: true,
	},
	{
		name: "the same on a broker that does not sync to disk", pkg: "processor", bench: "SealTopic/nosync", benchtime: "7x",
		this: metric{"nosync", "sealed/s"}, base: metric{"nosync", "copied/s"}, once: true,
	},
	{
		name: "seal, against a plain exactly-once copy, on a real broker", pkg: "processor", bench: "SealTopic/apache", benchtime: "7x",
		this: metric{"apache", "sealed/s"}, base: metric{"apache", "copied/s"}, goal: ">= 0.60", once: true, kafka: "apache",
	},
	{
		name: "seal, against an at-least-once copy", pkg: "processor", bench: "SealTopicAtLeastOnce/sync", benchtime: "5x",
		this: metric{"sync", "sealed/s"}, base: metric{"sync", "copied/s"}, goal: ">= 0.55", once: true,
	},
	{
		name: "seal, against an at-least-once copy, on a real broker", pkg: "processor", bench: "SealTopicAtLeastOnce/apache",
		benchtime: "5x", this: metric{"apache", "sealed/s"}, base: metric{"apache", "copied/s"}, goal: ">= 0.55", once: true, kafka: "apache",
	},
	{
		name: "from accepted to the ledger, p99, at 10,000 events/s", pkg: "processor", bench: "SmallLoad/sync", benchtime: "1000x",
		this: metric{"sync", "p99-ms"}, goal: "<= 250 ms",
	},
	{
		name: "from accepted to the ledger, p99, at 10,000 events/s, on a real broker", pkg: "processor", bench: "SmallLoad/apache",
		benchtime: "1000x", this: metric{"apache", "p99-ms"}, goal: "<= 250 ms", kafka: "apache",
	},
	{
		name: "from the ledger to a row, one event at a time, p99", pkg: "sinks/chwriter", bench: "Readable", benchtime: "100x",
		this: metric{"", "p99-ms"}, goal: "< 2 s", kafka: anyKafka,
	},
	{
		name: "two processors against one", pkg: "processor", bench: "TwoProcessors/sync", benchtime: "5x",
		this: metric{"sync", "two/s"}, base: metric{"sync", "one/s"}, goal: ">= 1.6 with cores of their own", once: true,
	},
	{
		name: "two processors against one, on a real broker", pkg: "processor", bench: "TwoProcessors/apache", benchtime: "5x",
		this: metric{"apache", "two/s"}, base: metric{"apache", "one/s"}, goal: ">= 1.6 with cores of their own", once: true, kafka: "apache",
	},
	{
		name: "ClickHouse writer, against a raw pre-encoded insert", pkg: "sinks/chwriter", bench: "Writer", benchtime: "1x",
		this: metric{"", "writer-rows/s"}, base: metric{"", "raw-rows/s"}, goal: ">= 0.45", once: true, kafka: anyKafka,
	},
	{
		name: "first page of 5 million events, p50, against the same SQL", pkg: "query", bench: "Page/first/total=false",
		benchtime: "300x", args: []string{"-bench.events", "5000000"}, once: true,
		this: metric{"first/total=false", "api-p50-ms"}, base: metric{"first/total=false", "sql-p50-ms"}, goal: "<= +1.5 ms",
	},
}

// metric names a value that a benchmark reports.
type metric struct {
	sub  string // path of the sub-benchmark, "" for the benchmark itself
	unit string
}

// figure is the ratio of two metrics of one Go benchmark.
type figure struct {
	name  string
	pkg   string // folder of the package, from the module's root
	bench string // the benchmark without "Benchmark", and the sub-benchmarks that are wanted
	this  metric
	base  metric // zero: there is no ratio
	goal  string
	// benchtime, if not the command's: for a benchmark that alternates its arms itself, a count.
	benchtime string
	args      []string
	// once: it alternates its arms itself and reports medians.
	once bool
	// kafka is what it runs on: "" the embedded broker alone, or none; apache; anyKafka.
	kafka string
}

const anyKafka = "any"

// sample is the two metrics of one repetition.
type sample struct{ this, base float64 }

// measure runs the benchmark count times, all its arms each time.
func (f *figure) measure(ctx context.Context, root, dir string, count int, benchtime string) ([]sample, error) {
	binary := filepath.Join(dir, strings.ReplaceAll(f.pkg, "/", "-")+".test")
	if _, err := os.Stat(binary); err != nil {
		build := exec.CommandContext(ctx, "go", "test", "-c", "-o", binary, "./"+f.pkg)
		build.Dir = root
		if out, err := build.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("building its test: %w\n%s", err, out)
		}
	}
	if f.benchtime != "" {
		benchtime = f.benchtime
	}
	if f.once {
		count = 1
	}
	levels := strings.Split("Benchmark"+f.bench, "/")
	for i := range levels {
		levels[i] = "^" + levels[i] + "$"
	}
	args := append([]string{
		"-test.run", "^$", "-test.bench", strings.Join(levels, "/"), "-test.benchtime", benchtime, "-test.timeout", "1h",
	}, f.args...)
	samples := make([]sample, 0, count)
	for range count {
		cmd := exec.CommandContext(ctx, binary, args...)
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

func (f *figure) parse(out io.Reader) (s sample, err error) {
	name, _, _ := strings.Cut(f.bench, "/")
	reader := benchfmt.NewReader(out, f.name)
	for reader.Scan() {
		result, ok := reader.Result().(*benchfmt.Result)
		if !ok {
			continue
		}
		full := string(result.Name.Full())
		if i := strings.LastIndexByte(full, '-'); i > 0 {
			full = full[:i] // the number of processors
		}
		sub := strings.TrimPrefix(strings.TrimPrefix(full, name), "/")
		for _, v := range result.Values {
			unit, value := v.Unit, v.Value
			if v.OrigUnit != "" {
				unit, value = v.OrigUnit, v.OrigValue // as the benchmark reported it
			}
			switch (metric{sub, unit}) {
			case f.this:
				s.this = value
			case f.base:
				s.base = value
			}
		}
	}
	if err := reader.Err(); err != nil {
		return sample{}, fmt.Errorf("reading its output: %w", err)
	}
	if s.this == 0 || f.base.unit != "" && s.base == 0 {
		return sample{}, fmt.Errorf("it does not report %v and %v", f.this, f.base)
	}
	return s, nil
}

func (f *figure) print(w io.Writer, samples []sample) {
	var this, base, ratio []float64
	for _, s := range samples {
		this = append(this, s.this)
		base = append(base, s.base)
		ratio = append(ratio, s.this/s.base)
	}
	if f.base.unit == "" {
		row(w, f.name, spread(this)+" "+f.this.unit, "", "", f.goal)
		return
	}
	row(w, f.name, spread(this)+" "+f.this.unit, spread(base)+" "+f.base.unit, spread(ratio), f.goal)
}

// spread returns the median with the least and the greatest.
func spread(values []float64) string {
	slices.Sort(values)
	n := len(values)
	median := (values[(n-1)/2] + values[n/2]) / 2
	if n == 1 {
		return short(median)
	}
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
