package query

import (
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/internal/httpserver"
)

// Parameters of GET /events that are not columns.
const (
	paramAction       = "action"
	paramTargetType   = "target_type"
	paramTargetID     = "target_id"
	paramFrom         = "from"
	paramTo           = "to"
	paramRecordedFrom = "recorded_from"
	paramRecordedTo   = "recorded_to"
	paramOrder        = "order"
	paramLimit        = "limit"
	paramCursor       = "cursor"
	paramTotal        = "total"
	paramSearch       = "search"
	metadataPrefix    = "metadata["
	metadataSuffix    = "]"
)

// Values of the parameter order.
const (
	orderNewest = "desc"
	orderOldest = "asc"
)

// columnParams returns the parameters that are compared for equality with the column of the same name.
func columnParams() []string {
	return []string{
		"action_category", "actor_id", "actor_type", "resource", "resource_id", "session_id", "tenant_id",
	}
}

// singleParams returns the parameters that may be given once.
func singleParams() []string {
	return []string{
		paramFrom, paramTo, paramRecordedFrom, paramRecordedTo, paramOrder, paramLimit, paramCursor, paramTotal,
	}
}

// knownParams is for the answer to an unknown one, in the order of the documentation.
func knownParams() string {
	names := slices.Concat([]string{paramAction}, columnParams(),
		[]string{paramTargetType, paramTargetID, "metadata[key]"}, singleParams())
	return strings.Join(names, ", ")
}

// filter says which events are asked for: those that meet every condition, a condition with several values being met
// by any of them. Lists are sorted and have no value twice, so that equal filters are equal.
type filter struct {
	actions []pattern
	// columns has the values per name of columnParams.
	columns     map[string][]string
	targetTypes []string // with targetIDs: of the same target
	targetIDs   []string
	// metadata has the values per dotted path.
	metadata map[string][]string
	// Times are inclusive.
	occurred, recorded span
	// concealed are events that are not found, see erasures.
	concealed eventIDs
}

// looksAt reports whether a condition of the filter is about the field at path: an RFC 6901 pointer.
func (f *filter) looksAt(path string) bool {
	if name, ok := strings.CutPrefix(path, "/"+event.FieldMetadata+"/"); ok {
		name = strings.NewReplacer("~1", "/", "~0", "~").Replace(name)
		for key := range f.metadata {
			if key == name || strings.HasPrefix(key, name+".") {
				return true
			}
		}
		return false
	}
	name := strings.TrimPrefix(path, "/")
	return len(f.columns[name]) > 0 || name == event.FieldTargets && len(f.targetTypes)+len(f.targetIDs) > 0
}

// pattern is a pattern with its text.
type pattern struct {
	event.Pattern
	text string
}

// span is a range of microseconds since the Unix epoch; nil is open.
type span struct{ from, to *int64 }

// pageRequest is a GET /events.
type pageRequest struct {
	filter
	ascending bool
	limit     int
	total     bool
	cursor    string // as sent; "" for the first page
}

// faults gathers what is wrong with a query string: everything at once, so that a client is corrected once.
type faults struct{ malformed, invalid []httpserver.Detail }

func (f *faults) malformedParam(name, message string) {
	f.malformed = append(f.malformed, httpserver.Detail{Field: shorten(name), Message: message})
}

func (f *faults) invalidParam(name, message string) {
	f.invalid = append(f.invalid, httpserver.Detail{Field: shorten(name), Message: message})
}

// maxFaults bounds the details of an answer.
const maxFaults = 20

func (f *faults) err() error {
	summary := func(list []httpserver.Detail) string { return list[0].Field + " " + list[0].Message }
	cut := func(list []httpserver.Detail) []httpserver.Detail { return list[:min(len(list), maxFaults)] }
	switch {
	case len(f.malformed) > 0:
		return httpserver.BadRequest(summary(f.malformed), cut(f.malformed)...)
	case len(f.invalid) > 0:
		return httpserver.ValidationFailed(summary(f.invalid), cut(f.invalid)...)
	}
	return nil
}

// shorten makes a name that the client sent fit for an answer.
func shorten(name string) string {
	const most = 100
	name = strings.ToValidUTF8(name, "\uFFFD")
	if len(name) <= most {
		return name
	}
	return strings.ToValidUTF8(name[:most], "") + "..."
}

// parseQuery reads a query string strictly. The error is an *httpserver.Error: 400.
func parseQuery(raw string) (url.Values, error) {
	values, err := url.ParseQuery(raw)
	if err != nil {
		return nil, &httpserver.Error{
			Status: 400, Code: httpserver.CodeInvalidRequest, Cause: err,
			Message: "The query string is malformed: percent-encode every value; parameters are separated by &.",
		}
	}
	return values, nil
}

// parsePage reads the parameters of GET /events. The error is an *httpserver.Error: 400 for an unknown parameter or
// one that is repeated and must not be, 422 for a value that breaks a rule.
func parsePage(raw string) (pageRequest, error) {
	values, err := parseQuery(raw)
	if err != nil {
		return pageRequest{}, err
	}
	req := pageRequest{
		filter: filter{columns: map[string][]string{}, metadata: map[string][]string{}},
		limit:  defaultPageEvents, total: true,
	}
	var faults faults
	for _, name := range slices.Sorted(maps.Keys(values)) {
		req.take(name, values[name], &faults)
	}
	if len(req.metadata) > maxMetadataKeys {
		faults.malformedParam("metadata", "has more than "+strconv.Itoa(maxMetadataKeys)+" different keys.")
	}
	return req, faults.err()
}

// take reads one parameter.
func (req *pageRequest) take(name string, values []string, faults *faults) {
	key, isMetadata := strings.CutPrefix(name, metadataPrefix)
	key, closed := strings.CutSuffix(key, metadataSuffix)
	isMetadata = isMetadata && closed
	switch {
	case slices.Contains(singleParams(), name):
		if len(values) > 1 {
			faults.malformedParam(name, "is given more than once; give one value.")
			return
		}
		if problem := checkText(values[0]); problem != "" {
			faults.invalidParam(name, problem)
			return
		}
		req.takeSingle(name, values[0], faults)
		return
	case name == paramSearch:
		faults.malformedParam(name, "is not available in this version: filter by other parameters.")
		return
	case !isMetadata && name != paramAction && name != paramTargetType && name != paramTargetID &&
		!slices.Contains(columnParams(), name):
		faults.malformedParam(name, "is not a parameter of this request. Known are: "+knownParams()+".")
		return
	}
	if len(values) > maxValues {
		faults.malformedParam(name, "is given more than "+strconv.Itoa(maxValues)+" times.")
		return
	}
	for _, v := range values {
		problem := checkText(v)
		if isMetadata && v == "" {
			problem = "" // an empty string is a value of metadata
		}
		if problem != "" {
			faults.invalidParam(name, problem)
			return
		}
	}
	values = slices.Compact(slices.Sorted(slices.Values(values)))
	switch {
	case isMetadata:
		if problem := checkText(key); problem != "" {
			faults.invalidParam(name, "has a key that "+problem)
			return
		}
		req.metadata[key] = values
	case name == paramAction:
		for _, v := range values {
			p, err := event.CompilePattern(v)
			if err != nil {
				faults.invalidParam(name, err.Error()+".")
				return
			}
			req.actions = append(req.actions, pattern{p, v})
		}
	case name == paramTargetType:
		req.targetTypes = values
	case name == paramTargetID:
		req.targetIDs = values
	default:
		req.columns[name] = values
	}
}

// checkText returns what is wrong with a value, or "".
func checkText(v string) string {
	switch {
	case v == "":
		return "must not be empty: leave the parameter out instead."
	case len(v) > maxValueBytes:
		return "is longer than " + strconv.Itoa(maxValueBytes) + " bytes."
	case !utf8.ValidString(v):
		return "is not UTF-8 text."
	}
	return ""
}

func (req *pageRequest) takeSingle(name, value string, faults *faults) {
	switch name {
	case paramFrom:
		req.occurred.from = parseTime(name, value, true, faults)
	case paramTo:
		req.occurred.to = parseTime(name, value, false, faults)
	case paramRecordedFrom:
		req.recorded.from = parseTime(name, value, true, faults)
	case paramRecordedTo:
		req.recorded.to = parseTime(name, value, false, faults)
	case paramOrder:
		req.ascending = value == orderOldest
		if value != orderOldest && value != orderNewest {
			faults.invalidParam(name, "must be desc (newest first) or asc.")
		}
	case paramLimit:
		req.limit = parseLimit(value, faults)
	case paramTotal:
		req.total = value == "true"
		if value != "true" && value != "false" {
			faults.invalidParam(name, "must be true or false.")
		}
	case paramCursor:
		req.cursor = value
	}
}

func parseLimit(value string, faults *faults) int {
	n, err := strconv.ParseUint(value, 10, 16)
	if err != nil || n < 1 || n > maxPageEvents {
		faults.invalidParam(paramLimit, "must be a whole number from 1 to "+strconv.Itoa(maxPageEvents)+".")
	}
	return int(n)
}

// parseTime reads an RFC 3339 time as microseconds since the Unix epoch, rounded up or down where it has more digits:
// events have none between. Years that ClickHouse has no times for mean the first or last that it has.
func parseTime(name, value string, up bool, faults *faults) *int64 {
	t, err := time.Parse(time.RFC3339Nano, value)
	if err != nil {
		message := "must be an RFC 3339 time, as in 2026-01-31T23:59:59Z"
		if strings.Contains(value, " ") {
			message += "; a + has to be written as %2B"
		}
		faults.invalidParam(name, message+".")
		return nil
	}
	if up {
		t = t.Add(time.Microsecond - 1)
	}
	earliest, latest := time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2299, 12, 31, 0, 0, 0, 0, time.UTC)
	switch {
	case t.Before(earliest):
		t = earliest
	case t.After(latest):
		t = latest
	}
	micros := t.Truncate(time.Microsecond).UnixMicro()
	return &micros
}

// digest returns a hash of the filter, of the order, and of the workspace: what a cursor is bound to.
func (req *pageRequest) digest(workspace [16]byte) [sha256.Size]byte {
	b := append([]byte("immutable/cursor/1\x00"), workspace[:]...)
	text := func(s string) {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	list := func(name string, values []string) {
		if len(values) == 0 {
			return
		}
		text(name)
		b = binary.BigEndian.AppendUint32(b, uint32(len(values)))
		for _, v := range values {
			text(v)
		}
	}
	instant := func(name string, micros *int64) {
		if micros != nil {
			text(name)
			b = binary.BigEndian.AppendUint64(b, uint64(*micros))
		}
	}
	actions := make([]string, len(req.actions))
	for i, p := range req.actions {
		actions[i] = p.text
	}
	list(paramAction, actions)
	for _, name := range columnParams() {
		list(name, req.columns[name])
	}
	list(paramTargetType, req.targetTypes)
	list(paramTargetID, req.targetIDs)
	for _, key := range slices.Sorted(maps.Keys(req.metadata)) {
		list(metadataPrefix+key, req.metadata[key])
	}
	instant(paramFrom, req.occurred.from)
	instant(paramTo, req.occurred.to)
	instant(paramRecordedFrom, req.recorded.from)
	instant(paramRecordedTo, req.recorded.to)
	if req.ascending {
		text(orderOldest)
	}
	return sha256.Sum256(b)
}
