// Package diagnose asks every part of an installation whether it is as it must be: Kafka, its topics and consumer
// groups, what is configured, ClickHouse, clocks, certificates and the disk. It only asks: it writes nothing anywhere.
// (The first question about a group or a transaction makes a new Kafka cluster create the internal topics that it keeps
// for them.)
package diagnose

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/schemas"
)

// Level says how bad a finding is.
type Level string

// The levels.
const (
	// OK is as it must be.
	OK Level = "ok"
	// Warning works now and will not for ever, or protects less than it should.
	Warning Level = "warning"
	// Problem needs somebody now.
	Problem Level = "problem"
	// NotRun was not looked at: what it needs was not given, or failed.
	NotRun Level = "not run"
)

// Finding is one thing that was seen.
type Finding struct {
	// Check that found it, as in "kafka partitions".
	Check string `json:"check"`
	Level Level  `json:"level"`
	// Seen is what was seen.
	Seen string `json:"seen"`
	// Why it matters and what to Do, a command where there is one; "" where all is well.
	Why string `json:"why,omitempty"`
	Do  string `json:"do,omitempty"`
}

// Config says what to look at. Whatever it leaves out is reported as NotRun.
type Config struct {
	// Kafka is looked at where it names a broker.
	Kafka kafka.Config
	// Layout is what the topics must be.
	Layout schemas.TopicLayout
	// ClickHouse is looked at where it has a DSN.
	ClickHouse clickhouse.Config
	// MasterKey reads the master key. nil: it is not tried.
	MasterKey func() (control.MasterKey, error)
	// CertFiles are PEM files of certificates whose expiry is looked at, besides those that Kafka and ClickHouse show.
	CertFiles []string
	// Dir is a folder whose disk is looked at. "" for none.
	Dir string
	// MinFreeBytes is the room below which a disk, Dir's or one of ClickHouse's, is a problem; below four times as much
	// is a warning. Default 1 GiB.
	MinFreeBytes uint64
	// CheckTimeout is how long each check may take. Default 10 s.
	CheckTimeout time.Duration
	// SecondLook is how long after the first look a consumer group that is behind is looked at again, to see whether it
	// moves. Default 2 s.
	SecondLook time.Duration
	// BehindAfter is how old the oldest record that a consumer group has not read may be. Default 30 s.
	BehindAfter time.Duration
}

func (c *Config) setDefaults() {
	if c.MinFreeBytes == 0 {
		c.MinFreeBytes = 1 << 30
	}
	if c.CheckTimeout == 0 {
		c.CheckTimeout = 10 * time.Second
	}
	if c.SecondLook == 0 {
		c.SecondLook = 2 * time.Second
	}
	if c.BehindAfter == 0 {
		c.BehindAfter = 30 * time.Second
	}
}

// check is one question. Those that it needs must have found no Problem.
type check struct {
	name  string
	needs []*check
	run   func(ctx context.Context) []Finding

	done   chan struct{}
	found  []Finding // written before done is closed
	failed bool
}

// Run returns at least one finding of each check, in a fixed order. All run at the same time but for those that need
// others, each within CheckTimeout, so that none hides another. An error says that cfg is wrong.
func Run(ctx context.Context, cfg Config, logger *slog.Logger) ([]Finding, error) {
	cfg.setDefaults()
	var all []*check
	add := func(c *check) *check {
		c.done = make(chan struct{})
		all = append(all, c)
		return c
	}
	var cluster, tables *check
	if len(cfg.Kafka.Brokers) > 0 {
		k, err := newCluster(cfg, logger)
		if err != nil {
			return nil, err
		}
		defer k.close()
		cluster = add(&check{name: "kafka", run: k.reachable})
		on := []*check{cluster}
		add(&check{name: "kafka brokers", run: k.brokers, needs: on})
		add(&check{name: "kafka version", run: k.version, needs: on})
		add(&check{name: "kafka certificates", run: k.certificates, needs: on})
		add(&check{name: "kafka clock", run: k.clock, needs: on})
		add(&check{name: "kafka partitions", run: k.partitions, needs: on})
		add(&check{name: "kafka permissions", run: k.permissions, needs: on})
		add(&check{name: "transactions", run: k.transactions, needs: on})
		add(&check{name: "topics", run: k.topics, needs: on})
		for _, g := range groups {
			add(&check{name: "group " + g.name, run: func(ctx context.Context) []Finding { return k.group(ctx, g) }, needs: on})
		}
		add(&check{name: "checkpoints", run: k.checkpoints, needs: on})
		add(&check{name: "configuration", run: k.configured, needs: on})
	} else {
		cluster = add(notGiven("kafka", "--kafka or --data"))
	}
	if cfg.ClickHouse.DSN != "" {
		s, err := newServer(cfg)
		if err != nil {
			return nil, err
		}
		defer s.close()
		tables = add(&check{name: "clickhouse", run: s.reachable})
		on := []*check{tables}
		add(&check{name: "clickhouse version", run: s.version, needs: on})
		add(&check{name: "clickhouse certificates", run: s.certificates, needs: on})
		add(&check{name: "clickhouse clock", run: s.clock, needs: on})
		add(&check{name: "clickhouse disks", run: s.disks, needs: on})
		schema := add(&check{name: "schema", run: s.schema, needs: on})
		add(&check{name: "tables", run: s.tables, needs: []*check{schema}})
		if len(cfg.Kafka.Brokers) > 0 {
			add(&check{name: "ledger in clickhouse", run: s.holdsLedger, needs: []*check{cluster, schema}})
		}
	} else {
		add(notGiven("clickhouse", "--clickhouse or --data"))
	}
	if len(cfg.CertFiles) > 0 {
		add(&check{name: "certificate files", run: cfg.certFiles})
	}
	if cfg.Dir != "" {
		add(&check{name: "disk", run: cfg.disk})
	}
	for _, c := range all {
		go c.do(ctx, cfg.CheckTimeout)
	}
	var findings []Finding
	for _, c := range all {
		<-c.done
		findings = append(findings, c.found...)
	}
	return findings, nil
}

func notGiven(name, flags string) *check {
	return &check{name: name, run: func(context.Context) []Finding {
		return []Finding{{Level: NotRun, Seen: flags + " was not given"}}
	}}
}

// do runs a check once those that it needs have.
func (c *check) do(ctx context.Context, timeout time.Duration) {
	defer close(c.done)
	for _, n := range c.needs {
		<-n.done
		if n.failed {
			c.found = []Finding{{Check: c.name, Level: NotRun, Seen: "needs " + n.name + ", which failed"}}
			c.failed = true
			return
		}
	}
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c.found = c.run(limited)
	for i := range c.found {
		f := &c.found[i]
		f.Check = c.name
		c.failed = c.failed || f.Level == Problem || f.Level == NotRun
	}
}

func ok(format string, args ...any) []Finding {
	return []Finding{{Level: OK, Seen: fmt.Sprintf(format, args...)}}
}

// failed is a check that got no answer to what it asked.
func failed(doing string, err error) []Finding {
	seen := fmt.Sprintf("%s: %v", doing, err)
	if errors.Is(err, context.DeadlineExceeded) {
		seen = doing + ": no answer in time"
	}
	return []Finding{{
		Level: Problem, Seen: seen, Why: "the services ask the same and get no better answer",
		Do: "read the server's log of this minute; raise --check-timeout if the server is only slow",
	}}
}

// orOK is what was found, or that nothing was.
func orOK(found []Finding, format string, args ...any) []Finding {
	if len(found) > 0 {
		return found
	}
	return ok(format, args...)
}
