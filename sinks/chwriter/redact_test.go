package chwriter

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// private is an event whose every value that can be erased has "4711" in it.
const private = `{"actor_id":"a-4711","actor_name":"n-4711","actor_type":"t-4711","action":"card.blocked","action_category":"c-4711",
	"resource":"r-4711","resource_id":"i-4711","resource_name":"m-4711","session_id":"s-4711","tenant_id":"e-4711","ip_address":"47.11.47.11",
	"user_agent":"u-4711","idempotency_key":"k-4711","version":7,"targets":[{"type":"card-4711","id":"4711"}],
	"metadata":{"pin":"4711","deep":{"pin":4711,"list":["4711"]},"deep.pin":"x-4711","password":"hunter-4711"}}`

// sealedEvent is an event that the topic has.
type sealedEvent struct {
	*recordpb.Event
	leaf ledger.Hash
}

func (e sealedEvent) key() control.EventID {
	return control.EventID{Workspace: [16]byte(e.GetWorkspace()), Event: [16]byte(e.GetId())}
}

// send produces an event, and what the processor makes with it.
func (r *rig) send(in event.Input) sealedEvent {
	r.tb.Helper()
	records := r.sealer.input(in)
	r.kafka.Produce(r.tb, records...)
	var s recordpb.Sealed
	if err := proto.Unmarshal(records[len(records)-1].Value, &s); err != nil {
		r.tb.Fatal(err)
	}
	return sealedEvent{s.GetEvent(), ledger.Hash(s.GetLeafHash())}
}

// configure puts a redaction onto the config topic.
func (r *rig) configure(id control.EventID, version uint64, paths ...string) {
	r.tb.Helper()
	value, err := proto.Marshal(&recordpb.Config{Version: version, Object: &recordpb.Config_Redaction{
		Redaction: &recordpb.Redaction{Workspace: id.Workspace[:], Event: id.Event[:], Paths: slices.Sorted(slices.Values(paths))},
	}})
	if err != nil {
		r.tb.Fatal(err)
	}
	r.kafka.Produce(r.tb, &kgo.Record{Topic: schemas.TopicConfig, Key: redactionKey(id), Value: value})
}

func redactionKey(id control.EventID) []byte {
	return fmt.Appendf(nil, "redaction/%x/%x", id.Workspace, id.Event)
}

// leaf puts a redaction into the lane of its target.
func (r *rig) leaf(target sealedEvent, paths ...string) sealedEvent {
	r.tb.Helper()
	return r.send(event.Input{
		JSON: fmt.Appendf(nil, `{"actor_id":"key:1","action":"event.redacted","resource":"event","metadata":{"event_id":%q,"paths":["%s"]}}`,
			uuid.UUID(target.GetId()), strings.Join(paths, `","`)),
		Kind: recordpb.Kind_KIND_REDACTION, Lane: &target.Lane,
	})
}

// left is an event's row, joined: its paths that are erased, and its body.
func (r *rig) left(e sealedEvent) (erased []string, body string, err error) {
	r.tb.Helper()
	var text, seed string
	err = r.conn.QueryRow(r.tb.Context(), "SELECT body, seed, disclosure FROM events WHERE workspace = ? AND id = ?",
		string(e.GetWorkspace()), string(e.GetId())).Scan(&body, &seed, &text)
	if err != nil || text == "" {
		return nil, body, err
	}
	stored, err := ledger.ParseDisclosure([]byte(text))
	if err != nil {
		r.tb.Fatal(err)
	}
	all, err := ledger.JoinDisclosure(stored, []byte(body))
	if err != nil {
		r.tb.Fatal(err)
	}
	commitments := make([][32]byte, len(all))
	for i, d := range all {
		if d.Commitment != nil {
			erased = append(erased, d.Path)
			commitments[i] = *d.Commitment
		} else {
			commitments[i] = ledger.SaltedCommitment(*d.Salt, []byte(d.Path), []byte(*d.Value))
		}
	}
	if root := ledger.BodyRoot(commitments); root != [32]byte(e.GetBodyRoot()) || len(all) != int(e.GetFieldCount()) {
		r.tb.Errorf("what is left of %x gives another body root", e.GetId())
	}
	if seed != strings.Repeat("\x00", 16) {
		r.tb.Errorf("the row has the seed %x", seed)
	}
	return erased, body, nil
}

// awaitErased waits until exactly these paths are erased from an event's row.
func (r *rig) awaitErased(e sealedEvent, paths ...string) {
	r.tb.Helper()
	slices.Sort(paths)
	await(r.tb, "waiting for the redaction", func() error {
		erased, body, err := r.left(e)
		if err == nil && !slices.Equal(erased, paths) {
			err = fmt.Errorf("erased is %q, left %s", erased, body)
		}
		return err
	})
}

// found returns where ClickHouse has a text: tables of the database, and what the server keeps of statements.
func (r *rig) found(text string) (tables []string) {
	r.tb.Helper()
	rows, err := r.conn.Query(r.tb.Context(), "SELECT name FROM system.tables WHERE database = currentDatabase()")
	if err != nil {
		r.tb.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	all := []string{"system.mutations"}
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			r.tb.Fatal(err)
		}
		all = append(all, name)
	}
	if err := rows.Err(); err != nil {
		r.tb.Fatal(err)
	}
	if !slices.Contains(all, "events") || !slices.Contains(all, "leaves") {
		r.tb.Fatalf("tables: %q", all)
	}
	for _, name := range append(all, r.logTables()...) {
		if r.count("SELECT count() FROM "+name+" WHERE position(toString(tuple(*)), '"+text+"') > 0") > 0 {
			tables = append(tables, name)
		}
	}
	return tables
}

// logTables are what the server writes of the statements that it is sent.
func (r *rig) logTables() (all []string) {
	for _, name := range []string{"query_log", "text_log", "part_log", "query_views_log", "error_log"} {
		if r.count("SELECT count() FROM system.tables WHERE database = 'system' AND name = '"+name+"'") > 0 {
			all = append(all, "system."+name)
		}
	}
	return all
}

// everyPath is all of private that can be erased, and what the server fills in.
func everyPath(e sealedEvent) (paths []string) {
	all, _, _ := (&event.Content{Body: e.GetBody()}).Fields()
	return slices.DeleteFunc(all, event.Protected)
}

func TestRedaction(t *testing.T) {
	r := newRig(t)
	w := r.start(r.config())
	target := r.send(event.Input{JSON: []byte(private)})
	r.produce(300)
	r.check()
	if got := r.found("4711"); !slices.Contains(got, "events") {
		t.Fatalf("before, it is in %q: nothing could be found", got)
	}

	// One field, with everything around it left.
	r.configure(target.key(), 1, "/metadata/pin")
	first := r.leaf(target, "/metadata/pin")
	r.awaitErased(target, "/metadata/pin")
	for column, want := range map[string]string{
		"actor_id": "a-4711", "target_ids": "['4711']", "seed = toFixedString('', 16)": "1",
		"metadata": "{'deep.list':'4711','deep.pin':'4711','deep.pin':'x-4711','password':'hunter-4711'}",
	} {
		var got string
		if err := r.conn.QueryRow(t.Context(), "SELECT toString("+column+") FROM events WHERE id = ?", string(target.GetId())).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %s, %v; want %s", column, got, err, want)
		}
	}
	// What the statement holds of it: nothing of what is left, or of its salts.
	if got := r.found("hunter"); !slices.Equal(got, []string{"events"}) {
		t.Errorf("what is left is in %q", got)
	}
	var disclosure string
	if err := r.conn.QueryRow(t.Context(), "SELECT disclosure FROM events WHERE id = ?", string(target.GetId())).Scan(&disclosure); err != nil {
		t.Fatal(err)
	}
	stored, err := ledger.ParseDisclosure([]byte(disclosure))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range stored {
		if d.Salt == nil {
			continue
		}
		if got := r.found(fmt.Sprintf("%x", *d.Salt)); !slices.Equal(got, []string{"events"}) {
			t.Errorf("the salt of %s is in %q", d.Path, got)
		}
	}

	// All the others.
	all := everyPath(target)
	r.configure(target.key(), 2, all...)
	r.leaf(target, slices.DeleteFunc(slices.Clone(all), func(path string) bool { return path == "/metadata/pin" })...)
	r.awaitErased(target, all...)
	if got := r.found("4711"); got != nil {
		t.Errorf("it is in %q", got)
	}
	for _, d := range stored {
		if d.Salt == nil || event.Protected(d.Path) {
			continue
		}
		if got := r.found(fmt.Sprintf("%x", *d.Salt)); got != nil {
			t.Errorf("the salt of %s, which is erased, is in %q", d.Path, got)
		}
	}
	if _, body, err := r.left(target); err != nil || strings.ReplaceAll(body, event.FormatTime(time.UnixMicro(target.GetOccurredAt())), "T") !=
		`{"action":"card.blocked","occurred_at":"T","version":7}` {
		t.Errorf("left is %s, %v", body, err)
	}
	if empty := r.count(`SELECT count() FROM events WHERE id = ? AND empty(concat(actor_id, actor_name, actor_type, action_category, resource,
		resource_id, resource_name, session_id, tenant_id, ip_address, user_agent)) AND empty(metadata) AND empty(target_types) AND empty(target_ids)
		AND empty(flags) AND action = 'card.blocked' AND kind = 2`, string(target.GetId())); empty != 1 {
		t.Error("the columns are not empty")
	}
	// The others, the redactions among them, are as they were.
	if n := r.count("SELECT count() FROM events WHERE disclosure != '' OR seed = toFixedString('', 16)"); n != 1 {
		t.Errorf("%d rows are redacted", n)
	}
	if n := r.count("SELECT count() FROM events WHERE kind = 3 AND chain = (SELECT any(chain) FROM events WHERE id = ?)", string(first.GetId())); n != 2 {
		t.Errorf("%d redactions in the chain of the target", n)
	}
	w.awaitReady()
	if n := w.metric("redacted_rows_total"); n != 2 {
		t.Errorf("%v rows counted", n)
	}
	if n := w.metric("redaction_seconds"); n != 2 {
		t.Errorf("%v mutations timed", n)
	}
	if strings.Contains(w.log.String(), "4711") {
		t.Errorf("the log has it:\n%s", w.log)
	}
	w.stop()
	r.checkRebuild(target, all)
}

// checkRebuild writes everything again: what was redacted does not come back.
func (r *rig) checkRebuild(target sealedEvent, erased []string) {
	r.tb.Helper()
	for _, table := range []string{tableLeaves, tableEvents} {
		r.exec("TRUNCATE TABLE " + table)
	}
	r.rebuild(false)
	w := r.start(r.config())
	r.check()
	if got, body, err := r.left(target); err != nil || !slices.Equal(got, erased) {
		r.tb.Errorf("after a rebuild erased is %q, left %s (%v)", got, body, err)
	}
	if n := w.metric("redacted_rows_total"); n != 0 {
		r.tb.Errorf("%v rows were written with what was redacted of them", n)
	}
	w.stop()
}

// A value of four digits is searched for in everything that is left, by all that could have been made of it.
func TestRedactedValueCannotBeGuessed(t *testing.T) {
	r := newRig(t)
	r.start(r.config())
	target := r.send(event.Input{JSON: []byte(`{"actor_id":"a","action":"b","idempotency_key":"k","metadata":{"pin":"4711"}}`)})
	r.configure(target.key(), 1, "/metadata/pin")
	r.leaf(target, "/metadata/pin")
	r.awaitErased(target, "/metadata/pin")
	var disclosure string
	if err := r.conn.QueryRow(t.Context(), "SELECT disclosure FROM events WHERE id = ?", string(target.GetId())).Scan(&disclosure); err != nil {
		t.Fatal(err)
	}
	stored, err := ledger.ParseDisclosure([]byte(disclosure))
	if err != nil {
		t.Fatal(err)
	}
	salts := [][16]byte{{}, [16]byte(target.GetId()), [16]byte(target.GetWorkspace()), [16]byte(target.GetIncarnation()), [16]byte(target.leaf[:])}
	for _, d := range stored {
		if d.Salt != nil {
			salts = append(salts, *d.Salt)
		}
	}
	const path = "/metadata/pin"
	for _, salt := range slices.Clone(salts) {
		salts = append(salts, ledger.Salt(salt, []byte(path)))
	}
	public := []string{}
	for _, d := range stored {
		if d.Commitment != nil {
			public = append(public, fmt.Sprintf("%x", *d.Commitment))
		}
	}
	public = append(public, fmt.Sprintf("%x", target.leaf), fmt.Sprintf("%x", target.GetBodyRoot()), fmt.Sprintf("%x", target.GetId()))
	hits := func(seeds [][16]byte) (found []string) {
		for n := range 10_000 {
			value := fmt.Appendf(nil, `"%04d"`, n)
			for _, salt := range seeds {
				if c := fmt.Sprintf("%x", ledger.SaltedCommitment(salt, []byte(path), value)); slices.Contains(public, c) {
					found = append(found, string(value))
				}
			}
		}
		return found
	}
	if got := hits(salts); got != nil {
		t.Errorf("guessed: %q", got)
	}
	if got := hits([][16]byte{ledger.Salt([16]byte(target.GetSeed()), []byte(path))}); !slices.Equal(got, []string{`"4711"`}) {
		t.Errorf("with the seed, which is gone, %q is found", got)
	}
	// What carried the new content needs the seed too.
	if got := r.found(fmt.Sprintf("%X", target.GetSeed())); got != nil {
		t.Errorf("the seed is in %q", got)
	}
}

// Redactions that the writer comes to hear of in every order, of rows of two months and several lanes, in one batch.
func TestRedactionsInABatch(t *testing.T) {
	r := newRig(t)
	before := r.send(event.Input{JSON: []byte(private)})
	r.sealer.clock = r.sealer.clock.AddDate(0, 1, 0)
	var targets []sealedEvent
	for i := range 20 {
		targets = append(targets, r.send(event.Input{JSON: fmt.Appendf(nil, `{"actor_id":"u%d","action":"x","metadata":{"pin":"4711","n":%d}}`, i, i)}))
	}
	configured := r.send(event.Input{JSON: []byte(strings.Replace(private, "k-4711", "other", 1))}) // another id
	// Its leaf is not there yet.
	r.configure(configured.key(), 1, "/metadata/pin", "/targets")
	twice := targets[0]
	r.leaf(before, "/metadata/pin", "/metadata/nothing", "/action")
	for _, target := range targets {
		r.configure(target.key(), 1, "/metadata/pin")
		r.leaf(target, "/metadata/pin")
	}
	r.leaf(twice, "/actor_id")
	r.leaf(targets[2], "/metadata/nothing") // of which there is nothing to erase
	absent := sealedEvent{Event: proto.CloneOf(before.Event)}
	absent.Id = slices.Repeat([]byte{9}, 16)
	r.leaf(absent, "/metadata/pin")
	other := sealedEvent{Event: proto.CloneOf(targets[1].Event)}
	r.send(event.Input{
		JSON: []byte(`{"actor_id":"key:1","action":"event.redacted","metadata":{"event_id":"nonsense","paths":["/actor_id"]}}`),
		Kind: recordpb.Kind_KIND_REDACTION, Lane: &other.Lane,
	})
	// An event that only says so is no redaction.
	r.send(event.Input{
		JSON: fmt.Appendf(nil, `{"actor_id":"key:1","action":"event.redacted","metadata":{"event_id":%q,"paths":["/actor_id"]}}`,
			uuid.UUID(other.GetId())), Lane: &other.Lane,
	})
	w := r.start(r.config())
	r.awaitErased(before, "/metadata/pin")
	r.awaitErased(configured, "/metadata/pin", "/targets")
	r.awaitErased(twice, "/actor_id", "/metadata/pin")
	for _, target := range targets[1:] {
		r.awaitErased(target, "/metadata/pin")
	}
	r.check()
	await(t, "waiting for the commit", func() error {
		if got, want := fmt.Sprint(r.committed()), fmt.Sprint(r.ends()); got != want {
			return fmt.Errorf("committed %s of %s", got, want)
		}
		return nil
	})
	if n := w.metric("redactions_without_row_total"); n != 1 {
		t.Errorf("%v redactions without a row", n)
	}
	if n := w.metric("unreadable_redactions_total"); n != 1 {
		t.Errorf("%v unreadable redactions", n)
	}
	for _, text := range []string{"redacted event is not in clickhouse", "redaction cannot be read"} {
		if !strings.Contains(w.log.String(), text) {
			t.Errorf("the log does not say: %s", text)
		}
	}
	// One by one, those in the view were inserted redacted, and the rest took few mutations.
	if n := r.count("SELECT count() FROM system.mutations WHERE database = currentDatabase() AND table = 'events'"); n > 8 {
		t.Errorf("%d mutations", n)
	}
}

// An event of the largest size is rewritten too, and of several each alone.
func TestRedactionOfLargeEvents(t *testing.T) {
	r := newRig(t)
	w := r.start(r.config())
	value := strings.Repeat("x\"\n", 10_000) // 60 KB of JSON
	large := fmt.Sprintf(`{"actor_id":"a-4711","action":"b","metadata":{"kept":%q},"targets":[{"type":"t","metadata":{"v":%[1]q}},`+
		`{"type":"t","metadata":{"v":%[1]q}},{"type":"t","metadata":{"v":%[1]q}}]}`, value)
	var targets []sealedEvent
	for range 3 {
		targets = append(targets, r.send(event.Input{JSON: []byte(large)}))
	}
	r.check()
	for _, target := range targets {
		r.leaf(target, "/actor_id")
	}
	for _, target := range targets {
		r.awaitErased(target, "/actor_id")
	}
	if n := r.count("SELECT count() FROM events WHERE metadata['kept'] = ?", value); n != 3 {
		t.Errorf("%d events have what is left", n)
	}
	if n := r.count("SELECT max(length(command)) FROM system.mutations WHERE database = currentDatabase()"); n < 256<<10 || n > 1<<20 {
		t.Errorf("the longest statement has %d bytes", n)
	}
	w.awaitReady()
}

// Somebody has changed the row: it is no event's, and what the ledger knows of it cannot be erased from it.
func TestRedactionOfADamagedRow(t *testing.T) {
	r := newRig(t)
	w := r.start(r.config())
	bodies := []string{"body = '4711'", "disclosure = '4711'", `body = '{"action":"other"}', disclosure = '[{"path":"/action","salt":"00000000000000000000000000000000"},` +
		`{"path":"/tenant_id","salt":"00000000000000000000000000000000"}]'`}
	targets := make([]sealedEvent, len(bodies))
	for i := range bodies {
		targets[i] = r.send(event.Input{JSON: []byte(strings.Replace(private, "k-4711", fmt.Sprint("key ", i), 1))})
	}
	r.check()
	for i, set := range bodies {
		r.exec(fmt.Sprintf("ALTER TABLE events UPDATE %s WHERE id = unhex('%x') SETTINGS mutations_sync = 1", set, targets[i].GetId()))
		r.leaf(targets[i], "/tenant_id")
	}
	await(t, "waiting for the commit", func() error {
		if got, want := fmt.Sprint(r.committed()), fmt.Sprint(r.ends()); got != want {
			return fmt.Errorf("committed %s of %s", got, want)
		}
		return nil
	})
	if n := w.metric("redactions_of_damaged_rows_total"); n != 3 {
		t.Errorf("%v damaged rows counted", n)
	}
	if log := w.log.String(); !strings.Contains(log, "was changed by somebody") || strings.Contains(log, "4711") {
		t.Errorf("log:\n%s", log)
	}
}

// An older backup of ClickHouse has the values again, and Kafka no longer has the redaction.
func TestRedactionOfAnOlderBackup(t *testing.T) {
	r := newRig(t)
	w := r.start(r.config())
	target := r.send(event.Input{JSON: []byte(private)})
	r.check()
	w.stop()
	r.configure(target.key(), 1, "/metadata/pin", "/actor_id")
	w = r.start(r.config())
	r.awaitErased(target, "/actor_id", "/metadata/pin")
	w.stop()
}

// Whoever wrote the rows of a redaction did not come to carry it out, and the group has forgotten where it was.
func TestRedactionThatWasPassed(t *testing.T) {
	r := newRig(t)
	w := r.start(r.config())
	target := r.send(event.Input{JSON: []byte(private)})
	r.leaf(target, "/tenant_id")
	r.awaitErased(target, "/tenant_id")
	w.stop()
	r.exec(fmt.Sprintf("ALTER TABLE events UPDATE tenant_id = 'e-4711', disclosure = '', body = unhex('%x'), seed = unhex('%x') "+
		"WHERE id = unhex('%x') SETTINGS mutations_sync = 1", target.GetBody(), target.GetSeed(), target.GetId()))
	r.rebuild(false)
	w = r.start(r.config())
	r.awaitErased(target, "/tenant_id")
	if n := w.metric("rows_total"); n != 0 {
		t.Errorf("%v rows were written", n)
	}
}

// What was redacted cannot be told: the event is not written, until somebody has removed the record.
func TestHaltsAtARedactionThatCannotBeRead(t *testing.T) {
	r := newRig(t)
	target := r.send(event.Input{JSON: []byte(private)})
	r.kafka.Produce(t, &kgo.Record{Topic: schemas.TopicConfig, Key: redactionKey(target.key()), Value: []byte{0xff}})
	w := r.start(r.config())
	w.awaitHalted("redaction of event " + uuid.UUID(target.GetId()).String())
	if n := r.count("SELECT count() FROM events"); n != 0 {
		t.Errorf("%d rows", n)
	}
	w.stop()
	r.kafka.Produce(t, &kgo.Record{Topic: schemas.TopicConfig, Key: redactionKey(target.key())})
	r.start(r.config())
	r.check()
}

// A mutation that does not end, of an operator for instance, is not joined by others; readiness says so.
func TestRedactionWaitsForMutations(t *testing.T) {
	long(t)
	r := newRig(t)
	cfg := r.config()
	cfg.InsertTimeout = time.Second
	w := r.start(cfg)
	target := r.send(event.Input{JSON: []byte(private)})
	r.check()
	r.exec("ALTER TABLE events UPDATE user_agent = toString(throwIf(1)) WHERE true SETTINGS mutations_sync = 0")
	r.leaf(target, "/tenant_id")
	await(t, "waiting for readiness to say it", func() error {
		if err := w.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "mutations of events in hand") {
			return fmt.Errorf("readiness says: %w", err)
		}
		return nil
	})
	if n := r.count("SELECT count() FROM system.mutations WHERE database = currentDatabase()"); n != 1 {
		t.Errorf("%d mutations", n)
	}
	r.exec("KILL MUTATION WHERE database = currentDatabase() AND NOT is_done")
	r.awaitErased(target, "/tenant_id")
	w.awaitReady()
}

// crashWhileRedacting kills the writer at each step of a redaction; others go on from what it left.
func crashWhileRedacting(t *testing.T, binary string) {
	t.Helper()
	r := newRig(t)
	var targets []sealedEvent
	for i, point := range []string{"chwriter-after-insert:1", "chwriter-before-erase:1", "chwriter-after-erase:1"} {
		target := r.send(event.Input{JSON: []byte(strings.Replace(private, "k-4711", fmt.Sprint("key ", i), 1))})
		targets = append(targets, target)
		r.configure(target.key(), 1, "/metadata/pin")
		r.leaf(target, "/metadata/pin", "/actor_name")
		r.produce(20)
		if err := r.process(binary, point).Wait(); !killed(err) {
			t.Fatalf("%s: the writer ended by itself: %v", point, err)
		}
	}
	cfg := r.config()
	cfg.Instance = "killed"
	r.start(cfg)
	r.check()
	for _, target := range targets {
		r.awaitErased(target, "/actor_name", "/metadata/pin")
	}
	if got := r.found("n-4711"); got != nil {
		t.Errorf("it is in %q", got)
	}
}

// TestRedactionsPileUp sends redactions one after the other: what comes while one is carried out goes together.
func TestRedactionsPileUp(t *testing.T) {
	long(t)
	const n = 300
	r := newRig(t)
	w := r.start(r.config())
	targets := make([]sealedEvent, n)
	for i := range targets {
		targets[i] = r.send(event.Input{JSON: fmt.Appendf(nil, `{"actor_id":"u%d","action":"x","metadata":{"pin":"4711-%d"}}`, i, i)})
	}
	r.check()
	began := time.Now()
	for _, target := range targets {
		r.configure(target.key(), 1, "/metadata/pin")
		r.leaf(target, "/metadata/pin")
	}
	sent := time.Since(began)
	await(t, "waiting for all", func() error {
		if done := r.count("SELECT count() FROM events WHERE disclosure != ''"); done < uint64(n) {
			return fmt.Errorf("%d of %d", done, n)
		}
		return nil
	})
	t.Logf("%d redactions sent in %v, done after %v, with %v mutations", n, sent, time.Since(began), w.metric("redaction_seconds"))
	if most := float64(n) / 5; w.metric("redaction_seconds") > most {
		t.Errorf("%v mutations, more than %v", w.metric("redaction_seconds"), most)
	}
	if got := r.found("4711-"); got != nil {
		t.Errorf("it is in %q", got)
	}
}
