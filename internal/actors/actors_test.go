package actors

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestStopsInReverseOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(slog.New(slog.DiscardHandler))
		var order []string
		for _, name := range []string{"kafka", "processor", "http"} {
			g.Start(t.Context(), name, func(ctx context.Context) error {
				<-ctx.Done()
				time.Sleep(time.Second) // a drain; time is the bubble's
				order = append(order, name)
				return nil
			})
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := g.Wait(ctx); err != nil {
			t.Error(err)
		}
		if err := g.Stop(time.Minute); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff([]string{"http", "processor", "kafka"}, order); diff != "" {
			t.Error(diff)
		}
	})
}

func TestAPartThatEnds(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		want string
	}{
		"with an error": {errors.New("fenced"), "processor: fenced"},
		"without":       {nil, "processor: ended by itself"},
	} {
		synctest.Test(t, func(t *testing.T) {
			g := New(slog.New(slog.DiscardHandler))
			g.Start(t.Context(), "http", func(ctx context.Context) error { <-ctx.Done(); return nil })
			g.Start(t.Context(), "processor", func(context.Context) error { return tc.err })
			if err := g.Wait(t.Context()); err == nil || err.Error() != tc.want {
				t.Errorf("%s: got %v, want %s", name, err, tc.want)
			}
			if err := g.Stop(time.Minute); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestStopIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(slog.New(slog.DiscardHandler))
		stuck := make(chan struct{})
		g.Start(t.Context(), "kafka", func(ctx context.Context) error { <-ctx.Done(); return nil })
		g.Start(t.Context(), "processor", func(context.Context) error { <-stuck; return nil })
		g.Start(t.Context(), "http", func(ctx context.Context) error { <-ctx.Done(); return nil })
		err := g.Stop(18 * time.Second)
		if err == nil || !strings.Contains(err.Error(), "still running: processor, kafka") && !strings.Contains(err.Error(), "kafka, processor") {
			t.Errorf("got %v", err)
		}
		close(stuck)
	})
}

func TestErrorsWhileStoppingAreLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		g := New(slog.New(slog.NewTextHandler(&text, nil)))
		g.Start(t.Context(), "kafka", func(ctx context.Context) error { <-ctx.Done(); return errors.New("disk full") })
		if err := g.Stop(time.Second); err != nil {
			t.Error(err)
		}
		if !strings.Contains(text.String(), "part=kafka error=\"disk full\"") {
			t.Errorf("log: %s", &text)
		}
	})
}
