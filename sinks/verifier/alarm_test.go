package verifier

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"getimmutable.dev/immutable/internal/notarytest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// TestNoAlarm has one installation go through what is no fault.
func TestNoAlarm(t *testing.T) {
	long(t)
	t.Parallel()
	r := newRig(t, Config{HistoryLeaves: 250, SliceLeaves: 64, WithheldWait: time.Hour}).opened()
	r.once() // nothing is there yet
	r.silent()

	c := r.chain(1, 0, 1)
	r.ledger.Events(c, 200)
	// Redactions come at the end: of two targets in another part of the chain, and of one in theirs.
	r.ledger.Events(c, 100)
	r.ledger.Redact(c, 10, "/actor_name")
	r.ledger.Redact(c, 11, "/actor_name", "/metadata/reason")
	r.ledger.Redact(c, 270, "/ip_address")
	// One was redacted in two steps.
	for _, path := range []string{"/actor_name", "/session_id"} {
		r.ledger.Seal(c, ledger.KindRedaction, fmt.Appendf(nil, `{"action":"event.redacted","actor_id":"usr_1","metadata":{"event_id":%q,"paths":[%q]},`+
			`"occurred_at":"2026-11-24T09:59:00.000000Z"}`, uuid.UUID(c.Leaves[12].ID), path))
		r.ledger.Events(c, 60)
	}
	c.Leaves[12].Erase("/actor_name", "/session_id")
	r.epoch()
	r.write()
	for range 4 {
		r.once()
	}
	r.silent()
	if n := r.value("immutable_verifier_history_passes_total", ""); n < 1 {
		t.Errorf("%v passes", n)
	}

	// A chain that is newer than the newest epoch, and leaves that are.
	r.ledger.Events(r.chain(2, 0, 1), 5)
	r.ledger.Events(c, 30)
	r.write()
	for range 4 {
		r.once()
	}
	r.silent()

	// The epoch is there before the rows are: they are not waited for, and verified when they have come.
	r.ledger.Events(c, 30)
	r.epoch()
	r.setWritten(0)
	r.once()
	r.silent()
	if n := r.value("immutable_verifier_behind_chains", ""); n != 1 {
		t.Errorf("%v chains are behind, want 1", n)
	}
	before := r.value("immutable_verifier_leaves_total", "newest")
	r.write()
	r.once()
	if n := r.value("immutable_verifier_leaves_total", "newest") - before; n < 60 {
		t.Errorf("%v leaves were verified once they were there", n)
	}
	r.silent()

	// An event is erased before its redaction is in the tables.
	c.Leaves[20].Erase("/actor_name")
	r.write()
	for range 4 {
		r.once()
	}
	r.silent()
	r.cfg.WithheldWait = time.Nanosecond
	for range 2 {
		r.once()
	}
	if got := places(r.reported(1)); !slices.Equal(got, []string{"WITHHELD 20"}) {
		t.Errorf("found %q", got)
	}
}

func (r *rig) setWritten(offset int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for p := range r.writtenTo {
		r.writtenTo[p] = offset
	}
}

// TestUnderWay: rows that come between the first look and the second are no fault.
func TestUnderWay(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{}).opened()
	c := r.chain(1, 0, 1)
	r.ledger.Events(c, 50)
	r.epoch()
	r.write()
	r.exec("CREATE TABLE kept AS events ENGINE = Memory")
	r.exec("INSERT INTO kept SELECT * FROM events WHERE sequence = 30")
	r.delete("events", "sequence = 30")
	a, err := r.anchors.read(t.Context(), r.admin)
	if err != nil {
		t.Fatal(err)
	}
	one := newRun(r.Verifier, a)
	defer one.close()
	if err := one.verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(one.found) == 0 {
		t.Fatal("the missing row was not found")
	}
	r.exec("INSERT INTO events SELECT * FROM kept")
	if err := one.confirm(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.silent()
	if n := r.value("immutable_verifier_unconfirmed_total", ""); n == 0 {
		t.Error("nothing was taken back")
	}
}

// TestRebalance: what is found in a partition that another instance owns by then is its business.
func TestRebalance(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{}).opened()
	c := r.chain(1, 0, 1)
	r.ledger.Events(c, 50)
	r.epoch()
	r.write()
	r.update("events", "actor_name = 'Eve'", "sequence = 30")
	calls := 0
	r.mu.Lock()
	r.asked = func() {
		if calls++; calls == 2 { // once when the run begins, then after the part
			delete(r.writtenTo, int32(c.Partition))
		}
	}
	r.mu.Unlock()
	r.once()
	r.silent()
	if n := r.value("immutable_verifier_results_dropped_total", ""); n == 0 {
		t.Error("no result was dropped")
	}
	// Back, and lost again between the first look and the second.
	r.mu.Lock()
	r.writtenTo[int32(c.Partition)], calls = 1<<40, 0
	r.asked = func() {
		if calls++; calls == 4 {
			delete(r.writtenTo, int32(c.Partition))
		}
	}
	r.mu.Unlock()
	r.once()
	r.silent()
	r.mu.Lock()
	r.writtenTo[int32(c.Partition)], r.asked = 1<<40, nil
	r.mu.Unlock()
	r.once()
	if got := places(r.reported(1)); !slices.Equal(got, []string{"COLUMN MISMATCH 30"}) {
		t.Errorf("found %q", got)
	}
}

// TestLog tampers with the root log and its checkpoints.
func TestLog(t *testing.T) {
	long(t)
	t.Parallel()
	r := newRig(t, Config{}).opened()
	r.ledger.Events(r.chain(1, 0, 1), 20)
	for range 300 {
		r.ledger.Epoch()
	}
	r.epoch()
	for _, tt := range []struct {
		name, sql string
		want      ledger.Verdict
	}{
		{"an entry's hash", "ALTER TABLE root_log UPDATE hash = reverse(hash) WHERE entry_index = 298", ledger.Modified},
		{"a node", "ALTER TABLE root_log UPDATE node = reverse(node) WHERE entry_index = 255", ledger.Modified},
		{"an entry deleted", "ALTER TABLE root_log DELETE WHERE entry_index = 299", ledger.Missing},
		{"a checkpoint's root", "ALTER TABLE checkpoints UPDATE root = reverse(root) WHERE size = 302", ledger.ColumnMismatch},
		{
			"a checkpoint's signature", "ALTER TABLE checkpoints UPDATE note = concat(substring(note, 1, length(note) - 9), 'AAAAAAA=\n') WHERE size = 302",
			ledger.WrongKey,
		},
	} {
		r.write()
		r.once()
		if n := r.value("immutable_verifier_failing_chains", ""); n != 0 {
			t.Errorf("before %s: %v chains fail", tt.name, n)
		}
		before := r.value("immutable_verifier_faults_total", string(tt.want))
		r.told = newTold(100)
		r.exec("%s", tt.sql)
		r.once()
		if n := r.value("immutable_verifier_faults_total", string(tt.want)) - before; n < 1 {
			t.Errorf("%s was not found", tt.name)
		}
		if n := r.value("immutable_verifier_failing_chains", ""); n != 1 {
			t.Errorf("%s: %v chains fail", tt.name, n)
		}
	}
	if n := r.value("immutable_verifier_events_left_out_total", ""); n == 0 {
		t.Error("faults of no workspace were not counted")
	}
	// A state of the chains that is not what the epoch states.
	r.write()
	c := r.ledger.Chains[0]
	head := ledger.Head{Size: 1, Range: []ledger.Hash{c.Leaves[0].Hash}}
	root := head.Root()
	notarytest.Commit(t, r.kafka, r.record(schemas.TopicNotaryState, fmt.Sprintf("%x", c.ID), &recordpb.NotaryChain{Head: &recordpb.ChainHead{
		Chain: c.ID[:], Workspace: c.Workspace[:], Incarnation: c.Incarnation[:], Lane: c.Lane, Lanes: c.Lanes, Size: 1, Root: root[:],
		Range: bytesOf(head.Range),
	}}))
	before := r.value("immutable_verifier_faults_total", string(ledger.Modified))
	if err := r.run(t.Context()); err == nil {
		t.Error("chains that do not make the map went through")
	}
	if n := r.value("immutable_verifier_faults_total", string(ledger.Modified)) - before; n != 1 {
		t.Errorf("%v faults, want 1", n)
	}
	// One that cannot be read is no fault, and no verification.
	notarytest.Commit(t, r.kafka, &kgo.Record{Topic: schemas.TopicNotaryState, Key: []byte("log"), Value: []byte{0xff}})
	if err := r.run(t.Context()); err == nil {
		t.Error("a record that cannot be read was read")
	}
}

// TestWholeChain: a tail that was cut off, a row beyond the end, a stored node, and rows of chains that do not exist.
func TestWholeChain(t *testing.T) {
	long(t)
	t.Parallel()
	r := newRig(t, Config{SliceLeaves: 100, MaxEvents: 2}).opened()
	for i := range byte(6) {
		r.ledger.Events(r.chain(i, 0, 1), 300)
	}
	r.epoch()
	r.write()
	of := func(i int) string { return fmt.Sprintf("chain = unhex('%x')", r.ledger.Chains[i].ID) }
	for _, table := range []string{"events", "leaves"} {
		r.delete(table, of(0)+" AND sequence >= 290")
		r.copyRow(table, "sequence + 5000 AS sequence", of(1)+" AND sequence = 299")
	}
	r.update("leaves", "node = reverse(node)", of(2)+" AND sequence = 255")
	r.copyRow("events", "unhex('ffffffffffffffffffffffffffffffff') AS chain", of(3)+" AND sequence = 7")
	r.copyRow("events", "unhex('aa770000000000000000000000000000') AS workspace", of(4)+" AND sequence = 7")
	// More bytes than an event can have.
	r.cfg.SliceBytes = 4 << 20
	fat := strings.Repeat("repeat('x', 1000000), ", 5)
	r.copyRow("events", "concat("+strings.TrimSuffix(fat, ", ")+") AS body", of(5)+" AND sequence = 8")
	for range 2 {
		r.once()
	}
	var got []string
	for k := range r.told.keys {
		got = append(got, fmt.Sprintf("%x %s %d %d", k.chain[:2], k.verdict, k.first, k.last))
	}
	slices.Sort(got)
	at := func(i int, text string) string { return fmt.Sprintf("%x %s", r.ledger.Chains[i].ID[:2], text) }
	for _, want := range []string{
		at(0, "TRUNCATED 290 300"), at(1, "INSERTED 5299 5299"), at(2, "MODIFIED 255 255"), "ffff INSERTED 7 7", at(4, "CROSS-CHAIN 7 7"),
		at(5, "MODIFIED 8 8"),
	} {
		if !slices.Contains(got, want) {
			t.Errorf("%s was not found, but %q", want, got)
		}
	}
	// Two events of faults, and one for each other workspace about those that are left over.
	events := r.reported(int(r.value("immutable_verifier_events_total", "")))
	more := 0
	for _, e := range events {
		if slices.Contains(e.GetMetadataKeys(), "more_faults") {
			more++
		}
	}
	if len(events)-more != 2 || more < 4 {
		t.Errorf("%d events, %d of them about more", len(events), more)
	}
	if n := r.value("immutable_verifier_events_left_out_total", ""); n < 4 {
		t.Errorf("%v faults are left out", n)
	}
}

// proxy stands before ClickHouse.
type proxy struct {
	net.Listener

	mu     sync.Mutex
	conns  []net.Conn
	refuse bool
	wg     sync.WaitGroup
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{Listener: l}
	p.wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			p.mu.Lock()
			if err != nil || p.refuse {
				_ = in.Close()
				p.mu.Unlock()
				continue
			}
			p.conns = append(p.conns, in, out)
			p.mu.Unlock()
			for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
				p.wg.Go(func() {
					_, _ = io.Copy(way[0], way[1])
					_ = way[0].Close()
				})
			}
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		p.cut(true)
		p.wg.Wait()
	})
	return p
}

// cut ends all connections, and refuses new ones or not.
func (p *proxy) cut(refuse bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = refuse
	for _, c := range p.conns {
		_ = c.Close()
	}
	p.conns = nil
}

// TestOutage runs the verifier as a service: ClickHouse goes away in the middle of a run, and Kafka before the event of a fault is written.
func TestOutage(t *testing.T) {
	long(t)
	t.Parallel()
	r := newRig(t, Config{RetryAfter: 10 * time.Millisecond})
	dsn, err := url.Parse(r.server.DSN())
	if err != nil {
		t.Fatal(err)
	}
	p := newProxy(t, dsn.Host)
	dsn.Host = p.Addr().String()
	r.cfg.ClickHouse.DSN = dsn.String()
	c := r.chain(1, 0, 1)
	r.ledger.Events(c, 50)
	r.epoch()
	r.write()
	r.update("events", "actor_name = 'Eve'", "sequence = 30")
	first := true
	r.mu.Lock()
	r.asked = func() {
		// After the first part was verified, and before it is looked at again.
		if len(r.again) > 0 && first {
			first = false
			p.cut(true)
		}
	}
	r.mu.Unlock()
	// Kafka takes no event until the fault has been found.
	var once sync.Once
	found := make(chan struct{})
	r.kafka.Fake.ControlKey(0, func(kmsg.Request) (kmsg.Response, error, bool) {
		r.kafka.Fake.KeepControl()
		select {
		case <-found:
			return nil, nil, false
		default:
			once.Do(func() { close(found) })
			return nil, io.ErrUnexpectedEOF, true
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	r.await("runs fail", func() bool { return r.value("immutable_verifier_run_errors_total", "") > 1 })
	if n := r.value("immutable_verifier_faults_total", ""); n != 0 {
		t.Errorf("an outage made %v faults", n)
	}
	p.cut(false)
	r.await("the event is written", func() bool { return r.value("immutable_verifier_events_total", "") > 0 })
	runs := r.value("immutable_verifier_leaves_total", "again")
	r.await("more runs", func() bool { return r.value("immutable_verifier_leaves_total", "again") > runs+200 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	records := r.kafka.Consume(t, schemas.TopicEvents, 1)
	if len(records) != 1 || r.value("immutable_verifier_events_total", "") != 1 || r.value("immutable_verifier_faults_total", "") != 1 {
		t.Errorf("%v events of %v faults", r.value("immutable_verifier_events_total", ""), r.value("immutable_verifier_faults_total", ""))
	}
	if age := r.value("immutable_verifier_run_age_seconds", ""); age < 0 || age > deadline.Seconds() {
		t.Errorf("the last run is %v s old", age)
	}
}

func (r *rig) await(what string, done func() bool) {
	r.t.Helper()
	timeout := time.After(deadline)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-timeout:
			r.t.Fatalf("%s: not within %v", what, deadline)
		}
	}
}

// TestConfig: every limit is held.
func TestConfig(t *testing.T) {
	r := newRig(t, Config{})
	for _, tt := range []struct {
		want string
		cfg  Config
	}{
		{"interval", Config{Interval: time.Millisecond}},
		{"newest leaves", Config{NewestLeaves: -1}},
		{"history leaves", Config{HistoryLeaves: -1}},
		{"slice leaves", Config{SliceLeaves: 10_000}},
		{"slice bytes", Config{SliceBytes: 1}},
		{"settle", Config{Settle: time.Hour}},
		{"withheld wait", Config{WithheldWait: 48 * time.Hour}},
		{"run timeout", Config{RunTimeout: time.Millisecond}},
		{"statement timeout", Config{StatementTimeout: time.Hour}},
		{"retry after", Config{RetryAfter: 2 * time.Hour}},
		{"priority", Config{Priority: 1000}},
		{"events", Config{MaxEvents: 5000}},
		{"faults", Config{MaxFaults: 1}},
		{"parts again", Config{MaxAgain: 5000}},
		{"drain timeout", Config{DrainTimeout: time.Hour}},
	} {
		tt.cfg.Kafka, tt.cfg.ClickHouse = r.cfg.Kafka, r.cfg.ClickHouse
		if err := tt.cfg.Validate(); err == nil || !strings.Contains(err.Error(), "verifier: "+tt.want+" is ") {
			t.Errorf("%s: %v", tt.want, err)
		}
	}
}
