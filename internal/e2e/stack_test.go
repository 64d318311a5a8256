package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/internal/loadgen"
)

const (
	testKey = "imk_sk_e2e0000000000000000000000000000000000"
	// The hosts are not real: a stack's client connects to wherever its services are at the moment, so that a load goes
	// on over restarts.
	ingestHost = "ingest.immutable.test"
	queryHost  = "query.immutable.test"
	writeURL   = "http://" + ingestHost + "/api/v1"
	readURL    = "http://" + queryHost + "/api/v1"
	// startLimit is for a start on a busy machine; it is never reached when all is well.
	startLimit = 60 * time.Second
	stopLimit  = 20 * time.Second
)

// stack is a running Immutable with its engines. Tests know it by its API and by where its topics and tables are,
// whichever processes it consists of.
type stack struct {
	t         *testing.T // the processes live as long as this test, whichever part of it starts them
	key       string
	transport *http.Transport
	// address says where the services of a host are at the moment.
	address func(host string) (string, error)
	// engines says where the topics and tables are at the moment.
	engines func() (engines, error)
	acks    []string // paths of the acknowledgement logs of every load so far
}

// engines are a Kafka and a ClickHouse.
type engines struct {
	brokers []string
	prefix  string
	dsn     string
}

// newStack returns a stack whose services are where address says at the moment.
func newStack(t *testing.T, address func(host string) (string, error), where func() (engines, error)) *stack {
	t.Helper()
	s := &stack{t: t, key: testKey, address: address, engines: where}
	s.transport = &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			host, _, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			if addr, err = address(host); err != nil {
				return nil, err
			}
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		},
		MaxIdleConnsPerHost: 32,
	}
	t.Cleanup(s.transport.CloseIdleConnections)
	return s
}

// where returns the engines of a running stack.
func (s *stack) where(t *testing.T) engines {
	t.Helper()
	e, err := s.engines()
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// clickhouse connects to the tables.
func (s *stack) clickhouse(t *testing.T) driver.Conn {
	t.Helper()
	conn, err := clickhouse.Open(clickhouse.Config{DSN: s.where(t).dsn})
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
	e := s.where(t)
	in := installation{brokers: e.brokers, prefix: e.prefix, clickhouse: conn}
	return mustHold(t, in, minLeaves, s.acks...)
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
	maps.Copy(req.Header, header)
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
	status, _, body, err := s.do(ctx, http.MethodGet, readURL+path+"?"+query.Encode(), nil, nil)
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

// read returns what the query service answers to a path with its parameters, once it can: after a start it takes a moment until it has
// anything to prove by, and after an event until an epoch covers it.
func (s *stack) read(t *testing.T, path string) (body []byte) {
	t.Helper()
	eventually(t, startLimit, func() error {
		status, _, answer, err := s.do(t.Context(), http.MethodGet, "http://"+queryHost+path, nil, nil)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("GET %s: %d %s", path, status, answer)
		}
		body = answer
		return err
	})
	return body
}

// post sends one event and returns its id.
func (s *stack) post(t *testing.T, body []byte) string {
	t.Helper()
	status, _, answer, err := s.do(t.Context(), http.MethodPost, writeURL+"/events", nil, body)
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
	client.BaseURL, client.APIKey, client.Transport = writeURL, s.key, s.transport
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

// cli runs a command to its end and returns what it printed. args are strings and lists of strings.
func (s *stack) cli(t *testing.T, args ...any) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), immutable(t), flattenArgs(args)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %v\n%s%s", cmd.Args, err, &stdout, &stderr)
	}
	return strings.TrimSpace(stdout.String())
}

// flattenArgs makes one list of strings and lists of strings.
func flattenArgs(args []any) (flat []string) {
	for _, a := range args {
		switch a := a.(type) {
		case string:
			flat = append(flat, a)
		case []string:
			flat = append(flat, a...)
		}
	}
	return flat
}
