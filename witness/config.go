package witness

import (
	"errors"
	"fmt"
	"time"
)

// Config is what an operator sets of a witness. The zero value of every field but Dir means its default.
type Config struct {
	// Dir holds the newest checkpoint that was cosigned of each log. One process uses it. Whoever restores an old copy of it
	// makes the witness forget. No default.
	Dir string
	// MaxRequests bounds the requests that are in hand, of at most 134 kB each; one more is answered 503. 1 to 10,000, default 64.
	MaxRequests int
	// BodyTimeout is how long a client may take to send its request. 1 ms to 1 min, default 10 s.
	BodyTimeout time.Duration
}

func (c Config) withDefaults() Config {
	if c.MaxRequests == 0 {
		c.MaxRequests = 64
	}
	if c.BodyTimeout == 0 {
		c.BodyTimeout = 10 * time.Second
	}
	return c
}

// Validate returns every setting that is out of its range.
func (c Config) Validate() error {
	var errs []error
	d := c.withDefaults()
	if d.Dir == "" {
		errs = append(errs, errors.New("the folder of what was cosigned is not set"))
	}
	if d.MaxRequests < 1 || d.MaxRequests > 10_000 {
		errs = append(errs, fmt.Errorf("max requests is %d: it must be 1 to 10,000", d.MaxRequests))
	}
	if d.BodyTimeout < time.Millisecond || d.BodyTimeout > time.Minute {
		errs = append(errs, fmt.Errorf("body timeout is %s: it must be 1 ms to 1 min", d.BodyTimeout))
	}
	return errors.Join(errs...)
}
