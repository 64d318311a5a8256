package chwriter

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFixtures(t *testing.T) {
	r := newRig(t)
	files, err := filepath.Glob("../../schemas/testdata/fixtures/events*/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("fixtures: %v, %v", files, err)
	}
	for _, f := range files {
		body, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		r.kafka.Produce(t, r.sealer.event(body)...)
	}
	w := r.start(r.config())
	r.check()
	w.awaitReady()

	rows, err := r.conn.Query(t.Context(), `SELECT action, resource, resource_id, actor_id, body, metadata, part,
		toUInt32(toYYYYMM(recorded_at)), kind FROM events`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var row, want struct {
			Action     string `json:"action"`
			Resource   string `json:"resource"`
			ResourceID string `json:"resource_id"`
			ActorID    string `json:"actor_id"`
		}
		var body string
		var metadata map[string]string
		var part, month uint32
		var kind uint8
		err := rows.Scan(&row.Action, &row.Resource, &row.ResourceID, &row.ActorID, &body, &metadata, &part, &month, &kind)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(body), &want); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, row); diff != "" {
			t.Errorf("columns differ from the body (-body +columns):\n%s", diff)
		}
		if row.Action == "" || part != month || kind != 2 || len(metadata) == 0 {
			t.Errorf("action %q, part %d, month %d, kind %d, metadata %v", row.Action, part, month, kind, metadata)
		}
	}
	if rows.Err() != nil {
		t.Fatal(rows.Err())
	}
	for name, want := range map[string]float64{"batches_total": 1, "records_verified_total": float64(len(files)), "insert_seconds": 2} {
		if got := w.metric(name); got < want {
			t.Errorf("%s is %v, want at least %v", name, got, want)
		}
	}
}
