package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
)

// upstreams is how the gateway finds the replicas of a service.
var upstreams = regexp.MustCompile(`dynamic a (\w+) 8080 \{`)

// startGateway runs the compose file's gateway as it is configured, but for where it listens and what replicas puts in the
// place of what finds the replicas of a service. It returns host:port.
func startGateway(t *testing.T, p *types.Project, replicas func(service string) string) string {
	t.Helper()
	caddy, dir := program(t, "caddy"), t.TempDir()
	text, err := os.ReadFile(filepath.Join(root, "deploy/gateway/Caddyfile"))
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile(upstreams.String() + `[^}]*\}`)
	cfg := block.ReplaceAllStringFunc(string(text), func(m string) string { return replicas(upstreams.FindStringSubmatch(m)[1]) })
	gateway := freeAddr(t)
	_, port, _ := strings.Cut(gateway, ":")
	if !strings.Contains(cfg, "\n:8080 {\n") || strings.Contains(cfg, " 8080 {") {
		t.Fatalf("the gateway's configuration has changed, and this test has not:\n%s", cfg)
	}
	cfg = strings.Replace(cfg, "\n:8080 {\n", "\n:"+port+" {\n\tbind 127.0.0.1\n", 1)
	path := filepath.Join(dir, "Caddyfile")
	if err := os.WriteFile(path, []byte(cfg), 0o600); err != nil {
		t.Fatal(err)
	}
	command := slices.Clone(p.Services["gateway"].Command)
	command[slices.Index(command, "/etc/caddy/Caddyfile")] = path
	process := start(t, "gateway", []string{"XDG_DATA_HOME=" + dir, "XDG_CONFIG_HOME=" + dir}, caddy, command[1:]...)
	eventually(t, startLimit, func() error {
		if !process.running() {
			t.Fatalf("the gateway has ended:\n%s", process.tail(40))
		}
		resp, err := http.Get("http://" + gateway + "/gateway/livez")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK || string(body) != "live" {
			return fmt.Errorf("%s %q: %w", resp.Status, body, err)
		}
		return nil
	})
	return gateway
}

// dns answers every question for an address with those that its first label has at the moment.
type dns struct {
	conn  net.PacketConn
	mu    sync.Mutex
	names map[string][]net.IP
	asked map[string]bool
}

func startDNS(t *testing.T) *dns {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &dns{conn: conn, names: map[string][]net.IP{}, asked: map[string]bool{}}
	var done sync.WaitGroup
	done.Go(func() {
		for b := make([]byte, 512); ; {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(d.answer(b[:n]), from)
		}
	})
	t.Cleanup(func() {
		_ = conn.Close()
		done.Wait()
	})
	return d
}

// answer to a question as of RFC 1035, section 4; one for anything but IPv4 addresses (type 1) is empty.
func (d *dns) answer(question []byte) []byte {
	name := question[13 : 13+question[12]]
	end := 12
	for question[end] != 0 {
		end += 1 + int(question[end])
	}
	kind := binary.BigEndian.Uint16(question[end+1:])
	d.mu.Lock()
	defer d.mu.Unlock()
	var ips []net.IP
	if kind == 1 {
		ips = d.names[string(name)]
		d.asked[string(name)] = true
	}
	a := append([]byte{question[0], question[1], 0x81, 0x80, 0, 1, 0, byte(len(ips)), 0, 0, 0, 0}, question[12:end+5]...)
	for _, ip := range ips {
		a = append(a, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)
		a = append(a, ip.To4()...)
	}
	return a
}

func (d *dns) set(name string, ips ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.names[name] = nil
	for _, ip := range ips {
		d.names[name] = append(d.names[name], net.ParseIP(ip))
	}
}

// wasAsked returns nil once there was a question for query.
func (d *dns) wasAsked() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.asked["query"] {
		return errors.New("the gateway has not asked where query is")
	}
	return nil
}

const (
	// live is where a replica listens, dead where nobody does.
	live, dead = "127.0.0.1", "127.0.0.2"
	mib        = 1 << 20
)

// seen is what a replica behind the gateway has got.
type seen struct {
	Service, Method, Path, RequestID, Traceparent, Encoding string
	ForwardedFor                                            []string
	Bytes                                                   int64
}

// gatewayRig is the gateway with a replica of each service that answers with what it has got.
type gatewayRig struct {
	url      string
	dns      *dns
	client   *http.Client
	replicas map[string]*httptest.Server
	mu       sync.Mutex
	count    map[string]int // requests by X-Request-Id
	next     chan struct{}  // lets a live tail write its second event
	left     chan struct{}  // closed when the reader of a live tail has gone
}

func newGatewayRig(t *testing.T) *gatewayRig {
	t.Helper()
	project, err := loadCompose(t.Context(), "IMMUTABLE_SECRETS_GID=1000")
	if err != nil {
		t.Fatal(err)
	}
	r := &gatewayRig{
		dns: startDNS(t), replicas: map[string]*httptest.Server{}, count: map[string]int{},
		next: make(chan struct{}), left: make(chan struct{}),
		client: &http.Client{Timeout: startLimit, Transport: &http.Transport{}},
	}
	t.Cleanup(r.client.CloseIdleConnections)
	for _, service := range []string{"ingest", "query"} {
		r.replicas[service] = httptest.NewServer(r.replica(service))
		t.Cleanup(r.replicas[service].Close)
	}
	r.url = "http://" + startGateway(t, project, func(service string) string {
		_, port, _ := strings.Cut(r.replicas[service].Listener.Addr().String(), ":")
		return fmt.Sprintf("dynamic a %s %s {\nrefresh 2s\nresolvers %s\n}", service, port, r.dns.conn.LocalAddr())
	})
	return r
}

func (r *gatewayRig) replica(service string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/api/v1/events/stream" {
			r.tail(w, req)
			return
		}
		n, err := io.Copy(io.Discard, req.Body)
		if err != nil {
			return // of no answer the gateway makes a 503
		}
		id := req.Header.Get("X-Request-Id")
		r.mu.Lock()
		r.count[id]++
		r.mu.Unlock()
		w.Header().Set("X-Request-Id", id)
		_ = json.NewEncoder(w).Encode(seen{
			Service: service, Method: req.Method, Path: req.URL.Path, RequestID: id,
			Traceparent: req.Header.Get("Traceparent"), Encoding: req.Header.Get("Content-Encoding"),
			ForwardedFor: req.Header.Values("X-Forwarded-For"), Bytes: n,
		})
	})
}

// tail writes an event, and another when it is told to; then it waits until its reader goes.
func (r *gatewayRig) tail(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	_, _ = io.WriteString(w, "data: 1\n\n")
	_ = http.NewResponseController(w).Flush()
	select {
	case <-r.next:
		_, _ = io.WriteString(w, "data: 2\n\n")
		_ = http.NewResponseController(w).Flush()
	case <-req.Context().Done():
	}
	<-req.Context().Done()
	close(r.left)
}

// send returns what the replica got, or for a status that is none of its own the error's code.
func (r *gatewayRig) send(t *testing.T, method, path string, content io.Reader, header ...string) (int, http.Header, seen, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, r.url+path, content)
	if err != nil {
		t.Fatal(err)
	}
	if b, ok := content.(body); ok && b.known {
		req.ContentLength = b.length
	}
	for pair := range slices.Chunk(header, 2) {
		req.Header.Set(pair[0], pair[1])
	}
	resp, err := r.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct {
		seen
		Error, Message string
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		t.Fatalf("%s %s: %s, which is not JSON: %v", method, path, resp.Status, err)
	}
	if resp.StatusCode != http.StatusOK && (answer.Message == "" || resp.Header.Get("Content-Type") != "application/json") {
		t.Errorf("%s %s: %s as %s says nothing", method, path, resp.Status, resp.Header.Get("Content-Type"))
	}
	return resp.StatusCode, resp.Header, answer.seen, answer.Error
}

// TestGateway holds the gateway to what its configuration promises, with replicas that answer what they have got.
func TestGateway(t *testing.T) {
	long(t)
	r := newGatewayRig(t)
	r.dns.set("ingest", dead, live)
	r.dns.set("query", dead)

	// A replica that is being replaced: the request waits until DNS knows of the next.
	t.Run("replaced replica", func(t *testing.T) {
		var next sync.WaitGroup
		defer next.Wait()
		next.Go(func() {
			if err := poll(t.Context(), r.dns.wasAsked); err != nil {
				t.Error(err)
			}
			r.dns.set("query", live)
		})
		if status, _, got, _ := r.send(t, http.MethodGet, "/api/v1/events", nil); status != http.StatusOK || got.Service != "query" {
			t.Errorf("%d %+v", status, got)
		}
	})
	t.Run("dead replica", func(t *testing.T) { r.deadReplica(t) })
	t.Run("routes", func(t *testing.T) { r.routes(t) })
	t.Run("headers", func(t *testing.T) { r.headers(t) })
	t.Run("bodies", func(t *testing.T) { r.bodies(t) })
	t.Run("live tail", func(t *testing.T) { r.liveTail(t) })
	t.Run("no replica", func(t *testing.T) {
		r.replicas["query"].CloseClientConnections()
		r.replicas["query"].Close()
		status, header, _, code := r.send(t, http.MethodGet, "/api/v1/events", nil, "X-Request-Id", "lost")
		if status != http.StatusServiceUnavailable || code != "unavailable" || header.Get("Retry-After") != "1" ||
			header.Get("X-Request-Id") != "lost" {
			t.Errorf("%d %s %v", status, code, header)
		}
	})
}

// deadReplica posts while one of two addresses has nobody behind it: each body arrives whole, and once.
func (r *gatewayRig) deadReplica(t *testing.T) {
	t.Helper()
	for i := range 20 {
		id := fmt.Sprint("dead-", i)
		status, _, got, code := r.send(t, http.MethodPost, "/api/v1/events/batch", zeros(mib), "X-Request-Id", id)
		if status != http.StatusOK || got.Bytes != mib {
			t.Fatalf("%d %s, %d bytes", status, code, got.Bytes)
		}
		r.mu.Lock()
		if n := r.count[id]; n != 1 {
			t.Errorf("the request was made %d times", n)
		}
		r.mu.Unlock()
	}
}

func (r *gatewayRig) routes(t *testing.T) {
	t.Helper()
	for _, c := range []struct{ method, path, service string }{
		{http.MethodPost, "/api/v1/events", "ingest"},
		{http.MethodPost, "/api/v1/events/batch", "ingest"},
		{http.MethodGet, "/api/v1/events", "query"},
		{http.MethodGet, "/api/v1/events/batch", "query"},
		{http.MethodPost, "/api/v1/keys", "query"},
		{http.MethodDelete, "/api/v1/keys/1", "query"},
		{http.MethodGet, "/", "query"},
		{http.MethodGet, "/livez", ""},
		{http.MethodGet, "/readyz", ""},
		{http.MethodGet, "/metrics", ""},
		{http.MethodGet, "/debug/pprof/heap", ""},
		{http.MethodGet, "/x/../metrics", ""},
	} {
		status, _, got, code := r.send(t, c.method, c.path, nil)
		if c.service == "" && (status != http.StatusNotFound || code != "not_found") {
			t.Errorf("%s %s: %d %s, want a 404", c.method, c.path, status, code)
		}
		if got.Service != c.service || c.service != "" && (got.Method != c.method || got.Path != c.path) {
			t.Errorf("%s %s: %+v, want it at %q", c.method, c.path, got, c.service)
		}
	}
}

func (r *gatewayRig) headers(t *testing.T) {
	t.Helper()
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	_, header, got, _ := r.send(t, http.MethodPost, "/api/v1/events", strings.NewReader("x"),
		"X-Request-Id", "req-1", "Traceparent", trace, "Content-Encoding", "zstd", "X-Forwarded-For", "203.0.113.7")
	if got.RequestID != "req-1" || header.Get("X-Request-Id") != "req-1" {
		t.Errorf("X-Request-Id req-1 arrives as %q and comes back as %q", got.RequestID, header.Get("X-Request-Id"))
	}
	if got.Traceparent != trace || got.Encoding != "zstd" {
		t.Errorf("%+v", got)
	}
	// Allow lists of API keys look at it: what a client says of itself is not in it.
	if !slices.Equal(got.ForwardedFor, []string{live}) {
		t.Errorf("X-Forwarded-For is %q, want the client's own address", got.ForwardedFor)
	}
	for _, bad := range []string{"", "not allowed", strings.Repeat("x", 65)} {
		_, header, got, _ := r.send(t, http.MethodGet, "/api/v1/events", nil, "X-Request-Id", bad)
		if got.RequestID == bad || got.RequestID == "" || header.Get("X-Request-Id") != got.RequestID {
			t.Errorf("X-Request-Id %q arrives as %q and comes back as %q", bad, got.RequestID, header.Get("X-Request-Id"))
		}
	}
	if _, header, _, _ := r.send(t, http.MethodGet, "/metrics", nil, "X-Request-Id", "req-2"); header.Get("X-Request-Id") != "req-2" {
		t.Errorf("an answer of the gateway's own has X-Request-Id %q", header.Get("X-Request-Id"))
	}
}

// bodies of the greatest size pass, and ingest sees a little more: its answer to what is too large names its limit.
func (r *gatewayRig) bodies(t *testing.T) {
	t.Helper()
	for _, c := range []struct {
		path string
		most int64
	}{{"/api/v1/events/batch", 9 * mib}, {"/api/v1/keys", mib}} {
		for _, known := range []bool{true, false} { // whether the client says how long its body is
			status, _, got, code := r.send(t, http.MethodPost, c.path, body{zeros(c.most), c.most, known})
			if status != http.StatusOK || got.Bytes != c.most {
				t.Errorf("%s with %d bytes, known %v: %d %s, %d bytes arrive", c.path, c.most, known, status, code, got.Bytes)
			}
			content := zeros(c.most + 1)
			if known {
				// Refused by what it says of itself, while most of it is still to come.
				unsent, end := io.Pipe()
				defer end.Close()
				content = io.MultiReader(zeros(mib/2), unsent)
			}
			status, header, _, code := r.send(t, http.MethodPost, c.path, body{content, c.most + 1, known}, "X-Request-Id", "large")
			if status != http.StatusRequestEntityTooLarge || code != "too_large" || header.Get("X-Request-Id") != "large" {
				t.Errorf("%s with %d bytes, known %v: %d %s %v", c.path, c.most+1, known, status, code, header)
			}
			began := time.Now()
			if status, _, _, code := r.send(t, http.MethodGet, "/api/v1/events", nil); status != http.StatusOK || time.Since(began) > 4*time.Second {
				t.Errorf("after another's body that was too large: %d %s after %v", status, code, time.Since(began))
			}
		}
	}
}

// body is of a length that the client says, or does not know.
type body struct {
	io.Reader
	length int64
	known  bool
}

func zeros(n int64) io.Reader { return bytes.NewReader(make([]byte, n)) }

// liveTail reads an event before the next is written, and leaves: the replica learns of it.
func (r *gatewayRig) liveTail(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url+"/api/v1/events/stream", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	read := func(want string) {
		t.Helper()
		for lines.Scan() {
			if lines.Text() == want {
				return
			}
		}
		t.Fatalf("no %q: %v", want, lines.Err())
	}
	read("data: 1")
	close(r.next)
	read("data: 2")
	cancel()
	select {
	case <-r.left:
	case <-time.After(startLimit):
		t.Error("the replica does not learn that its reader has gone")
	}
}
