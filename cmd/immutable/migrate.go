package main

import (
	"context"
	"errors"
	"fmt"

	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/internal/devmode"
)

type migrateCmd struct {
	clickhouseFlags
	Data string `help:"Data folder of a running immutable up; instead of --clickhouse." placeholder:"DIR"`
}

// Run creates the database and brings its tables to this version. There are no steps back.
func (c *migrateCmd) Run(ctx context.Context, p *process) error {
	cfg := c.config()
	if c.Data != "" && cfg.DSN == "" {
		up, err := devmode.ReadUpFile(c.Data)
		if err != nil {
			return err
		}
		cfg.DSN = up.DSN()
	}
	if cfg.DSN == "" {
		return errors.New("--clickhouse or --data is required")
	}
	if err := clickhouse.CreateDatabase(ctx, cfg); err != nil {
		return err
	}
	conn, err := clickhouse.Open(cfg)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // nothing is pending on it
	if err := clickhouse.Migrate(ctx, conn, p.logger); err != nil {
		return err
	}
	fmt.Fprintln(p.stdout, "the tables are up to date")
	return nil
}
