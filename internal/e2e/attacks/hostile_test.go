package attacks

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"getimmutable.dev/immutable/internal/ledgertest"
	"getimmutable.dev/immutable/verify"
)

// maxRSS is what a verifier may take, whatever it is given.
const maxRSS = 300 << 20

// endless writes until nobody reads any more, 1 GiB at most.
func endless(w io.Writer, chunk []byte) {
	for sent := 0; sent < 1<<30; sent += len(chunk) {
		if _, err := w.Write(chunk); err != nil {
			return
		}
	}
}

// TestHostileFiles: attack 28, a file that is far larger than a proof.
func TestHostileFiles(t *testing.T) {
	t.Parallel()
	for name, write := range map[string]func(f *os.File) error{
		"a line of 1 GB": func(f *os.File) error { return f.Truncate(1 << 30) },
		"packed": func(f *os.File) error {
			z := gzip.NewWriter(f)
			if _, err := z.Write(bytes.Repeat([]byte("{"), 1<<20)); err != nil {
				return err
			}
			return z.Close()
		},
		"nesting": func(f *os.File) error { _, err := f.WriteString(strings.Repeat("[", 7<<20)); return err },
		"nothing": func(*os.File) error { return nil },
		"not a log": func(f *os.File) error {
			_, err := f.WriteString(`{"format":"immutable/proof/1","size":18446744073709551616}`)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAuditor(t)
			f, err := os.Create(filepath.Join(a.dir, "proof.json"))
			if err != nil {
				t.Fatal(err)
			}
			if err := write(f); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			r := a.run("event", f.Name())
			if r.code != verify.ExitUsage || r.maxRSS > maxRSS {
				t.Errorf("exit code %d, %d MiB: %s", r.code, r.maxRSS>>20, r.output)
			}
		})
	}
}

// TestHostileServer: attack 28, answers that are meant to fill the verifier's memory, or to keep it busy for ever.
func TestHostileServer(t *testing.T) {
	t.Parallel()
	packed := new(bytes.Buffer)
	z := gzip.NewWriter(packed)
	for range 4 {
		_, _ = z.Write(make([]byte, 64<<20))
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		path string
		do   func(w http.ResponseWriter, r *http.Request)
		exit []int
	}{
		{"an endless checkpoint", "/ledger/checkpoint", func(w http.ResponseWriter, _ *http.Request) { endless(w, make([]byte, 1<<20)) }, []int{verify.ExitUndecided}},
		{"endless chains", "/ledger/chains", func(w http.ResponseWriter, _ *http.Request) { endless(w, make([]byte, 1<<20)) }, []int{verify.ExitUndecided}},
		{"an endless tile", "/ledger/tile/", func(w http.ResponseWriter, _ *http.Request) { endless(w, make([]byte, 1<<20)) }, []int{verify.ExitUndecided}},
		{"an endless line", "/ledger/leaves", func(w http.ResponseWriter, _ *http.Request) { endless(w, bytes.Repeat([]byte("x"), 1<<20)) }, []int{verify.ExitUndecided}},
		{"endless lines", "/ledger/leaves", func(w http.ResponseWriter, _ *http.Request) {
			endless(w, bytes.Repeat([]byte(`{"id":"00000000-0000-4000-8000-000000000000","recorded_at":"2026-11-24T10:00:00.000000Z"}`+"\n"), 1000))
		}, []int{verify.ExitUndecided}},
		{"a packed answer", "/ledger/leaves", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(packed.Bytes())
		}, []int{verify.ExitUndecided}},
		{"a page that goes on at itself", "/ledger/leaves", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"next":0,"more":true}`+"\n") }, []int{verify.ExitUndecided}},
		{"another place", "/ledger/leaves", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		}, []int{verify.ExitUndecided}},
		{"a checkpoint of 2^63 entries", "/ledger/chains", func(w http.ResponseWriter, r *http.Request) {
			l := newLedger()
			_, _ = fmt.Fprint(w, strings.Replace(answer(l, r), `\n7\n`, `\n9223372036854775808\n`, 1))
		}, []int{verify.ExitNotTrusted}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(newLedger())
			flags := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasPrefix(r.URL.Path, "/api/v1"+tc.path) {
					tc.do(w, r)
					return
				}
				s.ServeHTTP(w, r)
			}))
			r := newAuditor(t).run(flags...)
			if !slices.Contains(tc.exit, r.code) || r.maxRSS > maxRSS {
				t.Errorf("exit code %d, %d MiB: %s", r.code, r.maxRSS>>20, r.output)
			}
		})
	}
}

// answer is what an honest server says.
func answer(l *ledgertest.Ledger, r *http.Request) string {
	w := &recorder{header: http.Header{}}
	newServer(l).ServeHTTP(w, r)
	return w.String()
}

type recorder struct {
	bytes.Buffer

	header http.Header
}

func (r *recorder) Header() http.Header { return r.header }

func (*recorder) WriteHeader(int) {}
