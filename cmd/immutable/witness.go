package main

import (
	"context"
	"errors"
	"log/slog"

	"getimmutable.dev/immutable/witness"
)

type witnessCmd struct {
	httpFlags
	serviceFlags
	Data    string `help:"Folder of what was cosigned; a copy of it that is restored makes the witness forget." placeholder:"DIR"`
	KeyFile string `help:"File of the witness's key, made by witness-key create." placeholder:"FILE"`
	Trust   string `help:"File with the verifier keys of the logs to cosign: one key, or a C2SP tlog-policy." placeholder:"FILE"`
}

// Help is shown by --help.
func (witnessCmd) Help() string {
	return "It belongs on a machine that the operator of the log does not control. It speaks C2SP tlog-witness: POST /add-checkpoint, " +
		"GET /<SHA-256 of the origin>/checkpoint; GET /key is its verifier key. It needs neither Kafka nor ClickHouse."
}

// Run runs until a signal.
func (c *witnessCmd) Run(ctx context.Context, p *process) error {
	if c.Data == "" || c.KeyFile == "" || c.Trust == "" {
		return errors.New("--data, --key-file and --trust are required")
	}
	key, err := witness.LoadKey(c.KeyFile)
	if err != nil {
		return err
	}
	trust, err := loadTrust(c.Trust)
	if err != nil {
		return err
	}
	s := newService(p, c.serviceFlags)
	service, err := witness.New(witness.Config{Dir: c.Data}, key, trust, s.reg, p.logger)
	if err != nil {
		return err
	}
	p.logger.InfoContext(ctx, "cosigning", slog.String("verifier_key", key.VerifierKey))
	return s.run(ctx, c.config(), service.Routes(), part{name: "witness", run: service.Run, ready: service.Ready})
}
