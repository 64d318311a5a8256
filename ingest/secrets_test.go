package ingest

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// TestSecrets holds what a client sees of its workspace's policy for secrets, and what the topic does.
func TestSecrets(t *testing.T) {
	r := newRig(t, kafkatest.Start(t), nil)
	secret := "gh" + "p_" + strings.Repeat("aB3dE5", 6) // In parts, so that nobody's scanner takes it for a leak.
	leaky := `{"actor_id":"ci","action":"config.changed","metadata":{"log":"used ` + secret + `","config_key":"db.password","old_value":"hunter2"}}`
	set := func(policy event.SecretPolicy) {
		t.Helper()
		known, _ := r.view.Workspace(r.workspace.ID)
		if _, err := r.writer.UpdateWorkspace(t.Context(), "cli:test", known.ID, known.Version, func(s *control.Settings) { *s = control.Settings{SecretPolicy: policy} }); err != nil {
			t.Fatal(err)
		}
		r.eventually("the policy in the view", func() bool {
			ws, ok := r.view.Workspace(r.workspace.ID)
			return ok && ws.Settings.SecretPolicy == policy
		})
	}

	var e *recordpb.Event
	moved(t, r.service.metrics.secretsFlagged, 1, func() { e = r.queued(r.post(onePath, strings.NewReader(leaky))) })
	if diff := cmp.Diff([]string{"possible_secret:metadata.log", "possible_secret:metadata.old_value"}, e.Flags); diff != "" {
		t.Errorf("flags (-want +got):\n%s", diff)
	}

	set(event.SecretsRedact)
	moved(t, r.service.metrics.secretsRedacted, 1, func() {
		e = r.queued(r.post(onePath, strings.NewReader(leaky), "Idempotency-Key", "k1"))
	})
	for _, text := range []string{secret, "hunter2"} {
		if bytes.Contains(r.seen[uuid.UUID(e.Id)].Value, []byte(text)) {
			t.Errorf("%q is in the record of %s", text, e.Body)
		}
	}
	// Two attempts that differ in what is redacted are one event: nothing tells them apart any more.
	again := r.post(onePath, strings.NewReader(strings.Replace(leaky, "hunter2", "hunter3", 1)), "Idempotency-Key", "k1")
	r.want(again, http.StatusAccepted, `{"id":"`+uuid.UUID(e.Id).String()+`","status":"duplicate"}`)

	set(event.SecretsReject)
	written := r.records()
	const fault = `"error":"validation_failed","message":"metadata.log looks like a secret (github-token); send what it is called, or leave ` +
		`it out (and 1 more)","details":[{"field":"metadata.log","message":"looks like a secret (github-token); send what it is called, ` +
		`or leave it out"},{"field":"metadata.old_value","message":"looks like a secret (sensitive-key); send what it is called, or leave it out"}]}`
	moved(t, r.service.metrics.rejected.WithLabelValues(event.CodeValidation), 1, func() {
		r.want(r.post(onePath, strings.NewReader(leaky)), http.StatusUnprocessableEntity, `{`+fault)
	})
	moved(t, r.service.metrics.secretsRejected, 1, func() {
		r.want(r.post(batchPath, batchOf(leaky)), http.StatusAccepted, `{"events":[{"index":0,"status":"rejected",`+fault+`]}`)
	})
	if n := r.records(); n != written {
		t.Errorf("%d records were written", n-written)
	}
	r.queued(r.post(onePath, strings.NewReader(valid)))
}
