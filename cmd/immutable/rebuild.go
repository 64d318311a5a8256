package main

import (
	"context"
	"errors"
	"fmt"

	"getimmutable.dev/immutable/internal/devmode"
	"getimmutable.dev/immutable/sinks/chwriter"
	"getimmutable.dev/immutable/sinks/rootlog"
)

type rebuildCmd struct {
	kafkaFlags
	Data       string `help:"Data folder of an immutable up that is stopped; instead of --kafka." placeholder:"DIR"`
	AcceptLoss bool   `help:"Go on without what ClickHouse lacks and the ledger's topic no longer has."`
}

// Help is shown by --help.
func (rebuildCmd) Help() string {
	return "After rows of ClickHouse were lost: the next sinks, or up, reads the ledger and its checkpoints from their beginning and writes what is missing. " +
		"Rows that are there are not written again. Stop every sinks, or up, first; restore the latest backup of ClickHouse, if there " +
		"is one, and run immutable migrate."
}

// Run lets the next writer begin anew.
func (c *rebuildCmd) Run(ctx context.Context, p *process) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	cfg := c.config()
	var err error
	switch {
	case len(cfg.Brokers) > 0:
		err = chwriter.Rebuild(ctx, cfg, c.AcceptLoss, p.logger)
		if err == nil {
			err = rootlog.Rebuild(ctx, cfg, p.logger)
		}
	case c.Data != "":
		err = devmode.Rebuild(ctx, c.Data, c.AcceptLoss, p.logger)
	default:
		err = errors.New("--kafka or --data is required")
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(p.stdout, "the next sinks, or up, writes to ClickHouse what it lacks of the ledger and its checkpoints")
	return err
}
