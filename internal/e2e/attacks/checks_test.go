package attacks

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Variables of the environment of a child.
const (
	// binaryVariable names the program to attack, built with all mutants.
	binaryVariable = "IMMUTABLE_ATTACKED_BINARY"
	// reachedDirVariable names a folder for files that are reachedVariable's, one of each test.
	reachedDirVariable = "IMMUTABLE_REACHED_DIR"
)

// TestChecks lists the checks of the verifier, and holds the finding of them to some that must be among them.
func TestChecks(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	checks, _ := findChecks(t, root)
	names := map[string]bool{}
	for _, c := range checks {
		t.Logf("%d %s (line %d)", c.number, c.name, c.line)
		names[c.name] = true
	}
	if len(names) != len(checks) || len(checks) < 300 {
		t.Errorf("%d checks, %d names", len(checks), len(names))
	}
	for _, part := range []string{
		"ledger/bundle.go leaf: root != l.BodyRoot", "ledger/trust.go Open: !quorum", "ledger/chainverify.go checkNode: ", "ledger/chainjudge.go judge: ",
		"verify/gaps.go tell: ", "verify/input.go checkInputOrder: ", "verify/rootlog.go checkRises: ", "verify/ledger.go checkNewest: ",
		"verify/rootlog.go takeEntry: ", "verify/ledger.go checkKeys: ", "verify/columns.go leafMismatch: ",
	} {
		if !slices.ContainsFunc(checks, func(c *check) bool { return strings.HasPrefix(c.name, part) }) {
			t.Errorf("no check begins with %q", part)
		}
	}
	for name := range unneeded() {
		if !names[name] {
			t.Errorf("there is no check %q any more", name)
		}
	}
}

// probe is a test that may fail without some check.
type probe struct {
	name    string
	reached map[int]bool // the checks that have an effect in it
	took    time.Duration
	command func(ctx context.Context) *exec.Cmd
}

// mutants is a build of the verifier in which any one check can be disabled.
type mutants struct {
	t      *testing.T
	root   string
	dir    string
	checks []*check
	probes []*probe
}

// quickFiles are the files whose checks are disabled in every run, and quickTests the tests of ledger/ that fail then.
var (
	quickFiles = []string{"ledger/witness.go", "ledger/chain.go", "ledger/bundle.go", "ledger/checkpoint.go", "ledger/keys.go", "ledger/map.go", "ledger/trust.go"}
	quickTests = regexp.MustCompile("^Test(Bundle|RedactedBundle|ParseBundle|ParseTrust|OpenBelieves|Quorum|KeyHistory|CheckpointThat|MapProofs|ParseRedaction)")
)

// only narrows down what IMMUTABLE_SOAK tries.
var only = flag.String("attacks.checks", "", "a regular expression of the names of the checks that TestEveryCheckIsNeeded disables; TestChecks lists all")

// TestEveryCheckIsNeeded disables one check of the verifier after the other: each time a test fails. With IMMUTABLE_SOAK that is every check and any test of
// ledger/, verify/, sinks/verifier/ and of this package; else those of a proof bundle.
func TestEveryCheckIsNeeded(t *testing.T) {
	long(t)
	if os.Getenv(binaryVariable) != "" {
		t.Skip("this is the test of a verifier without a check")
	}
	soak := os.Getenv("IMMUTABLE_SOAK") != ""
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	m := &mutants{t: t, root: root, dir: t.TempDir()}
	var sources map[string][]byte
	m.checks, sources = findChecks(t, root)
	o := overlay(t, root, sources)
	if soak {
		all := regexp.MustCompile("^(Test|Fuzz)")
		m.unitProbes(o, "ledger", all)
		m.unitProbes(o, "verify", all)
		m.unitProbes(o, "sinks/verifier", all)
		m.attackProbes(o)
		narrow, err := regexp.Compile(*only)
		if err != nil {
			t.Fatal(err)
		}
		m.checks = slices.DeleteFunc(m.checks, func(c *check) bool { return !narrow.MatchString(c.name) })
	} else {
		m.checks = slices.DeleteFunc(m.checks, func(c *check) bool { return !slices.Contains(quickFiles, c.file) })
		m.unitProbes(o, "ledger", quickTests)
	}
	slices.SortStableFunc(m.probes, func(a, b *probe) int { return cmp.Compare(a.took, b.took) })
	m.tryAll(soak)
}

// tryAll disables each check.
func (m *mutants) tryAll(soak bool) {
	var needed, exempt, elsewhere atomic.Int64
	var mu sync.Mutex
	var survivors []string
	next := make(chan *check)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for c := range next {
				reason, known := unneeded()[c.name]
				failing, tried := m.try(c)
				switch {
				case failing != "":
					needed.Add(1)
					m.t.Logf("without %s: %s fails", c.name, failing)
					if known {
						m.t.Errorf("%s is needed, and is said not to be: %s", c.name, reason)
					}
				case known:
					exempt.Add(1)
					m.t.Logf("without %s no test fails: %s", c.name, reason)
				case !soak:
					elsewhere.Add(1)
				default:
					mu.Lock()
					survivors = append(survivors, fmt.Sprintf("%s (line %d), which has an effect in %d tests", c.name, c.line, tried))
					mu.Unlock()
				}
			}
		})
	}
	for _, c := range m.checks {
		next <- c
	}
	close(next)
	wg.Wait()
	slices.Sort(survivors)
	for _, s := range survivors {
		m.t.Errorf("no test fails without %s", s)
	}
	m.t.Logf("%d checks: a test fails without %d of them; %d have an explanation, %d survive, %d were not tried by enough tests (IMMUTABLE_SOAK=1 does)",
		len(m.checks), needed.Load(), exempt.Load(), len(survivors), elsewhere.Load())
	if !soak && elsewhere.Load() > 10 {
		m.t.Errorf("of these, no test of ledger/ needs %d", elsewhere.Load())
	}
}

// childLimit is how long a test may take without a check: one that never ends has failed.
const childLimit = time.Minute

// try returns the first test that fails without a check, "" for none, and how many tests were tried.
func (m *mutants) try(c *check) (failing string, tried int) {
	for _, p := range m.probes {
		if !p.reached[c.number] {
			continue
		}
		tried++
		ctx, cancel := context.WithTimeout(m.t.Context(), childLimit)
		cmd := p.command(ctx)
		cmd.Env = append(cmd.Env, disabledVariable+"="+strconv.Itoa(c.number))
		out, err := cmd.CombinedOutput()
		late := ctx.Err() != nil
		cancel()
		switch {
		case err == nil:
		case late, bytes.Contains(out, []byte("--- FAIL")), bytes.Contains(out, []byte("panic: ")), bytes.Contains(out, []byte("fatal error: ")):
			return p.name, tried
		default:
			m.t.Errorf("%s: %v\n%.2000s", p.name, err, out)
		}
	}
	return "", tried
}

// build builds with all mutants.
func (m *mutants) build(args ...string) {
	m.t.Helper()
	cmd := exec.CommandContext(m.t.Context(), "go", args...)
	cmd.Dir, cmd.Env = m.root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		m.t.Fatalf("%v\n%.4000s", err, out)
	}
}

// unitProbes makes tests of a package probes.
func (m *mutants) unitProbes(overlay, pkg string, which *regexp.Regexp) {
	m.t.Helper()
	binary := filepath.Join(m.dir, filepath.Base(pkg)+".test")
	m.build("test", "-c", "-o", binary, "-overlay="+overlay, "./"+pkg)
	list := exec.CommandContext(m.t.Context(), binary, "-test.list=.")
	list.Dir = filepath.Join(m.root, pkg)
	out, err := list.Output()
	if err != nil {
		m.t.Fatal(err)
	}
	for name := range strings.FieldsSeq(string(out)) {
		if !which.MatchString(name) || strings.HasPrefix(name, "TestPython") {
			continue
		}
		of := func(name string) *probe {
			return &probe{name: pkg + "." + name, command: func(ctx context.Context) *exec.Cmd {
				cmd := exec.CommandContext(ctx, binary, "-test.v", "-test.failfast", "-test.run="+pattern(name))
				if pkg == "ledger" {
					cmd.Args = append(cmd.Args, "-test.short", "-rapid.nofailfile")
				}
				cmd.Dir, cmd.Env = filepath.Join(m.root, pkg), os.Environ()
				return cmd
			}}
		}
		p := of(name)
		within := m.measure(p)
		if p.took < longProbe || len(within) == 0 {
			m.probes = append(m.probes, p)
			continue
		}
		for _, name := range within {
			p := of(name)
			m.measure(p)
			m.probes = append(m.probes, p)
		}
	}
}

// longProbe is how long a test takes whose tests within are probes of their own.
const longProbe = 3 * time.Second

// pattern is -test.run of one test, or of one within another.
func pattern(name string) string {
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		parts = append(parts, "^"+regexp.QuoteMeta(part)+"$")
	}
	return strings.Join(parts, "/")
}

// measure finds out which checks have an effect in a test, and returns the tests within it.
func (m *mutants) measure(p *probe) (within []string) {
	m.t.Helper()
	reached := filepath.Join(m.dir, url.PathEscape(p.name))
	cmd := p.command(m.t.Context())
	cmd.Env = append(cmd.Env, reachedVariable+"="+reached)
	began := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		m.t.Fatalf("%s: %v\n%.4000s", p.name, err, out)
	}
	p.took, p.reached = time.Since(began), numbers(m.t, reached)
	for _, found := range passed.FindAllSubmatch(out, -1) {
		if name := string(found[1]); strings.Contains(name, "/") {
			within = append(within, name)
		}
	}
	return within
}

// passed is what a test says that has passed.
var passed = regexp.MustCompile(`--- PASS: (\S+) \(([0-9.]+)s\)`)

// numbers reads what a build with all mutants has written.
func numbers(t *testing.T, path string) map[int]bool {
	t.Helper()
	all := map[int]bool{}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return all
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		n, err := strconv.Atoi(lines.Text())
		if err != nil {
			t.Fatal(err)
		}
		all[n] = true
	}
	return all
}

// attackProbes makes each test of this package, those within others too, a probe: they run the program.
func (m *mutants) attackProbes(overlay string) {
	m.t.Helper()
	binary, reached := filepath.Join(m.dir, "immutable"), filepath.Join(m.dir, "reached")
	m.build("build", "-o", binary, "-overlay="+overlay, "./cmd/immutable")
	if err := os.Mkdir(reached, 0o700); err != nil {
		m.t.Fatal(err)
	}
	// One run of all of them says which check has an effect in which, and how long each takes.
	cmd := exec.CommandContext(m.t.Context(), os.Args[0], "-test.v=test2json", "-test.skip=^(TestEveryCheckIsNeeded|TestChecks|TestHalts.*)$", "-test.timeout=20m")
	cmd.Env = append(os.Environ(), binaryVariable+"="+binary, reachedDirVariable+"="+reached)
	out, err := cmd.Output()
	if err != nil {
		m.t.Fatalf("%v\n%.4000s", err, out)
	}
	took := map[string]time.Duration{}
	for _, found := range passed.FindAllSubmatch(out, -1) {
		seconds, err := strconv.ParseFloat(string(found[2]), 64)
		if err != nil {
			m.t.Fatal(err)
		}
		took[string(found[1])] = time.Duration(seconds * float64(time.Second))
	}
	files, err := os.ReadDir(reached)
	if err != nil {
		m.t.Fatal(err)
	}
	for _, f := range files {
		name, err := url.PathUnescape(f.Name())
		if err != nil {
			m.t.Fatal(err)
		}
		m.probes = append(m.probes, &probe{
			name: "attacks." + name, took: took[name] + 100*time.Millisecond, reached: numbers(m.t, filepath.Join(reached, f.Name())),
			command: func(ctx context.Context) *exec.Cmd {
				cmd := exec.CommandContext(ctx, os.Args[0], "-test.failfast", "-test.run="+pattern(name))
				cmd.Env = append(os.Environ(), binaryVariable+"="+binary)
				return cmd
			},
		})
	}
}
