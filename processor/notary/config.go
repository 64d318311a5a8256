package notary

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/schemas"
)

// Config is what the notary is told at start. The zero value of a field stands for its default.
type Config struct {
	Kafka kafka.Config
	// Layout is what the topics must be. Its prefix is Kafka.TopicPrefix.
	Layout schemas.TopicLayout
	// ClickHouse is where the leaves are from which a lost notary_state is rebuilt; nothing else is read there. Default: a
	// lost notary_state halts the notary.
	ClickHouse clickhouse.Config

	// KeyFile holds the private keys of the root log, the same for every notary of an installation: see CreateKey. Required.
	KeyFile string
	// LockFile is where this machine remembers the last checkpoint that it has signed. It must outlive the process, and
	// must not be restored from a backup: an old one would hide a loss. Notaries on one machine may share it. Required.
	LockFile string

	// Instance names this process for as long as the installation lives, where that can be known (a StatefulSet's
	// ordinal): it leads again at once after a crash. At most 64 of [A-Za-z0-9_-]. No two processes may have the same.
	// Default "": no group instance id.
	Instance string

	// EpochInterval is how often an epoch is made when there are new leaves. 10 ms to 1 h; default 10 s.
	EpochInterval time.Duration
	// IdleInterval is how often one is made when there are none: silence is evidence too. EpochInterval to 24 h; default 60 s.
	IdleInterval time.Duration
	// EpochLeaves is from how many leaves on an epoch takes in no more, and the next follows at once; the last fetch may exceed
	// it. 1 to 10,000,000; default 500,000.
	EpochLeaves int
	// EpochTime is for how long an epoch takes in leaves. 100 ms to 10 min; default 10 s.
	EpochTime time.Duration
	// WitnessPolicy is the text of a C2SP tlog-policy file, the one that verifiers use. Its witnesses that have a URL are asked to
	// cosign each checkpoint, at most 15. Default: none is asked.
	WitnessPolicy []byte
	// WitnessTimeout is how long witnesses may take to cosign a checkpoint before it is published without them. 1 ms to 1
	// min; default 2 s.
	WitnessTimeout time.Duration

	// TransactionTimeout is when the broker aborts a transaction that the notary has left open, and for how long one may
	// take. 1 s to 60 s; default 10 s.
	TransactionTimeout time.Duration
	// SessionTimeout is when the group makes another notary the leader where this one is silent. 1 s to 5 min; default 15 s.
	SessionTimeout time.Duration
	// TakeOverTimeout is how long a take-over waits for the brokers to answer, and for the transactions of the last leader to
	// end: each. Default TransactionTimeout + 15 s: the broker looks for transactions to abort every 10 s.
	TakeOverTimeout time.Duration
	// FetchBytes bounds a fetch from one broker, and so what is buffered of a topic. 64 KiB to 64 MiB; default 8 MiB.
	FetchBytes int32
}

// Defaults.
const (
	defaultEpochInterval      = 10 * time.Second
	defaultIdleInterval       = time.Minute
	defaultEpochLeaves        = 500_000
	defaultEpochTime          = 10 * time.Second
	defaultWitnessTimeout     = 2 * time.Second
	defaultTransactionTimeout = 10 * time.Second
	defaultSessionTimeout     = 15 * time.Second
	defaultFetchBytes         = 8 << 20
	abortScanInterval         = 15 * time.Second // the broker's own is 10 s

	maxInstanceBytes   = 64
	instanceCharacters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
)

// withDefaults returns c with its defaults filled in.
func (c Config) withDefaults() Config {
	def := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	def(&c.EpochInterval, defaultEpochInterval)
	def(&c.IdleInterval, max(defaultIdleInterval, c.EpochInterval))
	def(&c.EpochTime, defaultEpochTime)
	def(&c.WitnessTimeout, defaultWitnessTimeout)
	def(&c.TransactionTimeout, defaultTransactionTimeout)
	def(&c.SessionTimeout, defaultSessionTimeout)
	def(&c.TakeOverTimeout, c.TransactionTimeout+abortScanInterval)
	if c.EpochLeaves == 0 {
		c.EpochLeaves = defaultEpochLeaves
	}
	if c.FetchBytes == 0 {
		c.FetchBytes = defaultFetchBytes
	}
	return c
}

// Validate says what is wrong with c.
func (c *Config) Validate() error {
	if err := c.Kafka.Validate(); err != nil {
		return err
	}
	d := c.withDefaults()
	var errs []error
	refuse := func(format string, args ...any) { errs = append(errs, fmt.Errorf("notary: "+format, args...)) }
	if d.Layout.Prefix != d.Kafka.TopicPrefix {
		refuse("topic prefix %q of the layout is not %q", d.Layout.Prefix, d.Kafka.TopicPrefix)
	}
	if d.Layout.Partitions < 1 || d.Layout.Partitions > 1<<16 {
		refuse("%d partitions, must be 1 to 65536", d.Layout.Partitions)
	}
	if d.ClickHouse.DSN != "" {
		if err := d.ClickHouse.Validate(); err != nil {
			errs = append(errs, err)
		}
	}
	if d.KeyFile == "" || d.LockFile == "" {
		refuse("a key file and a lock file are required")
	}
	if len(d.Instance) > maxInstanceBytes || strings.Trim(d.Instance, instanceCharacters) != "" {
		refuse("instance %q: at most %d of A-Z, a-z, 0-9, _ and -", d.Instance, maxInstanceBytes)
	}
	within := func(name string, v, low, high int64, unit string) {
		if v < low || v > high {
			refuse("%s is %d %s, must be %d to %d", name, v, unit, low, high)
		}
	}
	between := func(name string, v, low, high time.Duration) {
		within(name, v.Milliseconds(), low.Milliseconds(), high.Milliseconds(), "ms")
	}
	between("epoch interval", d.EpochInterval, 10*time.Millisecond, time.Hour)
	between("idle interval", d.IdleInterval, d.EpochInterval, 24*time.Hour)
	between("epoch time", d.EpochTime, 100*time.Millisecond, 10*time.Minute)
	between("witness timeout", d.WitnessTimeout, time.Millisecond, time.Minute)
	between("transaction timeout", d.TransactionTimeout, time.Second, time.Minute)
	between("session timeout", d.SessionTimeout, time.Second, 5*time.Minute)
	between("take-over timeout", d.TakeOverTimeout, time.Millisecond, 10*time.Minute)
	within("epoch leaves", int64(d.EpochLeaves), 1, 10_000_000, "leaves")
	within("fetch bytes", int64(d.FetchBytes), 64<<10, 64<<20, "bytes")
	return errors.Join(errs...)
}
