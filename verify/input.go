package verify

import (
	"context"
	"fmt"
	"slices"

	"github.com/ClickHouse/ch-go/proto"

	"getimmutable.dev/immutable/ledger"
)

// ledgerOffsetsPerSlice bounds what is read at once of a partition of the ledger.
const ledgerOffsetsPerSlice = 200_000

// inputRow is where a leaf stands in the ledger topic, and where its event stood on the events topic.
type inputRow struct {
	ledgerOffset uint64
	generation   uint16
	partition    uint16
	offset       uint64
	chain        ledger.ChainID
	sequence     uint64
	id           [16]byte
}

// checkInput checks the input accounting: in the order of a ledger partition, no place of the input comes twice, and none after a later one. The chains have
// checked that of their own leaves.
func (v *tableVerifier) checkInput(ctx context.Context, results []*chainResult) error {
	faulty := map[ledger.ChainID]bool{}
	ends := map[uint16]uint64{}
	for _, r := range results {
		if r.faults > 0 || r.err != nil {
			faulty[r.id] = true
		}
		ends[r.partition] = max(ends[r.partition], r.end)
	}
	if len(faulty) > 0 {
		v.report.notChecked("the places in the input of %d chains with faults, against those of other chains", len(faulty))
	}
	gaps, err := v.newGaps(ctx)
	if err := v.leaveOpen(ctx, unsealedInput, err); err != nil {
		return err
	}
	partitions := make([]uint16, 0, len(ends))
	for p := range ends {
		partitions = append(partitions, p)
	}
	slices.Sort(partitions)
	for _, p := range partitions {
		var last *inputRow
		err := v.store.inputs(ctx, p, ends[p], func(r *inputRow) {
			gaps.sealed(r)
			if faulty[r.chain] {
				return
			}
			v.checkInputOrder(last, r)
			last = r
		})
		if err == nil {
			err = gaps.checkBeyond(ctx, v, faulty)
		}
		if err == nil {
			err = gaps.check(ctx, v, p)
		}
		if err := v.leaveOpen(ctx, fmt.Sprintf("the places in the input of the leaves of ledger partition %d", p), err); err != nil {
			return err
		}
	}
	return nil
}

// checkInputOrder compares two leaves that follow one another in a ledger partition.
func (v *tableVerifier) checkInputOrder(last, r *inputRow) {
	if last == nil {
		return
	}
	var verdict ledger.Verdict
	switch {
	case r.ledgerOffset == last.ledgerOffset:
		verdict = ledger.ColumnMismatch
	case r.generation == last.generation && r.partition == last.partition && r.offset == last.offset:
		verdict = ledger.Duplicate
	case r.generation < last.generation, r.generation == last.generation && r.offset < last.offset:
		verdict = ledger.Reordered
	default:
		return
	}
	v.report.fault(leafFault(verdict, &ledger.Leaf{Chain: r.chain, Sequence: r.sequence, ID: r.id},
		"input offset %d at ledger offset %d follows input offset %d at ledger offset %d, sequence %d of chain %x",
		r.offset, r.ledgerOffset, last.offset, last.ledgerOffset, last.sequence, last.chain))
}

// inputs calls each with the leaves of a ledger partition but the geneses, in its order.
func (s *store) inputs(ctx context.Context, partition uint16, end uint64, each func(*inputRow)) error {
	var (
		ledgerOffset, offset, sequence proto.ColUInt64
		generation, input              proto.ColUInt16
		chain, id                      = proto.ColFixedStr{Size: 16}, proto.ColFixedStr{Size: 16}
	)
	columns := proto.Results{
		{Name: "ledger_offset", Data: &ledgerOffset},
		{Name: "input_generation", Data: &generation},
		{Name: "input_partition", Data: &input},
		{Name: "input_offset", Data: &offset},
		{Name: "chain", Data: &chain},
		{Name: "sequence", Data: &sequence},
		{Name: "id", Data: &id},
	}
	found := true
	for from := uint64(0); from < end; from += ledgerOffsetsPerSlice {
		if !found {
			// An offset that somebody has put far beyond the others must not make this long.
			next, err := s.number(ctx, fmt.Sprintf("SELECT min(ledger_offset) FROM leaves WHERE ledger_partition = %d AND ledger_offset >= %d", partition, from))
			if err != nil {
				return err
			}
			from = max(from, next)
		}
		found = false
		text := fmt.Sprintf("SELECT ledger_offset, input_generation, input_partition, input_offset, chain, sequence, id FROM leaves "+
			"WHERE ledger_partition = %d AND ledger_offset >= %d AND ledger_offset < %d AND kind != 1 ORDER BY ledger_offset, chain, sequence",
			partition, from, min(end, from+ledgerOffsetsPerSlice))
		err := s.query(ctx, text, columns, func(rows int) error {
			found = true
			for i := range rows {
				each(&inputRow{
					ledgerOffset[i], generation[i], input[i], offset[i], ledger.ChainID(chain.Row(i)), sequence[i], [16]byte(id.Row(i)),
				})
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
