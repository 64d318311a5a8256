package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
)

// TestGuessesWithTheIdempotencyKey sends an event again after its PIN was redacted, with every PIN that there is, one by one
// and in batches: no answer differs from the others, so that none says which one it was.
func TestGuessesWithTheIdempotencyKey(t *testing.T) {
	long(t)
	s := up(t)
	guess := func(pin int) []byte {
		return fmt.Appendf(nil, `{"actor_id":"a","action":"card.blocked","idempotency_key":"block-1","metadata":{"pin":"%04d"}}`, pin)
	}
	post := func(path string, body []byte) (int, []byte, error) {
		status, header, answer, err := s.do(t.Context(), http.MethodPost, writeURL+path, nil, body)
		// What is new with each request, and what stands for it in the body.
		return status, bytes.ReplaceAll(answer, []byte(header.Get("X-Request-Id")), nil), err
	}
	id := s.post(t, guess(4711))
	if status, answer, err := post("/events", guess(4711)); status != http.StatusAccepted || !bytes.Contains(answer, []byte(id)) {
		t.Fatalf("before it was redacted: %d %s %v", status, answer, err)
	}
	s.redact(t, id, "/metadata/pin")

	_, want, err := post("/events", guess(4711))
	if err != nil || !bytes.Contains(want, []byte(`"error":"conflict"`)) {
		t.Fatalf("%s %v", want, err)
	}
	const guesses, workers = 10_000, 4
	var all sync.WaitGroup
	for worker := range workers {
		all.Go(func() {
			for pin := worker; pin < guesses; pin += workers {
				if status, got, err := post("/events", guess(pin)); status != http.StatusConflict || !bytes.Equal(got, want) || err != nil {
					t.Errorf("%04d: %d %s %v", pin, status, got, err)
					return
				}
			}
		})
	}
	all.Wait()

	for from := 0; from < guesses; from += 1000 {
		batch := make([]string, 1000)
		for i := range batch {
			batch[i] = string(guess(from + i))
		}
		var answer struct {
			Events []struct {
				Index                  int
				Status, Error, Message string
			}
		}
		status, text, err := post("/events/batch", []byte(`{"events":[`+strings.Join(batch, ",")+`]}`))
		if err != nil || status != http.StatusAccepted || json.Unmarshal(text, &answer) != nil || len(answer.Events) != len(batch) {
			t.Fatalf("%d %.300s %v", status, text, err)
		}
		for i, e := range answer.Events {
			if e.Index != i || e.Status != "rejected" || e.Error != "conflict" || e.Message != answer.Events[0].Message {
				t.Errorf("%04d in a batch: %+v", from+i, e)
			}
		}
	}
	s.check(t, 1)
	s.stop(t)
}
