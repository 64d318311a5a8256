package query

import (
	"encoding/binary"
	"encoding/hex"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/google/uuid"

	"getimmutable.dev/immutable/ledger"
)

// statement is a SELECT that is being written. Values only ever enter it through bind.
type statement struct {
	text strings.Builder
	args []any // clickhouse.Named
}

// selectFrom begins every statement of this package on rows of a workspace: whatever is appended can only narrow them down.
// What is appended must be one or several of " AND <condition>", then clauses.
func selectFrom(columns, table string, workspace [16]byte) *statement {
	s := new(statement)
	s.write("SELECT ", columns, " FROM ", table, " WHERE workspace = ", s.bindID(workspace))
	return s
}

// selectPublic begins a statement on what everybody may know: the tables root_log and checkpoints, and no other, in which there
// is nothing of any workspace but hashes. What is appended is as with selectFrom.
func selectPublic(columns, table string) *statement {
	s := new(statement)
	s.write("SELECT ", columns, " FROM ", table, " WHERE true")
	return s
}

// selectChains begins a statement on the leaves of all workspaces, which the map of all chains is made of. What it returns may be chain
// ids, sizes and hashes, and leaves this package only as the hashes of a proof in the map.
func selectChains(columns string) *statement {
	s := new(statement)
	s.write("SELECT ", columns, " FROM leaves WHERE true")
	return s
}

// joinOr returns conditions of which any is enough.
func joinOr(conditions []string) string { return strings.Join(conditions, " OR ") }

func (s *statement) write(parts ...string) {
	for _, p := range parts {
		s.text.WriteString(p)
	}
}

// and adds a condition, which is put in brackets.
func (s *statement) and(condition ...string) {
	s.write("\n  AND (")
	s.write(condition...)
	s.write(")")
}

// bind returns the placeholder of a value that travels beside the statement; kind is its ClickHouse type.
func (s *statement) bind(kind string, value any) string {
	name := "p" + strconv.Itoa(len(s.args))
	s.args = append(s.args, clickhouse.Named(name, value))
	return "{" + name + ":" + kind + "}"
}

func (s *statement) bindID(id [16]byte) string {
	return "unhex(" + s.bind("String", hex.EncodeToString(id[:])) + ")"
}

func (s *statement) bindTime(micros int64) string {
	return "fromUnixTimestamp64Micro(" + s.bind("Int64", micros) + ", 'UTC')"
}

func (s *statement) bindTexts(values []string) string { return s.bind("Array(String)", values) }

// pageColumns are what scanRow reads.
const pageColumns = "id, occurred_at, recorded_at, chain, sequence, body"

// limits are what one statement may cost.
type limits struct {
	timeout time.Duration
	rows    int64 // to read
	bytes   int64 // to return
}

// settings ends a statement. One thread: a page reads few granules, and threads that have nothing to do cost it and
// its neighbours more than they bring.
func (s *statement) settings(l limits) *statement {
	s.write("\nSETTINGS max_threads = 1, max_memory_usage = 2000000000, max_execution_time = ",
		strconv.FormatFloat(l.timeout.Seconds(), 'f', -1, 64))
	if l.rows > 0 {
		s.write(", max_rows_to_read = ", strconv.FormatInt(l.rows, 10))
	}
	if l.bytes > 0 {
		s.write(", max_result_bytes = ", strconv.FormatInt(l.bytes, 10))
	}
	return s
}

// pageStatement returns up to limit+1 events in order, beginning after the position: the one too many says that there
// are more.
func pageStatement(workspace [16]byte, req *pageRequest, after *position, limit int, l limits) *statement {
	s := selectFrom(pageColumns, "events", workspace)
	direction, past, beyond := "DESC", "<", "<="
	if req.ascending {
		direction, past, beyond = "ASC", ">", ">="
	}
	if after != nil {
		// The comparison of the tuple alone would read the workspace from its beginning: it does not narrow down the
		// primary key, the comparison of occurred_at does.
		t, id := s.bindTime(after.at), s.bindID(after.id)
		s.and("occurred_at ", beyond, " ", t)
		s.and("(occurred_at, id) ", past, " (", t, ", ", id, ")")
	}
	s.where(&req.filter)
	s.write("\nORDER BY occurred_at ", direction, ", id ", direction)
	s.write("\nLIMIT ", s.bind("UInt32", limit+1))
	return s.settings(l)
}

// countStatement counts what the filter finds, cursor or not.
func countStatement(workspace [16]byte, f *filter, l limits) *statement {
	s := selectFrom("count()", "events", workspace)
	s.where(f)
	return s.settings(l)
}

// recordedIn are the spans of recorded_at in which an event is looked for by its id, one after the other until it is found. A
// UUIDv7 begins with the millisecond in which its event was recorded, and the index on recorded_at leaves the filter on ids a
// few granules of all. The last span is open: an event whose recorded_at was changed is still found.
func recordedIn(id [16]byte) []span {
	if uuid.UUID(id).Version() != 7 {
		return []span{{}}
	}
	from := int64(binary.BigEndian.Uint64(id[:8])>>16) * 1000
	to := from + 999
	return []span{{&from, &to}, {}}
}

// byID begins a statement for the event of an id, among those recorded in a span of time.
func byID(columns string, workspace, id [16]byte, recorded span) *statement {
	s := selectFrom(columns, "events", workspace)
	s.between("recorded_at", recorded)
	s.and("id = ", s.bindID(id))
	s.write("\nLIMIT 1")
	return s
}

// leafKey is the primary key of leaves.
type leafKey struct {
	chain    ledger.ChainID
	sequence uint64
}

// leafKeys is a ClickHouse Array(Tuple(FixedString(16), UInt64)).
type leafKeys []leafKey

// String writes the array as ClickHouse reads it from a parameter.
func (keys leafKeys) String() string {
	b := make([]byte, 0, 2+len(keys)*(4*16+24))
	b = append(b, '[')
	for i, k := range keys {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '(')
		b = appendFixed(b, k.chain)
		b = append(b, ',')
		b = strconv.AppendUint(b, k.sequence, 10)
		b = append(b, ')')
	}
	return string(append(b, ']'))
}

// appendFixed appends a FixedString(16).
func appendFixed(b []byte, v [16]byte) []byte {
	const digits = "0123456789abcdef"
	b = append(b, '\'')
	for _, c := range v {
		b = append(b, '\\', 'x', digits[c>>4], digits[c&15])
	}
	return append(b, '\'')
}

// eventIDs is a ClickHouse Array(FixedString(16)).
type eventIDs [][16]byte

// String writes the array as ClickHouse reads it from a parameter.
func (ids eventIDs) String() string {
	b := make([]byte, 0, 2+len(ids)*(4*16+3))
	b = append(b, '[')
	for i, id := range ids {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendFixed(b, id)
	}
	return string(append(b, ']'))
}

func (s *statement) bindIDs(ids eventIDs) string { return s.bind("Array(FixedString(16))", ids) }

// targetColumns are what a redaction has to know of an event.
const targetColumns = "kind, recorded_at, chain, body, disclosure, _part"

// partsStatement returns, of a part of events, whether it is in use, how many parts are not any more that have blocks of it, and when the last of them
// is due to be removed: after old_parts_lifetime, by a cleanup that comes within max_cleanup_delay_period. It reads no rows.
func partsStatement(name string, l limits) *statement {
	s := new(statement)
	const setting = "(SELECT toUInt32(value) FROM system.merge_tree_settings WHERE name = '"
	s.write("SELECT countIf(active AND name = now.name), countIf(NOT active), max(if(active, toDateTime(0, 'UTC'), toTimeZone(remove_time, 'UTC'))) + ",
		setting, "old_parts_lifetime') + ", setting, "max_cleanup_delay_period')",
		"\nFROM system.parts AS p, (SELECT name, partition_id, min_block_number, max_block_number FROM system.parts",
		"\n  WHERE database = currentDatabase() AND table = 'events' AND name = ", s.bind("String", name), ") AS now",
		"\nWHERE p.database = currentDatabase() AND p.table = 'events' AND p.partition_id = now.partition_id",
		"\n  AND p.min_block_number <= now.max_block_number AND p.max_block_number >= now.min_block_number")
	return s.settings(l)
}

// erasedStatement returns the disclosures of those events that are there.
func erasedStatement(workspace [16]byte, ids eventIDs, l limits) *statement {
	s := selectFrom("id, disclosure", "events", workspace)
	s.and("id IN ", s.bindIDs(ids))
	return s.settings(l)
}

// leavesStatement returns the hashes of leaves.
func leavesStatement(workspace [16]byte, keys leafKeys, l limits) *statement {
	s := selectFrom("chain, sequence, leaf_hash", "leaves", workspace)
	s.and("(chain, sequence) IN ", s.bind("Array(Tuple(FixedString(16), UInt64))", keys))
	return s.settings(l)
}

// where adds the filter's conditions.
func (s *statement) where(f *filter) {
	s.between("occurred_at", f.occurred)
	s.between("recorded_at", f.recorded)
	s.action(f.actions)
	for _, column := range columnParams() {
		if values := f.columns[column]; len(values) > 0 {
			s.and(column, " IN ", s.bindTexts(values))
		}
	}
	s.targets(f.targetTypes, f.targetIDs)
	for _, key := range slices.Sorted(maps.Keys(f.metadata)) {
		s.metadata(key, f.metadata[key])
	}
	if len(f.concealed) > 0 {
		s.and("id NOT IN ", s.bindIDs(f.concealed))
	}
}

func (s *statement) between(column string, within span) {
	if within.from != nil {
		s.and(column, " >= ", s.bindTime(*within.from))
	}
	if within.to != nil {
		s.and(column, " <= ", s.bindTime(*within.to))
	}
}

// action writes patterns that stand for one text as equality, others as LIKE.
func (s *statement) action(patterns []pattern) {
	var exact, alternatives []string
	for _, p := range patterns {
		if only, ok := p.Exact(); ok {
			exact = append(exact, only)
			continue
		}
		alternatives = append(alternatives, "action LIKE "+s.bind("String", p.Like()))
	}
	if len(exact) > 0 {
		alternatives = append(alternatives, "action IN "+s.bindTexts(exact))
	}
	if len(alternatives) > 0 {
		s.and(strings.Join(alternatives, " OR "))
	}
}

// targets asks for one target that has both, where both are given.
func (s *statement) targets(types, ids []string) {
	switch {
	case len(types) > 0 && len(ids) > 0:
		s.and("arrayExists((t, i) -> has(", s.bindTexts(types), ", t) AND has(", s.bindTexts(ids), ", i), ",
			"target_types, target_ids)")
	case len(types) > 0:
		s.and("hasAny(target_types, ", s.bindTexts(types), ")")
	case len(ids) > 0:
		s.and("hasAny(target_ids, ", s.bindTexts(ids), ")")
	}
}

// metadata asks for one pair. An element access would read the first of several pairs with that key; the first two
// conditions say nothing new, but the bloom filters understand them.
func (s *statement) metadata(key string, values []string) {
	k, v := s.bind("String", key), s.bindTexts(values)
	s.and("has(mapKeys(metadata), ", k, ") AND hasAny(mapValues(metadata), ", v, ")",
		" AND arrayExists((k, v) -> k = ", k, " AND has(", v, ", v), mapKeys(metadata), mapValues(metadata))")
}
