package query

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"maps"
	"net/http"
	"slices"
	"time"

	"getimmutable.dev/immutable/control"
)

// pagination is that of a list of what is configured.
type pagination struct {
	HasMore    bool    `json:"has_more"`
	NextCursor *string `json:"next_cursor"`
	Total      int     `json:"total"`
}

// positionOf is the place of what was created at a time, in a list that is sorted by that.
func positionOf(created time.Time, id [16]byte) position {
	return position{at: created.UnixMicro(), id: id}
}

func comparePositions(a, b position) int {
	return cmp.Or(cmp.Compare(a.at, b.at), bytes.Compare(a.id[:], b.id[:]))
}

// listReply answers with the page of a list that a request asks for. all is everything that the caller may see, in the
// order of its positions; list names it, so that no other list takes its cursors.
func listReply[T, S any](
	r *http.Request, p *control.Principal, list string, all []T, place func(T) position, show func(T) S,
) (reply, error) {
	limit, cursor, err := parseList(r.URL.RawQuery)
	if err != nil {
		return reply{}, err
	}
	digest := sha256.Sum256(append([]byte("immutable/cursor/list/1\x00"+list+"\x00"), p.Workspace.ID[:]...))
	first := 0
	if cursor != "" {
		after, err := decodeCursor(cursor, digest)
		if err != nil {
			return reply{}, err
		}
		at, found := slices.BinarySearchFunc(all, after, func(item T, after position) int {
			return comparePositions(place(item), after)
		})
		if first = at; found {
			first++
		}
	}
	page := all[first:min(first+limit, len(all))]
	shown := make([]S, len(page))
	for i, item := range page {
		shown[i] = show(item)
	}
	pages := pagination{HasMore: first+limit < len(all), Total: len(all)}
	if pages.HasMore {
		next := encodeCursor(place(page[len(page)-1]), digest)
		pages.NextCursor = &next
	}
	return reply{status: http.StatusOK, data: shown, pagination: &pages}, nil
}

// parseList reads the parameters of a list; cursor is "" for the first page. The error is as that of parsePage.
func parseList(raw string) (limit int, cursor string, err error) {
	values, err := parseQuery(raw)
	if err != nil {
		return 0, "", err
	}
	limit = defaultPageEvents
	var faults faults
	for _, name := range slices.Sorted(maps.Keys(values)) {
		value := values[name][0]
		problem := checkText(value)
		switch {
		case name != paramLimit && name != paramCursor:
			faults.malformedParam(name, "is not a parameter of this request. Known are: "+paramLimit+", "+paramCursor+".")
		case len(values[name]) > 1:
			faults.malformedParam(name, "is given more than once; give one value.")
		case problem != "":
			faults.invalidParam(name, problem)
		case name == paramLimit:
			limit = parseLimit(value, &faults)
		default:
			cursor = value
		}
	}
	return limit, cursor, faults.err()
}
