package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

var (
	bashBlock = regexp.MustCompile("(?ms)^```bash\n(.*?)^```$")
	// namedEvent is a finding that names an event.
	namedEvent = regexp.MustCompile(`MODIFIED chain [0-9a-f]{32} sequence \d+ event [0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}:`)
	outcome    = regexp.MustCompile(`(?m)^# exit code (\d): (.+)$`)
)

// TestDemonstration runs the README's section about proofs as it stands, in a copy of the project: it verifies, is tampered
// with, is witnessed, and has its history rewritten with the real key. Only addresses, and how often a checkpoint is made, differ.
func TestDemonstration(t *testing.T) {
	long(t)
	text, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	folder := copyProject(t)
	s := newUp(t, "", filepath.Join(folder, "data"))
	witness, health := freeAddr(t), freeAddr(t)
	const run = "IMMUTABLE_API_KEY=imk_sk_local_quickstart make run"
	up := func(command string) {
		s.forget()
		env := []string{"IMMUTABLE_ADDR=127.0.0.1:0", "IMMUTABLE_EPOCH_INTERVAL=1s"}
		s.process = start(t, "make-run", env, "sh", "-euc", "cd '"+folder+"' && "+command)
		s.ready(t)
	}
	down := func() {
		if err := syscall.Kill(-s.process.cmd.Process.Pid, syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		s.process.wait(t, stopLimit)
	}
	bash := func(block string) (out string, code int) {
		f, err := s.upFile()
		if err == nil {
			block = strings.ReplaceAll(block, "http://127.0.0.1:8080", f.HTTP)
		}
		block = strings.ReplaceAll(strings.ReplaceAll(block, "127.0.0.1:8090", witness), "127.0.0.1:8091", health)
		block = strings.ReplaceAll(block, "sleep 5", "sleep 1")
		cmd := exec.CommandContext(t.Context(), "bash", "-uc", block)
		cmd.Dir = folder
		// What runs on in the background is ended with the test.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		text, err := cmd.CombinedOutput()
		t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) })
		exit := new(exec.ExitError)
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return string(text), cmd.ProcessState.ExitCode()
	}

	up(run)
	// The section goes on from the events of the one before it.
	for _, m := range shBlock.FindAllStringSubmatch(string(text), -1) {
		if strings.Contains(m[1], "fixtures/events") {
			bash(m[1])
		}
	}
	outcomes := 0
	for _, m := range bashBlock.FindAllStringSubmatch(string(text), -1) {
		block := strings.TrimSpace(m[1])
		switch {
		case strings.HasSuffix(block, "make run"):
			if s.process.running() {
				down()
			}
			up(block)
			continue
		case strings.HasPrefix(block, "mv data"):
			down()
		}
		out, code := bash(block)
		want, says := 0, ""
		if o := outcome.FindStringSubmatch(block); o != nil {
			outcomes++
			want, _ = strconv.Atoi(o[1])
			says = o[2]
		}
		if strings.HasPrefix(says, "MODIFIED") && !namedEvent.MatchString(out) {
			t.Errorf("no event is named:\n%s", out)
		}
		if code != want || !strings.Contains(out, says) {
			t.Fatalf("%s\nexit code %d, want %d and %q:\n%s", block, code, want, says, out)
		}
	}
	down()
	if outcomes != 5 {
		t.Errorf("%d outcomes are stated, want 5: the section has changed, and this test has not", outcomes)
	}
	if evidence, err := filepath.Glob(filepath.Join(folder, "auditor", "fork-*.json")); err != nil || len(evidence) != 1 {
		t.Errorf("evidence %v, %v", evidence, err)
	}
}
