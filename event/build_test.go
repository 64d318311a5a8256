package event

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/schemas/recordpb"
)

var testTime = time.Date(2026, 9, 30, 3, 0, 0, 123456789, time.UTC)

func testWorkspace() *Workspace {
	return &Workspace{ID: [16]byte{1, 2, 3}, Incarnation: [16]byte{4, 5, 6}, Lanes: 4, IdempotencySecret: [32]byte{7, 8, 9}}
}

// build returns the record that json makes, decoded.
func build(t *testing.T, ws *Workspace, in Input) (Record, *recordpb.Event) {
	t.Helper()
	if in.RecordedAt.IsZero() {
		in.RecordedAt = testTime
	}
	r, err := NewBuilder().Build(ws, in)
	if err != nil {
		t.Fatalf("build %.200s: %v", in.JSON, err)
	}
	var e recordpb.Event
	if err := proto.Unmarshal(r.Value, &e); err != nil {
		t.Fatal(err)
	}
	return r, &e
}

func readFixture(tb testing.TB, path string) []byte {
	tb.Helper()
	raw, err := os.ReadFile(filepath.Join("../schemas/testdata/fixtures", path))
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}

// The events of the product's guide, and the same as its SDK sends them: without resource_id, the name in metadata.
func TestFixtures(t *testing.T) {
	tests := []struct{ file, resource, resourceID, sdkResourceID string }{
		{"1-deployment.started.json", "service", "api-gateway", "api-gateway"},
		{"2-config.changed.json", "service", "api-gateway", "api-gateway"},
		{"3-secret.rotated.json", "secret", "production/database/primary", "production/database/primary"},
		{"4-incident.created.json", "incident", "inc_8f3a2c1d", "inc_8f3a2c1d"},
		{"5-deployment.rollback.json", "service", "api-gateway", "api-gateway"},
	}
	for _, tt := range tests {
		for folder, want := range map[string]string{"events": tt.resourceID, "events-sdk": tt.sdkResourceID} {
			t.Run(folder+"/"+tt.file, func(t *testing.T) {
				raw := readFixture(t, filepath.Join(folder, tt.file))
				r, e := build(t, testWorkspace(), Input{JSON: raw})
				if e.Resource != tt.resource || e.ResourceId != want {
					t.Errorf("resource %q %q, want %q %q", e.Resource, e.ResourceId, tt.resource, want)
				}
				if e.Flags != nil {
					t.Errorf("flags %q", e.Flags)
				}
				if lane := Lane(tt.resource, want, e.ActorId, 4); r.Lane != lane || e.Lane != lane {
					t.Errorf("lane %d and %d, want %d", r.Lane, e.Lane, lane)
				}
				var sent, body map[string]any
				if err := json.Unmarshal(raw, &sent); err != nil {
					t.Fatal(err)
				}
				if err := json.Unmarshal(e.Body, &body); err != nil {
					t.Fatal(err)
				}
				sent["occurred_at"], sent["resource_id"] = "2026-09-30T03:00:00.123456Z", want
				if diff := cmp.Diff(sent, body); diff != "" {
					t.Errorf("body (-sent and defaults, +got):\n%s", diff)
				}
			})
		}
	}
}

func BenchmarkBuild(b *testing.B) {
	var event bytes.Buffer
	if err := json.Compact(&event, readFixture(b, "events/1-deployment.started.json")); err != nil {
		b.Fatal(err)
	}
	keyed := append([]byte(`{"idempotency_key":"4f5e1c6a-deploy-1847",`), event.Bytes()[1:]...)
	for name, json := range map[string][]byte{"plain": event.Bytes(), "keyed": keyed} {
		b.Run(name, func(b *testing.B) {
			builder, ws, in := NewBuilder(), testWorkspace(), Input{JSON: json, RecordedAt: testTime}
			b.ReportAllocs()
			b.SetBytes(int64(len(json)))
			before := cpuTime(b)
			for b.Loop() {
				if _, err := builder.Build(ws, in); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64((cpuTime(b)-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
		})
	}
}

// cpuTime is what the process has used, which a busy machine does not distort as it does the time that went by.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
