package rootlog

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/internal/kafka"
)

// Config is what the writer is told at start. The zero value of a field stands for its default.
type Config struct {
	Kafka      kafka.Config
	ClickHouse clickhouse.Config

	// Instance names this process for as long as the installation lives, where that can be known (a StatefulSet's
	// ordinal): after a restart it goes on at once. No two processes may have the same. Default "".
	Instance string

	// BatchRecords is the most records of an insert. 1 to 10,000; default 1,000.
	BatchRecords int
	// FetchBytes bounds a fetch, and so what is held in memory. 64 KiB to 64 MiB; default 8 MiB.
	FetchBytes int32

	// InsertTimeout is how long one attempt at an insert or a query may take before the next. 1 s to 10 min; default 30 s.
	InsertTimeout time.Duration
	// SessionTimeout is when the group gives the partition of a silent writer to another. 1 s to 5 min, and not less than
	// the broker allows (6 s, if it was not told otherwise); default 10 s.
	SessionTimeout time.Duration
	// DrainTimeout is how long the insert in hand may take when the writer is asked to stop. 1 ms to 1 min; default 10 s.
	DrainTimeout time.Duration
}

func (c Config) withDefaults() Config {
	c.BatchRecords = cmp.Or(c.BatchRecords, 1_000)
	c.FetchBytes = cmp.Or(c.FetchBytes, 8<<20)
	c.InsertTimeout = cmp.Or(c.InsertTimeout, 30*time.Second)
	c.SessionTimeout = cmp.Or(c.SessionTimeout, 10*time.Second)
	c.DrainTimeout = cmp.Or(c.DrainTimeout, 10*time.Second)
	return c
}

// Validate says what is wrong with c. It reads the files that c.ClickHouse names.
func (c *Config) Validate() error {
	d := c.withDefaults()
	errs := []error{d.Kafka.Validate(), d.ClickHouse.Validate()}
	within := func(name string, v, low, high int64, unit string) {
		if v < low || v > high {
			errs = append(errs, fmt.Errorf("root log writer: %s is %d %s, must be %d to %d", name, v, unit, low, high))
		}
	}
	within("batch records", int64(d.BatchRecords), 1, 10_000, "records")
	within("fetch bytes", int64(d.FetchBytes), 64<<10, 64<<20, "bytes")
	within("insert timeout", d.InsertTimeout.Milliseconds(), 1_000, 600_000, "ms")
	within("session timeout", d.SessionTimeout.Milliseconds(), 1_000, 300_000, "ms")
	within("drain timeout", d.DrainTimeout.Milliseconds(), 1, 60_000, "ms")
	return errors.Join(errs...)
}
