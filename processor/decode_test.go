package processor

import (
	"bytes"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/schemas/recordpb"
)

func TestWalkRefuses(t *testing.T) {
	change := func(f func(*recordpb.Event)) []byte {
		e := newEvent(1, 0, 1, true)
		f(e)
		return marshal(t, e)
	}
	with := func(extra ...byte) []byte { return append(marshal(t, newEvent(1, 0, 1, true)), extra...) }
	for _, tt := range []struct {
		name  string
		value []byte
		want  string
	}{
		{"nothing", nil, "missing"},
		{"not protobuf", []byte("{}"), "wire type 3"},
		{"cut short", with()[:100], "not a protobuf message"},
		{"no id", change(func(e *recordpb.Event) { e.Id = nil }), "missing"},
		{"short id", change(func(e *recordpb.Event) { e.Id = e.Id[:15] }), "field 1 has 15 bytes"},
		{"long workspace", change(func(e *recordpb.Event) { e.Workspace = append(e.Workspace, 0) }), "field 4 has 17 bytes"},
		{"short incarnation", change(func(e *recordpb.Event) { e.Incarnation = e.Incarnation[:1] }), "field 5"},
		{"short seed", change(func(e *recordpb.Event) { e.Seed = e.Seed[:1] }), "field 9"},
		{"no seed", change(func(e *recordpb.Event) { e.Seed = nil }), "missing"},
		{"short body root", change(func(e *recordpb.Event) { e.BodyRoot = e.BodyRoot[:31] }), "field 12"},
		{"no body", change(func(e *recordpb.Event) { e.Body = nil }), "missing"},
		{"empty body", with(protowire.AppendBytes(protowire.AppendTag(nil, fieldBody, protowire.BytesType), nil)...), "twice"},
		{"no kind", change(func(e *recordpb.Event) { e.Kind = 0 }), "missing"},
		{"genesis", change(func(e *recordpb.Event) { e.Kind = recordpb.Kind_KIND_GENESIS }), "field 3 is 1"},
		{"unknown kind", change(func(e *recordpb.Event) { e.Kind = 9 }), "field 3 is 9"},
		{"no lanes", change(func(e *recordpb.Event) { e.Lanes = 0 }), "missing"},
		{"lane beyond lanes", change(func(e *recordpb.Event) { e.Lane = 4 }), "lane 4 of 4"},
		{"no field count", change(func(e *recordpb.Event) { e.FieldCount = 0 }), "missing"},
		{"field count beyond 16 bits", change(func(e *recordpb.Event) { e.FieldCount = 65536 }), "field 11"},
		{"no time", change(func(e *recordpb.Event) { e.RecordedAt = 0 }), "missing"},
		{"time before 1970", change(func(e *recordpb.Event) { e.RecordedAt = -1 }), "field 8"},
		{"time beyond 2200", change(func(e *recordpb.Event) { e.RecordedAt = maxRecordedAt + 1 }), "field 8"},
		{"targets not parallel", change(func(e *recordpb.Event) { e.TargetIds = e.TargetIds[:1] }), "2 target types, 1 target ids"},
		{"metadata not parallel", change(func(e *recordpb.Event) { e.MetadataKeys = nil }), "0 metadata keys, 2 metadata values"},
		{"text not UTF-8", with(protowire.AppendString(protowire.AppendTag(nil, 21, protowire.BytesType), "\xff")...), "field 21 is not UTF-8"},
		{"wrong wire type", with(protowire.AppendVarint(protowire.AppendTag(nil, 22, protowire.VarintType), 1)...), "wire type 0"},
		{"field twice", with(protowire.AppendVarint(protowire.AppendTag(nil, fieldLane, protowire.VarintType), 1)...), ""},
		{"group", with(protowire.AppendTag(protowire.AppendTag(nil, 99, protowire.StartGroupType), 99, protowire.EndGroupType)...), "wire type 3"},
		{"keyed is 2", with(protowire.AppendVarint(protowire.AppendTag(nil, fieldKeyed, protowire.VarintType), 2)...), "twice"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := walk(tt.value)
			if tt.want == "" { // lane 0 is not on the wire: one occurrence
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestWalkLetsNewFieldsThrough(t *testing.T) {
	b := marshal(t, newEvent(1, 0, 1, true))
	b = protowire.AppendString(protowire.AppendTag(b, 500, protowire.BytesType), "\xff")
	b = protowire.AppendFixed64(protowire.AppendTag(b, 501, protowire.Fixed64Type), 7)
	if _, err := walk(b); err != nil {
		t.Error(err)
	}
}

// FuzzWalk holds what the walk accepts against the real decoder: it must decode, to what the walk read.
func FuzzWalk(f *testing.F) {
	f.Add(marshal(f, newEvent(1, 0, 1, true)))
	f.Add(marshal(f, newEvent(2, 3, 7, false)))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := walk(b)
		if err != nil {
			return
		}
		e := new(recordpb.Event)
		if err := proto.Unmarshal(b, e); err != nil {
			t.Fatalf("accepted, but does not decode: %v", err)
		}
		same := bytes.Equal(got.id[:], e.GetId()) && bytes.Equal(got.workspace[:], e.GetWorkspace()) &&
			bytes.Equal(got.incarnation[:], e.GetIncarnation()) && bytes.Equal(got.bodyRoot[:], e.GetBodyRoot()) &&
			got.recordedAt == e.GetRecordedAt() && got.lane == e.GetLane() && got.lanes == e.GetLanes() &&
			uint32(got.fieldCount) == e.GetFieldCount() && got.kind == e.GetKind()
		if !same {
			t.Fatalf("walk read %+v, the record is %v", got, e)
		}
		if len(e.GetSeed()) != 16 || len(e.GetBody()) == 0 || len(e.GetTargetIds()) != len(e.GetTargetTypes()) ||
			len(e.GetMetadataKeys()) != len(e.GetMetadataValues()) {
			t.Fatalf("accepted %v", e)
		}
	})
}
