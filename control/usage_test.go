package control

import (
	"context"
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/schemas"
)

// useAt uses a key at a moment, which must be allowed.
func useAt(tb testing.TB, v *View, secret string, at time.Time) {
	tb.Helper()
	if _, err := v.Authenticate(secret, netip.Addr{}, at, ScopeRead); err != nil {
		tb.Fatal(err)
	}
}

// lastIs waits until a view says that a key was last used at a moment.
func lastIs(tb testing.TB, v *View, key *Key, at time.Time) {
	tb.Helper()
	eventually(tb, "the last use is "+at.String(), func() bool {
		got, known := v.LastUsed(key.ID)
		return known && got.Equal(at)
	})
}

// lastUsed returns what is on the topic.
func lastUsed(tb testing.TB, w *Writer) map[[16]byte]time.Time {
	tb.Helper()
	times, err := w.LastUsed(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	return times
}

func TestLastUsed(t *testing.T) { keysLastUsed(t, kafkatest.Start(t)) }

func keysLastUsed(t *testing.T, c *kafkatest.Cluster) {
	t.Helper()
	w := newTestWriter(t, c)
	ws := createWorkspace(t, w, "default")
	key, secret := createKey(t, w, ws)
	never, _ := createKey(t, w, ws)
	cfg := ViewConfig{Kafka: c.Config, MasterKey: testMaster, UsageInterval: 5 * time.Millisecond}
	first, _ := runView(t, cfg)
	second, _ := runView(t, cfg)
	for _, v := range []*View{first, second} {
		eventually(t, "the view is ready", func() bool { return v.Ready(t.Context()) == nil })
		lastIs(t, v, key, time.Time{})
	}
	at := func(seconds int64) time.Time { return time.Unix(1_800_000_000+seconds, 1000).UTC() }
	useAt(t, first, secret, at(10))
	if got, _ := first.LastUsed(key.ID); !got.Equal(at(10)) {
		t.Errorf("its own process says %v", got)
	}
	lastIs(t, second, key, at(10))
	// A use that is earlier than what another process has seen says nothing new.
	useAt(t, second, secret, at(5))
	useAt(t, second, secret, at(20))
	lastIs(t, first, key, at(20))
	useAt(t, first, secret, at(15))
	if _, err := first.Authenticate(secret, netip.Addr{}, at(30), ScopeAdmin); err == nil {
		t.Error("the key has not this scope")
	}
	lastIs(t, first, key, at(20))

	want := map[[16]byte]time.Time{key.ID: at(20)}
	if diff := cmp.Diff(want, lastUsed(t, w)); diff != "" {
		t.Error(diff)
	}
	if c.Fake != nil { // a real one does it in its own time
		c.Fake.Compact()
	}
	if diff := cmp.Diff(want, lastUsed(t, w)); diff != "" {
		t.Errorf("after compaction:\n%s", diff)
	}
	third, _ := runView(t, cfg)
	lastIs(t, third, key, at(20))
	lastIs(t, third, never, time.Time{})
}

// Many uses are one record a key, and a stop writes it.
func TestStopWritesUses(t *testing.T) {
	c := kafkatest.Start(t)
	w := newTestWriter(t, c)
	key, secret := createKey(t, w, createWorkspace(t, w, "default"))
	v, stop := runView(t, ViewConfig{Kafka: c.Config, MasterKey: testMaster, UsageInterval: time.Hour})
	eventually(t, "the view is ready", func() bool { return v.Ready(t.Context()) == nil })
	now := time.Now().UTC().Truncate(time.Microsecond)
	want := map[[16]byte]time.Time{key.ID: now.Add(999)}
	for i := range 1000 {
		useAt(t, v, secret, now.Add(time.Duration(i)))
		// As many other keys: more than one request's worth.
		id := [16]byte{1}
		binary.BigEndian.PutUint16(id[14:], uint16(i))
		v.usage.note(id, now)
		want[id] = now
	}
	want[key.ID] = now
	stop()
	if diff := cmp.Diff(want, lastUsed(t, w)); diff != "" {
		t.Error(diff)
	}
	if n := len(committed(t, c, schemas.TopicKeyUsage)); n != len(want) || valueOf(t, v.metrics.usesWritten) != float64(n) {
		t.Errorf("%d records, want %d; %v are counted", n, len(want), valueOf(t, v.metrics.usesWritten))
	}
}

// What fails is counted and done again; requests go on.
func TestUsageErrors(t *testing.T) {
	c := kafkatest.StartEmpty(t)
	for _, topic := range schemas.Topics(c.Layout) {
		if topic.Name != c.Config.Topic(schemas.TopicKeyUsage) {
			if err := c.Fake.CreateTopic(topic.Name, topic.Partitions, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	w := newTestWriter(t, c)
	key, secret := createKey(t, w, createWorkspace(t, w, "default"))
	v, _ := runView(t, ViewConfig{Kafka: c.Config, MasterKey: testMaster, UsageInterval: 5 * time.Millisecond})
	eventually(t, "the view is ready", func() bool { return v.Ready(t.Context()) == nil })
	now := time.Now().UTC().Truncate(time.Microsecond)
	useAt(t, v, secret, now)
	eventually(t, "reading fails", func() bool { return valueOf(t, v.metrics.usageReadErrors) > 0 })
	eventually(t, "writing fails", func() bool { return valueOf(t, v.metrics.usageWriteErrors) > 0 })
	if _, known := v.LastUsed(key.ID); known {
		t.Error("nothing can be known without the topic")
	}
	if _, err := w.LastUsed(t.Context()); err == nil || !strings.Contains(err.Error(), "key_usage") {
		t.Errorf("without the topic: %v", err)
	}
	if err := c.Fake.CreateTopic(c.Config.Topic(schemas.TopicKeyUsage), 1, nil); err != nil {
		t.Fatal(err)
	}
	lastIs(t, v, key, now)
	eventually(t, "it is on the topic", func() bool { return lastUsed(t, w)[key.ID].Equal(now) })

	// Records that say nothing are counted and passed over.
	before := valueOf(t, v.metrics.usageReadErrors)
	c.Produce(t,
		&kgo.Record{Topic: schemas.TopicKeyUsage, Key: []byte("nobody"), Value: []byte{}},
		&kgo.Record{Topic: schemas.TopicKeyUsage, Key: []byte(strings.Repeat("ab", 16)), Value: []byte("garbage")},
		&kgo.Record{Topic: schemas.TopicKeyUsage, Key: []byte(strings.Repeat("ab", 16))},
	)
	eventually(t, "they are counted", func() bool { return valueOf(t, v.metrics.usageReadErrors) == before+2 })
	if diff := cmp.Diff(map[[16]byte]time.Time{key.ID: now}, lastUsed(t, w)); diff != "" {
		t.Error(diff)
	}
}

// A Kafka that does not answer holds up no request, and the stop for no longer than its limit.
func TestUsageWithoutAnswers(t *testing.T) {
	c := kafkatest.Start(t)
	w := newTestWriter(t, c)
	_, secret := createKey(t, w, createWorkspace(t, w, "default"))
	v, stop := runView(t, ViewConfig{Kafka: c.Config, MasterKey: testMaster, UsageInterval: time.Hour})
	eventually(t, "the view is ready", func() bool { return v.Ready(t.Context()) == nil })
	c.Fake.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.Fake.KeepControl()
		resp := req.ResponseKind().(*kmsg.ProduceResponse)
		for _, topic := range req.(*kmsg.ProduceRequest).Topics {
			refused := kmsg.ProduceResponseTopic{Topic: topic.Topic, TopicID: topic.TopicID}
			for _, p := range topic.Partitions {
				part := kmsg.NewProduceResponseTopicPartition()
				part.Partition, part.ErrorCode = p.Partition, kerr.NotLeaderForPartition.Code
				refused.Partitions = append(refused.Partitions, part)
			}
			resp.Topics = append(resp.Topics, refused)
		}
		return resp, nil, true
	})
	useAt(t, v, secret, time.Now())
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	began := time.Now()
	stop()
	if took := time.Since(began); took < lastUsageTimeout/2 || ctx.Err() != nil {
		t.Errorf("the stop took %v: it must try for %v", took, lastUsageTimeout)
	}
	if got := valueOf(t, v.metrics.usageWriteErrors); got != 1 {
		t.Errorf("%v failures were counted", got)
	}
}

// Writing down the uses of ten thousand keys, and reading them at a start.
func BenchmarkTenThousandUses(b *testing.B) {
	c := kafkatest.Start(b)
	w := newTestWriter(b, c)
	u := newUsage(c.Config)
	cl, err := u.client(w.opts)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(cl.Close)
	written := stillView(b).metrics.usesWritten
	now := time.Now()
	note := func() {
		now = now.Add(time.Second)
		for i := range 10_000 {
			u.note([16]byte{14: byte(i >> 8), 15: byte(i)}, now)
		}
	}
	b.Run("note", func(b *testing.B) {
		for b.Loop() {
			note()
		}
	})
	b.Run("write", func(b *testing.B) {
		for b.Loop() {
			note()
			if err := u.write(b.Context(), cl, written); err != nil {
				b.Fatal(err)
			}
		}
	})
	c.Fake.Compact()
	b.Run("read", func(b *testing.B) {
		for b.Loop() {
			if times, err := w.LastUsed(b.Context()); err != nil || len(times) != 10_000 {
				b.Fatal(len(times), err)
			}
		}
	})
}
