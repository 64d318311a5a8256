package verify

import (
	"context"
	"fmt"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/google/uuid"

	"getimmutable.dev/immutable/ledger"
)

const (
	// repeatedAtOnce is how many ids that come twice are asked for in one statement.
	repeatedAtOnce = 10_000
	// maxTimes is how many leaves of one id are kept to find copies of them.
	maxTimes = 1000
	// groupBytes is what ClickHouse keeps in memory of all ids, and of rows to be sorted; what is more it writes to disk.
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
	var last repeated
	times := map[int64]repeated{} // the leaves of the id, by when they were recorded: a retry in between must not hide a copy
	sentAgain := uint64(0)
	each := func(again *repeated) {
		if last.ID != again.ID || last.workspace != again.workspace {
			clear(times)
		}
		before, copied := times[again.RecordedAt]
		if !copied {
			before = last
		}
		if len(times) < maxTimes {
			times[again.RecordedAt] = *again
		}
		last = *again
		switch {
		case before.ID != again.ID || before.workspace != again.workspace:
		case before.chain == again.chain && before.Sequence == again.Sequence: // one leaf, stored twice
		case v.report.names(before.chain, before.Sequence) || v.report.names(again.chain, again.Sequence):
		case before.SentAgain(&again.Sighting):
			sentAgain++
		default:
			sequence, chain := again.Sequence, again.chain
			v.report.fault(&ledger.Fault{
				Verdict: ledger.Duplicate, Chain: &chain, Sequence: &sequence, EventID: uuid.UUID(again.ID).String(),
				Detail: fmt.Sprintf("the event was sealed before, as sequence %d of chain %x", before.Sequence, before.chain),
			})
		}
	}
	for more := true; more; {
		ids, err := v.store.repeats(ctx, last.workspace, last.ID, each)
		if err != nil {
			return err
		}
		more = ids == repeatedAtOnce
	}
	v.report.sentAgain(sentAgain)
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
		r.notef("%d events with an idempotency key are there twice: they were sent again so late that the processor no longer knew them", n)
	}
}

// repeats calls each with the leaves whose ids come twice in their workspace, those of one id together, in the order of the input: of the next
// repeatedAtOnce ids after one of a workspace. It returns of how many ids there were.
func (s *store) repeats(ctx context.Context, workspace, id [16]byte, each func(*repeated)) (ids int, err error) {
	var (
		workspaces, allIDs, chain = proto.ColFixedStr{Size: 16}, proto.ColFixedStr{Size: 16}, proto.ColFixedStr{Size: 16}
		sequence, offset          proto.ColUInt64
		generation, partition     proto.ColUInt16
		recordedAt                proto.ColInt64
	)
	columns := proto.Results{
		{Name: "workspace", Data: &workspaces},
		{Name: "id", Data: &allIDs},
		{Name: "chain", Data: &chain},
		{Name: "sequence", Data: &sequence},
		{Name: "input_generation", Data: &generation},
		{Name: "input_partition", Data: &partition},
		{Name: "input_offset", Data: &offset},
		{Name: "at", Data: &recordedAt},
	}
	const text = "SELECT workspace, id, chain, sequence, input_generation, input_partition, input_offset, toUnixTimestamp64Micro(recorded_at) AS at " +
		"FROM leaves WHERE kind != %[1]d AND (workspace, id) IN (" +
		"SELECT workspace, id FROM leaves WHERE kind != %[1]d AND (workspace > %[2]s OR workspace = %[2]s AND id > %[3]s) " +
		"GROUP BY workspace, id HAVING count() > 1 ORDER BY workspace, id LIMIT %[4]d" +
		") ORDER BY workspace, id, input_generation, input_partition, input_offset, chain, sequence " +
		"SETTINGS max_bytes_before_external_group_by = %[5]d, max_bytes_before_external_sort = %[5]d"
	var last struct{ workspace, id [16]byte }
	err = s.query(ctx, fmt.Sprintf(text, ledger.KindGenesis, sql(workspace[:]), sql(id[:]), repeatedAtOnce, groupBytes), columns, func(rows int) error {
		for i := range rows {
			r := &repeated{
				Sighting: ledger.Sighting{
					ID: [16]byte(allIDs.Row(i)), RecordedAt: recordedAt[i], Generation: generation[i], Partition: partition[i], Offset: offset[i],
					Sequence: sequence[i],
				},
				workspace: [16]byte(workspaces.Row(i)), chain: ledger.ChainID(chain.Row(i)),
			}
			if ids == 0 || last.workspace != r.workspace || last.id != r.ID {
				ids++
				last.workspace, last.id = r.workspace, r.ID
			}
			each(r)
		}
		return nil
	})
	return ids, err
}
