package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestPrometheus lets promtool read what Prometheus is given, and run the tests of the alerts.
func TestPrometheus(t *testing.T) {
	promtool := program(t, "promtool")
	for _, args := range [][]string{
		{"check", "config", "prometheus.yml"},
		{"check", "rules", "alerts.yml"},
		{"test", "rules", "alerts_test.yml"},
	} {
		cmd := exec.CommandContext(t.Context(), promtool, args...)
		cmd.Dir = filepath.Join(root, "deploy/prometheus")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
}

// TestComposeScrapes: Prometheus scrapes every service that can be scaled, and finds replicas by DNS.
func TestComposeScrapes(t *testing.T) {
	cfg, err := os.ReadFile(filepath.Join(root, "deploy/prometheus/prometheus.yml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range scalable {
		if !strings.Contains(string(cfg), "names: ["+name+"], type: A, port: 9090") {
			t.Errorf("%s is not scraped", name)
		}
	}
}

// TestComposeVersions: what tests run is what the compose file deploys.
func TestComposeVersions(t *testing.T) {
	p, err := loadCompose(t.Context(), "IMMUTABLE_SECRETS_GID=1000")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ service, module, image, folder string }{
		{"gateway", "github.com/caddyserver/caddy/v2 v", "caddy:%s-alpine", "deploy/gateway"},
		// Prometheus 3.x is version 0.300+x of its module.
		{"prometheus", "github.com/prometheus/prometheus v0.3", "prom/prometheus:v3.%s", "deploy/prometheus"},
	} {
		text, err := os.ReadFile(filepath.Join(root, c.folder, "go.mod"))
		if err != nil {
			t.Fatal(err)
		}
		_, after, _ := strings.Cut(string(text), c.module)
		version, _, _ := strings.Cut(after, " ")
		if want := fmt.Sprintf(c.image, strings.TrimPrefix(version, "0")); p.Services[c.service].Image != want {
			t.Errorf("%s is %s, its module in %s means %s", c.service, p.Services[c.service].Image, c.folder, want)
		}
	}
}
