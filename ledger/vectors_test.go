package ledger

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/transparency-dev/merkle/rfc6962"
)

var update = flag.Bool("update", false, "rewrite what the vectors expect")

// vectors reads a file of vectors into v, and after the test writes it back under -update.
func vectors(t *testing.T, name string, v any) {
	t.Helper()
	path := filepath.Join("../schemas/testdata/vectors", name)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !*update {
			return
		}
		var file bytes.Buffer
		encoder := json.NewEncoder(&file)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(v); err != nil {
			t.Error(err)
		}
		if err := os.WriteFile(path, file.Bytes(), 0o644); err != nil {
			t.Error(err)
		}
	})
}

// hexBytes is lower-case hexadecimal in JSON.
type hexBytes []byte

func (h hexBytes) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h), nil }

func (h *hexBytes) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	*h = b
	return err
}

type leafVector struct {
	Name       string   `json:"name"`
	Chain      hexBytes `json:"chain"`
	Sequence   uint64   `json:"sequence,string"`
	Previous   hexBytes `json:"previous"`
	Kind       Kind     `json:"kind"`
	ID         hexBytes `json:"id"`
	RecordedAt int64    `json:"recorded_at,string"`
	Generation uint16   `json:"generation"`
	Partition  uint16   `json:"partition"`
	Offset     uint64   `json:"offset,string"`
	FieldCount uint16   `json:"field_count"`
	BodyRoot   hexBytes `json:"body_root"`

	WantLeaf hexBytes `json:"want_leaf"`
	WantHash hexBytes `json:"want_hash"`
}

type genesisVector struct {
	Name        string   `json:"name"`
	Workspace   hexBytes `json:"workspace"`
	Incarnation hexBytes `json:"incarnation"`
	Lane        uint32   `json:"lane"`
	Lanes       uint32   `json:"lanes"`
	RecordedAt  int64    `json:"recorded_at,string"`
	Generation  uint16   `json:"generation"`

	WantChain hexBytes `json:"want_chain"`
	WantLeaf  hexBytes `json:"want_leaf"`
	WantHash  hexBytes `json:"want_hash"`
}

func TestLeafVectors(t *testing.T) {
	var file struct {
		Leaves  []*leafVector    `json:"leaves"`
		Genesis []*genesisVector `json:"genesis"`
	}
	vectors(t, "leaves.json", &file)
	for _, v := range file.Leaves {
		t.Run(v.Name, func(t *testing.T) {
			leaf := Leaf{
				Chain: ChainID(v.Chain), Sequence: v.Sequence, Previous: Hash(v.Previous), Kind: v.Kind, ID: [16]byte(v.ID),
				RecordedAt: v.RecordedAt, Generation: v.Generation, Partition: v.Partition, Offset: v.Offset,
				FieldCount: v.FieldCount, BodyRoot: Hash(v.BodyRoot),
			}
			checkLeaf(t, &leaf, &v.WantLeaf, &v.WantHash)

			// The layout of docs/design/ledger-spec.md, at its offsets.
			want := make([]byte, 144)
			copy(want, "immutable/leaf/1\x00")
			copy(want[17:], v.Chain)
			binary.BigEndian.PutUint64(want[33:], v.Sequence)
			copy(want[41:], v.Previous)
			want[73] = byte(v.Kind)
			copy(want[74:], v.ID)
			binary.BigEndian.PutUint64(want[90:], uint64(v.RecordedAt))
			binary.BigEndian.PutUint16(want[98:], v.Generation)
			binary.BigEndian.PutUint16(want[100:], v.Partition)
			binary.BigEndian.PutUint64(want[102:], v.Offset)
			binary.BigEndian.PutUint16(want[110:], v.FieldCount)
			copy(want[112:], v.BodyRoot)
			if !bytes.Equal(v.WantLeaf, want) {
				t.Errorf("by the specification the leaf is %x", want)
			}
		})
	}
	for _, v := range file.Genesis {
		t.Run(v.Name, func(t *testing.T) {
			leaf := Genesis([16]byte(v.Workspace), [16]byte(v.Incarnation), v.Lane, v.Lanes, v.RecordedAt, v.Generation)
			if *update {
				v.WantChain = leaf.Chain[:]
			}
			if !bytes.Equal(leaf.Chain[:], v.WantChain) {
				t.Errorf("chain %x, want %x", leaf.Chain, v.WantChain)
			}
			checkLeaf(t, &leaf, &v.WantLeaf, &v.WantHash)

			of := append(append([]byte{}, v.Workspace...), v.Incarnation...)
			of = binary.BigEndian.AppendUint32(of, v.Lane)
			chain := sha256.Sum256(append([]byte("immutable/chain/1\x00"), of...))
			root := sha256.Sum256(append([]byte("immutable/genesis/1\x00"), binary.BigEndian.AppendUint32(of, v.Lanes)...))
			if leaf.Chain != ChainID(chain[:16]) || leaf.BodyRoot != root {
				t.Errorf("by the specification chain and body root are %x, %x", chain[:16], root)
			}
		})
	}
}

func checkLeaf(t *testing.T, leaf *Leaf, wantLeaf, wantHash *hexBytes) {
	t.Helper()
	encoded, hash := leaf.AppendTo(nil), leaf.Hash()
	if *update {
		*wantLeaf, *wantHash = encoded, hash[:]
	}
	if !bytes.Equal(encoded, *wantLeaf) || !bytes.Equal(hash[:], *wantHash) {
		t.Errorf("leaf %x with hash %x, want %x and %x", encoded, hash, *wantLeaf, *wantHash)
	}
	if !bytes.Equal(rfc6962.DefaultHasher.HashLeaf(encoded), *wantHash) {
		t.Errorf("the hash is not RFC 6962's")
	}
}

type chainVector struct {
	Size uint64 `json:"size"`

	WantRoot         hexBytes   `json:"want_root"`
	WantLastLeafHash hexBytes   `json:"want_last_leaf_hash"`
	WantRange        []hexBytes `json:"want_range"`
}

type nodeVector struct {
	Sequence uint64 `json:"sequence"`

	WantNode hexBytes `json:"want_node"`
}

// TestChainVectors seals one chain; its leaves are those of testLeaf, which the file describes.
func TestChainVectors(t *testing.T) {
	var file struct {
		Leaves string         `json:"leaves"`
		Sizes  []*chainVector `json:"sizes"`
		Nodes  []*nodeVector  `json:"nodes"`
		// WantAllNodes is SHA-256 of all nodes of the chain of the largest size, one after the other.
		WantAllNodes hexBytes `json:"want_all_nodes_sha256"`
	}
	vectors(t, "chains.json", &file)
	head, all := newTestHead(), sha256.New()
	nodes := map[uint64]hexBytes{}
	sizes := file.Sizes
	for len(sizes) > 0 {
		leaf := testLeaf(head.Size)
		_, node := head.Append(&leaf)
		for _, n := range node {
			all.Write(n[:])
			nodes[leaf.Sequence] = append(nodes[leaf.Sequence], n[:]...)
		}
		v := sizes[0]
		if head.Size != v.Size {
			continue
		}
		sizes = sizes[1:]
		root := head.Root()
		got := chainVector{Size: v.Size, WantRoot: root[:], WantLastLeafHash: bytes.Clone(head.LastLeafHash[:])}
		for _, h := range head.Clone().Range {
			got.WantRange = append(got.WantRange, h[:])
		}
		if *update {
			*v = got
		}
		if diff := cmp.Diff(*v, got); diff != "" {
			t.Errorf("size %d (-want +got):\n%s", v.Size, diff)
		}
	}
	for _, v := range file.Nodes {
		if *update {
			v.WantNode = nodes[v.Sequence]
		}
		if !bytes.Equal(v.WantNode, nodes[v.Sequence]) {
			t.Errorf("node of leaf %d is %x, want %x", v.Sequence, nodes[v.Sequence], v.WantNode)
		}
	}
	if *update {
		file.WantAllNodes = all.Sum(nil)
	}
	if got := all.Sum(nil); !bytes.Equal(file.WantAllNodes, got) {
		t.Errorf("all nodes have SHA-256 %x, want %x", got, file.WantAllNodes)
	}
}

type redactionVector struct {
	Name  string   `json:"name"`
	Seed  hexBytes `json:"seed"`
	Body  string   `json:"body"`
	Paths []string `json:"paths"`

	// WantLeft is the body without what is at Paths; package event makes it, and is held to it too.
	WantLeft       string   `json:"want_left"`
	WantDisclosure string   `json:"want_disclosure"`
	WantBodyRoot   hexBytes `json:"want_body_root"`
}

// TestRedactionVectors holds what is stored of a redacted event to the file: with what is left of its body it gives the body
// root of before. Package event writes want_left.
func TestRedactionVectors(t *testing.T) {
	var file struct {
		Redactions []*redactionVector `json:"redactions"`
	}
	vectors(t, "redactions.json", &file)
	for _, v := range file.Redactions {
		t.Run(v.Name, func(t *testing.T) {
			fields, err := Fields(nil, []byte(v.Body))
			if err != nil {
				t.Fatal(err)
			}
			disclosure, err := EncodeDisclosure(Disclose([16]byte(v.Seed), fields, v.Paths))
			if err != nil {
				t.Fatal(err)
			}
			root, count, err := RecomputeBodyRoot([16]byte(v.Seed), []byte(v.Body))
			if err != nil {
				t.Fatal(err)
			}
			if *update {
				v.WantDisclosure, v.WantBodyRoot = string(disclosure), root[:]
			}
			if string(disclosure) != v.WantDisclosure || !bytes.Equal(root[:], v.WantBodyRoot) {
				t.Errorf("disclosure %s and body root %x, want %s and %x", disclosure, root, v.WantDisclosure, v.WantBodyRoot)
			}
			stored, err := ParseDisclosure([]byte(v.WantDisclosure))
			if err != nil {
				t.Fatal(err)
			}
			joined, err := JoinDisclosure(stored, []byte(v.WantLeft))
			if err != nil {
				t.Fatal(err)
			}
			leaf := BundleLeaf{Disclosure: joined}
			if got, n, err := leaf.bodyRoot(); err != nil || got != root || n != count {
				t.Errorf("what is left gives %x over %d fields (%v), want %x over %d", got, n, err, root, count)
			}
		})
	}
}
