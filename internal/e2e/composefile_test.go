package e2e

import (
	"context"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
)

// scalable are the services that --scale multiplies.
var scalable = []string{"ingest", "notary", "processor", "query", "sinks"}

// pinned is an image with a tag that names a version.
var pinned = regexp.MustCompile(`^[a-z0-9./-]+:v?[0-9]+(\.[0-9]+)+(-[a-z0-9]+)*$`)

// loadCompose reads docker-compose.yml as docker compose would, with these variables.
func loadCompose(ctx context.Context, env ...string) (*types.Project, error) {
	opts, err := cli.NewProjectOptions([]string{filepath.Join(root, "docker-compose.yml")}, cli.WithEnv(env))
	if err != nil {
		return nil, err
	}
	return opts.LoadProject(ctx)
}

// ours says whether a service runs our binary.
func ours(s types.ServiceConfig) bool { return s.Build != nil }

// TestComposeFile checks what docker-compose.yml promises to those who scale it and leave it alone.
func TestComposeFile(t *testing.T) {
	if _, err := loadCompose(t.Context()); err == nil || !strings.Contains(err.Error(), "deploy/secrets/create.sh") {
		t.Errorf("without secrets: error %v, want it to name the command that creates them", err)
	}
	p, err := loadCompose(t.Context(), "IMMUTABLE_SECRETS_GID=1000")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range scalable {
		s, ok := p.Services[name]
		if !ok || !ours(s) || len(s.Ports) > 0 {
			t.Errorf("%s must be a service of ours without ports of the host", name)
		}
		if s.StopGracePeriod == nil || s.StopGracePeriod.String() != "25s" {
			t.Errorf("%s: stop_grace_period is %v, want 25s", name, s.StopGracePeriod)
		}
	}
	for name, s := range p.Services {
		t.Run(name, func(t *testing.T) {
			composeService(t, p, name, s)
		})
	}
	for name, secret := range p.Secrets {
		if dir := filepath.Join(root, "deploy/secrets"); filepath.Dir(secret.File) != abs(t, dir) {
			t.Errorf("secret %s: %s is not in %s", name, secret.File, dir)
		}
	}
}

func composeService(t *testing.T, p *types.Project, name string, s types.ServiceConfig) {
	t.Helper()
	if s.ContainerName != "" {
		t.Error("a container_name cannot be scaled")
	}
	if limits := s.Deploy; limits == nil || limits.Resources.Limits == nil ||
		limits.Resources.Limits.MemoryBytes == 0 || limits.Resources.Limits.NanoCPUs == 0 {
		t.Error("it has no limits of memory and processors")
	}
	if s.Restart == "" {
		t.Error("it has no restart rule")
	}
	for _, port := range s.Ports {
		if port.HostIP != "127.0.0.1" || name != "gateway" && name != "prometheus" {
			t.Errorf("it publishes %s:%s", port.HostIP, port.Published)
		}
	}
	for _, v := range s.Volumes {
		if v.Type != types.VolumeTypeBind {
			continue
		}
		if _, err := os.Stat(v.Source); err != nil || !v.ReadOnly {
			t.Errorf("volume %s: read-only is %v, %v", v.Source, v.ReadOnly, err)
		}
	}
	for _, secret := range s.Secrets {
		if _, ok := p.Secrets[secret.Source]; !ok {
			t.Errorf("secret %s is not defined", secret.Source)
		}
	}
	if once := strings.HasPrefix(s.Restart, "on-failure"); once {
		if s.HealthCheck == nil || !s.HealthCheck.Disable {
			t.Error("a step that ends has no health")
		}
	} else if s.HealthCheck == nil || s.HealthCheck.Disable || len(s.HealthCheck.Test) < 2 || s.HealthCheck.Test[0] != "CMD" {
		t.Errorf("health check %+v is not a program", s.HealthCheck)
	}
	if !ours(s) {
		if !pinned.MatchString(s.Image) {
			t.Errorf("image %s is not pinned", s.Image)
		}
		return
	}
	if !s.ReadOnly || s.User == "" || strings.HasPrefix(s.User, "0") || !slices.Contains(s.CapDrop, "ALL") {
		t.Error("it has more rights than it needs")
	}
	// Every variable is a setting of this subcommand: one with a typing error would do nothing.
	words := s.Command[:slices.IndexFunc(append(s.Command, "--"), func(w string) bool { return strings.HasPrefix(w, "--") })]
	help := output(t, immutable(t), append(slices.Clone(words), "--help")...)
	for key := range s.Environment {
		if !strings.Contains(help, "$"+key+")") {
			t.Errorf("%v has no setting %s", words, key)
		}
	}
	for _, flag := range s.Command[len(words):] {
		flag, _, _ = strings.Cut(flag, "=")
		if !regexp.MustCompile(regexp.QuoteMeta(flag) + `[\s=,]`).MatchString(help) {
			t.Errorf("%v has no flag %s", words, flag)
		}
	}
	if test := healthArgs(s); len(test) > 0 {
		if out := output(t, immutable(t), append(test, "--help")...); !strings.Contains(out, "IMMUTABLE_INTERNAL_ADDR") {
			t.Errorf("health check %v does not read the address that the service reads", test)
		}
	}
}

// healthArgs are the arguments of our binary in a health check.
func healthArgs(s types.ServiceConfig) []string {
	if s.HealthCheck == nil || len(s.HealthCheck.Test) < 3 || s.HealthCheck.Test[1] != "/immutable" {
		return nil
	}
	return slices.Clone(s.HealthCheck.Test[2:])
}

// TestComposeSecrets: the documented command draws secrets once, and the installation's services can read them.
func TestComposeSecrets(t *testing.T) {
	dir := t.TempDir()
	createSecrets(t, dir)
	first := secretFiles(t, dir)
	if line := createSecrets(t, dir); !regexp.MustCompile(`^IMMUTABLE_SECRETS_GID=[0-9]+\n$`).MatchString(line) {
		t.Errorf("it prints %q", line)
	}
	if again := secretFiles(t, dir); len(first) != 3 || !maps.Equal(first, again) {
		t.Error("a second run changed what was there")
	}
	if info, err := os.Stat(filepath.Join(dir, "master_key")); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("master_key: %v, %v", info, err)
	}
	if out := output(t, "git", "-C", root, "check-ignore", "deploy/secrets/master_key", ".env"); strings.Count(out, "\n") != 2 {
		t.Errorf("git ignores only %q", out)
	}
}

func createSecrets(t *testing.T, dir string) string {
	t.Helper()
	return output(t, "sh", filepath.Join(root, "deploy/secrets/create.sh"), dir)
}

func secretFiles(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	for _, name := range []string{"master_key", "clickhouse_password", "clickhouse_user.xml"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = string(b)
	}
	return files
}

// TestDockerfile: what it builds from is pinned, and it builds with the Makefile, as everyone does.
func TestDockerfile(t *testing.T) {
	long(t)
	text, err := os.ReadFile(filepath.Join(root, "deploy/Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if image, ok := strings.CutPrefix(line, "FROM "); ok {
			if image = strings.Fields(image)[0]; image != "scratch" && !pinned.MatchString(image) {
				t.Errorf("image %s is not pinned", image)
			}
		}
	}
	for _, want := range []string{"\nRUN make build VERSION=\"$VERSION\"\n", "\nUSER 65532:65532\n", "\nENTRYPOINT [\"/immutable\"]\n"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("it has no line %q", strings.TrimSpace(want))
		}
	}
	// The build context, as .dockerignore leaves it, is enough.
	ignore, err := os.ReadFile(filepath.Join(root, ".dockerignore"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, m := range regexp.MustCompile(`(?m)^!(.+)$`).FindAllStringSubmatch(string(ignore), -1) {
		output(t, "cp", "-r", filepath.Join(root, m[1]), dir)
	}
	output(t, "make", "-C", dir, "build", "VERSION=compose")
	if got := output(t, filepath.Join(dir, "bin/immutable"), "version"); !strings.HasPrefix(got, "immutable compose ") {
		t.Errorf("version: %s", got)
	}
}

func abs(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// output runs a program to its end and returns what it printed.
func output(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", program, args, err, out)
	}
	return string(out)
}
