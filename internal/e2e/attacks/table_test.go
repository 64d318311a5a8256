package attacks

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestAttackTable holds docs/design/attacks.md to the tests that it names, and cases that bear a number to the rows that it has.
func TestAttackTable(t *testing.T) {
	t.Parallel()
	const root = "../../.."
	text, err := os.ReadFile(filepath.Join(root, "docs/design/attacks.md"))
	if err != nil {
		t.Fatal(err)
	}
	sources := map[string]string{}
	source := func(dir string) string {
		if all, ok := sources[dir]; ok {
			return all
		}
		files, err := filepath.Glob(filepath.Join(root, dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			b.Write(text)
		}
		sources[dir] = b.String()
		return b.String()
	}
	named := regexp.MustCompile("`([a-z0-9/]+)\\.(Test\\w+)`")
	row := regexp.MustCompile(`^\| (\d+) \|`)
	rows := map[int]bool{}
	for line := range strings.Lines(string(text)) {
		tests := named.FindAllStringSubmatch(line, -1)
		if found := row.FindStringSubmatch(line); found != nil {
			n, err := strconv.Atoi(found[1])
			if err != nil {
				t.Fatal(err)
			}
			if rows[n] = true; len(tests) == 0 {
				t.Errorf("row %d names no test", n)
			}
		}
		for _, test := range tests {
			dir := test[1]
			if dir == "attacks" {
				dir = "internal/e2e/attacks"
			}
			if !strings.Contains(source(dir), "\nfunc "+test[2]+"(t *testing.T)") {
				t.Errorf("there is no test %s", test[0])
			}
		}
	}
	for n := 1; n <= 28; n++ {
		if n != 26 && !rows[n] {
			t.Errorf("there is no row %d", n)
		}
	}
	for _, found := range regexp.MustCompile(`"(\d+) [a-z]`).FindAllStringSubmatch(source("internal/e2e/attacks"), -1) {
		if n, err := strconv.Atoi(found[1]); err == nil && n <= 28 && !rows[n] {
			t.Errorf("a case is of row %d", n)
		}
	}
}
