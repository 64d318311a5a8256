package schemas_test

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/testing/protocmp"

	"getimmutable.dev/immutable/schemas/recordpb"
)

var update = flag.Bool("update", false, "add golden files for messages that have gained fields; existing files never change")

// golden returns every record value with all its fields set, by the name of its files; where a message holds one of
// several fields, there is one of each.
func golden(t *testing.T) map[string]proto.Message {
	t.Helper()
	all := map[string]proto.Message{}
	for _, file := range []protoreflect.FileDescriptor{
		recordpb.File_record_proto, recordpb.File_config_proto, recordpb.File_usage_proto,
	} {
		for i := range file.Messages().Len() {
			message := file.Messages().Get(i)
			kind, err := protoregistry.GlobalTypes.FindMessageByName(message.FullName())
			if err != nil {
				t.Fatal(err)
			}
			full := kind.New()
			fill(full, 0)
			if message.Oneofs().Len() == 0 {
				all[string(message.Name())] = full.Interface()
			}
			for k := range message.Oneofs().Len() {
				choices := message.Oneofs().Get(k).Fields()
				for c := range choices.Len() {
					choice := choices.Get(c)
					one := proto.Clone(full.Interface()).ProtoReflect()
					one.Clear(one.WhichOneof(message.Oneofs().Get(k)))
					setField(one, choice, 0)
					all[string(message.Name())+"-"+string(choice.Name())] = one.Interface()
				}
			}
		}
	}
	return all
}

// TestGolden decodes <name>.<n>.pb, written when the message had fewer fields, and compares it with the JSON beside it.
// The highest n has every field of today.
func TestGolden(t *testing.T) {
	for name, want := range golden(t) {
		t.Run(name, func(t *testing.T) {
			var newest proto.Message
			n := 1
			for ; ; n++ {
				m, err := readGolden(want, name, n)
				if errors.Is(err, fs.ErrNotExist) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				newest = m
			}
			if newest != nil && proto.Equal(want, newest) {
				return
			}
			if !*update {
				t.Fatalf("%s is missing: -update writes it (-newest golden file +all fields):\n%s",
					goldenPath(name, n, "pb"), cmp.Diff(newest, want, protocmp.Transform()))
			}
			writeGolden(t, want, name, n)
		})
	}
}

func goldenPath(name string, n int, extension string) string {
	return filepath.Join("testdata/golden", fmt.Sprintf("%s.%d.%s", name, n, extension))
}

// readGolden decodes file n and holds it to its JSON: nothing is lost, nothing is called otherwise.
func readGolden(kind proto.Message, name string, n int) (proto.Message, error) {
	encoded, err := os.ReadFile(goldenPath(name, n, "pb"))
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(goldenPath(name, n, "json"))
	if err != nil {
		return nil, fmt.Errorf("%s has no JSON beside it", goldenPath(name, n, "pb"))
	}
	got, want := kind.ProtoReflect().New().Interface(), kind.ProtoReflect().New().Interface()
	if err := proto.Unmarshal(encoded, got); err != nil {
		return nil, err
	}
	if err := protojson.Unmarshal(text, want); err != nil {
		return nil, err
	}
	// A field that has gone, or changed its type, shows as an unknown one.
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		return nil, fmt.Errorf("%s (-JSON +decoded):\n%s", goldenPath(name, n, "pb"), diff)
	}
	return got, nil
}

func writeGolden(t *testing.T, m proto.Message, name string, n int) {
	t.Helper()
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	text, err := protojson.MarshalOptions{UseProtoNames: true, Multiline: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	// protojson varies its spaces on purpose.
	json := strings.ReplaceAll(string(text), ":  ", ": ") + "\n"
	if err := os.WriteFile(goldenPath(name, n, "pb"), encoded, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(goldenPath(name, n, "json"), []byte(json), 0o644); err != nil {
		t.Fatal(err)
	}
}

// fill sets every field to a value that its number determines, two where it is repeated. A message that contains
// itself ends at maxDepth.
func fill(m protoreflect.Message, depth int) {
	const maxDepth = 4
	for i := range m.Descriptor().Fields().Len() {
		if f := m.Descriptor().Fields().Get(i); f.Message() == nil || depth < maxDepth {
			setField(m, f, depth)
		}
	}
}

func setField(m protoreflect.Message, f protoreflect.FieldDescriptor, depth int) {
	switch {
	case f.IsMap():
		panic("no golden value for a map")
	case f.IsList():
		list := m.Mutable(f).List()
		for k := range 2 {
			if f.Message() != nil {
				fill(list.AppendMutable().Message(), depth+1)
			} else {
				list.Append(value(f, k))
			}
		}
	case f.Message() != nil:
		fill(m.Mutable(f).Message(), depth+1)
	default:
		m.Set(f, value(f, 0))
	}
}

func value(f protoreflect.FieldDescriptor, k int) protoreflect.Value {
	n := int(f.Number())*1000 + k + 1
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(f.Enum().Values().Get(f.Enum().Values().Len() - 1).Number())
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(fmt.Sprintf("%s é %d", f.Name(), n))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte{0, 0xff, byte(f.Number()), byte(k)})
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(int32(-n))
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(int64(n) - 1<<60)
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(1<<31 + uint32(n))
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(1<<63 + uint64(n))
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(float32(n) / 8)
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(float64(n) / 8)
	default:
		panic("no golden value for a field of kind " + f.Kind().String())
	}
}
