package chwriter

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	clickhousego "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/internal/clickhouse"
)

// The tables of a batch, in the order of their inserts: what is in events has its rows in every other table.
const (
	tableLeaves = "leaves"
	tableEvents = "events"
)

// serverTimeout is how long ClickHouse waits for a silent writer, within an insert and between two, before it closes
// the connection. See partition.announce.
const serverTimeout = 60 * time.Second

// inserter is a connection to ClickHouse and the columns of one batch. A partition borrows one for the time of a batch,
// so that memory grows with the inserts under way and not with the partitions.
type inserter struct {
	addrs         []string
	opts          ch.Options
	serverTimeout time.Duration
	client        *ch.Client // nil when there is no connection
	connected     time.Time  // when client was dialled
	used          time.Time  // when a query on client last ended

	events  *eventColumns
	leaves  *leafColumns
	record  sealed
	demands demands // of the batch's redactions
}

func newInserter(cfg clickhouse.Config, serverTimeout time.Duration) (*inserter, error) {
	opts, err := cfg.Options()
	if err != nil {
		return nil, err
	}
	settings := map[string]string{
		// One block and one part an insert, or none: an insert of several is not atomic.
		"max_insert_block_size":                    "1048449",
		"max_partitions_per_insert_block":          "1",
		"throw_on_max_partitions_per_insert_block": "1",
		"receive_timeout":                          seconds(serverTimeout),
		"idle_connection_timeout":                  seconds(serverTimeout),
	}
	for key, value := range opts.Settings {
		settings[key] = settingText(value)
	}
	i := &inserter{
		addrs: opts.Addr, serverTimeout: serverTimeout,
		opts:   clickhouse.NativeOptions(opts, "immutable-chwriter"),
		events: newEventColumns(), leaves: newLeafColumns(),
	}
	for key, value := range settings {
		i.opts.Settings = append(i.opts.Settings, ch.Setting{Key: key, Value: value, Important: true})
	}
	return i, nil
}

func seconds(d time.Duration) string { return strconv.Itoa(int(d / time.Second)) }

func settingText(v any) string {
	if custom, ok := v.(clickhousego.CustomSetting); ok {
		return custom.Value
	}
	return fmt.Sprint(v)
}

// connect makes sure of a connection on which the settings are in force.
func (i *inserter) connect(ctx context.Context) error {
	if i.client != nil && time.Since(i.used) < i.serverTimeout/2 {
		return nil
	}
	i.close()
	var err error
	for _, addr := range i.addrs {
		opts := i.opts
		opts.Address = addr
		if i.client, err = ch.Dial(ctx, opts); err != nil {
			continue
		}
		// The server heeds the timeouts only from the first query on.
		if _, err = i.queryUInt64(ctx, "SELECT toUInt64(1)"); err == nil {
			i.connected = time.Now()
			return nil
		}
	}
	return fmt.Errorf("connecting to clickhouse: %w", err)
}

// do runs a query, and gives the connection up when it fails: ch-go does not say after which errors it could be used.
func (i *inserter) do(ctx context.Context, q ch.Query) error {
	client := i.client
	// ch-go looks at ctx between packets only, and may be waiting for one.
	defer context.AfterFunc(ctx, func() { _ = client.Close() })()
	err := client.Do(ctx, q)
	if err != nil {
		i.close()
	}
	i.used = time.Now()
	return err
}

// close ends the connection; the next connect makes another.
func (i *inserter) close() {
	if i.client != nil {
		_ = i.client.Close() // whether it was closed already does not matter
		i.client = nil
	}
}

// load fills the columns with the batch, without what was redacted, and returns how many of its records are in them: all,
// unless err says what is wrong with the next.
func (i *inserter) load(
	partition int32, records []*kgo.Record, verifyEvery int, redactions *control.Redactions,
) (n, verified int, err error) {
	i.events.input.Reset()
	i.leaves.input.Reset()
	i.demands = demands{}
	var part uint32
	for n, r := range records {
		err := i.record.decode(r.Value)
		if err == nil && r.Offset%int64(verifyEvery) == 0 {
			verified++
			err = verify(&i.record)
		}
		if err == nil && !i.record.genesis() {
			i.demands.add(&i.record, r.Offset)
			err = i.record.redact(redactions)
		}
		if err != nil {
			return n, verified, err
		}
		if n == 0 {
			part = month(i.record.recordedAt)
		}
		i.leaves.append(&i.record, part, partition, r.Offset)
		if !i.record.genesis() {
			i.events.append(&i.record, part, partition, r.Offset)
		}
	}
	return len(records), verified, nil
}

func (i *inserter) input(table string) proto.Input {
	if table == tableEvents {
		return i.events.input
	}
	return i.leaves.input
}

func (i *inserter) rows(table string) int { return i.input(table)[0].Data.Rows() }

// insert sends the loaded rows of one table as one block. The server drops it when it has had the token before, and says so.
func (i *inserter) insert(ctx context.Context, table, token string) (dropped bool, err error) {
	input := i.input(table)
	err = i.do(ctx, ch.Query{
		Body: input.Into(table), Input: input,
		Settings: []ch.Setting{{Key: "insert_deduplication_token", Value: token, Important: true}},
		OnProfileEvents: func(_ context.Context, events []ch.ProfileEvent) error {
			for _, e := range events {
				dropped = dropped || e.Name == "DuplicatedInsertedBlocks"
			}
			return nil
		},
	})
	if err != nil {
		return false, fmt.Errorf("inserting into %s: %w", table, err)
	}
	return dropped, nil
}

// count returns how many rows a table has of a range of a partition, first and last among them.
func (i *inserter) count(ctx context.Context, table string, partition int32, first, last int64) (int, error) {
	n, err := i.queryUInt64(ctx, fmt.Sprintf("SELECT count() FROM %s WHERE ledger_partition = %d "+
		"AND ledger_offset BETWEEN %d AND %d", table, partition, first, last))
	return int(n), err
}

// end returns the offset after the last that a table has of a range of a partition, first and last among them, or 0 if
// it has none.
func (i *inserter) end(ctx context.Context, table string, partition int32, first, last int64) (int64, error) {
	// Not max(ledger_offset + 1): ClickHouse takes the 1 out of it, and the answer of nothing is 1 then.
	n, err := i.queryUInt64(ctx, fmt.Sprintf("SELECT if(count() = 0, 0, max(ledger_offset) + 1) FROM %s "+
		"WHERE ledger_partition = %d AND ledger_offset BETWEEN %d AND %d", table, partition, first, last))
	return int64(n), err
}

// expires says whether rows of a table vanish with age.
func (i *inserter) expires(ctx context.Context, table string) (bool, error) {
	n, err := i.queryUInt64(ctx, fmt.Sprintf("SELECT count() FROM system.tables "+
		"WHERE database = currentDatabase() AND name = '%s' AND position(engine_full, ' TTL ') > 0", table))
	return n != 0, err
}

// hasLeaf says whether leaves has the decoded record, at an offset of a partition.
func (i *inserter) hasLeaf(ctx context.Context, partition int32, offset int64) (bool, error) {
	n, err := i.queryUInt64(ctx, fmt.Sprintf("SELECT count() FROM %s WHERE chain = unhex('%x') AND sequence = %d "+
		"AND leaf_hash = unhex('%x') AND ledger_partition = %d AND ledger_offset = %d",
		tableLeaves, i.record.chain, i.record.sequence, i.record.leafHash, partition, offset))
	return n != 0, err
}

func (i *inserter) queryUInt64(ctx context.Context, query string) (uint64, error) {
	var col proto.ColUInt64
	err := i.do(ctx, ch.Query{Body: query, Result: proto.Results{{Name: "", Data: &col}}})
	if err != nil {
		return 0, fmt.Errorf("asking clickhouse: %w", err)
	}
	if col.Rows() != 1 {
		return 0, fmt.Errorf("asking clickhouse: %d rows for an answer of one", col.Rows())
	}
	return col[0], nil
}
