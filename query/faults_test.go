package query

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
	"getimmutable.dev/immutable/internal/kafka"
)

const anyID = "00000000-0000-0000-0000-000000000000"

// anyKafka is one that nobody asks.
var anyKafka = kafka.Config{Brokers: []string{"127.0.0.1:9"}}

// started waits until requests reach ClickHouse.
func (r *rig) started() {
	r.tb.Helper()
	r.eventually("the service runs", func() bool {
		if !r.service.running.TryRLock() {
			return false
		}
		r.service.running.RUnlock()
		return true
	})
}

// unavailableWithin asks for a page and an event, which must be 503 with Retry-After before clients give up.
func (r *rig) unavailableWithin(limit time.Duration, id string) {
	r.tb.Helper()
	for _, path := range []string{"/api/v1/events", "/api/v1/events/" + id} {
		began := time.Now()
		a := r.do(r.token, http.MethodGet, path)
		if took := time.Since(began); took > limit {
			r.tb.Errorf("%s took %v", path, took)
		}
		if a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" ||
			!strings.Contains(string(a.body), `"error":"unavailable"`) {
			r.tb.Errorf("%s: %d %v %s, want a 503 with Retry-After", path, a.status, a.header, a.body)
		}
	}
}

func TestClickHouseAway(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := closed.Addr().String()
	_ = closed.Close()
	r := newRig(t, func(c *Config) { c.ClickHouse = clickhouse.Config{DSN: "clickhouse://" + nobody + "/db"} })
	r.started()
	r.unavailableWithin(5*time.Second, anyID)
	if err := r.service.Ready(t.Context()); err == nil {
		t.Error("ready without ClickHouse")
	}
	if got := r.labelled("immutable_query_unavailable_total", reasonAway); got != 2 {
		t.Errorf("away counted %v times, want 2", got)
	}
}

// silent accepts connections and never answers, like a machine that hangs.
func silent(t *testing.T) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var conns []net.Conn
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns = append(conns, c)
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
		for _, c := range conns {
			_ = c.Close()
		}
	})
	return l.Addr().String()
}

func TestClickHouseHangs(t *testing.T) {
	long(t)
	addr := silent(t)
	r := newRig(t, func(c *Config) { c.ClickHouse = clickhouse.Config{DSN: "clickhouse://" + addr + "/db"} })
	r.started()
	r.unavailableWithin(5*time.Second, anyID)
}

// TestClickHouseFreezes: connections that are open and lead nowhere any more.
func TestClickHouseFreezes(t *testing.T) {
	long(t)
	p := newProxy(t)
	r := newRig(t, func(c *Config) {
		p.target = strings.TrimSuffix(strings.SplitN(c.ClickHouse.DSN, "@", 2)[1], "/"+c.ClickHouse.DSN[strings.LastIndex(c.ClickHouse.DSN, "/")+1:])
		c.ClickHouse.DSN = strings.Replace(c.ClickHouse.DSN, p.target, p.addr, 1)
		c.RequestTimeout = 500 * time.Millisecond
	})
	r.started()
	r.page(r.tenant, nil)
	p.frozen.Store(true)
	r.unavailableWithin(4*time.Second, anyID)
	p.frozen.Store(false)
	r.eventually("it works again", func() bool {
		return r.do(r.token, http.MethodGet, "/api/v1/events").status == http.StatusOK
	})
}

// proxy passes bytes on until it is frozen; then it swallows them.
type proxy struct {
	addr, target string
	frozen       atomic.Bool
}

func newProxy(t *testing.T) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{addr: l.Addr().String()}
	var copies sync.WaitGroup
	var conns []net.Conn
	accepted := make(chan struct{})
	copies.Go(func() {
		defer close(accepted)
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", p.target)
			if err != nil {
				_ = client.Close()
				continue
			}
			conns = append(conns, client, server)
			copies.Go(func() { p.copy(server, client) })
			copies.Go(func() { p.copy(client, server) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		<-accepted
		for _, c := range conns {
			_ = c.Close()
		}
		copies.Wait()
	})
	return p
}

func (p *proxy) copy(to, from net.Conn) {
	defer func() { _ = to.Close() }()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if p.frozen.Load() {
			continue
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// TestSlowStatement: what takes too long is given up, by ClickHouse too.
func TestSlowStatement(t *testing.T) {
	r := newRig(t, func(c *Config) { c.RequestTimeout = 50 * time.Millisecond })
	l := r.newLoader(r.tenant)
	id := l.add(`{"actor_id":"a","action":"x"}`)[0].id
	// The table becomes one whose rows take a second each to read.
	for _, statement := range []string{
		"RENAME TABLE events TO stored",
		"CREATE VIEW events AS SELECT * FROM stored WHERE sleepEachRow(1) = 0",
	} {
		if err := r.conn.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	r.unavailableWithin(2*time.Second, id)
}

func TestBusy(t *testing.T) {
	r := newRig(t, func(c *Config) { c.MaxRequests = 1 })
	r.service.slots <- struct{}{}
	r.unavailableWithin(time.Second, anyID)
	if got := r.labelled("immutable_query_unavailable_total", reasonBusy); got != 2 {
		t.Errorf("busy counted %v times, want 2", got)
	}
	<-r.service.slots
	r.page(r.tenant, nil)
}

func TestStopped(t *testing.T) {
	r := newRig(t)
	if err := r.service.Ready(t.Context()); err != nil {
		t.Errorf("not ready: %v", err)
	}
	r.stop()
	r.unavailableWithin(time.Second, anyID)
	if err := r.service.Ready(t.Context()); !errors.Is(err, errStopped) {
		t.Errorf("ready: %v, want %v", err, errStopped)
	}
}

// TestDamagedBody: what cannot be shown is a 500 that shows nothing of it.
func TestDamagedBody(t *testing.T) {
	r := newRig(t)
	sent := r.newLoader(r.tenant).add(`{"actor_id":"a","action":"x"}`)
	if err := r.conn.Exec(t.Context(), `ALTER TABLE events UPDATE body = '{"secret":' WHERE 1 SETTINGS mutations_sync = 2`); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/api/v1/events", "/api/v1/events/" + sent[0].id} {
		a := r.do(r.token, http.MethodGet, path)
		if a.status != http.StatusInternalServerError || strings.Contains(string(a.body), "secret") {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	if log := r.log.String(); !strings.Contains(log, sent[0].id) || strings.Contains(log, "secret") {
		t.Errorf("log: %s", log)
	}
}

// TestOlderSchema: the service does not start on tables that are not its own.
func TestOlderSchema(t *testing.T) {
	db := clickhousetest.StartEmpty(t)
	if err := clickhouse.CreateDatabase(t.Context(), db.Config()); err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Kafka: anyKafka, ClickHouse: db.Config()}, nil, nil, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); !errors.Is(err, clickhouse.ErrSchemaOlder) {
		t.Errorf("Run: %v, want %v", err, clickhouse.ErrSchemaOlder)
	}
}

// TestCancelled: a client that goes away takes its statements with it and is no failure of ours.
func TestCancelled(t *testing.T) {
	r := newRig(t)
	r.newLoader(r.tenant).add(`{"actor_id":"a","action":"x"}`)
	for _, statement := range []string{
		"RENAME TABLE events TO stored",
		"CREATE VIEW events AS SELECT * FROM stored WHERE sleepEachRow(1) = 0",
	} {
		if err := r.conn.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url+"/api/v1/events?total=false", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+r.token)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		if res, err := http.DefaultClient.Do(req); err == nil {
			_ = res.Body.Close()
		}
	}()
	r.eventually("the request is being answered", func() bool { return len(r.service.slots) == 1 })
	cancel()
	<-gone
	r.eventually("the request has ended", func() bool { return len(r.service.slots) == 0 })
	if got := r.counter("immutable_query_unavailable_total"); got != 0 {
		t.Errorf("unavailable counted %v times, want 0", got)
	}
}

func TestConfig(t *testing.T) {
	ch := clickhouse.Config{DSN: "clickhouse://127.0.0.1:9000/db"}
	for name, c := range map[string]struct {
		cfg  Config
		says string
	}{
		"defaults":        {Config{Kafka: anyKafka, ClickHouse: ch}, ""},
		"no clickhouse":   {Config{}, "clickhouse"},
		"no kafka":        {Config{ClickHouse: ch}, "kafka"},
		"checkpoint":      {Config{Kafka: anyKafka, ClickHouse: ch, CheckpointInterval: 1}, "checkpoint interval is 1ns"},
		"leaves bytes":    {Config{Kafka: anyKafka, ClickHouse: ch, MaxLeavesBytes: 1}, "max leaves bytes is 1"},
		"body timeout":    {Config{Kafka: anyKafka, ClickHouse: ch, BodyTimeout: 5 * time.Second}, "body timeout is 5s"},
		"request timeout": {Config{Kafka: anyKafka, ClickHouse: ch, RequestTimeout: 5 * time.Second}, "request timeout is 5s"},
		"max requests":    {Config{Kafka: anyKafka, ClickHouse: ch, MaxRequests: -1}, "max requests is -1"},
		"page bytes":      {Config{Kafka: anyKafka, ClickHouse: ch, MaxPageBytes: 1}, "max page bytes is 1"},
		"count rows":      {Config{Kafka: anyKafka, ClickHouse: ch, MaxCountRows: -1}, "max count rows is -1"},
		"count timeout":   {Config{Kafka: anyKafka, ClickHouse: ch, CountTimeout: time.Minute}, "count timeout is 1m0s"},
	} {
		err := c.cfg.Validate()
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}
