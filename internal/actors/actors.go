// Package actors runs the parts of a process and stops them in order.
package actors

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"
)

// Group is the parts that run. They stop in the reverse of the order in which they were started, each when those after
// it have stopped: what a part depends on outlives it. One goroutine uses a Group.
type Group struct {
	logger *slog.Logger
	// ended receives the first part that ends without having been asked to.
	ended   chan error
	started []*actor
}

type actor struct {
	cancel context.CancelFunc
	done   chan struct{}
	name   string
}

// New returns a group of nothing.
func New(logger *slog.Logger) *Group { return &Group{logger: logger, ended: make(chan error, 1)} }

// Start runs a part. Its context has the values of ctx but not its end: it ends when it is this part's turn, and then run
// must return within its own limits. A run that returns before, with or without an error, makes Wait return.
func (g *Group) Start(ctx context.Context, name string, run func(ctx context.Context) error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	a := &actor{name: name, cancel: cancel, done: make(chan struct{})}
	g.started = append(g.started, a)
	go func() { // waited for in Stop
		defer close(a.done)
		err := run(ctx)
		if ctx.Err() != nil {
			if err != nil {
				g.logger.LogAttrs(ctx, slog.LevelError, "stopped with an error", slog.String("part", name), slog.Any("error", err))
			}
			return
		}
		if err == nil {
			err = errors.New("ended by itself")
		}
		select {
		case g.ended <- fmt.Errorf("%s: %w", name, err):
		default:
			g.logger.LogAttrs(ctx, slog.LevelError, "ended with an error", slog.String("part", name), slog.Any("error", err))
		}
	}()
}

// Wait returns nil when ctx ends, or why a part has ended.
func (g *Group) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-g.ended:
		return err
	}
}

// Stop ends all parts in order and waits for them, at most limit. The error names those that are still running then.
func (g *Group) Stop(limit time.Duration) error {
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	for i, a := range slices.Backward(g.started) {
		a.cancel()
		select {
		case <-a.done:
		case <-timeout.C:
			var names []string
			for _, left := range g.started[:i+1] {
				left.cancel()
				names = append(names, left.name)
			}
			return fmt.Errorf("after %v these were still running: %s", limit, strings.Join(names, ", "))
		}
	}
	return nil
}
