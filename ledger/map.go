package ledger

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
)

// A Map is a sparse Merkle tree over all chains: docs/design/ledger-spec.md, Map. Key SHA-256(chain id), value
// SHA-256(u64be size || root). A place without a chain is 32 zero bytes, a subtree with one chain is that chain's leaf
// SHA-256(0x00 || key || value), and any other is SHA-256(0x01 || left || right), the key's most significant bit first. So
// there is one value for each chain, and a proof that shows hashes only. The zero Map is empty. It is not safe for
// concurrent use.
type Map struct {
	root *mapNode
	size int
}

// mapNode is a subtree with chains in it: a leaf, or an inner node with at least two leaves below.
type mapNode struct {
	left, right *mapNode // of an inner node; nil is an empty place
	key, value  Hash     // of a leaf
	leaf        bool
	hash        Hash
	stale       bool // hash is to be computed
}

// mapDepth is the greatest number of siblings that a proof can have.
const mapDepth = 8 * sha256.Size

// MapKey returns the place of a chain.
func MapKey(chain ChainID) Hash { return sha256.Sum256(chain[:]) }

// MapValue returns what stands for a chain of this size and root.
func MapValue(size uint64, root Hash) Hash {
	var buf [8 + 32]byte
	binary.BigEndian.PutUint64(buf[:], size)
	copy(buf[8:], root[:])
	return sha256.Sum256(buf[:])
}

func mapLeafHash(key, value Hash) Hash {
	var buf [65]byte
	copy(buf[1:], key[:])
	copy(buf[33:], value[:])
	return sha256.Sum256(buf[:])
}

// bit returns bit i of a key, the most significant one first.
func bit(key *Hash, i int) byte { return key[i/8] >> (7 - i%8) & 1 }

// Len returns the number of chains.
func (m *Map) Len() int { return m.size }

// Set gives a chain its size and root. Until the next Root it costs no hashing but the leaf's.
func (m *Map) Set(chain ChainID, size uint64, root Hash) {
	key := MapKey(chain)
	value := MapValue(size, root)
	leaf := &mapNode{key: key, value: value, leaf: true, hash: mapLeafHash(key, value)}
	place := &m.root
	for i := 0; ; i++ {
		switch n := *place; {
		case n == nil:
			*place = leaf
			m.size++
			return
		case n.leaf && n.key == key:
			*place = leaf
			return
		case n.leaf:
			// Both go down until their keys differ.
			inner := &mapNode{stale: true}
			*inner.child(&n.key, i) = n
			*place = inner
			place = inner.child(&key, i)
		default:
			n.stale = true
			place = n.child(&key, i)
		}
	}
}

func (n *mapNode) child(key *Hash, i int) **mapNode {
	if bit(key, i) == 0 {
		return &n.left
	}
	return &n.right
}

func (n *mapNode) sum() Hash {
	if n == nil {
		return Hash{}
	}
	if n.stale {
		n.hash, n.stale = hashChildren(n.left.sum(), n.right.sum()), false
	}
	return n.hash
}

// Root returns the root of the map; of the empty one 32 zero bytes.
func (m *Map) Root() Hash { return m.root.sum() }

// A MapProof leads from a chain's place to the root of a map.
type MapProof struct {
	// Siblings begin beside the chain's place and end below the root: at most 256.
	Siblings []Hash `json:"siblings"`
	// Other is the leaf that is in the place of an absent chain; nil where the place is empty, and where the chain is there.
	Other *MapLeaf `json:"other,omitzero"`
}

// MapLeaf is what a proof shows of another chain: hashes.
type MapLeaf struct {
	Key   Hash `json:"key"`
	Value Hash `json:"value"`
}

// Prove returns the proof of a chain's value, or of its absence.
func (m *Map) Prove(chain ChainID) MapProof {
	key := MapKey(chain)
	m.Root()
	var p MapProof
	n := m.root
	for i := 0; n != nil && !n.leaf; i++ {
		sibling := n.right
		if bit(&key, i) == 1 {
			sibling = n.left
		}
		p.Siblings = append(p.Siblings, sibling.sum())
		n = *n.child(&key, i)
	}
	slices.Reverse(p.Siblings)
	if n != nil && n.key != key {
		p.Other = &MapLeaf{n.key, n.value}
	}
	return p
}

// VerifyPresent checks that a map of this root holds a chain with this size and root. Its errors wrap ErrProof.
func (p *MapProof) VerifyPresent(chain ChainID, size uint64, root, mapRoot Hash) error {
	if p.Other != nil {
		return fmt.Errorf("%w: the map holds another chain in the place of %x", ErrProof, chain)
	}
	key := MapKey(chain)
	return p.verify(&key, mapLeafHash(key, MapValue(size, root)), mapRoot)
}

// VerifyAbsent checks that a map of this root does not hold a chain. Its errors wrap ErrProof.
func (p *MapProof) VerifyAbsent(chain ChainID, mapRoot Hash) error {
	key := MapKey(chain)
	var place Hash
	if o := p.Other; o != nil {
		if o.Key == key {
			return fmt.Errorf("%w: the map holds chain %x", ErrProof, chain)
		}
		// The other leaf must belong where the chain would be.
		for i := range min(len(p.Siblings), mapDepth) {
			if bit(&o.Key, i) != bit(&key, i) {
				return fmt.Errorf("%w: another leaf is not in the place of chain %x", ErrProof, chain)
			}
		}
		place = mapLeafHash(o.Key, o.Value)
	}
	return p.verify(&key, place, mapRoot)
}

func (p *MapProof) verify(key *Hash, hash, mapRoot Hash) error {
	if len(p.Siblings) > mapDepth {
		return fmt.Errorf("%w: %d siblings in a map, at most %d are possible", ErrProof, len(p.Siblings), mapDepth)
	}
	for i, sibling := range p.Siblings {
		if bit(key, len(p.Siblings)-1-i) == 0 {
			hash = hashChildren(hash, sibling)
		} else {
			hash = hashChildren(sibling, hash)
		}
	}
	if hash != mapRoot {
		return fmt.Errorf("%w: the path in the map leads to root %x, want %x", ErrProof, hash, mapRoot)
	}
	return nil
}
