// Package kafka is what every service shares of Kafka: how to reach a cluster, what things are called in it, and
// whether its topics are what this version needs. Producing and consuming is each service's own, with franz-go.
package kafka

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// SASL mechanisms.
const (
	MechanismPlain       = "PLAIN"
	MechanismScramSHA512 = "SCRAM-SHA-512"
)

// Config says how to reach a Kafka cluster and what Immutable's things are called in it.
type Config struct {
	// Brokers to ask first, host:port. At least one.
	Brokers []string
	// TopicPrefix stands before the name of every topic, group and transactional id. "" is a prefix too; the
	// customary one is schemas.DefaultTopicPrefix.
	TopicPrefix string
	// ClientID names this process in the brokers' logs and quotas. Default "immutable".
	ClientID string
	TLS      TLSConfig
	SASL     SASLConfig
}

// TLSConfig is about the connections to the brokers.
type TLSConfig struct {
	// CAFile holds the PEM certificates to trust. Default: the system's.
	CAFile string
	// CertFile and KeyFile are the PEM certificate and key that identify this client. Both or neither.
	CertFile, KeyFile string
	// Enabled turns TLS on; the files need it.
	Enabled bool
}

// SASLConfig is how this client says who it is.
type SASLConfig struct {
	// Mechanism is "" (no SASL), MechanismPlain or MechanismScramSHA512.
	Mechanism string
	User      string
	// PasswordFile holds the password; one newline at its end is not part of it. It is read again for each new
	// connection, so a rotated password needs no restart.
	PasswordFile string
}

// Validate says what is wrong with c. It reads no file.
func (c *Config) Validate() error {
	if len(c.Brokers) == 0 {
		return errors.New("kafka: no broker is given")
	}
	for _, b := range c.Brokers {
		if _, _, err := net.SplitHostPort(b); err != nil {
			return fmt.Errorf("kafka: broker %q: %w", b, err)
		}
	}
	t := c.TLS
	if !t.Enabled && (t.CAFile != "" || t.CertFile != "" || t.KeyFile != "") {
		return errors.New("kafka: TLS files are given, but TLS is off")
	}
	if (t.CertFile == "") != (t.KeyFile == "") {
		return errors.New("kafka: a TLS certificate and its key go together: set both or neither")
	}
	switch c.SASL.Mechanism {
	case "":
		if c.SASL.User != "" || c.SASL.PasswordFile != "" {
			return errors.New("kafka: a SASL user or password is given, but no mechanism")
		}
	case MechanismPlain, MechanismScramSHA512:
		if c.SASL.User == "" || c.SASL.PasswordFile == "" {
			return fmt.Errorf("kafka: SASL %s needs a user and a password file", c.SASL.Mechanism)
		}
	default:
		return fmt.Errorf("kafka: SASL mechanism %q is neither %s nor %s", c.SASL.Mechanism, MechanismPlain, MechanismScramSHA512)
	}
	return nil
}

// Topic returns the full name of a topic.
func (c *Config) Topic(name string) string { return c.TopicPrefix + name }

// Group returns the full name of a consumer group. Transactional ids take the same prefix.
func (c *Config) Group(name string) string { return c.TopicPrefix + name }

// Options returns what every client of the cluster has in common: brokers, client id, TLS, SASL, and a log of warnings.
// What a client does (isolation, offsets, linger, partitioner) is its own to say. The files that c names are read
// here, so that a wrong path fails at start; the password again for each connection.
func (c *Config) Options(logger *slog.Logger) ([]kgo.Opt, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	clientID := c.ClientID
	if clientID == "" {
		clientID = "immutable"
	}
	opts := []kgo.Opt{
		kgo.SeedBrokers(c.Brokers...),
		kgo.ClientID(clientID),
		kgo.WithLogger(clientLogger{logger}),
	}
	if c.TLS.Enabled {
		tlsConfig, err := c.TLS.Load()
		if err != nil {
			return nil, fmt.Errorf("kafka: %w", err)
		}
		dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: tlsConfig}
		opts = append(opts, kgo.Dialer(dialer.DialContext))
	}
	if c.SASL.Mechanism != "" {
		if _, err := c.SASL.password(); err != nil {
			return nil, fmt.Errorf("kafka: %w", err)
		}
		opts = append(opts, kgo.SASL(c.SASL.mechanism()))
	}
	return opts, nil
}

// Load reads the files; nil where TLS is off.
func (t *TLSConfig) Load() (*tls.Config, error) {
	if !t.Enabled {
		return nil, nil //nolint:nilnil // TLS is off
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("reading the TLS authorities: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no PEM certificate", t.CAFile)
		}
	}
	if t.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("loading the TLS certificate: %w", err)
		}
		cfg.Certificates = []tls.Certificate{cert}
	}
	return cfg, nil
}

func (s *SASLConfig) password() (string, error) {
	b, err := os.ReadFile(s.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("reading the SASL password: %w", err)
	}
	password := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	if password == "" {
		return "", fmt.Errorf("the SASL password in %s is empty", s.PasswordFile)
	}
	return password, nil
}

func (s SASLConfig) mechanism() sasl.Mechanism {
	if s.Mechanism == MechanismPlain {
		return plain.Plain(func(context.Context) (plain.Auth, error) {
			password, err := s.password()
			return plain.Auth{User: s.User, Pass: password}, err
		})
	}
	return scram.Sha512(func(context.Context) (scram.Auth, error) {
		password, err := s.password()
		return scram.Auth{User: s.User, Pass: password}, err
	})
}

// clientLogger gives franz-go's warnings and errors to slog. What it says besides is of interest to its developers.
type clientLogger struct{ logger *slog.Logger }

// Level implements kgo.Logger.
func (clientLogger) Level() kgo.LogLevel { return kgo.LogLevelWarn }

// Log implements kgo.Logger.
func (l clientLogger) Log(level kgo.LogLevel, msg string, keyvals ...any) {
	severity := slog.LevelWarn
	if level == kgo.LogLevelError {
		severity = slog.LevelError
	}
	ctx := context.Background() //nolint:forbidigo // kgo.Logger has none
	l.logger.LogAttrs(ctx, severity, "kafka client", slog.String("detail", msg), slog.Group("with", keyvals...))
}
