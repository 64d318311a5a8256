package localkafka

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func startServer(t *testing.T, cfg Config) *Server {
	t.Helper()
	s, err := Start(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func newClient(t *testing.T, s *Server, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append(opts, kgo.SeedBrokers(s.Addr()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

func createTopic(t *testing.T, s *Server, topic string, partitions int32, configs map[string]*string) {
	t.Helper()
	if _, err := kadm.NewClient(newClient(t, s)).CreateTopic(t.Context(), partitions, 1, configs, topic); err != nil {
		t.Fatal(err)
	}
}

func port(t *testing.T, s *Server) int {
	t.Helper()
	_, text, err := net.SplitHostPort(s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestKeepsItsPortWhereItCan(t *testing.T) {
	s := startServer(t, Config{Dir: t.TempDir()})
	taken := port(t, s)
	if got := port(t, startServer(t, Config{Dir: t.TempDir(), Port: taken})); got == taken {
		t.Error("two brokers on one port")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := port(t, startServer(t, Config{Dir: t.TempDir(), Port: taken})); got != taken {
		t.Errorf("port %d, want %d", got, taken)
	}
}

// TestFullDisk fills a file system of 32 MiB under the broker: what it acknowledged is there, after a restart too, and
// it takes records again once there is room.
func TestFullDisk(t *testing.T) {
	if testing.Short() {
		t.Skip("takes more than a second or two")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=32m"); err != nil {
		if os.Getenv("IMMUTABLE_REQUIRE_REAL") == "1" {
			t.Fatalf("mounting a small file system: %v", err)
		}
		t.Skipf("mounting a small file system: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	log := filepath.Join(dir, "log")
	s := startServer(t, Config{Dir: log, MinFreeBytes: 8 << 20})
	createTopic(t, s, "events", 1, nil)
	cl := newClient(t, s, kgo.DefaultProduceTopic("events"), kgo.RecordDeliveryTimeout(time.Second), kgo.ProducerLinger(0),
		kgo.ProducerBatchCompression(kgo.NoCompression()))
	produce := func() error {
		return cl.ProduceSync(t.Context(), &kgo.Record{Value: bytes.Repeat([]byte("x"), 500_000)}).FirstErr()
	}
	stored := 0
	refused := false // by Admit: always before the broker itself refuses
	for {
		refused = refused || s.Admit() != nil
		if err := produce(); err != nil {
			if !errors.Is(err, kerr.KafkaStorageError) && !errors.Is(err, kgo.ErrRecordTimeout) {
				t.Errorf("got %v", err)
			}
			break
		}
		if stored++; stored > 100 {
			t.Fatal("the disk does not fill")
		}
	}
	if !refused {
		t.Error("Admit let everything in")
	}
	if err := s.Admit(); err == nil || !strings.Contains(err.Error(), "MiB left") {
		t.Errorf("Admit: %v", err)
	}
	// Even a disk with no byte left must not make it lie.
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 31<<20), 0o600); err == nil {
		t.Fatal("there was room")
	}
	if err := produce(); err == nil {
		t.Fatal("stored on a full disk")
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	// Room again: the same client goes on. (Records of the log cannot be removed so soon; the limit can.)
	s.disk.minFreeBytes = 1 << 20
	if err := produce(); err != nil {
		t.Fatalf("there is room, and still: %v", err)
	}
	stored++
	cl.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = startServer(t, Config{Dir: log, MinFreeBytes: 1 << 20})
	ends, err := kadm.NewClient(newClient(t, s)).ListEndOffsets(t.Context(), "events")
	if err != nil {
		t.Fatal(err)
	}
	if o, _ := ends.Lookup("events", 0); o.Offset != int64(stored) {
		t.Errorf("%d records, %d were acknowledged", o.Offset, stored)
	}
}

// TestCompactionIsUndone stops where kfake has deleted a partition's files and not yet written the new ones.
func TestCompactionIsUndone(t *testing.T) {
	dir := t.TempDir()
	compact := map[string]*string{"cleanup.policy": new("compact"), "retention.ms": new("-1")}
	s := startServer(t, Config{Dir: dir})
	createTopic(t, s, "config/a b", 1, compact) // as odd a name as any
	createTopic(t, s, "events", 1, nil)
	cl := newClient(t, s, kgo.ProducerLinger(0))
	for i := range 5 {
		r := &kgo.Record{Topic: "config", Key: []byte("key"), Value: []byte{byte(i)}}
		r.Topic = "config/a b"
		if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "events"}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	cl.Close()
	names, err := s.compacted()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"config%2Fa%20b-0"}, names); diff != "" {
		t.Fatal(diff)
	}
	if err := linkPartitions(dir, names); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "partitions", names[0], "*.dat"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	s = startServer(t, Config{Dir: dir})
	ends, err := kadm.NewClient(newClient(t, s)).ListEndOffsets(t.Context(), "config/a b")
	if err != nil {
		t.Fatal(err)
	}
	if o, _ := ends.Lookup("config/a b", 0); o.Offset != 5 {
		t.Errorf("%d records are left of 5", o.Offset)
	}
	if _, err := os.Stat(filepath.Join(dir, compactingDir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("links are left: %v", err)
	}
}

// TestNothingIsWrittenUnderTheMarkOfACompaction: what came after a compaction whose mark cannot be removed would be gone
// after a crash, so it is refused until the mark can be removed, even if there is no room then for the next compaction.
func TestNothingIsWrittenUnderTheMarkOfACompaction(t *testing.T) {
	if testing.Short() {
		t.Skip("takes more than a second or two")
	}
	dir := t.TempDir()
	s := startServer(t, Config{Dir: dir, CompactInterval: time.Hour, MinFreeBytes: 1})
	createTopic(t, s, "config", 1, map[string]*string{"cleanup.policy": new("compact"), "retention.ms": new("-1")})
	cl := newClient(t, s, kgo.DefaultProduceTopic("config"), kgo.ProducerLinger(0), kgo.RecordDeliveryTimeout(time.Second))
	produce := func() error {
		return cl.ProduceSync(t.Context(), &kgo.Record{Key: []byte("key"), Value: []byte("value")}).FirstErr()
	}
	for range 5 {
		if err := produce(); err != nil {
			t.Fatal(err)
		}
	}
	mark := filepath.Join(dir, compactingDir, compactingMark)
	jam := filepath.Join(mark, "jam") // a folder with something in it cannot be removed as a file can
	wantRefused := func() {
		t.Helper()
		if err := os.MkdirAll(jam, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := produce(); !errors.Is(err, kerr.KafkaStorageError) && !errors.Is(err, kgo.ErrRecordTimeout) {
			t.Fatalf("got %v, want a refusal", err)
		}
		req := kmsg.NewPtrEndTxnRequest()
		req.Version, req.Commit, req.TransactionalID = 5, true, "t"
		answer, err := cl.DiscoveredBrokers()[0].Request(t.Context(), req) // asks once
		if err != nil {
			t.Fatal(err)
		}
		resp := answer.(*kmsg.EndTxnResponse)
		if err := kerr.ErrorForCode(resp.ErrorCode); !errors.Is(err, kerr.CoordinatorNotAvailable) {
			t.Fatalf("a commit: %v, want a refusal", err)
		}
	}
	wantGone := func() {
		t.Helper()
		if err := os.Remove(jam); err != nil {
			t.Fatal(err)
		}
		if err := produce(); err != nil {
			t.Fatalf("the mark can be removed, and still: %v", err)
		}
		if _, err := os.Stat(filepath.Dir(mark)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("links are left: %v", err)
		}
	}

	// One cannot begin, because the mark of another is in its way.
	s.compactedAt = time.Time{}
	wantRefused()
	wantGone()

	// One is through, and cannot be ended.
	names, err := s.compacted()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(linkPartitions(dir, names), os.Remove(mark)); err != nil {
		t.Fatal(err)
	}
	s.marked, s.replaced = true, names
	s.cluster.Compact()
	wantRefused()
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	s.disk.minFreeBytes = int64(st.Bavail) * st.Bsize * 3 / 2 // no room to compact, enough to take records
	s.compactedAt = time.Time{}
	wantGone()

	cl.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = startServer(t, Config{Dir: dir})
	ends, err := kadm.NewClient(newClient(t, s)).ListEndOffsets(t.Context(), "config")
	if err != nil {
		t.Fatal(err)
	}
	if o, _ := ends.Lookup("config", 0); o.Offset != 7 {
		t.Errorf("the end is %d, 7 records were acknowledged", o.Offset)
	}
}

func TestCompacts(t *testing.T) {
	dir := t.TempDir()
	s := startServer(t, Config{Dir: dir, CompactInterval: time.Nanosecond})
	createTopic(t, s, "config", 1, map[string]*string{"cleanup.policy": new("compact"), "retention.ms": new("-1")})
	cl := newClient(t, s, kgo.DefaultProduceTopic("config"), kgo.ProducerLinger(0))
	for range 100 {
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Key: []byte("key"), Value: make([]byte, 1000)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.cluster.PartitionInfo("config", 0).NumBytes; n > 10_000 {
		t.Errorf("%d bytes after compaction", n)
	}
}

func TestJournal(t *testing.T) {
	dir := t.TempDir()
	j, last, err := openJournal(dir)
	if err != nil || last != nil {
		t.Fatalf("new: %v, %v", last, err)
	}
	commit := func(id int64, epoch int16, offset int64) {
		t.Helper()
		req := kmsg.NewTxnOffsetCommitRequest()
		req.Group, req.ProducerID, req.ProducerEpoch = "seal", id, epoch
		req.Topics = []kmsg.TxnOffsetCommitRequestTopic{{
			Topic: "events", Partitions: []kmsg.TxnOffsetCommitRequestTopicPartition{{Partition: 1, Offset: offset}},
		}}
		j.stage(&req)
	}
	end := func(id int64, epoch int16, commit bool, version int16) {
		t.Helper()
		if err := j.end(&kmsg.EndTxnRequest{Version: version, ProducerID: id, ProducerEpoch: epoch, Commit: commit}); err != nil {
			t.Fatal(err)
		}
	}
	commit(7, 1, 10)
	end(7, 1, true, 5)
	want := &decision{7, 1, []offset{{Group: "seal", Topic: "events", Partition: 1, Offset: 10}}}
	commit(7, 2, 20)
	end(7, 2, false, 5) // aborted
	commit(8, 1, 30)
	end(8, 1, true, 4) // too old a client
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	reopen := func() *decision {
		t.Helper()
		var last *decision
		if j, last, err = openJournal(dir); err != nil {
			t.Fatal(err)
		}
		return last
	}
	if diff := cmp.Diff(want, reopen()); diff != "" {
		t.Error(diff)
	}
	// A torn line counts for nothing, and the next is written over it.
	if _, err := j.file.WriteAt([]byte(`01234567 {"producer_id":9}`+"\n{"), j.size); err != nil {
		t.Fatal(err)
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, reopen()); diff != "" {
		t.Error(diff)
	}
	end(9, 3, true, 5)
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&decision{ProducerID: 9, ProducerEpoch: 3}, reopen()); diff != "" {
		t.Error(diff)
	}
	for i := range int16(30_000) {
		j.size = max(j.size, maxJournalBytes-1000)
		if i == 100 {
			break
		}
		end(9, i, true, 5)
	}
	if info, err := j.file.Stat(); err != nil || info.Size() > maxJournalBytes {
		t.Errorf("the journal has %d bytes, %v", info.Size(), err)
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
}

func TestKfakeWarningsThatMatterAreLogged(t *testing.T) {
	var text bytes.Buffer
	l := log{slog.New(slog.NewTextHandler(&text, nil))}
	l.Logf(2, "txn: EndTxn slow %d", 1)
	l.Logf(3, "persist something")
	if text.Len() != 0 {
		t.Errorf("logged: %s", &text)
	}
	l.Logf(2, "persist batch %s: %v", "events", context.Canceled)
	if !strings.Contains(text.String(), "persist batch events: context canceled") {
		t.Errorf("not logged: %s", &text)
	}
}
