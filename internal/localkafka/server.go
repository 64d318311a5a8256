// Package localkafka is the Kafka of a single machine: franz-go's kfake, which speaks the real protocol over TCP and
// keeps its log in a folder with an fsync per write, and around it what kfake lacks to be trusted with an audit log:
// transactions that a crash cannot tear, a log without torn tails, aborted records that stay unread, and a refusal to write on a
// nearly full disk.
//
// It has one broker and no replication. It is for evaluation and for single machines; production has a Kafka of its own.
package localkafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// DefaultMinFreeBytes is Config.MinFreeBytes where that is 0.
const DefaultMinFreeBytes = 256 << 20

// Config says where the log is.
type Config struct {
	// Dir holds the log. One process at a time: the caller holds a lock. Required.
	Dir string
	// Port to listen on at 127.0.0.1 if it is free; otherwise, and where it is 0, the kernel chooses one.
	Port int
	// MinFreeBytes is how much room the disk of Dir must have for Admit to let new work in. Below half of it the broker
	// itself takes no records, and below a quarter nothing at all: that much is for what it has begun to write, offsets
	// and the markers that end transactions. Default 256 MiB.
	MinFreeBytes int64
	// CompactInterval is how often compacted topics are compacted and expired segments deleted, while records come in.
	// Default 1 minute.
	CompactInterval time.Duration
}

// Server is a running broker.
type Server struct {
	cluster     *kfake.Cluster
	journal     *journal
	disk        disk
	cfg         Config
	logger      *slog.Logger
	compactedAt time.Time // this and what follows: used by the broker's only loop
	// marked says that the mark of a compaction may be on disk, and replaced which partitions have new files under it.
	marked   bool
	replaced []string
}

// brokerConfigs, besides kfake's defaults.
var brokerConfigs = map[string]string{ //nolint:gochecknoglobals // a constant that Go cannot write as one
	// kfake deletes a partition's files before it has written the compacted ones, so it never compacts by itself; see
	// compact.go. 100 years.
	"log.cleaner.backoff.ms": "3153600000000",
	// An installation that was off for longer than the default of 7 days must find its place again: 100 years.
	"offsets.retention.minutes":  "52560000",
	"default.replication.factor": "1",
}

// Start repairs what a crash has left in the log, and serves it. It returns when clients can connect.
func Start(cfg Config, logger *slog.Logger) (*Server, error) {
	if cfg.MinFreeBytes == 0 {
		cfg.MinFreeBytes = DefaultMinFreeBytes
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("local kafka: making the log's folder: %w", err)
	}
	if cfg.CompactInterval == 0 {
		cfg.CompactInterval = time.Minute
	}
	if err := restoreCompaction(cfg.Dir); err != nil {
		return nil, fmt.Errorf("local kafka: restoring what an unfinished compaction replaced: %w", err)
	}
	journal, last, err := openJournal(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("local kafka: %w", err)
	}
	if err := repair(cfg.Dir, last); err != nil {
		return nil, errors.Join(fmt.Errorf("local kafka: repairing the log: %w", err), journal.close())
	}
	start := func(port int) (*kfake.Cluster, error) {
		return kfake.NewCluster(
			kfake.NumBrokers(1), kfake.Ports(port), kfake.DataDir(cfg.Dir), kfake.SyncWrites(),
			kfake.ClusterID("immutable-local"), kfake.BrokerConfigs(brokerConfigs), kfake.WithLogger(log{logger}),
		)
	}
	cluster, err := start(cfg.Port)
	if errors.Is(err, syscall.EADDRINUSE) {
		cluster, err = start(0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("local kafka: %w", err), journal.close())
	}
	s := &Server{
		cluster: cluster, journal: journal, disk: disk{dir: cfg.Dir, minFreeBytes: cfg.MinFreeBytes}, cfg: cfg,
		logger: logger, compactedAt: time.Now(),
	}
	BoundFetches(cluster)
	cluster.ControlKey(int16(kmsg.Produce), s.onProduce)
	cluster.ControlKey(int16(kmsg.TxnOffsetCommit), s.onTxnOffsetCommit)
	cluster.ControlKey(int16(kmsg.EndTxn), s.onEndTxn)
	cluster.ControlKey(int16(kmsg.OffsetCommit), s.onOffsetCommit)
	cluster.ControlKey(int16(kmsg.InitProducerID), s.onInitProducerID)
	return s, nil
}

// Addr is the broker's host:port.
func (s *Server) Addr() string { return s.cluster.ListenAddrs()[0] }

// Admit returns nil, or why no new work should be let in: the disk is nearly full. It costs about a microsecond.
func (s *Server) Admit() error { return s.disk.check(s.disk.minFreeBytes) }

// Close ends the broker; what clients were told is on disk before and after.
func (s *Server) Close() error {
	s.cluster.Close()
	return s.journal.close()
}

// onProduce refuses records while the disk has no room for them, or a crash would undo them, before kfake has looked at their sequence numbers:
// the client sends the same batch again until its own limits, and succeeds once there is room.
func (s *Server) onProduce(kreq kmsg.Request) (kmsg.Response, error, bool) {
	s.cluster.KeepControl()
	s.compactIfDue()
	if !s.marked && s.disk.check(s.disk.minFreeBytes/2) == nil {
		return nil, nil, false
	}
	req, ok := kreq.(*kmsg.ProduceRequest)
	if !ok || req.Acks == 0 {
		return nil, nil, false // no answer to give; kfake drops what it cannot write
	}
	resp := req.ResponseKind().(*kmsg.ProduceResponse)
	for _, t := range req.Topics {
		topic := kmsg.NewProduceResponseTopic()
		topic.Topic, topic.TopicID = t.Topic, t.TopicID
		for _, p := range t.Partitions {
			partition := kmsg.NewProduceResponseTopicPartition()
			partition.Partition, partition.ErrorCode = p.Partition, kerr.KafkaStorageError.Code
			topic.Partitions = append(topic.Partitions, partition)
		}
		resp.Topics = append(resp.Topics, topic)
	}
	return resp, nil, true
}

// onTxnOffsetCommit remembers the offsets of an open transaction: kfake keeps them in memory until it has ended.
func (s *Server) onTxnOffsetCommit(kreq kmsg.Request) (kmsg.Response, error, bool) {
	s.cluster.KeepControl()
	if req, ok := kreq.(*kmsg.TxnOffsetCommitRequest); ok {
		for i, t := range req.Topics {
			if t.Topic == "" { // version 6 and later name topics by id
				if info := s.cluster.TopicIDInfo(t.TopicID); info != nil {
					req.Topics[i].Topic = info.Topic
				}
			}
		}
		s.journal.stage(req)
	}
	return nil, nil, false
}

// onEndTxn makes the decision to commit durable before kfake begins to carry it out, partition by partition.
func (s *Server) onEndTxn(kreq kmsg.Request) (kmsg.Response, error, bool) {
	s.cluster.KeepControl()
	req, ok := kreq.(*kmsg.EndTxnRequest)
	if !ok {
		return nil, nil, false
	}
	err := errors.Join(s.endCompaction(), s.disk.check(s.disk.minFreeBytes/4))
	if err == nil || !req.Commit { // a marker of an abort that is lost is written again by repair
		err = s.journal.end(req)
	}
	if err == nil {
		return nil, nil, false
	}
	// Nothing was decided. The client asks again, or the transaction times out and is aborted.
	resp := req.ResponseKind().(*kmsg.EndTxnResponse)
	resp.ErrorCode = kerr.CoordinatorNotAvailable.Code
	return resp, nil, true
}

// onOffsetCommit and onInitProducerID refuse what kfake would forget at the next start if it could not write it. Both
// errors make the client ask again.
func (s *Server) onOffsetCommit(kreq kmsg.Request) (kmsg.Response, error, bool) {
	s.cluster.KeepControl()
	req, ok := kreq.(*kmsg.OffsetCommitRequest)
	if !ok || s.disk.check(s.disk.minFreeBytes/4) == nil {
		return nil, nil, false
	}
	resp := req.ResponseKind().(*kmsg.OffsetCommitResponse)
	for _, t := range req.Topics {
		topic := kmsg.NewOffsetCommitResponseTopic()
		topic.Topic, topic.TopicID = t.Topic, t.TopicID
		for _, p := range t.Partitions {
			partition := kmsg.NewOffsetCommitResponseTopicPartition()
			partition.Partition, partition.ErrorCode = p.Partition, kerr.CoordinatorNotAvailable.Code
			topic.Partitions = append(topic.Partitions, partition)
		}
		resp.Topics = append(resp.Topics, topic)
	}
	return resp, nil, true
}

func (s *Server) onInitProducerID(kreq kmsg.Request) (kmsg.Response, error, bool) {
	s.cluster.KeepControl()
	req, ok := kreq.(*kmsg.InitProducerIDRequest)
	if !ok || s.disk.check(s.disk.minFreeBytes/4) == nil {
		return nil, nil, false
	}
	resp := req.ResponseKind().(*kmsg.InitProducerIDResponse)
	resp.ErrorCode = kerr.CoordinatorNotAvailable.Code
	return resp, nil, true
}

// disk knows how much room there is.
type disk struct {
	dir          string
	minFreeBytes int64
}

func (d *disk) check(minFreeBytes int64) error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(d.dir, &st); err != nil {
		return fmt.Errorf("asking for free disk space: %w", err)
	}
	free := int64(st.Bavail) * st.Bsize
	if free < minFreeBytes {
		return fmt.Errorf("the disk of %s has %d MiB left, and %d MiB are kept free", d.dir, free>>20, minFreeBytes>>20)
	}
	return nil
}

// log gives kfake's warnings about its files to slog. Its other warnings are about clients, who get an answer.
type log struct{ logger *slog.Logger }

// Logf implements kfake.Logger.
func (l log) Logf(level kfake.LogLevel, format string, args ...any) {
	about := func(what ...string) bool {
		for _, w := range what {
			if strings.HasPrefix(format, w) {
				return true
			}
		}
		return false
	}
	if level > kfake.LogLevelWarn || level == kfake.LogLevelWarn && !about("persist", "compact", "rebuildSegments", "partition", "groups.log", "pids.log") {
		return
	}
	ctx := context.Background() //nolint:forbidigo // kfake.Logger has none
	l.logger.LogAttrs(ctx, slog.LevelError, "local kafka", slog.String("detail", fmt.Sprintf(format, args...)))
}
