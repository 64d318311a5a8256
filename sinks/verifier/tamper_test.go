package verifier

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"getimmutable.dev/immutable/internal/ledgertest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// tampering is done to a chain after it was written, around a leaf.
type tampering struct {
	name string
	do   func(r *rig, c *ledgertest.Chain, at uint64)
	// want are verdict, sequence and last, with at+N for sequences.
	want []string
}

func where(c *ledgertest.Chain, sequence uint64) string {
	return fmt.Sprintf("chain = unhex('%x') AND sequence = %d", c.ID, sequence)
}

// update changes a column of a row. Keys of a table cannot be changed: the row is written anew.
func (r *rig) update(table, set, where string) {
	r.t.Helper()
	r.exec("ALTER TABLE %s UPDATE %s WHERE %s", table, set, where)
}

func (r *rig) delete(table, where string) {
	r.t.Helper()
	r.exec("ALTER TABLE %s DELETE WHERE %s", table, where)
}

// copyRow puts a row in once more, with other values for some columns.
func (r *rig) copyRow(table, replace, where string) {
	r.t.Helper()
	r.exec("INSERT INTO %s SELECT * REPLACE(%s) FROM (SELECT * FROM %s WHERE %s)", table, replace, table, where)
}

func tamperings() []tampering {
	return []tampering{
		{name: "a byte of a body", want: []string{"MODIFIED at"}, do: func(r *rig, c *ledgertest.Chain, at uint64) {
			r.update("events", "body = replaceOne(body, 'Ada', 'Bda'), actor_name = 'Bda Lovelace'", where(c, at))
		}},
		{name: "a typed column", want: []string{"COLUMN MISMATCH at"}, do: func(r *rig, c *ledgertest.Chain, at uint64) {
			r.update("events", "actor_name = 'Eve'", where(c, at))
		}},
		{name: "a seed", want: []string{"MODIFIED at"}, do: func(r *rig, c *ledgertest.Chain, at uint64) {
			r.update("events", "seed = unhex('00112233445566778899aabbccddeeff')", where(c, at))
		}},
		{name: "a deleted event", want: []string{"MISSING at"}, do: func(r *rig, c *ledgertest.Chain, at uint64) {
			r.delete("events", where(c, at))
		}},
		{name: "a deleted run of leaves and events", want: []string{"MISSING at at+3"}, do: func(r *rig, c *ledgertest.Chain, at uint64) {
			for _, table := range []string{"events", "leaves"} {
				r.delete(table, fmt.Sprintf("chain = unhex('%x') AND sequence BETWEEN %d AND %d", c.ID, at, at+3))
			}
		}},
		{name: "an inserted event", want: []string{"INSERTED at"}, do: func(r *rig, c *ledgertest.Chain, at uint64) {
			r.copyRow("events", "unhex('000102030405060708090a0b0c0d0e0f') AS id", where(c, at))
		}},
		{name: "a duplicate event", want: []string{"DUPLICATE at"}, do: func(r *rig, c *ledgertest.Chain, at uint64) {
			r.copyRow("events", "part AS part", where(c, at))
		}},
		{name: "two rows swapped", want: []string{"REORDERED at at+1"}, do: func(r *rig, c *ledgertest.Chain, at uint64) {
			for _, table := range []string{"events", "leaves"} {
				rows := fmt.Sprintf("chain = unhex('%x') AND sequence IN (%d, %d)", c.ID, at, at+1)
				r.exec("CREATE TABLE swapped AS %s ENGINE = Memory", table)
				r.exec("INSERT INTO swapped SELECT * REPLACE(%d - sequence AS sequence) FROM (SELECT * FROM %s WHERE %s)", 2*at+1, table, rows)
				r.delete(table, rows)
				r.exec("INSERT INTO %s SELECT * FROM swapped", table)
				r.exec("DROP TABLE swapped")
			}
		}},
		{name: "a leaf hash", want: []string{"MODIFIED at"}, do: func(r *rig, c *ledgertest.Chain, at uint64) {
			r.update("leaves", "leaf_hash = reverse(leaf_hash)", where(c, at))
		}},
		{name: "the lane of a leaf", want: []string{"COLUMN MISMATCH at"}, do: func(r *rig, c *ledgertest.Chain, at uint64) {
			r.update("leaves", "lane = 1", where(c, at))
		}},
	}
}

// resolve writes out the places of a tampering.
func resolve(want []string, at uint64) (all []string) {
	for _, w := range want {
		for n := uint64(3); n > 0; n-- {
			w = strings.ReplaceAll(w, fmt.Sprintf(" at+%d", n), fmt.Sprintf(" %d", at+n))
		}
		all = append(all, strings.ReplaceAll(w, " at", fmt.Sprintf(" %d", at)))
	}
	slices.Sort(all)
	return all
}

// tamperedLeaves are in each chain: enough for stored nodes.
const tamperedLeaves = 300

func (r *rig) checkEvent(e *recordpb.Event, chains []*ledgertest.Chain) {
	r.t.Helper()
	i := slices.IndexFunc(chains, func(c *ledgertest.Chain) bool { return fmt.Sprintf("%x", c.ID) == e.GetResourceId() })
	if i < 0 {
		r.t.Errorf("the event is of chain %s", e.GetResourceId())
		return
	}
	c := chains[i]
	if e.GetAction() != "ledger.verification_failed" || e.GetActorId() != "immutable" || e.GetActorType() != "system" || e.GetResource() != "chain" ||
		[16]byte(e.GetWorkspace()) != c.Workspace || [16]byte(e.GetIncarnation()) != c.Incarnation ||
		e.GetLanes() != c.Lanes || e.GetKeyed() || len(e.GetFlags()) > 0 || e.GetKind() != recordpb.Kind_KIND_EVENT {
		r.t.Errorf("the event is %v", e)
	}
	for i, key := range e.GetMetadataKeys() {
		if key == "event_id" {
			if id, err := uuid.Parse(e.GetMetadataValues()[i]); err != nil || id == uuid.Nil {
				r.t.Errorf("event id %q", e.GetMetadataValues()[i])
			}
		}
	}
}

// TestTampering does everything at once, each to a chain of its own: to the newest leaves, then in another installation to old ones.
func TestTampering(t *testing.T) {
	long(t)
	t.Parallel()
	for _, place := range []struct {
		name string
		at   uint64
		cfg  Config
	}{
		// The history does not come so far within the test.
		{"newest", tamperedLeaves - 20, Config{SliceLeaves: 64, HistoryLeaves: 1}},
		{"history", 120, Config{NewestLeaves: 1, HistoryLeaves: 5000, SliceLeaves: 100}},
	} {
		t.Run(place.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, place.cfg).opened()
			var chains []*ledgertest.Chain
			for i := range tamperings() {
				c := r.chain(byte(i), 0, 2)
				r.ledger.Events(c, tamperedLeaves-1)
				chains = append(chains, c)
			}
			r.epoch()
			r.write()
			var want []string
			for i, tampering := range tamperings() {
				tampering.do(r, chains[i], place.at)
				for _, w := range resolve(tampering.want, place.at) {
					want = append(want, fmt.Sprintf("%x %s", chains[i].ID, w))
				}
			}
			for range 2 {
				r.once()
			}
			var got []string
			for _, e := range r.reported(len(want)) {
				got = append(got, e.GetResourceId()+" "+placeOf(e))
				r.checkEvent(e, chains)
			}
			slices.Sort(got)
			slices.Sort(want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("found (-want +got):\n%s", diff)
			}
			if n := r.value("immutable_verifier_failing_chains", ""); int(n) != len(chains) {
				t.Errorf("%v chains fail, want %d", n, len(chains))
			}
			if n := r.value("immutable_verifier_faults_total", ""); int(n) != len(want) {
				t.Errorf("%v faults are counted, want %d", n, len(want))
			}
			// What is mended is no fault any more.
			r.write()
			for n := 0; r.value("immutable_verifier_failing_chains", "") > 0; n++ {
				if n == 5*len(chains) {
					t.Fatal("chains fail after all was put back")
				}
				r.once()
			}
			r.reported(len(want))
		})
	}
}

// TestRewritten changes leaves together with their hashes, so that each follows from its content and the one before it.
func TestRewritten(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		from int // the first that is written anew
		want []string
	}{
		// The chain was sound at 1,000 leaves.
		{"since it was sound", 1005, []string{"MODIFIED 1000 1050"}},
		{"all", 1, []string{"MODIFIED"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, Config{HistoryLeaves: 3000}).opened()
			c := r.chain(1, 0, 2)
			r.ledger.Events(c, 999)
			r.epoch()
			r.write()
			r.once()
			r.silent()
			r.ledger.Events(c, 51)
			r.epoch()
			leaf := &c.Leaves[tt.from]
			leaf.Body = []byte(strings.Replace(string(leaf.Body), "Ada", "Bda", 1))
			c.Reseal(tt.from)
			r.write()
			for range 2 {
				r.once()
			}
			got := places(r.reported(int(r.value("immutable_verifier_events_total", ""))))
			for _, want := range tt.want {
				if !slices.Contains(got, want) {
					t.Errorf("found %q, want %q", got, want)
				}
			}
			if n := r.value("immutable_verifier_faults_total", string(ledger.Modified)); n < 1 {
				t.Errorf("%v faults", n)
			}
		})
	}
}
