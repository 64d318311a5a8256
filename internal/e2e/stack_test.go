package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/internal/loadgen"
	"getimmutable.dev/immutable/schemas"
)

const (
	testKey = "imk_sk_e2e0000000000000000000000000000000000"
	// baseURL names no real host: a stack's client connects to wherever the stack is at the moment, so that a load goes
	// on over restarts.
	baseURL = "http://immutable.test/api/v1"
	// startLimit is for a start on a busy machine; it is never reached when all is well.
	startLimit = 60 * time.Second
	stopLimit  = 20 * time.Second
)

// stack is a running Immutable with its engines. Tests know it by its address, its key and where its topics and tables
// are, whichever processes it consists of.
type stack struct {
	t *testing.T // the processes live as long as this test, whichever part of it starts them
	// processes in the order of their start; one for `up`.
	processes []*process
	key       string
	data      string
	binary    string
	env       []string
	args      []string
	stale     atomic.Pointer[os.FileInfo] // of the up.json that the last start left
	acks      []string                    // paths of the acknowledgement logs of every load so far
	transport *http.Transport
}

// upFile is DATA/up.json.
type upFile struct {
	HTTP               string `json:"http"`
	Kafka              string `json:"kafka"`
	ClickHouseNative   string `json:"clickhouse_native"`
	ClickHouseUser     string `json:"clickhouse_user"`
	ClickHousePassword string `json:"clickhouse_password"`
	Database           string `json:"database"`
}

// newUp prepares `immutable up` on a directory of its own. It is not started.
func newUp(t *testing.T, binary, data string) *stack {
	t.Helper()
	s := &stack{t: t, key: testKey, data: data, binary: binary}
	s.transport = &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			f, err := s.upFile()
			if err != nil {
				return nil, err
			}
			return (&net.Dialer{}).DialContext(ctx, network, strings.TrimPrefix(f.HTTP, "http://"))
		},
		MaxIdleConnsPerHost: 32,
	}
	t.Cleanup(s.transport.CloseIdleConnections)
	return s
}

// up starts `immutable up` on an empty directory and waits until it is ready.
func up(t *testing.T) *stack {
	t.Helper()
	s := newUp(t, immutable(t), t.TempDir())
	s.start()
	s.ready(t)
	return s
}

// start starts the processes and does not wait for them. env is added to that of this start only.
func (s *stack) start(env ...string) {
	s.forget()
	args := append([]string{"up", "--addr=127.0.0.1:0", "--data=" + s.data}, s.args...)
	all := append([]string{"IMMUTABLE_API_KEY=" + s.key, "IMMUTABLE_LIBCHDB=" + os.Getenv("IMMUTABLE_LIBCHDB")}, s.env...)
	s.processes = []*process{start(s.t, "up", append(all, env...), s.binary, args...)}
}

var errEnded = errors.New("ended before it was ready")

// awaitReady waits until every service answers that it is ready; errEnded when a process ended first.
func (s *stack) awaitReady(t *testing.T) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startLimit)
	defer cancel()
	ended := false
	err := poll(ctx, func() error {
		for _, p := range s.processes {
			if !p.running() {
				ended = true
				return nil
			}
		}
		status, _, body, err := s.do(ctx, http.MethodGet, "http://immutable.test/readyz", nil, nil)
		if err != nil {
			return err
		}
		if status != http.StatusOK {
			return fmt.Errorf("readyz: %d %s", status, body)
		}
		return nil
	})
	if ended {
		return errEnded
	}
	return err
}

func (s *stack) ready(t *testing.T) {
	t.Helper()
	if err := s.awaitReady(t); err != nil {
		t.Fatalf("waiting until immutable is ready: %v", err)
	}
}

// forget makes the up.json of the last start count for nothing.
func (s *stack) forget() {
	if info, err := os.Stat(filepath.Join(s.data, "up.json")); err == nil {
		s.stale.Store(&info)
	}
}

// upFile reads what the running `up` wrote.
func (s *stack) upFile() (*upFile, error) {
	path := filepath.Join(s.data, "up.json")
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("not started yet: %w", err)
	}
	if stale := s.stale.Load(); stale != nil && os.SameFile(*stale, info) {
		return nil, errors.New("not started yet: up.json is that of the last start")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f := new(upFile)
	if err := json.Unmarshal(b, f); err != nil {
		return nil, fmt.Errorf("up.json: %w", err)
	}
	return f, nil
}

func (s *stack) mustUpFile(t *testing.T) *upFile {
	t.Helper()
	f, err := s.upFile()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// clickhouse connects to the tables.
func (s *stack) clickhouse(t *testing.T) driver.Conn {
	t.Helper()
	f := s.mustUpFile(t)
	dsn := url.URL{
		Scheme: "clickhouse", Host: f.ClickHouseNative, Path: "/" + f.Database,
		User: url.UserPassword(f.ClickHouseUser, f.ClickHousePassword),
	}
	conn, err := clickhouse.Open(clickhouse.Config{DSN: dsn.String()})
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// check fails the test unless everything holds that was promised to every load so far, and there are at least minLeaves
// leaves.
func (s *stack) check(t *testing.T, minLeaves int) *report {
	t.Helper()
	conn := s.clickhouse(t)
	defer conn.Close()
	in := installation{
		brokers: []string{s.mustUpFile(t).Kafka}, prefix: schemas.DefaultTopicPrefix, clickhouse: conn,
	}
	return mustHold(t, in, minLeaves, s.acks...)
}

// kill ends every process at once.
func (s *stack) kill(t *testing.T) {
	t.Helper()
	for _, p := range s.processes {
		p.killGroup(t)
	}
}

// stop asks every process to end, in the reverse of the order of their start, and fails the test unless each does so
// cleanly and in time.
func (s *stack) stop(t *testing.T) {
	t.Helper()
	for i := len(s.processes) - 1; i >= 0; i-- {
		p := s.processes[i]
		p.signal(t, syscall.SIGTERM)
		if state := p.wait(t, stopLimit); state.ExitCode() != 0 {
			t.Fatalf("%s ended with %v:\n%s", p.name, state, p.tail(40))
		}
	}
}

// do sends a request with the stack's key and returns the whole answer.
func (s *stack) do(ctx context.Context, method, target string, header http.Header, body []byte) (int, http.Header, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return 0, nil, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+s.key)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for name, values := range header {
		req.Header[name] = values
	}
	resp, err := (&http.Client{Transport: s.transport}).Do(req)
	if err != nil {
		return 0, nil, nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, answer, err
}

// get reads a JSON answer of the API into v.
func (s *stack) get(t *testing.T, path string, query url.Values, v any) {
	t.Helper()
	if err := s.tryGet(t.Context(), path, query, v); err != nil {
		t.Fatal(err)
	}
}

func (s *stack) tryGet(ctx context.Context, path string, query url.Values, v any) error {
	status, _, body, err := s.do(ctx, http.MethodGet, baseURL+path+"?"+query.Encode(), nil, nil)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("GET %s: %d %s", path, status, body)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("GET %s: %w: %s", path, err, body)
	}
	return nil
}

// post sends one event and returns its id.
func (s *stack) post(t *testing.T, body []byte) string {
	t.Helper()
	status, _, answer, err := s.do(t.Context(), http.MethodPost, baseURL+"/events", nil, body)
	if err != nil {
		t.Fatal(err)
	}
	var accepted struct{ ID, Status string }
	if err := json.Unmarshal(answer, &accepted); err != nil || status != http.StatusAccepted || accepted.Status != "queued" {
		t.Fatalf("POST /events: %d %s: %v", status, answer, err)
	}
	return accepted.ID
}

// page is an answer of GET /events.
type page struct {
	Data       []map[string]any `json:"data"`
	Pagination struct {
		HasMore    bool   `json:"has_more"`
		NextCursor string `json:"next_cursor"`
		Total      *int   `json:"total"`
	} `json:"pagination"`
}

// load is a client that posts generated events in the background.
type load struct {
	*loadgen.Client
	acks string // path of the acknowledgement log
	stop context.CancelFunc
	done sync.WaitGroup
	err  error
}

// startLoad posts up to n events with keys for keyedPercent of them, until it has or is stopped. Streams of one stack
// need different seeds.
func (s *stack) startLoad(t *testing.T, gen loadgen.Config, client loadgen.ClientConfig, n int) *load {
	t.Helper()
	l := &load{acks: filepath.Join(s.t.TempDir(), "acknowledged")}
	s.acks = append(s.acks, l.acks)
	log, err := loadgen.OpenAckLog(l.acks)
	if err != nil {
		t.Fatal(err)
	}
	generator, err := loadgen.New(gen)
	if err != nil {
		t.Fatal(err)
	}
	client.BaseURL, client.APIKey, client.Transport = baseURL, s.key, s.transport
	if l.Client, err = loadgen.NewClient(client, generator, log); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(s.t.Context())
	l.stop = stop
	l.done.Go(func() { l.err = l.Run(ctx, n) })
	s.t.Cleanup(func() {
		stop()
		l.done.Wait()
		_ = log.Close()
	})
	return l
}

// finish waits until every event of the load is settled.
func (l *load) finish(t *testing.T) {
	t.Helper()
	l.done.Wait()
	if l.err != nil {
		t.Fatalf("load: %v", l.err)
	}
	if s := l.Stats(); s.Rejected > 0 {
		t.Fatalf("load: the server rejected generated events: %+v", s)
	}
}

// quit ends the load where it is.
func (l *load) quit(t *testing.T) {
	t.Helper()
	l.stop()
	l.finish(t)
}

// acknowledges waits until n events more have been acknowledged.
func (l *load) acknowledges(t *testing.T, n int64) {
	t.Helper()
	from := l.Stats().Acknowledged()
	eventually(t, time.Minute, func() error {
		if got := l.Stats().Acknowledged() - from; got < n {
			return fmt.Errorf("%d of %d events acknowledged: %+v", got, n, l.Stats())
		}
		return nil
	})
}
