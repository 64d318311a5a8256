package schemas

import (
	"maps"
	"strconv"
)

// Topic names, without the installation's prefix.
const (
	TopicEvents      = "events"
	TopicLedger      = "ledger"
	TopicHeads       = "heads"
	TopicDedup       = "dedup"
	TopicDLQ         = "dlq"
	TopicCheckpoints = "checkpoints"
	TopicNotaryState = "notary_state"
	TopicConfig      = "config"
	TopicKeyUsage    = "key_usage"
)

// DefaultTopicPrefix stands before every topic name and consumer group.
const DefaultTopicPrefix = "immutable."

// Consumer groups, without the installation's prefix.
const (
	GroupSeal       = "seal"
	GroupClickHouse = "clickhouse"
	GroupRootLog    = "rootlog"
	GroupNotary     = "notary"
)

// TransactionalIDConfig is the transactional id of every writer of the config topic, without the prefix: there is one
// writer at a time, and the next one fences it.
const TransactionalIDConfig = "config"

// TransactionalIDNotary is the transactional id of whoever signs, without the prefix: there is one at a time, and the next
// one fences it.
const TransactionalIDNotary = "notary"

// Headers of a dlq record: where the record that could not be processed stood, and why it could not.
const (
	DLQHeaderTopic     = "topic"
	DLQHeaderPartition = "partition"
	DLQHeaderOffset    = "offset"
	DLQHeaderError     = "error"
)

// TopicLayout is what an installation chooses of its topics.
type TopicLayout struct {
	// Prefix stands before every topic name. Default DefaultTopicPrefix.
	Prefix string
	// Partitions of events, ledger, heads and dedup; fixed when the topics are created. Default 12; 4 under `up`.
	Partitions int32
	// Replicas is 3, with min.insync.replicas 2, or 1 where a single replica was allowed.
	Replicas int16
	// LedgerRetentionDays, default 30.
	LedgerRetentionDays int
}

// Topic is what a topic must be. Configs that are not named are the broker's.
type Topic struct {
	Name       string
	Partitions int32
	Replicas   int16
	Configs    map[string]string
}

const day = 24 * 60 * 60 * 1000 // milliseconds

// Topics returns every topic of an installation.
func Topics(l TopicLayout) []Topic {
	retained := func(days int) map[string]string {
		return map[string]string{"cleanup.policy": "delete", "retention.ms": strconv.FormatInt(int64(days)*day, 10)}
	}
	// The active segment is never compacted: with the default segment size a take-over would read up to 1 GB.
	compacted := map[string]string{
		"cleanup.policy":            "compact",
		"retention.ms":              "-1",
		"segment.bytes":             strconv.Itoa(16 << 20),
		"segment.ms":                strconv.Itoa(10 * 60 * 1000),
		"min.cleanable.dirty.ratio": "0.1",
	}
	topic := func(name string, partitions int32, configs map[string]string) Topic {
		configs = maps.Clone(configs)
		// Kafka 4 refuses time stamps an hour ahead; a producer's clock must not make an accepted event unsealable.
		configs["message.timestamp.after.max.ms"] = "9223372036854775807"
		configs["min.insync.replicas"] = strconv.Itoa(max(1, int(l.Replicas)-1))
		configs["unclean.leader.election.enable"] = "false"
		return Topic{Name: l.Prefix + name, Partitions: partitions, Replicas: l.Replicas, Configs: configs}
	}
	return []Topic{
		topic(TopicEvents, l.Partitions, retained(7)),
		topic(TopicLedger, l.Partitions, retained(l.LedgerRetentionDays)),
		topic(TopicHeads, l.Partitions, compacted),
		topic(TopicDedup, l.Partitions, compacted),
		topic(TopicDLQ, 3, retained(30)),
		topic(TopicCheckpoints, 1, map[string]string{
			"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1",
		}),
		topic(TopicNotaryState, 1, compacted),
		topic(TopicConfig, 1, compacted),
		topic(TopicKeyUsage, 1, compacted),
	}
}
