package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"getimmutable.dev/immutable/internal/actors"
	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/internal/telemetry"
	"getimmutable.dev/immutable/schemas"
)

// stopLimit is for everything that a service has in hand when it is asked to stop.
const stopLimit = 18 * time.Second

// profileTimeout is what an answer of the internal address may take: profiles of up to five minutes.
const profileTimeout = 6 * time.Minute

// serviceFlags are of every service.
type serviceFlags struct {
	InternalAddr string `help:"Address to serve /livez, /readyz, /metrics and /debug/pprof on." default:"127.0.0.1:9090" placeholder:"HOST:PORT"`
}

// part is one thing that a service runs.
type part struct {
	run   func(ctx context.Context) error
	ready func(ctx context.Context) error // nil: says nothing of readiness
	name  string
}

// service is one subcommand's process.
type service struct {
	logger *slog.Logger
	reg    *prometheus.Registry
	flags  serviceFlags
}

func newService(p *process, flags serviceFlags) *service {
	return &service{logger: p.logger, reg: telemetry.NewRegistry(), flags: flags}
}

// checkKafka refuses to start on topics that are not what they must be.
func (s *service) checkKafka(ctx context.Context, cfg kafka.Config, layout schemas.TopicLayout) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	cl, err := newClient(cfg, s.logger)
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if err := kafka.CheckTopics(ctx, cl, schemas.Topics(layout)); err != nil {
		return fmt.Errorf("not starting: %w", err)
	}
	return nil
}

// checkClickHouse refuses to start on tables that are not this version's. A ClickHouse that is away is no reason.
func (s *service) checkClickHouse(ctx context.Context, cfg clickhouse.Config) error {
	conn, err := clickhouse.Open(cfg)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // nothing is pending on it
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	err = clickhouse.CheckSchema(ctx, conn)
	if clickhouse.IsSchemaError(err) {
		return fmt.Errorf("not starting: %w", err)
	}
	if err != nil {
		s.logger.WarnContext(ctx, "clickhouse does not answer; starting all the same", slog.Any("error", err))
	}
	return nil
}

// run runs the parts, and last of all the API if there are routes, until ctx ends or one of them does. They stop in
// reverse order, so a request in hand finds everything it needs; the internal address answers to the end.
func (s *service) run(ctx context.Context, api httpserver.Config, routes []httpserver.Route, parts ...part) (err error) {
	var checks []httpserver.Check
	for _, p := range parts {
		if p.ready != nil {
			checks = append(checks, httpserver.Check{Name: p.name, Ready: p.ready})
		}
	}
	// SIGTERM takes the service out of its load balancer first.
	checks = append(checks, httpserver.Check{Name: "process", Ready: func(context.Context) error {
		if ctx.Err() != nil {
			return errors.New("stopping")
		}
		return nil
	}})
	internal, err := httpserver.New(
		httpserver.Config{Addr: s.flags.InternalAddr, WriteTimeout: profileTimeout},
		httpserver.NewRouter(s.logger, append(httpserver.HealthRoutes(s.reg, checks...), httpserver.DebugRoutes()...)...),
		s.logger,
	)
	if err != nil {
		return err
	}
	servers := []part{{name: "internal address", run: internal.Run}}
	if err := internal.Listen(); err != nil {
		return err
	}
	if len(routes) > 0 {
		web, err := httpserver.New(api, httpserver.NewRouter(s.logger, routes...), s.logger)
		if err == nil {
			err = web.Listen()
		}
		if err != nil {
			return errors.Join(err, internal.Close())
		}
		parts = append(parts, part{name: "http", run: web.Run})
		s.logger.InfoContext(ctx, "serving", slog.String("address", web.Addr()))
	}
	s.logger.InfoContext(ctx, "serving health, metrics and profiles", slog.String("address", internal.Addr()))

	group := actors.New(s.logger)
	defer func() { err = errors.Join(err, group.Stop(stopLimit)) }()
	for _, p := range append(servers, parts...) {
		group.Start(ctx, p.name, p.run)
	}
	return group.Wait(ctx)
}
