package chwriter

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/go-json-experiment/json"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/ledger"
)

const (
	// maxErasedRows bounds the rows that one statement rewrites.
	maxErasedRows = 1_000
	// maxErasedBytes is the size of bodies from which a statement takes in no more rows, because with replication it has to
	// fit into one node of Keeper: 1 MiB, if it was not told otherwise. An event of the largest size, alone, makes a
	// statement of 500 KiB; one that consists of quotation marks, of twice that.
	maxErasedBytes = 256 << 10
	// mutationPoll is how often ClickHouse is asked whether the mutations that it has in hand are done.
	mutationPoll = 200 * time.Millisecond
)

// eraser rewrites the rows of redacted events, one statement at a time: each makes ClickHouse write the changed columns of
// whole parts anew.
type eraser struct {
	// turn holds one token.
	turn    chan struct{}
	conn    driver.Conn // set by Writer.Run
	metrics *metrics
}

// erasure has the paths of what is to be erased of events.
type erasure map[control.EventID][]string

// row is an event's row as a redaction changes it.
type row struct {
	id      control.EventID
	part    uint32
	content event.Content
	stored  string // disclosure, verbatim
	left    *event.Content
}

// unerased are events of which nothing could be erased.
type unerased struct {
	// missing have no row.
	missing []control.EventID
	// damaged have a row that is no event's: somebody has changed it.
	damaged map[control.EventID]bool
}

// erase erases fields of events from their rows. When it returns no error, ClickHouse has rewritten every row that it has, on
// this replica, and has taken down to do so on the others. It may be repeated at any time, and after a crash at any step:
// it begins by looking at what there is.
func (e *eraser) erase(ctx context.Context, what erasure) (not unerased, err error) {
	select {
	case e.turn <- struct{}{}:
		defer func() { <-e.turn }()
	case <-ctx.Done():
		return not, ctx.Err()
	}
	not.damaged = map[control.EventID]bool{}
	for chunk := range slices.Chunk(slices.Collect(maps.Keys(what)), maxErasedRows) {
		if err := e.eraseChunk(ctx, what, chunk, &not); err != nil {
			return not, err
		}
	}
	return not, nil
}

func (e *eraser) eraseChunk(ctx context.Context, what erasure, ids []control.EventID, not *unerased) error {
	var before []control.EventID
	for first := true; ; first = false {
		left, missing, err := e.left(ctx, what, ids, not)
		if err != nil {
			return err
		}
		if first {
			not.missing = append(not.missing, missing...)
		}
		if len(left) == 0 {
			return nil
		}
		// Rows that a mutation of another writer is about to change are not changed once more, and mutations do not pile up.
		if err := e.awaitMutations(ctx); err != nil {
			return err
		}
		rows, err := e.read(ctx, what, left, not)
		if err != nil {
			return err
		}
		if len(rows) == 0 {
			return nil // they have been rewritten meanwhile, or have no such fields
		}
		if slices.Equal(before, idsOf(rows)) {
			return fmt.Errorf("%d redacted rows are as they were before the statement that rewrites them", len(rows))
		}
		before = idsOf(rows)
		if err := e.rewrite(ctx, rows); err != nil {
			return err
		}
		e.metrics.erased.Add(float64(len(rows)))
	}
}

func idsOf(rows []row) []control.EventID {
	ids := make([]control.EventID, len(rows))
	for i := range rows {
		ids[i] = rows[i].id
	}
	return ids
}

// left returns which of the events have a row that still has something that is to be erased, and which have no row.
func (e *eraser) left(
	ctx context.Context, what erasure, ids []control.EventID, not *unerased,
) (left, missing []control.EventID, err error) {
	found := make(map[control.EventID]bool, len(ids))
	rows, err := e.conn.Query(ctx, "SELECT workspace, id, disclosure FROM events WHERE (workspace, id) IN ("+tuples(ids)+")")
	if err != nil {
		return nil, nil, fmt.Errorf("looking for redacted rows: %w", err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var id control.EventID
		var disclosure string
		if err := rows.Scan(&id.Workspace, &id.Event, &disclosure); err != nil {
			return nil, nil, fmt.Errorf("looking for redacted rows: %w", err)
		}
		found[id] = true
		done, err := erased(disclosure, what[id])
		if err != nil {
			not.damaged[id] = true
		} else if !done {
			left = append(left, id)
		}
	}
	if err := rows.Err(); err != nil {
		return nil, nil, fmt.Errorf("looking for redacted rows: %w", err)
	}
	for _, id := range ids {
		if !found[id] {
			missing = append(missing, id)
		}
	}
	return left, missing, nil
}

// erased reports whether a row with this disclosure has nothing left of the fields at paths.
func erased(disclosure string, paths []string) (bool, error) {
	if disclosure == "" {
		return false, nil
	}
	stored, err := ledger.ParseDisclosure([]byte(disclosure))
	if err != nil {
		return false, err
	}
	return !slices.ContainsFunc(stored, func(d ledger.Disclosure) bool {
		return d.Commitment == nil && slices.Contains(paths, d.Path) && !event.Protected(d.Path)
	}), nil
}

// read returns rows of one part that are to be rewritten, with what is left of them, as many as one statement takes.
func (e *eraser) read(ctx context.Context, what erasure, ids []control.EventID, not *unerased) ([]row, error) {
	rows, err := e.conn.Query(ctx, "SELECT workspace, id, part, body, seed, disclosure FROM events WHERE (workspace, id) IN ("+
		tuples(ids)+") ORDER BY part, workspace, id")
	if err != nil {
		return nil, fmt.Errorf("reading redacted rows: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var all []row
	size := 0
	for rows.Next() {
		var r row
		if err := rows.Scan(&r.id.Workspace, &r.id.Event, &r.part, &r.content.Body, &r.content.Seed, &r.stored); err != nil {
			return nil, fmt.Errorf("reading redacted rows: %w", err)
		}
		if len(all) > 0 && (size+len(r.content.Body) > maxErasedBytes || r.part != all[0].part) {
			break
		}
		changes, err := r.redact(what[r.id])
		if err != nil {
			not.damaged[r.id] = true
		} else if changes {
			all, size = append(all, r), size+len(r.content.Body)
		}
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading redacted rows: %w", err)
	}
	return all, nil
}

// redact sets what is left of the row, and reports whether that is less than there is.
func (r *row) redact(paths []string) (changes bool, err error) {
	if r.stored != "" {
		if r.content.Disclosure, err = ledger.ParseDisclosure([]byte(r.stored)); err != nil {
			return false, err
		}
	}
	whole := &r.content
	if r.left, err = whole.Redact(paths); err != nil {
		return false, err
	}
	return r.left != whole, nil
}

// awaitMutations waits until ClickHouse has no mutation of events in hand: ours from before a restart, another writer's,
// or an operator's.
func (e *eraser) awaitMutations(ctx context.Context) error {
	tick := time.NewTicker(mutationPoll)
	defer tick.Stop()
	for {
		var unfinished uint64
		err := e.conn.QueryRow(ctx, "SELECT count() FROM system.mutations WHERE database = currentDatabase() AND table = 'events' "+
			"AND NOT is_done").Scan(&unfinished)
		if err != nil {
			return fmt.Errorf("asking for mutations: %w", err)
		}
		if unfinished == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("clickhouse has %d mutations of events in hand, see system.mutations: %w", unfinished, ctx.Err())
		}
	}
}

// rewrite has ClickHouse rewrite rows of one part, and waits until this replica has.
//
// A mutation's statement stays: in system.mutations, in a file beside the parts, in Keeper, in logs. So it must hold nothing
// of the rows' content: what is left of an event today may be redacted tomorrow, and the salts of what is left would give
// an erased value away. It therefore carries the new content encrypted, under a key that only the row itself holds and
// that this very mutation erases: of a row that was never redacted its seed, of another the salt of a field that is being
// erased. Where a row is not, or no longer, the one that was read, it does not decrypt, and the row stays as it is.
func (e *eraser) rewrite(ctx context.Context, rows []row) error {
	text, err := statement(rows)
	if err != nil {
		return err
	}
	begun := time.Now()
	ctx = clickhouse.Context(ctx, clickhouse.WithSettings(clickhouse.Settings{"mutations_sync": 1, "max_query_size": 16 << 20}))
	if err := e.conn.Exec(ctx, text); err != nil {
		return fmt.Errorf("rewriting %d redacted rows: %w", len(rows), err)
	}
	e.metrics.eraseSeconds.Observe(time.Since(begun).Seconds())
	return nil
}

// sealedRow is what a statement carries of one row, encrypted.
type sealedRow struct {
	Body       string `json:"body"`
	Disclosure string `json:"disclosure"`
	// Erased are the columns that become empty.
	Erased []string `json:"erased"`
	// Keys and Values are those of the column metadata.
	Keys   []string `json:"keys"`
	Values []string `json:"values"`
}

// emptied returns the columns that erased fields were in, but for body, and for metadata, which is written as a whole.
func emptied(fields []ledger.Disclosure) (columns []string) {
	for _, d := range fields {
		name := strings.TrimPrefix(d.Path, "/")
		switch {
		case d.Commitment == nil:
		case name == event.FieldTargets:
			columns = append(columns, "target_types", "target_ids")
		case name == event.FieldFlags, slices.ContainsFunc(textColumns[:], func(t textColumn) bool { return t.name == name }):
			columns = append(columns, name)
		}
	}
	return columns
}

const eraseDomain = "immutable/erase/1\x00"

// statement returns the ALTER that rewrites rows.
func statement(rows []row) (string, error) {
	iv := make([]byte, 12)
	_, _ = rand.Read(iv) // it never fails: the program ends instead
	var names, contents, offsets, empty []string
	for i := range rows {
		r := &rows[i]
		secret, offset := r.secret()
		plain, columns, err := r.plain()
		if err != nil {
			return "", fmt.Errorf("redacting event %x: %w", r.id.Event, err)
		}
		key := sha256.Sum256([]byte(eraseDomain + secret))
		block, err := aes.NewCipher(key[:])
		if err != nil {
			return "", fmt.Errorf("redacting event %x: %w", r.id.Event, err)
		}
		gcm, err := cipher.NewGCM(block)
		if err != nil {
			return "", fmt.Errorf("redacting event %x: %w", r.id.Event, err)
		}
		names = append(names, fmt.Sprintf("'%X%X'", r.id.Workspace, r.id.Event))
		contents = append(contents, "'"+base64.StdEncoding.EncodeToString(gcm.Seal(nil, iv, plain, nil))+"'")
		offsets = append(offsets, fmt.Sprint(offset))
		empty = append(empty, columns...)
	}
	in := "(workspace, id) IN (" + tuples(idsOf(rows)) + ")"
	var s strings.Builder
	// x is a row's number among those here, s the text with its secret, p what is decrypted: nothing for any other row.
	fmt.Fprintf(&s, "ALTER TABLE events UPDATE disclosure = if((if(%s, ifNull(tryDecrypt('aes-256-gcm', "+
		"base64Decode(arrayElement([%s], indexOf([%s], hex(concat(workspace, id))) AS x)), SHA256(concat(unhex('%x'), "+
		"if(disclosure = '', lower(hex(seed)), substring(disclosure, arrayElement([%s], x), 32)))), unhex('%x')), ''), '') AS p) = '', "+
		"disclosure, JSONExtractString(p, 'disclosure'))",
		in, strings.Join(contents, ","), strings.Join(names, ","), eraseDomain, strings.Join(offsets, ","), iv)
	s.WriteString(", body = if(p = '', body, JSONExtractString(p, 'body')), seed = if(p = '', seed, toFixedString('', 16))")
	s.WriteString(", metadata = if(p = '', metadata, CAST((JSONExtract(p, 'keys', 'Array(String)'), " +
		"JSONExtract(p, 'values', 'Array(String)')), 'Map(LowCardinality(String), String)'))")
	slices.Sort(empty)
	for _, column := range slices.Compact(empty) {
		none := "''"
		if column == "target_types" || column == "target_ids" || column == "flags" {
			none = "[]"
		}
		fmt.Fprintf(&s, ", %s = if(has(JSONExtract(p, 'erased', 'Array(String)'), '%s'), %s, %s)", column, column, none, column)
	}
	fmt.Fprintf(&s, " IN PARTITION %d WHERE %s", rows[0].part, in)
	return s.String(), nil
}

// secret returns what the row holds and will not hold once it is what is left: in hexadecimal, and where it begins in the
// row's disclosure, from 1 on; 0 for the seed.
func (r *row) secret() (secret string, offset int) {
	if r.content.Disclosure == nil {
		return hex.EncodeToString(r.content.Seed[:]), 0
	}
	for i, d := range r.content.Disclosure {
		if d.Commitment == nil && r.left.Disclosure[i].Commitment != nil {
			secret = hex.EncodeToString(d.Salt[:])
			return secret, strings.Index(r.stored, secret) + 1
		}
	}
	return "", 0 // nothing is erased, and no row is read for that
}

// plain returns what a statement carries of the row, and the columns that become empty in it.
func (r *row) plain() (plain []byte, columns []string, err error) {
	disclosure, err := ledger.EncodeDisclosure(r.left.Disclosure)
	if err != nil {
		return nil, nil, err
	}
	derived, err := event.ColumnsOf(r.left.Body)
	if err != nil {
		return nil, nil, err
	}
	columns = emptied(r.left.Disclosure)
	plain, err = json.Marshal(sealedRow{
		Body: string(r.left.Body), Disclosure: string(disclosure), Erased: columns,
		Keys: texts(derived.MetadataKeys), Values: texts(derived.MetadataValues),
	})
	return plain, columns, err
}

func texts(list [][]byte) []string {
	all := make([]string, len(list))
	for i, b := range list {
		all[i] = string(b)
	}
	return all
}

// tuples writes events as a list of (workspace, id).
func tuples(ids []control.EventID) string {
	var s strings.Builder
	for i, id := range ids {
		if i > 0 {
			s.WriteByte(',')
		}
		fmt.Fprintf(&s, "(unhex('%x'),unhex('%x'))", id.Workspace, id.Event)
	}
	return s.String()
}
