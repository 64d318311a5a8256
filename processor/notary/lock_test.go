package notary

import (
	"os"
	"testing"
	"time"

	"getimmutable.dev/immutable/internal/durable"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/ledger"
)

// The lock file is from a backup, and older: that is fine. It knows of more than the topics, or of something else: it is not.
func TestLock(t *testing.T) {
	c := kafkatest.Start(t)
	cfg := sealSome(t, c)
	old, err := os.ReadFile(cfg.LockFile)
	if err != nil {
		t.Fatal(err)
	}
	produceEvents(t, c, 3, 500, 500)
	n := start(t, cfg)
	awaitCovered(t, c, 1000)
	n.stop(t)
	if err := os.WriteFile(cfg.LockFile, old, 0o600); err != nil {
		t.Fatal(err)
	}
	produceEvents(t, c, 3, 1000, 500)
	n = start(t, cfg)
	a := awaitCovered(t, c, 1500)
	n.stop(t)

	k, err := loadKeys(cfg.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, want string
		c          ledger.Checkpoint
		text       []byte
	}{
		{name: "newer", want: "entries, the root log", c: ledger.Checkpoint{Origin: testOrigin, Size: uint64(a.entries) + 1}},
		{name: "another root", want: "invalid proof", c: ledger.Checkpoint{Origin: testOrigin, Size: a.newest}},
		{name: "another root before", want: "invalid proof", c: ledger.Checkpoint{Origin: testOrigin, Size: a.newest - 1}},
		{name: "another log", want: "it is of log", c: ledger.Checkpoint{Origin: testOrigin + "2", Size: 1}},
		{name: "empty", want: "invalid checkpoint", text: []byte{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := tt.text
			if text == nil {
				pair := k.newest()
				if tt.c.Origin != testOrigin {
					if pair, err = generateKey(tt.c.Origin); err != nil {
						t.Fatal(err)
					}
				}
				if text, err = ledger.SignCheckpoint(&tt.c, pair); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(cfg.LockFile, text, 0o600); err != nil {
				t.Fatal(err)
			}
			n := start(t, cfg)
			halts(t, n, haltLock, tt.want)
			n.stop(t)
		})
	}
}

// A lock file that another process shares changes under a notary that runs.
func TestLockChangesMeanwhile(t *testing.T) {
	c := kafkatest.Start(t)
	cfg := sealSome(t, c)
	n := start(t, cfg)
	await(t, "ready", n.Ready)
	k, err := loadKeys(cfg.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	text, err := ledger.SignCheckpoint(&ledger.Checkpoint{Origin: testOrigin, Size: 1 << 40}, k.newest())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cfg.LockFile, text, 0o600); err != nil {
		t.Fatal(err)
	}
	produceEvents(t, c, 3, 500, 500)
	halts(t, n, haltLock, "entries, the root log")
}

func TestKeys(t *testing.T) {
	c := kafkatest.Start(t)
	cfg := sealSome(t, c)
	first, err := loadKeys(cfg.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if _, err := RotateKey(cfg.KeyFile); err != nil {
			t.Fatal(err)
		}
		produceEvents(t, c, 3, 500+100*i, 100)
		n := start(t, cfg)
		a := awaitCovered(t, c, 600+100*i)
		n.stop(t)
		if a.keys != 2+i {
			t.Errorf("%d keys were stated, want %d", a.keys, 2+i)
		}
	}
	// The file from before the rotation.
	if err := durable.Replace(cfg.KeyFile, []byte(first[0].private+"\n")); err != nil {
		t.Fatal(err)
	}
	n := start(t, cfg)
	halts(t, n, haltKey, "which is not in the key file")
	n.stop(t)
	// Another log's.
	if err := os.Remove(cfg.KeyFile); err != nil {
		t.Fatal(err)
	}
	if _, err := CreateKey(cfg.KeyFile, testOrigin+"2"); err != nil {
		t.Fatal(err)
	}
	halts(t, start(t, cfg), haltKey, "the keys in the key file are of origin")
}

// A clock that is set back does not turn the log's time back.
func TestClockSetBack(t *testing.T) {
	l := &rootLog{origin: testOrigin, time: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)}
	e := &ledger.Entry{Time: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), Epoch: &ledger.Epoch{}}
	if _, err := l.record(e); err != nil {
		t.Fatal(err)
	}
	if !e.Time.Equal(l.time) {
		t.Errorf("the entry's time is %v", e.Time)
	}
}
