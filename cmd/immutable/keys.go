package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"getimmutable.dev/immutable/control"
)

type keysCmd struct {
	Create keysCreateCmd `cmd:"" help:"Create an API key and print it: it is not shown again."`
	List   keysListCmd   `cmd:"" help:"List API keys, each with its last use as of a minute ago."`
	Roll   keysRollCmd   `cmd:"" help:"Give an API key a new text and print it: it is not shown again."`
	Revoke keysRevokeCmd `cmd:"" help:"Revoke an API key: it stops working everywhere within a second, for ever."`
}

type keysCreateCmd struct {
	targetFlags
	Workspace  string        `help:"Name or id of its workspace." default:"default" placeholder:"NAME"`
	Name       string        `help:"What it is for." required:"" placeholder:"NAME"`
	Scopes     []string      `help:"What it may do: events:write, events:read, admin." default:"events:write,events:read" placeholder:"SCOPE,..."`
	ExpiresIn  time.Duration `help:"When it stops working, as in 720h. Default: never." placeholder:"DURATION"`
	AllowCIDRs []string      `name:"allow-cidrs" help:"Addresses (CIDR) that may use it. Default: any." placeholder:"CIDR,..."`
	RateLimit  float64       `help:"Events per second. Default: no limit." placeholder:"EVENTS"`
	RateBurst  int           `help:"Events that may come at once. Default: one second's worth." placeholder:"EVENTS"`
	Secret     string        `help:"Its text, chosen: imk_sk_ and letters and digits. Default: drawn." placeholder:"KEY"`
}

// Run prints the key's text alone to standard output.
func (c *keysCreateCmd) Run(ctx context.Context, p *process) error {
	n := control.NewKey{
		Name: c.Name, Secret: c.Secret, RateLimit: control.Limit{PerSecond: c.RateLimit, Burst: c.RateBurst},
	}
	for _, s := range c.Scopes {
		n.Scopes = append(n.Scopes, control.Scope(s))
	}
	for _, text := range c.AllowCIDRs {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return fmt.Errorf("--allow-cidrs: %w", err)
		}
		n.AllowedCIDRs = append(n.AllowedCIDRs, prefix)
	}
	if c.ExpiresIn != 0 {
		n.ExpiresAt = time.Now().Add(c.ExpiresIn)
	}
	w, err := c.writer(ctx, p.logger)
	if err != nil {
		return err
	}
	s, err := w.Snapshot(ctx)
	if err != nil {
		return fmt.Errorf("reading what is configured: %w", err)
	}
	ws, err := workspaceByName(s, c.Workspace)
	if err != nil {
		return err
	}
	n.Workspace = ws.ID
	key, secret, err := w.CreateKey(ctx, author(), n)
	if err != nil {
		return fmt.Errorf("creating an API key: %w", err)
	}
	fmt.Fprintf(p.stderr, "key %s of workspace %s, shown only now:\n", uuid.UUID(key.ID), ws.Name)
	_, err = fmt.Fprintln(p.stdout, secret)
	return err
}

type keysListCmd struct {
	targetFlags
	Workspace string `help:"Name or id of a workspace. Default: all." placeholder:"NAME"`
}

// Run prints a line for each.
func (c *keysListCmd) Run(ctx context.Context, p *process) error {
	w, err := c.writer(ctx, p.logger)
	if err != nil {
		return err
	}
	s, err := w.Snapshot(ctx)
	if err != nil {
		return fmt.Errorf("reading what is configured: %w", err)
	}
	lastUsed, err := w.LastUsed(ctx)
	if err != nil {
		p.logger.WarnContext(ctx, "when the keys were last used is not known", slog.Any("error", err))
	}
	names := make(map[[16]byte]string, len(s.Workspaces))
	for _, ws := range s.Workspaces {
		names[ws.ID] = ws.Name
	}
	if c.Workspace != "" {
		ws, err := workspaceByName(s, c.Workspace)
		if err != nil {
			return err
		}
		names = map[[16]byte]string{ws.ID: ws.Name}
	}
	table := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ID\tWORKSPACE\tNAME\tKEY\tSCOPES\tCREATED\tEXPIRES\tLAST USED\tFORMER")
	for _, k := range s.Keys {
		workspace, ok := names[k.Workspace]
		if !ok {
			continue
		}
		scopes := make([]string, len(k.Scopes))
		for i, s := range k.Scopes {
			scopes[i] = string(s)
		}
		expires := "never"
		if !k.ExpiresAt.IsZero() {
			expires = k.ExpiresAt.Format(time.RFC3339)
		}
		used := "never"
		if at := lastUsed[k.ID]; !at.IsZero() {
			used = at.Format(time.RFC3339)
		} else if lastUsed == nil {
			used = "not known"
		}
		former := make([]string, len(k.Former))
		for i, f := range k.Former {
			former[i] = f.Hint + " until " + f.Until.Format(time.RFC3339)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", uuid.UUID(k.ID), workspace, k.Name, k.Hint, strings.Join(scopes, ","),
			k.CreatedAt.Format(time.RFC3339), expires, used, cmp.Or(strings.Join(former, ", "), "none"))
	}
	return table.Flush()
}

type keysRollCmd struct {
	targetFlags
	ID      string        `arg:"" help:"Its id, as keys list shows it."`
	Overlap time.Duration `help:"How long its former texts still work, as in 24h: at most 168h. Default: they end at once." placeholder:"DURATION"`
}

// Run prints the key's new text alone to standard output.
func (c *keysRollCmd) Run(ctx context.Context, p *process) error {
	if c.Overlap < 0 || c.Overlap > control.MaxOverlap {
		return fmt.Errorf("--overlap: %v: must be 0 to %v", c.Overlap, control.MaxOverlap)
	}
	w, k, err := c.key(ctx, p, c.ID)
	if err != nil {
		return err
	}
	k, secret, err := w.RollKey(ctx, author(), k.Workspace, k.ID, 0, c.Overlap)
	if err != nil {
		return fmt.Errorf("rolling an API key: %w", err)
	}
	for _, f := range k.Former {
		fmt.Fprintf(p.stderr, "the former text that ends in %s works until %s\n", f.Hint, f.Until.Format(time.RFC3339))
	}
	fmt.Fprintf(p.stderr, "key %s, shown only now:\n", uuid.UUID(k.ID))
	_, err = fmt.Fprintln(p.stdout, secret)
	return err
}

type keysRevokeCmd struct {
	targetFlags
	ID string `arg:"" help:"Its id, as keys list shows it."`
}

// Run prints nothing.
func (c *keysRevokeCmd) Run(ctx context.Context, p *process) error {
	w, k, err := c.key(ctx, p, c.ID)
	if err != nil {
		return err
	}
	return w.RevokeKey(ctx, author(), k.Workspace, k.ID, 0)
}

// key finds a key by its id, in any workspace, and returns what changes it.
func (f *targetFlags) key(ctx context.Context, p *process, text string) (*control.Writer, *control.Key, error) {
	id, err := uuid.Parse(text)
	if err != nil {
		return nil, nil, fmt.Errorf("the id of a key: %w", err)
	}
	w, err := f.writer(ctx, p.logger)
	if err != nil {
		return nil, nil, err
	}
	s, err := w.Snapshot(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("reading what is configured: %w", err)
	}
	for _, k := range s.Keys {
		if k.ID == id {
			return w, k, nil
		}
	}
	return nil, nil, fmt.Errorf("there is no key %s", id)
}
