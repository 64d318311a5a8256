package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"time"

	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/internal/devmode"
	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/internal/telemetry"
)

type upCmd struct {
	Addr       string          `help:"Address to serve everything on." default:"127.0.0.1:8080" placeholder:"HOST:PORT"`
	Data       string          `help:"Folder for all data." default:"./data" placeholder:"DIR"`
	APIKey     string          `name:"api-key" help:"API key to create in the workspace default: imk_sk_ and letters and digits. Drawn and printed once if not given; better given in the environment." placeholder:"KEY"`
	Libchdb    string          `help:"Path of libchdb.so, the embedded ClickHouse; npm ci installs it where it is found." placeholder:"FILE"`
	MinFreeMiB int64           `name:"min-free-mib" help:"MiB of disk space below which no new events are accepted." default:"256"`
	Partitions int32           `help:"Partitions of the topics; fixed when they are created." default:"4"`
	Replicas   int16           `help:"Replicas of the topics." default:"1"`
	TLSCert    string          `help:"PEM file of a certificate: serve HTTPS." placeholder:"FILE"`
	TLSKey     string          `help:"PEM file of its key." placeholder:"FILE"`
	Kafkas     kafkaFlags      `embed:""`
	Tables     clickhouseFlags `embed:""`
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
	up, err := devmode.New(devmode.Config{
		Dir: c.Data, HTTP: httpserver.Config{Addr: c.Addr, TLSCertFile: c.TLSCert, TLSKeyFile: c.TLSKey}, Kafka: c.Kafkas.config(),
		Partitions: c.Partitions, Replicas: c.Replicas, ClickHouse: tables, Library: c.Libchdb, APIKey: c.APIKey,
		MinFreeBytes: c.MinFreeMiB << 20, Started: func(s devmode.Started) { announce(p.stdout, s, c.APIKey) },
	}, telemetry.NewRegistry(), p.logger)
	if err != nil {
		return err
	}
	return up.Run(ctx)
}

func announce(w io.Writer, s devmode.Started, chosen string) {
	key := cmp.Or(s.DrawnKey, chosen, "YOUR_KEY")
	fmt.Fprintf(w, "Immutable is up at %s after %v.\n", s.URL, s.Took.Round(10*time.Millisecond))
	switch {
	case s.DrawnKey != "":
		fmt.Fprintf(w, "API key of workspace %s, shown only this once: %s\n", devmode.DefaultWorkspace, key)
	case chosen != "":
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
