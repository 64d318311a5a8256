package main

import (
	"context"
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
}

type workspacesCreateCmd struct {
	targetFlags
	Name         string `arg:"" help:"Its name, which is unique."`
	Lanes        uint32 `help:"Chains that its events are spread over, at most the number of partitions; for ever. Default: all of them for the first workspace, else 4." placeholder:"N"`
	SecretPolicy string `help:"What becomes of an event that holds what looks like a secret: flag keeps it and says so, redact replaces the secret, reject refuses the event." enum:"flag,redact,reject" default:"flag"`
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
	fmt.Fprintln(table, "ID\tNAME\tLANES\tCREATED")
	for _, ws := range s.Workspaces {
		fmt.Fprintf(table, "%s\t%s\t%d\t%s\n", uuid.UUID(ws.ID), ws.Name, ws.Lanes, ws.CreatedAt.Format(time.RFC3339))
	}
	return table.Flush()
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
