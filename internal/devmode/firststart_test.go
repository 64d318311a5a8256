package devmode

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
)

// A key that was chosen and rolled does not come back with the next start, which chooses it again.
func TestFirstStartAfterRoll(t *testing.T) {
	ctx := t.Context()
	c := kafkatest.Start(t)
	cfg := control.WriterConfig{Kafka: c.Config, MasterKey: control.MasterKey{1}, Partitions: c.Layout.Partitions}
	logger := slog.New(slog.DiscardHandler)
	const chosen = "imk_sk_chosen_at_start"
	if made, err := firstStart(ctx, cfg, chosen, logger); made != chosen || err != nil {
		t.Fatalf("%q, %v", made, err)
	}
	w, err := control.NewWriter(cfg, logger)
	if err != nil {
		t.Fatal(err)
	}
	roll := func(overlap time.Duration) {
		t.Helper()
		s, err := w.Snapshot(ctx)
		if err != nil || len(s.Keys) != 1 {
			t.Fatalf("%+v, %v", s, err)
		}
		if _, _, err := w.RollKey(ctx, by, s.Keys[0].Workspace, s.Keys[0].ID, 0, overlap); err != nil {
			t.Fatal(err)
		}
	}
	roll(time.Hour)
	if made, err := firstStart(ctx, cfg, chosen, logger); made != "" || err != nil {
		t.Errorf("while it works: %q, %v", made, err)
	}
	roll(0)
	if made, err := firstStart(ctx, cfg, chosen, logger); made != "" || !errors.Is(err, control.ErrConflict) {
		t.Errorf("after it has ended: %q, %v", made, err)
	}
}
