package verifier

import (
	"context"
	"fmt"
	"time"

	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/verify"
)

// confirm looks at what was found once more, after Settle: what is there both times is a fault. Rows that were being written, and values that were
// being erased, are another matter then.
func (r *oneRun) confirm(ctx context.Context) error {
	defer func() { r.metrics.failing.Set(float64(r.failing())) }()
	if len(r.found) == 0 {
		return nil
	}
	timer := time.NewTimer(r.cfg.Settle)
	select {
	case <-timer.C:
	case <-ctx.Done():
		timer.Stop()
		return fmt.Errorf("waiting to look at faults again: %w", ctx.Err())
	}
	var findings []*finding
	for _, s := range r.found {
		faults, err := s.look(ctx)
		if err != nil {
			return err
		}
		if s.chain != nil {
			if _, ok := r.written()[int32(s.part.Partition)]; !ok {
				r.metrics.partitionsLost.Inc()
				delete(r.again, s.key)
				continue
			}
		}
		findings = append(findings, r.judge(s, faults)...)
	}
	r.report(ctx, r.anchor, findings)
	return nil
}

// judge returns what was found twice.
func (r *oneRun) judge(s *suspect, faults []*ledger.Fault) (findings []*finding) {
	now := map[faultKey]bool{}
	for _, f := range faults {
		now[keyOf(f)] = true
	}
	waits := false
	for _, f := range s.faults {
		switch {
		case !now[keyOf(f)]:
			r.metrics.unconfirmed.Inc()
		case f.Verdict == ledger.Withheld && !r.waited(s):
			waits = true // its redaction may be on the way into the tables
		default:
			findings = append(findings, r.finding(s, f))
		}
	}
	s.confirmed = len(findings) > 0
	if len(faults) == 0 && !waits {
		delete(r.again, s.key)
	}
	return findings
}

// waited says whether an erased value has been without its redaction for long enough.
func (r *oneRun) waited(s *suspect) bool {
	if s.withheldSince.IsZero() {
		s.withheldSince = r.now
	}
	return time.Since(s.withheldSince) >= r.cfg.WithheldWait
}

// finding is a fault, and whose it is.
type finding struct {
	*ledger.Fault

	// workspace is that of the chain; nil where the fault is in none, or where nothing is known of it.
	workspace *ledger.ChainIdentity
}

func (r *oneRun) finding(s *suspect, f *ledger.Fault) *finding {
	if s.chain != nil {
		return &finding{f, &s.chain.ChainIdentity}
	}
	if f.Chain != nil {
		return &finding{f, r.strange[*f.Chain]}
	}
	return &finding{f, nil}
}

// failing counts the chains with a confirmed fault; the root log counts as one.
func (r *oneRun) failing() int {
	chains := map[ledger.ChainID]bool{}
	for key, s := range r.again {
		if s.confirmed {
			chains[key.chain] = true
		}
	}
	for id := range r.strange {
		chains[id] = true
	}
	return len(chains)
}

// verifyStrangers looks for rows of events that belong to no chain of the epoch. The instance that has partition 0 does it for all.
func (r *oneRun) verifyStrangers(ctx context.Context) error {
	clear(r.strange)
	if _, ok := r.writtenTo[0]; !ok {
		return nil
	}
	faults, err := r.strangers(ctx)
	if err != nil || len(faults) == 0 {
		return err
	}
	// It is not kept for the next run, but for the next pass.
	r.found = append(r.found, &suspect{faults: faults, look: r.strangers})
	return nil
}

// strangers notes in strange whose workspaces they are in.
func (r *oneRun) strangers(ctx context.Context) ([]*ledger.Fault, error) {
	found, err := r.parts.Strangers(ctx, r.anchor.epoch.Epoch.Positions, func(workspace [16]byte, id ledger.ChainID) bool {
		c := r.anchor.chains[id]
		return c != nil && c.Workspace == workspace
	})
	if err != nil {
		return nil, err
	}
	var faults []*ledger.Fault
	for i := range found {
		faults = append(faults, r.stranger(&found[i]))
	}
	return faults, nil
}

func (r *oneRun) stranger(s *verify.Strangers) *ledger.Fault {
	for _, c := range r.anchor.chains {
		if c.Workspace == s.Workspace {
			r.strange[s.Chain] = &c.ChainIdentity
			break
		}
	}
	verdict, detail := ledger.Inserted, fmt.Sprintf("%d rows of events are of a chain that is not in the newest epoch", s.Rows)
	if r.anchor.chains[s.Chain] != nil {
		verdict, detail = ledger.CrossChain, fmt.Sprintf("%d rows of events are of a chain of another workspace", s.Rows)
	}
	return &ledger.Fault{Verdict: verdict, Chain: &s.Chain, Sequence: &s.Sequence, Detail: detail}
}
