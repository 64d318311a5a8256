package query

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/ledger"
)

// leafRow is a row of the table leaves.
type leafRow struct {
	chain       ledger.ChainID
	sequence    uint64
	hash        ledger.Hash
	node        []byte
	id          [16]byte
	kind        uint8
	recordedAt  int64 // microseconds since the Unix epoch
	generation  uint16
	partition   uint16
	offset      uint64
	incarnation [16]byte
	lane, lanes uint32

	ledgerPartition uint16
	ledgerOffset    uint64
}

const leafColumns = "chain, sequence, leaf_hash, node, id, kind, toUnixTimestamp64Micro(recorded_at), input_generation, " +
	"input_partition, input_offset, incarnation, lane, lanes, ledger_partition, ledger_offset"

func (l *leafRow) scan(rows driver.Rows) error {
	return rows.Scan((*[16]byte)(&l.chain), &l.sequence, (*[32]byte)(&l.hash), &l.node, &l.id, &l.kind, &l.recordedAt, &l.generation,
		&l.partition, &l.offset, &l.incarnation, &l.lane, &l.lanes, &l.ledgerPartition, &l.ledgerOffset)
}

// bodyRow is the content of a row of the table events.
type bodyRow struct {
	sequence   uint64
	id         [16]byte
	body       []byte
	seed       ledger.Hex16
	disclosure []byte // JSON; empty where the body is whole
}

const bodyColumns = "sequence, id, body, seed, disclosure"

func (b *bodyRow) scan(rows driver.Rows) error {
	return rows.Scan(&b.sequence, &b.id, &b.body, (*[16]byte)(&b.seed), &b.disclosure)
}

// content is what a body row shows: the body and its seed, or what a redaction has left of it.
func (b *bodyRow) content() (ledger.BundleLeaf, error) {
	if len(b.disclosure) == 0 {
		return ledger.BundleLeaf{Body: string(b.body), Seed: &b.seed}, nil
	}
	stored, err := ledger.ParseDisclosure(b.disclosure)
	if err != nil {
		return ledger.BundleLeaf{}, err
	}
	fields, err := ledger.JoinDisclosure(stored, b.body)
	return ledger.BundleLeaf{Disclosure: fields}, err
}

// conceal takes out of a row what was redacted and ClickHouse may still hold.
func (s *Service) conceal(workspace [16]byte, b *bodyRow) error {
	redaction, err := s.view.Redactions().Lookup(control.EventID{Workspace: workspace, Event: b.id})
	if redaction == nil || err != nil {
		return err
	}
	whole := &event.Content{Body: b.body, Seed: b.seed}
	if len(b.disclosure) > 0 {
		if whole.Disclosure, err = ledger.ParseDisclosure(b.disclosure); err != nil {
			return fmt.Errorf("%w: event %s: %w", errDamaged, uuid.UUID(b.id), err)
		}
	}
	left, err := whole.Redact(redaction.Paths)
	if err != nil {
		return fmt.Errorf("%w: event %s: %w", errDamaged, uuid.UUID(b.id), err)
	}
	if left != whole {
		b.body, b.seed = left.Body, left.Seed
		b.disclosure, err = ledger.EncodeDisclosure(left.Disclosure)
	}
	return err
}

// describe makes a leaf of what is stored: from its row, the hash before it, and its content, of which the body root is computed
// anew. Where that cannot be, it is zero, which no verifier accepts. b is nil where there is no content.
func describe(workspace [16]byte, l *leafRow, previous ledger.Hash, b *bodyRow) (ledger.BundleLeaf, error) {
	leaf := ledger.Leaf{
		Chain: l.chain, Sequence: l.sequence, Previous: previous, Kind: ledger.Kind(l.kind), ID: l.id, RecordedAt: l.recordedAt,
		Generation: l.generation, Partition: l.partition, Offset: l.offset,
	}
	var shown ledger.BundleLeaf
	var err error
	switch {
	case leaf.Kind == ledger.KindGenesis:
		genesis := ledger.Genesis(workspace, l.incarnation, l.lane, l.lanes, l.recordedAt, l.generation)
		leaf.BodyRoot = genesis.BodyRoot
	case b == nil:
		err = errors.New("it has no content")
	default:
		if shown, err = b.content(); err == nil {
			var count int
			if leaf.BodyRoot, count, err = shown.RecomputeRoot(); err == nil {
				leaf.FieldCount = uint16(count)
			}
		}
	}
	described := ledger.NewBundleLeaf(&leaf, workspace, l.incarnation, l.lane)
	described.Body, described.Seed, described.Disclosure = shown.Body, shown.Seed, shown.Disclosure
	if err != nil {
		return described, fmt.Errorf("leaf %d of chain %x: %w", l.sequence, l.chain, err)
	}
	return described, nil
}

// spine reads the leaves of a chain from a sequence on, before another, and no more than most rows.
func (s *Service) spine(ctx context.Context, workspace [16]byte, chain ledger.ChainID, from, to uint64, most int) ([]leafRow, error) {
	st := spineStatement(workspace, chain, from, to, most, limits{timeout: s.cfg.RequestTimeout})
	var list []leafRow
	err := s.run(ctx, statementSpine, st, func(rows driver.Rows) error {
		list = append(list, leafRow{})
		return list[len(list)-1].scan(rows)
	})
	return list, err
}

func spineStatement(workspace [16]byte, chain ledger.ChainID, from, to uint64, most int, l limits) *statement {
	st := selectFrom(leafColumns, "leaves", workspace)
	st.and("chain = ", st.bindID(chain))
	st.and("sequence >= ", st.bind("UInt64", from), " AND sequence < ", st.bind("UInt64", to))
	st.write("\nORDER BY sequence, ledger_offset\nLIMIT ", strconv.Itoa(most))
	return st.settings(l)
}

// bodies reads the content of the leaves of a chain from one sequence to another, both among them.
func (s *Service) bodies(ctx context.Context, workspace [16]byte, chain ledger.ChainID, from, to uint64, most int) ([]bodyRow, error) {
	st := bodiesStatement(workspace, chain, from, to, most, limits{timeout: s.cfg.RequestTimeout, bytes: chunkBytes})
	var list []bodyRow
	err := s.run(ctx, statementContent, st, func(rows driver.Rows) error {
		list = append(list, bodyRow{})
		b := &list[len(list)-1]
		if err := b.scan(rows); err != nil {
			return err
		}
		return s.conceal(workspace, b)
	})
	return list, err
}

func bodiesStatement(workspace [16]byte, chain ledger.ChainID, from, to uint64, most int, l limits) *statement {
	st := selectFrom(bodyColumns, "events", workspace)
	st.and("chain = ", st.bindID(chain))
	st.and("sequence BETWEEN ", st.bind("UInt64", from), " AND ", st.bind("UInt64", to))
	st.write("\nORDER BY sequence, ledger_offset\nLIMIT ", strconv.Itoa(most))
	return st.settings(l)
}
