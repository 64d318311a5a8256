package devmode

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/ingest"
	"getimmutable.dev/immutable/internal/actors"
	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/internal/localkafka"
	"getimmutable.dev/immutable/processor"
	"getimmutable.dev/immutable/processor/notary"
	"getimmutable.dev/immutable/query"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/sinks/chwriter"
	"getimmutable.dev/immutable/sinks/rootlog"
	"getimmutable.dev/immutable/sinks/verifier"
)

// stopLimit is for all parts together. With a process's own end it stays below 20 s.
const stopLimit = 18 * time.Second

// topicsTimeout is for reaching Kafka and creating topics.
const topicsTimeout = time.Minute

// instance names the one processor, the one notary and the one ClickHouse writer of a data folder: after a crash they are back at once.
const instance = "0"

// Up is everything in one process.
type Up struct {
	reg    *prometheus.Registry
	logger *slog.Logger
	cfg    Config
}

// New returns an Up that has not begun.
func New(cfg Config, reg *prometheus.Registry, logger *slog.Logger) (*Up, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("up: %w", err)
	}
	return &Up{cfg: cfg, reg: reg, logger: logger}, nil
}

// Run starts everything, in order, serves until ctx ends, and stops everything, in reverse order, within 18 s. An error
// says what could not start, what has ended by itself, or what would not stop.
func (u *Up) Run(ctx context.Context) (err error) {
	began := time.Now()
	if u.cfg.Dir, err = filepath.Abs(u.cfg.Dir); err != nil {
		return fmt.Errorf("the data folder: %w", err)
	}
	unlock, err := lock(u.cfg.Dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	parts := actors.New(u.logger)
	defer func() { err = errors.Join(err, parts.Stop(stopLimit)) }()
	if err := u.start(ctx, parts, began); err != nil {
		if ctx.Err() != nil {
			return nil // asked to stop while starting: whatever failed, failed because of that
		}
		return err
	}
	return parts.Wait(ctx)
}

// start starts the parts. Those that run when it fails are stopped by the caller.
func (u *Up) start(ctx context.Context, parts *actors.Group, began time.Time) error {
	last, err := ReadUpFile(u.cfg.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		last, err = new(UpFile), nil
	}
	if err != nil {
		return err
	}
	masterKey, err := ensureMasterKey(u.cfg.Dir)
	if err != nil {
		return err
	}
	notaryKey, err := ensureNotaryKey(u.cfg.Dir)
	if err != nil {
		return err
	}
	layout := u.cfg.layout()
	now := &UpFile{TopicPrefix: layout.Prefix, Partitions: layout.Partitions, Replicas: layout.Replicas}

	// Both engines start at the same time; a start is mostly ClickHouse's.
	tables := make(chan error, 1)
	var server *child
	go func() { // ends with ctx; received from below on every path
		var err error
		server, err = u.startClickHouse(ctx, last, now)
		tables <- err
	}()
	kafkaConfig, admit, kafkaErr := u.startKafka(ctx, parts, last)
	err = <-tables
	if server != nil {
		// The embedded ClickHouse: restarted when it dies; stops after those who use it.
		parts.Start(ctx, "clickhouse", server.run)
	}
	if err := errors.Join(kafkaErr, err); err != nil {
		return err
	}
	now.Kafka = strings.Join(kafkaConfig.Brokers, ",")
	clickhouseConfig, err := u.migrate(ctx, now)
	if err != nil {
		return err
	}

	made, err := firstStart(ctx, control.WriterConfig{
		Kafka: kafkaConfig, MasterKey: masterKey, Partitions: layout.Partitions,
	}, u.cfg.APIKey, u.logger)
	if err != nil {
		return err
	}
	web, err := u.startServices(ctx, parts, services{
		kafka: kafkaConfig, clickhouse: clickhouseConfig, layout: layout, masterKey: masterKey, admit: admit,
		notaryKey: notaryKey,
	})
	if err != nil {
		return err
	}
	now.HTTP = u.url(web.Addr())
	if err := now.write(u.cfg.Dir); err != nil {
		return err
	}
	if u.cfg.Started != nil {
		started := Started{URL: now.HTTP, DrawnKey: made, Took: time.Since(began)}
		if u.cfg.APIKey != "" {
			started.DrawnKey, started.ChoseKey = "", made != ""
		}
		u.cfg.Started(started)
	}
	return nil
}

// startKafka starts the embedded Kafka, unless there is a real one, and creates the topics. admit is nil for a real one.
func (u *Up) startKafka(ctx context.Context, parts *actors.Group, last *UpFile) (cfg kafka.Config, admit func() error, err error) {
	cfg = u.cfg.Kafka
	if len(cfg.Brokers) == 0 {
		broker, err := localkafka.Start(localkafka.Config{
			Dir: filepath.Join(u.cfg.Dir, kafkaDir), Port: portOf(last.Kafka), MinFreeBytes: u.cfg.MinFreeBytes,
		}, u.logger)
		if err != nil {
			return cfg, nil, err
		}
		// The embedded Kafka: first to start, last to stop.
		parts.Start(ctx, "kafka", func(ctx context.Context) error {
			<-ctx.Done()
			return broker.Close()
		})
		cfg.Brokers, admit = []string{broker.Addr()}, broker.Admit
	}
	opts, err := cfg.Options(u.logger)
	if err != nil {
		return cfg, nil, err
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return cfg, nil, fmt.Errorf("kafka client: %w", err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, topicsTimeout)
	defer cancel()
	return cfg, admit, kafka.CreateTopics(ctx, cl, schemas.Topics(u.cfg.layout()))
}

// startClickHouse starts the embedded ClickHouse, unless there is a real one, and says in now where it is.
func (u *Up) startClickHouse(ctx context.Context, last, now *UpFile) (*child, error) {
	if u.cfg.ClickHouse.DSN != "" {
		opts, err := u.cfg.ClickHouse.Options()
		if err != nil {
			return nil, err
		}
		now.ClickHouseNative, now.Database = strings.Join(opts.Addr, ","), opts.Auth.Database
		now.ClickHouseUser, now.ClickHousePassword = opts.Auth.Username, opts.Auth.Password
		return nil, nil //nolint:nilnil // none is needed
	}
	c, err := startChild(ctx, &u.cfg, last, u.logger)
	if err != nil {
		return nil, err
	}
	dsn, err := url.Parse(c.server.DSN())
	if err != nil {
		return c, fmt.Errorf("reading the embedded clickhouse's DSN: %w", err)
	}
	now.ClickHouseHTTP, now.ClickHouseNative = "http://"+c.server.HTTPAddr(), c.server.NativeAddr()
	now.ClickHouseUser, now.ClickHousePassword = c.server.User(), c.server.Password()
	now.Database = strings.TrimPrefix(dsn.Path, "/")
	return c, nil
}

// DSN is where the tables are, for internal/clickhouse.
func (f *UpFile) DSN() string {
	dsn := url.URL{
		Scheme: "clickhouse", User: url.UserPassword(f.ClickHouseUser, f.ClickHousePassword), Host: f.ClickHouseNative,
		Path: "/" + f.Database,
	}
	return dsn.String()
}

// migrate brings the tables up to date.
func (u *Up) migrate(ctx context.Context, now *UpFile) (clickhouse.Config, error) {
	cfg := u.cfg.ClickHouse
	if cfg.DSN == "" {
		cfg.DSN = now.DSN()
	}
	if err := clickhouse.CreateDatabase(ctx, cfg); err != nil {
		return cfg, err
	}
	conn, err := clickhouse.Open(cfg)
	if err != nil {
		return cfg, err
	}
	defer func() { _ = conn.Close() }() // nothing is pending on it
	// At the first start these are no news: quiet.
	return cfg, clickhouse.Migrate(ctx, conn, slog.New(slog.DiscardHandler))
}

// services is what the services share.
type services struct {
	admit      func() error
	kafka      kafka.Config
	clickhouse clickhouse.Config
	layout     schemas.TopicLayout
	masterKey  control.MasterKey
	notaryKey  string // path
}

// startServices starts what production runs as services of their own, in the order in which an event passes them but
// for HTTP, which comes last and stops first.
func (u *Up) startServices(ctx context.Context, parts *actors.Group, s services) (*httpserver.Server, error) {
	view, err := control.NewView(control.ViewConfig{Kafka: s.kafka, MasterKey: s.masterKey}, u.reg, u.logger)
	if err != nil {
		return nil, err
	}
	seal, err := processor.New(processor.Config{Kafka: s.kafka, Layout: s.layout, Instance: instance}, u.reg, u.logger)
	if err != nil {
		return nil, err
	}
	signer, err := notary.New(notary.Config{
		Kafka: s.kafka, Layout: s.layout, ClickHouse: s.clickhouse, KeyFile: s.notaryKey,
		LockFile: filepath.Join(u.cfg.Dir, notaryLock), Instance: instance, EpochInterval: u.cfg.EpochInterval, WitnessPolicy: u.cfg.WitnessPolicy,
	}, u.reg, u.logger)
	if err != nil {
		return nil, err
	}
	writer, err := chwriter.New(chwriter.Config{Kafka: s.kafka, ClickHouse: s.clickhouse, Instance: instance}, view, u.reg, u.logger)
	if err != nil {
		return nil, err
	}
	checkpoints, err := rootlog.New(rootlog.Config{Kafka: s.kafka, ClickHouse: s.clickhouse, Instance: instance}, u.reg, u.logger)
	if err != nil {
		return nil, err
	}
	var check *verifier.Verifier // nil: never
	if u.cfg.VerifyInterval != 0 {
		check, err = verifier.New(verifier.Config{
			Kafka: s.kafka, ClickHouse: s.clickhouse, Interval: u.cfg.VerifyInterval, HistoryLeaves: u.cfg.VerifyLeaves,
		}, writer.Written, u.reg, u.logger)
		if err != nil {
			return nil, err
		}
	}
	changes, err := control.NewWriter(control.WriterConfig{
		Kafka: s.kafka, MasterKey: s.masterKey, Partitions: s.layout.Partitions, Timeout: query.ChangeTimeout,
	}, u.logger)
	if err != nil {
		return nil, err
	}
	timeline, err := query.New(
		query.Config{Kafka: s.kafka, ClickHouse: s.clickhouse, OperatorWorkspace: DefaultWorkspace}, view, changes, u.reg, u.logger,
	)
	if err != nil {
		return nil, err
	}
	door, err := ingest.New(ingest.Config{
		Kafka: s.kafka, Partitions: s.layout.Partitions, Admit: s.admit,
	}, view, u.reg, u.logger)
	if err != nil {
		return nil, err
	}
	checks := []httpserver.Check{
		{Name: "control", Ready: view.Ready},
		{Name: "processor", Ready: seal.Ready},
		{Name: "notary", Ready: signer.Ready},
		{Name: "clickhouse_writer", Ready: writer.Ready},
		{Name: "root_log_writer", Ready: checkpoints.Ready},
		{Name: "query", Ready: timeline.Ready},
		{Name: "ingest", Ready: door.Ready},
		// SIGTERM takes it out of its load balancer first.
		{Name: "process", Ready: func(context.Context) error {
			if ctx.Err() != nil {
				return errors.New("stopping")
			}
			return nil
		}},
	}
	health := httpserver.HealthRoutes(u.reg, checks...)
	web, err := u.listen(u.cfg.HTTP, slices.Concat(door.Routes(), timeline.Routes(), health))
	if err != nil {
		return nil, err
	}
	if u.cfg.Internal.Addr != "" {
		internal, err := u.listen(u.cfg.Internal, slices.Concat(health, httpserver.DebugRoutes()))
		if err != nil {
			return nil, errors.Join(err, web.Close())
		}
		parts.Start(ctx, "internal address", internal.Run) // answers to the end
		u.logger.InfoContext(ctx, "serving health, metrics and profiles", slog.String("address", internal.Addr()))
	}

	parts.Start(ctx, "control view", view.Run)           // who may do what
	parts.Start(ctx, "clickhouse writer", writer.Run)    // ledger -> ClickHouse
	parts.Start(ctx, "root log writer", checkpoints.Run) // checkpoints -> ClickHouse
	if check != nil {
		parts.Start(ctx, "verifier", check.Run) // ClickHouse and checkpoints -> events about faults
	}
	parts.Start(ctx, "notary", signer.Run)  // ledger -> checkpoints
	parts.Start(ctx, "processor", seal.Run) // events -> ledger
	parts.Start(ctx, "query", timeline.Run) // answers reads until HTTP has drained
	parts.Start(ctx, "ingest", door.Run)    // accepts events until HTTP has drained
	parts.Start(ctx, "http", web.Run)       // stops first: no new work, then the requests in hand
	// "It is up" is not said before the first event would be accepted. Sealing may begin later.
	for _, ready := range []func(context.Context) error{door.Ready, timeline.Ready} {
		if err := await(ctx, parts, ready); err != nil {
			return nil, err
		}
	}
	return web, nil
}

// listen returns a server that runs where it is told to, once it is run.
func (u *Up) listen(cfg httpserver.Config, routes []httpserver.Route) (*httpserver.Server, error) {
	server, err := httpserver.New(cfg, httpserver.NewRouter(u.logger, routes...), u.logger)
	if err != nil {
		return nil, err
	}
	return server, server.Listen()
}

// readyTimeout is for the services to be ready once the engines are.
const readyTimeout = 30 * time.Second

// await waits until ready returns nil, or a part has ended.
func await(ctx context.Context, parts *actors.Group, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		pause, stop := context.WithTimeout(ctx, 10*time.Millisecond)
		ended := parts.Wait(pause)
		stop()
		if ended != nil {
			return ended
		}
		if ctx.Err() != nil {
			return fmt.Errorf("waiting for the services: %w", err)
		}
	}
}

// url is what a user types: the address as bound, or this machine's where all addresses are.
func (u *Up) url(addr string) string {
	scheme := "http"
	if u.cfg.HTTP.TLSCertFile != "" {
		scheme = "https"
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return scheme + "://" + addr
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return scheme + "://" + net.JoinHostPort(host, port)
}
