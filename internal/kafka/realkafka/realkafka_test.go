package realkafka

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"getimmutable.dev/immutable/schemas"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestOneBroker(t *testing.T) {
	c := Start(t, Config{Proxied: true})
	in := c.Installation(t)
	send := func(value string) error {
		cl := c.Client(t, kgo.ProducerLinger(0), kgo.RecordPartitioner(kgo.ManualPartitioner()))
		defer cl.Close()
		record := &kgo.Record{Topic: in.Config.Topic(schemas.TopicEvents), Value: []byte(value)}
		return cl.ProduceSync(t.Context(), record).FirstErr()
	}
	wantRecords := func(t *testing.T, want ...string) {
		t.Helper()
		var got []string
		for _, r := range in.Consume(t, schemas.TopicEvents, len(want)) {
			got = append(got, string(r.Value))
		}
		if g, w := strings.Join(got, " "), strings.Join(want, " "); g != w {
			t.Errorf("the topic has %s, want %s", g, w)
		}
	}
	if err := send("first"); err != nil {
		t.Fatal(err)
	}

	t.Run("an installation is alone", func(t *testing.T) {
		other := c.Installation(t)
		other.Produce(t, &kgo.Record{Topic: schemas.TopicEvents, Value: []byte("other")})
		wantRecords(t, "first")
	})
	t.Run("killed and restarted", func(t *testing.T) {
		c.Kill(1)
		if c.brokers[0].running() {
			t.Error("it runs")
		}
		c.Restart(t, 1)
		wantRecords(t, "first")
	})
	t.Run("stopped and restarted", func(t *testing.T) {
		c.Stop(t, 1)
		c.Restart(t, 1)
		wantRecords(t, "first")
	})
	t.Run("cut off", func(t *testing.T) {
		c.Cut(1)
		if err := c.Client(t, kgo.RequestRetries(0), kgo.RetryTimeout(time.Second)).Ping(t.Context()); err == nil {
			t.Error("it answers")
		}
		c.Mend(t, 1)
		wantRecords(t, "first")
	})
	t.Run("frozen", func(t *testing.T) {
		c.Pause(t, 1)
		answer := make(chan error, 1)
		go func() { answer <- c.Client(t).Ping(t.Context()) }()
		select {
		case err := <-answer:
			t.Errorf("it answers: %v", err)
		case <-time.After(200 * time.Millisecond):
		}
		c.Resume(t, 1)
		if err := <-answer; err != nil {
			t.Error(err)
		}
		wantRecords(t, "first")
	})

	// once gives the first request of a kind a verdict.
	once := func(key kmsg.Key, v Verdict) *atomic.Bool {
		var met atomic.Bool
		c.Intercept(func(r *Request) Verdict {
			if r.BetweenBrokers || r.Key != int16(key) || !met.CompareAndSwap(false, true) {
				return Verdict{}
			}
			return v
		})
		return &met
	}
	for name, test := range map[string]struct {
		verdict Verdict
		want    error
	}{
		"a request is dropped":      {Verdict{Drop: true}, nil}, // and sent again
		"an answer is lost":         {Verdict{LoseAnswer: true}, nil},
		"an answer is another's":    {Verdict{Answer: answerProduce(kerr.InvalidRecord)}, kerr.InvalidRecord},
		"the request cannot be met": {Verdict{Answer: func(kmsg.Response) {}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			met := once(kmsg.Produce, test.verdict)
			defer c.Intercept(nil)
			if err := send(name); !errors.Is(err, test.want) {
				t.Errorf("produced: %v, want %v", err, test.want)
			}
			if !met.Load() {
				t.Error("the request was not met")
			}
		})
	}
	t.Run("requests decode", func(t *testing.T) {
		var topic atomic.Pointer[string]
		c.Intercept(func(r *Request) Verdict {
			if r.Key == int16(kmsg.ListOffsets) && !r.BetweenBrokers {
				req, err := r.Decode()
				if err != nil {
					t.Error(err)
					return Verdict{}
				}
				topic.Store(&req.(*kmsg.ListOffsetsRequest).Topics[0].Topic)
			}
			return Verdict{}
		})
		defer c.Intercept(nil)
		want := in.Config.Topic(schemas.TopicLedger)
		if _, err := kadm.NewClient(c.Client(t)).ListEndOffsets(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		if got := topic.Load(); got == nil || *got != want {
			t.Errorf("decoded %v, want %s", got, want)
		}
	})
}

func answerProduce(e *kerr.Error) func(kmsg.Response) {
	return func(resp kmsg.Response) {
		resp.(*kmsg.ProduceResponse).Topics[0].Partitions[0].ErrorCode = e.Code
	}
}

// Test binaries that find no jars fetch them once.
func TestResolveSideBySide(t *testing.T) {
	requireJava(t)
	if testing.Short() {
		t.Skip("runs Maven")
	}
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			dir, err := resolve(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			if jars, err := filepath.Glob(filepath.Join(dir, "libs", "kafka_*.jar")); len(jars) != 1 || err != nil {
				t.Errorf("found %v, %v", jars, err)
			}
		})
	}
	all.Wait()
	left, err := filepath.Glob(filepath.Join(os.Getenv("XDG_CACHE_HOME"), "immutable", "*"))
	if err != nil || len(left) != 2 {
		t.Errorf("the cache has %v, %v; want the jars and a lock", left, err)
	}
}
