package verify

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"getimmutable.dev/immutable/ledger"
)

// Config is what every verification has in common.
type Config struct {
	// Trust says whose checkpoints are believed. Required.
	Trust *ledger.Trust
	// Now is the time that cosignatures and the age of the newest epoch are compared with. Required.
	Now time.Time
	// MaxAge of the newest epoch; older is STALE. 0 does not look at it. A notary makes an epoch each minute.
	MaxAge time.Duration
	// Timeout of the whole verification. What was found until then counts, and the rest is not decided. 0 is none; each request has its own.
	Timeout time.Duration
	// MemoryFile holds what earlier runs have accepted, and what this one does; empty for none.
	MemoryFile string
	// MemoryWait is how long to wait for another run to write it. Default 10 s.
	MemoryWait time.Duration
	// EvidenceDir is where the two checkpoints of a fork are written. Default: the working directory.
	EvidenceDir string
	// Epochs is how many epochs are compared with: the newest, the oldest, some evenly spread and as many at random. Default 64, at most 4096.
	Epochs int
	// Settle is how long to wait for the operator's tables, or the API, to hold what the newest epoch covers, and no less than what is remembered: those who write
	// leaves may be behind the notary, and a replica behind another one. It waits only where something is not there. Default 1 min.
	Settle time.Duration
	// MaxFaults is how many findings are listed; the others are counted. Default 1000.
	MaxFaults int
	// Workers recompute contents. Default: the number of cores.
	Workers int
	// Progress is called now and then from one goroutine, with the number of leaves so far and of those that are expected, 0 where that
	// is not known. Nil for none.
	Progress func(leaves, of uint64)
}

// Limits of a Config.
const maxEpochs = 4096

func (c Config) withDefaults() Config {
	if c.Epochs == 0 {
		c.Epochs = 64
	}
	if c.Settle == 0 {
		c.Settle = time.Minute
	}
	if c.MemoryWait == 0 {
		c.MemoryWait = 10 * time.Second
	}
	if c.MaxFaults == 0 {
		c.MaxFaults = 1000
	}
	if c.Workers == 0 {
		c.Workers = runtime.GOMAXPROCS(0)
	}
	if c.EvidenceDir == "" {
		c.EvidenceDir = "."
	}
	if c.Progress == nil {
		c.Progress = func(uint64, uint64) {}
	}
	return c
}

// Validate reports what cannot be worked with.
func (c *Config) Validate() error {
	switch {
	case c.Trust == nil:
		return errors.New("a trust file is required: without one nothing can be believed")
	case c.Now.IsZero():
		return errors.New("the time is required")
	case c.Timeout < 0 || c.MemoryWait < 0 || c.MaxAge < 0 || c.Settle < 0 || c.MaxFaults < 0 || c.Workers < 0:
		return errors.New("durations and numbers must not be negative")
	case c.Epochs < 0 || c.Epochs > maxEpochs:
		return fmt.Errorf("epochs must be at most %d", maxEpochs)
	}
	return nil
}

var errTimeout = errors.New("the time for the whole verification is over")

// within ends a context when Timeout is over.
func (c *Config) within(ctx context.Context) (context.Context, context.CancelFunc) {
	if c.Timeout == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, c.Timeout, errTimeout)
}

// ended takes the error of a run for a verification that is not decided: where its time was over, and where it has verified or found anything
// before that. It returns the others.
func (r *Report) ended(ctx context.Context, err error) error {
	switch {
	case errors.Is(context.Cause(ctx), errTimeout) && (err != nil || len(r.Undecided) > 0): // else it was in time, if only just
		r.undecided("%v", errTimeout)
	case err == nil:
	case ctx.Err() != nil, errors.Is(err, ErrUsage), len(r.Found) == 0 && r.Checkpoint == nil && !r.content:
		return err
	default:
		r.undecided("%v", err)
	}
	return nil
}
