package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/internal/devmode"
	"getimmutable.dev/immutable/internal/diagnose"
)

type checkCmd struct {
	targetFlags
	layoutFlags
	Tables       clickhouseFlags `embed:""`
	HTTPCert     []string        `name:"tls-cert" help:"PEM files of certificates that services serve HTTPS with: their expiry is looked at." placeholder:"FILE,..."`
	MinFreeMiB   uint64          `name:"min-free-mib" help:"MiB of disk space below which there is a problem; below four times as much there is a warning." default:"1024"`
	CheckTimeout time.Duration   `help:"Time that each check may take. They run side by side." default:"10s"`
	Timeout      time.Duration   `help:"Time that all checks together may take." default:"1m"`
	JSON         bool            `name:"json" help:"Print JSON."`
}

// Help is shown by --help.
func (checkCmd) Help() string {
	return "Asks Kafka, its topics and consumer groups, what is configured, ClickHouse, clocks, certificates and disks whether they are " +
		"as they must be, and says of each finding why it matters and what to do. Give it the flags, and the user, of the services. It " +
		"changes nothing; a new Kafka cluster creates its internal topics when first asked about groups and transactions. Exit code 0: no " +
		"problem, though perhaps warnings; 1: a problem."
}

// Run prints what was found.
func (c *checkCmd) Run(ctx context.Context, p *process) error {
	cfg, err := c.diagnosis(ctx, p)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	findings, err := diagnose.Run(ctx, cfg, p.logger)
	if err != nil {
		return err
	}
	n := map[diagnose.Level]int{}
	for _, f := range findings {
		n[f.Level]++
	}
	if c.JSON {
		err = printJSON(p.stdout, n, findings)
	} else {
		err = printFindings(p.stdout, n, findings)
	}
	if err != nil {
		return fmt.Errorf("writing what was found: %w", err)
	}
	if n[diagnose.Problem] > 0 {
		return fmt.Errorf("check: problems: %d", n[diagnose.Problem])
	}
	return nil
}

// diagnosis says what to look at: what flags name, and what up.json adds.
func (c *checkCmd) diagnosis(ctx context.Context, p *process) (diagnose.Config, error) {
	cfg := diagnose.Config{
		Kafka: c.config(), ClickHouse: c.Tables.config(), Dir: c.Data, CertFiles: c.HTTPCert,
		MinFreeBytes: c.MinFreeMiB << 20, CheckTimeout: c.CheckTimeout,
	}
	if c.Timeout <= 0 || c.CheckTimeout < 100*time.Millisecond || c.MinFreeMiB > 1<<40 {
		return cfg, errors.New("--timeout must be above 0, --check-timeout at least 100ms, --min-free-mib at most 1099511627776")
	}
	up, err := c.upFile()
	if err != nil {
		return cfg, err
	}
	switch {
	case up != nil && len(cfg.Kafka.Brokers) == 0:
		cfg.Kafka.Brokers, cfg.Kafka.TopicPrefix, cfg.Layout = up.Brokers(), up.TopicPrefix, up.Layout()
	case len(cfg.Kafka.Brokers) > 0:
		if cfg.Layout, err = c.layout(ctx, cfg.Kafka.TopicPrefix, p.logger); err != nil {
			return cfg, err
		}
	}
	if up != nil && cfg.ClickHouse.DSN == "" {
		cfg.ClickHouse.DSN = up.DSN()
	}
	if len(cfg.Kafka.Brokers) == 0 && cfg.ClickHouse.DSN == "" {
		return cfg, errors.New("--kafka, --clickhouse or --data is required")
	}
	if c.MasterKeyFile != "" {
		cfg.MasterKey = c.load
	} else if c.Data != "" {
		cfg.MasterKey = func() (control.MasterKey, error) { return devmode.MasterKey(c.Data) }
	}
	return cfg, nil
}

func printFindings(w io.Writer, n map[diagnose.Level]int, findings []diagnose.Finding) error {
	width := 0
	for _, f := range findings {
		width = max(width, len(f.Check))
	}
	var b strings.Builder
	for _, f := range findings {
		level := string(f.Level)
		if f.Level == diagnose.Problem {
			level = "PROBLEM"
		}
		fmt.Fprintf(&b, "%-7s  %-*s  %s\n", level, width, f.Check, f.Seen)
		if f.Why != "" {
			fmt.Fprintf(&b, "%*swhy  %s\n", 11+width, "", f.Why)
		}
		if f.Do != "" {
			fmt.Fprintf(&b, "%*sdo   %s\n", 11+width, "", f.Do)
		}
	}
	fmt.Fprintf(&b, "\nok: %d, warnings: %d, problems: %d, not run: %d\n",
		n[diagnose.OK], n[diagnose.Warning], n[diagnose.Problem], n[diagnose.NotRun])
	_, err := io.WriteString(w, b.String())
	return err
}

func printJSON(w io.Writer, n map[diagnose.Level]int, findings []diagnose.Finding) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(struct {
		Problems int                `json:"problems"`
		Warnings int                `json:"warnings"`
		NotRun   int                `json:"not_run"`
		Findings []diagnose.Finding `json:"findings"`
	}{n[diagnose.Problem], n[diagnose.Warning], n[diagnose.NotRun], findings})
}
