package query

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"getimmutable.dev/immutable/event"
)

// The words of generated events: few, so that filters find some, and with everything that SQL, LIKE, arrays and
// parameters could take for more than itself.
var (
	words = []string{
		"a", "A", "a.b", "a b", `it's`, `\`, `\'`, `"`, "%", "_", "a%", "a_b", "ünï", "日本", "[", "]", "{p0:String}", "--", "😀", "null",
	}
	actions  = []string{"deployment.started", "deployment.deleted", "user.deleted", "user", "a%b", "a_b", "axb", `c:\x`, "s3:PutObject", "deploy'"}
	patterns = []string{"*", "deployment.*", "*.deleted", "*e*", "user*", "a%*", "*_b", `c:\*`, "*'", "**", "d*t*d", "nothing*"}
)

func pick(r *rand.Rand, list []string) string { return list[r.IntN(len(list))] }

// generate makes an event, with tabs and line ends in metadata, where they are allowed.
func generate(r *rand.Rand) string {
	e := map[string]any{
		"actor_id": pick(r, words), "action": pick(r, actions),
		"occurred_at": event.FormatTime(epoch.Add(-time.Duration(r.IntN(50)) * 1500 * time.Microsecond)),
	}
	for _, name := range []string{"actor_type", "action_category", "resource", "resource_id", "session_id", "tenant_id"} {
		if r.IntN(3) > 0 {
			e[name] = pick(r, words)
		}
	}
	var targets []any
	for range r.IntN(3) {
		target := map[string]any{"type": pick(r, words)}
		if r.IntN(4) > 0 {
			target["id"] = pick(r, words)
		}
		targets = append(targets, target)
	}
	e["targets"] = targets
	metadata := map[string]any{}
	for range r.IntN(4) {
		metadata[pick(r, metadataNames)] = generateValue(r, 2)
	}
	e["metadata"] = metadata
	b, err := json.Marshal(e)
	if err != nil {
		panic(err)
	}
	return string(b)
}

var metadataNames = []string{"k", "k.k", "a b", "ünï", `q'"\`, "x"}

var scalars = []any{"v", "", "1", "true", "null", "tab\there", "line\nend", "cr\r", `back\slash`, "it's", 1, 1.5, -2, 1e21, true, false, nil, "日本", "\x00"}

func generateValue(r *rand.Rand, depth int) any {
	if depth == 0 || r.IntN(2) == 0 {
		return scalars[r.IntN(len(scalars))]
	}
	if r.IntN(2) == 0 {
		list := []any{}
		for range r.IntN(3) {
			list = append(list, generateValue(r, depth-1))
		}
		return list
	}
	object := map[string]any{}
	for range r.IntN(3) {
		object[pick(r, metadataNames)] = generateValue(r, depth-1)
	}
	return object
}

// oracle is what an event has to offer to filters, read from the JSON that was sent and nothing else.
type oracle struct {
	stored
	fields   map[string]any
	metadata [][2]string
}

func newOracle(t *testing.T, s stored) oracle {
	t.Helper()
	o := oracle{stored: s}
	if err := json.Unmarshal([]byte(s.json), &o.fields); err != nil {
		t.Fatal(err)
	}
	for name, v := range o.fields["metadata"].(map[string]any) {
		o.flatten(name, v)
	}
	return o
}

func (o *oracle) flatten(path string, v any) {
	switch v := v.(type) {
	case nil:
	case string:
		o.metadata = append(o.metadata, [2]string{path, v})
	case []any:
		for _, element := range v {
			o.flatten(path, element)
		}
	case map[string]any:
		for name, member := range v {
			o.flatten(path+"."+name, member)
		}
	default:
		text, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		o.metadata = append(o.metadata, [2]string{path, string(text)})
	}
}

// matches says whether the event meets every condition of a query.
func (o *oracle) matches(q url.Values) bool {
	targets, _ := o.fields["targets"].([]any)
	for name, wanted := range q {
		var ok bool
		switch name {
		case "order", "limit", "total":
			ok = true
		case "action":
			ok = slices.ContainsFunc(wanted, func(w string) bool {
				p, err := event.CompilePattern(w)
				return err == nil && p.Match(o.fields["action"].(string))
			})
		case "from":
			ok = o.occurredAt >= micros(wanted[0])
		case "to":
			ok = o.occurredAt <= micros(wanted[0])
		case "recorded_from":
			ok = o.recordedAt >= micros(wanted[0])
		case "recorded_to":
			ok = o.recordedAt <= micros(wanted[0])
		case "target_type", "target_id":
			ok = slices.ContainsFunc(targets, func(target any) bool {
				kind, _ := target.(map[string]any)["type"].(string)
				id, _ := target.(map[string]any)["id"].(string)
				return (!q.Has("target_type") || slices.Contains(q["target_type"], kind)) &&
					(!q.Has("target_id") || slices.Contains(q["target_id"], id))
			})
		default:
			if key, isMetadata := strings.CutPrefix(name, "metadata["); isMetadata {
				key = strings.TrimSuffix(key, "]")
				ok = slices.ContainsFunc(o.metadata, func(entry [2]string) bool {
					return entry[0] == key && slices.Contains(wanted, entry[1])
				})
				break
			}
			value, _ := o.fields[name].(string)
			ok = slices.Contains(wanted, value)
		}
		if !ok {
			return false
		}
	}
	return true
}

func micros(text string) int64 {
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		panic(err)
	}
	return t.UnixMicro()
}

// drawQuery draws a query; its metadata conditions are often ones that an event meets.
func drawQuery(rt *rapid.T, events []oracle) url.Values {
	q := url.Values{}
	names := []string{
		"action", "action_category", "actor_id", "actor_type", "resource", "resource_id", "tenant_id", "session_id",
		"target_type", "target_id", "metadata", "from", "to", "recorded_from", "recorded_to",
	}
	for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom(names), 0, 3, rapid.ID[string]).Draw(rt, "names") {
		switch name {
		case "action":
			q[name] = rapid.SliceOfN(rapid.SampledFrom(slices.Concat(actions, patterns)), 1, 2).Draw(rt, name)
		case "from", "to":
			at := rapid.Int64Range(0, 50*1500).Draw(rt, name)
			q.Set(name, event.FormatTime(epoch.Add(-time.Duration(at)*time.Microsecond)))
		case "recorded_from", "recorded_to":
			at := rapid.Int64Range(0, int64(len(events))).Draw(rt, name)
			q.Set(name, event.FormatTime(epoch.Add(time.Duration(at)*time.Millisecond)))
		case "metadata":
			of := rapid.SampledFrom(events).Draw(rt, "event")
			if len(of.metadata) == 0 {
				q.Set("metadata[k]", "v")
				continue
			}
			entry := rapid.SampledFrom(of.metadata).Draw(rt, "entry")
			q.Add("metadata["+entry[0]+"]", entry[1])
			if rapid.Bool().Draw(rt, "or") {
				q.Add("metadata["+entry[0]+"]", "v")
			}
			if rapid.Bool().Draw(rt, "and") {
				q.Add("metadata["+rapid.SampledFrom(metadataNames).Draw(rt, "name")+"]", "1")
			}
		default:
			q[name] = rapid.SliceOfN(rapid.SampledFrom(words), 1, 4).Draw(rt, name)
		}
	}
	return q
}

// TestFilters compares every filter, alone and with others, with a search through the JSON that was sent.
func TestFilters(t *testing.T) {
	long(t)
	r := newRig(t)
	random := rand.New(rand.NewPCG(1, 2))
	l := r.newLoader(r.tenant)
	l.workspace.KeepResourceIDEmpty = true // or some would have a resource_id that was not sent
	var events []oracle
	for range 3 {
		bodies := make([]string, 1000)
		for i := range bodies {
			bodies[i] = generate(random)
		}
		for _, s := range l.add(bodies...) {
			events = append(events, newOracle(t, s))
		}
	}
	slices.SortFunc(events, func(a, b oracle) int {
		if a.occurredAt != b.occurredAt {
			return int(a.occurredAt - b.occurredAt)
		}
		return strings.Compare(a.id, b.id)
	})
	check := func(tb rapid.TB, q url.Values) int {
		want := []string{}
		for i := range events {
			if events[i].matches(q) {
				want = append(want, events[i].id)
			}
		}
		q.Set("order", "asc")
		q.Set("limit", "1000")
		p := r.page(r.tenant, q)
		if got := p.Pagination.Total; got == nil || int(*got) != len(want) {
			tb.Errorf("%v: total is %v, want %d", q, got, len(want))
		}
		if diff := cmp.Diff(want, r.walk(r.tenant, q)); diff != "" {
			tb.Fatalf("%v: (-want +got)\n%s", q, diff)
		}
		return len(want)
	}

	found := map[string]int{}
	for _, name := range append(columnParams(), "target_type", "target_id") {
		for _, w := range words {
			found[name] += check(t, values(name, w))
		}
	}
	for _, p := range slices.Concat(actions, patterns) {
		found["action"] += check(t, values("action", p))
	}
	for _, name := range metadataNames {
		for _, v := range scalars {
			text, isText := v.(string)
			if !isText {
				text = fmt.Sprint(v)
			}
			found["metadata"] += check(t, values("metadata["+name+"]", text))
		}
	}
	for name, n := range found {
		if n == 0 {
			t.Errorf("no event was ever found by %s", name)
		}
	}
	check(t, values("target_type", "a", "target_id", "A"))
	check(t, values("actor_id", `') OR 1=1 --`, "actor_id", `\`))
	rapid.Check(t, func(rt *rapid.T) { check(rt, drawQuery(rt, events)) })
}

func TestRefusedParameters(t *testing.T) {
	long := strings.Repeat("x", maxValueBytes+1)
	many := url.Values{"actor_id": make([]string, maxValues+1)}
	for i := range many["actor_id"] {
		many["actor_id"][i] = strconv.Itoa(i)
	}
	keys := url.Values{}
	for i := range maxMetadataKeys + 1 {
		keys.Set("metadata[k"+strconv.Itoa(i)+"]", "v")
	}
	for _, c := range []struct {
		query  string
		status int
		says   string // in the message
	}{
		{"actorid=x", 400, "actorid is not a parameter of this request. Known are: action, action_category, actor_id,"},
		{"search=x", 400, "search is not available in this version"},
		{"metadata=x", 400, "metadata is not a parameter"},
		{"metadata%5Bk=x", 400, "metadata[k is not a parameter"},
		{"metadata%5B%5D=x", 422, "must not be empty"},
		{"limit=1&limit=2", 400, "limit is given more than once"},
		{"order=asc&order=asc", 400, "order is given more than once"},
		{"cursor=a&cursor=b", 400, "cursor is given more than once"},
		{"from=2026-01-01T00:00:00Z&from=2026-01-01T00:00:00Z", 400, "from is given more than once"},
		{"a=%zz", 400, "percent-encode"},
		{"a=1;b=2", 400, "percent-encode"},
		{many.Encode(), 400, "actor_id is given more than 100 times"},
		{keys.Encode(), 400, "metadata has more than 20 different keys"},
		{"limit=0", 422, "limit must be a whole number from 1 to 1000"},
		{"limit=1001", 422, "limit must be"},
		{"limit=-1", 422, "limit must be"},
		{"limit=1e2", 422, "limit must be"},
		{"limit=", 422, "limit must not be empty"},
		{"order=newest", 422, "order must be desc"},
		{"total=no", 422, "total must be true or false"},
		{"from=yesterday", 422, "from must be an RFC 3339 time"},
		{"to=2026-01-01", 422, "to must be an RFC 3339 time"},
		{"recorded_from=1", 422, "recorded_from must be"},
		{"recorded_to=x", 422, "recorded_to must be"},
		{"from=2026-01-01T00:00:00+02:00", 422, "%2B"},
		{"actor_id=", 422, "actor_id must not be empty"},
		{"actor_id=%ff", 422, "actor_id is not UTF-8"},
		{"action=", 422, "action must not be empty"},
		{"action=" + strings.Repeat("a", event.MaxPatternBytes+1), 422, "a pattern is"},
		{"resource_id=" + long, 422, "longer than 4096 bytes"},
		{"metadata%5Bk%5D=" + long, 422, "longer than 4096 bytes"},
		{"metadata%5B%ff%5D=x", 422, "UTF-8"},
	} {
		_, err := parsePage(c.query)
		status, message, details := refusal(t, err)
		if status != c.status || !strings.Contains(message, c.says) || len(details) == 0 && !strings.Contains(message, "percent") {
			t.Errorf("%.80s: %d %s %v, want %d %s", c.query, status, message, details, c.status, c.says)
		}
	}
	// Everything at once, the malformed first.
	_, err := parsePage("limit=0&order=x&total=1")
	if _, _, details := refusal(t, err); len(details) != 3 {
		t.Errorf("details %v, want three", details)
	}
}

func TestTimesBetweenMicroseconds(t *testing.T) {
	q := values("from", "2026-01-01T00:00:00.0000001Z", "to", "2026-01-01T00:00:00.0000019Z",
		"recorded_from", "0001-01-01T00:00:00Z", "recorded_to", "9999-12-31T23:59:59Z")
	req, err := parsePage(q.Encode())
	if err != nil {
		t.Fatal(err)
	}
	base := micros("2026-01-01T00:00:00Z")
	got := [4]int64{*req.occurred.from - base, *req.occurred.to - base, *req.recorded.from, *req.recorded.to}
	if want := [4]int64{1, 1, micros("1900-01-01T00:00:00Z"), micros("2299-12-31T00:00:00Z")}; got != want {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestWideTimes: years that ClickHouse has no times for are no error.
func TestWideTimes(t *testing.T) {
	r := newRig(t)
	r.newLoader(r.tenant).add(`{"actor_id":"a","action":"x"}`)
	q := values("from", "0001-01-01T00:00:00Z", "to", "9999-12-31T23:59:59Z", "recorded_from", "0001-01-01T00:00:00Z",
		"recorded_to", "9999-12-31T23:59:59Z")
	if p := r.page(r.tenant, q); len(p.Data) != 1 {
		t.Errorf("%d events, want 1", len(p.Data))
	}
	if a := r.get(r.tenant, "/api/v1/events", values("nonsense", "x")); a.status != http.StatusBadRequest {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func FuzzParsePage(f *testing.F) {
	f.Add("action=a*&metadata%5Ba.b%5D=c&from=2026-01-01T00:00:00Z&limit=10&order=asc&total=false")
	f.Fuzz(func(t *testing.T, query string) {
		req, err := parsePage(query)
		if err != nil {
			refusal(t, err)
			return
		}
		digest := req.digest([16]byte{1})
		at := position{at: 1, id: [16]byte{2}}
		if got, err := decodeCursor(encodeCursor(at, digest), digest); err != nil || got != at {
			t.Errorf("cursor: %v, %v", got, err)
		}
		pageStatement([16]byte{1}, &req, &at, req.limit, limits{})
	})
}
