package attacks

import (
	"strings"
	"testing"

	"github.com/google/uuid"

	"getimmutable.dev/immutable/internal/ledgertest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/verify"
)

// replayed is a ledger that an installation has signed and that has events twice: somebody who may write to the events topic has put copies of their
// records there. The processor, if it was one, sealed them.
func replayed() *ledgertest.Ledger {
	l := newLedger()
	a, b := l.Chains[0], l.Chains[1]
	replay := func(c, from *ledgertest.Chain, sequence int) *ledgertest.Leaf {
		old := from.Leaves[sequence]
		leaf := l.Seal(c, ledger.KindEvent, old.Body)
		leaf.ID, leaf.RecordedAt, leaf.Seed = old.ID, old.RecordedAt, old.Seed
		c.Reseal(len(c.Leaves) - 1)
		return leaf
	}
	replay(a, a, 30)
	replay(b, a, 40)
	replay(l.Chains[2], a, 50) // of another workspace: the ids of two are nothing to each other

	// A retry: another record of the same event, soon after it, and so late that the processor has forgotten it.
	keyed := func(c *ledgertest.Chain, sequence int) {
		c.Leaves[sequence].ID[6] = c.Leaves[sequence].ID[6]&0x0f | 0x80
		c.Reseal(sequence)
	}
	keyed(a, 60)
	soon := replay(a, a, 60)
	soon.RecordedAt++
	keyed(a, 61)
	late := replay(a, a, 61)
	late.RecordedAt++
	late.Offset += 2 * ledger.RepeatLeaves
	keyed(a, 62)
	late = replay(a, a, 62) // byte for byte, however late
	late.Offset += 2 * ledger.RepeatLeaves
	a.Reseal(60)
	l.Rebuild()
	l.Epoch()
	return l
}

// TestReplay is row 8 of the table of attacks: a record that is sealed twice is named at its second place with its first, by the program that looks at
// all of the tables and by the one that is given a chain after the other.
func TestReplay(t *testing.T) {
	t.Parallel()
	l := replayed()
	a, b := l.Chains[0], l.Chains[1]
	// The sequences that replayed has added: 101 to 104 of the first chain, 136 of the second.
	inChain := []string{at(ledger.Duplicate, a, "101"), at(ledger.Duplicate, a, "102"), at(ledger.Duplicate, a, "104")}
	check := func(t *testing.T, r *result, want ...string) {
		t.Helper()
		r.want(t, verify.ExitTampered, want...)
		for _, part := range []string{uuid.UUID(a.Leaves[30].ID).String(), "as sequence 30", "as sequence 60", "1 events with an idempotency key are there twice"} {
			if !strings.Contains(r.output, part) {
				t.Errorf("it says nothing of %q:\n%s", part, r.output)
			}
		}
	}
	t.Run("ledger", func(t *testing.T) {
		t.Parallel()
		r := newAuditor(t).run(serve(t, newServer(l))...)
		check(t, r, inChain...)
		if !strings.Contains(strings.Join(r.NotChecked, "\n"), "whether an event is in two chains") {
			t.Errorf("it does not say what it did not look for:\n%s", r.output)
		}
	})
	t.Run("clickhouse", func(t *testing.T) {
		long(t)
		t.Parallel()
		check(t, newTables(t, l).verify(newAuditor(t)), append(inChain, at(ledger.Duplicate, b, "136"))...)
	})
}
