package ledger

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
)

// forkOfLog is the evidence of two checkpoints, with the subtrees of the larger log.
func forkOfLog(t *testing.T, smaller *testLog, size uint64, larger *testLog, largerSize uint64) *LogFork {
	t.Helper()
	f := &LogFork{Origin: testOrigin, Detail: "d", FoundAt: testStart}
	for i, l := range []*testLog{smaller, larger} {
		at := []uint64{size, largerSize}[i]
		f.Checkpoints[i] = string(l.checkpoint(t, at, l.key()))
		for _, index := range l.changes {
			if index < at {
				f.Keys[i] = append(f.Keys[i], string(l.entries[index]))
			}
		}
	}
	if size == largerSize {
		return f
	}
	var head Head
	factory := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	rest := factory.NewEmptyRange(size)
	for i, text := range larger.entries[:largerSize] {
		h := EntryHash(text)
		if uint64(i) < size {
			head.AppendHash(h)
		} else if err := rest.Append(h[:], nil); err != nil {
			t.Fatal(err)
		}
	}
	f.Range = head.Range
	for _, h := range rest.Hashes() {
		f.Rest = append(f.Rest, Hash(h))
	}
	return f
}

// Two checkpoints of which one is the beginning of the other convict nobody.
func TestLogFork(t *testing.T) {
	made := func(body string) *testLog {
		l := newTestLog(t)
		c := l.chain(t)
		for i := range 7 {
			c.event(t, KindEvent, strings.Replace(testBody, "4711", body+string(rune('a'+i)), 1))
			if l.epoch(t); i == 3 {
				l.rotate(t, newTestKey(testOrigin, 5))
			}
		}
		return l
	}
	l, other := made("x"), made("y")
	last := l.Size
	trust := mustTrust(t, newTestLog(t).key().vkey()) // the first key: the second one follows from it
	for _, tc := range []struct {
		name    string
		smaller *testLog
		size    uint64
		larger  *testLog
		spoil   func(f *LogFork)
		want    string // part of the error, "" where it convicts
	}{
		{"of two sizes", l, last - 2, other, func(*LogFork) {}, ""},
		{"of one size", l, last, other, func(*LogFork) {}, ""},
		{"the beginning", l, last - 2, l, func(*LogFork) {}, "is the beginning of the newer one"},
		{"one twice", l, last, l, func(*LogFork) {}, "the two checkpoints are one"},
		{"the larger one first", l, last - 2, other, func(f *LogFork) {
			f.Checkpoints[0], f.Checkpoints[1] = f.Checkpoints[1], f.Checkpoints[0]
			f.Range = make([]Hash, 2)
		}, "range: 2 hashes for size 9"},
		{"no range", l, last - 2, other, func(f *LogFork) { f.Range = nil }, "range: 0 hashes for size 7"},
		{"another range", l, last - 2, other, func(f *LogFork) { f.Range[0][0] ^= 1 }, "range and rest give root"},
		{"no rest", l, last - 2, other, func(f *LogFork) { f.Rest = nil }, "rest: "},
		{"another rest", l, last - 2, other, func(f *LogFork) { f.Rest[0][0] ^= 1 }, "range and rest give root"},
		{"the honest log's range", l, last - 2, other, func(f *LogFork) {
			f.Range = forkOfLog(t, l, last-2, l, last).Range
		}, "is the beginning of the newer one"},
		{"a range of one size", l, last, other, func(f *LogFork) { f.Range = make([]Hash, 1) }, "between checkpoints of one size"},
		{"a rest of one size", l, last, other, func(f *LogFork) { f.Rest = make([]Hash, 1) }, "between checkpoints of one size"},
		{"another origin", l, last, other, func(f *LogFork) {
			f.Origin, f.Keys = "example.com/other", [2][]string{}
			f.Checkpoints = [2]string{string(l.checkpoint(t, last, l.keys[0])), string(other.checkpoint(t, last, l.keys[0]))}
		}, `first checkpoint: invalid proof: it is of log "`},
		{"no keys", l, last - 2, other, func(f *LogFork) { f.Keys[1] = nil }, "second checkpoint: invalid proof: WRONG KEY"},
		{"no keys of the first", l, last - 2, other, func(f *LogFork) { f.Keys[0] = nil }, "first checkpoint: invalid proof: WRONG KEY"},
		{"a key before its time", l, 3, other, func(f *LogFork) {
			f.Checkpoints[0] = string(l.checkpoint(t, 3, l.key()))
			f.Keys[0] = f.Keys[1]
		}, "first checkpoint: invalid proof: KEY OUT OF RANGE"},
		{"too many keys", l, last, other, func(f *LogFork) { f.Keys[0] = slices.Repeat(f.Keys[0][:1], maxKeyChanges+1) }, "1001 key changes, at most"},
		{"an epoch as a key change", l, last, other, func(f *LogFork) { f.Keys[0] = []string{string(l.entries[1])} }, "key change: "},
		{"no checkpoint", l, last, other, func(f *LogFork) { f.Checkpoints[1] = "" }, "second checkpoint: invalid proof: INVALID PROOF"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := forkOfLog(t, tc.smaller, tc.size, tc.larger, last)
			tc.spoil(f)
			text, err := f.Encode()
			if err != nil {
				t.Fatal(err)
			}
			read, err := ParseLogFork(text)
			if err != nil {
				t.Fatal(err)
			}
			err = read.Verify(trust, testStart.Add(time.Hour))
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want it to say %q", err, tc.want)
			}
		})
	}
	if err := forkOfLog(t, l, last, other, last).Verify(mustTrust(t, newTestKey(testOrigin, 9).vkey()), testStart); err == nil || !strings.Contains(err.Error(), "WRONG KEY") {
		t.Errorf("of a log that is not believed: %v", err)
	}
	for _, text := range []string{"", `{"format":"immutable/chain-fork/1"}`, `{"key":1}`, strings.Repeat(" ", MaxLogForkBytes+1)} {
		if f, err := ParseLogFork([]byte(text)); err == nil {
			t.Errorf("%.40q: %+v", text, f)
		}
	}
}

// FuzzParseLogFork: what is read is written the same, and checking it ends.
func FuzzParseLogFork(f *testing.F) {
	f.Add([]byte(`{"format":"immutable/fork/1","origin":"","detail":"","found_at":"2026-11-24T10:00:00Z","checkpoints":["",""],"keys":[[],[]]}`))
	f.Add([]byte(`{"format":"immutable/fork/1","checkpoints":["x\n1\n\n","x"],"keys":[["{}"],null],"range":["00"],"rest":[]}`))
	trust, err := ParseTrust([]byte(newTestKey(testOrigin, 1).vkey()))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		fork, err := ParseLogFork(text)
		if err != nil {
			return
		}
		if err := fork.Verify(trust, testStart); err == nil {
			t.Errorf("%s convicts", text)
		}
		encoded, err := fork.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseLogFork(encoded)
		if err != nil {
			t.Fatal(err)
		}
		if twice, err := again.Encode(); err != nil || string(encoded) != string(twice) {
			t.Errorf("%s, then %s: %v", encoded, twice, err)
		}
	})
}
