package chwriter

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
	// ordinal): after a restart it comes back to its partitions at once. No two processes may have the same. Default "".
	Instance string

	// BatchRows is the most records of an insert. 1 to 1,000,000, so that it stays one block of ClickHouse's; default
	// 50,000.
	BatchRows int
	// BatchBytes is the size of records from which an insert takes in no more. 64 KiB to 256 MiB; default 16 MiB.
	BatchBytes int
	// Linger is how long the first record of a batch waits for others. 1 ms to 2 s; default 200 ms. It bounds the parts
	// that ClickHouse has to merge: one for each partition, table and linger.
	Linger time.Duration
	// QueueBytes is the size of records waiting from which a partition is not fetched any more; the last fetch may exceed
	// it, by up to FetchBytes. 64 KiB to 1 GiB; default 16 MiB.
	QueueBytes int
	// FetchBytes bounds a fetch from one broker. 64 KiB to 64 MiB; default 8 MiB.
	FetchBytes int32
	// Inserters is how many batches are inserted at a time; each has a connection and buffers of about twice BatchBytes.
	// 1 to 64; default 2.
	Inserters int
	// VerifyEvery is of how many records one is recomputed from its content before it is written. 1 (all) to 1,000,000;
	// default 64.
	VerifyEvery int

	// InsertTimeout is how long one attempt at an insert may take before the next. 1 s to 10 min; default 60 s.
	InsertTimeout time.Duration
	// SessionTimeout is when the group gives the partitions of a silent writer to others. 1 s to 5 min, and not less
	// than the broker allows (6 s, if it was not told otherwise); default 10 s.
	SessionTimeout time.Duration
	// DrainTimeout is how long the insert in hand may take when the writer is asked to stop. 1 ms to 1 min; default 10 s.
	DrainTimeout time.Duration
}

func (c Config) withDefaults() Config {
	c.BatchRows = cmp.Or(c.BatchRows, 50_000)
	c.BatchBytes = cmp.Or(c.BatchBytes, 16<<20)
	c.Linger = cmp.Or(c.Linger, 200*time.Millisecond)
	c.QueueBytes = cmp.Or(c.QueueBytes, 16<<20)
	c.FetchBytes = cmp.Or(c.FetchBytes, 8<<20)
	c.Inserters = cmp.Or(c.Inserters, 2)
	c.VerifyEvery = cmp.Or(c.VerifyEvery, 64)
	c.InsertTimeout = cmp.Or(c.InsertTimeout, time.Minute)
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
			errs = append(errs, fmt.Errorf("clickhouse writer: %s is %d %s, must be %d to %d", name, v, unit, low, high))
		}
	}
	within("batch rows", int64(d.BatchRows), 1, 1_000_000, "rows")
	within("batch bytes", int64(d.BatchBytes), 64<<10, 256<<20, "bytes")
	within("linger", d.Linger.Milliseconds(), 1, 2_000, "ms")
	within("queue bytes", int64(d.QueueBytes), 64<<10, 1<<30, "bytes")
	within("fetch bytes", int64(d.FetchBytes), 64<<10, 64<<20, "bytes")
	within("inserters", int64(d.Inserters), 1, 64, "")
	within("verify every", int64(d.VerifyEvery), 1, 1_000_000, "records")
	within("insert timeout", d.InsertTimeout.Milliseconds(), 1_000, 600_000, "ms")
	within("session timeout", d.SessionTimeout.Milliseconds(), 1_000, 300_000, "ms")
	within("drain timeout", d.DrainTimeout.Milliseconds(), 1, 60_000, "ms")
	return errors.Join(errs...)
}
