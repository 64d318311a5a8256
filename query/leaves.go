package query

import (
	"context"
	"encoding/hex"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/sync/errgroup"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/ledger"
)

// chain is what GET /ledger/chains says of one.
type chain struct {
	Workspace   ledger.Hex16    `json:"workspace"`
	Incarnation ledger.Hex16    `json:"incarnation"`
	Lane        uint32          `json:"lane"`
	Lanes       uint32          `json:"lanes"`
	Chain       ledger.ChainID  `json:"chain"`
	Size        uint64          `json:"size"`
	Root        ledger.Hash     `json:"root"`
	Map         ledger.MapProof `json:"map"`
}

// absentLane is what GET /ledger/chains says of a lane that has no chain: the proof of that.
type absentLane struct {
	Lane  uint32          `json:"lane"`
	Chain ledger.ChainID  `json:"chain"`
	Map   ledger.MapProof `json:"map"`
}

// chainList is GET /ledger/chains: a workspace, its chains at an epoch and the lanes that have none, and what ties them to a signed
// checkpoint.
type chainList struct {
	Workspace   ledger.Hex16       `json:"workspace"`
	Incarnation ledger.Hex16       `json:"incarnation"`
	Lanes       uint32             `json:"lanes"`
	Epoch       string             `json:"epoch"`
	LogProof    string             `json:"log_proof"`
	Keys        []ledger.BundleKey `json:"keys"`
	Chains      []chain            `json:"chains"`
	Absent      []absentLane       `json:"absent"`
}

// notCovered is the 409 of what no checkpoint covers yet.
func notCovered(what string) error {
	e := httpserver.Conflict(what + " is not covered by a signed checkpoint yet: send the request again in some seconds.")
	e.RetryAfter = epochTime
	return e
}

// epochTime is how often there is an epoch when anything changes.
const epochTime = 10 * time.Second

// listChains is GET /ledger/chains.
func (s *Service) listChains(ctx context.Context, workspace [16]byte, r *http.Request) ([]byte, error) {
	q, err := parseAsked(r.URL.RawQuery, paramEpoch, paramCheckpoint, paramWitnessed)
	if err != nil {
		return nil, err
	}
	of := control.PrincipalFrom(ctx).Workspace
	list := chainList{Workspace: workspace, Incarnation: of.Incarnation, Lanes: of.Lanes, Chains: []chain{}}
	err = s.at(ctx, q, func(at *snapshot, m *chainMap) {
		list.Epoch, list.LogProof, list.Keys = at.text, at.logProof, at.keys
		for _, c := range m.of(workspace) {
			list.Chains = append(list.Chains, chain{c.workspace, c.incarnation, c.lane, c.lanes, c.chain, c.size, c.root, c.proof})
		}
		list.Absent = m.absent(workspace, of.Incarnation, of.Lanes)
	})
	if err != nil {
		return nil, err
	}
	return inData(list)
}

// inData encodes {"data": v}.
func inData(v any) ([]byte, error) { return inJSONObject(map[string]any{"data": v}) }

func inJSONObject(v map[string]any) ([]byte, error) {
	b, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		return nil, fmt.Errorf("encoding an answer: %w", err)
	}
	return append(b, '\n'), nil
}

// leafLine is a line of GET /ledger/leaves.
type leafLine struct {
	ledger.BundleLeaf
	Path            *struct{}   `json:"path,omitzero"` // hides the leaf's, which a verifier computes
	Lanes           uint32      `json:"lanes,omitzero"`
	LeafHash        ledger.Hash `json:"leaf_hash"`
	Node            string      `json:"node,omitempty"`
	LedgerPartition uint16      `json:"ledger_partition"`
	LedgerOffset    uint64      `json:"ledger_offset"`
}

// lastLine ends every answer of GET /ledger/leaves.
type lastLine struct {
	Next uint64 `json:"next"`
	More bool   `json:"more"`
}

const (
	paramChain       = "chain"
	defaultLeaves    = 1_000
	maxLeaves        = 10_000
	leavesParameters = paramChain + ", " + paramFrom + ", " + paramLimit
)

// leavesRequest is a GET /ledger/leaves.
type leavesRequest struct {
	chain ledger.ChainID
	from  uint64
	limit uint64
}

// parseLeaves reads the parameters of GET /ledger/leaves. The error is as that of parsePage.
func parseLeaves(raw string) (leavesRequest, error) {
	values, err := parseQuery(raw)
	if err != nil {
		return leavesRequest{}, err
	}
	req := leavesRequest{limit: defaultLeaves}
	var faults faults
	if !values.Has(paramChain) {
		faults.invalidParam(paramChain, "is required: GET /ledger/chains says which there are.")
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		value := values[name][0]
		switch {
		case name != paramChain && name != paramFrom && name != paramLimit:
			faults.malformedParam(name, "is not a parameter of this request. Known are: "+leavesParameters+".")
		case len(values[name]) > 1:
			faults.malformedParam(name, "is given more than once; give one value.")
		case name == paramChain:
			if req.chain.UnmarshalText([]byte(value)) != nil {
				faults.invalidParam(name, "must be the id of a chain: 32 digits of lower-case hexadecimal.")
			}
		case name == paramFrom:
			if req.from, err = strconv.ParseUint(value, 10, 53); err != nil {
				faults.invalidParam(name, "must be a sequence: a whole number from 0 on.")
			}
		default:
			req.limit = parseCount(value, maxLeaves, &faults)
		}
	}
	return req, faults.err()
}

// parseCount reads the parameter limit, 1 to most.
func parseCount(value string, most uint64, faults *faults) uint64 {
	n, err := strconv.ParseUint(value, 10, 32)
	if err != nil || n < 1 || n > most {
		faults.invalidParam(paramLimit, "must be a whole number from 1 to "+strconv.FormatUint(most, 10)+".")
	}
	return n
}

// listLeaves is GET /ledger/leaves: everything that a verifier needs to compute the leaves anew, as it is stored. It judges
// nothing: a row that is missing is missing, and one that is there twice comes twice. Where there is none from a sequence on, next is that.
func (s *Service) listLeaves(ctx context.Context, workspace [16]byte, r *http.Request) (content, error) {
	req, err := parseLeaves(r.URL.RawQuery)
	if err != nil {
		return content{}, err
	}
	var body []byte
	began := time.Now()
	last := lastLine{Next: req.from + req.limit}
	err = s.walk(ctx, workspace, req.chain, req.from, last.Next, func(l *walkedLeaf) (bool, error) {
		if len(body) >= s.cfg.MaxLeavesBytes || time.Since(began) > s.cfg.RequestTimeout/2 {
			last = lastLine{l.sequence, true}
			return false, nil
		}
		var err error
		body, err = l.append(body, workspace)
		return true, err
	})
	if err != nil {
		return content{}, err
	}
	if !last.More {
		if _, last.More, err = s.nextLeaf(ctx, workspace, req.chain, last.Next, math.MaxUint64); err != nil {
			return content{}, err
		}
	}
	if !last.More && len(body) == 0 {
		last.Next = req.from
		there, err := s.isChainOf(ctx, control.PrincipalFrom(ctx).Workspace, req.chain)
		if err != nil {
			return content{}, err
		}
		if !there {
			return content{}, httpserver.NotFound("The workspace of the API key has no such chain.")
		}
	}
	body, err = appendLine(body, last)
	return content{body: body, kind: kindNDJSON}, err
}

// isChainOf reports whether a chain is the workspace's, or has leaves that are: where the table has lost all of one of its lanes, an empty page says
// so, which a 404 would not.
func (s *Service) isChainOf(ctx context.Context, ws *control.Workspace, chain ledger.ChainID) (bool, error) {
	if _, ok := laneOf(ws, chain); ok {
		return true, nil
	}
	_, there, err := s.nextLeaf(ctx, ws.ID, chain, 0, math.MaxUint64)
	return there, err
}

func appendLine(b []byte, v any) ([]byte, error) {
	line, err := json.Marshal(v)
	if err != nil {
		return b, fmt.Errorf("encoding a line: %w", err)
	}
	return append(append(b, line...), '\n'), nil
}

// walkedLeaf is a leaf as walk finds it.
type walkedLeaf struct {
	leafRow
	// before is the stored hash of the leaf of the sequence before; zero, and followed false, where there is none.
	before   ledger.Hash
	followed bool
	bodies   []bodyRow // of its sequence
}

// append appends a line for the leaf with each of its bodies, of which there should be one.
func (l *walkedLeaf) append(b []byte, workspace [16]byte) ([]byte, error) {
	line := leafLine{
		LeafHash: l.hash, Node: hex.EncodeToString(l.node), LedgerPartition: l.ledgerPartition, LedgerOffset: l.ledgerOffset,
	}
	bodies := make([]*bodyRow, 0, 1)
	for i := range l.bodies {
		bodies = append(bodies, &l.bodies[i])
	}
	if len(bodies) == 0 {
		bodies = append(bodies, nil)
	}
	for _, body := range bodies {
		line.BundleLeaf, _ = describe(workspace, &l.leafRow, l.before, body) // what is wrong with it, a verifier finds
		if ledger.Kind(l.kind) == ledger.KindGenesis {
			line.Lanes = l.lanes
		}
		var err error
		if b, err = appendLine(b, line); err != nil {
			return b, err
		}
	}
	return b, nil
}

const (
	// chunkLeaves is how many leaves are read at first; with small events up to maxChunkLeaves follow.
	chunkLeaves    = 128
	maxChunkLeaves = 4_000
	// chunkBytes bounds the content of a chunk: where it is more, fewer leaves are read. The largest event has 256 KiB.
	chunkBytes = 16 << 20
)

// walk visits the leaves of a chain from a sequence on, before another, in order, until visit returns false. A row that is
// missing is left out, rows of one sequence come one after the other.
func (s *Service) walk(
	ctx context.Context, workspace [16]byte, chain ledger.ChainID, from, to uint64, visit func(*walkedLeaf) (bool, error),
) error {
	var before ledger.Hash
	var beforeAt uint64
	known := false
	if from > 0 {
		rows, err := s.spine(ctx, workspace, chain, from-1, from, 1)
		if err != nil {
			return err
		}
		if known = len(rows) == 1; known {
			before, beforeAt = rows[0].hash, from-1
		}
	}
	most := uint64(maxChunkLeaves)
	for n := uint64(chunkLeaves); from < to; {
		end := from + min(n, to-from)
		leaves, bodies, err := s.chunk(ctx, workspace, chain, from, end)
		if exceptionCode(err) == codeTooManyRowsBytes && n > 1 {
			n = max(n/8, 1)
			most = n
			continue
		}
		if err != nil {
			return err
		}
		for i := range leaves {
			l := &walkedLeaf{leafRow: leaves[i]}
			for len(bodies) > 0 && bodies[0].sequence < l.sequence { // of a leaf that is missing
				bodies = bodies[1:]
			}
			for k := 0; k < len(bodies) && bodies[k].sequence == l.sequence; k++ {
				l.bodies = bodies[:k+1]
			}
			if known && beforeAt+1 == l.sequence {
				l.before, l.followed = before, true
			}
			if i+1 == len(leaves) || leaves[i+1].sequence != l.sequence {
				before, beforeAt, known = l.hash, l.sequence, true
			}
			if more, err := visit(l); !more || err != nil {
				return err
			}
		}
		if len(leaves) == 0 { // a gap, or the end
			next, there, err := s.nextLeaf(ctx, workspace, chain, end, to)
			if err != nil || !there {
				return err
			}
			end = next
		}
		from, n = end, min(8*n, most)
	}
	return nil
}

// chunk reads leaves and their content, side by side.
func (s *Service) chunk(
	ctx context.Context, workspace [16]byte, chain ledger.ChainID, from, to uint64,
) (leaves []leafRow, bodies []bodyRow, err error) {
	most := int(2*(to-from)) + 10
	reading, ctx := errgroup.WithContext(ctx)
	reading.Go(func() (err error) {
		leaves, err = s.spine(ctx, workspace, chain, from, to, most)
		return err
	})
	reading.Go(func() (err error) {
		bodies, err = s.bodies(ctx, workspace, chain, from, to-1, most)
		return err
	})
	if err := reading.Wait(); err != nil {
		return nil, nil, err
	}
	if len(leaves) == most || len(bodies) == most {
		return nil, nil, fmt.Errorf("%w: chain %x has more than two rows for each sequence from %d to %d", errDamaged, chain, from, to-1)
	}
	return leaves, bodies, nil
}
