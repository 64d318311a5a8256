package event

import "sync"

// anchorIndex finds the rules' anchors in one pass over a text, whatever their number: an Aho-Corasick automaton whose
// failure links are resolved, so that each byte costs one step.
type anchorIndex struct {
	// class of a byte; 0 for one that is in no anchor.
	class [256]uint8
	// next is the state after state s, a multiple of classes, and a byte: next[s+class[byte]]. State 0 is the start.
	next []uint16
	// States from accepting on end an anchor; ends has theirs, by (state-accepting)/classes.
	accepting uint16
	ends      [][]ending
}

// ending is an anchor of a rule that ends where a state is reached.
type ending struct {
	rule   *rule
	length int
}

// classes is more than the number of different bytes in anchors.
const classes = 72

// anchors takes half a millisecond to make, which is for those who build events.
var anchors = sync.OnceValue(func() *anchorIndex { return newAnchorIndex(rules[:]) }) //nolint:gochecknoglobals // constant

func newAnchorIndex(rules []rule) *anchorIndex {
	// States are multiples of classes from the beginning. While the trie grows, 0 in it stands for no child.
	a := &anchorIndex{}
	trie, ends, used := make([]uint16, classes), map[uint16][]ending{}, uint8(0)
	for i := range rules {
		for _, anchor := range rules[i].anchors {
			s := uint16(0)
			for _, c := range []byte(anchor) {
				if a.class[c] == 0 {
					used++
					a.class[c] = used
				}
				child := &trie[s+uint16(a.class[c])]
				if *child == 0 {
					*child = uint16(len(trie))
					s = *child
					trie = append(trie, make([]uint16, classes)...)
				} else {
					s = *child
				}
			}
			ends[s] = append(ends[s], ending{&rules[i], len(anchor)})
		}
	}

	// Breadth first: the state that a failure leads to is nearer to the start, and complete already.
	fail, queue := make([]uint16, len(trie)), []uint16{0}
	for ; len(queue) > 0; queue = queue[1:] {
		s := queue[0]
		for c := range uint16(classes) {
			child := trie[s+c]
			if child == 0 {
				trie[s+c] = trie[fail[s]+c]
				continue
			}
			if s != 0 {
				fail[child] = trie[fail[s]+c]
			}
			if more := ends[fail[child]]; more != nil {
				ends[child] = append(ends[child], more...)
			}
			queue = append(queue, child)
		}
	}

	// Accepting states go last.
	a.accepting = uint16(len(trie) - len(ends)*classes)
	number, plain, accepting := make([]uint16, len(trie)), uint16(0), a.accepting
	for s := 0; s < len(trie); s += classes {
		if of := ends[uint16(s)]; of != nil {
			number[s] = accepting
			accepting += classes
			a.ends = append(a.ends, of)
		} else {
			number[s] = plain
			plain += classes
		}
	}
	a.next = make([]uint16, len(trie))
	for s := 0; s < len(trie); s += classes {
		for c := range classes {
			a.next[int(number[s])+c] = number[trie[s+c]]
		}
	}
	return a
}

// HoldsSecret reports whether the scanner finds a secret in a text.
func HoldsSecret(text string) bool { return secretIn([]byte(text)) != "" }

// secretIn returns the name of the rule that the first secret in text is told by, empty where there is none.
func secretIn(text []byte) string {
	a, s := anchors(), uint16(0)
	for i, c := range text {
		s = a.next[s+uint16(a.class[c])]
		if s < a.accepting {
			continue
		}
		for _, e := range a.ends[(s-a.accepting)/classes] {
			if e.rule.matches(text, i+1-e.length, i+1) {
				return e.rule.name
			}
		}
	}
	return ""
}
