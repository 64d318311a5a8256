package devmode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"getimmutable.dev/immutable/control"
)

// DefaultWorkspace is the workspace that the first start creates.
const DefaultWorkspace = "default"

// by names the author of what `up` configures, in the ledger.
const by = "cli:up"

// firstStart makes sure that there is the workspace and, where a key was chosen, that key in it; at the very first
// start it draws a key otherwise. It returns the text of the key that it made, "" where it made none. Any step may have been the last before a
// crash: each looks at what is there.
func firstStart(ctx context.Context, cfg control.WriterConfig, chosen string, logger *slog.Logger) (made string, err error) {
	w, err := control.NewWriter(cfg, logger)
	if err != nil {
		return "", err
	}
	s, err := w.Snapshot(ctx)
	if err != nil {
		return "", fmt.Errorf("reading what is configured: %w", err)
	}
	var workspace *control.Workspace
	for _, ws := range s.Workspaces {
		if ws.Name == DefaultWorkspace {
			workspace = ws
		}
	}
	if workspace == nil {
		lanes := uint32(cfg.Partitions)
		workspace, err = w.CreateWorkspace(ctx, by, control.NewWorkspace{Name: DefaultWorkspace, Lanes: lanes})
		if err != nil {
			return "", fmt.Errorf("creating workspace %s: %w", DefaultWorkspace, err)
		}
	}
	hash := control.HashSecret(chosen)
	hasKey := false
	for _, k := range s.Keys {
		if chosen != "" && k.OpenedBy(hash, time.Now()) {
			return "", nil
		}
		hasKey = hasKey || k.Workspace == workspace.ID
	}
	if chosen == "" && hasKey {
		return "", nil
	}
	_, secret, err := w.CreateKey(ctx, by, control.NewKey{
		Workspace: workspace.ID, Name: "up", Secret: chosen,
		Scopes: []control.Scope{control.ScopeWrite, control.ScopeRead, control.ScopeAdmin},
	})
	if errors.Is(err, control.ErrConflict) && chosen != "" {
		return "", fmt.Errorf("the API key that was chosen was used, and has been revoked or rolled: choose another: %w", err)
	}
	if err != nil {
		return "", fmt.Errorf("creating an API key: %w", err)
	}
	return secret, nil
}
