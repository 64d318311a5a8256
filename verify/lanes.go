package verify

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"

	"getimmutable.dev/immutable/ledger"
)

// maxLanes is above the number of lanes that a workspace can have: the events topic has no more partitions.
const maxLanes = 1 << 16

// statedEpoch is an epoch of the log, and what the API proves of the workspace's chains at it.
type statedEpoch struct {
	entry  *ledger.Entry
	answer *statedChains
	// chains are those that are proven, and shown all that the answer names.
	chains map[ledger.ChainID]*apiChain
	shown  map[ledger.ChainID]bool
	// absent are the proofs of chains that are not there.
	absent map[ledger.ChainID]*ledger.MapProof
}

// checkStatedEpoch checks each chain of an answer and each lane that has none against the epoch's map.
func (v *apiVerifier) checkStatedEpoch(entry *ledger.Entry, answer *chainsAnswer) *statedEpoch {
	e := &statedEpoch{
		entry: entry, answer: &answer.Data, chains: map[ledger.ChainID]*apiChain{}, shown: map[ledger.ChainID]bool{},
		absent: map[ledger.ChainID]*ledger.MapProof{},
	}
	for i := range e.answer.Chains {
		c := &e.answer.Chains[i]
		if e.shown[c.Chain] {
			continue
		}
		e.shown[c.Chain] = true
		if v.checkChain(c, entry) {
			e.chains[c.Chain] = c
		}
	}
	v.checkWorkspace(e)
	v.checkLanes(e)
	return e
}

// checkWorkspace: all chains are of the workspace that the answer says it is about. The number of lanes is in each chain's genesis.
func (v *apiVerifier) checkWorkspace(e *statedEpoch) {
	d := e.answer
	for i := range d.Chains {
		c := &d.Chains[i]
		if d.Lanes > 0 && !v.foreign[c.Chain] && (c.Workspace != d.Workspace || c.Incarnation != d.Incarnation || c.Lanes != d.Lanes) {
			v.foreign[c.Chain] = true // once is enough
			v.chainFault(ledger.CrossChain, c, "it is of workspace %x, incarnation %x with %d lanes; epoch %d was asked for of %x, incarnation %x with %d",
				c.Workspace, c.Incarnation, c.Lanes, e.entry.Index, d.Workspace, d.Incarnation, d.Lanes)
		}
	}
}

// checkLanes: each lane of the workspace has a chain in the epoch, or is proven to have none.
func (v *apiVerifier) checkLanes(e *statedEpoch) {
	d := e.answer
	if d.Lanes == 0 || d.Lanes > maxLanes {
		v.report.undecided("epoch %d: %d lanes of the workspace are stated: nothing proves that there are no other chains than those that are shown",
			e.entry.Index, d.Lanes)
		return
	}
	for i := range d.Absent {
		a := &d.Absent[i]
		err := a.Map.VerifyAbsent(a.Chain, e.entry.Epoch.MapRoot)
		if err != nil {
			v.report.fault(&ledger.Fault{
				Verdict: ledger.InvalidProof, Chain: &a.Chain, Detail: fmt.Sprintf("that epoch %d does not have it is not proven: %v", e.entry.Index, err),
			})
			continue
		}
		e.absent[a.Chain] = &a.Map
	}
	var hidden []uint32
	for lane := range d.Lanes {
		id := ledger.NewChainID(d.Workspace, d.Incarnation, lane)
		if e.chains[id] == nil && e.absent[id] == nil && len(hidden) < maxNames {
			hidden = append(hidden, lane)
		}
	}
	if len(hidden) > 0 {
		v.report.undecided("epoch %d: the API shows no chain of lanes %d of %d, and does not prove that there is none", e.entry.Index, hidden, d.Lanes)
	}
}

// checkSource: an API key is for one workspace, and a workspace has one incarnation, for ever. It returns under which name that is remembered. Two
// incarnations of a workspace convict where the signed map has a chain of the new one. Which workspace a key is for nobody has signed: that it is another
// one now decides nothing, and of another key nobody expects anything; whether the one that was verified before is still there is then not known.
func (v *apiVerifier) checkSource(a *accepted, e *statedEpoch) (source string) {
	fingerprint := sha256.Sum256([]byte("immutable/memory/key\x00" + v.client.Key))
	source = fmt.Sprintf("%x", fingerprint[:8])
	if a.remembered == nil {
		return source
	}
	now := rememberedWorkspace{e.answer.Workspace, e.answer.Incarnation}
	var unexplained *rememberedWorkspace
	others := map[rememberedWorkspace]bool{}
	for _, name := range slices.Sorted(maps.Keys(a.remembered.Sources)) {
		before := a.remembered.Sources[name]
		switch {
		case before == now:
		case before.Workspace == now.Workspace && e.has(now):
			v.report.faultf(ledger.RolledBack, "workspace %x, incarnation %x was verified before, and is incarnation %x now: it was started afresh",
				before.Workspace, before.Incarnation, now.Incarnation)
			return source
		case before.Workspace == now.Workspace, name == source:
			unexplained = &before
		default:
			others[before] = true
		}
	}
	if unexplained != nil {
		v.report.undecided("workspace %x, incarnation %x was verified before, and workspace %x, incarnation %x is answered now: it was started afresh, "+
			"or the answer is to another API key", unexplained.Workspace, unexplained.Incarnation, now.Workspace, now.Incarnation)
	}
	if len(others) > 0 {
		v.report.notChecked("%d other workspaces of this log that were verified before with other API keys", len(others))
	}
	return source
}

// has says whether a chain of the workspace is proven to be in the epoch.
func (e *statedEpoch) has(w rememberedWorkspace) bool {
	for _, c := range e.chains {
		if c.Workspace == w.Workspace && c.Incarnation == w.Incarnation {
			return true
		}
	}
	return false
}
