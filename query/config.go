package query

import (
	"errors"
	"fmt"
	"time"

	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/internal/kafka"
)

// Limits of the HTTP contract. They are not settings: clients rely on them.
const (
	// defaultPageEvents is `limit` where it is not given, of events and of everything else that is listed.
	defaultPageEvents = 25
	// maxPageEvents bounds `limit`.
	maxPageEvents = 1_000
	// smallPageEvents is what a page is cut to where more events would exceed Config.MaxPageBytes. With the largest
	// events that ingest accepts such a page is 25 MiB.
	smallPageEvents = 100
	// maxValues bounds how often a parameter may be repeated.
	maxValues = 100
	// maxValueBytes bounds the value of a parameter, and the key in metadata[key].
	maxValueBytes = 4096
	// maxMetadataKeys bounds the different keys of metadata[key] in one request.
	maxMetadataKeys = 20
)

// Config is what an operator sets of query. The zero value of every field but ClickHouse and Kafka means its default.
type Config struct {
	// Kafka is where the notary keeps the state of all chains: proofs are made of it.
	Kafka kafka.Config
	// ClickHouse is where the events are. Its DialTimeout defaults to 2 s here.
	ClickHouse clickhouse.Config

	// OperatorWorkspace is the name of the workspace whose keys with the scope admin may create, see, change and delete
	// every workspace, and create keys in each. Default "default", which is what the first start of `up` creates.
	OperatorWorkspace string

	// BodyTimeout is how long a client may take to send the body of a change, which waits in one of the few places for
	// changes. 1 ms to 4 s, because clients give up after 5 s; default 2 s.
	BodyTimeout time.Duration
	// RequestTimeout is how long ClickHouse may take to answer one request, all its statements together, before the
	// answer is a 503. 50 ms to 4.5 s, because clients give up after 5 s; default 4 s.
	RequestTimeout time.Duration
	// MaxRequests bounds the requests that are being answered; a request that would exceed it gets a 503. 1 to 10,000,
	// default 128.
	MaxRequests int
	// MaxPageBytes bounds the events of a page as ClickHouse sends them: where `limit` events are more, the page has 100.
	// At least 1 MiB, default 32 MiB.
	MaxPageBytes int64
	// MaxCountRows is how many rows may be read to count the events that a filter finds; where it takes more, `total` is
	// null. Up to 1 billion, default 500,000. Filters by nothing but occurred_at read next to none.
	MaxCountRows int64
	// AbsentAfter is how long an event must have been missing from ClickHouse for its redaction to count as carried out: a
	// replica may not have it yet. 1 ms to 1 h; default 10 min.
	AbsentAfter time.Duration
	// CountTimeout is how long counting may take, at the same time as the page is read; where it takes longer, `total` is
	// null. 10 ms to 4 s, default 250 ms.
	CountTimeout time.Duration
	// CheckpointInterval is how often a newer checkpoint is looked for, and so how late the first proof by it may be. 10 ms to
	// 1 min, default 500 ms.
	CheckpointInterval time.Duration
	// MaxLeavesBytes is the size from which an answer of leaves takes in no more; it may exceed it by one event. 64 KiB to 64
	// MiB, default 8 MiB.
	MaxLeavesBytes int
	// MaxHistoryChains bounds the chains, all workspaces' together, of the maps of older epochs that are kept, of about 1 KB each. An
	// epoch that has more by itself is refused. 1,000 to 10 million, default 100,000.
	MaxHistoryChains int
	// HistoryTimeout is how long ClickHouse may take over the map of an older epoch. A request waits for it no longer than
	// RequestTimeout, and is answered 503 then; the next one may find it. 50 ms to 10 min, default 1 min.
	HistoryTimeout time.Duration
}

func (c Config) withDefaults() Config {
	c.OperatorWorkspace = orDefault(c.OperatorWorkspace, "default")
	c.ClickHouse.DialTimeout = orDefault(c.ClickHouse.DialTimeout, 2*time.Second)
	c.BodyTimeout = orDefault(c.BodyTimeout, 2*time.Second)
	c.RequestTimeout = orDefault(c.RequestTimeout, 4*time.Second)
	c.MaxRequests = orDefault(c.MaxRequests, 128)
	c.MaxPageBytes = orDefault(c.MaxPageBytes, 32<<20)
	c.MaxCountRows = orDefault(c.MaxCountRows, 500_000)
	c.AbsentAfter = orDefault(c.AbsentAfter, 10*time.Minute)
	c.CountTimeout = orDefault(c.CountTimeout, 250*time.Millisecond)
	c.CheckpointInterval = orDefault(c.CheckpointInterval, 500*time.Millisecond)
	c.MaxLeavesBytes = orDefault(c.MaxLeavesBytes, 8<<20)
	c.MaxHistoryChains = orDefault(c.MaxHistoryChains, 100_000)
	c.HistoryTimeout = orDefault(c.HistoryTimeout, time.Minute)
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
	if err := c.ClickHouse.Validate(); err != nil {
		errs = append(errs, err)
	}
	if err := c.Kafka.Validate(); err != nil {
		errs = append(errs, err)
	}
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	d := c.withDefaults()
	check(d.BodyTimeout >= time.Millisecond && d.BodyTimeout <= 4*time.Second,
		"body timeout is %s: it must be 1 ms to 4 s", d.BodyTimeout)
	check(d.RequestTimeout >= 50*time.Millisecond && d.RequestTimeout <= 4500*time.Millisecond,
		"request timeout is %s: it must be 50 ms to 4.5 s", d.RequestTimeout)
	check(d.MaxRequests >= 1 && d.MaxRequests <= 10_000, "max requests is %d: it must be 1 to 10,000", d.MaxRequests)
	check(d.MaxPageBytes >= 1<<20, "max page bytes is %d: it must be at least 1 MiB", d.MaxPageBytes)
	check(d.MaxCountRows >= 1 && d.MaxCountRows <= 1_000_000_000,
		"max count rows is %d: it must be 1 to 1 billion", d.MaxCountRows)
	check(d.AbsentAfter >= time.Millisecond && d.AbsentAfter <= time.Hour, "absent after is %s: it must be 1 ms to 1 h", d.AbsentAfter)
	check(d.CountTimeout >= 10*time.Millisecond && d.CountTimeout <= 4*time.Second,
		"count timeout is %s: it must be 10 ms to 4 s", d.CountTimeout)
	check(d.CheckpointInterval >= 10*time.Millisecond && d.CheckpointInterval <= time.Minute,
		"checkpoint interval is %s: it must be 10 ms to 1 min", d.CheckpointInterval)
	check(d.MaxLeavesBytes >= 64<<10 && d.MaxLeavesBytes <= 64<<20,
		"max leaves bytes is %d: it must be 64 KiB to 64 MiB", d.MaxLeavesBytes)
	check(d.MaxHistoryChains >= 1000 && d.MaxHistoryChains <= 10_000_000,
		"max history chains is %d: it must be 1,000 to 10 million", d.MaxHistoryChains)
	check(d.HistoryTimeout >= 50*time.Millisecond && d.HistoryTimeout <= 10*time.Minute,
		"history timeout is %s: it must be 50 ms to 10 min", d.HistoryTimeout)
	return errors.Join(errs...)
}
