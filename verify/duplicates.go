package verify

import (
	"context"
	"fmt"
	"strings"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/google/uuid"

	"getimmutable.dev/immutable/ledger"
)

const (
	// maxRepeated is how many ids that come twice are looked into.
	maxRepeated = 10_000
	// repeatedAtOnce is how many are asked for in one statement.
	repeatedAtOnce = 500
	// groupBytes is what ClickHouse keeps in memory of all ids; what is more it writes to disk.
	groupBytes = 256 << 20
)

// repeated is a leaf whose id another one has.
type repeated struct {
	ledger.Sighting

	workspace [16]byte
	chain     ledger.ChainID
}

// checkRepeats looks for events that were sealed twice, anywhere in a workspace. Rows that are at fault already are no leaves.
func (v *tableVerifier) checkRepeats(ctx context.Context) error {
	ids, err := v.store.repeatedIDs(ctx)
	if err != nil {
		return err
	}
	if len(ids) > maxRepeated {
		ids = ids[:maxRepeated]
		v.report.undecided("more than %d event ids come twice: only so many were looked into", maxRepeated)
	}
	sentAgain := 0
	for first := 0; first < len(ids); first += repeatedAtOnce {
		rows, err := v.store.repeats(ctx, ids[first:min(len(ids), first+repeatedAtOnce)])
		if err != nil {
			return err
		}
		for i := 1; i < len(rows); i++ {
			before, again := &rows[i-1], &rows[i]
			switch {
			case before.ID != again.ID || before.workspace != again.workspace:
			case before.chain == again.chain && before.Sequence == again.Sequence: // one leaf, stored twice
			case v.report.names(before.chain, before.Sequence) || v.report.names(again.chain, again.Sequence):
			case before.SentAgain(&again.Sighting):
				sentAgain++
			default:
				v.report.fault(&ledger.Fault{
					Verdict: ledger.Duplicate, Chain: &again.chain, Sequence: &again.Sequence, EventID: uuid.UUID(again.ID).String(),
					Detail: fmt.Sprintf("the event was sealed before, as sequence %d of chain %x", before.Sequence, before.chain),
				})
			}
		}
	}
	v.report.sentAgain(uint64(sentAgain))
	return nil
}

// names says whether a leaf is at fault as far as is known: among the first Config.MaxFaults.
func (r *Report) names(chain ledger.ChainID, sequence uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.Faults {
		if f.Chain == nil || *f.Chain != chain || f.Sequence == nil || exitOf(f.Verdict) != ExitTampered || f.Verdict == ledger.Duplicate {
			continue
		}
		last := *f.Sequence
		if f.Last != nil {
			last = *f.Last
		}
		if *f.Sequence <= sequence && sequence <= last {
			return true
		}
	}
	return false
}

// sentAgain notes retries that came too late.
func (r *Report) sentAgain(n uint64) {
	if n > 0 {
		r.notef("%d events with an idempotency key are there twice: they were sent again more than %d leaves later, which the processor does not notice",
			n, ledger.RepeatLeaves)
	}
}

// repeatedID is an id that several rows of leaves have.
type repeatedID struct{ workspace, id [16]byte }

// repeatedIDs returns at most one more than maxRepeated.
func (s *store) repeatedIDs(ctx context.Context) (ids []repeatedID, err error) {
	workspace, id := proto.ColFixedStr{Size: 16}, proto.ColFixedStr{Size: 16}
	text := fmt.Sprintf("SELECT workspace, id FROM leaves WHERE kind != %d GROUP BY workspace, id HAVING count() > 1 LIMIT %d "+
		"SETTINGS max_bytes_before_external_group_by = %d", ledger.KindGenesis, maxRepeated+1, groupBytes)
	err = s.query(ctx, text, proto.Results{{Name: "workspace", Data: &workspace}, {Name: "id", Data: &id}}, func(rows int) error {
		for i := range rows {
			ids = append(ids, repeatedID{[16]byte(workspace.Row(i)), [16]byte(id.Row(i))})
		}
		return nil
	})
	return ids, err
}

// repeats returns the rows with these ids, those of one id together, in the order of the ledger.
func (s *store) repeats(ctx context.Context, ids []repeatedID) (all []repeated, err error) {
	var (
		workspace, id, chain = proto.ColFixedStr{Size: 16}, proto.ColFixedStr{Size: 16}, proto.ColFixedStr{Size: 16}
		sequence, offset     proto.ColUInt64
		partition            proto.ColUInt16
		recordedAt           proto.ColInt64
	)
	columns := proto.Results{
		{Name: "workspace", Data: &workspace},
		{Name: "id", Data: &id},
		{Name: "chain", Data: &chain},
		{Name: "sequence", Data: &sequence},
		{Name: "ledger_partition", Data: &partition},
		{Name: "ledger_offset", Data: &offset},
		{Name: "at", Data: &recordedAt},
	}
	list := make([]string, len(ids))
	for i := range ids {
		list[i] = sql(ids[i].id[:])
	}
	text := fmt.Sprintf("SELECT workspace, id, chain, sequence, ledger_partition, ledger_offset, toUnixTimestamp64Micro(recorded_at) AS at FROM leaves "+
		"WHERE kind != %d AND id IN (%s) ORDER BY workspace, id, ledger_partition, ledger_offset, chain, sequence",
		ledger.KindGenesis, strings.Join(list, ","))
	err = s.query(ctx, text, columns, func(rows int) error {
		for i := range rows {
			all = append(all, repeated{
				Sighting: ledger.Sighting{
					ID: [16]byte(id.Row(i)), RecordedAt: recordedAt[i], Partition: partition[i], Offset: offset[i], Sequence: sequence[i],
				},
				workspace: [16]byte(workspace.Row(i)), chain: ledger.ChainID(chain.Row(i)),
			})
		}
		return nil
	})
	return all, err
}
