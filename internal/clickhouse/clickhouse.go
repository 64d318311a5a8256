// Package clickhouse opens ClickHouse and brings its tables to the version that this program was built with.
package clickhouse

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

// Config says where ClickHouse is.
type Config struct {
	// DSN is clickhouse://USER:PASSWORD@HOST:PORT[,HOST:PORT...]/DATABASE on the native protocol (port 9000, or 9440
	// with TLS); a database must be named. ?secure=true turns TLS on, with tls_server_name and skip_verify; other
	// parameters are those of clickhouse-go, or settings of ClickHouse. Required.
	DSN string
	// PasswordFile, where set, holds the password instead of the DSN; white space around it is ignored.
	PasswordFile string
	// TLSCAFile holds the PEM certificates to trust instead of the system's. TLS must be on.
	TLSCAFile string
	// MaxOpenConns, default 16.
	MaxOpenConns int
	// DialTimeout is for connecting and for waiting for a free connection. Default 5 s.
	DialTimeout time.Duration
}

// Validate reports what Open would.
func (c *Config) Validate() error {
	_, err := c.Options()
	return err
}

// Options returns the driver's options, all that matter set explicitly, for Open and for writers that speak the native
// protocol themselves.
func (c *Config) Options() (*clickhouse.Options, error) {
	opts, err := clickhouse.ParseDSN(c.DSN)
	if err != nil {
		return nil, fmt.Errorf("reading the clickhouse DSN: %w", err)
	}
	switch {
	case opts.Protocol != clickhouse.Native:
		return nil, errors.New("the clickhouse DSN must begin with clickhouse://: the native protocol")
	case opts.Auth.Database == "":
		return nil, errors.New("the clickhouse DSN must name a database: clickhouse://HOST:PORT/DATABASE")
	case strings.ContainsAny(opts.Auth.Database, "`\\"):
		return nil, errors.New("the database name in the clickhouse DSN must not have ` or \\ in it")
	}
	if c.PasswordFile != "" {
		password, err := os.ReadFile(c.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("reading the clickhouse password: %w", err)
		}
		opts.Auth.Password = strings.TrimSpace(string(password))
	}
	if c.TLSCAFile != "" {
		if opts.TLS == nil {
			return nil, errors.New("a clickhouse CA file needs ?secure=true in the DSN")
		}
		pem, err := os.ReadFile(c.TLSCAFile)
		if err != nil {
			return nil, fmt.Errorf("reading the clickhouse CA file: %w", err)
		}
		opts.TLS.RootCAs = x509.NewCertPool()
		if !opts.TLS.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("no certificate in the clickhouse CA file %s", c.TLSCAFile)
		}
	}
	// Asynchronous inserts, on by default since 26.2, would answer for a part before it exists under its token.
	opts.Settings["async_insert"] = 0
	opts.Settings["insert_deduplicate"] = 1
	opts.MaxOpenConns = orDefault(c.MaxOpenConns, 16)
	opts.MaxIdleConns = opts.MaxOpenConns
	opts.DialTimeout = orDefault(c.DialTimeout, 5*time.Second)
	opts.ConnMaxLifetime = time.Hour
	return opts, nil
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// Open returns a pool of connections; it dials none. Close it.
func Open(cfg Config) (driver.Conn, error) {
	opts, err := cfg.Options()
	if err != nil {
		return nil, err
	}
	conn, err := clickhouse.Open(opts)
	if err != nil {
		return nil, fmt.Errorf("opening clickhouse: %w", err)
	}
	return conn, nil
}

// CreateDatabase creates the database that the DSN names where it is missing. No connection that Open makes works
// before.
func CreateDatabase(ctx context.Context, cfg Config) error {
	opts, err := cfg.Options()
	if err != nil {
		return err
	}
	name := opts.Auth.Database
	opts.Auth.Database = "" // the user's own default
	conn, err := clickhouse.Open(opts)
	if err != nil {
		return fmt.Errorf("opening clickhouse: %w", err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.Exec(ctx, "CREATE DATABASE IF NOT EXISTS `"+name+"`"); err != nil {
		return fmt.Errorf("creating the clickhouse database %s: %w", name, err)
	}
	return nil
}
