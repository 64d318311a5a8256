package notary

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/ledger"
)

// Everything was brought back from a backup, the lock file too. A witness remembers: before anything is signed, the notary learns
// what it had signed. A witness that is away, or shows what no key of the log has signed, holds nothing up.
func TestRestoredBackupWithWitness(t *testing.T) {
	c := kafkatest.Start(t)
	cfg := sealSome(t, c)
	k, err := loadKeys(cfg.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(cfg.LockFile)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := ledger.ParseCheckpoint(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		seen *ledger.Checkpoint
		want string
	}{
		{"more", &ledger.Checkpoint{Origin: testOrigin, Size: signed.Size + 1000}, "entries, the root log"},
		{"another root", &ledger.Checkpoint{Origin: testOrigin, Size: signed.Size}, "invalid proof"},
		{"the same", signed, ""},
		{"nothing", nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNotary(t, cfg)
			n.seen = func(_ context.Context, origin string, own *ledger.Trust) []*ledger.Checkpoint {
				note, err := ledger.SignCheckpoint(&ledger.Checkpoint{Origin: testOrigin, Size: 1}, k.newest())
				if err != nil {
					t.Error(err)
				}
				if _, _, err := own.OpenLog(note); err != nil || origin != testOrigin {
					t.Errorf("asked for %q, with keys by which the log's own note is nobody's: %v", origin, err)
				}
				if tt.seen == nil {
					return nil
				}
				return []*ledger.Checkpoint{tt.seen}
			}
			n.start(t)
			defer n.stop(t)
			if tt.want == "" {
				await(t, "ready", n.Ready)
				return
			}
			halts(t, n, haltSeen, tt.want)
		})
	}
}

// What witnesses show of the log is believed where one of its keys has signed it.
func TestWhatWitnessesHaveSeen(t *testing.T) {
	own, err := generateKey(testOrigin)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := generateKey(testOrigin)
	if err != nil {
		t.Fatal(err)
	}
	note := func(size uint64, key *keyPair) []byte {
		signed, err := ledger.SignCheckpoint(&ledger.Checkpoint{Origin: testOrigin, Size: size}, key)
		if err != nil {
			t.Fatal(err)
		}
		return signed
	}
	l := newWitnessedLog(t)
	policy := "log " + l.vkey + "\n"
	for name, answer := range map[string][]byte{
		"right": note(7, own), "forged": note(8, stranger), "garbage": []byte("garbage"), "large": []byte(strings.Repeat("x", 1<<20)), "empty": nil,
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if answer == nil || !strings.HasSuffix(r.URL.Path, "/checkpoint") || len(strings.Split(r.URL.Path, "/")[1]) != 64 {
				http.NotFound(w, r)
				return
			}
			_, _ = w.Write(answer)
		}))
		defer server.Close()
		policy += "witness " + name + " " + l.witness(t, name+".example").key.VerifierKey + " " + server.URL + "\n"
	}
	a := newAsker(t, WitnessesConfig{Policy: []byte(policy + "quorum none\n")})
	trust, err := ledger.ParseTrust([]byte(own.verifier))
	if err != nil {
		t.Fatal(err)
	}
	if seen := a.newest(t.Context(), testOrigin, trust); len(seen) != 1 || seen[0].Size != 7 {
		t.Errorf("%+v", seen)
	}
}
