package query

import (
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

var benchEvents = flag.Int("bench.events", 200_000, "events of the workspace that BenchmarkPage reads; 5,000,000 for the published figures")

// BenchmarkPage compares GET /events with the same statements sent straight to ClickHouse's HTTP interface, in turns.
// It reports the median and the 99th percentile of both in milliseconds, and the API's distance to the straight ones.
//
//	go test ./query -run '^$' -bench Page -benchtime 300x -bench.events 5000000
func BenchmarkPage(b *testing.B) {
	r := newRig(b, func(c *Config) { c.CountTimeout = 0 }) // its default
	r.fill(*benchEvents)
	middle := r.page(r.tenant, values("to", benchTime(*benchEvents/2), "limit", "1"))
	if len(middle.Data) != 1 {
		b.Fatal("the middle of the workspace is empty")
	}
	filters := map[string]url.Values{
		"first": {}, "deep": values("to", benchTime(*benchEvents/2)), "first-100": values("limit", "100"),
		"resource": values("resource_id", "service-77"), "actor": values("actor_id", "eng_777"), "session": values("session_id", "sess_777"),
		"metadata": values("metadata[new_value]", "777"),
	}
	for _, name := range []string{"first", "deep", "first-100", "resource", "actor", "session", "metadata"} {
		for _, total := range []string{"false", "true"} {
			q := filters[name]
			q.Set("total", total)
			b.Run(name+"/total="+total, func(b *testing.B) { r.with(b).compare(b, q) })
		}
	}
}

func (r *rig) with(tb testing.TB) *rig {
	tb.Helper()
	sub := *r
	sub.tb = tb
	return &sub
}

func benchTime(n int) string {
	return time.UnixMicro(1_700_000_000_000_000 + int64(n)*500_000).UTC().Format(time.RFC3339Nano)
}

// fill makes the workspace's events inside ClickHouse: one every half second, 12 chains, 2,000 resources, 5,000 actors,
// sessions of 20 events.
func (r *rig) fill(n int) {
	const columns = `toFixedString(unhex({ws:String}), 16) AS ws, number AS n, sipHash64(n) AS h, sipHash64(n, 1) AS g,
 fromUnixTimestamp64Micro(toInt64(1700000000000000 + n * 500000 + h % 400000), 'UTC') AS at, at + INTERVAL 30 MILLISECOND AS rec,
 toFixedString(concat(substring(reinterpretAsFixedString(byteSwap(toUInt64(toUnixTimestamp64Milli(rec)))), 3, 6), reinterpretAsFixedString(h), substring(reinterpretAsFixedString(g), 1, 2)), 16) AS id,
 reinterpretAsFixedString(toUInt128(1 + n % 12)) AS chain`
	const events = `INSERT INTO events WITH ` + columns + `,
 ['deployment.started','deployment.finished','config.changed','secret.rotated','incident.created','user.login','feature_flag.toggled','deployment.rollback'][1 + h % 8] AS act,
 concat('eng_', toString(g % 5000)) AS actor, concat('service-', toString(intDiv(g, 5000) % 2000)) AS svc, concat('sess_', toString(intDiv(n, 20))) AS sess,
 lower(hex(SHA1(toString(n)))) AS sha, toString(h % 5000) AS value, toString(n % 9999) AS pr,
 concat('{"action":"', act, '","actor_id":"', actor, '","actor_name":"Engineer ', actor, '","actor_type":"engineer","metadata":{"change_reason":"Scaling for product launch traffic","config_key":"rate_limit.requests_per_minute","environment":"production","git_sha":"', sha, '","new_value":"', value, '","old_value":"1000","pr_number":', pr, ',"region":"us-east-1"},"occurred_at":"', replaceOne(toString(at), ' ', 'T'), 'Z","resource":"service","resource_id":"', svc, '","resource_name":"', svc, '","session_id":"', sess, '"}') AS body
SELECT toYYYYMM(rec), ws, id, 2, at, rec, act, '', actor, concat('Engineer ', actor), 'engineer', 'service', svc, svc, sess, '', '', '', [], [], [],
 map('change_reason', 'Scaling for product launch traffic', 'config_key', 'rate_limit.requests_per_minute', 'environment', 'production', 'git_sha', sha, 'new_value', value, 'old_value', '1000', 'pr_number', pr, 'region', 'us-east-1'),
 body, chain, intDiv(n, 12) + 1, reinterpretAsFixedString(toUInt128(h)), '', 0, n % 12, intDiv(n, 12), n % 12, intDiv(n, 12)
FROM numbers({n:UInt64}) SETTINGS max_partitions_per_insert_block = 1000`
	const leaves = `INSERT INTO leaves (part, workspace, chain, sequence, leaf_hash, node, id, kind, recorded_at, input_generation,
 input_partition, input_offset, ledger_partition, ledger_offset) WITH ` + columns + `
SELECT toYYYYMM(rec), ws, chain, intDiv(n, 12), SHA256(toString(n)), '', id, 2, rec, 0, n % 12, intDiv(n, 12), n % 12, intDiv(n, 12)
FROM numbers({n:UInt64} + 12) SETTINGS max_partitions_per_insert_block = 1000`
	r.tb.Helper()
	for _, statement := range []string{events, leaves} {
		err := r.conn.Exec(r.tb.Context(), statement,
			driver.NamedValue{Name: "ws", Value: hex.EncodeToString(r.workspace.ID[:])}, driver.NamedValue{Name: "n", Value: n})
		if err != nil {
			r.tb.Fatal(err)
		}
	}
	for _, table := range []string{"events", "leaves"} { // as after a while of background merges
		if err := r.conn.Exec(r.tb.Context(), "OPTIMIZE TABLE "+table+" FINAL"); err != nil {
			r.tb.Fatal(err)
		}
	}
}

// compare asks for the page after the first, so that a cursor is there, in turns through the API and straight.
func (r *rig) compare(b *testing.B, q url.Values) {
	b.Helper()
	if q.Has("to") {
		p := r.page(r.tenant, q)
		q = url.Values(http.Header(q).Clone())
		q.Set("cursor", *p.Pagination.NextCursor)
	}
	s := r.straight(q)
	api := func() { r.page0(q) }
	arms := []func(){api, s.ask}
	times := make([][]time.Duration, len(arms))
	for range 10 { // warm up
		api()
		s.ask()
	}
	for i := range b.N {
		for k := range arms {
			arm := (i + k) % len(arms) // A-B, B-A
			began := time.Now()
			arms[arm]()
			times[arm] = append(times[arm], time.Since(began))
		}
	}
	at := func(arm int, quantile float64) float64 {
		slices.Sort(times[arm])
		return float64(times[arm][int(quantile*float64(len(times[arm])-1))].Microseconds()) / 1000
	}
	b.ReportMetric(at(0, 0.5), "api-p50-ms")
	b.ReportMetric(at(1, 0.5), "sql-p50-ms")
	b.ReportMetric(at(0, 0.5)-at(1, 0.5), "p50-over-ms")
	b.ReportMetric(at(0, 0.99), "api-p99-ms")
	b.ReportMetric(at(1, 0.99), "sql-p99-ms")
	b.ReportMetric(at(0, 0.99)/at(1, 0.99), "p99-ratio")
	b.ReportMetric(0, "ns/op")
}

// page0 gets a page and does not look into it.
func (r *rig) page0(q url.Values) {
	req, err := http.NewRequestWithContext(r.tb.Context(), http.MethodGet, r.url+"/api/v1/events?"+q.Encode(), http.NoBody)
	if err != nil {
		r.tb.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+r.token)
	fetch(r.tb, req)
}

// fetch reads an answer, which must be a 200 or one of allowed.
func fetch(tb testing.TB, req *http.Request, allowed ...int) {
	tb.Helper()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK && !slices.Contains(allowed, res.StatusCode) {
		body, _ := io.ReadAll(res.Body)
		tb.Fatalf("%s: %s", res.Status, body)
	}
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		tb.Fatal(err)
	}
}

// straight is what the API sends to ClickHouse for a page, over HTTP: page, then leaves, and the count beside them.
type straight struct {
	tb                  testing.TB
	page, leaves, count *http.Request
}

func (r *rig) straight(q url.Values) *straight {
	r.tb.Helper()
	req, err := parsePage(q.Encode())
	if err != nil {
		r.tb.Fatal(err)
	}
	var after *position
	if req.cursor != "" {
		p, err := decodeCursor(req.cursor, req.digest(r.workspace.ID))
		if err != nil {
			r.tb.Fatal(err)
		}
		after = &p
	}
	cfg := Config{}.withDefaults()
	l := limits{timeout: cfg.RequestTimeout}
	s := &straight{tb: r.tb, page: r.overHTTP(pageStatement(r.workspace.ID, &req, after, req.limit, l))}
	events, _, err := r.service.page(r.tb.Context(), r.workspace.ID, &req, after)
	if err != nil {
		r.tb.Fatal(err)
	}
	var keys leafKeys
	for i := range events {
		own, previous := events[i].leafKeys()
		keys = append(keys, own, previous)
	}
	s.leaves = r.overHTTP(leavesStatement(r.workspace.ID, keys, l))
	if req.total {
		// A count that is given up for its rows is no part of the baseline; one that is given up for its time ends as in
		// the API, with ClickHouse's 408.
		if n, err := r.service.count(r.tb.Context(), r.workspace.ID, &req.filter); err == nil && n != nil {
			s.count = r.overHTTP(countStatement(r.workspace.ID, &req.filter, limits{timeout: cfg.CountTimeout, rows: cfg.MaxCountRows}))
		}
	}
	return s
}

func (s *straight) ask() {
	var count sync.WaitGroup
	if s.count != nil {
		count.Go(func() { fetch(s.tb, s.count.Clone(s.tb.Context()), http.StatusRequestTimeout) })
	}
	fetch(s.tb, s.page.Clone(s.tb.Context()))
	fetch(s.tb, s.leaves.Clone(s.tb.Context()))
	count.Wait()
}

func (r *rig) overHTTP(s *statement) *http.Request {
	r.tb.Helper()
	q := url.Values{"database": {r.db.Database}}
	for _, a := range s.args {
		named := a.(driver.NamedValue)
		var value string
		switch v := named.Value.(type) {
		case []string:
			quoted := make([]string, len(v))
			for i := range v {
				quoted[i] = "'" + v[i] + "'"
			}
			value = "[" + strings.Join(quoted, ",") + "]"
		default:
			value = fmt.Sprint(v)
		}
		q.Set("param_"+named.Name, value)
	}
	text := strings.Replace(s.text.String(), "\nSETTINGS", "\nFORMAT Native\nSETTINGS", 1)
	q.Set("query", text)
	target := "http://" + r.db.Chdb.HTTPAddr() + "/?" + q.Encode()
	req, err := http.NewRequestWithContext(r.tb.Context(), http.MethodGet, target, http.NoBody)
	if err != nil {
		r.tb.Fatal(err)
	}
	dsn, err := url.Parse(r.db.Chdb.DSN())
	if err != nil {
		r.tb.Fatal(err)
	}
	password, _ := dsn.User.Password()
	req.SetBasicAuth(dsn.User.Username(), password)
	return req
}

// BenchmarkRender is the rendering of one event of 450 bytes.
func BenchmarkRender(b *testing.B) {
	body := []byte(`{"action":"config.changed","actor_id":"eng_k4m8p2","actor_name":"Priya Sharma","actor_type":"engineer","metadata":{"change_reason":"Scaling for product launch traffic","config_key":"rate_limit.requests_per_minute","environment":"production","git_sha":"0a4d55a8d778e5022fab701977c5d840bbc486d0","new_value":"2000","old_value":"1000","pr_number":` + strconv.Itoa(1847) + `},"occurred_at":"2026-11-01T12:00:00.000000Z","resource":"service","resource_id":"api-gateway","resource_name":"API Gateway","session_id":"sess_b2c3d4e5"}`)
	r := newRenderer()
	e := &row{body: body, sequence: 1}
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if buf, err = r.appendEvent(buf[:0], e, nil); err != nil {
			b.Fatal(err)
		}
	}
}
