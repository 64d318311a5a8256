package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/schemas"
)

// Writers in several processes, each with several goroutines, all change the same things.
func TestWritersRace(t *testing.T) {
	for _, test := range []struct{ writers, goroutines, rounds int }{
		{1, 8, 3},
		{2, 1, 8},
		{2, 6, 3},
		{4, 2, 3},
	} {
		t.Run(fmt.Sprintf("%d writers of %d", test.writers, test.goroutines), func(t *testing.T) {
			writersRace(t, kafkatest.Start(t), test.writers, test.goroutines, test.rounds)
		})
	}
}

func writersRace(t *testing.T, c *kafkatest.Cluster, writers, goroutines, rounds int) {
	t.Helper()
	ctx := t.Context()
	shared := createWorkspace(t, newTestWriter(t, c), "shared")
	var wg sync.WaitGroup
	var mu sync.Mutex
	wins := map[uint64]int{}
	var names, revoked atomic.Int64
	for range writers {
		w := newTestWriter(t, c)
		for range goroutines {
			wg.Go(func() {
				version := uint64(1)
				for round := range rounds {
					ws, err := retried(func() (*Workspace, error) {
						return w.UpdateWorkspace(ctx, by, shared.ID, version, func(s *Settings) { *s = Settings{RateLimit: Limit{PerSecond: 1}} })
					})
					switch {
					case err == nil:
						mu.Lock()
						wins[ws.Version]++
						mu.Unlock()
						version = ws.Version
					case errors.Is(err, ErrConflict):
						snap, err := w.Snapshot(ctx)
						if err != nil {
							t.Error(err)
							return
						}
						i := slices.IndexFunc(snap.Workspaces, func(ws *Workspace) bool { return ws.ID == shared.ID })
						version = snap.Workspaces[i].Version
					default:
						t.Error(err)
						return
					}
					_, err = retried(func() (*Workspace, error) {
						return w.CreateWorkspace(ctx, by, NewWorkspace{Name: fmt.Sprintf("round %d", round)})
					})
					if err == nil {
						names.Add(1)
					} else if !errors.Is(err, ErrConflict) {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	if names.Load() != int64(rounds) {
		t.Errorf("%d workspaces were created under %d names", names.Load(), rounds)
	}
	for version, n := range wins {
		if n != 1 {
			t.Errorf("version %d was written %d times", version, n)
		}
	}

	snap, err := newTestWriter(t, c).Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, ws := range snap.Workspaces {
		if ws.ID == shared.ID && ws.Version != uint64(len(wins))+1 {
			t.Errorf("version %d after %d changes: %v", ws.Version, len(wins), slices.Sorted(maps.Keys(wins)))
		}
	}
	key, _ := createKey(t, newTestWriter(t, c), shared)
	for range writers {
		w := newTestWriter(t, c)
		wg.Go(func() {
			_, err := retried(func() (*Key, error) { return nil, w.RevokeKey(ctx, by, shared.ID, key.ID, 0) })
			if err == nil {
				revoked.Add(1)
			} else if !errors.Is(err, ErrNotFound) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if revoked.Load() != 1 {
		t.Errorf("a key was revoked %d times", revoked.Load())
	}
	checkTopics(t, c)
}

// retried does what a caller does about ErrBusy.
func retried[T any](do func() (T, error)) (T, error) {
	for {
		result, err := do()
		if !errors.Is(err, ErrBusy) {
			return result, err
		}
	}
}

// rival is a writer that has produced a change and then stalls.
type rival struct {
	a       *attempt
	cl      *kgo.Client
	records []*kgo.Record
}

func stall(tb testing.TB, c *kafkatest.Cluster, ch func(s *state) (*change, error)) *rival {
	tb.Helper()
	a := &attempt{w: newTestWriter(tb, c), by: by, actorType: "user"}
	cl := c.Client(tb, kgo.TransactionalID(c.Config.Group(schemas.TransactionalIDConfig)),
		kgo.TransactionTimeout(deadline), kgo.ProducerLinger(0), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if _, _, err := cl.ProducerID(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	s := newState(a.w.sealer)
	reader := c.Client(tb, readOptions(c.Config.Topic(schemas.TopicConfig), 0)...)
	err := s.readTo(tb.Context(), reader, c.Config.Topic(schemas.TopicConfig), func(*kgo.Record, outcome, error) {})
	if err != nil {
		tb.Fatal(err)
	}
	planned, err := ch(s)
	if err != nil {
		tb.Fatal(err)
	}
	records, err := a.records(tb.Context(), planned)
	if err != nil {
		tb.Fatal(err)
	}
	if err := cl.BeginTransaction(); err != nil {
		tb.Fatal(err)
	}
	if err := cl.ProduceSync(tb.Context(), records...).FirstErr(); err != nil {
		tb.Fatal(err)
	}
	return &rival{a, cl, records}
}

func TestStalledRivalIsFenced(t *testing.T) { stalledRivalIsFenced(t, kafkatest.Start(t)) }

func stalledRivalIsFenced(t *testing.T, c *kafkatest.Cluster) {
	t.Helper()
	w := newTestWriter(t, c)
	ws := createWorkspace(t, w, "default")
	r := stall(t, c, func(s *state) (*change, error) {
		mine := *s.workspace(ws.ID)
		mine.Version++
		mine.Name = "rival"
		return workspaceChange(&mine, "workspace.updated", nil), nil
	})
	// It has the version that we are about to take, and would commit it later.
	updated, err := w.UpdateWorkspace(t.Context(), by, ws.ID, ws.Version, func(s *Settings) { *s = Settings{KeepResourceIDEmpty: true} })
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cl.EndTransaction(t.Context(), kgo.TryCommit); !fenced(err) {
		t.Errorf("the rival's commit: %v", err)
	}
	snap, err := w.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]*Workspace{updated}, snap.Workspaces); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"workspace.created", "workspace.updated"}, checkTopics(t, c)); diff != "" {
		t.Error(diff)
	}
}

// A rival takes over between a writer's look at the topic and its commit.
func TestWriterFencedTriesAgain(t *testing.T) { writerFencedTriesAgain(t, kafkatest.Start(t)) }

func writerFencedTriesAgain(t *testing.T, c *kafkatest.Cluster) {
	t.Helper()
	w, other := newTestWriter(t, c), newTestWriter(t, c)
	ws := createWorkspace(t, w, "default")
	change := func(rival func() error) (tries int, err error) {
		err = w.write(t.Context(), by, func(s *state) (*change, error) {
			if tries++; tries == 1 {
				if err := rival(); err != nil {
					t.Fatal(err)
				}
			}
			// On the first try s is what was there before the rival.
			mine, err := s.workspaceAt(ws.ID, 1)
			if err != nil {
				return nil, err
			}
			updated := *mine
			updated.Version++
			return workspaceChange(&updated, "workspace.updated", map[string]any{}), nil
		})
		return tries, err
	}
	tries, err := change(func() error {
		_, err := other.UpdateWorkspace(t.Context(), by, ws.ID, 1, func(s *Settings) { *s = Settings{} })
		return err
	})
	if !errors.Is(err, ErrConflict) || tries != 2 {
		t.Errorf("a rival that changes the same: %v after %d tries", err, tries)
	}
	ws = createWorkspace(t, w, "another")
	tries, err = change(func() error {
		_, err := other.CreateWorkspace(t.Context(), by, NewWorkspace{Name: "other"})
		return err
	})
	if err != nil || tries != 2 {
		t.Errorf("a rival that changes something else: %v after %d tries", err, tries)
	}
	if diff := cmp.Diff([]string{
		"workspace.created", "workspace.created", "workspace.created", "workspace.updated", "workspace.updated",
	}, checkTopics(t, c)); diff != "" {
		t.Error(diff)
	}
}

// Kafka answers a commit with an error that says nothing, whether it made it or not.
func TestUnknownOutcomeIsSettled(t *testing.T) {
	for _, effective := range []bool{true, false} {
		t.Run(fmt.Sprintf("committed %t", effective), func(t *testing.T) {
			c := kafkatest.Start(t)
			unknownOutcomeIsSettled(t, c, func() *atomic.Bool { return answerEndTxn(t, c, effective) })
		})
	}
}

// unknownOutcomeIsSettled makes changes of which the writer is not told the outcome; answer has that befall the next, and
// says later whether it did.
func unknownOutcomeIsSettled(t *testing.T, c *kafkatest.Cluster, answer func() *atomic.Bool) {
	t.Helper()
	w := newTestWriter(t, c)
	ws := createWorkspace(t, w, "default")
	key, _ := createKey(t, w, ws)
	do := map[string]func() error{
		"create": func() error { _, err := w.CreateWorkspace(t.Context(), by, NewWorkspace{Name: "new"}); return err },
		"update": func() error {
			got, err := w.UpdateWorkspace(t.Context(), by, ws.ID, 1, func(s *Settings) { *s = Settings{} })
			if err == nil && got.Version != 2 {
				t.Errorf("version %d", got.Version)
			}
			return err
		},
		"revoke": func() error { return w.RevokeKey(t.Context(), by, ws.ID, key.ID, 0) },
	}
	for name, f := range do {
		answered := answer()
		if err := f(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !answered.Load() {
			t.Errorf("%s: the answer was not changed", name)
		}
	}
	if diff := cmp.Diff([]string{
		"api_key.created", "api_key.revoked", "workspace.created", "workspace.created", "workspace.updated",
	}, checkTopics(t, c)); diff != "" {
		t.Error(diff)
	}
}

func TestUnknownOutcomeIsSaid(t *testing.T) {
	c := kafkatest.Start(t)
	w := newTestWriter(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c.Fake.ControlKey(int16(kmsg.EndTxn), func(r kmsg.Request) (kmsg.Response, error, bool) {
		cancel()
		return unknownServerError(r), nil, true
	})
	_, err := w.CreateWorkspace(ctx, by, NewWorkspace{Name: "default"})
	if !errors.Is(err, ErrUnknownOutcome) {
		t.Errorf("%v", err)
	}
}

func unknownServerError(r kmsg.Request) kmsg.Response {
	resp := r.ResponseKind().(*kmsg.EndTxnResponse)
	resp.ErrorCode = kerr.UnknownServerError.Code
	return resp
}

// answerEndTxn has the next EndTxn answered with UNKNOWN_SERVER_ERROR, after it took effect or without.
func answerEndTxn(tb testing.TB, c *kafkatest.Cluster, effective bool) *atomic.Bool {
	tb.Helper()
	var taken, done atomic.Bool
	c.Fake.ControlKey(int16(kmsg.EndTxn), func(r kmsg.Request) (kmsg.Response, error, bool) {
		if taken.Swap(true) {
			return nil, nil, false // our own, from below
		}
		if effective {
			same := *r.(*kmsg.EndTxnRequest)
			versions := kversion.Stable()
			versions.SetMaxKeyVersion(int16(kmsg.EndTxn), same.Version)
			cl := c.Client(tb, kgo.MaxVersions(versions))
			c.Fake.SleepControl(func() {
				resp, err := same.RequestWith(tb.Context(), cl)
				if err == nil {
					err = kerr.ErrorForCode(resp.ErrorCode)
				}
				if err != nil {
					tb.Errorf("end the transaction: %v", err)
				}
			})
		}
		done.Store(true)
		return unknownServerError(r), nil, true
	})
	return &done
}

func TestWriterGivesUp(t *testing.T) {
	for name, test := range map[string]struct {
		key  kmsg.Key
		want error
	}{
		"fenced before the commit": {kmsg.Produce, ErrBusy},
		// The answer may be to a second request, after the first one's was lost.
		"fenced at the commit": {kmsg.EndTxn, ErrUnknownOutcome},
	} {
		t.Run(name, func(t *testing.T) {
			c := kafkatest.Start(t)
			w := newTestWriter(t, c)
			fault := c.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{test.key}, Err: kerr.ProducerFenced, Count: -1})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error)
			go func() {
				_, err := w.CreateWorkspace(ctx, by, NewWorkspace{Name: "default"})
				done <- err
			}()
			if err := fault.Wait(t.Context(), 3); err != nil {
				t.Fatal(err)
			}
			cancel()
			if err := <-done; !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
			fault.Remove()
			createWorkspace(t, w, "default")
			if diff := cmp.Diff([]string{"workspace.created"}, checkTopics(t, c)); diff != "" {
				t.Error(diff)
			}
		})
	}
}
