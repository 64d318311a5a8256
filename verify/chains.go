package verify

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"getimmutable.dev/immutable/ledger"
)

// batch is a run of leaves of one chain as a source has read them, in the order of their sequences.
type batch struct {
	leaves []ledger.StoredLeaf
	// faults are what the source itself has found.
	faults []*ledger.Fault
	// check compares leaf i with what else the source holds of it, once its content has been recomputed. It is called from several goroutines,
	// each of which has its own checker. Nil for none.
	check func(c *checker, i int) *ledger.Fault
	// release, where it is set, is called once nothing of the batch is needed any more.
	release func()
}

// chainJob is one chain to verify.
type chainJob struct {
	identity ledger.ChainIdentity
	// partition of the ledger topic; only the operator's tables have it.
	partition uint16
	marks     []ledger.Mark
	// size is how many leaves are to be there.
	size uint64
	// leaves calls each with the chain's leaves from the genesis on.
	leaves func(ctx context.Context, each func(*batch) error) error
}

// behindWriter is what the end of a chain that is missing looks like as well.
const behindWriter = "; a writer that is further behind than --settle looks like that too"

// ends says whether a finding is that the end of the chain is missing.
func (j *chainJob) ends(f *ledger.Fault) bool {
	last := cmp.Or(f.Last, f.Sequence)
	return f.Verdict == ledger.Truncated || f.Verdict == ledger.Missing && last != nil && *last+1 >= j.size
}

// chainResult is what a chain came to.
type chainResult struct {
	id        ledger.ChainID
	identity  ledger.ChainIdentity
	partition uint16
	// end is one past the largest ledger offset.
	end    uint64
	marks  []ledger.Mark
	counts ledger.ChainCounts
	// divergences are where marks are of two histories.
	divergences []ledger.Divergence
	// verifier has leaves to be judged by the map's root; nil where none will be.
	verifier *ledger.ChainVerifier
	// faults at leaves of the chain, and those of them that explain another root; err where not all could be read.
	faults, explain uint64
	err             error
}

// chainRun verifies chains.
type chainRun struct {
	cfg    *Config
	report *Report
	// repeats: within how many leaves of its chain an event is looked for a second time; 0 where that is not looked for here.
	repeats int
	// expected leaves of all chains, 0 where that is not known.
	expected uint64
	// conclude: what is signed of a chain is among its marks, so that nothing judges its leaves later, and nothing of them is kept.
	conclude bool
	done     atomic.Uint64
	mu       sync.Mutex // over Progress
}

// maxReadAhead is how many batches of a chain are read before they are linked.
const maxReadAhead = 2

// verify verifies one chain: one goroutine reads, Workers recompute contents, and this one links.
func (c *chainRun) verify(ctx context.Context, job *chainJob) *chainResult {
	r := &chainResult{id: job.identity.Chain(), identity: job.identity, partition: job.partition, marks: job.marks}
	fault := func(f *ledger.Fault) {
		if exitOf(f.Verdict) == ExitTampered {
			r.faults++
		}
		switch f.Verdict {
		case ledger.ColumnMismatch, ledger.Duplicate, ledger.TimeAnomaly, ledger.Redacted, ledger.Withheld:
		default:
			r.explain++
		}
		if job.ends(f) {
			f.Detail += behindWriter
		}
		c.report.fault(f)
	}
	v := ledger.NewChainVerifier(job.identity, job.marks, fault)
	v.FindRepeats(c.repeats)
	batches := make(chan *batch, maxReadAhead)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(batches)
		return job.leaves(ctx, func(b *batch) error {
			b.faults = append(b.faults, c.digest(b)...)
			select {
			case batches <- b:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	for b := range batches {
		for _, f := range b.faults {
			fault(f)
		}
		for i := range b.leaves {
			v.Add(&b.leaves[i])
			r.end = max(r.end, b.leaves[i].LedgerOffset+1)
		}
		c.progress(uint64(len(b.leaves)))
		if b.release != nil {
			b.release()
		}
	}
	if r.err = g.Wait(); r.err != nil {
		c.report.undecided("chain %x: %v", r.id, r.err)
	} else {
		v.Close()
	}
	r.counts, r.marks, r.divergences = v.Counts(), v.Marks(), v.Divergences()
	if c.conclude {
		v.Conclude(ledger.RootUnknown)
	} else {
		r.verifier = v
	}
	return r
}

// digest recomputes the contents of a batch on all cores, and returns what the source's check finds, in the order of the leaves.
func (c *chainRun) digest(b *batch) []*ledger.Fault {
	parts := make([][]*ledger.Fault, min(c.cfg.Workers, 1+len(b.leaves)/256))
	var wg sync.WaitGroup
	for w := range parts {
		from, to := w*len(b.leaves)/len(parts), (w+1)*len(b.leaves)/len(parts)
		wg.Go(func() {
			var hasher ledger.ContentHasher
			check := newChecker()
			for i := from; i < to; i++ {
				hasher.Digest(&b.leaves[i])
				if b.check == nil {
					continue
				}
				if f := b.check(check, i); f != nil {
					parts[w] = append(parts[w], f)
				}
			}
		})
	}
	wg.Wait()
	var all []*ledger.Fault
	for _, faults := range parts {
		all = append(all, faults...)
	}
	return all
}

func (c *chainRun) progress(leaves uint64) {
	n := c.done.Add(leaves)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cfg.Progress(n, c.expected)
}

// verifyAll verifies chains side by side. next returns the next job, nil after the last one.
func (c *chainRun) verifyAll(ctx context.Context, jobs []*chainJob) ([]*chainResult, error) {
	results := make([]*chainResult, len(jobs))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, c.cfg.Workers))
	for i, job := range jobs {
		g.Go(func() error {
			results[i] = c.verify(ctx, job)
			return ctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("verifying chains: %w", err)
	}
	for _, r := range results {
		c.report.Chains++
		c.report.Leaves += r.counts.Leaves
		c.report.content = true
	}
	return results, nil
}

// remembered are the chains that hold, as they were at their last mark.
func remembered(results []*chainResult) map[ledger.ChainID]rememberedChain {
	chains := map[ledger.ChainID]rememberedChain{}
	for _, r := range results {
		if r.faults > 0 || r.err != nil {
			continue
		}
		for _, m := range r.marks {
			if m.Known && m.Size > chains[r.id].Size {
				chains[r.id] = rememberedChain{Workspace: r.identity.Workspace, Size: m.Size, Root: m.Root}
			}
		}
	}
	return chains
}

// memoryMark is the mark at which a chain is compared with what is remembered of it.
func memoryMark(old *rememberedLog, chain ledger.ChainID) (ledger.Mark, bool) {
	if old == nil {
		return ledger.Mark{}, false
	}
	c, ok := old.Chains[chain]
	return ledger.Mark{Size: c.Size, Want: &c.Root, Remembered: true}, ok && c.Size > 0
}
