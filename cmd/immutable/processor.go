package main

import (
	"context"

	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/processor"
)

type processorCmd struct {
	kafkaFlags
	layoutFlags
	serviceFlags
	Instance string `help:"Name of this instance, the same for as long as the installation lives and of no other: it resumes at once after a crash." placeholder:"NAME"`
}

// Run runs until a signal.
func (c *processorCmd) Run(ctx context.Context, p *process) error {
	s := newService(p, c.serviceFlags)
	cfg := c.config()
	layout, err := c.layout(ctx, cfg.TopicPrefix, p.logger)
	if err != nil {
		return err
	}
	if err := s.checkKafka(ctx, cfg, layout); err != nil {
		return err
	}
	seal, err := processor.New(processor.Config{Kafka: cfg, Layout: layout, Instance: c.Instance}, s.reg, p.logger)
	if err != nil {
		return err
	}
	return s.run(ctx, httpserver.Config{}, nil, part{name: "processor", run: seal.Run, ready: seal.Ready})
}
