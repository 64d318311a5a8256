package query

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"getimmutable.dev/immutable/internal/httpserver"
)

// Parameters of what is proven.
const (
	paramEpoch      = "epoch"
	paramCheckpoint = "checkpoint"
	paramWitnessed  = "witnessed"
)

// asked says which epoch and checkpoint a proof is to be by: without anything the newest.
type asked struct {
	// epoch is an index in the root log, and checkpoint a size of it; nil is the newest.
	epoch, checkpoint *uint64
	// witnessed asks for the newest checkpoint that a witness has signed.
	witnessed bool
}

// parseAsked reads those of the parameters epoch, checkpoint and witnessed that a request knows. The error is as that of parsePage.
func parseAsked(raw string, known ...string) (asked, error) {
	values, err := parseQuery(raw)
	if err != nil {
		return asked{}, err
	}
	var q asked
	var faults faults
	for _, name := range slices.Sorted(maps.Keys(values)) {
		value := values[name][0]
		number := func() *uint64 {
			n, err := strconv.ParseUint(value, 10, 53)
			if err != nil || strconv.FormatUint(n, 10) != value {
				faults.invalidParam(name, "must be a whole number from 0 on.")
			}
			return &n
		}
		switch {
		case !slices.Contains(known, name):
			faults.malformedParam(name, "is not a parameter of this request. Known are: "+strings.Join(known, ", ")+".")
		case len(values[name]) > 1:
			faults.malformedParam(name, "is given more than once; give one value.")
		case name == paramEpoch:
			q.epoch = number()
		case name == paramCheckpoint:
			q.checkpoint = number()
		case value != "true" && value != "false":
			faults.invalidParam(name, "must be true or false.")
		default:
			q.witnessed = value == "true"
		}
	}
	if q.witnessed && q.checkpoint != nil {
		faults.invalidParam(paramWitnessed, "excludes checkpoint, which names one.")
	}
	return q, faults.err()
}

// at calls use with the epoch and checkpoint that are asked for, and the map of all chains then, of which use keeps nothing. The error is a
// 404 where there is none such.
func (s *Service) at(ctx context.Context, q asked, use func(*snapshot, *chainMap)) error {
	if q == (asked{}) {
		return s.roots.use(use)
	}
	c, err := s.askedCheckpoint(ctx, q)
	if err != nil {
		return err
	}
	epoch, err := s.askedEpoch(ctx, q, c)
	if err != nil {
		return err
	}
	at, err := s.snapshot(ctx, c, epoch)
	if err != nil {
		return err
	}
	if s.roots.useAt(at.index, func(m *chainMap) { use(at, m) }) {
		return nil
	}
	m, err := s.olderMap(ctx, at)
	if err != nil {
		return err
	}
	use(at, m)
	return nil
}

// askedCheckpoint returns the checkpoint that is asked for.
func (s *Service) askedCheckpoint(ctx context.Context, q asked) (*checkpointRow, error) {
	st, none := newestCheckpointStatement(), noCheckpoint()
	switch {
	case q.checkpoint != nil:
		st, none = checkpointAtStatement(*q.checkpoint), httpserver.NotFound("There is no signed checkpoint of this size: GET /anchors lists them.")
	case q.witnessed:
		st, none = witnessedCheckpointStatement(), httpserver.NotFound("No witness has signed a checkpoint yet.")
	}
	c, err := s.checkpoint(ctx, st)
	if err == nil && c == nil {
		err = none
	}
	return c, err
}

// askedEpoch returns the epoch that is asked for, which the checkpoint covers.
func (s *Service) askedEpoch(ctx context.Context, q asked, c *checkpointRow) (*entryRow, error) {
	if q.epoch == nil {
		e, err := s.newestEpoch(ctx, c.size)
		if err == nil && e == nil {
			err = httpserver.NotFound("The checkpoint covers no epoch yet.")
		}
		return e, err
	}
	index := *q.epoch
	if index >= c.size {
		return nil, httpserver.NotFound(fmt.Sprintf("The checkpoint of size %d covers no entry %d of the root log.", c.size, index))
	}
	list, err := s.entries(ctx, epochStatement(index))
	switch {
	case err != nil:
		return nil, err
	case len(list) == 0:
		return nil, httpserver.NotFound(fmt.Sprintf("Entry %d of the root log is no epoch.", index))
	}
	return &list[0], nil
}
