package attacks

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
	"getimmutable.dev/immutable/internal/ledgertest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/verify"
)

// tables is an operator's ClickHouse with a ledger in it.
type tables struct {
	t      *testing.T
	server *clickhousetest.Server
	conn   driver.Conn
	ledger *ledgertest.Ledger
}

func newTables(t *testing.T, l *ledgertest.Ledger) *tables {
	t.Helper()
	server := clickhousetest.Start(t)
	s := &tables{t, server, server.Conn(t), l}
	s.write(l)
	return s
}

// write puts another ledger in place of the one that is there.
func (s *tables) write(l *ledgertest.Ledger) {
	s.t.Helper()
	for _, table := range []string{"events", "leaves", "root_log", "checkpoints"} {
		s.exec("TRUNCATE TABLE %s", table)
	}
	s.ledger = l
	if err := l.Write(s.t.Context(), s.conn); err != nil {
		s.t.Fatal(err)
	}
}

// exec runs a statement; CHAIN stands for the first chain.
func (s *tables) exec(format string, args ...any) {
	s.t.Helper()
	text := strings.ReplaceAll(fmt.Sprintf(format, args...), "CHAIN", fmt.Sprintf("chain = unhex('%x')", s.ledger.Chains[0].ID))
	if strings.HasPrefix(text, "ALTER") {
		text += " SETTINGS mutations_sync = 2"
	}
	if err := s.conn.Exec(s.t.Context(), text); err != nil {
		s.t.Fatalf("%s: %v", text, err)
	}
}

// change is an assignment to a column of the first chain's row with a sequence.
type change struct {
	sequence int
	column   string
	value    string
}

// update makes changes in one statement.
func (s *tables) update(table string, changes ...change) {
	s.t.Helper()
	cases := map[string]string{}
	for _, c := range changes {
		cases[c.column] += fmt.Sprintf("sequence = %d, %s, ", c.sequence, c.value)
	}
	var all []string
	for column, text := range cases {
		all = append(all, fmt.Sprintf("%s = multiIf(%s %s)", column, text, column))
	}
	s.exec("ALTER TABLE %s UPDATE %s WHERE CHAIN", table, strings.Join(all, ", "))
}

// move writes rows of a table anew, with a key column changed.
func (s *tables) move(table, where, replace string) {
	s.t.Helper()
	s.exec("CREATE TABLE moved AS %s", table)
	s.exec("INSERT INTO moved SELECT * REPLACE (%s) FROM (SELECT * FROM %s WHERE %s)", replace, table, where)
	s.exec("ALTER TABLE %s DELETE WHERE %s", table, where)
	s.exec("INSERT INTO %s SELECT * FROM moved", table)
	s.exec("DROP TABLE moved SYNC")
}

// both does something with both tables of the leaves.
func (s *tables) both(format string) {
	for _, table := range []string{"leaves", "events"} {
		s.exec("%s", strings.NewReplacer("INTO TABLE", "INTO "+table, "TABLE", "TABLE "+table, "{}", table).Replace(format))
	}
}

func (s *tables) verify(a *auditor, args ...string) *result {
	s.t.Helper()
	return a.run(append([]string{"clickhouse", "--settle=1ms", "--dsn=" + s.server.DSN()}, args...)...)
}

// TestTables: each row of tampering with the operator's tables has its verdict, place and exit code.
func TestTables(t *testing.T) {
	long(t)
	t.Parallel()
	for _, tc := range []struct {
		name string
		do   func(s *tables)
		want func(c *ledgertest.Chain) []string
	}{
		{"nothing", func(*tables) {}, func(*ledgertest.Chain) []string { return nil }},
		{"1 a byte of a body, a seed, a leaf hash and of each column of a leaf", func(s *tables) {
			s.update("events", change{10, "body", "replace(body, 'curl', 'curm')"}, change{10, "user_agent", "'curm/8.5.0'"},
				change{12, "seed", "toFixedString(unhex('00112233445566778899aabbccddeeff'), 16)"})
			s.update("leaves", change{14, "leaf_hash", "toFixedString(unhex(repeat('ab', 32)), 32)"})
			for _, table := range []string{"leaves", "events"} {
				s.update(table, change{16, "recorded_at", "recorded_at + toIntervalMicrosecond(1)"}, change{18, "kind", "4"}, change{20, "input_offset", "input_offset + 1000"},
					change{22, "input_generation", "1"}, change{24, "input_partition", "toUInt16(input_partition + 1)"})
			}
		}, func(c *ledgertest.Chain) (all []string) {
			for sequence := 10; sequence <= 24; sequence += 2 {
				all = append(all, at(ledger.Modified, c, fmt.Sprint(sequence)))
			}
			return all
		}},
		{"2 stored nodes and the root log", func(s *tables) {
			s.exec("ALTER TABLE leaves UPDATE node = unhex(repeat('ab', 32)) WHERE CHAIN AND sequence = 40")
			s.exec("ALTER TABLE root_log UPDATE node = unhex(repeat('ab', 32)) WHERE entry_index = 2")
			s.exec("ALTER TABLE root_log UPDATE hash = unhex(repeat('ab', 32)) WHERE entry_index = 3")
			s.exec("ALTER TABLE root_log UPDATE type = 'key' WHERE entry_index = 5")
		}, func(c *ledgertest.Chain) []string {
			return []string{"MODIFIED sequence 2 ", "MODIFIED sequence 3 ", "COLUMN MISMATCH sequence 5 ", at(ledger.Modified, c, "40")}
		}},
		{"2 an entry of the root log", func(s *tables) {
			s.exec("ALTER TABLE root_log UPDATE entry = replace(entry, '10:00:1', '10:00:2') WHERE entry_index = 1")
		}, func(*ledgertest.Chain) []string {
			return []string{"COLUMN MISMATCH sequence 1 ", "MODIFIED sequence 1 "}
		}},
		{"3 columns only", func(s *tables) {
			var changes []change
			for k, name := range event.TextFields() {
				changes = append(changes, change{10 + k, name, "'other'"})
			}
			s.update("events", append(changes, change{30, "target_types", "['x', 'team']"}, change{31, "target_ids", "['x', '']"}, change{32, "flags", "[]"},
				change{33, "metadata", "mapUpdate(metadata, map('old_value', '0'))"}, change{34, "metadata", "mapFilter((k, v) -> k != 'old_value', metadata)"},
				change{35, "metadata", "mapUpdate(metadata, map('more', '1'))"}, change{40, "recorded_at", "recorded_at + toIntervalMicrosecond(1)"},
				change{42, "ledger_offset", "ledger_offset + 1"})...)
			s.move("events", "CHAIN AND sequence = 44", "occurred_at - toIntervalMicrosecond(1) AS occurred_at")
			s.move("events", "CHAIN AND sequence = 46", "unhex('00112233445566778899aabbccddeeff') AS id")
		}, func(c *ledgertest.Chain) (all []string) {
			for _, sequence := range []int{10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 30, 31, 32, 33, 34, 35, 40, 42, 44, 46} {
				all = append(all, at(ledger.ColumnMismatch, c, fmt.Sprint(sequence)))
			}
			return all
		}},
		{"4 values swapped, a path renamed", func(s *tables) {
			s.exec("ALTER TABLE events UPDATE actor_id = actor_name, actor_name = actor_id, body = replaceRegexpOne(body, " +
				"'\"actor_id\":(\"[^\"]*\"),\"actor_name\":(\"[^\"]*\")', '\"actor_id\":\\\\2,\"actor_name\":\\\\1') WHERE CHAIN AND sequence = 10")
			s.exec("ALTER TABLE events UPDATE body = replace(body, 'session_id', 'session_ie') WHERE CHAIN AND sequence = 12")
		}, func(c *ledgertest.Chain) []string {
			return []string{at(ledger.Modified, c, "10"), at(ledger.ColumnMismatch, c, "12"), at(ledger.Modified, c, "12")}
		}},
		{"5 the first row", func(s *tables) { s.both("ALTER TABLE DELETE WHERE CHAIN AND sequence = 0") }, func(c *ledgertest.Chain) []string {
			return []string{at(ledger.Missing, c, "0")}
		}},
		{"5 a row in the middle, and a run", func(s *tables) {
			s.both("ALTER TABLE DELETE WHERE CHAIN AND sequence IN (30, 50, 51, 52)")
		}, func(c *ledgertest.Chain) []string {
			return []string{at(ledger.Missing, c, "30"), at(ledger.Missing, c, "50..52")}
		}},
		{"5 rows of one table", func(s *tables) {
			s.exec("ALTER TABLE events DELETE WHERE CHAIN AND sequence IN (30, 31)")
			s.exec("ALTER TABLE leaves DELETE WHERE CHAIN AND sequence = 50")
		}, func(c *ledgertest.Chain) []string {
			return []string{at(ledger.Missing, c, "30..31"), at(ledger.Missing, c, "50")}
		}},
		{"5 the last row of one table", func(s *tables) {
			s.exec("ALTER TABLE events DELETE WHERE CHAIN AND sequence = 100")
		}, func(c *ledgertest.Chain) []string { return []string{at(ledger.Missing, c, "100")} }},
		{"6 two rows swapped", func(s *tables) {
			for _, table := range []string{"leaves", "events"} {
				s.move(table, "CHAIN AND sequence IN (30, 70)", "toUInt64(100 - sequence) AS sequence")
			}
		}, func(c *ledgertest.Chain) []string {
			return []string{at(ledger.Reordered, c, "30"), at(ledger.Reordered, c, "70")}
		}},
		{"6 a block rotated", func(s *tables) {
			for _, table := range []string{"leaves", "events"} {
				s.move(table, "CHAIN AND sequence >= 30 AND sequence < 40", "toUInt64(30 + (sequence - 30 + 1) % 10) AS sequence")
			}
		}, func(c *ledgertest.Chain) []string { return []string{at(ledger.Reordered, c, "30..39")} }},
		{"6 the contents of two rows swapped", func(s *tables) {
			s.move("events", "CHAIN AND sequence IN (30, 70)", "toUInt64(100 - sequence) AS sequence")
		}, func(c *ledgertest.Chain) []string {
			return []string{at(ledger.ColumnMismatch, c, "30"), at(ledger.Modified, c, "30"), at(ledger.ColumnMismatch, c, "70"), at(ledger.Modified, c, "70")}
		}},
		{"7 a copy with a new sequence", func(s *tables) {
			s.both("INSERT INTO TABLE SELECT * REPLACE (toUInt64(101) AS sequence) FROM (SELECT * FROM {} WHERE CHAIN AND sequence = 30)")
		}, func(c *ledgertest.Chain) []string { return []string{at(ledger.Inserted, c, "101")} }},
		{"7 a copy with a sequence far beyond", func(s *tables) {
			s.both("INSERT INTO TABLE SELECT * REPLACE (toUInt64(9000000000000000000) AS sequence) FROM (SELECT * FROM {} WHERE CHAIN AND sequence = 30)")
		}, func(c *ledgertest.Chain) []string { return []string{at(ledger.Inserted, c, "9000000000000000000")} }},
		{"7 another leaf of the same sequence", func(s *tables) {
			s.both("INSERT INTO TABLE SELECT * REPLACE (toUInt64(60) AS sequence) FROM (SELECT * FROM {} WHERE CHAIN AND sequence = 30)")
		}, func(c *ledgertest.Chain) []string { return []string{at(ledger.Inserted, c, "60")} }},
		{"7 another event of the same sequence", func(s *tables) {
			s.exec("INSERT INTO events SELECT * REPLACE (toUInt64(60) AS sequence) FROM (SELECT * FROM events WHERE CHAIN AND sequence = 30)")
		}, func(c *ledgertest.Chain) []string { return []string{at(ledger.Inserted, c, "60")} }},
		{"7 a row of a chain that is not there", func(s *tables) {
			s.exec("INSERT INTO events SELECT * REPLACE (unhex('00112233445566778899aabbccddeeff') AS chain) FROM (SELECT * FROM events WHERE CHAIN AND sequence = 30)")
		}, func(*ledgertest.Chain) []string { return []string{"INSERTED chain 00112233445566778899aabbccddeeff "} }},
		{"8 a row twice, in both tables or in one", func(s *tables) {
			s.both("INSERT INTO TABLE SELECT * FROM {} WHERE CHAIN AND sequence = 30")
			s.exec("INSERT INTO leaves SELECT * FROM leaves WHERE CHAIN AND sequence = 50")
			s.exec("INSERT INTO events SELECT * FROM events WHERE CHAIN AND sequence = 60")
		}, func(c *ledgertest.Chain) []string {
			return []string{at(ledger.Duplicate, c, "30"), at(ledger.Duplicate, c, "50"), at(ledger.Duplicate, c, "60")}
		}},
		{"16 rows said to be of another workspace", func(s *tables) {
			s.exec("ALTER TABLE leaves UPDATE workspace = unhex('00112233445566778899aabbccddeeff') WHERE CHAIN AND sequence = 30")
		}, func(c *ledgertest.Chain) []string { return []string{fmt.Sprintf("CROSS-CHAIN chain %x ", c.ID)} }},
		{"20 a value erased without a redaction", func(s *tables) {
			leaf := s.ledger.Chains[0].Leaves[30]
			leaf.Erase("/metadata/old_value")
			text, err := ledgertest.Disclosed(leaf.Disclosure)
			if err != nil {
				s.t.Fatal(err)
			}
			s.exec("ALTER TABLE events UPDATE body = '%s', disclosure = '%s', seed = unhex(repeat('00', 16)), metadata = mapFilter((k, v) -> k != 'old_value', metadata) WHERE CHAIN AND sequence = 30",
				leaf.Body, text)
		}, func(c *ledgertest.Chain) []string { return []string{at(ledger.Withheld, c, "30")} }},
		{"20 values erased under a redaction of another event, and of another path", func(s *tables) {
			l := newLedger()
			c := l.Chains[0]
			l.Redact(c, 31, "/metadata/old_value")
			l.Redact(c, 32, "/metadata/old_value")
			l.Epoch()
			whole := newLedger().Chains[0].Leaves[32]
			c.Leaves[32].Body, c.Leaves[32].Seed, c.Leaves[32].Disclosure = whole.Body, whole.Seed, nil
			c.Leaves[30].Erase("/metadata/old_value")
			c.Leaves[32].Erase("/actor_id")
			s.write(l)
		}, func(c *ledgertest.Chain) []string {
			return []string{at(ledger.Withheld, c, "30"), at(ledger.Redacted, c, "31"), at(ledger.Withheld, c, "32")}
		}},
		{"22 a body that is not canonical", func(s *tables) {
			s.update("events", change{30, "body", `replace(body, '"action":', '"action": ')`}, change{32, "body", `replace(body, '"actor_id"', '"actor\\u005fid"')`},
				change{34, "body", `replace(body, '[1,true', '[-0,true')`})
		}, func(c *ledgertest.Chain) []string {
			return []string{at(ledger.NonCanonical, c, "30"), at(ledger.NonCanonical, c, "32"), at(ledger.ColumnMismatch, c, "34"), at(ledger.NonCanonical, c, "34")}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newTables(t, newLedger())
			tc.do(s)
			exit := verify.ExitTampered
			want := tc.want(s.ledger.Chains[0])
			switch {
			case want == nil:
				exit = verify.ExitVerified
			case strings.HasPrefix(want[0], string(ledger.Withheld)):
				exit = verify.ExitUndecided
			}
			r := s.verify(newAuditor(t))
			r.want(t, exit, want...)
		})
	}
}
