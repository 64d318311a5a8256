package ingest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/internal/kafka/realkafka"
	"getimmutable.dev/immutable/schemas"
)

// The benchmarks count CPU time of this process: the server, and a client that writes the same bytes again and again
// and looks at nothing but the status. The broker is a child process, so that it is not counted. Every arm runs the
// same client, or none; see each benchmark.

const brokerEnv = "INGEST_BENCH_BROKER" // a directory: be a broker there, until stdin ends

func serveBroker(dir string) error {
	fake, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DataDir(dir))
	if err != nil {
		return err
	}
	defer fake.Close()
	if _, err := fmt.Println(fake.ListenAddrs()[0]); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// startBroker starts a broker in a child process.
func startBroker(b *testing.B) *kafkatest.Cluster {
	b.Helper()
	if c := realkafka.ForBenchmark(b); c != nil {
		return c.Installation(b)
	}
	child := exec.CommandContext(context.Background(), os.Args[0])
	child.Env = append(os.Environ(), brokerEnv+"="+b.TempDir())
	child.Stderr = os.Stderr
	stdin, err := child.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := child.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := child.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		stdin.Close()
		if err := child.Wait(); err != nil {
			b.Error(err)
		}
	})
	addr, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	c := &kafkatest.Cluster{
		Config: kafka.Config{Brokers: []string{strings.TrimSpace(addr)}, TopicPrefix: schemas.DefaultTopicPrefix},
		Layout: schemas.TopicLayout{
			Prefix: schemas.DefaultTopicPrefix, Partitions: 4, Replicas: 1, LedgerRetentionDays: 30,
		},
	}
	if err := kafka.CreateTopics(b.Context(), c.Client(b), schemas.Topics(c.Layout)); err != nil {
		b.Fatal(err)
	}
	return c
}

// sample is the event that the benchmarks send.
func sample(b *testing.B) []byte {
	b.Helper()
	text, err := os.ReadFile("../schemas/testdata/fixtures/events/1-deployment.started.json")
	if err != nil {
		b.Fatal(err)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, text); err != nil {
		b.Fatal(err)
	}
	return compact.Bytes()
}

// connection sends one request over and over.
type connection struct {
	conn    net.Conn
	answers *bufio.Reader
	request []byte
}

func dial(b *testing.B, url, path, contentType, token string, body []byte) *connection {
	b.Helper()
	conn, err := (&net.Dialer{}).DialContext(b.Context(), "tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		b.Fatal(err)
	}
	head := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n",
		path, contentType, token, len(body))
	return &connection{conn, bufio.NewReaderSize(conn, 16<<10), append([]byte(head), body...)}
}

func (c *connection) send() error {
	if _, err := c.conn.Write(c.request); err != nil {
		return err
	}
	line, err := c.answers.ReadSlice('\n')
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(line, []byte("HTTP/1.1 202 ")) {
		return fmt.Errorf("answered %s", line)
	}
	length := 0
	for len(line) > 2 {
		if line, err = c.answers.ReadSlice('\n'); err != nil {
			return err
		}
		if _, err := fmt.Sscanf(string(line), "Content-Length: %d", &length); err == nil {
			break
		}
	}
	for len(line) > 2 {
		if line, err = c.answers.ReadSlice('\n'); err != nil {
			return err
		}
	}
	_, err = c.answers.Discard(length)
	return err
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// measure runs the function that each of 16 workers makes for itself, and reports time per event.
func measure(b *testing.B, events int, worker func() func() error) {
	b.Helper()
	b.SetParallelism(8)
	b.ReportAllocs()
	cpu, start := cpuTime(b), time.Now()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		do := worker()
		for pb.Next() {
			if err := do(); err != nil {
				b.Error(err)
				return
			}
		}
	})
	n := float64(b.N * events)
	b.ReportMetric(float64((cpuTime(b)-cpu).Nanoseconds())/1000/n, "cpu-us/event")
	b.ReportMetric(n/time.Since(start).Seconds(), "events/s")
}

// BenchmarkSingle compares POST /events with a handler that does nothing but produce the body's bytes.
func BenchmarkSingle(b *testing.B) {
	cluster := startBroker(b)
	text := sample(b)
	requests := func(url, token string) func() func() error {
		return func() func() error {
			c := dial(b, url, onePath, "application/json", token, text)
			b.Cleanup(func() { c.conn.Close() })
			return c.send
		}
	}
	r := newRig(b, cluster, nil)
	client := cluster.Client(b, kgo.DefaultProduceTopic(cluster.Config.Topic(schemas.TopicEvents)), kgo.ProducerLinger(0))
	server, err := httpserver.New(httpserver.Config{Addr: "127.0.0.1:0"}, http.HandlerFunc(
		func(w http.ResponseWriter, req *http.Request) {
			body, err := io.ReadAll(req.Body)
			if err == nil {
				err = client.ProduceSync(req.Context(), kgo.SliceRecord(body)).FirstErr()
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			w.Header().Set("Content-Length", "0")
			w.WriteHeader(http.StatusAccepted)
		}), slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	if err := server.Listen(); err != nil {
		b.Fatal(err)
	}
	run(b, server.Run)
	b.Run("bare", func(b *testing.B) { measure(b, 1, requests("http://"+server.Addr(), r.token)) })
	b.Run("ingest", func(b *testing.B) { measure(b, 1, requests(r.url, r.token)) })
}

// BenchmarkBatch100 compares batches of 100 with producing the same records, and with nothing before it: no HTTP, no
// client.
func BenchmarkBatch100(b *testing.B) {
	cluster := startBroker(b)
	r := newRig(b, cluster, nil)
	texts := make([][]byte, 100)
	for i := range texts { // of as many resources, so that they spread over the partitions
		texts[i] = bytes.Replace(sample(b), []byte("api-gateway"), fmt.Appendf(nil, "api-gate-%02d", i), 1)
	}
	lines := append(bytes.Join(texts, []byte("\n")), '\n')
	array := slices.Concat([]byte(`{"events":[`), bytes.Join(texts, []byte(",")), []byte("]}"))
	requests := func(contentType string, body []byte) func() func() error {
		return func() func() error {
			c := dial(b, r.url, batchPath, contentType, r.token, body)
			b.Cleanup(func() { c.conn.Close() })
			return c.send
		}
	}
	client := cluster.Client(b, producerOptions(r.service.cfg, r.service.topic)...)
	b.Run("raw", func(b *testing.B) {
		built := make([]event.Record, len(texts))
		builder := event.NewBuilder()
		for i, text := range texts {
			var err error
			built[i], err = builder.Build(r.workspace.ForEvents(), event.Input{JSON: text, RecordedAt: time.Now()})
			if err != nil {
				b.Fatal(err)
			}
		}
		measure(b, 100, func() func() error {
			return func() error {
				now := time.Now() // a record's time stamp begins its delivery timeout
				slab := make([]kgo.Record, len(built))
				records := make([]*kgo.Record, len(built))
				for i, e := range built {
					slab[i] = kgo.Record{
						Key: e.Key, Value: e.Value, Timestamp: now,
						Partition: event.Partition(r.workspace.ID, e.Lane, cluster.Layout.Partitions),
					}
					records[i] = &slab[i]
				}
				return client.ProduceSync(b.Context(), records...).FirstErr()
			}
		})
	})
	b.Run("json", func(b *testing.B) { measure(b, 100, requests(mediaJSON, array)) })
	b.Run("ndjson", func(b *testing.B) { measure(b, 100, requests(mediaNDJSON, lines)) })
}

// BenchmarkBuild is what of it is event's: parsing, canonical form, commitments, record.
func BenchmarkBuild(b *testing.B) {
	text := sample(b)
	builder := event.NewBuilder()
	workspace := &event.Workspace{Lanes: 4}
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := builder.Build(workspace, event.Input{JSON: text, RecordedAt: now}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHalfRate compares the latency of POST /events with that of producing the same record, both at half the rate that
// ingest takes at most, which it measures first: from when a request was due, so that one that is late makes the next
// ones late too.
func BenchmarkHalfRate(b *testing.B) {
	cluster := startBroker(b)
	r := newRig(b, cluster, nil)
	text := sample(b)
	built, err := event.NewBuilder().Build(r.workspace.ForEvents(), event.Input{JSON: text, RecordedAt: time.Now()})
	if err != nil {
		b.Fatal(err)
	}
	client := cluster.Client(b, producerOptions(r.service.cfg, r.service.topic)...)
	raw := func() func() error {
		return func() error {
			return client.ProduceSync(b.Context(), &kgo.Record{
				Key: built.Key, Value: built.Value, Timestamp: time.Now(),
				Partition: event.Partition(r.workspace.ID, built.Lane, cluster.Layout.Partitions),
			}).FirstErr()
		}
	}
	post := func() func() error {
		c := dial(b, r.url, onePath, "application/json", r.token, text)
		b.Cleanup(func() { c.conn.Close() })
		return c.send
	}
	const probe = 20_000
	begin := time.Now()
	paced(b, probe, 0, post)
	interval := 2 * time.Since(begin) / probe
	b.Run("raw", func(b *testing.B) { reportLatency(b, paced(b, b.N, interval, raw)) })
	b.Run("ingest", func(b *testing.B) { reportLatency(b, paced(b, b.N, interval, post)) })
}

// paced calls what 64 workers make n times, every interval one, and returns how long each call took since it was due; with
// interval 0 as fast as it can.
func paced(b *testing.B, n int, interval time.Duration, worker func() func() error) []time.Duration {
	b.Helper()
	took := make([]time.Duration, n)
	var next atomic.Int64
	var g errgroup.Group
	begin := time.Now()
	for range 64 {
		do := worker()
		g.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return nil
				}
				due := begin.Add(time.Duration(i) * interval)
				time.Sleep(time.Until(due))
				if err := do(); err != nil {
					return err
				}
				took[i] = time.Since(due)
			}
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	return took
}

func reportLatency(b *testing.B, took []time.Duration) {
	b.Helper()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(0, "ns/op")
}
