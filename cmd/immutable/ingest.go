package main

import (
	"context"
	"fmt"
	"net/netip"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/ingest"
	"getimmutable.dev/immutable/internal/kafka"
)

type ingestCmd struct {
	kafkaFlags
	layoutFlags
	masterKeyFlag
	httpFlags
	serviceFlags
	TrustedProxies []string `help:"Addresses (CIDR) of proxies whose X-Forwarded-For is believed." placeholder:"CIDR,..."`
}

// Run runs until a signal.
func (c *ingestCmd) Run(ctx context.Context, p *process) error {
	s := newService(p, c.serviceFlags)
	cfg := c.kafkaFlags.config()
	layout, err := c.layout(ctx, cfg.TopicPrefix, p.logger)
	if err != nil {
		return err
	}
	if err := s.checkKafka(ctx, cfg, layout); err != nil {
		return err
	}
	view, err := newView(s, cfg, &c.masterKeyFlag, c.TrustedProxies)
	if err != nil {
		return err
	}
	service, err := ingest.New(ingest.Config{Kafka: cfg, Partitions: layout.Partitions}, view, s.reg, p.logger)
	if err != nil {
		return err
	}
	return s.run(ctx, c.httpFlags.config(), service.Routes(),
		part{name: "control view", run: view.Run, ready: view.Ready},
		part{name: "ingest", run: service.Run, ready: service.Ready},
	)
}

func newView(s *service, cfg kafka.Config, masterKey *masterKeyFlag, proxies []string) (*control.View, error) {
	key, err := masterKey.load()
	if err != nil {
		return nil, err
	}
	trusted := make([]netip.Prefix, len(proxies))
	for i, text := range proxies {
		if trusted[i], err = netip.ParsePrefix(text); err != nil {
			return nil, fmt.Errorf("--trusted-proxies: %w", err)
		}
	}
	return control.NewView(control.ViewConfig{Kafka: cfg, MasterKey: key, TrustedProxies: trusted}, s.reg, s.logger)
}
