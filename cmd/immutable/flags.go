package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/internal/devmode"
	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/schemas"
)

// askTimeout is how long a command waits for Kafka or ClickHouse to answer a question.
const askTimeout = 30 * time.Second

// kafkaFlags say where Kafka is.
type kafkaFlags struct {
	Kafka        []string `help:"Kafka brokers to ask first." placeholder:"HOST:PORT,..."`
	TopicPrefix  string   `help:"What stands before the name of every topic, consumer group and transactional id." default:"immutable."`
	TLS          bool     `name:"kafka-tls" help:"Use TLS to Kafka; implied by the next three."`
	TLSCA        string   `name:"kafka-tls-ca" help:"PEM file of the certificates to trust instead of the system's." placeholder:"FILE"`
	TLSCert      string   `name:"kafka-tls-cert" help:"PEM file of this client's certificate." placeholder:"FILE"`
	TLSKey       string   `name:"kafka-tls-key" help:"PEM file of this client's key." placeholder:"FILE"`
	SASL         string   `name:"kafka-sasl" help:"SASL mechanism: PLAIN or SCRAM-SHA-512." placeholder:"MECHANISM"`
	SASLUser     string   `name:"kafka-sasl-user" help:"SASL user." placeholder:"NAME"`
	SASLPassword string   `name:"kafka-sasl-password-file" help:"File that holds the SASL password; read again for each connection." placeholder:"FILE"`
}

func (f *kafkaFlags) config() kafka.Config {
	return kafka.Config{
		Brokers: f.Kafka, TopicPrefix: f.TopicPrefix, ClientID: "immutable",
		TLS: kafka.TLSConfig{
			Enabled: f.TLS || f.TLSCA != "" || f.TLSCert != "", CAFile: f.TLSCA, CertFile: f.TLSCert, KeyFile: f.TLSKey,
		},
		SASL: kafka.SASLConfig{Mechanism: f.SASL, User: f.SASLUser, PasswordFile: f.SASLPassword},
	}
}

// layoutFlags say what the topics are.
type layoutFlags struct {
	Partitions          int32 `help:"Partitions of the topics events, ledger, heads and dedup; fixed for their life." default:"12"`
	Replicas            int16 `help:"Replicas of every topic." default:"3"`
	AllowSingleReplica  bool  `help:"Allow one replica instead: the loss of one disk is then the loss of accepted events."`
	LedgerRetentionDays int   `help:"Days that the topic ledger keeps records for those who read it late." default:"30"`
}

// layout says loudly what a single replica means.
func (f *layoutFlags) layout(ctx context.Context, prefix string, logger *slog.Logger) (schemas.TopicLayout, error) {
	l := schemas.TopicLayout{
		Prefix: prefix, Partitions: f.Partitions, Replicas: f.Replicas, LedgerRetentionDays: f.LedgerRetentionDays,
	}
	if f.AllowSingleReplica {
		l.Replicas = 1
		logger.WarnContext(ctx, "topics have a single replica: the loss of one disk is the loss of accepted events")
	}
	switch {
	case l.Partitions < 1 || l.LedgerRetentionDays < 1:
		return l, errors.New("--partitions and --ledger-retention-days must be at least 1")
	case l.Replicas < 3 && !f.AllowSingleReplica:
		return l, errors.New("--replicas must be at least 3; --allow-single-replica if this is not production")
	}
	return l, nil
}

// clickhouseFlags say where ClickHouse is.
type clickhouseFlags struct {
	ClickHouse   string `name:"clickhouse" help:"ClickHouse on its native protocol; ?secure=true for TLS." placeholder:"clickhouse://USER:PASSWORD@HOST:PORT/DATABASE"`
	PasswordFile string `name:"clickhouse-password-file" help:"File that holds the password instead." placeholder:"FILE"`
	CA           string `name:"clickhouse-tls-ca" help:"PEM file of the certificates to trust instead of the system's." placeholder:"FILE"`
}

func (f *clickhouseFlags) config() clickhouse.Config {
	return clickhouse.Config{DSN: f.ClickHouse, PasswordFile: f.PasswordFile, TLSCAFile: f.CA}
}

// httpFlags are of a service that the outside talks to.
type httpFlags struct {
	Addr    string `help:"Address to serve the API on." default:":8080" placeholder:"HOST:PORT"`
	TLSCert string `help:"PEM file of a certificate: serve HTTPS." placeholder:"FILE"`
	TLSKey  string `help:"PEM file of its key." placeholder:"FILE"`
}

func (f *httpFlags) config() httpserver.Config {
	return httpserver.Config{Addr: f.Addr, TLSCertFile: f.TLSCert, TLSKeyFile: f.TLSKey}
}

// masterKeyFlag is of those that read or write what is configured.
type masterKeyFlag struct {
	MasterKeyFile string `help:"File of the installation's master key, the same for all its services." placeholder:"FILE"`
}

func (f *masterKeyFlag) load() (control.MasterKey, error) {
	if f.MasterKeyFile == "" {
		return control.MasterKey{}, errors.New("--master-key-file is required")
	}
	return control.LoadMasterKey(f.MasterKeyFile)
}

// targetFlags are of commands that work on an installation: one that flags describe, or a running `up`.
type targetFlags struct {
	kafkaFlags
	masterKeyFlag
	Data string `help:"Data folder of a running immutable up; instead of --kafka and --master-key-file." placeholder:"DIR"`
}

// upFile is nil where no data folder was given.
func (f *targetFlags) upFile() (*devmode.UpFile, error) {
	if f.Data == "" {
		return nil, nil //nolint:nilnil // none was given
	}
	return devmode.ReadUpFile(f.Data)
}

// kafkaConfig of the installation.
func (f *targetFlags) kafkaConfig() (kafka.Config, error) {
	cfg := f.config()
	up, err := f.upFile()
	if err != nil {
		return cfg, err
	}
	if up != nil && len(cfg.Brokers) == 0 {
		cfg.Brokers, cfg.TopicPrefix = up.Brokers(), up.TopicPrefix
	}
	if len(cfg.Brokers) == 0 {
		return cfg, errors.New("--kafka or --data is required")
	}
	return cfg, cfg.Validate()
}

// writer of what is configured in the installation.
func (f *targetFlags) writer(ctx context.Context, logger *slog.Logger) (*control.Writer, error) {
	cfg, err := f.kafkaConfig()
	if err != nil {
		return nil, err
	}
	var key control.MasterKey
	if f.Data != "" && f.MasterKeyFile == "" {
		key, err = devmode.MasterKey(f.Data)
	} else {
		key, err = f.load()
	}
	if err != nil {
		return nil, err
	}
	cl, err := newClient(cfg, logger)
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	events := cfg.Topic(schemas.TopicEvents)
	topics, err := kadm.NewClient(cl).ListTopics(ctx, events)
	if err == nil {
		err = topics.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("asking Kafka at %v for topic %s: %w", cfg.Brokers, events, err)
	}
	return control.NewWriter(control.WriterConfig{
		Kafka: cfg, MasterKey: key, Partitions: int32(len(topics[events].Partitions)),
	}, logger)
}

func newClient(cfg kafka.Config, logger *slog.Logger) (*kgo.Client, error) {
	opts, err := cfg.Options(logger)
	if err != nil {
		return nil, err
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, fmt.Errorf("kafka client: %w", err)
	}
	return cl, nil
}
