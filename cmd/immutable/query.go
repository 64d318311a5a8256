package main

import (
	"context"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/query"
)

type queryCmd struct {
	kafkaFlags
	layoutFlags
	clickhouseFlags
	masterKeyFlag
	httpFlags
	serviceFlags
	TrustedProxies    []string `help:"Addresses (CIDR) of proxies whose X-Forwarded-For is believed." placeholder:"CIDR,..."`
	OperatorWorkspace string   `help:"Name of the workspace whose keys with the scope admin may manage every workspace." default:"default" placeholder:"NAME"`
}

// Run runs until a signal.
func (c *queryCmd) Run(ctx context.Context, p *process) error {
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
	view, err := newView(s, cfg, &c.masterKeyFlag, c.TrustedProxies)
	if err != nil {
		return err
	}
	key, err := c.load()
	if err != nil {
		return err
	}
	writer, err := control.NewWriter(control.WriterConfig{
		Kafka: cfg, MasterKey: key, Partitions: layout.Partitions, Timeout: query.ChangeTimeout,
	}, p.logger)
	if err != nil {
		return err
	}
	service, err := query.New(
		query.Config{Kafka: cfg, ClickHouse: tables, OperatorWorkspace: c.OperatorWorkspace}, view, writer, s.reg, p.logger,
	)
	if err != nil {
		return err
	}
	return s.run(ctx, c.httpFlags.config(), service.Routes(),
		part{name: "control view", run: view.Run, ready: view.Ready},
		part{name: "query", run: service.Run, ready: service.Ready},
	)
}
