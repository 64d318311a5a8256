package processor

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/schemas"
)

// Config is what the processor is told at start. The zero value of a field stands for its default.
type Config struct {
	Kafka kafka.Config
	// Layout is what the topics must be. Its prefix is Kafka.TopicPrefix.
	Layout schemas.TopicLayout

	// Instance names this process for as long as the installation lives, where that can be known (a StatefulSet's
	// ordinal): it comes back to its partitions at once after a crash. At most 64 of [A-Za-z0-9_-]. No two processes may
	// have the same. Default "": a random transactional id and no group instance id.
	Instance string

	// TransactionRecords bounds the input records of a transaction. 1 to 100,000; default 10,000.
	TransactionRecords int
	// TransactionBytes is the size of input from which a transaction takes in no more; the last fetch may exceed it, by
	// up to FetchBytes. At least 64 KiB; default 16 MiB.
	TransactionBytes int
	// TransactionInterval is how long a transaction takes in records, from its first. 1 ms to 1 s; default 100 ms.
	TransactionInterval time.Duration
	// TransactionTimeout is when the broker aborts a transaction that its processor has left open; until then, and for
	// up to 10 s more, readers of the ledger see nothing newer. 1 s to 60 s; default 10 s.
	TransactionTimeout time.Duration
	// SessionTimeout is when the group gives the partitions of a silent processor to others. More than
	// TransactionTimeout, at most 5 min; default 15 s.
	SessionTimeout time.Duration

	// DedupLeaves is how many leaves of a partition a duplicate is looked for in. A multiple of 1,000 from
	// 1,000 to 10,000,000; default 200,000. A leaf takes 32 to 48 bytes of memory.
	// It is for the life of an installation: blocks are kept under their number modulo the window's size, so that in
	// another window one can overwrite another, and a take-over that misses one halts.
	DedupLeaves int

	// FetchBytes bounds a fetch from one broker, and so what is buffered ahead of the transaction. 64 KiB to 64 MiB;
	// default 8 MiB.
	FetchBytes int32

	// TakeOverTimeout is how long a take-over waits for the brokers to answer, for the transactions of the partition's last
	// owner to end, and reads what they left: each. Default TransactionTimeout + 15 s: the broker looks for transactions to
	// abort every 10 s.
	TakeOverTimeout time.Duration
	// RetryInterval is how long a partition stays halted whose take-over timed out. Default 60 s.
	RetryInterval time.Duration
}

// Bounds and defaults.
const (
	defaultTransactionRecords  = 10_000
	defaultTransactionBytes    = 16 << 20
	defaultTransactionInterval = 100 * time.Millisecond
	defaultTransactionTimeout  = 10 * time.Second
	defaultSessionTimeout      = 15 * time.Second
	defaultDedupLeaves         = 200_000
	defaultFetchBytes          = 8 << 20
	defaultRetryInterval       = time.Minute
	abortScanInterval          = 15 * time.Second // the broker's own is 10 s

	maxInstanceBytes = 64
)

// withDefaults returns c with its defaults filled in.
func (c Config) withDefaults() Config {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	defDuration := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	def(&c.TransactionRecords, defaultTransactionRecords)
	def(&c.TransactionBytes, defaultTransactionBytes)
	def(&c.DedupLeaves, defaultDedupLeaves)
	if c.FetchBytes == 0 {
		c.FetchBytes = defaultFetchBytes
	}
	defDuration(&c.TransactionInterval, defaultTransactionInterval)
	defDuration(&c.TransactionTimeout, defaultTransactionTimeout)
	defDuration(&c.SessionTimeout, max(defaultSessionTimeout, c.TransactionTimeout*3/2))
	defDuration(&c.TakeOverTimeout, c.TransactionTimeout+abortScanInterval)
	defDuration(&c.RetryInterval, defaultRetryInterval)
	return c
}

// Validate says what is wrong with c.
func (c *Config) Validate() error {
	if err := c.Kafka.Validate(); err != nil {
		return err
	}
	d := c.withDefaults()
	if d.Layout.Prefix != d.Kafka.TopicPrefix {
		return fmt.Errorf("processor: topic prefix %q of the layout is not %q", d.Layout.Prefix, d.Kafka.TopicPrefix)
	}
	if d.Layout.Partitions < 1 || d.Layout.Partitions > 1<<16 {
		// The leaf holds the input partition in 16 bits.
		return fmt.Errorf("processor: %d partitions, must be 1 to 65536", d.Layout.Partitions)
	}
	if len(d.Instance) > maxInstanceBytes || strings.Trim(d.Instance, instanceCharacters) != "" {
		return fmt.Errorf("processor: instance %q: at most %d of A-Z, a-z, 0-9, _ and -", d.Instance, maxInstanceBytes)
	}
	var errs []error
	within := func(name string, v, low, high int64, unit string) {
		if v < low || v > high {
			errs = append(errs, fmt.Errorf("processor: %s is %d %s, must be %d to %d", name, v, unit, low, high))
		}
	}
	within("transaction records", int64(d.TransactionRecords), 1, 100_000, "records")
	within("transaction bytes", int64(d.TransactionBytes), 64<<10, 1<<30, "bytes")
	within("transaction interval", d.TransactionInterval.Milliseconds(), 1, 1_000, "ms")
	within("transaction timeout", d.TransactionTimeout.Milliseconds(), 1_000, 60_000, "ms")
	within("session timeout", d.SessionTimeout.Milliseconds(), d.TransactionTimeout.Milliseconds()+1, 300_000, "ms")
	within("dedup window", int64(d.DedupLeaves), blockLeaves, 10_000_000, "leaves")
	within("fetch bytes", int64(d.FetchBytes), 64<<10, 64<<20, "bytes")
	within("take-over timeout", d.TakeOverTimeout.Milliseconds(), 1, 600_000, "ms")
	within("retry interval", d.RetryInterval.Milliseconds(), 1, 3_600_000, "ms")
	if d.DedupLeaves%blockLeaves != 0 {
		errs = append(errs, fmt.Errorf("processor: a dedup window of %d leaves is not a multiple of %d", d.DedupLeaves, blockLeaves))
	}
	return errors.Join(errs...)
}

const instanceCharacters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"

// transactionalID returns the id under which this process seals, for as long as it runs: "<group>.<instance>", or the
// group and 16 random hexadecimal digits.
func (c *Config) transactionalID() string {
	suffix := c.Instance
	if suffix == "" {
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails
		suffix = hex.EncodeToString(b[:])
	}
	return c.Kafka.Group(schemas.GroupSeal) + "." + suffix
}
