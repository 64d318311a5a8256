package attacks

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"getimmutable.dev/immutable/internal/ledgertest"
	"getimmutable.dev/immutable/verify"
)

// maxAmplified is what a verifier may take of what is small as a text and large in memory. Before it was bounded, it took gigabytes.
const maxAmplified = 256 << 20

// watchMemory watches how much memory a process has at most, in bytes: what wait(2) says of it counts what this process had when it was started too.
func watchMemory(pid int) (peak func() int64) {
	stop := make(chan struct{})
	most := make(chan int64)
	go func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		var high int64 // in KiB; it only rises
		for {
			status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)) // gone once the process is
			if _, line, ok := strings.Cut(string(status), "\nVmHWM:"); ok {
				_, _ = fmt.Sscan(line, &high)
			}
			select {
			case <-tick.C:
			case <-stop:
				most <- high << 10
				return
			}
		}
	}()
	return func() int64 {
		close(stop)
		return <-most
	}
}

// TestAmplifyingProof: attack 28, a proof of a few MiB that would be far more in memory.
func TestAmplifyingProof(t *testing.T) {
	t.Parallel()
	const head = `{"format":"immutable/proof/1",`
	b := bundle(t, bundleLedger(), 40)
	b.Redactions = nil
	var body strings.Builder
	body.WriteString(`{"a":0`)
	for i := 0; body.Len() < 3<<20; i++ {
		fmt.Fprintf(&body, `,"b%07x":0`, i)
	}
	body.WriteString(`}`)
	b.Body = body.String()
	manyFields, err := b.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, text string
		exit       int
	}{
		{"redactions", head + `"redactions":[` + fill(`{},`, 7<<20) + `{}]}`, verify.ExitUsage},
		{"disclosure", head + `"disclosure":[` + fill(`{},`, 7<<20) + `{}]}`, verify.ExitUsage},
		{"keys", head + `"keys":[` + fill(`{},`, 7<<20) + `{}]}`, verify.ExitUsage},
		{"disclosures in redactions", head + `"redactions":[` + fill(`{"disclosure":[`+strings.Repeat(`{},`, 1000)+`{}]},`, 7<<20) + `{}]}`, verify.ExitUsage},
		{"members", head + `"map":{` + names(7<<20) + `"z":0}}`, verify.ExitUsage},
		{"fields of a body", string(manyFields), verify.ExitTampered},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			a := newAuditor(t)
			r := a.run("event", a.file([]byte(tc.text)))
			if r.code != tc.exit || r.maxRSS > maxAmplified {
				t.Errorf("exit code %d, %d MiB: %.2000s", r.code, r.maxRSS>>20, r.output)
			}
			t.Logf("%d MiB", r.maxRSS>>20)
		})
	}
}

// fill repeats a text up to a size.
func fill(text string, size int) string { return strings.Repeat(text, size/len(text)) }

// names are members with different names, each with a comma after it.
func names(size int) string {
	var b strings.Builder
	for i := 0; b.Len() < size; i++ {
		fmt.Fprintf(&b, `"%x":0,`, i)
	}
	return b.String()
}

// leafPages answers each request for leaves of a chain with as many lines as it asks for, or most, and more to follow.
func leafPages(chain *ledgertest.Chain, most uint64, members string) http.HandlerFunc {
	if !strings.Contains(members, "recorded_at") {
		members += `,"recorded_at":"2026-11-24T10:00:00.000000Z"`
	}
	return func(w http.ResponseWriter, r *http.Request) {
		var from, limit uint64
		_, _ = fmt.Sscan(r.URL.Query().Get("from"), &from)
		_, _ = fmt.Sscan(r.URL.Query().Get("limit"), &limit)
		to := from + min(limit, most)
		for ; from < to; from++ {
			_, err := fmt.Fprintf(w, `{"workspace":"%x","incarnation":"%x","lane":0,"chain":"%x","sequence":%d,"kind":2,"id":"00000000-0000-4000-8000-%012x"%s}`+"\n",
				chain.Workspace, chain.Incarnation, chain.ID, from, from, members)
			if err != nil {
				return
			}
		}
		_, _ = fmt.Fprintf(w, `{"next":%d,"more":true}`+"\n", to)
	}
}

// TestAmplifyingServer: attack 28, answers that are small as a text and large in memory, or that never end although each of them does. One after the other: what
// the servers send is in this process too.
func TestAmplifyingServer(t *testing.T) {
	long(t)
	chain := newLedger().Chains[0]
	pages := func(most uint64, members string) http.HandlerFunc { return leafPages(chain, most, members) }
	chains := func(text string) func(w http.ResponseWriter, _ *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }
	}
	var erased strings.Builder
	erased.WriteString(`,"disclosure":[`)
	for i := range 1000 {
		fmt.Fprintf(&erased, `{"path":"/metadata/%04d%s","commitment":"%064d"},`, i, strings.Repeat("x", 1800), i)
	}
	erased.WriteString(`{"path":"/z","commitment":"` + strings.Repeat("0", 64) + `"}]`)
	const size = 30 << 20
	for _, tc := range []struct {
		name, path string
		do         func(w http.ResponseWriter, r *http.Request)
		flags      []string
		exit       int
		undecided  string
	}{
		{"chains", "/ledger/chains", chains(`{"data":{"chains":[` + fill(`{},`, size) + `{}]}}`), nil, verify.ExitUndecided, "more than 4096 elements"},
		{"key changes", "/ledger/chains", chains(`{"data":{"keys":[` + fill(`{},`, size) + `{}]}}`), nil, verify.ExitUndecided, "more than 4096 elements"},
		{"siblings", "/ledger/chains", chains(`{"data":{"chains":[{"map":{"siblings":[` + fill(`"",`, size) + `""]}}]}}`), nil, verify.ExitUndecided, "more than 4096 elements"},
		{"members", "/ledger/chains", chains(`{"data":{` + names(size) + `"z":0}}`), nil, verify.ExitUndecided, "more than 4096 elements"},
		{"lists of lists", "/ledger/chains", chains(`{"z":[` + fill(`[`+strings.Repeat("0,", 4000)+`0],`, size) + `0]}`), nil, verify.ExitUndecided, "more than 1048576 values"},
		{"large answers", "/ledger/chains", chains(`{"data":{"epoch":"` + fill("x", size) + `"}}`), nil, verify.ExitUndecided, ""},
		{"lines of 7 MiB", "/ledger/leaves", pages(150, `,"body":"`+fill("x", 7<<20)+`"`), nil, verify.ExitUndecided, "a line has more than"},
		{"lines of 2 MiB", "/ledger/leaves", pages(1<<40, `,"body":"`+fill("x", 2<<20-1000)+`"`), []string{"--timeout=3s"}, verify.ExitTampered, ""},
		{"disclosures", "/ledger/leaves", pages(1<<40, `,"disclosure":[`+fill(`{},`, 60<<10)+`{}]`), []string{"--timeout=3s"}, verify.ExitTampered, ""},
		{"leaves without a time", "/ledger/leaves", pages(1<<40, `,"recorded_at":"x","body":"`+fill("x", 2<<20-1000)+`"`), []string{"--timeout=3s"}, verify.ExitTampered, ""},
		{"a long disclosure", "/ledger/leaves", pages(1<<40, `,"disclosure":[`+fill(`{},`, 1<<20)+`{}]`), nil, verify.ExitUndecided, "more than 1024 elements"},
		{"erased fields with long paths", "/ledger/leaves", pages(1<<40, erased.String()), []string{"--timeout=3s"}, verify.ExitTampered, ""},
		{"nodes", "/ledger/leaves", pages(1<<40, `,"node":"`+fill("00", 2<<20-1000)+`"`), []string{"--timeout=3s"}, verify.ExitTampered, ""},
		{"pages of one leaf", "/ledger/leaves", pages(1, `,"body":"{}"`), nil, verify.ExitTampered, "next to nothing"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.flags != nil {
				long(t)
			}
			s := newServer(newLedger())
			flags := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasPrefix(r.URL.Path, "/api/v1"+tc.path) {
					tc.do(w, r)
					return
				}
				s.ServeHTTP(w, r)
			}))
			r := newAuditor(t).run(append(flags, tc.flags...)...)
			late := tc.flags != nil && r.code == verify.ExitUndecided // a slow machine has found nothing in time
			if r.code != tc.exit && !late || r.maxRSS > maxAmplified || !strings.Contains(strings.Join(r.Undecided, "\n"), tc.undecided) {
				t.Errorf("exit code %d, %d MiB: %.2000s", r.code, r.maxRSS>>20, r.output)
			}
			t.Logf("%d MiB", r.maxRSS>>20)
		})
	}
}

// TestAmplifyingEpochs: attack 28, more older epochs than can be kept, with proofs that hold.
func TestAmplifyingEpochs(t *testing.T) {
	long(t)
	l := ledgertest.New()
	const lanes = 512
	for lane := range uint32(lanes) {
		l.Chain(1, 1, lane, lanes)
	}
	for range 280 {
		for _, c := range l.Chains {
			l.Events(c, 1)
		}
		l.Epoch()
	}
	s := newServer(l)
	hostile := leafPages(l.Chains[0], 1<<40, `,"body":"`+fill("x", 2<<20-1000)+`"`)
	for name, leaves := range map[string]http.HandlerFunc{"small leaves": s.ServeHTTP, "large leaves": hostile} {
		flags := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/ledger/leaves") {
				leaves(w, r)
				return
			}
			s.ServeHTTP(w, r)
		}))
		if name == "large leaves" {
			flags = append(flags, "--timeout=15s")
		}
		r := newAuditor(t).run(append(flags, "--epochs=4096")...)
		if r.code == verify.ExitVerified || r.maxRSS > maxAmplified || !strings.Contains(strings.Join(r.Undecided, "\n"), "what is kept of the others takes") {
			t.Errorf("%s: exit code %d, %d MiB: %.2000s", name, r.code, r.maxRSS>>20, r.output)
		}
		t.Logf("%s: %d MiB", name, r.maxRSS>>20)
	}
}

// TestUnsignedAnswers: what nobody has signed proves nothing of a ledger, whatever is wrong with it. Under a checkpoint that is believed, it does.
func TestUnsignedAnswers(t *testing.T) {
	t.Parallel()
	stranger := newAuditor(t, ledgertest.NewKey("example.com/ledger", 77).Verifier())
	for _, tc := range []struct {
		name string
		do   func(answer string) string
		exit int // of who believes the log's key
		want []string
		// strange is the exit code of who does not.
		strange int
	}{
		{"not JSON", func(s string) string { return s[:len(s)-10] }, verify.ExitUndecided, nil, verify.ExitUndecided},
		{"nothing", func(string) string { return "" }, verify.ExitUndecided, nil, verify.ExitUndecided},
		{"no log proof", func(s string) string { return strings.Replace(s, "c2sp.org/tlog-proof", "c2sp.org/tlog-pr00f", 1) }, verify.ExitUndecided, []string{"INVALID PROOF"}, verify.ExitUndecided},
		{"a checkpoint that nobody signed", func(s string) string { return strings.Replace(s, `\n7\n`, `\n8\n`, 1) }, verify.ExitNotTrusted, []string{"INVALID PROOF", "WRONG KEY"}, verify.ExitNotTrusted},
		{"an epoch that is not in the log", func(s string) string {
			return strings.Replace(s, `\"chains\":3,\"index\":6`, `\"chains\":4,\"index\":6`, 1)
		}, verify.ExitTampered, []string{"INVALID PROOF"}, verify.ExitNotTrusted},
		{"a key change that is not in the log", func(s string) string { return strings.Replace(s, `\"index\":0`, `\"index\":1`, 1) }, verify.ExitNotTrusted, []string{"INVALID PROOF", "WRONG KEY"}, verify.ExitNotTrusted},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(newLedger())
			s.Spoil = func(path string, answer []byte) []byte {
				if path != "/ledger/chains" {
					return answer
				}
				changed := tc.do(string(answer))
				if changed == string(answer) {
					t.Errorf("nothing was changed in %s", answer)
				}
				return []byte(changed)
			}
			flags := serve(t, s)
			newAuditor(t).run(flags...).want(t, tc.exit, tc.want...)
			if r := stranger.run(flags...); r.code != tc.strange {
				t.Errorf("without a believed key: want exit code %d: %s", tc.strange, r.output)
			}
		})
	}
}
