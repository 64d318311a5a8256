package verifier

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/internal/kafka"
)

// Config is what the verifier is told at start. The zero value of a field stands for its default.
type Config struct {
	Kafka      kafka.Config
	ClickHouse clickhouse.Config

	// Interval is from the end of a run to the beginning of the next; the first begins at a random moment of it. 10 ms to 24 h; default
	// 5 min.
	Interval time.Duration
	// NewestLeaves is the most leaves of a run that have come since the one before: what is beyond it is left to the history. 1 to
	// 10,000,000; default 50,000.
	NewestLeaves int
	// HistoryLeaves is how many leaves of a run are of the history: all of it is gone through in Interval * leaves / HistoryLeaves. 1 to
	// 10,000,000; default 50,000.
	HistoryLeaves int
	// SliceLeaves are read and held at once. 1 to 8,192; default 2,048.
	SliceLeaves int
	// SliceBytes bounds the rows that are held at once; a slice with more is read in halves. 4 MiB to 256 MiB; default 16 MiB.
	SliceBytes int
	// Settle is the wait between the finding of a fault and its confirmation: it must be there both times. 1 ms to 10 min; default 10 s.
	Settle time.Duration
	// WithheldWait is for how long an erased value may be without its redaction in the tables. 1 ms to 24 h; default 10 min.
	WithheldWait time.Duration

	// RunTimeout is how long one run may take. 1 s to 6 h; default 15 min.
	RunTimeout time.Duration
	// StatementTimeout is how long ClickHouse may take over one statement. 1 s to 10 min; default 30 s.
	StatementTimeout time.Duration
	// RetryAfter is from the end of a run that failed to the beginning of the next. 10 ms to 1 h; default 30 s, and not more than Interval.
	RetryAfter time.Duration
	// Priority of the statements in ClickHouse; those with a smaller one go first. 1 to 100; default 10.
	Priority int

	// MaxEvents of a run: of faults beyond it there is one event for each workspace. 1 to 1,000; default 20.
	MaxEvents int
	// MaxFaults are kept, so that each is reported once: those beyond it are counted and logged. 100 to 1,000,000; default 10,000.
	MaxFaults int
	// MaxAgain is the most parts of chains with faults that each run looks at again. 1 to 1,000; default 32.
	MaxAgain int
	// DrainTimeout is how long events in hand may take to reach Kafka when the verifier is asked to stop. 1 ms to 1 min; default 2 s.
	DrainTimeout time.Duration
}

func (c Config) withDefaults() Config {
	c.Interval = cmp.Or(c.Interval, 5*time.Minute)
	c.NewestLeaves = cmp.Or(c.NewestLeaves, 50_000)
	c.HistoryLeaves = cmp.Or(c.HistoryLeaves, 50_000)
	c.SliceLeaves = cmp.Or(c.SliceLeaves, 2_048)
	c.SliceBytes = cmp.Or(c.SliceBytes, 16<<20)
	c.Settle = cmp.Or(c.Settle, 10*time.Second)
	c.WithheldWait = cmp.Or(c.WithheldWait, 10*time.Minute)
	c.RunTimeout = cmp.Or(c.RunTimeout, 15*time.Minute)
	c.StatementTimeout = cmp.Or(c.StatementTimeout, 30*time.Second)
	c.RetryAfter = cmp.Or(c.RetryAfter, min(30*time.Second, c.Interval))
	c.Priority = cmp.Or(c.Priority, 10)
	c.MaxEvents = cmp.Or(c.MaxEvents, 20)
	c.MaxFaults = cmp.Or(c.MaxFaults, 10_000)
	c.MaxAgain = cmp.Or(c.MaxAgain, 32)
	c.DrainTimeout = cmp.Or(c.DrainTimeout, 2*time.Second)
	return c
}

// Validate says what is wrong with c. It reads the files that c.ClickHouse names.
func (c *Config) Validate() error {
	d := c.withDefaults()
	errs := []error{d.Kafka.Validate(), d.ClickHouse.Validate()}
	within := func(name string, v, low, high int64, unit string) {
		if v < low || v > high {
			errs = append(errs, fmt.Errorf("verifier: %s is %d %s, must be %d to %d", name, v, unit, low, high))
		}
	}
	within("interval", d.Interval.Milliseconds(), 10, 86_400_000, "ms")
	within("newest leaves", int64(d.NewestLeaves), 1, 10_000_000, "leaves")
	within("history leaves", int64(d.HistoryLeaves), 1, 10_000_000, "leaves")
	within("slice leaves", int64(d.SliceLeaves), 1, 8_192, "leaves")
	within("slice bytes", int64(d.SliceBytes), 4<<20, 256<<20, "bytes")
	within("settle", d.Settle.Milliseconds(), 1, 600_000, "ms")
	within("withheld wait", d.WithheldWait.Milliseconds(), 1, 86_400_000, "ms")
	within("run timeout", d.RunTimeout.Milliseconds(), 1_000, 21_600_000, "ms")
	within("statement timeout", d.StatementTimeout.Milliseconds(), 1_000, 600_000, "ms")
	within("retry after", d.RetryAfter.Milliseconds(), 10, 3_600_000, "ms")
	within("priority", int64(d.Priority), 1, 100, "")
	within("events", int64(d.MaxEvents), 1, 1_000, "events")
	within("faults", int64(d.MaxFaults), 100, 1_000_000, "faults")
	within("parts again", int64(d.MaxAgain), 1, 1_000, "parts")
	within("drain timeout", d.DrainTimeout.Milliseconds(), 1, 60_000, "ms")
	return errors.Join(errs...)
}
