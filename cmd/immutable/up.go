package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/internal/devmode"
	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/internal/telemetry"
)

type upCmd struct {
	Addr               string          `help:"Address to serve everything on." default:"127.0.0.1:8080" placeholder:"HOST:PORT"`
	InternalAddr       string          `help:"Address to serve /livez, /readyz, /metrics and /debug/pprof on as well. Default: none." placeholder:"HOST:PORT"`
	Data               string          `help:"Folder for all data." default:"./data" placeholder:"DIR"`
	APIKey             string          `name:"api-key" help:"API key to create in the workspace default: imk_sk_ and letters and digits. Drawn and printed once if not given; better given in the environment." placeholder:"KEY"`
	Libchdb            string          `help:"Path of libchdb.so, the embedded ClickHouse; npm ci installs it where it is found." placeholder:"FILE"`
	MinFreeMiB         int64           `name:"min-free-mib" help:"MiB of disk space below which no new events are accepted." default:"256"`
	Partitions         int32           `help:"Partitions of the topics; fixed when they are created." default:"4"`
	Replicas           int16           `help:"Replicas of every topic. Default: 1 with the embedded Kafka, 3 with --kafka."`
	AllowSingleReplica bool            `help:"With --kafka, allow one replica instead: the loss of one disk is then the loss of accepted events."`
	TLSCert            string          `help:"PEM file of a certificate: serve HTTPS." placeholder:"FILE"`
	TLSKey             string          `help:"PEM file of its key." placeholder:"FILE"`
	EpochInterval      time.Duration   `help:"How often a checkpoint is made when there are new events." default:"10s" placeholder:"DURATION"`
	Verify             scheduleFlags   `embed:""`
	Witnesses          string          `help:"C2SP tlog-policy file, the one that verifiers use: its witnesses are asked to cosign each checkpoint." placeholder:"FILE"`
	Kafkas             kafkaFlags      `embed:""`
	Tables             clickhouseFlags `embed:""`
}

// Help is shown by --help.
func (upCmd) Help() string {
	return "Kafka and ClickHouse are embedded unless --kafka and --clickhouse name real ones. The embedded Kafka has one replica, on " +
		"this machine's disk: for evaluation, and for single machines. Where everything listens is in DATA/up.json."
}

// Run runs until a signal.
func (c *upCmd) Run(ctx context.Context, p *process) error {
	var tables clickhouse.Config
	if c.Tables.ClickHouse != "" {
		tables = c.Tables.config()
	}
	replicas, err := c.replicas(ctx, p.logger)
	if err != nil {
		return err
	}
	policy, err := readPolicy(c.Witnesses)
	if err != nil {
		return err
	}
	up, err := devmode.New(devmode.Config{
		Dir: c.Data, HTTP: httpserver.Config{Addr: c.Addr, TLSCertFile: c.TLSCert, TLSKeyFile: c.TLSKey},
		Internal: httpserver.Config{Addr: c.InternalAddr, WriteTimeout: profileTimeout}, Kafka: c.Kafkas.config(),
		Partitions: c.Partitions, Replicas: replicas, ClickHouse: tables, EpochInterval: c.EpochInterval, WitnessPolicy: policy,
		VerifyInterval: c.Verify.VerifyInterval, VerifyLeaves: c.Verify.VerifyLeaves,
		Library: c.Libchdb, APIKey: c.APIKey, MinFreeBytes: c.MinFreeMiB << 20, Started: func(s devmode.Started) { announce(p.stdout, s, c.APIKey) },
	}, telemetry.NewRegistry(), p.logger)
	if err != nil {
		return err
	}
	return up.Run(ctx)
}

// replicas of the topics. A Kafka elsewhere is held to what the services hold theirs to.
func (c *upCmd) replicas(ctx context.Context, logger *slog.Logger) (int16, error) {
	if len(c.Kafkas.Kafka) > 0 {
		flags := layoutFlags{
			Partitions: c.Partitions, Replicas: cmp.Or(c.Replicas, 3), AllowSingleReplica: c.AllowSingleReplica,
			LedgerRetentionDays: devmode.LedgerRetentionDays,
		}
		l, err := flags.layout(ctx, c.Kafkas.TopicPrefix, logger)
		return l.Replicas, err
	}
	if c.Replicas > 1 {
		return 0, errors.New("the embedded Kafka has a single replica: --replicas is for --kafka")
	}
	logger.WarnContext(ctx, "the embedded kafka keeps a single replica of every event, on this machine's disk: for evaluation, not for production")
	return 1, nil
}

// announce shows an API key's text only where this start has made the key: output ends in logs.
func announce(w io.Writer, s devmode.Started, chosen string) {
	key := "YOUR_KEY"
	fmt.Fprintf(w, "Immutable is up at %s after %v.\n", s.URL, s.Took.Round(10*time.Millisecond))
	switch {
	case s.DrawnKey != "":
		key = s.DrawnKey
		fmt.Fprintf(w, "API key of workspace %s, shown only this once: %s\n", devmode.DefaultWorkspace, key)
	case s.ChoseKey:
		key = chosen
		fmt.Fprintf(w, "API key of workspace %s, as chosen: %s\n", devmode.DefaultWorkspace, key)
	default:
		fmt.Fprintln(w, "The first start printed an API key; `immutable keys create --data DIR --name NAME` makes another.")
	}
	fmt.Fprintf(w, `
Report a change:

  curl -sS %[1]s/api/v1/events -H 'Authorization: Bearer %[2]s' -H 'Content-Type: application/json' \
    -d '{"actor_id":"me","action":"deployment.started","resource":"service","resource_id":"api-gateway"}'

What changed?

  curl -sS '%[1]s/api/v1/events?resource_id=api-gateway&limit=20' -H 'Authorization: Bearer %[2]s'

Ctrl-C stops it; starting again finds every event.
`, s.URL, key)
}
