package verify

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/sync/semaphore"

	"getimmutable.dev/immutable/ledger"
)

// chainPages reads one chain from the API, page by page.
type chainPages struct {
	*client

	chain  *apiChain
	report *Report
	// room is for the pages of all chains: API.MaxPagesBytes.
	room *semaphore.Weighted
	// until is how long to wait for leaves that the epoch covers and that are being written: the notary does not wait for those who write them.
	until time.Time
}

// settle waits until the last leaf that the epoch covers is there with its content. Those who write leaves bring them in order.
func (p *chainPages) settle(ctx context.Context) error {
	tick := time.NewTicker(settleTick)
	defer tick.Stop()
	for p.chain.Size > 0 {
		page, err := p.page(ctx, p.chain.Size-1, 1)
		if err != nil {
			return nil // reading from the beginning says what is wrong
		}
		page.batch.release()
		if n := len(page.batch.leaves); n > 0 && page.batch.leaves[n-1].Sequence == p.chain.Size-1 && hasContent(&page.batch.leaves[n-1]) {
			return nil
		}
		if !time.Now().Before(p.until) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for the leaves: %w", ctx.Err())
		}
	}
	return nil
}

func hasContent(l *ledger.StoredLeaf) bool {
	return l.Kind == ledger.KindGenesis || len(l.Body) > 0 || l.Disclosure != nil
}

// cut ends a page at a leaf that no epoch covers and whose content is not there: it may be about to be written.
func (p *chainPages) cut(page *leafPage) {
	for i := range page.batch.leaves {
		if l := &page.batch.leaves[i]; l.Sequence >= p.chain.Size && !hasContent(l) {
			p.report.notChecked("chain %x: leaves from sequence %d on, which no signed epoch covers: the content of that one is not there yet", p.chain.Chain, l.Sequence)
			page.batch.leaves, page.more = page.batch.leaves[:i], false
			return
		}
	}
}

// leafLine is a line of GET /ledger/leaves: a leaf, or the last one.
type leafLine struct {
	ledger.BundleLeaf

	LeafHash        *ledger.Hash `json:"leaf_hash"`
	Node            string       `json:"node"`
	Lanes           *uint32      `json:"lanes"`
	LedgerPartition uint16       `json:"ledger_partition"`
	LedgerOffset    uint64       `json:"ledger_offset"`

	Next *uint64 `json:"next"`
	More *bool   `json:"more"`
}

const (
	// maxShortPages is how many pages of a chain may bring less than a shareOfPage of what was asked for, in leaves and in bytes, and say that
	// more follow. An honest server has them where rows are missing, or where it runs out of time.
	maxShortPages = 1000
	shareOfPage   = 64
	// bytesOfLine is what a leaf takes in memory besides the text of its line, bytesOfField a field of a disclosure.
	bytesOfLine  = 1 << 10
	bytesOfField = 64
	// smallLine is up to where a line of leaves is decoded without counting: it can become some MiB.
	smallLine = 64 << 10
	// maxLineElements and maxLineValues of a larger one: the fields of a disclosure.
	maxLineElements = 1024
	maxLineValues   = 1 << 14
	// maxNodeDigits of the hexadecimal text of a node: eight subtrees of 256^k leaves, k >= 1, are more than a chain can have.
	maxNodeDigits = 8 * 64
)

// leaves implements chainJob.leaves.
func (p *chainPages) leaves(ctx context.Context, each func(*batch) error) error {
	if err := p.settle(ctx); err != nil {
		return err
	}
	end := p.chain.Size + min(p.MaxTail, math.MaxUint64-p.chain.Size)
	limit, short := p.LeavesPerRequest, 0
	for from := uint64(0); ; {
		if from >= end {
			p.report.notChecked("chain %x: leaves from sequence %d on, which no signed epoch covers: %d of them have been read", p.chain.Chain, from, p.MaxTail)
			return nil
		}
		asked := int(min(uint64(limit), end-from))
		page, err := p.page(ctx, from, asked)
		if errors.Is(err, errPageBytes) && asked > 1 {
			limit = max(1, min(len(page.lines), asked/2)) // as many as fit
			continue
		}
		if err != nil { // 404 too, which anything between here and the API may say: that a chain has no leaves, an empty page says
			return err
		}
		p.cut(page)
		if len(page.lines) < p.LeavesPerRequest/shareOfPage && page.bytes < p.MaxPageBytes/shareOfPage {
			short++
		}
		if page.bytes < p.MaxPageBytes/4 {
			limit = min(2*limit, p.LeavesPerRequest)
		}
		if len(page.batch.leaves)+len(page.batch.faults) > 0 {
			if err := each(&page.batch); err != nil {
				page.batch.release()
				return err
			}
		} else {
			page.batch.release()
		}
		switch {
		case !page.more:
			return nil
		case len(page.lines) == 0 && page.next > p.chain.Size:
			return fmt.Errorf("leaves from sequence %d: %w: none, and more are said to follow beyond the signed size %d", from, errAnswer, p.chain.Size)
		case page.next <= from:
			return fmt.Errorf("leaves from sequence %d: %w: the next page would begin at %d", from, errAnswer, page.next)
		case short > maxShortPages:
			return fmt.Errorf("leaves from sequence %d: %w: it is page %d that has next to nothing, and more are said to follow", from, errAnswer, short)
		}
		from = page.next
	}
}

type leafPage struct {
	batch batch
	lines []leafLine // without bodies
	bytes int64      // that it takes, about
	next  uint64
	more  bool
	ended bool
}

// errPageBytes says that a page has more than API.MaxPageBytes.
var errPageBytes = fmt.Errorf("%w: a page of leaves is too large", errAnswer)

// page reads one page of at most limit leaves, once there is room for it. What it takes of that is given back by its batch. With an error it returns what
// was read.
func (p *chainPages) page(ctx context.Context, from uint64, limit int) (*leafPage, error) {
	if err := p.room.Acquire(ctx, p.MaxPageBytes); err != nil {
		return &leafPage{}, fmt.Errorf("waiting for other pages: %w", err)
	}
	page := new(leafPage)
	path := fmt.Sprintf("/ledger/leaves?chain=%x&from=%d&limit=%d", p.chain.Chain, from, limit)
	err := p.lines(ctx, path, func() { *page = leafPage{} }, func(text []byte) error {
		return p.line(page, text, limit)
	}, func() error {
		if !page.ended {
			return errCutOff
		}
		return nil
	})
	if err != nil {
		p.room.Release(p.MaxPageBytes)
		return page, err
	}
	p.room.Release(p.MaxPageBytes - page.bytes)
	page.batch.release = func() { p.room.Release(page.bytes) }
	page.batch.check = func(_ *checker, i int) *ledger.Fault { return p.checkStated(&page.lines[i], &page.batch.leaves[i]) }
	return page, nil
}

// line takes one line.
func (p *chainPages) line(page *leafPage, text []byte, limit int) error {
	var l leafLine
	var err error
	if len(text) > smallLine {
		err = ledger.LimitJSON(text, maxLineElements, maxLineValues)
	}
	if err == nil {
		err = json.Unmarshal(text, &l)
	}
	if err != nil {
		return fmt.Errorf("%w: a line of leaves: %w", errAnswer, err)
	}
	page.bytes += int64(len(text) + bytesOfLine + bytesOfField*len(l.Disclosure))
	if page.bytes > p.MaxPageBytes {
		return fmt.Errorf("%w: it takes more than %d bytes", errPageBytes, p.MaxPageBytes)
	}
	switch {
	case page.ended:
		return fmt.Errorf("%w: a line follows the last one", errAnswer)
	case l.Next != nil && l.More != nil:
		page.next, page.more, page.ended = *l.Next, *l.More, true
		return nil
	case len(page.lines) == limit:
		return fmt.Errorf("%w: more than %d leaves", errAnswer, limit)
	}
	stated, err := l.Leaf()
	if err != nil {
		sequence := l.Sequence // what points into the line keeps its body
		page.batch.faults = append(page.batch.faults, &ledger.Fault{
			Verdict: ledger.Modified, Chain: &p.chain.Chain, Sequence: &sequence, EventID: strings.Clone(shortened(l.ID)), Detail: fmt.Sprintf("%v", err),
		})
		return nil
	}
	s := ledger.StoredLeaf{Leaf: *stated, LedgerOffset: l.LedgerOffset, Body: []byte(l.Body), Disclosure: l.Disclosure}
	if l.LeafHash != nil {
		s.Hash = *l.LeafHash
	}
	if s.Node, err = nodeOf(l.Node); err != nil {
		page.batch.faults = append(page.batch.faults, leafFault(ledger.Modified, stated, "node: %v", err))
	}
	if l.Seed != nil {
		s.Seed = *l.Seed
	}
	if l.Body != "" && l.Disclosure != nil {
		page.batch.faults = append(page.batch.faults, leafFault(ledger.Modified, stated, "it has a body and a disclosure"))
	}
	if n := len(page.batch.leaves); n > 0 && page.batch.leaves[n-1].Hash == s.Previous {
		s.Previous = ledger.Hash{} // it says no more than the stored hash, which is checked where it belongs
	}
	l.Body, l.Disclosure = "", nil
	page.lines, page.batch.leaves = append(page.lines, l), append(page.batch.leaves, s)
	return nil
}

// nodeOf reads the hexadecimal text of a node.
func nodeOf(text string) ([]ledger.Hash, error) {
	if len(text) > maxNodeDigits {
		return nil, fmt.Errorf("%w: %d digits", errHashes, len(text))
	}
	node, err := hex.DecodeString(text)
	if err != nil {
		return nil, err
	}
	return hashes(node)
}

// checkStated compares what a line states besides its content with what that comes to.
func (p *chainPages) checkStated(l *leafLine, s *ledger.StoredLeaf) *ledger.Fault {
	c := p.chain
	if l.Workspace != c.Workspace || l.Incarnation != c.Incarnation || l.Lane != c.Lane {
		return leafFault(ledger.CrossChain, &s.Leaf, "it is of workspace %x, incarnation %x, lane %d", l.Workspace, l.Incarnation, l.Lane)
	}
	if l.Lanes != nil && *l.Lanes != c.Lanes {
		return leafFault(ledger.Modified, &s.Leaf, "it states %d lanes, the chain has %d", *l.Lanes, c.Lanes)
	}
	if s.Kind == ledger.KindGenesis {
		if g := ledger.Genesis(c.Workspace, c.Incarnation, c.Lane, c.Lanes, 0, 0); g.BodyRoot != l.BodyRoot {
			return leafFault(ledger.Modified, &s.Leaf, "it states root %x, the chain's genesis has %x", l.BodyRoot, g.BodyRoot)
		}
		return nil
	}
	if root, n, err := s.ContentRoot(); err == nil && (root != l.BodyRoot || n != l.FieldCount) {
		return leafFault(ledger.Modified, &s.Leaf, "its body gives root %x over %d fields, it states %x over %d", root, n, l.BodyRoot, l.FieldCount)
	}
	return nil
}
