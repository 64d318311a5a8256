package e2e

import (
	"context"
	"fmt"
	"hash/maphash"

	"getimmutable.dev/immutable/ledger"
)

// waitStored waits until the tables hold the last leaf of every ledger partition.
func (c *check) waitStored(ctx context.Context) error {
	if c.in.clickhouse == nil {
		return nil
	}
	return poll(ctx, func() error {
		stored, err := c.storedTo(ctx)
		if err != nil {
			return err
		}
		for p, t := range c.tails {
			if stored[p] < t.offset {
				return fmt.Errorf("ledger/%d: stored to %d of %d", p, stored[p], t.offset)
			}
		}
		return nil
	})
}

// storedTo returns the last ledger offset that both tables hold, by partition. A genesis is in leaves only, but is
// never the last record of a transaction, and so never the last of a partition.
func (c *check) storedTo(ctx context.Context) (map[int32]int64, error) {
	rows, err := c.in.clickhouse.Query(ctx, `
		SELECT ledger_partition, least(max(l), max(e)) FROM (
			SELECT ledger_partition, max(ledger_offset) AS l, 0 AS e FROM leaves GROUP BY ledger_partition
			UNION ALL
			SELECT ledger_partition, 0, max(ledger_offset) FROM events GROUP BY ledger_partition
		) GROUP BY ledger_partition`)
	if err != nil {
		return nil, fmt.Errorf("reading watermarks: %w", err)
	}
	defer rows.Close()
	stored := map[int32]int64{}
	for rows.Next() {
		var partition uint16
		var offset uint64
		if err := rows.Scan(&partition, &offset); err != nil {
			return nil, fmt.Errorf("reading watermarks: %w", err)
		}
		stored[int32(partition)] = int64(offset)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading watermarks: %w", err)
	}
	return stored, nil
}

// readTables compares every row with the ledger topic, both ways.
func (c *check) readTables(ctx context.Context) error {
	if c.in.clickhouse == nil {
		return nil
	}
	if err := c.readLeaves(ctx); err != nil {
		return err
	}
	if err := c.readEventRows(ctx); err != nil {
		return err
	}
	for id, ch := range c.chains {
		for i, l := range ch.leaves {
			if l.inLeaves != 1 {
				c.fault("chain %x, sequence %d, event %s: %d rows in leaves, want 1", id, i, uuid(l.id), l.inLeaves)
			}
			if want := uint8(min(i, 1)); l.inEvents != want {
				c.fault("chain %x, sequence %d, event %s: %d rows in events, want %d", id, i, uuid(l.id), l.inEvents, want)
			}
		}
	}
	return c.checkOracle(ctx)
}

// row finds the leaf that a row stands for; nil where the ledger has none.
func (c *check) row(table, chainID string, sequence uint64) *leaf {
	ch := c.chains[ledger.ChainID([]byte(chainID))]
	if ch == nil || sequence >= uint64(len(ch.leaves)) {
		c.fault("chain %x, sequence %d: a row in %s, and no leaf in the ledger", chainID, sequence, table)
		return nil
	}
	return &ch.leaves[sequence]
}

func (c *check) readLeaves(ctx context.Context) error {
	rows, err := c.in.clickhouse.Query(ctx, `SELECT chain, sequence, leaf_hash, id, ledger_partition, ledger_offset,
		input_offset, toUnixTimestamp64Micro(recorded_at) FROM leaves`)
	if err != nil {
		return fmt.Errorf("reading leaves: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var chainID, hash, id string
		var sequence, ledgerOffset, inputOffset uint64
		var partition uint16
		var recordedAt int64
		if err := rows.Scan(&chainID, &sequence, &hash, &id, &partition, &ledgerOffset, &inputOffset, &recordedAt); err != nil {
			return fmt.Errorf("reading leaves: %w", err)
		}
		l := c.row("leaves", chainID, sequence)
		if l == nil {
			continue
		}
		l.inLeaves++
		if hash != string(l.hash[:]) || id != string(l.id[:]) || int64(ledgerOffset) != l.ledgerOffset ||
			recordedAt != l.recordedAt || (sequence > 0 && int64(inputOffset) != l.inputOffset) {
			c.fault("chain %x, sequence %d, event %s: its row in leaves (hash %x, id %x, ledger/%d/%d, input offset %d, "+
				"recorded at %d) differs from the ledger", chainID, sequence, uuid(l.id), hash, id, partition, ledgerOffset,
				inputOffset, recordedAt)
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("reading leaves: %w", err)
	}
	return nil
}

func (c *check) readEventRows(ctx context.Context) error {
	rows, err := c.in.clickhouse.Query(ctx, `SELECT chain, sequence, id, workspace, body, disclosure, ledger_offset, input_offset,
		toUnixTimestamp64Micro(recorded_at) FROM events`)
	if err != nil {
		return fmt.Errorf("reading events: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var chainID, id, workspace, body, disclosure string
		var sequence, ledgerOffset, inputOffset uint64
		var recordedAt int64
		err := rows.Scan(&chainID, &sequence, &id, &workspace, &body, &disclosure, &ledgerOffset, &inputOffset, &recordedAt)
		if err != nil {
			return fmt.Errorf("reading events: %w", err)
		}
		l := c.row("events", chainID, sequence)
		if l == nil {
			continue
		}
		l.inEvents++
		same := maphash.String(c.hash, body) == l.body
		if disclosure != "" {
			same = leftOf(disclosure, body) == l.bodyRoot
		}
		if id != string(l.id[:]) || !same || int64(ledgerOffset) != l.ledgerOffset ||
			int64(inputOffset) != l.inputOffset || recordedAt != l.recordedAt {
			c.fault("chain %x, sequence %d, event %s: its row in events (id %x, ledger offset %d, input offset %d, "+
				"body %s) differs from the ledger", chainID, sequence, uuid(l.id), id, ledgerOffset, inputOffset, body)
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("reading events: %w", err)
	}
	return nil
}

// leftOf returns the body root of what is left of a redacted event, zeros where it is not one.
func leftOf(disclosure, body string) ledger.Hash {
	stored, err := ledger.ParseDisclosure([]byte(disclosure))
	if err != nil {
		return ledger.Hash{}
	}
	all, err := ledger.JoinDisclosure(stored, []byte(body))
	if err != nil {
		return ledger.Hash{}
	}
	commitments := make([][32]byte, len(all))
	for i, d := range all {
		if d.Commitment != nil {
			commitments[i] = *d.Commitment
		} else {
			commitments[i] = ledger.SaltedCommitment(*d.Salt, []byte(d.Path), []byte(*d.Value))
		}
	}
	return ledger.BodyRoot(commitments)
}

// checkOracle asks ClickHouse alone whether each chain is dense and each event there once.
func (c *check) checkOracle(ctx context.Context) error {
	var leaves, events, ids, sizes, longest uint64
	for _, q := range []struct {
		sql  string
		into []any
	}{
		{`SELECT count() FROM leaves`, []any{&leaves}},
		{`SELECT count(), uniqExact(id) FROM events`, []any{&events, &ids}},
		{`SELECT sum(top + 1), sum(top) FROM (SELECT max(sequence) AS top FROM leaves GROUP BY chain)`, []any{&sizes, &longest}},
	} {
		if err := c.in.clickhouse.QueryRow(ctx, q.sql).Scan(q.into...); err != nil {
			return fmt.Errorf("%s: %w", q.sql, err)
		}
	}
	if leaves != sizes || leaves != uint64(c.Leaves) {
		c.fault("tables: %d rows in leaves, chains of %d leaves in sum, %d in the ledger topic", leaves, sizes, c.Leaves)
	}
	if events != ids || events != longest {
		c.fault("tables: %d rows and %d ids in events, the chains hold %d", events, ids, longest)
	}
	return nil
}
