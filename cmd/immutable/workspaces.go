package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/user"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/event"
)

type workspacesCmd struct {
	Create workspacesCreateCmd `cmd:"" help:"Create a workspace."`
	List   workspacesListCmd   `cmd:"" help:"List workspaces."`
	Set    workspacesSetCmd    `cmd:"" help:"Change the settings of a workspace; those that are not given stay."`
	Delete workspacesDeleteCmd `cmd:"" help:"Delete a workspace: its keys stop working within a second, its ledger stays."`
}

type workspacesCreateCmd struct {
	targetFlags
	Name         string `arg:"" help:"Its name, which is unique."`
	Lanes        uint32 `help:"Chains that its events are spread over, at most the number of partitions; for ever. Default: all of them for the first workspace, else 4." placeholder:"N"`
	SecretPolicy string `help:"What becomes of an event that holds what looks like a secret: flag keeps it and says so, redact replaces the secret, reject refuses the event." enum:"flag,redact,reject" default:"flag"`
	IfMissing    bool   `help:"Leave a workspace of this name as it is, and print its id."`
}

// Run prints the id.
func (c *workspacesCreateCmd) Run(ctx context.Context, p *process) error {
	w, err := c.writer(ctx, p.logger)
	if err != nil {
		return err
	}
	ws, err := w.CreateWorkspace(ctx, author(), control.NewWorkspace{
		Name: c.Name, Lanes: c.Lanes, Settings: control.Settings{SecretPolicy: event.SecretPolicy(c.SecretPolicy)},
	})
	if c.IfMissing && errors.Is(err, control.ErrConflict) {
		var s *control.Snapshot
		if s, err = w.Snapshot(ctx); err != nil {
			return fmt.Errorf("reading what is configured: %w", err)
		}
		ws, err = workspaceByName(s, c.Name)
	}
	if err != nil {
		return fmt.Errorf("creating workspace %q: %w", c.Name, err)
	}
	_, err = fmt.Fprintln(p.stdout, uuid.UUID(ws.ID))
	return err
}

type workspacesListCmd struct{ targetFlags }

// Run prints a line for each.
func (c *workspacesListCmd) Run(ctx context.Context, p *process) error {
	w, err := c.writer(ctx, p.logger)
	if err != nil {
		return err
	}
	s, err := w.Snapshot(ctx)
	if err != nil {
		return fmt.Errorf("reading what is configured: %w", err)
	}
	table := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ID\tNAME\tLANES\tCREATED\tSECRETS\tRESOURCE ID\tRATE LIMIT")
	for _, ws := range s.Workspaces {
		resourceID, limit := "filled", "none"
		if ws.Settings.KeepResourceIDEmpty {
			resourceID = "as sent"
		}
		if l := ws.Settings.RateLimit; l.PerSecond > 0 {
			limit = fmt.Sprintf("%v/s", l.PerSecond)
			if l.Burst > 0 {
				limit += fmt.Sprintf(", %d at once", l.Burst)
			}
		}
		fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%s\t%s\t%s\n", uuid.UUID(ws.ID), ws.Name, ws.Lanes,
			ws.CreatedAt.Format(time.RFC3339), cmp.Or(ws.Settings.SecretPolicy, event.SecretsFlag), resourceID, limit)
	}
	return table.Flush()
}

type workspacesSetCmd struct {
	targetFlags
	Name         string   `arg:"" help:"Its name or id."`
	SecretPolicy *string  `help:"What becomes of an event that holds what looks like a secret: flag, redact or reject." placeholder:"POLICY"`
	RateLimit    *float64 `help:"Events per second for all its keys together; 0 for no limit, and then no burst either." placeholder:"EVENTS"`
	RateBurst    *int     `help:"Events that may come at once; 0 for one second's worth." placeholder:"EVENTS"`

	KeepResourceIDEmpty *bool `negatable:"" help:"Leave the resource_id of an event empty where it is not sent, instead of taking it from metadata."`
}

// Run prints nothing.
func (c *workspacesSetCmd) Run(ctx context.Context, p *process) error {
	if c.SecretPolicy == nil && c.RateLimit == nil && c.RateBurst == nil && c.KeepResourceIDEmpty == nil {
		return errors.New("nothing to set: give --secret-policy, --rate-limit, --rate-burst or --[no-]keep-resource-id-empty")
	}
	w, ws, err := c.find(ctx, p, c.Name)
	if err != nil {
		return err
	}
	_, err = w.UpdateWorkspace(ctx, author(), ws.ID, 0, func(s *control.Settings) {
		if c.SecretPolicy != nil {
			s.SecretPolicy = event.SecretPolicy(*c.SecretPolicy)
		}
		if c.RateLimit != nil {
			s.RateLimit.PerSecond = *c.RateLimit
			if *c.RateLimit == 0 {
				s.RateLimit.Burst = 0
			}
		}
		if c.RateBurst != nil {
			s.RateLimit.Burst = *c.RateBurst
		}
		if c.KeepResourceIDEmpty != nil {
			s.KeepResourceIDEmpty = *c.KeepResourceIDEmpty
		}
	})
	if err != nil {
		return fmt.Errorf("changing workspace %q: %w", c.Name, err)
	}
	return nil
}

type workspacesDeleteCmd struct {
	targetFlags
	Name string `arg:"" help:"Its name or id."`
}

// Run prints nothing.
func (c *workspacesDeleteCmd) Run(ctx context.Context, p *process) error {
	w, ws, err := c.find(ctx, p, c.Name)
	if err != nil {
		return err
	}
	if err := w.DeleteWorkspace(ctx, author(), ws.ID, ws.Version); err != nil {
		return fmt.Errorf("deleting workspace %q: %w", c.Name, err)
	}
	return nil
}

// find returns a workspace by name or id, and who can change it.
func (f *targetFlags) find(ctx context.Context, p *process, name string) (*control.Writer, *control.Workspace, error) {
	w, err := f.writer(ctx, p.logger)
	if err != nil {
		return nil, nil, err
	}
	s, err := w.Snapshot(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("reading what is configured: %w", err)
	}
	ws, err := workspaceByName(s, name)
	return w, ws, err
}

// author is who makes a change, as the ledger shows it.
func author() string {
	if u, err := user.Current(); err == nil && u.Username != "" {
		return "cli:" + u.Username
	}
	return "cli:unknown"
}

// workspaceByName finds a workspace by name or id.
func workspaceByName(s *control.Snapshot, name string) (*control.Workspace, error) {
	for _, ws := range s.Workspaces {
		if ws.Name == name || uuid.UUID(ws.ID).String() == name {
			return ws, nil
		}
	}
	return nil, fmt.Errorf("there is no workspace %q; `immutable workspaces list` shows those there are", name)
}
