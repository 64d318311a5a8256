package verify_test

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"getimmutable.dev/immutable/internal/ledgertest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/verify"
)

// Retries that came too late are no tampering, however many there are, and hide none: all ids are looked at that come twice, in either order of the tables.
func TestManyLateRetries(t *testing.T) {
	if testing.Short() {
		t.Skip("takes more than a second or two")
	}
	const events = 10_100 // more than are asked for at once
	l := ledgertest.New()
	c := l.Chain(1, 1, 0, 1)
	l.Events(c, 2*events)
	for i := range events {
		first, again := &c.Leaves[1+i], &c.Leaves[1+events+i]
		binary.BigEndian.PutUint32(first.ID[:], uint32(i))
		first.ID[6] = first.ID[6]&0x0f | 0x80
		again.ID, again.Body, again.Seed = first.ID, first.Body, first.Seed
		again.Offset += ledger.RepeatLeaves
	}
	copied := &c.Leaves[2*events]
	copied.RecordedAt = c.Leaves[events].RecordedAt // byte for byte
	c.Reseal(1)
	l.Epoch()
	s := newTables(t, l)
	r := s.verify(s.config())
	want := fmt.Sprintf("DUPLICATE chain %x sequence %d ", c.ID, 2*events)
	if r.Exit != verify.ExitTampered || len(r.Faults) != 1 || !strings.HasPrefix(r.Faults[0].String(), want) || len(r.Undecided) > 0 {
		t.Errorf("want %q: %s", want, r.Text())
	}
	if want := fmt.Sprintf("%d events with an idempotency key are there twice", events-1); !strings.Contains(strings.Join(r.Notes, "\n"), want) {
		t.Errorf("want %q: %s", want, r.Text())
	}
	copied.RecordedAt++
	c.Reseal(1)
	l.Rebuild()
	s = newTables(t, l)
	if r := s.verify(s.config()); r.Exit != verify.ExitVerified {
		t.Error(r.Text())
	}
}

// A retry that came too late hides no copy of what came before it.
func TestCopyBehindARetry(t *testing.T) {
	l := ledgertest.New()
	c := l.Chain(1, 1, 0, 1)
	l.Events(c, 12)
	for i, sequence := range []int{2, 6, 10} {
		leaf := &c.Leaves[sequence]
		leaf.ID = c.Leaves[2].ID
		leaf.ID[6] = leaf.ID[6]&0x0f | 0x80
		for later := range c.Leaves[sequence:] {
			c.Leaves[sequence+later].Offset += uint64(i) * ledger.RepeatLeaves
		}
	}
	c.Leaves[10].RecordedAt = c.Leaves[2].RecordedAt
	c.Reseal(1)
	l.Epoch()
	s := newTables(t, l)
	r := s.verify(s.config())
	want := fmt.Sprintf("DUPLICATE chain %x sequence 10 ", c.ID)
	if r.Exit != verify.ExitTampered || len(r.Faults) != 1 || !strings.HasPrefix(r.Faults[0].String(), want) || !strings.Contains(r.Faults[0].Detail, "as sequence 2 ") {
		t.Errorf("want %q: %s", want, r.Text())
	}
}

// How far apart two leaves are is said by what they commit to, and not by where the tables say that the ledger topic has them.
func TestRepeatsGoByTheInput(t *testing.T) {
	l := ledgertest.New()
	c := l.Chain(1, 1, 0, 1)
	l.Events(c, 9)
	c.Leaves[5].ID[6] = c.Leaves[5].ID[6]&0x0f | 0x80
	c.Reseal(1)
	l.Epoch()
	l.Events(c, 1)
	c.Leaves[10].ID = c.Leaves[5].ID
	c.Reseal(10)
	s := newTables(t, l)
	for _, table := range []string{"leaves", "events"} {
		s.exec("ALTER TABLE %s UPDATE ledger_offset = ledger_offset + %d WHERE sequence = 10", table, 2*ledger.RepeatLeaves)
	}
	r := s.verify(s.config())
	if want := fmt.Sprintf("DUPLICATE chain %x sequence 10 ", c.ID); r.Exit != verify.ExitTampered || !strings.Contains(r.Text(), want) {
		t.Errorf("want %q: %s", want, r.Text())
	}
}
