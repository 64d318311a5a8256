package event

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/gowebpki/jcs"
)

var update = flag.Bool("update", false, "rewrite what the vectors expect")

const vectorsFile = "../schemas/testdata/vectors/events.json"

// vectors are for every implementation: what an event becomes, or why it is refused.
type vectors struct {
	Accepted []*acceptedVector `json:"accepted"`
	Refused  []*refusedVector  `json:"refused"`
}

type acceptedVector struct {
	Name                string `json:"name"`
	Event               string `json:"event"`
	Workspace           string `json:"workspace"`
	Incarnation         string `json:"incarnation"`
	Lanes               uint32 `json:"lanes"`
	Partitions          int32  `json:"partitions"`
	IdempotencySecret   string `json:"idempotency_secret"`
	KeepResourceIDEmpty bool   `json:"keep_resource_id_empty,omitempty"`
	// SecretPolicy: flag where there is none.
	SecretPolicy SecretPolicy `json:"secret_policy,omitempty"`
	HeaderKey    string       `json:"header_key,omitempty"`
	RecordedAt   string       `json:"recorded_at"`
	Seed         string       `json:"seed"`

	Want accepted `json:"want"`
}

type accepted struct {
	// ID is empty without an idempotency key: it is random then.
	ID              string      `json:"id,omitempty"`
	BodyAsSent      string      `json:"body_as_sent,omitempty"`
	Body            string      `json:"body"`
	Lane            uint32      `json:"lane"`
	Partition       int32       `json:"partition"`
	RecordKey       string      `json:"record_key"`
	Fields          []committed `json:"fields"`
	BodyRoot        string      `json:"body_root"`
	MetadataEntries [][2]string `json:"metadata_entries,omitempty"`
}

type committed struct {
	Path       string `json:"path"`
	Commitment string `json:"commitment"`
}

type refusedVector struct {
	Name  string `json:"name"`
	Event string `json:"event"`
	// SecretPolicy: flag where there is none.
	SecretPolicy SecretPolicy `json:"secret_policy,omitempty"`

	Want refused `json:"want"`
}

type refused struct {
	Code   string   `json:"code"`
	Fields []string `json:"fields,omitempty"`
}

func TestVectors(t *testing.T) {
	raw, err := os.ReadFile(vectorsFile)
	if err != nil {
		t.Fatal(err)
	}
	var all vectors
	if err := json.Unmarshal(raw, &all); err != nil {
		t.Fatal(err)
	}
	for _, v := range all.Accepted {
		t.Run(v.Name, func(t *testing.T) {
			got := v.build(t)
			if *update {
				v.Want = got
			}
			if diff := cmp.Diff(v.Want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			v.recompute(t)
		})
	}
	for _, v := range all.Refused {
		t.Run(v.Name, func(t *testing.T) {
			ws := testWorkspace()
			ws.SecretPolicy = v.SecretPolicy
			e := buildErrorIn(t, ws, Input{JSON: []byte(v.Event)})
			got := refused{Code: e.Code}
			for _, d := range e.Details {
				got.Fields = append(got.Fields, d.Field)
			}
			if *update {
				v.Want = got
			}
			if diff := cmp.Diff(v.Want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	if *update {
		var file bytes.Buffer
		encoder := json.NewEncoder(&file)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(all); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(vectorsFile, file.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (v *acceptedVector) build(t *testing.T) accepted {
	t.Helper()
	at, err := time.Parse(time.RFC3339, v.RecordedAt)
	if err != nil {
		t.Fatal(err)
	}
	ws := &Workspace{
		ID: [16]byte(unhex(t, v.Workspace)), Incarnation: [16]byte(unhex(t, v.Incarnation)), Lanes: v.Lanes,
		IdempotencySecret: [32]byte(unhex(t, v.IdempotencySecret)), KeepResourceIDEmpty: v.KeepResourceIDEmpty,
		SecretPolicy: v.SecretPolicy,
	}
	b := NewBuilder()
	b.ids.random = func(p []byte) { copy(p, unhex(t, v.Seed)) }
	r, err := b.Build(ws, Input{JSON: []byte(v.Event), IdempotencyKey: v.HeaderKey, RecordedAt: at})
	if err != nil {
		t.Fatal(err)
	}
	got := accepted{
		Body: string(b.body), Lane: r.Lane, Partition: Partition(ws.ID, r.Lane, v.Partitions), RecordKey: string(r.Key),
		BodyRoot: hex.EncodeToString(b.bodyRoot[:]),
	}
	if r.Keyed {
		got.ID = uuid.UUID(r.ID).String()
		got.BodyAsSent = string(b.appendBody(nil, true))
	}
	var paths []string
	for f := range numFields {
		switch {
		case b.columns[f].json.empty():
		case f == metadata:
			for _, m := range b.members {
				paths = append(paths, string(b.path(m)))
			}
		default:
			paths = append(paths, "/"+f.name())
		}
	}
	for i, c := range b.commitments {
		got.Fields = append(got.Fields, committed{paths[i], hex.EncodeToString(c[:])})
	}
	for _, e := range b.entries {
		got.MetadataEntries = append(got.MetadataEntries, [2]string{string(b.keys[e.key.start:e.key.end]), string(b.tape.bytes(e.value))})
	}
	return got
}

// recompute derives commitments, body root and id from the body alone, as docs/design/ledger-spec.md says, with other
// JSON code.
func (v *acceptedVector) recompute(t *testing.T) {
	t.Helper()
	var body map[string]json.RawMessage
	if err := json.Unmarshal([]byte(v.Want.Body), &body); err != nil {
		t.Fatal(err)
	}
	fields := map[string]json.RawMessage{}
	for name, value := range body {
		if name != "metadata" {
			fields["/"+name] = value
			continue
		}
		var members map[string]json.RawMessage
		if err := json.Unmarshal(value, &members); err != nil {
			t.Fatal(err)
		}
		for name, value := range members {
			fields["/metadata/"+strings.NewReplacer("~", "~0", "/", "~1").Replace(name)] = value
		}
	}
	var paths []string
	for path := range fields {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	root := binary.BigEndian.AppendUint16([]byte("immutable/body/1\x00"), uint16(len(paths)))
	var dots []committed
	for _, path := range paths {
		value, err := jcs.Transform(fields[path])
		if err != nil {
			t.Fatal(err)
		}
		salt := sha256.Sum256([]byte(string(unhex(t, v.Seed)) + path))
		open := append([]byte{0x01}, salt[:16]...)
		open = binary.BigEndian.AppendUint16(open, uint16(len(path)))
		commitment := sha256.Sum256(append(append(open, path...), value...))
		root = append(root, commitment[:]...)
		dots = append(dots, committed{path, hex.EncodeToString(commitment[:])})
	}
	if diff := cmp.Diff(v.Want.Fields, dots); diff != "" {
		t.Errorf("fields (-want +recomputed):\n%s", diff)
	}
	if sum := sha256.Sum256(root); hex.EncodeToString(sum[:]) != v.Want.BodyRoot {
		t.Errorf("body root recomputed: %x", sum)
	}
	if transformed, err := jcs.Transform([]byte(v.Want.Body)); err != nil || string(transformed) != v.Want.Body {
		t.Errorf("body in canonical form: %s, %v", transformed, err)
	}

	var key string
	if raw, ok := body["idempotency_key"]; !ok {
		return
	} else if err := json.Unmarshal(raw, &key); err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, unhex(t, v.IdempotencySecret))
	mac.Write(unhex(t, v.Workspace))
	mac.Write([]byte{0})
	mac.Write(binary.BigEndian.AppendUint32(nil, uint32(len(key))))
	mac.Write([]byte(key + v.Want.BodyAsSent))
	id := uuid.UUID(mac.Sum(nil)[:16])
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80
	if id.String() != v.Want.ID {
		t.Errorf("id recomputed: %s, want %s", id, v.Want.ID)
	}
}
