package main

import (
	"context"
	"time"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/sinks/chwriter"
	"getimmutable.dev/immutable/sinks/rootlog"
	"getimmutable.dev/immutable/sinks/verifier"
)

type sinksCmd struct {
	kafkaFlags
	layoutFlags
	clickhouseFlags
	serviceFlags
	scheduleFlags
	Instance string `help:"Name of this instance, the same for as long as the installation lives and of no other: it resumes at once after a crash." placeholder:"NAME"`
}

// scheduleFlags say how ClickHouse is verified all the time.
type scheduleFlags struct {
	VerifyInterval time.Duration `help:"Pause between two verifications of what is in ClickHouse: of what is new, and of a part of the history. 0 is never." default:"5m" placeholder:"DURATION"`
	VerifyLeaves   int           `help:"Leaves of the history that each of them takes." default:"50000"`
}

// Run runs until a signal.
func (c *sinksCmd) Run(ctx context.Context, p *process) error {
	s := newService(p, c.serviceFlags)
	cfg, tables := c.kafkaFlags.config(), c.clickhouseFlags.config()
	layout, err := c.layout(ctx, cfg.TopicPrefix, p.logger)
	if err != nil {
		return err
	}
	if err := s.checkKafka(ctx, cfg, layout); err != nil {
		return err
	}
	if err := s.checkClickHouse(ctx, tables); err != nil {
		return err
	}
	// What was redacted is all that it has to know of the configuration, and takes no master key.
	view, err := control.NewView(control.ViewConfig{Kafka: cfg, RedactionsOnly: true}, s.reg, p.logger)
	if err != nil {
		return err
	}
	writer, err := chwriter.New(chwriter.Config{Kafka: cfg, ClickHouse: tables, Instance: c.Instance}, view, s.reg, p.logger)
	if err != nil {
		return err
	}
	log, err := rootlog.New(rootlog.Config{Kafka: cfg, ClickHouse: tables, Instance: c.Instance}, s.reg, p.logger)
	if err != nil {
		return err
	}
	parts := []part{
		{name: "control view", run: view.Run, ready: view.Ready},
		{name: "clickhouse writer", run: writer.Run, ready: writer.Ready},
		{name: "root log writer", run: log.Run, ready: log.Ready},
	}
	if c.VerifyInterval != 0 {
		v, err := verifier.New(verifier.Config{
			Kafka: cfg, ClickHouse: tables, Interval: c.VerifyInterval, HistoryLeaves: c.VerifyLeaves,
		}, writer.Written, s.reg, p.logger)
		if err != nil {
			return err
		}
		// What it finds is no reason not to write.
		parts = append(parts, part{name: "verifier", run: v.Run})
	}
	return s.run(ctx, httpserver.Config{}, nil, parts...)
}
