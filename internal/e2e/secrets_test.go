package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/kafka/realkafka"
)

// places are where an installation keeps or shows anything, beside its answers, topics and tables.
type places struct {
	target    []string // flags that tell commands which installation is meant
	metrics   []string // URLs
	processes []*process
	// stop ends what writes to folders.
	stop    func()
	folders []string
}

// TestSecretsAreNowhere posts events with secrets to workspaces that do not keep them, and then looks for the secrets
// wherever an installation keeps or shows anything.
func TestSecretsAreNowhere(t *testing.T) {
	long(t)
	t.Run("up", func(t *testing.T) {
		s := up(t)
		f, err := s.upFile()
		if err != nil {
			t.Fatal(err)
		}
		secretsAreNowhere(t, s.stack, places{
			target: []string{"--data=" + s.data}, metrics: []string{f.HTTP + "/metrics"}, processes: []*process{s.process},
			stop: func() {}, folders: []string{s.data},
		})
	})
	t.Run("services", func(t *testing.T) {
		topics, rows := t.TempDir(), t.TempDir()
		broker := realkafka.Start(t, realkafka.Config{Properties: map[string]string{"log.dirs": topics}})
		tables := startTables(t, rows)
		s := newServices(t, broker.EmptyInstallation(), tables.DSN())
		p := places{target: s.target(), folders: []string{topics, rows}}
		p.processes = []*process{s.service("processor"), s.ingest.Load(), s.query.Load(), s.sinks}
		s.ready(t, p.processes[0])
		for _, service := range p.processes {
			addr, err := service.address("serving health, metrics and profiles")
			if err != nil {
				t.Fatal(err)
			}
			p.metrics = append(p.metrics, "http://"+addr+"/metrics")
		}
		p.stop = func() {
			broker.Stop(t, 1)
			tables.kill(t)
		}
		secretsAreNowhere(t, s.stack, p)
	})
}

func secretsAreNowhere(t *testing.T, s *stack, in places) {
	t.Helper()
	// Each needs a rule of its own kind: an issuer's token, a URL, free text, a name, a config_key. The first is put
	// together from parts, so that nobody's scanner takes it for a leak.
	secrets := []string{"gh" + "p_" + strings.Repeat("zQ9xW7", 6), "kneeling-zebra-9", "fiddling-otter-8", "waltzing-lemur-7", "juggling-bison-6"}
	leaky := fmt.Sprintf(`{"actor":{"id":"ci","name":%q},"action":"secret.rotated","resource":"secret","session_id":%q,
		"user_agent":"curl --token=%s","targets":[{"type":"db","id":"postgres://app:%s@db/x","metadata":{"auth":{"password":%q}}}],
		"metadata":{"secret":%q,"log":["used %s"],"config_key":"db.password","old_value":%q,"new_value":%q}}`,
		secrets[0], secrets[0], secrets[2], secrets[1], secrets[3], secrets[0], secrets[0], secrets[4], secrets[3])
	keys := map[string]string{}
	for _, policy := range []string{"redact", "reject"} {
		s.cli(t, "workspaces", "create", in.target, "--secret-policy="+policy, policy)
		keys[policy] = s.cli(t, "keys", "create", in.target, "--workspace="+policy, "--name=e2e")
		eventually(t, startLimit, func() error {
			return errors.Join(expect("query", func() (int, error) {
				return s.statusWith(t, keys[policy], http.MethodGet, readURL+"/events?limit=1", nil)
			}, http.StatusOK), expect("ingest", func() (int, error) {
				return s.statusWith(t, keys[policy], http.MethodPost, writeURL+"/events", []byte("{}"))
			}, http.StatusUnprocessableEntity))
		})
	}

	shown := &bytes.Buffer{} // every answer
	send := func(key, path string, header http.Header, body string, want int) {
		t.Helper()
		if header == nil {
			header = http.Header{}
		}
		header.Set("Authorization", "Bearer "+key)
		status, head, answer, err := s.do(t.Context(), http.MethodPost, writeURL+path, header, []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		if status != want {
			t.Errorf("POST %s: %d %s, want %d", path, status, answer, want)
		}
		fmt.Fprintf(shown, "%v %s\n", head, answer)
	}
	keyed := func() http.Header { return http.Header{"Idempotency-Key": {"k1"}} }
	for policy, key := range keys {
		one := http.StatusAccepted
		if policy == "reject" {
			one = http.StatusUnprocessableEntity
		}
		send(key, "/events", keyed(), leaky, one)
		send(key, "/events", keyed(), leaky, one)
		send(key, "/events/batch", nil, `{"events":[`+leaky+`,{"actor_id":5},`+leaky+`]}`, http.StatusAccepted)
		send(key, "/events", http.Header{"Idempotency-Key": {secrets[0]}}, `{"actor_id":"ci","action":"x"}`, http.StatusUnprocessableEntity)
		send(key, "/events", nil, strings.Replace(leaky, `"action"`, `"`+secrets[0]+`"`, 1), http.StatusUnprocessableEntity)
		send(key, "/events", nil, strings.Replace(leaky, `"log"`, `"`+secrets[0]+`"`, 1), http.StatusUnprocessableEntity)
		send(key, "/events", nil, leaky[:len(leaky)-1], http.StatusBadRequest)
		send(key, "/events", nil, strings.Replace(leaky, `"session_id":`, `"version":`, 1), http.StatusUnprocessableEntity)
		send(key, "/events/batch", nil, `{"events":[`+leaky+`}`, http.StatusBadRequest)
	}
	send(keys["redact"], "/events", keyed(), strings.Replace(leaky, `"ci"`, `"cd"`, 1), http.StatusConflict)
	s.check(t, 3)
	var got page
	s.key = keys["redact"]
	s.get(t, "/events", url.Values{"resource_id": {"[REDACTED:github-token]"}}, &got)
	if len(got.Data) != 3 {
		t.Errorf("%d events by a resource_id that was redacted, want 3", len(got.Data))
	}
	if err := json.NewEncoder(shown).Encode(got); err != nil {
		t.Fatal(err)
	}
	metrics := &bytes.Buffer{}
	for _, url := range in.metrics {
		resp, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		_, err = metrics.ReadFrom(resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			t.Fatal(err)
		}
	}

	nowhere := func(place string, content []byte) {
		t.Helper()
		for _, secret := range secrets {
			if bytes.Contains(content, []byte(secret)) {
				t.Errorf("%q is in %s", secret, place)
			}
		}
	}
	redacted := []byte("[REDACTED:") // is where the secrets were
	if !bytes.Contains(shown.Bytes(), redacted) || !bytes.Contains(metrics.Bytes(), []byte("immutable_ingest_")) {
		t.Error("nothing was looked at")
	}
	nowhere("an answer", shown.Bytes())
	nowhere("a metric", metrics.Bytes())
	inTopics := 0
	everyRecord(t, s.where(t), func(r *kgo.Record) {
		nowhere("topic "+r.Topic, bytes.Join([][]byte{r.Key, r.Value, fmt.Append(nil, r.Headers)}, nil))
		inTopics += bytes.Count(r.Value, redacted)
	})
	inTables := everyTable(t, s, secrets)
	if inTopics == 0 || inTables == 0 {
		t.Errorf("what was redacted is in %d places in topics, in %d rows of tables", inTopics, inTables)
	}
	for _, p := range in.processes {
		p.stop(t)
		log, err := os.ReadFile(p.log)
		if err != nil {
			t.Fatal(err)
		}
		nowhere("the log of "+p.name, log)
	}
	in.stop()
	files := 0
	for _, folder := range in.folders {
		err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			content, err := os.ReadFile(path)
			nowhere(path, content)
			files++
			return err
		})
		if err != nil || files == 0 {
			t.Errorf("%d files: %v", files, err)
		}
	}
	t.Logf("%d places in topics, %d rows of tables, %d files", inTopics, inTables, files)
}

// everyRecord calls each for the records of every topic.
func everyRecord(t *testing.T, e engines, each func(*kgo.Record)) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(e.brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	c := &check{in: installation{brokers: e.brokers, prefix: e.prefix}, adm: kadm.NewClient(cl)}
	topics, err := c.adm.ListTopicsWithInternal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, topic := range topics.Names() {
		if err := c.read(t.Context(), topic, each); err != nil {
			t.Error(err)
		}
	}
}

// everyTable fails the test for each row with a secret in any table, those of ClickHouse's own logs included, and
// returns in how many something was redacted.
func everyTable(t *testing.T, s *stack, secrets []string) (redacted uint64) {
	t.Helper()
	conn := s.clickhouse(t)
	defer conn.Close()
	rows, err := conn.Query(t.Context(), `SELECT concat(database, '.', name) FROM system.tables
		WHERE database = currentDatabase() AND engine LIKE '%MergeTree' OR database = 'system' AND name LIKE '%\_log'`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var table string
		var found, there uint64
		if err := rows.Scan(&table); err != nil {
			t.Fatal(err)
		}
		// What is searched for is in the log of queries as soon as it is searched for.
		var patterns []string
		for _, secret := range append(secrets, "[REDACTED:") {
			patterns = append(patterns, fmt.Sprintf("unhex('%x')", secret))
		}
		err := conn.QueryRow(t.Context(), fmt.Sprintf(`SELECT countIf(multiSearchAny(toString(tuple(*)), [%s])),
			countIf(position(toString(tuple(*)), %s) > 0) FROM %s`, strings.Join(patterns[:len(secrets)], ","), patterns[len(secrets)], table),
		).Scan(&found, &there)
		if err != nil {
			t.Fatal(err)
		}
		if found > 0 {
			t.Errorf("a secret is in %d rows of %s", found, table)
		}
		redacted += there
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return redacted
}
