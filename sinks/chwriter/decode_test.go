package chwriter

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/schemas/recordpb"
)

// generated decodes with the generated code.
func generated(b []byte) (*recordpb.Sealed, error) {
	var s recordpb.Sealed
	err := proto.Unmarshal(b, &s)
	return &s, err
}

// view is what decode and the generated code must agree on.
func view(s *sealed) any {
	text := make([]string, len(s.text))
	for i := range s.text {
		text[i] = string(s.text[i])
	}
	list := func(bs [][]byte) []string {
		out := []string{}
		for _, b := range bs {
			out = append(out, string(b))
		}
		return out
	}
	return []any{
		string(s.chain), string(s.previous), string(s.leafHash), string(s.node), s.sequence, s.generation, s.partition,
		s.offset, string(s.id), s.kind, string(s.workspace), string(s.seed), string(s.body), s.fieldCount,
		string(s.bodyRoot), s.recordedAt, s.occurredAt, text, list(s.targetTypes), list(s.targetIDs), list(s.flags),
		list(s.metadataKeys), list(s.metadataValues),
	}
}

func generatedView(s *recordpb.Sealed) any {
	e := s.GetEvent()
	id := string(e.GetId())
	if e.GetKind() == recordpb.Kind_KIND_GENESIS && id == "" {
		id = string(zeroID[:])
	}
	list := func(ss []string) []string { return append([]string{}, ss...) }
	return []any{
		string(s.GetChain()), string(s.GetPrevious()), string(s.GetLeafHash()), string(s.GetNode()), s.GetSequence(),
		uint64(s.GetGeneration()), uint64(s.GetPartition()), s.GetOffset(), id, uint64(e.GetKind()),
		string(e.GetWorkspace()), string(e.GetSeed()), string(e.GetBody()), uint64(e.GetFieldCount()),
		string(e.GetBodyRoot()), e.GetRecordedAt(), e.GetOccurredAt(),
		[]string{
			e.GetActorId(), e.GetActorName(), e.GetActorType(), e.GetAction(), e.GetActionCategory(), e.GetResource(),
			e.GetResourceId(), e.GetResourceName(), e.GetSessionId(), e.GetTenantId(), e.GetIpAddress(), e.GetUserAgent(),
		},
		list(e.GetTargetTypes()), list(e.GetTargetIds()), list(e.GetFlags()), list(e.GetMetadataKeys()),
		list(e.GetMetadataValues()),
	}
}

func TestDecodeGolden(t *testing.T) {
	golden, err := os.ReadFile("../../schemas/testdata/golden/Sealed.1.pb")
	if err != nil {
		t.Fatal(err)
	}
	want, err := generated(golden)
	if err != nil {
		t.Fatal(err)
	}
	var got sealed
	_ = got.decode(golden) // its fields are filled with what no record has; each must be read for what it is
	if diff := cmp.Diff(generatedView(want), view(&got)); diff != "" {
		t.Error(diff)
	}
}

// FuzzDecode holds decode to the generated code: what that reads and writes again, decode reads to the same values, or
// refuses for its content.
func FuzzDecode(f *testing.F) {
	golden, err := os.ReadFile("../../schemas/testdata/golden/Sealed.1.pb")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(golden)
	for _, r := range newSealer(f, 4).events(20) {
		f.Add(r.Value)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var got sealed
		_ = got.decode(b) // must not panic
		want, err := generated(b)
		if err != nil {
			return
		}
		if b, err = proto.Marshal(want); err != nil {
			t.Fatal(err)
		}
		err = got.decode(b)
		if diff := cmp.Diff(generatedView(want), view(&got)); diff != "" {
			t.Errorf("decode says %v; (-generated +decode):\n%s", err, diff)
		}
		if err == nil {
			_ = verify(&got) // must not panic
		}
	})
}

func TestDecodeRefuses(t *testing.T) {
	sealer := newSealer(t, 4)
	records := sealer.events(20)
	good := records[len(records)-1].Value
	for name, change := range map[string]func(*recordpb.Sealed){
		"no event":        func(s *recordpb.Sealed) { s.Event = nil },
		"short chain":     func(s *recordpb.Sealed) { s.Chain = s.Chain[:15] },
		"no previous":     func(s *recordpb.Sealed) { s.Previous = nil },
		"long leaf hash":  func(s *recordpb.Sealed) { s.LeafHash = append(s.LeafHash, 0) },
		"odd node":        func(s *recordpb.Sealed) { s.Node = make([]byte, 33) },
		"no id":           func(s *recordpb.Sealed) { s.Event.Id = nil },
		"no seed":         func(s *recordpb.Sealed) { s.Event.Seed = nil },
		"no body":         func(s *recordpb.Sealed) { s.Event.Body = nil },
		"no kind":         func(s *recordpb.Sealed) { s.Event.Kind = 0 },
		"generation":      func(s *recordpb.Sealed) { s.Generation = 1 << 16 },
		"partition":       func(s *recordpb.Sealed) { s.Partition = 1 << 16 },
		"field count":     func(s *recordpb.Sealed) { s.Event.FieldCount = 1 << 16 },
		"odd targets":     func(s *recordpb.Sealed) { s.Event.TargetIds = append(s.Event.TargetIds, "x") },
		"odd metadata":    func(s *recordpb.Sealed) { s.Event.MetadataKeys = append(s.Event.MetadataKeys, "x") },
		"short workspace": func(s *recordpb.Sealed) { s.Event.Workspace = []byte{1} },
		"no body root":    func(s *recordpb.Sealed) { s.Event.BodyRoot = nil },
	} {
		t.Run(name, func(t *testing.T) {
			s, err := generated(good)
			if err != nil {
				t.Fatal(err)
			}
			change(s)
			b, err := proto.Marshal(s)
			if err != nil {
				t.Fatal(err)
			}
			var got sealed
			if err := got.decode(b); err == nil {
				t.Error("no error")
			}
		})
	}
	for n := range good {
		var got sealed
		_ = got.decode(good[:n]) // must not panic
	}
}

func TestVerifyAgreesWithTheBuilder(t *testing.T) {
	sealer := newSealer(t, 4)
	records := sealer.events(300)
	records = append(records, sealer.event([]byte(`{"action":"a.b","actor_id":"x","metadata":{"a/b":{"~x":[1,2]},"~":"t","ü\u0001":true,"𝄞":1,"\uffff":2}}`))...)
	for _, r := range records {
		var s sealed
		if err := s.decode(r.Value); err != nil {
			t.Fatal(err)
		}
		if err := verify(&s); err != nil {
			t.Fatalf("%v: %s", err, s.body)
		}
	}
}
