package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestOperations runs the commands of docs/operations.md that can be run against `up`. Only the address differs. While the
// folder is copied, and for a rebuild, `up` is stopped; the copy is started, too.
func TestOperations(t *testing.T) {
	long(t)
	text, err := os.ReadFile(filepath.Join(root, "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	folder, bin := t.TempDir(), t.TempDir()
	if err := os.Symlink(immutable(t), filepath.Join(bin, "immutable")); err != nil {
		t.Fatal(err)
	}
	s := newUp(t, immutable(t), filepath.Join(folder, "data"))
	s.start()
	s.ready(t)
	copies, rebuilds, commands := 0, 0, 0
	for _, m := range shBlock.FindAllStringSubmatch(string(text), -1) {
		for line := range strings.Lines(m[1]) {
			commands++
			f, err := s.upFile()
			if err != nil {
				t.Fatal(err)
			}
			backup, rebuild := strings.HasPrefix(line, "cp "), strings.HasPrefix(line, "immutable rebuild ")
			if backup {
				copies++
				s.stop(t)
			}
			if rebuild {
				rebuilds++
				s.stop(t)
			}
			cmd := exec.CommandContext(t.Context(), "sh", "-euc", strings.ReplaceAll(line, "http://127.0.0.1:8080", f.HTTP))
			cmd.Dir = folder
			cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
			if out, err := cmd.CombinedOutput(); err != nil || (len(out) == 0) != (backup || strings.HasPrefix(line, "chmod ")) {
				t.Errorf("%s%v\n%s", line, err, out)
			}
			if backup {
				s.data = filepath.Join(folder, "data.backup")
				s.start()
				s.ready(t)
				s.stop(t)
				s.data = filepath.Join(folder, "data")
			}
			if backup || rebuild {
				s.start()
				s.ready(t)
			}
		}
	}
	if copies != 1 || rebuilds != 1 || commands < 8 {
		t.Errorf("%d commands, %d backups and %d rebuilds: the commands have changed, and this test has not", commands, copies, rebuilds)
	}
	s.stop(t)
}
