package notary

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strconv"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// rebuild makes what notary_state held, which is lost: the root log of all of checkpoints, the chains of ClickHouse's leaves.
// They must make the map root that the newest epoch states, and are then written to notary_state. found is false where no
// entry was ever committed.
func (l *leader) rebuild(ctx context.Context, r *restorer, checkpoints limits) (found bool, err error) {
	if checkpoints.start > 0 {
		return false, disagree("checkpoints begins at offset %d, entries before it were deleted", checkpoints.start)
	}
	stated := make(map[uint64]*recordpb.LogEntry)
	err = l.read(ctx, schemas.TopicCheckpoints, 0, checkpoints.end, func(record *kgo.Record) error {
		if !bytes.HasPrefix(record.Key, []byte(entryKey)) {
			return r.tail.checkpoints(record.Key, record.Value)
		}
		m, err := entryMessage(record)
		if err != nil {
			return err
		}
		e, err := r.log.append(m, record.Offset)
		if err != nil {
			return disagree("the record %q of checkpoints: %w", record.Key, err)
		}
		if e.Key != nil {
			stated[e.Index] = m
		}
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("reading checkpoints: %w", err)
	}
	if r.log.head.Size == 0 {
		return false, nil
	}
	l.logger.LogAttrs(ctx, slog.LevelWarn, "notary_state is lost: rebuilding it from checkpoints and clickhouse",
		slog.Uint64("entries", r.log.head.Size))
	if r.log.epoch != nil {
		if err := l.rebuildChains(ctx, r.chains, r.log.epoch); err != nil {
			return false, err
		}
	}
	if err := r.chains.agree(r.log.epoch); err != nil {
		return false, fmt.Errorf("rebuilding notary_state from ClickHouse's leaves: %w", err)
	}
	return true, l.writeState(ctx, r, stated)
}

// selectLeaves reads the leaves before an epoch's positions. Chain and sequence are how the table is sorted, so that nothing has to
// be sorted again.
const selectLeaves = `SELECT chain, sequence, leaf_hash, workspace, incarnation, lane, lanes, ledger_partition FROM leaves
WHERE ledger_offset < arrayElement(?, ledger_partition + 1) ORDER BY chain, sequence`

// rebuildChains makes the chains of an epoch from the leaf hashes in ClickHouse. That they are the ones that were sealed, the epoch's
// map root says.
func (l *leader) rebuildChains(ctx context.Context, s *chains, e *ledger.Epoch) error {
	if l.cfg.ClickHouse.DSN == "" {
		return disagree("notary_state is lost: it can be rebuilt where the notary is given ClickHouse")
	}
	if len(e.Positions) != len(s.positions) {
		return disagree("the newest epoch is of %d partitions, there are %d", len(e.Positions), len(s.positions))
	}
	copy(s.positions, e.Positions)
	if err := l.awaitWriter(ctx, e); err != nil {
		return err
	}
	conn, err := clickhouse.Open(l.cfg.ClickHouse)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // nothing is pending on it
	rows, err := conn.Query(ctx, selectLeaves, e.Positions)
	if err != nil {
		return fmt.Errorf("reading leaves from ClickHouse: %w", err)
	}
	defer func() { _ = rows.Close() }() // what matters is in rows.Err
	var c *chain
	for rows.Next() {
		var (
			id, hash, workspace, incarnation string
			sequence                         uint64
			lane, lanes                      uint32
			partition                        uint16
		)
		if err := rows.Scan(&id, &sequence, &hash, &workspace, &incarnation, &lane, &lanes, &partition); err != nil {
			return fmt.Errorf("reading leaves from ClickHouse: %w", err)
		}
		if c == nil || string(c.head.Chain[:]) != id {
			if c != nil {
				s.add(c)
			}
			c = &chain{
				workspace: [16]byte([]byte(workspace)), incarnation: [16]byte([]byte(incarnation)), lane: lane, lanes: lanes,
				head: ledger.Head{Chain: ledger.ChainID([]byte(id))},
			}
			if c.head.Chain != ledger.NewChainID(c.workspace, c.incarnation, lane) {
				return disagree("ClickHouse's chain %x is not the one of its workspace, incarnation and lane", id)
			}
		}
		leaf := ledger.Hash([]byte(hash))
		switch {
		case c.head.Size == sequence+1 && c.head.LastLeafHash == leaf: // the row is there twice: its writer was killed
		case c.head.Size != sequence:
			return disagree("ClickHouse lacks leaf %d of chain %x", c.head.Size, id)
		default:
			c.head.AppendHash(leaf)
		}
	}
	if c != nil {
		s.add(c)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("reading leaves from ClickHouse: %w", err)
	}
	return nil
}

// awaitWriter says, as an error that is no halt, that ClickHouse's writer has not come to an epoch's positions yet.
func (l *leader) awaitWriter(ctx context.Context, e *ledger.Epoch) error {
	group, topic := l.cfg.Kafka.Group(schemas.GroupClickHouse), l.cfg.Kafka.Topic(schemas.TopicLedger)
	committed, err := kadm.NewClient(l.admin).FetchOffsets(ctx, group)
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) { // a group that has never had a member says nothing
		return fmt.Errorf("asking how far ClickHouse's writer is: %w", err)
	}
	for p, next := range e.Positions {
		if at, ok := committed.Lookup(topic, int32(p)); ok && uint64(at.At) < next {
			return fmt.Errorf("rebuilding notary_state: ClickHouse's writer is at ledger offset %d of partition %d, the newest epoch at %d",
				at.At, p, next)
		}
	}
	return nil
}

// writeState writes all of notary_state in one transaction: before its end none of it is there, after it everything.
func (l *leader) writeState(ctx context.Context, r *restorer, stated map[uint64]*recordpb.LogEntry) error {
	var records []keyed
	for id, c := range r.chains.by {
		records = append(records, keyed{c.message(r.log.epochIndex), hex.EncodeToString(id[:])})
	}
	for p, next := range r.chains.positions {
		records = append(records, keyed{
			&recordpb.NotaryPartition{Next: next, Epoch: r.log.epochIndex}, partitionKey + strconv.Itoa(p),
		})
	}
	for i, b := range r.log.blocks {
		records = append(records, keyed{
			&recordpb.NotaryNode{Hash: b.root[:], Offset: uint64(b.offset)}, nodeKey + strconv.Itoa(i),
		})
	}
	for index, m := range stated {
		records = append(records, keyed{m, statedKey + strconv.FormatUint(index, 10)})
	}
	records = append(records, keyed{summary(&r.log.head, r.log.keyIndex), logKey})
	within, cancel := context.WithTimeout(ctx, l.cfg.TransactionTimeout)
	defer cancel()
	err := l.transact(within, func() error {
		_, err := l.produce(within, schemas.TopicNotaryState, records...)
		return err
	}, "notary-before-rebuilt", "notary-after-rebuilt")
	if err != nil {
		return fmt.Errorf("writing notary_state anew: %w", err)
	}
	return nil
}
