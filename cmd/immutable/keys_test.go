package main

import (
	"bytes"
	"log/slog"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/schemas"
)

// TestKeysListLastUsed: a key that was never used is told from one of which that is not known.
func TestKeysListLastUsed(t *testing.T) {
	c := kafkatest.Start(t)
	file := filepath.Join(t.TempDir(), "master.key")
	if _, err := control.CreateMasterKey(file); err != nil {
		t.Fatal(err)
	}
	flags := []string{"--kafka=" + c.Config.Brokers[0], "--master-key-file=" + file}
	for _, args := range [][]string{{"workspaces", "create", "default"}, {"keys", "create", "--name=ci"}} {
		if code := run(append(args, flags...)); code != 0 {
			t.Fatalf("%v: exit code %d", args, code)
		}
	}
	list := func() (lastUsed, log string) {
		t.Helper()
		cmd := keysListCmd{targetFlags: targetFlags{
			kafkaFlags:    kafkaFlags{Kafka: c.Config.Brokers, TopicPrefix: c.Config.TopicPrefix},
			masterKeyFlag: masterKeyFlag{MasterKeyFile: file},
		}}
		var out, logged bytes.Buffer
		if err := cmd.Run(t.Context(), &process{stdout: &out, logger: slog.New(slog.NewTextHandler(&logged, nil))}); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		return regexp.MustCompile(` {2,}`).Split(lines[len(lines)-1], -1)[7], logged.String()
	}
	if used, log := list(); used != "never" || log != "" {
		t.Errorf("%s, %s", used, log)
	}
	topic := c.Config.Topic(schemas.TopicKeyUsage)
	if _, err := kadm.NewClient(c.Client(t)).DeleteTopic(t.Context(), topic); err != nil {
		t.Fatal(err)
	}
	if used, log := list(); used != "not known" || !strings.Contains(log, topic) {
		t.Errorf("%s, %s", used, log)
	}
}

// TestUpgrade: on the topics of an older version a service says what is missing and what to run, and starts after that.
func TestUpgrade(t *testing.T) {
	c := kafkatest.Start(t)
	topic := c.Config.Topic(schemas.TopicKeyUsage)
	if _, err := kadm.NewClient(c.Client(t)).DeleteTopic(t.Context(), topic); err != nil {
		t.Fatal(err)
	}
	s := newService(&process{logger: slog.New(slog.DiscardHandler)}, serviceFlags{})
	err := s.checkKafka(t.Context(), c.Config, c.Layout)
	if err == nil || !strings.Contains(err.Error(), topic+": missing") || !strings.Contains(err.Error(), "`immutable topics create`") {
		t.Errorf("%v", err)
	}
	if code := run([]string{"topics", "create", "--kafka=" + c.Config.Brokers[0], "--partitions=4", "--allow-single-replica"}); code != 0 {
		t.Errorf("topics create: exit code %d", code)
	}
	if err := s.checkKafka(t.Context(), c.Config, c.Layout); err != nil {
		t.Error(err)
	}
}
