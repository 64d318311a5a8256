package ledger

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// mapRoot is the definition of docs/design/ledger-spec.md, to the letter.
func mapRoot(chains map[Hash]Hash, depth int) Hash {
	switch len(chains) {
	case 0:
		return Hash{}
	case 1:
		for key, value := range chains {
			return sha256.Sum256(slices.Concat([]byte{0}, key[:], value[:]))
		}
	}
	halves := [2]map[Hash]Hash{{}, {}}
	for key, value := range chains {
		halves[key[depth/8]>>(7-depth%8)&1][key] = value
	}
	left, right := mapRoot(halves[0], depth+1), mapRoot(halves[1], depth+1)
	return sha256.Sum256(slices.Concat([]byte{1}, left[:], right[:]))
}

func testChain(i uint64) (c ChainID) {
	binary.BigEndian.PutUint64(c[:], i)
	return c
}

// Whatever the order of changes, the root is that of the definition, and everything that is and is not there is proven.
func TestMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var m Map
		want := map[Hash]Hash{}
		type value struct {
			size uint64
			root Hash
		}
		values := map[ChainID]value{}
		for range rapid.IntRange(0, 60).Draw(t, "changes") {
			chain := testChain(rapid.Uint64Range(0, 40).Draw(t, "chain"))
			v := value{rapid.Uint64().Draw(t, "size"), Hash{rapid.Byte().Draw(t, "root")}}
			m.Set(chain, v.size, v.root)
			values[chain] = v
			var size [8]byte
			binary.BigEndian.PutUint64(size[:], v.size)
			want[sha256.Sum256(chain[:])] = sha256.Sum256(append(size[:], v.root[:]...))
			if rapid.Bool().Draw(t, "look") && m.Root() != mapRoot(want, 0) {
				t.Fatalf("root %x of %d chains", m.Root(), len(values))
			}
		}
		root := m.Root()
		if root != mapRoot(want, 0) || m.Len() != len(values) {
			t.Fatalf("root %x of %d chains, want %x of %d", root, m.Len(), mapRoot(want, 0), len(values))
		}
		for i := range uint64(45) {
			chain := testChain(i)
			p := m.Prove(chain)
			v, present := values[chain]
			if err := p.VerifyPresent(chain, v.size, v.root, root); (err == nil) != present {
				t.Fatalf("chain %d of %d: present: %v", i, len(values), err)
			}
			if err := p.VerifyAbsent(chain, root); (err == nil) == present {
				t.Fatalf("chain %d of %d: absent: %v", i, len(values), err)
			}
		}
	})
}

func TestMapProofsThatDoNotHold(t *testing.T) {
	var m Map
	for i := range uint64(200) {
		m.Set(testChain(i), i, Hash{byte(i)})
	}
	root := m.Root()
	chain, absent := testChain(7), testChain(1000)
	present := m.Prove(chain)
	if err := present.VerifyPresent(chain, 7, Hash{7}, root); err != nil {
		t.Fatal(err)
	}
	bad := func(name string, err error) {
		t.Helper()
		if !errors.Is(err, ErrProof) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	bad("another size", present.VerifyPresent(chain, 8, Hash{7}, root))
	bad("another root", present.VerifyPresent(chain, 7, Hash{8}, root))
	bad("another map", present.VerifyPresent(chain, 7, Hash{7}, Hash{}))
	bad("another chain", present.VerifyPresent(testChain(8), 7, Hash{7}, root))
	bad("a chain that is there is absent", present.VerifyAbsent(chain, root))

	// Another leaf stands for absence only in the chain's own place.
	for i := range uint64(200) {
		other := m.Prove(testChain(i))
		other.Other = &MapLeaf{MapKey(testChain(i)), MapValue(i, Hash{byte(i)})}
		bad("itself", other.VerifyAbsent(testChain(i), root))
		if err := other.VerifyAbsent(absent, root); err == nil {
			key, beside := MapKey(absent), MapKey(testChain(i))
			for b := range other.Siblings {
				if bit(&key, b) != bit(&beside, b) {
					t.Errorf("chain %d is taken for what is in the place of another", i)
				}
			}
		}
	}
	long := present
	long.Siblings = make([]Hash, 257)
	bad("too long", long.VerifyPresent(chain, 7, Hash{7}, root))
	bad("too long", long.VerifyAbsent(absent, root))
	short := present
	short.Siblings = present.Siblings[1:]
	bad("too short", short.VerifyPresent(chain, 7, Hash{7}, root))
}

func BenchmarkMap(b *testing.B) {
	const chains, changed = 10_000, 1_000
	var m Map
	for i := range uint64(chains) {
		m.Set(testChain(i), i, Hash{})
	}
	m.Root()
	b.ReportAllocs()
	n := uint64(0)
	for b.Loop() {
		for range changed {
			n++
			m.Set(testChain(n*7919%chains), n, Hash{})
		}
		m.Root()
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/changed, "us/chain")
}
