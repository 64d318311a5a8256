package ledger

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/note"
)

func TestEntry(t *testing.T) {
	l := newTestLog(t)
	l.chain(t).event(t, KindEvent, testBody)
	l.epoch(t)
	for i, text := range l.entries {
		e, err := ParseEntry(text)
		if err != nil {
			t.Fatal(err)
		}
		if e.Index != uint64(i) || (i > 0 && e.Previous != EntryHash(l.entries[i-1])) {
			t.Errorf("entry %d is %+v", i, e)
		}
		again, err := e.Encode()
		if err != nil || string(again) != string(text) {
			t.Errorf("entry %d: %s, encoded again %s: %v", i, text, again, err)
		}
		if _, err := Fields(nil, text); err != nil {
			t.Errorf("entry %d is not in the form of RFC 8785: %v", i, err)
		}
	}
	e, err := ParseEntry(l.entries[1])
	if err != nil {
		t.Fatal(err)
	}
	want := &Epoch{MapRoot: l.m.Root(), Chains: 1, Positions: []uint64{2, 0, 0, 0}}
	if diff := cmp.Diff(want, e.Epoch); diff != "" {
		t.Errorf("epoch (-want +got):\n%s", diff)
	}
}

func TestEntryThatIsNone(t *testing.T) {
	l := newTestLog(t)
	l.epoch(t)
	key, epoch := string(l.entries[0]), string(l.entries[1])
	for _, tc := range []struct{ name, text string }{
		{"nothing", ""},
		{"not JSON", "epoch"},
		{"white space", " " + epoch},
		{"an escape", strings.Replace(epoch, `"epoch"`, `"\u0065poch"`, 1)},
		{"unsorted", strings.Replace(epoch, `{"chains":0,"index":1`, `{"index":1,"chains":0`, 1)},
		{"another member", strings.Replace(epoch, "{", `{"a":1,`, 1)},
		{"a member twice", strings.Replace(epoch, "{", `{"chains":0,`, 1)},
		{"another type", strings.Replace(epoch, `"type":"epoch"`, `"type":"epic"`, 1)},
		{"no map root", strings.Replace(epoch, `"map_root"`, `"map_rood"`, 1)},
		{"a key in an epoch", strings.Replace(epoch, `,"map_root"`, `,"key":"a","map_root"`, 1)},
		{"a map root in a key change", strings.Replace(key, `,"previous"`, `,"map_root":"`+strings.Repeat("0", 64)+`","previous"`, 1)},
		{"positions of half a number", strings.Replace(epoch, `"positions":"00000000`, `"positions":"`, 1)},
		{"positions in capitals", strings.Replace(epoch, `"positions":"0000000000000000`, `"positions":"000000000000000A`, 1)},
		{"a time with fewer digits", strings.Replace(epoch, `.000000Z`, `.000Z`, 1)},
		{"a time that is not in UTC", strings.Replace(epoch, `.000000Z`, `.000000+00:00`, 1)},
		{"an index above 2^53", strings.Replace(epoch, `"index":1`, `"index":9007199254740992`, 1)},
		{"65537 partitions", strings.Replace(epoch, `"positions":"`, `"positions":"`+strings.Repeat("00", 8<<16), 1)},
		{"a number with a point", strings.Replace(epoch, `"index":1`, `"index":1.0`, 1)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.text == epoch || tc.text == key {
				t.Fatal("nothing is changed")
			}
			if e, err := ParseEntry([]byte(tc.text)); !errors.Is(err, ErrEntry) {
				t.Errorf("%s: %+v, %v", tc.text, e, err)
			}
		})
	}
	for _, e := range []*Entry{{}, {Epoch: &Epoch{}, Key: &KeyChange{}}, {Index: MaxIndex + 1, Epoch: &Epoch{}}, {Epoch: &Epoch{Chains: 1 << 60}}} {
		if _, err := e.Encode(); !errors.Is(err, ErrEntry) {
			t.Errorf("%+v: %v", e, err)
		}
	}
}

func TestKeyHistory(t *testing.T) {
	l := newTestLog(t)
	l.epoch(t)
	second, third := newTestKey(testOrigin, 1), newTestKey(testOrigin, 2)
	l.rotate(t, second) // entry 2
	l.epoch(t)
	l.rotate(t, third) // entry 4
	var h KeyHistory
	for _, change := range l.changes {
		e, err := ParseEntry(l.entries[change])
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Append(testOrigin, e); err != nil {
			t.Fatal(err)
		}
	}
	stranger := newTestKey(testOrigin, 9)
	for _, tc := range []struct {
		key   testKey
		sizes map[uint64]bool
	}{
		{l.keys[0], map[uint64]bool{0: false, 1: true, 2: true, 3: false, 5: false}},
		{second, map[uint64]bool{2: false, 3: true, 4: true, 5: false}},
		{third, map[uint64]bool{4: false, 5: true, 1 << 40: true}},
		{stranger, map[uint64]bool{1: false, 5: false}},
	} {
		key, err := newLogKey(tc.key.vkey())
		if err != nil {
			t.Fatal(err)
		}
		for size, want := range tc.sizes {
			if err := h.inRange(key, size); (err == nil) != want {
				t.Errorf("key %s at size %d: %v", tc.key.vkey(), size, err)
			}
		}
		if err := KeyHistory(nil).inRange(key, 7); err != nil {
			t.Errorf("without a history: %v", err)
		}
	}

	change := func(key testKey, text string, by ...note.Signer) *KeyChange {
		signed, err := note.Sign(&note.Note{Text: text}, by...)
		if err != nil {
			t.Fatal(err)
		}
		return &KeyChange{VerifierKey: key.vkey(), Signature: string(signed)}
	}
	ofAnother := newTestKey("example.com/other", 3)
	for _, tc := range []struct {
		name  string
		after int // key changes before it
		e     *Entry
		want  string
	}{
		{"an epoch", 1, &Entry{Index: 7, Epoch: &Epoch{}}, "does not state a key"},
		{"first, not at 0", 0, &Entry{Index: 1, Key: change(second, KeyChangeText(testOrigin, 1, second.vkey()), second)}, "want entry 0"},
		{"first, signed by another", 0, &Entry{Key: change(second, KeyChangeText(testOrigin, 0, second.vkey()), third)}, "has not signed"},
		{"signed by itself", 1, &Entry{Index: 7, Key: change(second, KeyChangeText(testOrigin, 7, second.vkey()), second)}, "has not signed"},
		{"signed by the one before the last", 2, &Entry{Index: 7, Key: change(third, KeyChangeText(testOrigin, 7, third.vkey()), l.keys[0])}, "has not signed"},
		{"of another index", 1, &Entry{Index: 8, Key: change(second, KeyChangeText(testOrigin, 7, second.vkey()), l.keys[0])}, "for another key change"},
		{"of another key", 1, &Entry{Index: 7, Key: change(third, KeyChangeText(testOrigin, 7, second.vkey()), l.keys[0])}, "for another key change"},
		{"of another log", 1, &Entry{Index: 7, Key: change(ofAnother, KeyChangeText(testOrigin, 7, ofAnother.vkey()), l.keys[0])}, `key of "example.com/other"`},
		{"before the last", 2, &Entry{Index: 1, Key: change(third, KeyChangeText(testOrigin, 1, third.vkey()), second)}, "comes after key change 2"},
		{"a key with a line break", 1, &Entry{Index: 7, Key: &KeyChange{VerifierKey: second.vkey()[:len(second.vkey())-4] + "\n" + second.vkey()[len(second.vkey())-4:]}}, "white space"},
		{"no key", 1, &Entry{Index: 7, Key: &KeyChange{VerifierKey: "x"}}, "want NAME+HASH+KEY"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := h[:tc.after:tc.after]
			if err := before.Append(testOrigin, tc.e); !errors.Is(err, ErrEntry) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want it to say %q", err, tc.want)
			}
			if len(before) != tc.after {
				t.Error("it was taken")
			}
		})
	}
}
