package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/processor/notary"
)

type notaryCmd struct {
	kafkaFlags
	layoutFlags
	clickhouseFlags
	serviceFlags
	KeyFile       string        `help:"File of the root log's private keys, the same for every notary: immutable notary-key makes it." required:"" placeholder:"FILE"`
	LockFile      string        `help:"File where this machine remembers the last checkpoint that it has signed. It must outlive the process, and must not come from a backup. Notaries on one machine may share it." required:"" placeholder:"FILE"`
	Instance      string        `help:"Name of this instance, the same for as long as the installation lives and of no other: it resumes at once after a crash." placeholder:"NAME"`
	EpochInterval time.Duration `help:"How often a checkpoint is made when there are new events." default:"10s" placeholder:"DURATION"`
	Witnesses     string        `help:"C2SP tlog-policy file, the one that verifiers use: its witnesses are asked to cosign each checkpoint." placeholder:"FILE"`
	IdleInterval  time.Duration `help:"How often one is made when there are none." default:"60s" placeholder:"DURATION"`
}

// Help is shown by --help.
func (notaryCmd) Help() string {
	return "ClickHouse is needed only where the topic notary_state is lost: what it held is then rebuilt from the table of leaves."
}

// Run runs until a signal.
func (c *notaryCmd) Run(ctx context.Context, p *process) error {
	s := newService(p, c.serviceFlags)
	cfg := c.kafkaFlags.config()
	layout, err := c.layout(ctx, cfg.TopicPrefix, p.logger)
	if err != nil {
		return err
	}
	if err := s.checkKafka(ctx, cfg, layout); err != nil {
		return err
	}
	var tables clickhouse.Config
	if c.ClickHouse != "" {
		tables = c.clickhouseFlags.config()
	}
	policy, err := readPolicy(c.Witnesses)
	if err != nil {
		return err
	}
	n, err := notary.New(notary.Config{
		Kafka: cfg, Layout: layout, ClickHouse: tables, KeyFile: c.KeyFile, LockFile: c.LockFile, Instance: c.Instance,
		EpochInterval: c.EpochInterval, IdleInterval: c.IdleInterval, WitnessPolicy: policy,
	}, s.reg, p.logger)
	if err != nil {
		return err
	}
	return s.run(ctx, httpserver.Config{}, nil, part{name: "notary", run: n.Run, ready: n.Ready})
}

type notaryKeyCmd struct {
	Create notaryKeyCreateCmd `cmd:"" help:"Draw the first key of a root log, into a new file, and print its verifier key."`
	Show   notaryKeyShowCmd   `cmd:"" help:"Print the verifier key of the newest key: what verifiers need, and nothing secret."`
	Rotate notaryKeyRotateCmd `cmd:"" help:"Draw another key, add it to the file, and print its verifier key. It signs when the notary is next started."`
}

type notaryKeyCreateCmd struct {
	File      string `help:"File to create." required:"" placeholder:"FILE"`
	Origin    string `help:"Name of the root log, which every checkpoint and every key bears for ever: a name of yours without a scheme, as in audit.example.com/immutable. Default: localhost/immutable/ and 32 random digits." placeholder:"NAME"`
	IfMissing bool   `help:"Where the file is there, print the verifier key of its newest key instead."`
}

// Run prints the verifier key alone to standard output.
func (c *notaryKeyCreateCmd) Run(p *process) error {
	verifier, err := notary.CreateKey(c.File, c.Origin)
	switch {
	case c.IfMissing && errors.Is(err, fs.ErrExist):
		if verifier, err = notary.VerifierKey(c.File); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		fmt.Fprintf(p.stderr, "%s holds the private key: back it up. Verifiers need this line:\n", c.File)
	}
	_, err = fmt.Fprintln(p.stdout, verifier)
	return err
}

type notaryKeyShowCmd struct {
	File string `help:"The notary's key file." required:"" placeholder:"FILE"`
}

// Run prints the verifier key.
func (c *notaryKeyShowCmd) Run(p *process) error {
	verifier, err := notary.VerifierKey(c.File)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(p.stdout, verifier)
	return err
}

type notaryKeyRotateCmd struct {
	File string `help:"The notary's key file." required:"" placeholder:"FILE"`
}

// Run prints the verifier key alone to standard output.
func (c *notaryKeyRotateCmd) Run(p *process) error {
	verifier, err := notary.RotateKey(c.File)
	if err != nil {
		return err
	}
	fmt.Fprintf(p.stderr, "Give every notary this file and start it again. Verifiers that trust an earlier key believe this one too:\n")
	_, err = fmt.Fprintln(p.stdout, verifier)
	return err
}
