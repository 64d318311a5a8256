package event

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/schemas/recordpb"
)

// TestColumns: what a body says is what its record says beside it.
func TestColumns(t *testing.T) {
	ws := &Workspace{ID: [16]byte{1}, Lanes: 4}
	b := NewBuilder()
	for _, text := range []string{
		`{"action":"a.b","actor_id":"u"}`,
		`{"action":"a.b","actor":{"id":7,"name":"Ä\u00e4\t","type":"user"},"resource":{"type":"svc","id":"x","name":"y"},"version":3}`,
		`{"action":"a.b","actor_id":"u","action_category":"c","session_id":"s","tenant_id":"t","ip_address":"::ffff:10.0.0.1","user_agent":"w",` +
			`"occurred_at":"2026-11-24T10:00:00.5+01:00","idempotency_key":"k"}`,
		`{"action":"a.b","actor_id":"u","targets":[{"type":"x","id":"1","metadata":{"a":1}},{"type":"y"}]}`,
		`{"action":"a.b","actor_id":"u","metadata":{"z":{"b":[1,2.50,{"c":null,"d":true}],"a":""},"e":[],"password":"AKIAIOSFODNN7EXAMPLE","a/b~c":"\u0001"}}`,
	} {
		record, err := b.Build(ws, Input{JSON: []byte(text), RecordedAt: time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC)})
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		var want recordpb.Event
		if err := proto.Unmarshal(record.Value, &want); err != nil {
			t.Fatal(err)
		}
		var c Columns
		if err := NewBuilder().Columns(want.GetBody(), &c); err != nil {
			t.Fatalf("%s: %v", want.GetBody(), err)
		}
		got := &recordpb.Event{
			OccurredAt: c.OccurredAt, ActorId: string(c.Text[0]), ActorName: string(c.Text[1]), ActorType: string(c.Text[2]), Action: string(c.Text[3]),
			ActionCategory: string(c.Text[4]), Resource: string(c.Text[5]), ResourceId: string(c.Text[6]), ResourceName: string(c.Text[7]),
			SessionId: string(c.Text[8]), TenantId: string(c.Text[9]), IpAddress: string(c.Text[10]), UserAgent: string(c.Text[11]),
			TargetTypes: texts(c.TargetTypes), TargetIds: texts(c.TargetIDs), Flags: texts(c.Flags), MetadataKeys: texts(c.MetadataKeys),
			MetadataValues: texts(c.MetadataValues),
			// Not columns.
			Id: want.GetId(), Keyed: want.GetKeyed(), Kind: want.GetKind(), Workspace: want.GetWorkspace(), Incarnation: want.GetIncarnation(),
			Lane: want.GetLane(), Lanes: want.GetLanes(), RecordedAt: want.GetRecordedAt(), Seed: want.GetSeed(), Body: want.GetBody(),
			FieldCount: want.GetFieldCount(), BodyRoot: want.GetBodyRoot(),
		}
		if !proto.Equal(got, &want) {
			t.Errorf("%s:\n%s", text, cmp.Diff(want.String(), got.String()))
		}
	}
	var c Columns
	for _, text := range []string{``, `[]`, `{"frobnicate":1}`, `{"occurred_at":"yesterday"}`, `{"metadata":[]}`, `{"action":1}`} {
		if err := NewBuilder().Columns([]byte(text), &c); err == nil {
			t.Errorf("%s: no error", text)
		}
	}
}

func texts(list [][]byte) (all []string) {
	for _, text := range list {
		all = append(all, string(text))
	}
	return all
}

// FuzzColumns: whatever a body is, reading its columns ends.
func FuzzColumns(f *testing.F) {
	f.Add([]byte(`{"action":"a.b","metadata":{"a":[1,{"b":null}]},"targets":[{"type":"x"}],"flags":["y"]}`))
	f.Add([]byte(`{"targets":{"a":1},"flags":{"b":[]},"occurred_at":1}`))
	b := NewBuilder()
	f.Fuzz(func(_ *testing.T, body []byte) {
		var c Columns
		_ = b.Columns(body, &c)
	})
}
