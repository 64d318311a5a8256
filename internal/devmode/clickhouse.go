package devmode

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"time"

	"getimmutable.dev/immutable/internal/chdb"
)

// How soon a ClickHouse that died is started again; doubled up to the maximum while it dies within a minute.
const (
	minChildDelay = 250 * time.Millisecond
	maxChildDelay = 30 * time.Second
	childLasts    = time.Minute
	childAttempts = 3
)

// child is the embedded ClickHouse. All its processes, one after the other, have the same ports and password, so that
// clients find the next as they found the last.
type child struct {
	cfg    chdb.Config
	logger *slog.Logger
	server *chdb.Server
}

// startChild starts ClickHouse on the ports of the last `up` where they are free. The error of a missing library says
// how to get it.
func startChild(ctx context.Context, cfg *Config, last *UpFile, logger *slog.Logger) (*child, error) {
	library, err := chdb.FindLibrary(cfg.Library)
	if err != nil {
		return nil, err
	}
	httpPort, err := freePort(ctx, portOf(strings.TrimPrefix(last.ClickHouseHTTP, "http://")))
	if err != nil {
		return nil, err
	}
	nativePort, err := freePort(ctx, portOf(last.ClickHouseNative))
	if err != nil {
		return nil, err
	}
	c := &child{logger: logger, cfg: chdb.Config{
		Executable: cfg.ChildCommand, Library: library, Dir: filepath.Join(cfg.Dir, clickhouseDir), Password: rand.Text(),
		HTTPPort: httpPort, NativePort: nativePort,
	}}
	// After kill -9 of `up` the old child may still be letting go of the folder.
	for attempt := 1; ; attempt++ {
		if c.server, err = chdb.Start(ctx, c.cfg, logger); err == nil {
			return c, nil
		}
		if attempt == childAttempts || !sleep(ctx, minChildDelay<<attempt) {
			return nil, err
		}
	}
}

// run starts ClickHouse again whenever it ends, until ctx does; then it ends ClickHouse.
func (c *child) run(ctx context.Context) error {
	delay := minChildDelay
	began := time.Now()
	for {
		select {
		case <-ctx.Done():
			return c.server.Stop(context.WithoutCancel(ctx))
		case <-c.server.Done():
		}
		c.logger.LogAttrs(ctx, slog.LevelError, "clickhouse died and is started again; events are still accepted",
			slog.Any("error", c.server.Err()))
		if time.Since(began) > childLasts {
			delay = minChildDelay
		}
		for {
			if !sleep(ctx, delay) {
				return nil
			}
			delay = min(2*delay, maxChildDelay)
			server, err := chdb.Start(ctx, c.cfg, c.logger)
			if err == nil {
				c.server, began = server, time.Now()
				break
			}
			if ctx.Err() == nil {
				c.logger.LogAttrs(ctx, slog.LevelError, "clickhouse does not start", slog.Any("error", err))
			}
		}
	}
}

// sleep says whether the whole time has passed.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// freePort returns wish if nobody listens there, else a port of the kernel's choice.
func freePort(ctx context.Context, wish int) (int, error) {
	for _, port := range []int{wish, 0} {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		port = l.Addr().(*net.TCPAddr).Port
		if err := l.Close(); err != nil {
			return 0, fmt.Errorf("asking for a free port: %w", err)
		}
		return port, nil
	}
	return 0, errors.New("no port is free on 127.0.0.1")
}
