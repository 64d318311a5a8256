package control

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/schemas/recordpb"
)

var compareAll = cmp.Options{
	cmp.AllowUnexported(object{}),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func drawArray[T ~[16]byte | ~[32]byte](t *rapid.T, label string) T {
	var a T
	switch p := any(&a).(type) {
	case *[16]byte:
		copy(p[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, label))
	case *[32]byte:
		copy(p[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, label))
	}
	return a
}

func drawTime(t *rapid.T, label string) time.Time {
	return time.UnixMicro(rapid.Int64Range(1, 4e15).Draw(t, label)).UTC()
}

func drawObject(t *rapid.T) *object {
	o := &object{
		version:   rapid.Uint64Min(1).Draw(t, "version"),
		changedAt: drawTime(t, "changed_at"),
		changedBy: rapid.String().Draw(t, "changed_by"),
	}
	limit := Limit{rapid.Float64Range(0, maxRate).Draw(t, "rate"), rapid.IntRange(0, maxRate).Draw(t, "burst")}
	if rapid.Bool().Draw(t, "workspace") {
		o.workspace = &Workspace{
			ID: drawArray[[16]byte](t, "id"), Incarnation: drawArray[[16]byte](t, "incarnation"),
			Name: rapid.String().Draw(t, "name"), Lanes: rapid.Uint32Min(1).Draw(t, "lanes"),
			CreatedAt: drawTime(t, "created_at"), IdempotencySecret: drawArray[[32]byte](t, "secret"),
			Settings: Settings{
				rapid.Bool().Draw(t, "keep"), limit,
				rapid.SampledFrom([]event.SecretPolicy{"", event.SecretsFlag, event.SecretsRedact, event.SecretsReject}).Draw(t, "secrets"),
			},
			Version: o.version,
		}
		return o
	}
	o.deleted = rapid.Bool().Draw(t, "deleted")
	o.key = &Key{
		ID: drawArray[[16]byte](t, "id"), Workspace: drawArray[[16]byte](t, "workspace id"),
		Name: rapid.String().Draw(t, "name"), Hash: drawArray[[32]byte](t, "hash"), Hint: rapid.String().Draw(t, "hint"),
		CreatedAt: drawTime(t, "created_at"), RateLimit: limit, Version: o.version,
	}
	if rapid.Bool().Draw(t, "expires") {
		o.key.ExpiresAt = drawTime(t, "expires_at")
	}
	for range rapid.IntRange(0, 3).Draw(t, "scopes") {
		o.key.Scopes = append(o.key.Scopes, Scope(rapid.String().Draw(t, "scope")))
	}
	for range rapid.IntRange(0, 3).Draw(t, "cidrs") {
		addr := netip.AddrFrom16(drawArray[[16]byte](t, "address"))
		o.key.AllowedCIDRs = append(o.key.AllowedCIDRs, netip.PrefixFrom(addr, rapid.IntRange(0, 128).Draw(t, "bits")))
	}
	if rapid.Bool().Draw(t, "rolled") {
		o.key.First = drawArray[[32]byte](t, "first")
	}
	for range rapid.IntRange(0, 3).Draw(t, "former") {
		o.key.Former = append(o.key.Former, FormerSecret{
			drawArray[[32]byte](t, "former hash"), rapid.String().Draw(t, "former hint"), drawTime(t, "until"),
		})
	}
	return o
}

func TestRecordRoundTrip(t *testing.T) {
	s := testSealer(t, MasterKey{1})
	rapid.Check(t, func(t *rapid.T) {
		o := drawObject(t)
		value, err := o.encode(s)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decode([]byte(o.recordKey()), value, s)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(o, got, compareAll); diff != "" {
			t.Fatal(diff)
		}
	})
}

func testWorkspace(id byte, name string) *Workspace {
	return &Workspace{
		ID: [16]byte{id}, Incarnation: [16]byte{id, 1}, Name: name, Lanes: 4, CreatedAt: time.UnixMicro(1).UTC(),
		IdempotencySecret: [32]byte{id, 2}, Version: 1,
	}
}

func encodeObject(tb testing.TB, o *object, s *sealer) (key, value []byte) {
	tb.Helper()
	value, err := o.encode(s)
	if err != nil {
		tb.Fatal(err)
	}
	return []byte(o.recordKey()), value
}

func TestDecodeRefuses(t *testing.T) {
	s := testSealer(t, MasterKey{1})
	ws := &object{version: 3, workspace: testWorkspace(1, "a")}
	wsKey, wsValue := encodeObject(t, ws, s)
	key := &object{version: 3, key: &Key{
		ID: [16]byte{7}, Workspace: [16]byte{1}, AllowedCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
		Former: []FormerSecret{{Until: time.UnixMicro(1)}},
	}}
	keyKey, keyValue := encodeObject(t, key, s)
	change := func(value []byte, f func(c *recordpb.Config)) []byte {
		var c recordpb.Config
		if err := proto.Unmarshal(value, &c); err != nil {
			t.Fatal(err)
		}
		f(&c)
		out, err := proto.Marshal(&c)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	tests := []struct {
		name       string
		key, value []byte
		sealer     *sealer
		// want is in the error; versionless says that not even the version could be read.
		want        string
		versionless bool
	}{
		{"garbage", wsKey, []byte("garbage"), s, "decode config record", true},
		{"no version", wsKey, change(wsValue, func(c *recordpb.Config) { c.Version = 0 }), s, "no version", true},
		{"no object", wsKey, change(wsValue, func(c *recordpb.Config) { c.Object = nil }), s, "no object", false},
		{"short id", wsKey, change(wsValue, func(c *recordpb.Config) { c.GetWorkspace().Id = []byte{1} }), s, "no valid id", false},
		{"no lanes", wsKey, change(wsValue, func(c *recordpb.Config) { c.GetWorkspace().Lanes = 0 }), s, "no valid id", false},
		{"another object's key", []byte(recordKey(kindWorkspace, [16]byte{2}, [16]byte{2})), wsValue, s, "another object", false},
		{"a key's record as a workspace", wsKey, keyValue, s, "another object", false},
		{
			"a secret policy of a newer version", wsKey,
			change(wsValue, func(c *recordpb.Config) { c.GetWorkspace().Settings.SecretPolicy = "vault" }), s, "secret policy", false,
		},
		{"other master key", wsKey, wsValue, testSealer(t, MasterKey{2}), "wrong master key", false},
		{
			"a secret moved from another incarnation", wsKey,
			change(wsValue, func(c *recordpb.Config) { c.GetWorkspace().Incarnation[0] ^= 1 }), s, "wrong master key", false,
		},
		{"short hash", keyKey, change(keyValue, func(c *recordpb.Config) { c.GetKey().Hash = nil }), s, "no valid id", false},
		{
			"short former hash", keyKey,
			change(keyValue, func(c *recordpb.Config) { c.GetKey().Former[0].Hash = nil }), s, "former secret", false,
		},
		{
			"short first hash", keyKey,
			change(keyValue, func(c *recordpb.Config) { c.GetKey().First = []byte{1} }), s, "first text", false,
		},
		{
			"a former secret without an end", keyKey,
			change(keyValue, func(c *recordpb.Config) { c.GetKey().Former[0].Until = 0 }), s, "former secret", false,
		},
		{
			"an address range that is none", keyKey,
			change(keyValue, func(c *recordpb.Config) { c.GetKey().AllowedCidrs[0] = "10.0.0.0" }), s, "allowed address range", false,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			o, err := decode(test.key, test.value, test.sealer)
			if test.versionless {
				if o != nil || err == nil || !strings.Contains(err.Error(), test.want) {
					t.Fatalf("%+v, %v", o, err)
				}
				return
			}
			if err != nil || o == nil || o.version != 3 {
				t.Fatalf("%+v, %v", o, err)
			}
			if o.broken == nil || !strings.Contains(o.broken.Error(), test.want) || o.usable() {
				t.Errorf("broken: %v, want %q", o.broken, test.want)
			}
		})
	}

	t.Run("a deleted workspace needs no secret", func(t *testing.T) {
		gone := &object{version: 4, deleted: true, workspace: ws.workspace}
		k, v := encodeObject(t, gone, s)
		o, err := decode(k, v, testSealer(t, MasterKey{2}))
		if err != nil || o.broken != nil || o.usable() {
			t.Errorf("%+v, %v", o, err)
		}
	})
	t.Run("a kind of a newer version", func(t *testing.T) {
		if o, err := decode([]byte("rule/00/00"), []byte("whatever"), s); o != nil || err != nil {
			t.Errorf("%+v, %v", o, err)
		}
	})
}

func TestStateVersions(t *testing.T) {
	s := newState(testSealer(t, MasterKey{1}))
	a := testWorkspace(1, "a")
	put := func(offset int64, version uint64, name string) outcome {
		t.Helper()
		w := *a
		w.Name, w.Version = name, version
		r := configRecord(t, offset, &object{version: version, workspace: &w}, s.sealer)
		result, err := s.apply(r)
		if err != nil {
			t.Fatal(err)
		}
		return result
	}
	for i, step := range []struct {
		version uint64
		name    string
		want    outcome
		then    string
	}{
		{2, "two", outcomeApplied, "two"},
		{1, "one", outcomeIgnored, "two"},
		{2, "other two", outcomeIgnored, "two"},
		{9, "nine", outcomeApplied, "nine"},
	} {
		if got := put(int64(i*2), step.version, step.name); got != step.want {
			t.Errorf("version %d: %s, want %s", step.version, got, step.want)
		}
		if got := s.workspace(a.ID).Name; got != step.then {
			t.Errorf("after version %d: %s, want %s", step.version, got, step.then)
		}
		if s.next != int64(i*2)+1 {
			t.Errorf("next is %d", s.next)
		}
	}

	// What cannot be read is refused, not served as it was.
	broken := configRecord(t, 20, &object{version: 10, workspace: a}, testSealer(t, MasterKey{2}))
	if result, err := s.apply(broken); result != outcomeUndecodable || !errors.Is(err, ErrMasterKey) {
		t.Errorf("%s, %v", result, err)
	}
	if s.workspace(a.ID) != nil || !errors.Is(s.broken(), ErrMasterKey) {
		t.Error("a workspace whose newest version cannot be read is served")
	}
	if put(21, 11, "eleven"); s.workspace(a.ID) == nil || s.broken() != nil {
		t.Error("a later version that can be read does not mend it")
	}

	// A tombstone forgets the object and its version.
	broken.Value, broken.Offset = nil, 22
	if result, err := s.apply(broken); result != outcomeApplied || err != nil || len(s.objects) != 0 || s.next != 23 {
		t.Errorf("tombstone: %s, %v, %d objects, next %d", result, err, len(s.objects), s.next)
	}
	if got := put(23, 1, "again"); got != outcomeApplied {
		t.Errorf("after a tombstone: %s", got)
	}
}

func FuzzDecode(f *testing.F) {
	s := testSealer(f, MasterKey{1})
	wsKey, wsValue := encodeObject(f, &object{version: 1, workspace: testWorkspace(1, "a")}, s)
	f.Add(wsKey, wsValue)
	keyKey, keyValue := encodeObject(f, &object{version: 1, key: &Key{ID: [16]byte{7}}}, s)
	f.Add(keyKey, keyValue)
	f.Add([]byte("key/"), []byte{})
	f.Fuzz(func(t *testing.T, key, value []byte) {
		o, err := decode(key, value, s)
		if err != nil && o != nil {
			t.Fatal("an object and an error")
		}
		if o.usable() && o.recordKey() != string(key) {
			t.Fatal("usable under another key")
		}
	})
}
