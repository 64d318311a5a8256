package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

var shBlock = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")

// TestREADME runs the commands of README.md in a copy of the project, as a newcomer would: `make run`, what follows in
// another terminal, Ctrl-C, and `make run` again. Only the address differs. The last command, `make test`, is what
// runs this test.
func TestREADME(t *testing.T) {
	long(t)
	text, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	var blocks []string
	for _, m := range shBlock.FindAllStringSubmatch(string(text), -1) {
		blocks = append(blocks, strings.TrimSpace(m[1]))
	}
	if len(blocks) < 4 || !strings.HasSuffix(blocks[0], "make run") || blocks[len(blocks)-1] != "make test" {
		t.Fatalf("the commands have changed, and this test has not: %q", blocks)
	}
	post, ask := blocks[1:len(blocks)-2], blocks[len(blocks)-2]
	folder := copyProject(t)

	s := newUp(t, "", filepath.Join(folder, "data"))
	run := func() *process {
		s.forget()
		p := start(t, "make-run", []string{"IMMUTABLE_ADDR=127.0.0.1:0"}, "sh", "-euc", "cd '"+folder+"' && "+blocks[0])
		s.process = p
		s.ready(t)
		return p
	}
	sh := func(block string) string {
		f, err := s.upFile()
		if err != nil {
			t.Fatal(err)
		}
		block = strings.ReplaceAll(block, "http://127.0.0.1:8080", f.HTTP)
		cmd := exec.CommandContext(t.Context(), "sh", "-euc", block)
		cmd.Dir = folder
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s\n%v\n%s", block, err, out)
		}
		return string(out)
	}
	interrupt := func(p *process) {
		if err := syscall.Kill(-p.cmd.Process.Pid, syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		p.wait(t, stopLimit)
	}

	p := run()
	for _, block := range post {
		if out := sh(block); strings.Count(out, `"status":"queued"`) != strings.Count(block, "curl") {
			t.Errorf("%s\nanswered %s", block, out)
		}
	}
	events := strings.Count(strings.Join(post, "\n"), "curl")
	shown := func() (got page) {
		if err := json.Unmarshal([]byte(sh(ask)), &got); err != nil {
			t.Fatal(err)
		}
		return got
	}
	eventually(t, 2*time.Second, func() error {
		if n := len(shown().Data); n != events {
			return fmt.Errorf("%d of %d events shown", n, events)
		}
		return nil
	})
	interrupt(p)
	p = run()
	if n := len(shown().Data); n != events {
		t.Errorf("after the restart %d of %d events are shown", n, events)
	}
	interrupt(p)
}

// copyProject copies what belongs to the project, and what was fetched for it, to a folder of the same file system.
func copyProject(t *testing.T) string {
	t.Helper()
	cache := filepath.Join(root, ".cache")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	folder, err := os.MkdirTemp(cache, "readme-") //nolint:usetesting // hard links need the project's file system
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(folder); err != nil {
			t.Error(err)
		}
	})
	if folder, err = filepath.Abs(folder); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-euc", `
		git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents --preserve=timestamps -t "$0"
		cp -al node_modules "$0"`, folder)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("copying the project: %v\n%s", err, out)
	}
	return folder
}
