package verify

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/ledger"
)

// Tables says what ClickHouse verifies.
type Tables struct {
	ClickHouse clickhouse.Config
	// Kafka, where it has brokers, is where the events topic is: what it still has must be in the ledger.
	Kafka kafka.Config
	// SliceBytes is the most of one answer with rows of leaves or events, in bytes; one with more is asked for again in halves. Some of them are in memory for each
	// core. Default 32 MiB; one event has at most 4 MiB, and a row with more is a finding.
	SliceBytes uint64
}

// ClickHouse verifies the operator's own tables: every row's columns against its body, bodies against leaves, leaves against their chain's tree, all
// chains against the epochs of the root log, that against its newest signed checkpoint, and the places in the input that leaves name. What cannot be
// asked of ClickHouse or Kafka is not decided, and what was found until then and is found after it counts. The error says that nothing could be verified at
// all, or that ctx has ended.
func ClickHouse(ctx context.Context, cfg Config, tables Tables) (*Report, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	m, err := openMemory(ctx, &cfg)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	if err := tables.ClickHouse.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	tables.SliceBytes = cmp.Or(tables.SliceBytes, 32<<20)
	s := newStore(tables.ClickHouse, 2*cfg.Workers)
	defer s.close()
	v := &tableVerifier{cfg: &cfg, report: cfg.report("the tables of ClickHouse"), store: s, tables: tables}
	v.acceptance = &acceptance{cfg: &cfg, report: v.report, memory: m, whole: true}
	ctx, cancel := cfg.within(ctx)
	defer cancel()
	if err := v.report.ended(ctx, v.run(ctx)); err != nil {
		return nil, err
	}
	return v.report.finish(), nil
}

// tableVerifier is one run of ClickHouse.
type tableVerifier struct {
	*acceptance

	cfg    *Config
	report *Report
	store  *store
	tables Tables
	epochs []*ledger.Entry // the newest last
	// topics are those of the Kafka that was named, nil without one. noTopics says why it cannot be asked about this ledger.
	topics   *topics
	noTopics error
}

// run goes through the checks; each writes what it finds into the report.
func (v *tableVerifier) run(ctx context.Context) error {
	a, err := v.checkpoint(ctx)
	if err != nil {
		return err
	}
	var old *rememberedLog
	if a != nil {
		v.epochs, old = a.replay.epochs.all(), a.remembered
		if err := v.leaveOpen(ctx, "older checkpoints", v.checkStoredCheckpoints(ctx, a)); err != nil {
			return err
		}
	}
	if err := v.leaveOpen(ctx, "whether the tables hold what the newest epoch covers", v.settle(ctx, old)); err != nil {
		return err
	}
	chains, err := v.listChains(ctx, old)
	if err != nil {
		return err
	}
	results, err := v.verifyChains(ctx, chains, old)
	if err != nil {
		return err
	}
	v.checkEpochs(results)
	if a != nil {
		if all, few := a.replay.epochs.seen, uint64(len(v.epochs)); all > few {
			v.report.notChecked("%d of %d epochs: --epochs says how many are recomputed, half of them drawn at random", all-few, all)
		}
	}
	v.checkForgotten(old, results)
	if len(v.tables.Kafka.Brokers) > 0 {
		if v.topics, v.noTopics = v.openTopics(ctx, results); v.noTopics == nil {
			defer v.topics.client.Close()
		}
	}
	if err := v.leaveOpen(ctx, "leaves that no signed epoch covers yet", v.checkTail(ctx)); err != nil {
		return err
	}
	if err := v.checkInput(ctx, results); err != nil {
		return err
	}
	if err := v.leaveOpen(ctx, "events that were sealed twice", v.checkRepeats(ctx)); err != nil {
		return err
	}
	v.report.notChecked("the column part of events and leaves, and which rows of workspaces that have no leaf were ever there")
	v.noteForkedChains()
	return v.remember(ctx, a, remembered(results))
}

// leaveOpen takes what a check could not find out for not decided: what others find is not lost for it. What ends the run stays an error.
func (v *tableVerifier) leaveOpen(ctx context.Context, what string, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	v.report.undecided("%s: %v", what, err)
	return nil
}

// checkpoint accepts the newest checkpoint. It returns nil where none is believed.
func (v *tableVerifier) checkpoint(ctx context.Context) (*accepted, error) {
	signed, err := v.newestCheckpoint(ctx)
	if err != nil {
		return nil, err
	}
	if signed == nil {
		v.report.undecided("the table checkpoints is empty: nothing is signed yet")
		return nil, nil //nolint:nilnil // the report says why
	}
	stated, err := ledger.ParseCheckpoint(signed)
	if err != nil {
		v.report.faultf(ledger.InvalidProof, "the newest checkpoint: %v", err)
		return nil, nil //nolint:nilnil // the report says why
	}
	texts, err := v.store.keyChanges(ctx)
	if err != nil {
		return nil, err
	}
	return v.accept(ctx, signed, v.namedKeys(stated, texts), logTable{v.store})
}

// namedKeys are the key changes that the table names, as far as they hold; what is wrong with them the replay says.
func (v *tableVerifier) namedKeys(stated *ledger.Checkpoint, texts []string) (keys ledger.KeyHistory) {
	for _, text := range texts {
		e, err := ledger.ParseEntry([]byte(text))
		if err != nil || e.Index >= stated.Size {
			continue
		}
		_ = keys.Append(stated.Origin, e) // one that does not follow is left out
	}
	return keys
}

// checkStoredCheckpoints compares the older checkpoints of the table with the root log: in a second pass, for which only the sizes are kept.
func (v *tableVerifier) checkStoredCheckpoints(ctx context.Context, a *accepted) error {
	check := newReplay(newReport("", 0), a.Origin)
	var due []storedCheckpoint
	next := uint64(0) // checkpoints of sizes from it on are not read yet
	load := func() error {
		due = due[:0]
		return v.store.checkpoints(ctx, fmt.Sprintf("WHERE size >= %d AND size <= %d ORDER BY size, witnesses", next, a.Size), checkpointsAtOnce,
			func(c *storedCheckpoint) error {
				due = append(due, *c)
				return nil
			})
	}
	for {
		if err := load(); err != nil {
			return err
		}
		if len(due) == 0 {
			return nil
		}
		last := due[len(due)-1].size
		if len(due) == checkpointsAtOnce && due[0].size < last { // the last size may have more rows
			for due[len(due)-1].size == last {
				due = due[:len(due)-1]
			}
			last = due[len(due)-1].size
		}
		for _, c := range due {
			check.at = append(check.at, c.size)
		}
		if err := check.run(ctx, logTable{v.store}, last); err != nil {
			return err
		}
		check.at, next = nil, last+1
		for i := range due {
			v.checkStored(ctx, a, &due[i], check)
		}
		clear(check.roots)
		clear(check.states)
	}
}

const checkpointsAtOnce = 10_000

// checkStored compares one stored checkpoint with its own columns and with the root log.
func (v *tableVerifier) checkStored(ctx context.Context, a *accepted, c *storedCheckpoint, check *replay) {
	stated, err := ledger.ParseCheckpoint([]byte(c.note))
	root, known := check.roots[c.size]
	if c.size == a.Size { // whether the log has this root has been said
		root, known = a.Root, true
	}
	switch {
	case err != nil:
		v.report.faultf(ledger.Modified, "stored checkpoint of size %d: %v", c.size, err)
	case stated.Size != c.size || stated.Root != c.root:
		v.report.faultf(ledger.ColumnMismatch, "stored checkpoint of size %d: its columns are not what its note states", c.size)
	case stated.Origin != a.Origin:
		v.report.faultf(ledger.Modified, "stored checkpoint of size %d: it is of log %q", c.size, stated.Origin)
	case known && stated.Root != root:
		if _, f := v.cfg.Trust.Open([]byte(c.note), a.replay.keys, v.cfg.Now); f != nil && f.Verdict != ledger.QuorumNotMet {
			v.report.faultf(ledger.Modified, "stored checkpoint of size %d: its root is not that of the root log, and it is not signed: %s", c.size, f.Detail)
			return
		}
		f := v.forkAt(ctx, logTable{v.store}, a, c.size, []byte(c.note), check.states[c.size])
		v.fork(f, "the signed checkpoint of size %d is not the beginning of that of size %d", c.size, a.Size)
	}
}

// settle waits until the tables hold what the newest epoch covers: its notary does not wait for those who write them.
func (v *tableVerifier) settle(ctx context.Context, old *rememberedLog) error {
	if len(v.epochs) == 0 {
		return nil
	}
	if err := v.awaitRemembered(ctx, old); err != nil {
		return err
	}
	positions := v.epochs[len(v.epochs)-1].Epoch.Positions
	return v.await(ctx, func() (bool, error) {
		ends, err := v.store.ends(ctx)
		for p, position := range positions {
			// The record that ends a transaction has an offset too.
			if end := ends[uint16(p)]; end > 0 && end+1 < position {
				return false, err
			}
		}
		return true, err
	})
}

// await asks until the answer is yes, or until Config.Settle is over.
func (v *tableVerifier) await(ctx context.Context, arrived func() (bool, error)) error {
	tick := time.NewTicker(settleTick)
	defer tick.Stop()
	timeout := time.NewTimer(v.cfg.Settle)
	defer timeout.Stop()
	for {
		if ok, err := arrived(); ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-timeout.C:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("waiting for the tables: %w", ctx.Err())
		}
	}
}

const settleTick = 250 * time.Millisecond
