package attacks

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// check is one check of the verifier: a function that finds something. Without it, some test fails.
type check struct {
	file, function string
	// instead is the function's body that checks nothing.
	instead string
	// tests of package ledger, or of this one against a binary that was built without the check.
	tests string
	// quick: it is tried in every run; the others with IMMUTABLE_SOAK.
	quick bool
}

// checks of the verifier.
func checks() []check {
	return []check{
		{"ledger/chainverify.go", "checkNode", "return", "TestChain", true},
		{"ledger/chainverify.go", "checkTime", "return", "TestChain", false},
		{"ledger/chainverify.go", "checkOrder", "return", "TestChain", false},
		{"ledger/chainverify.go", "checkPrevious", "return", "TestChain", false},
		{"ledger/chainverify.go", "gap", "return", "TestChain", false},
		{"ledger/chainverify.go", "redactions", "return", "TestChain", false},
		{"ledger/chainverify.go", "conclude", "return", "TestChain", false},
		{"ledger/chainjudge.go", "duplicate", "return", "TestChain", false},
		{"ledger/chainjudge.go", "rootDiffers", "return", "TestChain", false},
		{"ledger/chainjudge.go", "judge", "return", "TestChain", false},
		{"ledger/chainjudge.go", "place", "return", "TestChain", false},
		{"ledger/chainjudge.go", "reorder", "return", "TestChain", false},
		{"ledger/chainjudge.go", "renumbered", "return false", "TestChain", false},
		{"verify/ledger.go", "checkStated", "return nil", "TestLedger", true},
		{"verify/ledger.go", "checkChain", "return true", "TestLedger", false},
		{"verify/ledger.go", "checkOther", "return", "TestLedger", false},
		{"verify/ledger.go", "checkForgotten", "return", "TestStartedAfresh", false},
		{"verify/lanes.go", "checkWorkspace", "return", "TestHistories", false},
		{"verify/lanes.go", "checkLanes", "return", "TestHiddenLane", true},
		{"verify/lanes.go", "checkSource", `return ""`, "TestStartedAfresh", false},
		{"verify/history.go", "askOlder", "return nil", "TestWrittenAnewLater", true},
		{"verify/history.go", "checkFalls", "return", "TestChainGone", false},
		{"verify/history.go", "askWitnessed", "return nil, nil", "TestWitnessAway", false},
		{"verify/rootlog.go", "checkLink", "return", "TestTables", false},
		{"verify/rootlog.go", "checkNode", "return", "TestTables", false},
		{"verify/rootlog.go", "checkColumns", "return", "TestTables", false},
		{"verify/accept.go", "checkRoot", "return", "TestHistories|TestTableHistories", false},
		{"verify/accept.go", "recallSame", "return nil, 0, false", "TestHistories", false},
		{"verify/accept.go", "checkAge", "return", "TestOlderCheckpoint", false},
		{"verify/clickhouse.go", "checkStored", "return", "TestTableHistories", false},
		{"verify/epochs.go", "checkEpochs", "return", "TestTableHistories", false},
		{"verify/epochs.go", "checkForgotten", "return", "TestTableHistories", false},
		{"verify/columns.go", "leafMismatch", `return ""`, "TestTables", false},
		{"verify/columns.go", "textMismatch", `return ""`, "TestTables", false},
		{"verify/columns.go", "listMismatch", `return ""`, "TestTables", false},
	}
}

// overlayVariable names the file that the binary of a child test is built with.
const overlayVariable = "IMMUTABLE_VERIFY_OVERLAY"

// TestEveryCheckIsNeeded builds the verifier without one check after the other: each time a test fails.
func TestEveryCheckIsNeeded(t *testing.T) {
	long(t)
	if os.Getenv(overlayVariable) != "" {
		t.Skip("this is the test of a verifier without a check")
	}
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range checks() {
		if !c.quick && os.Getenv("IMMUTABLE_SOAK") == "" {
			continue
		}
		t.Run(strings.TrimSuffix(filepath.Base(c.file), ".go")+"."+c.function, func(t *testing.T) {
			overlay := c.overlay(t, root)
			// A mutant that does not build proves nothing.
			pkg := "./" + filepath.Dir(c.file)
			build := exec.CommandContext(t.Context(), "go", "build", "-overlay="+overlay, pkg)
			build.Dir = root
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-overlay="+overlay, "-run=^("+c.tests+")", pkg)
			if pkg != "./ledger" {
				cmd = exec.CommandContext(t.Context(), os.Args[0], "-test.run=^("+c.tests+")$")
				cmd.Env = append(os.Environ(), overlayVariable+"="+overlay)
			} else {
				cmd.Dir = root
			}
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "--- FAIL") {
				t.Errorf("without %s of %s no test fails: %v\n%.2000s", c.function, c.file, err, out)
			}
		})
	}
}

// overlay writes a file for -overlay in which the function's body is another.
func (c *check) overlay(t *testing.T, root string) string {
	t.Helper()
	path := filepath.Join(root, c.file)
	source, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head := regexp.MustCompile(`(?m)^func (\([^)]*\) )?` + c.function + `\(.*\{\n`)
	at := head.FindAllIndex(source, -1)
	if len(at) != 1 {
		t.Fatalf("%s has %d functions %s", c.file, len(at), c.function)
	}
	dir := t.TempDir()
	changed := filepath.Join(dir, filepath.Base(c.file))
	// The rest of the body stays behind the return, so that all it uses is still used.
	text := string(source[:at[0][1]]) + "\tif true {\n\t\t" + c.instead + "\n\t}\n" + string(source[at[0][1]:])
	if err := os.WriteFile(changed, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {path: changed}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(file, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
