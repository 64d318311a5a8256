package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/ledger"
)

// store reads the operator's tables, column by column.
type store struct {
	cfg  clickhouse.Config
	idle chan *ch.Client
	// settings of every statement.
	settings []ch.Setting
}

const clientName = "immutable-verify"

// newStore dials nothing. Close it.
func newStore(cfg clickhouse.Config, connections int) *store {
	return &store{cfg: cfg, idle: make(chan *ch.Client, connections)}
}

// limited is the same store, but that ClickHouse refuses answers of more bytes: TOO_MANY_ROWS_OR_BYTES.
func (s *store) limited(bytes uint64) *store {
	limit := []ch.Setting{
		{Key: "max_result_bytes", Value: strconv.FormatUint(bytes, 10), Important: true},
		{Key: "result_overflow_mode", Value: "throw", Important: true},
	}
	return &store{cfg: s.cfg, idle: s.idle, settings: slices.Concat(s.settings, limit)}
}

func (s *store) close() {
	close(s.idle)
	for client := range s.idle {
		_ = client.Close()
	}
}

// query runs a statement, and calls each after each block of the answer. What the columns hold then may be kept until the next.
func (s *store) query(ctx context.Context, text string, columns proto.Results, each func(rows int) error) error {
	var client *ch.Client
	select {
	case client = <-s.idle:
	default:
		var err error
		if client, err = clickhouse.Dial(ctx, s.cfg, clientName); err != nil {
			return err
		}
	}
	// ch-go looks at ctx between packets only, and may be waiting for one.
	stop := context.AfterFunc(ctx, func() { _ = client.Close() })
	err := client.Do(ctx, ch.Query{
		Body: text, Result: columns, Settings: s.settings,
		OnResult: func(_ context.Context, b proto.Block) error {
			if b.Rows == 0 {
				return nil
			}
			return each(b.Rows)
		},
	})
	if !stop() || err != nil {
		_ = client.Close() // what is on the wire is not known
		return fmt.Errorf("asking clickhouse: %w", cmp.Or(err, ctx.Err()))
	}
	select {
	case s.idle <- client:
	default:
		_ = client.Close()
	}
	return nil
}

// sql writes 16 or 32 bytes into a statement.
func sql(b []byte) string { return fmt.Sprintf("unhex('%x')", b) }

// logTable is the root log in the tables.
type logTable struct{ *store }

const logRowsSlice = 50_000

// rows implements rootLog. Rows of one index that say the same, from a writer that was killed, count as one.
func (t logTable) rows(ctx context.Context, from, to uint64, each func(*logRow) error) error {
	var (
		index                  proto.ColUInt64
		hash                   = proto.ColFixedStr{Size: 32}
		node, entry, entryType proto.ColStr
		at                     proto.ColInt64
	)
	columns := proto.Results{
		{Name: "entry_index", Data: &index},
		{Name: "hash", Data: &hash},
		{Name: "node", Data: &node},
		{Name: "entry", Data: &entry},
		{Name: "t", Data: &entryType},
		{Name: "at", Data: &at},
	}
	for ; from < to; from += logRowsSlice {
		text := fmt.Sprintf("SELECT DISTINCT entry_index, hash, node, entry, CAST(type, 'String') AS t, toUnixTimestamp64Micro(time) AS at FROM root_log "+
			"WHERE entry_index >= %d AND entry_index < %d ORDER BY entry_index", from, min(to, from+logRowsSlice))
		err := t.query(ctx, text, columns, func(rows int) error {
			for i := range rows {
				row := logRow{index: index[i], hash: ledger.Hash(hash.Row(i)), entry: entry.RowBytes(i)}
				row.node, row.unread = hashes(node.RowBytes(i))
				row.columns = &logColumns{entryType.Row(i), at[i]}
				if err := each(&row); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

var errHashes = errors.New("not a multiple of 32 bytes")

// hashes splits what is stored of a node.
func hashes(b []byte) ([]ledger.Hash, error) {
	if len(b)%32 != 0 {
		return nil, errHashes
	}
	var all []ledger.Hash
	for ; len(b) > 0; b = b[32:] {
		all = append(all, ledger.Hash(b[:32]))
	}
	return all, nil
}

// keyChanges reads the key changes that the table names.
func (s *store) keyChanges(ctx context.Context) (entries []string, err error) {
	var entry proto.ColStr
	text := fmt.Sprintf("SELECT entry FROM root_log WHERE type = 'key' GROUP BY entry_index, entry ORDER BY entry_index LIMIT %d", maxKeyChanges)
	err = s.query(ctx, text, proto.Results{{Name: "entry", Data: &entry}}, func(rows int) error {
		for i := range rows {
			entries = append(entries, entry.Row(i))
		}
		return nil
	})
	return entries, err
}

const maxKeyChanges = 1000

// storedCheckpoint is a row of the table checkpoints.
type storedCheckpoint struct {
	size uint64
	root ledger.Hash
	note string
}

// checkpoints calls each with the rows of the table, in order of size, those with more witnesses first.
func (s *store) checkpoints(ctx context.Context, where string, limit int, each func(*storedCheckpoint) error) error {
	var (
		size proto.ColUInt64
		root = proto.ColFixedStr{Size: 32}
		note proto.ColStr
	)
	columns := proto.Results{{Name: "size", Data: &size}, {Name: "root", Data: &root}, {Name: "note", Data: &note}}
	text := "SELECT size, root, note FROM checkpoints " + where
	if limit > 0 {
		text += fmt.Sprintf(" LIMIT %d", limit)
	}
	return s.query(ctx, text, columns, func(rows int) error {
		for i := range rows {
			if err := each(&storedCheckpoint{size[i], ledger.Hash(root.Row(i)), note.Row(i)}); err != nil {
				return err
			}
		}
		return nil
	})
}

// newestCheckpoint returns the note of the largest size with the most witnesses, nil where there is none.
func (s *store) newestCheckpoint(ctx context.Context) (note []byte, err error) {
	err = s.checkpoints(ctx, "ORDER BY size DESC, witnesses DESC", 1, func(c *storedCheckpoint) error {
		note = []byte(c.note)
		return nil
	})
	return note, err
}

// chainRows says what a table holds of a chain.
type chainRows struct {
	chain           ledger.ChainID
	identity        ledger.ChainIdentity
	ledgerPartition uint16
	rows, size      uint64 // size: the largest sequence + 1
}

// chains lists what leaves holds, by all that must be one for a chain.
func (s *store) chains(ctx context.Context) (all []chainRows, err error) {
	var (
		chain, workspace, incarnation = proto.ColFixedStr{Size: 16}, proto.ColFixedStr{Size: 16}, proto.ColFixedStr{Size: 16}
		lane, lanes                   proto.ColUInt32
		partition                     proto.ColUInt16
		count, last                   proto.ColUInt64
	)
	columns := proto.Results{
		{Name: "chain", Data: &chain},
		{Name: "workspace", Data: &workspace},
		{Name: "incarnation", Data: &incarnation},
		{Name: "lane", Data: &lane},
		{Name: "lanes", Data: &lanes},
		{Name: "ledger_partition", Data: &partition},
		{Name: "n", Data: &count},
		{Name: "last", Data: &last},
	}
	const text = "SELECT chain, workspace, incarnation, lane, lanes, ledger_partition, count() AS n, max(sequence) AS last FROM leaves " +
		"GROUP BY chain, workspace, incarnation, lane, lanes, ledger_partition ORDER BY chain, n DESC"
	err = s.query(ctx, text, columns, func(rows int) error {
		for i := range rows {
			all = append(all, chainRows{
				ledger.ChainID(chain.Row(i)),
				ledger.ChainIdentity{
					Workspace: [16]byte(workspace.Row(i)), Incarnation: [16]byte(incarnation.Row(i)), Lane: lane[i], Lanes: lanes[i],
				},
				partition[i], count[i], last[i] + 1,
			})
		}
		return nil
	})
	return all, err
}

// eventGroups lists what events holds, by workspace and chain.
func (s *store) eventGroups(ctx context.Context) (all []chainRows, err error) {
	var (
		chain, workspace = proto.ColFixedStr{Size: 16}, proto.ColFixedStr{Size: 16}
		count, last      proto.ColUInt64
	)
	columns := proto.Results{
		{Name: "chain", Data: &chain}, {Name: "workspace", Data: &workspace}, {Name: "n", Data: &count}, {Name: "last", Data: &last},
	}
	const text = "SELECT chain, workspace, count() AS n, max(sequence) AS last FROM events GROUP BY chain, workspace ORDER BY chain, n DESC"
	err = s.query(ctx, text, columns, func(rows int) error {
		for i := range rows {
			all = append(all, chainRows{
				chain: ledger.ChainID(chain.Row(i)), identity: ledger.ChainIdentity{Workspace: [16]byte(workspace.Row(i))}, rows: count[i],
				size: last[i] + 1,
			})
		}
		return nil
	})
	return all, err
}

// ends returns, for each ledger partition, one past the largest offset that both tables hold. A genesis has no row in events, so events may end
// before.
func (s *store) ends(ctx context.Context) (map[uint16]uint64, error) {
	ends := map[uint16]uint64{}
	var (
		partition proto.ColUInt16
		last      proto.ColUInt64
	)
	columns := proto.Results{{Name: "ledger_partition", Data: &partition}, {Name: "last", Data: &last}}
	err := s.query(ctx, "SELECT ledger_partition, max(ledger_offset) AS last FROM events GROUP BY ledger_partition", columns, func(rows int) error {
		for i := range rows {
			ends[partition[i]] = last[i] + 1
		}
		return nil
	})
	return ends, err
}
