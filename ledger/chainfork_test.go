package ledger

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/transparency-dev/formats/proof"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
)

// statedNow is what the newest epoch states of a chain.
func (l *testLog) statedNow(t *testing.T, c *testChainLog) StatedChain {
	t.Helper()
	b := l.bundle(t, c, 0)
	return StatedChain{Size: b.Size, Root: b.Root, Map: b.Map, Epoch: b.Epoch, LogProof: b.LogProof, Keys: b.Keys}
}

// fork is the evidence of two statements, with the subtrees of a chain that has the newer one's leaves.
func (c *testChainLog) fork(older, newer StatedChain) *ChainFork {
	f := &ChainFork{Workspace: testWorkspace, Incarnation: testIncarnation, Lane: c.lane, Chain: c.Chain, Older: older, Newer: newer}
	if newer.Size < older.Size {
		return f
	}
	var head Head
	factory := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	rest := factory.NewEmptyRange(older.Size)
	for i, h := range c.hashes[:newer.Size] {
		if uint64(i) < older.Size {
			head.AppendHash(h)
		} else if err := rest.Append(h[:], nil); err != nil {
			panic(err)
		}
	}
	f.Range = head.Range
	for _, h := range rest.Hashes() {
		f.Rest = append(f.Rest, Hash(h))
	}
	return f
}

// What convicts whoever holds a log's key convicts nobody who has kept to what was stated.
func TestChainFork(t *testing.T) {
	l := newTestLog(t)
	c := l.chain(t)
	l.chains = nil
	l.epoch(t)
	none := l.statedAbsent(t, c)
	l.chains = []*testChainLog{c}
	events := func(c *testChainLog, from string, n int) {
		for i := range n {
			c.event(t, KindEvent, strings.Replace(testBody, "4711", from+string(rune('a'+i)), 1))
		}
	}
	events(c, "x", 5)
	l.epoch(t)
	first := l.statedNow(t, c)
	events(c, "y", 4)
	l.epoch(t)
	grown := l.statedNow(t, c)
	// The chain is written anew, and then with fewer leaves.
	anew := newTestLog(t).chain(t)
	events(anew, "z", 12)
	l.chains = []*testChainLog{anew}
	l.epoch(t)
	other := l.statedNow(t, anew)
	short := newTestLog(t).chain(t)
	events(short, "z", 2)
	l.chains = []*testChainLog{short}
	l.epoch(t)
	less := l.statedNow(t, short)

	stranger := newTestKey("example.com/other", 7)
	elsewhere := other
	p, err := ParseLogProof([]byte(other.LogProof))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := ParseCheckpoint(p.Checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	note, err := SignCheckpoint(&Checkpoint{Origin: "example.com/other", Size: signed.Size, Root: signed.Root}, stranger)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere.Keys, elsewhere.LogProof = nil, string((&proof.TLogProof{Index: p.Index, Hashes: p.Hashes, Checkpoint: note}).Marshal())

	trust := mustTrust(t, "log "+l.key().vkey(), "log "+stranger.vkey(), "quorum none")
	for _, tc := range []struct {
		name         string
		of           *testChainLog
		older, newer StatedChain
		spoil        func(f *ChainFork)
		want         string // part of the error, "" where it convicts
	}{
		{"written anew", anew, first, other, func(*ChainFork) {}, ""},
		{"fewer leaves", short, other, less, func(*ChainFork) {}, ""},
		{"gone", anew, first, none, func(f *ChainFork) { f.Newer.Epoch, f.Older.Epoch = f.Older.Epoch, f.Newer.Epoch }, "it is not the epoch"},
		{"grown", c, first, grown, func(*ChainFork) {}, "is the beginning of the newer one"},
		{"fewer leaves, before there were more", anew, grown, first, func(f *ChainFork) { f.Range = anew.fork(grown, other).Range }, "range: 2 hashes for size 10"},
		{"before there was the chain", anew, none, other, func(*ChainFork) {}, "the older epoch does not have the chain"},
		{"another lane", anew, first, other, func(f *ChainFork) { f.Lane++ }, "is not that of its workspace"},
		{"two logs", anew, first, elsewhere, func(*ChainFork) {}, "they are of two logs"},
		{"a range too short", anew, first, other, func(f *ChainFork) { f.Range = f.Range[1:] }, "range: 1 hashes for size 6"},
		{"a rest too short", anew, first, other, func(f *ChainFork) { f.Rest = f.Rest[1:] }, "rest: "},
		{"another range", anew, first, other, func(f *ChainFork) { f.Range[0][0] ^= 1 }, "range and rest give root"},
		{"another rest", anew, first, other, func(f *ChainFork) { f.Rest[0][0] ^= 1 }, "range and rest give root"},
		{"no log proof", anew, first, other, func(f *ChainFork) { f.Older.LogProof = "" }, "older: invalid proof"},
		{"no checkpoint", anew, first, other, func(f *ChainFork) { f.Newer.LogProof = strings.Replace(f.Newer.LogProof, "\n5\n", "\n05\n", 1) }, "newer: invalid proof: invalid checkpoint"},
		{"too many key changes", anew, first, other, func(f *ChainFork) { f.Older.Keys = slices.Repeat(f.Older.Keys, maxKeyChanges+1) }, "1001 key changes, at most"},
		{"a key change of another log", anew, first, other, func(f *ChainFork) { f.Older.Keys = f.Newer.Keys }, "key change: invalid proof of inclusion"},
		{"an epoch as a key change", anew, first, other, func(f *ChainFork) { f.Older.Keys = []BundleKey{{Entry: f.Older.Epoch, Path: nil}} }, "key change: "},
		{"another epoch", anew, first, other, func(f *ChainFork) { f.Older.Epoch = f.Newer.Epoch }, "it is not the epoch at index 2"},
		{"no epoch", anew, first, other, func(f *ChainFork) { f.Older.Epoch = "x" }, "the epoch: invalid entry of the root log"},
		{"a key change as the epoch", anew, first, other, func(f *ChainFork) {
			f.Older.Epoch, f.Older.LogProof = f.Older.Keys[0].Entry, strings.Replace(f.Older.LogProof, "index 2", "index 0", 1)
		}, "it is not the epoch at index 0"},
		{"an epoch that is not in the log", anew, first, other, func(f *ChainFork) {
			f.Older.Epoch = strings.Replace(f.Older.Epoch, `"time":"2026`, `"time":"2027`, 1)
		}, "invalid proof of inclusion at 2"},
		{"another root", anew, first, other, func(f *ChainFork) { f.Older.Root[0] ^= 1 }, "the path in the map leads"},
		{"another size", anew, first, other, func(f *ChainFork) { f.Newer.Size++ }, "the path in the map leads"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := tc.of.fork(tc.older, tc.newer)
			f.Range, f.Rest = slices.Clone(f.Range), slices.Clone(f.Rest)
			tc.spoil(f)
			text, err := f.Encode()
			if err != nil {
				t.Fatal(err)
			}
			read, err := ParseChainFork(text)
			if err != nil {
				t.Fatal(err)
			}
			err = read.Verify(trust, testStart.Add(time.Hour))
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want it to say %q", err, tc.want)
			}
		})
	}
	if err := anew.fork(first, other).Verify(mustTrust(t, newTestKey(testOrigin, 9).vkey()), testStart.Add(time.Hour)); err == nil || !strings.Contains(err.Error(), "WRONG KEY") {
		t.Errorf("of a log that is not believed: %v", err)
	}
	for _, text := range []string{"", `{"format":"immutable/fork/1"}`, `{"key":1}`, strings.Repeat(" ", MaxChainForkBytes+1)} {
		if f, err := ParseChainFork([]byte(text)); err == nil {
			t.Errorf("%.40q: %+v", text, f)
		}
	}
	if _, err := ParseChainFork([]byte(strings.Repeat(" ", MaxChainForkBytes+1))); err == nil || !strings.Contains(err.Error(), "at most 8388608 are read") {
		t.Error(err)
	}
}

// statedAbsent is what the newest epoch states of a chain that it does not have.
func (l *testLog) statedAbsent(t *testing.T, c *testChainLog) StatedChain {
	t.Helper()
	l.epochs[l.Size-1] = []epochChain{{0, Hash{}, l.m.Prove(c.Chain)}}
	p := proof.TLogProof{Index: l.Size - 1, Checkpoint: l.checkpoint(t, l.Size, l.key())}
	for _, h := range l.inclusion(t, l.Size-1, l.Size) {
		p.Hashes = append(p.Hashes, h)
	}
	return StatedChain{
		Map: l.m.Prove(c.Chain), Epoch: string(l.entries[l.Size-1]), LogProof: string(p.Marshal()), Keys: []BundleKey{{string(l.entries[0]), l.inclusion(t, 0, l.Size)}},
	}
}
