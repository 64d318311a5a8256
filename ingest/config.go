package ingest

import (
	"errors"
	"fmt"
	"time"

	"getimmutable.dev/immutable/internal/kafka"
)

// Limits of the HTTP contract. They are not settings: clients rely on them.
const (
	// maxBatchBytes bounds the body of a batch, inflated, in bytes.
	maxBatchBytes = 8 << 20
	// maxBatchEvents bounds the events of a JSON batch.
	maxBatchEvents = 1_000
	// maxLinesEvents bounds the events of an NDJSON batch.
	maxLinesEvents = 10_000
	// maxRecordBytes bounds the value of one record of the events topic, so that the processor's record around it still
	// fits Kafka's default max.message.bytes of 1,048,588.
	maxRecordBytes = 900_000
)

// Config is what an operator sets of ingest. The zero value of every field but Kafka and Partitions means its default.
type Config struct {
	Kafka kafka.Config
	// Partitions is the number of partitions of the events topic, at least 1. It must be the topic's own: Ready says so
	// when it is not.
	Partitions int32

	// MaxBodiesBytes bounds the memory of all request bodies that are being read or decoded, in bytes; a request that
	// would exceed it is answered 503. At least 32 MiB, default 64 MiB.
	MaxBodiesBytes int64
	// MaxBufferedRecords bounds the records that wait for Kafka; a request that would exceed it is answered 503. At least
	// 10,000, one batch; default 50,000.
	MaxBufferedRecords int
	// MaxBufferedBytes bounds the bytes of those records, and the records that one request may become. At least 32 MiB,
	// default 128 MiB.
	MaxBufferedBytes int
	// BodyTimeout is how long a client may take to send its body. 1 ms to 5 min, default 15 s.
	BodyTimeout time.Duration
	// ProduceTimeout is how long Kafka may take to acknowledge before the answer is 503. 50 ms to 4 s, because clients
	// give up after 5 s; default 2.5 s.
	ProduceTimeout time.Duration
	// Linger is how long a record waits for others to share its Kafka request. Up to 100 ms, default 0: under load
	// records gather while earlier requests are under way.
	Linger time.Duration
	// IdempotencyKeys is how many of the most recently accepted idempotency keys are remembered, so that a retry is
	// answered without Kafka and a reuse with other content is a 409. Up to 10 million, default 65,536, about 200 bytes
	// each.
	IdempotencyKeys int
	// Admit refuses all writes with a 503 that carries its error's text, while it returns one: when the disk is nearly
	// full, for instance. It is called for every request and must be fast. Nil admits.
	Admit func() error
}

func (c Config) withDefaults() Config {
	c.MaxBodiesBytes = orDefault(c.MaxBodiesBytes, 64<<20)
	c.MaxBufferedRecords = orDefault(c.MaxBufferedRecords, 50_000)
	c.MaxBufferedBytes = orDefault(c.MaxBufferedBytes, 128<<20)
	c.BodyTimeout = orDefault(c.BodyTimeout, 15*time.Second)
	c.ProduceTimeout = orDefault(c.ProduceTimeout, 2500*time.Millisecond)
	c.IdempotencyKeys = orDefault(c.IdempotencyKeys, 1<<16)
	return c
}

func orDefault[T comparable](v, d T) T {
	var zero T
	if v == zero {
		return d
	}
	return v
}

// Validate returns every setting that is out of its range.
func (c Config) Validate() error {
	var errs []error
	if err := c.Kafka.Validate(); err != nil {
		errs = append(errs, err)
	}
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	d := c.withDefaults()
	check(d.Partitions >= 1, "partitions is %d: it must be at least 1", d.Partitions)
	check(d.MaxBodiesBytes >= 32<<20, "max bodies bytes is %d: it must be at least 32 MiB", d.MaxBodiesBytes)
	check(d.MaxBufferedRecords >= maxLinesEvents,
		"max buffered records is %d: it must be at least %d", d.MaxBufferedRecords, maxLinesEvents)
	check(d.MaxBufferedBytes >= 32<<20, "max buffered bytes is %d: it must be at least 32 MiB", d.MaxBufferedBytes)
	check(d.BodyTimeout >= time.Millisecond && d.BodyTimeout <= 5*time.Minute,
		"body timeout is %s: it must be 1 ms to 5 min", d.BodyTimeout)
	check(d.ProduceTimeout >= 50*time.Millisecond && d.ProduceTimeout <= 4*time.Second,
		"produce timeout is %s: it must be 50 ms to 4 s", d.ProduceTimeout)
	check(d.Linger >= 0 && d.Linger <= 100*time.Millisecond, "linger is %s: it must be 0 to 100 ms", d.Linger)
	check(d.IdempotencyKeys >= 1 && d.IdempotencyKeys <= 10_000_000,
		"idempotency keys is %d: it must be 1 to 10 million", d.IdempotencyKeys)
	return errors.Join(errs...)
}
