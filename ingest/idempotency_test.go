package ingest

import (
	"encoding/json"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
)

func decode[T any](tb testing.TB, got response) T {
	tb.Helper()
	var v T
	if err := json.Unmarshal([]byte(got.body), &v); err != nil || got.code != 202 {
		tb.Fatalf("%d: %s", got.code, got.body)
	}
	return v
}

func keyed(key, action string) string {
	return `{"actor_id":"ci","action":"` + action + `","idempotency_key":"` + key + `"}`
}

const keyReused = `"error":"conflict","message":"This idempotency key was used for an event with other content: ` +
	`use a new key for a new event, and send the same content when you retry."}`

func TestIdempotency(t *testing.T) {
	r := newRig(t, kafkatest.Start(t), nil)
	post := func(text string, headers ...string) response {
		return r.post(onePath, strings.NewReader(text), headers...)
	}
	first := post(keyed("k1", "a.b"))
	e := r.queued(first)
	id := decode[item](t, first).ID
	if !e.Keyed || uuid.UUID(e.Id).Version() != 8 {
		t.Errorf("id %s of an event with a key", id)
	}
	written := r.records()
	duplicate := `{"id":"` + id + `","status":"duplicate"}`

	moved(t, r.service.metrics.duplicate, 3, func() {
		r.want(post(keyed("k1", "a.b")), 202, duplicate)
		// The header is the same as the field, and both together are, too.
		r.want(post(`{"action":"a.b","actor_id":"ci"}`, "Idempotency-Key", "k1"), 202, duplicate)
		r.want(post(keyed("k1", "a.b"), "Idempotency-Key", "k1"), 202, duplicate)
	})
	moved(t, r.service.metrics.rejected.WithLabelValues("conflict"), 1, func() {
		r.want(post(keyed("k1", "a.c")), 409, "{"+keyReused)
	})
	if got := post(keyed("k1", "a.b"), "Idempotency-Key", "k2"); got.code != 422 {
		t.Errorf("a header and a field that differ: %d: %s", got.code, got.body)
	}
	req := r.request("POST", onePath, strings.NewReader(valid))
	req.Header["Idempotency-Key"] = []string{"k3", "k4"}
	r.want(r.send(req), 422, `{"error":"validation_failed","message":"The header Idempotency-Key must be there once."}`)

	// In a batch with what the door knows, with itself, and with new ones.
	got := r.post(batchPath, batchOf(keyed("k1", "a.b"), keyed("k1", "a.c"), keyed("k5", "x.y"), keyed("k5", "x.y"), keyed("k5", "x.z")))
	items := r.batch(got, 5)
	r.want(got, 202, `{"events":[`+duplicate+`,{"index":1,"status":"rejected",`+keyReused+`,{"id":"`+items[2].ID+
		`","status":"queued"},{"id":"`+items[2].ID+`","status":"duplicate"},{"index":4,"status":"rejected",`+keyReused+`]}`)
	if n := r.records() - written; n != 1 {
		t.Errorf("%d records were written, want 1", n)
	}
	// A batch of duplicates alone is answered without Kafka.
	r.hold()
	r.want(r.post(batchPath, batchOf(keyed("k1", "a.b"))), 202, `{"events":[`+duplicate+`]}`)
}

// TestBurnedKey: once something of an event was redacted, its idempotency key is refused with any content and however it
// comes, before anything is compared with what the event was.
func TestBurnedKey(t *testing.T) {
	r := newRig(t, kafkatest.Start(t), nil)
	const burned = `"error":"conflict","message":"This idempotency key belongs to an event of which something was redacted, and is not ` +
		`accepted again with any content: the event is stored if this is a retry of it, and a new event needs a new key."}`
	id := uuid.MustParse(decode[item](t, r.post(onePath, strings.NewReader(keyed("k1", "a.b")))).ID)
	other := decode[item](t, r.post(onePath, strings.NewReader(keyed("k2", "a.b")))).ID
	redactable := control.Redactable{
		EventID: control.EventID{Workspace: r.workspace.ID, Event: id}, Lane: r.record(id.String()).Lane, IdempotencyKey: "k1",
	}
	if _, err := r.writer.RedactEvent(t.Context(), "cli:test", redactable, []string{"/actor_id"}, "r"); err != nil {
		t.Fatal(err)
	}
	if err := r.view.Current(t.Context()); err != nil {
		t.Fatal(err)
	}
	written := r.records()
	moved(t, r.service.metrics.duplicate, 1, func() {
		moved(t, r.service.metrics.rejected.WithLabelValues("conflict"), 8, func() {
			for _, text := range []string{keyed("k1", "a.b"), keyed("k1", "a.c"), `{"actor_id":"x","action":"y","idempotency_key":"k1"}`} {
				r.want(r.post(onePath, strings.NewReader(text)), 409, "{"+burned)
			}
			r.want(r.post(onePath, strings.NewReader(`{"action":"a.b","actor_id":"ci"}`), "Idempotency-Key", "k1"), 409, "{"+burned)
			r.want(r.post(onePath, strings.NewReader(valid), "Idempotency-Key", "k1"), 409, "{"+burned)
			r.want(r.post(batchPath, batchOf(keyed("k1", "a.b"), keyed("k1", "a.b"), keyed("k2", "a.b"), keyed("k1", "a.c"))), 202,
				`{"events":[{"index":0,"status":"rejected",`+burned+`,{"index":1,"status":"rejected",`+burned+
					`,{"id":"`+other+`","status":"duplicate"},{"index":3,"status":"rejected",`+burned+`]}`)
		})
	})
	if n := r.records() - written; n != 0 {
		t.Errorf("%d records were written", n)
	}
}

// TestIdempotencyAfterFailure checks that a key whose event did not reach Kafka is not remembered.
func TestIdempotencyAfterFailure(t *testing.T) {
	r := newRig(t, kafkatest.Start(t), nil)
	r.stop()
	<-r.stopped
	r.unavailable(r.post(onePath, strings.NewReader(keyed("k", "a.b"))))
	if _, ok := r.service.accepted.id(r.workspace.ID, "k"); ok {
		t.Error("the key of an event that was not accepted is known")
	}
}

// TestIdempotencyRace sends one event many times at once: each answer has the same id, none is a conflict.
func TestIdempotencyRace(t *testing.T) {
	r := newRig(t, kafkatest.Start(t), nil)
	release := r.hold()
	answers := make([]response, 16)
	var all sync.WaitGroup
	for i := range answers {
		all.Go(func() { answers[i] = r.post(onePath, strings.NewReader(keyed("k", "a.b"))) })
	}
	r.eventually("all are under way", func() bool {
		return r.service.client.BufferedProduceRecords() == int64(len(answers))
	})
	release()
	all.Wait()
	ids := map[string]bool{}
	for _, a := range answers {
		ids[decode[item](t, a).ID] = true
	}
	if len(ids) != 1 {
		t.Errorf("%d ids", len(ids))
	}
	if got := decode[item](t, r.post(onePath, strings.NewReader(keyed("k", "a.b")))); got.Status != statusDuplicate {
		t.Errorf("%+v", got)
	}
}

// TestRecent compares with a plain map: what recent remembers is true, the last half of its size is remembered, and it
// never holds more than its size.
func TestRecent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 12).Draw(t, "size")
		r := newRecent[string, int](size)
		all := map[string]int{}
		var used []string // keys, the last used at the end
		for i, key := range rapid.SliceOf(rapid.IntRange(0, 30)).Draw(t, "keys") {
			k := strconv.Itoa(key)
			if rapid.Bool().Draw(t, "get") {
				v, ok := r.get(k)
				if want, there := all[k]; ok && (!there || v != want) {
					t.Fatalf("%s is %d, want %d", k, v, want)
				}
				if !ok {
					continue
				}
			} else {
				r.put(k, i)
				all[k] = i
			}
			used = append(used, k)
			if n := len(r.young) + len(r.old); n > max(2, size) {
				t.Fatalf("%d entries", n)
			}
		}
		last := map[string]bool{}
		for i := len(used) - 1; i >= 0 && len(last) < max(1, size/2); i-- {
			last[used[i]] = true
		}
		for k := range last {
			if _, ok := r.young[k]; !ok {
				if _, ok := r.old[k]; !ok {
					t.Fatalf("%s was used lately and is forgotten", k)
				}
			}
		}
	})
}
