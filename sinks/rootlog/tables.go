package rootlog

import (
	"context"
	"fmt"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"getimmutable.dev/immutable/ledger"
)

const (
	tableEntries     = "root_log"
	tableCheckpoints = "checkpoints"
)

const writeAgain = "stop every `immutable sinks`, or `up`, and run `immutable rebuild`: what clickhouse lacks is written again"

// readPosition asks the tables where to go on: at the first entry that root_log lacks.
func (w *Writer) readPosition(ctx context.Context) (*position, error) {
	const query = `SELECT if(have = next, have, (
			SELECT min(n) FROM (SELECT entry_index + 1 AS n FROM root_log UNION ALL SELECT 0 AS n)
			WHERE n NOT IN (SELECT entry_index FROM root_log)))
		FROM (SELECT uniqExact(entry_index) AS have, if(count() = 0, 0, max(entry_index) + 1) AS next FROM root_log)`
	var size uint64
	if err := w.conn.QueryRow(ctx, query).Scan(&size); err != nil {
		return nil, fmt.Errorf("asking for the last entry: %w", err)
	}
	p := &position{rootsFrom: size}
	if size == 0 {
		return p, nil
	}
	head, err := w.readHead(ctx, size)
	if err != nil {
		return nil, err
	}
	last, err := w.hashAt(ctx, size-1)
	if err != nil {
		return nil, err
	}
	p.head = *head
	p.head.LastLeafHash = last
	p.roots, p.rootsFrom = []ledger.Hash{head.Root()}, size-1
	return p, nil
}

// readHead makes the tree of a size from what root_log stores; without LastLeafHash.
func (w *Writer) readHead(ctx context.Context, size uint64) (*ledger.Head, error) {
	plan := ledger.PerfectSubtrees(size)
	var stored [][]ledger.Hash
	for _, span := range plan.Spans() {
		hashes, err := w.readSpan(ctx, span)
		if err != nil {
			return nil, err
		}
		stored = append(stored, hashes)
	}
	subtrees, err := plan.Build(stored)
	if err != nil {
		return nil, err
	}
	return &ledger.Head{Size: size, Range: subtrees}, nil
}

// readSpan reads stored hashes. Where one is missing, or a row has two, it halts.
func (w *Writer) readSpan(ctx context.Context, span ledger.Span) ([]ledger.Hash, error) {
	step := uint64(1) << (8 * span.Level)
	column, position := "hash", uint64(1)
	if span.Level > 0 {
		column, position = "substring(node, {offset:UInt64}, 32)", uint64(span.Level-1)*32+1
	}
	rows, err := w.conn.Query(ctx, `SELECT DISTINCT entry_index, `+column+` FROM root_log
		WHERE entry_index >= {first:UInt64} AND entry_index < {end:UInt64} AND (entry_index + 1) % {step:UInt64} = 0
		ORDER BY entry_index`,
		clickhouse.Named("first", (span.From+1)*step-1), clickhouse.Named("end", span.To*step),
		clickhouse.Named("step", step), clickhouse.Named("offset", position))
	if err != nil {
		return nil, fmt.Errorf("reading the root log: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var hashes []ledger.Hash
	for rows.Next() {
		var index uint64
		var hash string
		if err := rows.Scan(&index, &hash); err != nil {
			return nil, fmt.Errorf("reading the root log: %w", err)
		}
		if want := (span.From+uint64(len(hashes))+1)*step - 1; index != want || len(hash) != len(ledger.Hash{}) {
			return nil, halt(haltTables, "root_log has %d bytes of level %d at entry %d, where one hash of entry %d is wanted: rows were "+
				"changed or deleted. Delete those from entry_index %[4]d on; %s", len(hash), span.Level, index, want, writeAgain)
		}
		hashes = append(hashes, ledger.Hash([]byte(hash)))
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading the root log: %w", err)
	}
	if uint64(len(hashes)) != span.To-span.From {
		return nil, halt(haltTables, "root_log has %d hashes of level %d, %d to %d are wanted; %s",
			len(hashes), span.Level, span.From, span.To-1, writeAgain)
	}
	return hashes, nil
}

func (w *Writer) hashAt(ctx context.Context, index uint64) (ledger.Hash, error) {
	hashes, err := w.readSpan(ctx, ledger.Span{From: index, To: index + 1})
	if err != nil {
		return ledger.Hash{}, err
	}
	return hashes[0], nil
}

// insertEntries brings consecutive entries in.
func (w *Writer) insertEntries(ctx context.Context, token string, entries []*entry) error {
	err := w.insert(ctx, tableEntries, token, func(b driver.Batch) error {
		for _, e := range entries {
			kind := "epoch"
			if e.Key != nil {
				kind = "key"
			}
			err := b.Append(e.Index, string(e.record.GetHash()), string(e.record.GetNode()), kind, e.Time, string(e.record.GetEntry()))
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	var n uint64
	err = w.conn.QueryRow(ctx, "SELECT uniqExact(entry_index) FROM root_log WHERE entry_index BETWEEN {first:UInt64} AND {last:UInt64}",
		clickhouse.Named("first", entries[0].Index), clickhouse.Named("last", entries[len(entries)-1].Index)).Scan(&n)
	if err != nil {
		return fmt.Errorf("counting entries: %w", err)
	}
	if n != uint64(len(entries)) {
		return fmt.Errorf("%w: root_log has %d of %d entries", errDropped, n, len(entries))
	}
	return nil
}

// insertCheckpoints brings checkpoints in.
func (w *Writer) insertCheckpoints(ctx context.Context, token string, checkpoints []*checkpoint) error {
	err := w.insert(ctx, tableCheckpoints, token, func(b driver.Batch) error {
		for _, c := range checkpoints {
			err := b.Append(c.GetSize(), string(c.GetRoot()), string(c.GetNote()), uint16(c.GetWitnesses()), c.GetQuorum(),
				time.UnixMicro(c.GetPublishedAt()))
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	missing, err := w.missing(ctx, checkpoints)
	if err == nil && len(missing) > 0 {
		err = fmt.Errorf("%w: checkpoints lacks %d of %d", errDropped, len(missing), len(checkpoints))
	}
	return err
}

func (w *Writer) insert(ctx context.Context, table, token string, fill func(driver.Batch) error) error {
	ctx = clickhouse.Context(ctx, clickhouse.WithSettings(clickhouse.Settings{"insert_deduplication_token": token}))
	b, err := w.conn.PrepareBatch(ctx, "INSERT INTO "+table)
	if err != nil {
		return fmt.Errorf("inserting into %s: %w", table, err)
	}
	defer func() { _ = b.Close() }()
	if err := fill(b); err != nil {
		return fmt.Errorf("inserting into %s: %w", table, err)
	}
	if err := b.Send(); err != nil {
		return fmt.Errorf("inserting into %s: %w", table, err)
	}
	return nil
}

// missing returns those of checkpoints that the table lacks, each once.
func (w *Writer) missing(ctx context.Context, checkpoints []*checkpoint) (missing []*checkpoint, err error) {
	first, last := checkpoints[0].GetSize(), checkpoints[0].GetSize()
	for _, c := range checkpoints {
		first, last = min(first, c.GetSize()), max(last, c.GetSize())
	}
	rows, err := w.conn.Query(ctx, "SELECT DISTINCT size, witnesses, root FROM checkpoints WHERE size BETWEEN {first:UInt64} AND {last:UInt64}",
		clickhouse.Named("first", first), clickhouse.Named("last", last))
	if err != nil {
		return nil, fmt.Errorf("reading checkpoints: %w", err)
	}
	defer func() { _ = rows.Close() }()
	have := map[checkpointKey]ledger.Hash{}
	for rows.Next() {
		var k checkpointKey
		var root ledger.Hash
		if err := rows.Scan(&k.size, &k.witnesses, (*[32]byte)(&root)); err != nil {
			return nil, fmt.Errorf("reading checkpoints: %w", err)
		}
		have[k] = root
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading checkpoints: %w", err)
	}
	for _, c := range checkpoints {
		root, there := have[c.key()]
		if there && root != c.root {
			return nil, halt(haltTables, "checkpoints has root %x at size %d, and the topic %x: rows were changed", root, c.GetSize(), c.root)
		}
		if !there {
			have[c.key()] = c.root // the next that says the same is not another
			missing = append(missing, c)
		}
	}
	return missing, nil
}
