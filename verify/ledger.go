package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/transparency-dev/formats/proof"
	"golang.org/x/sync/semaphore"

	"getimmutable.dev/immutable/ledger"
)

// Ledger verifies everything that the API serves to the holder of an API key: each leaf of the workspace's chains, with its content, against the chain's
// tree, the chains against the newest epoch's map, that against the root log and its signed checkpoint, and the whole root log. The error says that nothing could be
// verified at all.
func Ledger(ctx context.Context, cfg Config, api API) (*Report, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	api = api.withDefaults()
	if err := api.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	m, err := openMemory(ctx, &cfg)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	v := &apiVerifier{cfg: &cfg, report: cfg.report(api.URL), client: newClient(api), foreign: map[ledger.ChainID]bool{}}
	defer v.client.close()
	v.acceptance = &acceptance{cfg: &cfg, report: v.report, memory: m}
	ctx, cancel := cfg.within(ctx)
	defer cancel()
	if err := v.report.ended(ctx, v.run(ctx)); err != nil {
		return nil, err
	}
	return v.report.finish(), nil
}

// apiVerifier is one run of Ledger.
type apiVerifier struct {
	*acceptance

	cfg    *Config
	report *Report
	client *client
	// behind is set where all is verified by an older checkpoint than the newest.
	behind *BehindReport
	// foreign are chains of which it has been said that they are of another workspace.
	foreign map[ledger.ChainID]bool
}

// chainsAnswer is the answer of GET /ledger/chains.
type chainsAnswer struct {
	Data statedChains `json:"data"`
}

// statedChains are a workspace's chains at an epoch, and its lanes that have none.
type statedChains struct {
	Workspace   ledger.Hex16       `json:"workspace"`
	Incarnation ledger.Hex16       `json:"incarnation"`
	Lanes       uint32             `json:"lanes"`
	Epoch       string             `json:"epoch"`
	LogProof    string             `json:"log_proof"`
	Keys        []ledger.BundleKey `json:"keys"`
	Chains      []apiChain         `json:"chains"`
	Absent      []absentLane       `json:"absent"`
}

// absentLane is a lane of which the answer proves that it has no chain.
type absentLane struct {
	Lane  uint32          `json:"lane"`
	Chain ledger.ChainID  `json:"chain"`
	Map   ledger.MapProof `json:"map"`
}

// apiChain is a chain as the answer states it.
type apiChain struct {
	Workspace   ledger.Hex16    `json:"workspace"`
	Incarnation ledger.Hex16    `json:"incarnation"`
	Lane        uint32          `json:"lane"`
	Lanes       uint32          `json:"lanes"`
	Chain       ledger.ChainID  `json:"chain"`
	Size        uint64          `json:"size"`
	Root        ledger.Hash     `json:"root"`
	Map         ledger.MapProof `json:"map"`
}

func (c *apiChain) identity() ledger.ChainIdentity {
	return ledger.ChainIdentity{Workspace: c.Workspace, Incarnation: c.Incarnation, Lane: c.Lane, Lanes: c.Lanes}
}

const (
	maxCheckpointBytes = 256 << 10
	// maxChainsElements is how many chains and key changes are read, and siblings of a proof. A workspace has a chain for each of its lanes, of
	// which there are no more than partitions of the events topic.
	maxChainsElements = 4096
	// maxChainsValues is enough for that many chains with proofs of more siblings than a map of a billion chains has.
	maxChainsValues = 1 << 20
)

// unmarshal decodes JSON that may be meant to take far more memory than it has bytes.
func unmarshal(text []byte, to any, elements, values int) error {
	if err := ledger.LimitJSON(text, elements, values); err != nil {
		return err
	}
	return json.Unmarshal(text, to)
}

// run goes through the checks; each writes what it finds into the report.
func (v *apiVerifier) run(ctx context.Context) error {
	newest, answer, err := v.ask(ctx)
	if err != nil {
		return v.unanswered(err)
	}
	a, epoch, err := v.checkpoint(ctx, newest, answer)
	if err != nil {
		return v.unanswered(err)
	}
	if a == nil {
		return nil
	}
	v.report.Checkpoint.Behind = v.behind
	h := &histories{
		apiVerifier: v, a: a, keys: answer.Data.Keys, left: v.client.MaxOlderBytes, sides: map[ledger.ChainID][]func() *ledger.StatedChain{}, gone: map[ledger.ChainID]bool{},
	}
	h.epochs = []*statedEpoch{v.checkStatedEpoch(epoch, answer)}
	if err := h.askOlder(ctx); err != nil {
		return err
	}
	h.checkFalls()
	results, err := v.verifyChains(ctx, h)
	if err != nil {
		return err
	}
	h.checkForgotten(results)
	source := v.checkSource(a, h.newest())
	if d := h.newest().answer; len(d.Chains) == 0 {
		v.report.undecided("workspace %x, incarnation %x: none of its %d lanes has a chain at epoch %d, so there is nothing to verify",
			d.Workspace, d.Incarnation, d.Lanes, epoch.Index)
	}
	if len(results) > 0 {
		i := results[0].identity
		v.report.notef("workspace %x, incarnation %x", i.Workspace, i.Incarnation)
	}
	v.report.notChecked("other workspaces, and whether the store's own columns are what the bodies say: `immutable verify clickhouse` does")
	h.keepForks(results)
	for _, r := range results { // which workspace an answer is about nobody has signed, but whose chains there are
		if r.err == nil {
			a.sources = map[string]rememberedWorkspace{source: {r.identity.Workspace, r.identity.Incarnation}}
		}
	}
	return v.remember(ctx, a, h.remembered(results))
}

// ask returns the newest checkpoint, and what proves the chains: by that, or where too few witnesses have signed it, by the newest one that
// enough of them have.
func (v *apiVerifier) ask(ctx context.Context) (newest []byte, answer *chainsAnswer, err error) {
	if newest, err = v.client.bytes(ctx, "/ledger/checkpoint", maxCheckpointBytes); err != nil {
		return nil, nil, err
	}
	for until := time.Now().Add(v.cfg.Settle); ; {
		if answer, err = v.chains(ctx, "", v.client.MaxAnswerBytes); err != nil {
			return nil, nil, err
		}
		if !answer.behind() && !v.fellBack(answer) || time.Now().After(until) {
			break
		}
		select { // what the API's map is made of may arrive after the checkpoint, and all of it later at another replica
		case <-time.After(settleTick):
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
	older, err := v.askWitnessed(ctx, answer)
	if older != nil {
		answer = older
	}
	return newest, answer, err
}

// logProof reads the proof that the epoch is in the root log, and the checkpoint that it is by.
func (c *chainsAnswer) logProof() (*proof.TLogProof, *ledger.Checkpoint, error) {
	p, err := ledger.ParseLogProof([]byte(c.Data.LogProof))
	if err != nil {
		return nil, nil, err
	}
	stated, err := ledger.ParseCheckpoint(p.Checkpoint)
	return p, stated, err
}

// behind says whether the checkpoint covers a later epoch than the one that the chains are proven by, as far as the answer itself tells.
func (c *chainsAnswer) behind() bool {
	p, stated, err := c.logProof()
	if err != nil || p.Index >= stated.Size {
		return false
	}
	after := stated.Size - 1 - p.Index
	for _, k := range c.Data.Keys {
		if e, err := ledger.ParseEntry([]byte(k.Entry)); err == nil && e.Index > p.Index && after > 0 {
			after--
		}
	}
	return after > 0
}

// fellBack says whether the answer states less than what is remembered, as a replica does that is behind the one that answered then.
func (v *apiVerifier) fellBack(c *chainsAnswer) bool {
	_, stated, err := c.logProof()
	if err != nil {
		return false
	}
	before := v.rememberedCheckpoint(stated.Origin)
	if before == nil {
		return false
	}
	chains := v.memory.Logs[stated.Origin].Chains
	return stated.Size < before.Size || slices.ContainsFunc(c.Data.Chains, func(is apiChain) bool { return is.Size < chains[is.Chain].Size })
}

// chains asks for the chains, of which at most limit bytes are read.
func (v *apiVerifier) chains(ctx context.Context, query string, limit int64) (*chainsAnswer, error) {
	text, err := v.client.bytes(ctx, "/ledger/chains"+query, limit)
	if err != nil {
		return nil, err
	}
	answer := new(chainsAnswer)
	if err := unmarshal(text, answer, maxChainsElements, maxChainsValues); err != nil {
		return nil, fmt.Errorf("GET /ledger/chains%s: %w: %w", query, errAnswer, err)
	}
	return answer, nil
}

// unanswered makes an answer that does not come a verification that is not decided, unless it was ended.
func (v *apiVerifier) unanswered(err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	v.report.undecided("%v", err)
	return nil
}

// checkpoint accepts the checkpoint that the chains are proven by. It returns nil where none is believed.
func (v *apiVerifier) checkpoint(ctx context.Context, newest []byte, answer *chainsAnswer) (*accepted, *ledger.Entry, error) {
	p, stated, err := answer.logProof()
	if err != nil {
		v.report.faultf(ledger.InvalidProof, "GET /ledger/chains: log proof: %v", err)
		return nil, nil, nil
	}
	other, err := ledger.ParseCheckpoint(newest)
	if err != nil {
		v.report.faultf(ledger.InvalidProof, "GET /ledger/checkpoint: %v", err)
		return nil, nil, nil
	}
	epoch := v.checkEpoch("", answer.Data.Epoch, p, stated)
	keys, ok := v.checkKeys(answer.Data.Keys, stated)
	if epoch == nil || !ok {
		if len(answer.Data.Keys) <= maxKeyChanges {
			v.open(p.Checkpoint, keys) // what does not hold proves something only where the checkpoint is believed
		}
		return nil, nil, nil
	}
	v.sizes = []uint64{other.Size}
	a, err := v.accept(ctx, p.Checkpoint, keys, &logTiles{v.client, stated.Size})
	if err != nil || a == nil {
		return nil, nil, err
	}
	v.checkOther(ctx, a, other, newest)
	v.checkNewest(a, epoch)
	return a, epoch, nil
}

// checkEpoch: the epoch is in the root log that the checkpoint states.
func (v *apiVerifier) checkEpoch(query, text string, p *proof.TLogProof, stated *ledger.Checkpoint) *ledger.Entry {
	e, err := ledger.ProvenEpoch(text, p, stated)
	if err != nil {
		v.report.faultf(ledger.InvalidProof, "GET /ledger/chains%s: epoch: %v", query, err)
		return nil
	}
	return e
}

// checkKeys: the key changes are in the root log that the checkpoint states.
func (v *apiVerifier) checkKeys(stated []ledger.BundleKey, checkpoint *ledger.Checkpoint) (keys ledger.KeyHistory, ok bool) {
	if len(stated) > maxKeyChanges {
		v.report.undecided("GET /ledger/chains: %d key changes, at most %d are read", len(stated), maxKeyChanges)
		return nil, false
	}
	keys, err := ledger.ProvenKeys(stated, checkpoint)
	if err != nil {
		v.report.faultf(ledger.InvalidProof, "GET /ledger/chains: %v", err)
		return nil, false
	}
	return keys, true
}

// checkOther compares the checkpoint that GET /ledger/checkpoint answers with the one that the chains are proven by.
func (v *apiVerifier) checkOther(ctx context.Context, a *accepted, other *ledger.Checkpoint, signed []byte) {
	root, known := a.replay.roots[other.Size]
	if other.Size == a.Size {
		root, known = a.Root, true
	}
	switch {
	case other.Origin != a.Origin:
		v.report.undecided("GET /ledger/checkpoint: it is of log %q, the chains are of %q", other.Origin, a.Origin)
	case other.Size > a.Size:
		v.report.notef("GET /ledger/checkpoint is of size %d already, the chains are proven by that of size %d", other.Size, a.Size)
	case known && root != other.Root:
		if _, f := v.cfg.Trust.Open(signed, a.replay.keys, v.cfg.Now); f != nil && f.Verdict != ledger.QuorumNotMet {
			v.report.fault(f)
			return
		}
		a.forked = true
		f := v.forkAt(ctx, &logTiles{v.client, a.Size}, a, other.Size, signed, a.replay.states[other.Size])
		v.fork(f, "GET /ledger/checkpoint of size %d is not the beginning of the log of size %d", other.Size, a.Size)
	}
}

// checkNewest: the chains are proven by the newest epoch that the checkpoint covers.
func (v *apiVerifier) checkNewest(a *accepted, epoch *ledger.Entry) {
	if newest := a.replay.epochs.newest; newest != nil && newest.Index != epoch.Index {
		v.report.faultf(ledger.Stale, "the chains are proven by epoch %d, the checkpoint covers epoch %d", epoch.Index, newest.Index)
	}
	v.report.Checkpoint.Epoch, v.report.Checkpoint.EpochTime = epoch.Index, epoch.Time
}

// checkChain: the chain's id is that of its workspace, and the epoch's map has its size and root.
func (v *apiVerifier) checkChain(c *apiChain, epoch *ledger.Entry) bool {
	identity := c.identity()
	if identity.Chain() != c.Chain || c.Lane >= c.Lanes {
		v.chainFault(ledger.CrossChain, c, "it is not that of workspace %x, incarnation %x, lane %d of %d", c.Workspace, c.Incarnation, c.Lane, c.Lanes)
		return false
	}
	if err := c.Map.VerifyPresent(c.Chain, c.Size, c.Root, epoch.Epoch.MapRoot); err != nil {
		v.chainFault(ledger.InvalidProof, c, "it is not in the map of epoch %d at size %d: %v", epoch.Index, c.Size, err)
		return false
	}
	return true
}

func (v *apiVerifier) chainFault(verdict ledger.Verdict, c *apiChain, format string, args ...any) {
	v.report.fault(&ledger.Fault{Verdict: verdict, Chain: &c.Chain, Detail: fmt.Sprintf(format, args...)})
}

// verifyChains recomputes all chains that the newest epoch is proven to hold, with the roots that older ones state.
func (v *apiVerifier) verifyChains(ctx context.Context, h *histories) ([]*chainResult, error) {
	run := &chainRun{cfg: v.cfg, report: v.report, conclude: true, repeats: ledger.RepeatLeaves}
	room, until := semaphore.NewWeighted(v.client.MaxPagesBytes), time.Now().Add(v.cfg.Settle)
	var jobs []*chainJob
	for i := range h.newest().answer.Chains {
		c := &h.newest().answer.Chains[i]
		if h.newest().chains[c.Chain] != c {
			continue
		}
		run.expected += c.Size
		jobs = append(jobs, &chainJob{
			identity: c.identity(), leaves: (&chainPages{v.client, c, v.report, room, until}).leaves, marks: h.marks(c), size: c.Size,
		})
	}
	results, err := run.verifyAll(ctx, jobs)
	sentAgain := uint64(0)
	for _, r := range results {
		sentAgain += r.counts.SentAgain
		if r.err != nil {
			continue
		}
		if covered := r.marks[len(r.marks)-1].Size; r.counts.Size > covered {
			first, last := covered, r.counts.Size-1
			v.report.fault(&ledger.Fault{
				Verdict: ledger.UnsealedTail, Chain: &r.id, Sequence: &first, Last: &last, Detail: "no signed epoch covers the leaves yet",
			})
		}
	}
	v.report.sentAgain(sentAgain)
	v.report.notChecked("whether an event is in two chains, or twice in one with %d leaves or more between: `immutable verify clickhouse` does", ledger.RepeatLeaves)
	v.report.Epochs = uint64(len(h.epochs))
	return results, err
}
