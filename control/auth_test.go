package control

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/internal/kafka"
)

// configRecord is an object as it comes from the config topic.
func configRecord(tb testing.TB, offset int64, o *object, s *sealer) *kgo.Record {
	tb.Helper()
	key, value := encodeObject(tb, o, s)
	return &kgo.Record{Offset: offset, Key: key, Value: value}
}

// valueOf reads a counter or a gauge.
func valueOf(tb testing.TB, m prometheus.Metric) float64 {
	tb.Helper()
	var out dto.Metric
	if err := m.Write(&out); err != nil {
		tb.Fatal(err)
	}
	return out.GetCounter().GetValue() + out.GetGauge().GetValue()
}

// stillView is a view that holds objects and reads nothing.
func stillView(tb testing.TB, objects ...*object) *View {
	tb.Helper()
	v, err := NewView(ViewConfig{
		Kafka: kafka.Config{Brokers: []string{"127.0.0.1:1"}}, MasterKey: MasterKey{1},
	}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	for i, o := range objects {
		sealed := v.state.sealer
		if o.changedBy == "another master key" {
			sealed = testSealer(tb, MasterKey{2})
		}
		if _, err := v.state.apply(configRecord(tb, int64(i), o, sealed)); err != nil {
			tb.Log(err)
		}
	}
	v.publish(true)
	return v
}

func keyObject(id byte, workspace byte, secret string, f func(*Key)) *object {
	k := &Key{
		ID: [16]byte{id}, Workspace: [16]byte{workspace}, Name: "key", Hash: HashSecret(secret), Hint: hintOf(secret),
		Scopes: []Scope{ScopeRead}, CreatedAt: time.UnixMicro(1).UTC(), Version: 1,
	}
	if f != nil {
		f(k)
	}
	return &object{version: 1, key: k}
}

func TestRequire(t *testing.T) {
	revoked := keyObject(3, 1, "imk_sk_revoked", nil)
	revoked.deleted = true
	gone := &object{version: 2, deleted: true, workspace: testWorkspace(2, "gone")}
	broken := &object{version: 2, workspace: testWorkspace(4, "broken"), changedBy: "another master key"}
	v := stillView(t,
		// Compaction puts a workspace behind its keys.
		keyObject(1, 1, "imk_sk_good", nil),
		&object{version: 1, workspace: testWorkspace(1, "a")},
		keyObject(2, 1, "imk_sk_expired", func(k *Key) { k.ExpiresAt = time.Now().Add(-time.Second) }),
		revoked,
		keyObject(4, 1, "imk_sk_later", func(k *Key) { k.ExpiresAt = time.Now().Add(time.Hour) }),
		keyObject(5, 1, "imk_sk_ranges", func(k *Key) {
			k.AllowedCIDRs = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}
		}),
		keyObject(6, 1, "imk_sk_writer", func(k *Key) { k.Scopes = []Scope{ScopeWrite, ScopeAdmin} }),
		keyObject(7, 2, "imk_sk_gone", nil), gone,
		keyObject(8, 4, "imk_sk_broken", nil), broken,
	)
	tests := []struct {
		name, header, peer string
		status             int
		message            string
	}{
		{"good", "Bearer imk_sk_good", "", 200, ""},
		{"scheme in lower case", "bearer imk_sk_good", "", 200, ""},
		{"two spaces", "Bearer  imk_sk_good ", "", 200, ""},
		{"not expired yet", "Bearer imk_sk_later", "", 200, ""},
		{"no header", "", "", 401, "Authorization: Bearer imk_sk_"},
		{"no token", "Bearer", "", 401, "Authorization: Bearer imk_sk_"},
		{"another scheme", "Basic imk_sk_good", "", 401, "Authorization: Bearer imk_sk_"},
		{"no scheme", "imk_sk_good", "", 401, "Authorization: Bearer imk_sk_"},
		{"unknown", "Bearer imk_sk_bad", "", 401, "not known"},
		{"cut", "Bearer imk_sk_goo", "", 401, "not known"},
		{"with more behind it", "Bearer imk_sk_good x", "", 401, "not known"},
		{"huge", "Bearer " + strings.Repeat("x", 100_000), "", 401, "not known"},
		{"expired", "Bearer imk_sk_expired", "", 401, "expired"},
		{"revoked", "Bearer imk_sk_revoked", "", 401, "revoked"},
		{"of a deleted workspace", "Bearer imk_sk_gone", "", 401, "deleted"},
		{"wrong scope", "Bearer imk_sk_writer", "", 403, "scope events:read"},
		{"allowed address", "Bearer imk_sk_ranges", "192.0.2.7:1234", 200, ""},
		{"allowed address mapped into IPv6", "Bearer imk_sk_ranges", "[::ffff:192.0.2.7]:1234", 200, ""},
		{"allowed IPv6 address", "Bearer imk_sk_ranges", "[2001:db8::1%eth0]:1234", 200, ""},
		{"address not allowed", "Bearer imk_sk_ranges", "192.0.3.7:1234", 403, "192.0.3.7"},
		{"no address", "Bearer imk_sk_ranges", "@", 403, "address"},
		{"of a workspace that cannot be read", "Bearer imk_sk_broken", "", 503, "ask the operator"},
	}
	handler := Require(v, ScopeRead, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := PrincipalFrom(r.Context())
		if p == nil || p.Workspace.Name != "a" || p.Key.Workspace != p.Workspace.ID {
			t.Errorf("principal %+v", p)
		}
		w.WriteHeader(http.StatusOK)
	}))
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, "/api/v1/events", nil)
			if test.header != "" {
				r.Header.Set("Authorization", test.header)
			}
			if test.peer != "" {
				r.RemoteAddr = test.peer
			}
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			if w.Code != test.status {
				t.Fatalf("status %d: %s", w.Code, w.Body)
			}
			if w.Code == http.StatusOK {
				return
			}
			var body struct{ Error, Message string }
			if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
				t.Fatal(err)
			}
			code := map[int]string{401: "unauthenticated", 403: "forbidden", 503: "unavailable"}[test.status]
			if body.Error != code || !strings.Contains(body.Message, test.message) {
				t.Errorf("%+v, want %s with %q", body, code, test.message)
			}
			if got := w.Header().Get("WWW-Authenticate"); (got == "Bearer") != (test.status == 401) {
				t.Errorf("WWW-Authenticate: %q", got)
			}
			if got := w.Header().Get("Retry-After"); (got != "") != (test.status == 503) {
				t.Errorf("Retry-After: %q", got)
			}
		})
	}
	for code, want := range map[string]float64{
		httpserver.CodeUnauthenticated: 11, httpserver.CodeForbidden: 3, httpserver.CodeUnavailable: 1,
	} {
		if got := valueOf(t, v.metrics.refusals[code]); got != want {
			t.Errorf("%s was counted %v times, want %v", code, got, want)
		}
	}

	if PrincipalFrom(t.Context()) != nil {
		t.Error("a principal from nowhere")
	}
	v.index.Store(nil)
	r := httptest.NewRequest(http.MethodGet, "/api/v1/events", nil)
	r.Header.Set("Authorization", "Bearer imk_sk_good")
	w := httptest.NewRecorder()
	if handler.ServeHTTP(w, r); w.Code != http.StatusServiceUnavailable {
		t.Errorf("a view that has read nothing yet answers %d", w.Code)
	}
}

func TestClientAddr(t *testing.T) {
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	tests := []struct {
		name, peer string
		forwarded  []string
		trusted    []netip.Prefix
		want       string
	}{
		{"nobody is trusted by default", "10.0.0.1:1", []string{"192.0.2.1"}, nil, "10.0.0.1"},
		{"the peer is not a proxy", "192.0.2.9:1", []string{"192.0.2.1"}, trusted, "192.0.2.9"},
		{"one proxy", "10.0.0.1:1", []string{"192.0.2.1"}, trusted, "192.0.2.1"},
		{"a client that lies", "10.0.0.1:1", []string{"203.0.113.1, 192.0.2.1"}, trusted, "192.0.2.1"},
		{"two proxies", "10.0.0.1:1", []string{"203.0.113.1, 192.0.2.1,10.0.0.2"}, trusted, "192.0.2.1"},
		{"two headers", "10.0.0.1:1", []string{"203.0.113.1,192.0.2.1", "10.0.0.2"}, trusted, "192.0.2.1"},
		{"only proxies", "10.0.0.1:1", []string{"10.0.0.3, 10.0.0.2"}, trusted, "10.0.0.3"},
		{"no header", "10.0.0.1:1", nil, trusted, "10.0.0.1"},
		{"ports and brackets", "[fd00::1]:1", []string{"[2001:db8::1]:443, 10.0.0.2:80"}, trusted, "2001:db8::1"},
		{"mapped into IPv6", "[::ffff:10.0.0.1]:1", []string{"::ffff:192.0.2.1"}, trusted, "192.0.2.1"},
		{"not an address", "10.0.0.1:1", []string{"192.0.2.1, unknown"}, trusted, "invalid IP"},
		{"an empty entry", "10.0.0.1:1", []string{"192.0.2.1,"}, trusted, "invalid IP"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			r.RemoteAddr = test.peer
			for _, line := range test.forwarded {
				r.Header.Add("X-Forwarded-For", line)
			}
			if got := clientAddr(r, test.trusted).String(); got != test.want {
				t.Errorf("%s, want %s", got, test.want)
			}
		})
	}
}

func TestViewLists(t *testing.T) {
	revoked := keyObject(3, 1, "imk_sk_revoked", nil)
	revoked.deleted = true
	v := stillView(t,
		&object{version: 1, workspace: testWorkspace(2, "b")},
		&object{version: 1, workspace: testWorkspace(1, "a")},
		keyObject(2, 1, "imk_sk_second", func(k *Key) { k.CreatedAt = time.UnixMicro(2).UTC() }),
		keyObject(1, 1, "imk_sk_first", nil), revoked,
	)
	var names []string
	for _, w := range v.Workspaces() {
		names = append(names, w.Name)
	}
	if diff := cmp.Diff([]string{"a", "b"}, names); diff != "" {
		t.Error(diff)
	}
	var hints []string
	for _, k := range v.Keys([16]byte{1}) {
		hints = append(hints, k.Hint)
	}
	if diff := cmp.Diff([]string{"t", "d"}, hints); diff != "" {
		t.Error(diff)
	}
	if w, ok := v.WorkspaceByName("b"); !ok || w.ID != ([16]byte{2}) {
		t.Errorf("by name: %+v", w)
	}
	if w, ok := v.Workspace([16]byte{2}); !ok || w.Name != "b" {
		t.Errorf("by id: %+v", w)
	}
	if _, ok := v.Workspace([16]byte{3}); ok {
		t.Error("a workspace that is not there")
	}
}

func BenchmarkAuthenticate(b *testing.B) {
	objects := []*object{{version: 1, workspace: testWorkspace(1, "a")}}
	for i := range 10_000 {
		secret := drawSecret()
		objects = append(objects, keyObject(0, 1, secret, func(k *Key) {
			k.ID = [16]byte{byte(i), byte(i >> 8), 1}
			k.AllowedCIDRs = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
		}))
	}
	secret := drawSecret()
	v := stillView(b, append(objects, keyObject(9, 1, secret, nil))...)
	addr, now := netip.MustParseAddr("192.0.2.1"), time.Now()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Authenticate(secret, addr, now, ScopeRead); err != nil {
			b.Fatal(err)
		}
	}
}

func TestAuthenticateDoesNotAllocate(t *testing.T) {
	v := stillView(t, &object{version: 1, workspace: testWorkspace(1, "a")}, keyObject(1, 1, "imk_sk_good", nil))
	now := time.Now()
	if n := testing.AllocsPerRun(100, func() {
		if _, err := v.Authenticate("imk_sk_good", netip.Addr{}, now, ScopeRead); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
