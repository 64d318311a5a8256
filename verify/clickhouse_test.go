package verify_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/internal/ledgertest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/verify"
)

func TestMain(m *testing.M) { os.Exit(clickhousetest.Main(m)) }

// tables is an installation's ClickHouse with a ledger in it.
type tables struct {
	t      *testing.T
	server *clickhousetest.Server
	conn   driver.Conn
	ledger *ledgertest.Ledger
}

// newLedger has chains of two workspaces, five epochs and a change of the key.
func newLedger() *ledgertest.Ledger {
	l := ledgertest.New()
	for lane := range uint32(2) {
		l.Chain(1, 1, lane, 2)
	}
	l.Chain(2, 1, 0, 1)
	for epoch := range 5 {
		for i, c := range l.Chains {
			l.Events(c, 20+7*i)
		}
		l.Epoch()
		if epoch == 2 {
			l.Rotate(ledgertest.NewKey(ledgertest.Origin, 2))
		}
	}
	return l
}

func newTables(t *testing.T, l *ledgertest.Ledger) *tables {
	t.Helper()
	server := clickhousetest.Start(t)
	s := &tables{t, server, server.Conn(t), l}
	if err := l.Write(t.Context(), s.conn); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *tables) exec(format string, args ...any) {
	s.t.Helper()
	text := fmt.Sprintf(format, args...)
	if strings.HasPrefix(text, "ALTER") {
		text += " SETTINGS mutations_sync = 2"
	}
	if err := s.conn.Exec(s.t.Context(), text); err != nil {
		s.t.Fatalf("%s: %v", text, err)
	}
}

func trust(tb testing.TB, lines ...string) *ledger.Trust {
	tb.Helper()
	parsed, err := ledger.ParseTrust([]byte(strings.Join(lines, "\n")))
	if err != nil {
		tb.Fatal(err)
	}
	return parsed
}

func (s *tables) config() verify.Config {
	return verify.Config{
		Trust: trust(s.t, ledgertest.NewKey(ledgertest.Origin, 1).Verifier()), Now: s.ledger.Now().Add(time.Minute), MaxAge: 10 * time.Minute,
		Settle: time.Millisecond, EvidenceDir: s.t.TempDir(), Workers: 2,
	}
}

func (s *tables) verify(cfg verify.Config) *verify.Report {
	s.t.Helper()
	r, err := verify.ClickHouse(s.t.Context(), cfg, verify.Tables{ClickHouse: s.server.Config()})
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// short is a fault without its detail.
func short(f *ledger.Fault) string {
	text := f.String()
	text, _, _ = strings.Cut(text, ":")
	return text
}

func faults(r *verify.Report) (all []string) {
	for _, f := range r.Faults {
		all = append(all, short(f))
	}
	return all
}

func TestClickHouse(t *testing.T) {
	s := newTables(t, newLedger())
	cfg := s.config()
	cfg.MemoryFile = filepath.Join(t.TempDir(), "memory.json")
	for range 2 {
		r := s.verify(cfg)
		if r.Exit != verify.ExitVerified || !r.Verified || r.Level != verify.TamperDetecting || len(r.Faults) > 0 {
			t.Fatal(r.Text())
		}
		if r.Chains != 3 || r.Leaves != uint64(5*(20+27+34)+3) || r.Entries != 7 || r.Epochs != 5 {
			t.Error(r.Text())
		}
	}
	// What comes next is consistent with what is remembered.
	s.exec("TRUNCATE TABLE events")
	s.exec("TRUNCATE TABLE leaves")
	s.exec("TRUNCATE TABLE root_log")
	s.exec("TRUNCATE TABLE checkpoints")
	s.ledger.Events(s.ledger.Chains[0], 10)
	s.ledger.Epoch()
	s.ledger.Events(s.ledger.Chains[0], 3)
	if err := s.ledger.Write(t.Context(), s.conn); err != nil {
		t.Fatal(err)
	}
	cfg.Now = s.ledger.Now()
	r := s.verify(cfg)
	want := []string{fmt.Sprintf("UNSEALED TAIL chain %x sequence 111..113", s.ledger.Chains[0].ID)}
	if r.Exit != verify.ExitVerified || !slices.Equal(faults(r), want) {
		t.Error(r.Text())
	}
}

// What is found is not lost where something else cannot be asked: Kafka, or the tables from some time on.
func TestFindingsOutliveOtherFailures(t *testing.T) {
	tampered := func(t *testing.T) *tables {
		t.Helper()
		l := newLedger()
		l.Events(l.Chains[0], 3) // which no epoch covers
		s := newTables(t, l)
		s.exec("ALTER TABLE events UPDATE actor_id = 'mallory' WHERE sequence = 30")
		return s
	}
	check := func(t *testing.T, r *verify.Report, err error, undecided ...string) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if r.Exit != verify.ExitTampered || r.Found[ledger.ColumnMismatch] != 3 {
			t.Error(r.Text())
		}
		for _, want := range undecided {
			if !slices.ContainsFunc(r.Undecided, func(is string) bool { return strings.HasPrefix(is, want) }) {
				t.Errorf("it does not say that it has not decided %q:\n%s", want, r.Text())
			}
		}
	}
	t.Run("kafka", func(t *testing.T) {
		s := tampered(t)
		cluster := kafkatest.Start(t)
		cluster.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.ListOffsets}, Err: kerr.InvalidRequest, Count: -1})
		r, err := verify.ClickHouse(t.Context(), s.config(), verify.Tables{ClickHouse: s.server.Config(), Kafka: cluster.Config})
		check(t, r, err, "whether 3 leaves that no signed epoch covers yet were sealed: asking kafka: ",
			"whether every record of the events topic has a leaf: asking kafka: ")
	})
	t.Run("clickhouse", func(t *testing.T) {
		s := tampered(t)
		cfg := s.config()
		cfg.Progress = func(leaves, of uint64) {
			if leaves == of {
				s.exec("RENAME TABLE leaves TO gone")
			}
		}
		r, err := verify.ClickHouse(t.Context(), cfg, verify.Tables{ClickHouse: s.server.Config()})
		check(t, r, err, "leaves that no signed epoch covers yet: ", "the places in the input of the leaves of ledger partition ", "events that were sealed twice: ")
	})
	t.Run("stopped", func(t *testing.T) {
		s := tampered(t)
		cfg := s.config()
		ctx, cancel := context.WithCancel(t.Context())
		cfg.Progress = func(leaves, of uint64) {
			if leaves == of {
				cancel()
			}
		}
		if r, err := verify.ClickHouse(ctx, cfg, verify.Tables{ClickHouse: s.server.Config()}); !errors.Is(err, context.Canceled) {
			t.Error(err, r)
		}
	})
}

// Who has the key writes a chain anew, and goes on with the same root log: no consistency proof sees it, the epochs before do.
func TestRewrittenUnderOneRootLog(t *testing.T) {
	l := newLedger()
	c := l.Chains[0]
	c.Leaves[30].Body = ledgertest.Body(99)
	c.Reseal(30)
	l.Events(c, 5)
	l.Epoch()
	s := newTables(t, l)
	cfg := s.config()
	cfg.MemoryFile = filepath.Join(t.TempDir(), "memory.json")
	r := s.verify(cfg)
	if r.Exit != verify.ExitTampered || !slices.Equal(faults(r), []string{"FORKED"}) {
		t.Error(r.Text())
	}
	if _, err := os.Stat(cfg.MemoryFile); !os.IsNotExist(err) {
		t.Errorf("what was tampered with is remembered: %v", err)
	}
}

// What a run has found to be tampered with is not what the next one goes by.
func TestTamperingIsNotRemembered(t *testing.T) {
	l := newLedger()
	honest := newLedger()
	l.Chains[0].Leaves[30].Body = ledgertest.Body(99)
	l.Chains[0].Reseal(30)
	s := newTables(t, l)
	cfg := s.config()
	cfg.MemoryFile = filepath.Join(t.TempDir(), "memory.json")
	if r := s.verify(cfg); r.Exit != verify.ExitTampered {
		t.Fatal(r.Text())
	}
	s.exec("TRUNCATE TABLE events")
	s.exec("TRUNCATE TABLE leaves")
	s.exec("TRUNCATE TABLE root_log")
	s.exec("TRUNCATE TABLE checkpoints")
	if err := honest.Write(t.Context(), s.conn); err != nil {
		t.Fatal(err)
	}
	if r := s.verify(cfg); r.Exit != verify.ExitVerified {
		t.Error(r.Text())
	}
}

// An epoch that is ahead of the clock is as old as anybody likes.
func TestEpochFromTheFuture(t *testing.T) {
	s := newTables(t, newLedger())
	cfg := s.config()
	cfg.Now = s.ledger.Now().Add(-time.Hour)
	if r := s.verify(cfg); r.Exit != verify.ExitUndecided || len(r.Faults) > 0 || !strings.Contains(r.Text(), "ahead of this machine's clock") {
		t.Error(r.Text())
	}
}

// What was written by somebody else writes no line of the report, and moves no cursor.
func TestReportIsPrintable(t *testing.T) {
	r := &verify.Report{Faults: []*ledger.Fault{{
		Verdict: ledger.Modified, EventID: "x\x1b[2K\nVERIFIED (tamper-evident): proof.json", Detail: "\rd",
	}}}
	if text := r.Text(); strings.Contains(text, "\x1b") || strings.Contains(text, "\r") || strings.Contains(text, "\nVERIFIED (tamper-evident)") {
		t.Errorf("%q", text)
	}
}

// A chain of which nothing is left in the tables: the map of the epoch counts it, and only who remembers it can name it.
func TestChainGone(t *testing.T) {
	s := newTables(t, newLedger())
	cfg := s.config()
	memory := cfg
	memory.MemoryFile = filepath.Join(t.TempDir(), "memory.json")
	if r := s.verify(memory); r.Exit != verify.ExitVerified {
		t.Fatal(r.Text())
	}
	gone := s.ledger.Chains[1].ID
	for _, table := range []string{"leaves", "events"} {
		s.exec("ALTER TABLE %s DELETE WHERE chain = unhex('%x')", table, gone)
	}
	const count = "MISSING: epoch 1 covers 3 chains, the tables have leaves of 2"
	if r := s.verify(cfg); r.Exit != verify.ExitTampered || !strings.Contains(r.Text(), count) {
		t.Error(r.Text())
	}
	named := fmt.Sprintf("ROLLED BACK chain %x: it had 136 leaves", gone)
	if r := s.verify(memory); r.Exit != verify.ExitTampered || !strings.Contains(r.Text(), count) || !strings.Contains(r.Text(), named) {
		t.Errorf("want %s: %s", named, r.Text())
	}
}

// Tables of a replica that is behind the one that was read before: what is not there yet is waited for.
func TestLaggingTables(t *testing.T) {
	for name, behind := range map[string]string{"checkpoints": "size > 6", "leaves": "chain = unhex('%x') AND sequence > 100"} {
		t.Run(name, func(t *testing.T) {
			s := newTables(t, newLedger())
			cfg := s.config()
			cfg.MemoryFile = filepath.Join(t.TempDir(), "memory.json")
			if r := s.verify(cfg); r.Exit != verify.ExitVerified {
				t.Fatal(r.Text())
			}
			if strings.Contains(behind, "%") { // of a partition in which another chain has the last leaf
				behind = fmt.Sprintf(behind, s.ledger.Chains[1].ID)
			}
			s.exec("CREATE TABLE late ENGINE = Memory AS SELECT * FROM %s WHERE %s", name, behind)
			s.exec("ALTER TABLE %s DELETE WHERE %s", name, behind)
			if r := s.verify(cfg); r.Exit != verify.ExitTampered {
				t.Fatal(r.Text())
			}
			cfg.Settle = time.Minute
			caughtUp := make(chan error, 1)
			time.AfterFunc(300*time.Millisecond, func() {
				caughtUp <- s.conn.Exec(context.WithoutCancel(t.Context()), fmt.Sprintf("INSERT INTO %s SELECT * FROM late", name))
			})
			r := s.verify(cfg)
			if err := <-caughtUp; err != nil || r.Exit != verify.ExitVerified {
				t.Errorf("%v: %s", err, r.Text())
			}
		})
	}
}

// However few bytes of rows are read at once, the same is verified; a row that is larger than they may be is a finding, and the others are verified.
func TestSlices(t *testing.T) {
	if testing.Short() {
		t.Skip("takes more than a second or two")
	}
	s := newTables(t, newLedger())
	for bytes, exit := range map[uint64]int{20 << 10: verify.ExitVerified, 100: verify.ExitTampered} {
		r, err := verify.ClickHouse(t.Context(), s.config(), verify.Tables{ClickHouse: s.server.Config(), SliceBytes: bytes})
		if err != nil || r.Exit != exit || exit == verify.ExitVerified && r.Leaves != 408 {
			t.Errorf("%d: %v, %.3000s", bytes, err, r.Text())
		}
		if exit == verify.ExitTampered && !strings.Contains(r.Text(), "more bytes than any event has") {
			t.Errorf("%.3000s", r.Text())
		}
	}
}

// A node of the root log that is no hashes is named, and ends nothing.
func TestRootLogNode(t *testing.T) {
	s := newTables(t, newLedger())
	s.exec("ALTER TABLE root_log UPDATE node = 'x' WHERE entry_index = 3")
	if r := s.verify(s.config()); r.Exit != verify.ExitTampered || len(r.Faults) != 1 || short(r.Faults[0]) != "MODIFIED sequence 3" {
		t.Error(r.Text())
	}
}
