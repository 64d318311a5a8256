package verify_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"getimmutable.dev/immutable/internal/ledgertest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/verify"
)

// parts opens the tables to verify parts of.
func (s *tables) parts() *verify.Parts {
	s.t.Helper()
	p := verify.OpenParts(s.server.Config(), verify.PartLimits{SliceLeaves: 100, SliceBytes: 4 << 20, StatementTimeout: time.Minute})
	s.t.Cleanup(p.Close)
	return p
}

// part is a run of the leaves of a chain that the newest epoch covers.
func (s *tables) part(c *ledgertest.Chain, from, to uint64) *verify.Part {
	size := uint64(len(c.Leaves))
	return &verify.Part{
		Chain: c.ChainIdentity, From: from, To: to, Size: size, Root: c.Root(size), Covered: s.ledger.Now(), Partition: c.Partition,
		Position: c.Leaves[size-1].LedgerOffset + 2,
	}
}

func shorts(found []*ledger.Fault) (all []string) {
	for _, f := range found {
		all = append(all, short(f))
	}
	return all
}

// What is after a part is known by stored hashes alone. One that is not there is a finding, and no failure.
func TestPartBeforeDamage(t *testing.T) {
	for _, tc := range []struct {
		name, statement, want string
	}{
		{"sound", "SELECT 1", ""},
		{"a leaf that is not there", "ALTER TABLE leaves DELETE WHERE sequence = 600", "MISSING chain %x sequence 600"},
		{"a node that is not there", "ALTER TABLE leaves UPDATE node = '' WHERE sequence = 511", "MODIFIED chain %x sequence 511"},
		{"a leaf of two hashes", "INSERT INTO leaves SELECT * REPLACE(reverse(leaf_hash) AS leaf_hash) FROM leaves WHERE sequence = 600", "MODIFIED chain %x sequence 600"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := ledgertest.New()
			c := l.Chain(1, 1, 0, 1)
			l.Events(c, 699)
			l.Epoch()
			s := newTables(t, l)
			s.exec("%s", tc.statement)
			found, err := s.parts().Verify(t.Context(), s.part(c, 0, 200))
			if err != nil {
				t.Fatal(err)
			}
			var want []string
			if tc.want != "" {
				want = []string{fmt.Sprintf(tc.want, c.ID)}
			}
			if got := shorts(found); !slices.Equal(got, want) {
				t.Errorf("%q, want %q", got, want)
			}
		})
	}
}

// A redaction that is beyond the part covers an event of it where its own content holds.
func TestPartRedactedLater(t *testing.T) {
	l := ledgertest.New()
	c := l.Chain(1, 1, 0, 1)
	l.Events(c, 300)
	l.Redact(c, 30, "/metadata/old_value")
	l.Events(c, 20)
	l.Epoch()
	s := newTables(t, l)
	verifyPart := func() []string {
		t.Helper()
		found, err := s.parts().Verify(t.Context(), s.part(c, 0, 200))
		if err != nil {
			t.Fatal(err)
		}
		return shorts(found)
	}
	if got := verifyPart(); len(got) > 0 {
		t.Errorf("%q", got)
	}
	want := []string{fmt.Sprintf("WITHHELD chain %x sequence 30 event %s", c.ID, uuid.UUID(c.Leaves[30].ID))}
	s.exec("ALTER TABLE events UPDATE seed = reverse(seed) WHERE sequence = 301")
	if got := verifyPart(); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// The table of the root log is compared with the notary's root, and the newest checkpoint with the table.
func TestPartsRootLog(t *testing.T) {
	for _, tc := range []struct {
		name, statement string
		want            []string // each is what a finding begins with
	}{
		{"sound", "SELECT 1", nil}, // its newest checkpoint is signed by the second key
		{
			"an entry of two hashes", "INSERT INTO root_log SELECT * REPLACE(reverse(hash) AS hash) FROM root_log WHERE entry_index = 5",
			[]string{"MODIFIED: root log: entry 5 is stored with other hashes", "MODIFIED: root log: entry 5 is stored with other hashes"},
		},
		{
			"a missing entry", "ALTER TABLE root_log DELETE WHERE entry_index = 5",
			[]string{"MISSING: root log: entry 5", "MISSING: root log: entry 5"},
		},
		{
			"another entry", "ALTER TABLE root_log UPDATE hash = reverse(hash) WHERE entry_index = 6",
			[]string{"MODIFIED: root log: its hashes give root", "MODIFIED: root log: its hashes give root"},
		},
		{"a note that is none", "ALTER TABLE checkpoints UPDATE note = 'x' WHERE size = 7", []string{"MODIFIED: checkpoint of size 7: "}},
		{
			"a note of another size", "INSERT INTO checkpoints SELECT * REPLACE(6 AS size, 9 AS witnesses) FROM (SELECT * FROM checkpoints WHERE size = 7)",
			nil, // it is not the newest
		},
		{
			"a newest one of another size", "INSERT INTO checkpoints SELECT * REPLACE(8 AS size) FROM (SELECT * FROM checkpoints WHERE size = 7)",
			[]string{"COLUMN MISMATCH: checkpoint of size 8"},
		},
		{"another root", "ALTER TABLE checkpoints UPDATE root = reverse(root) WHERE size = 7", []string{"COLUMN MISMATCH: checkpoint of size 7"}},
		{"a key change that is none", "ALTER TABLE root_log UPDATE entry = 'x' WHERE type = 'key' AND entry_index > 0", []string{"MODIFIED: root log: a key change"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLedger()
			s := newTables(t, l)
			s.exec("%s", tc.statement)
			newest, err := ledger.ParseCheckpoint(l.Newest())
			if err != nil {
				t.Fatal(err)
			}
			found, behind, err := s.parts().RootLog(t.Context(), newest.Size, newest.Root, l.Now())
			if err != nil {
				t.Fatal(err)
			}
			begins := func(f *ledger.Fault, want string) bool { return strings.HasPrefix(f.String(), want) }
			if behind || !slices.EqualFunc(found, tc.want, begins) {
				t.Errorf("%v %q, want %q", behind, found, tc.want)
			}
		})
	}
}
