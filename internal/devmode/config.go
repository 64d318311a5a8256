// Package devmode is `immutable up`: all services in one process, the same that production runs one by one, against an
// embedded Kafka and an embedded ClickHouse or real ones.
package devmode

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/schemas"
)

// Config is what a user may say about `up`. Only Dir and HTTP.Addr are required.
type Config struct {
	// Dir holds everything: the lock, the master key, up.json, and the embedded engines' data. One process at a time.
	Dir string
	// HTTP is the one address that serves the API and health, metrics included.
	HTTP httpserver.Config
	// Internal serves health, metrics and profiles once more, where the outside does not reach. Default: none.
	Internal httpserver.Config
	// Kafka is a cluster to use instead of the embedded one, which runs where it names no broker. Its TopicPrefix holds
	// for both.
	Kafka kafka.Config
	// Partitions and Replicas of the topics where they are created. Default 4 and 1.
	Partitions int32
	Replicas   int16
	// ClickHouse is a server to use instead of the embedded one, which runs where its DSN is empty.
	ClickHouse clickhouse.Config
	// Library is the path of libchdb.so. Default: where npm puts it.
	Library string
	// ChildCommand runs the embedded ClickHouse. Default: this executable with the subcommand chdb-server.
	ChildCommand []string
	// APIKey is the text of a key of the workspace "default", made where it does not exist. Default: the first start
	// draws one.
	APIKey string
	// MinFreeBytes is how much room the disk must have for new events to be accepted; see localkafka.Config. Default
	// 256 MiB. It has no effect on a Kafka elsewhere.
	MinFreeBytes int64
	// WitnessPolicy is that of notary.Config: who is asked to cosign checkpoints. Default: nobody.
	WitnessPolicy []byte
	// EpochInterval is how often the notary makes a checkpoint when there are new events. Default 10 s.
	EpochInterval time.Duration
	// VerifyInterval is the pause between two verifications of what is in ClickHouse; 0 is never. VerifyLeaves of the history are
	// verified each time; default 50,000.
	VerifyInterval time.Duration
	VerifyLeaves   int
	// Started, if not nil, is called once, when everything runs.
	Started func(Started)
}

// Started is what a user wants to know when everything runs.
type Started struct {
	URL string // of the API: http://127.0.0.1:8080
	// DrawnKey is the text of the API key that the first start drew. "" at later starts, where nobody knows it any more,
	// and where one was chosen.
	DrawnKey string
	// ChoseKey: this start has made the key that was chosen.
	ChoseKey bool
	Took     time.Duration
}

// Validate says what is wrong with c.
func (c *Config) Validate() error {
	if c.Dir == "" {
		return errors.New("a data folder is required")
	}
	if c.Partitions < 0 || c.Replicas < 0 || c.MinFreeBytes < 0 {
		return errors.New("partitions, replicas and the free disk space cannot be negative")
	}
	if err := c.HTTP.Validate(); err != nil {
		return fmt.Errorf("http: %w", err)
	}
	if c.Internal.Addr != "" {
		if err := c.Internal.Validate(); err != nil {
			return fmt.Errorf("internal http: %w", err)
		}
	}
	if len(c.Kafka.Brokers) > 0 {
		if err := c.Kafka.Validate(); err != nil {
			return err
		}
	}
	if c.ClickHouse.DSN != "" {
		return c.ClickHouse.Validate()
	}
	return nil
}

// LedgerRetentionDays is how long the ledger topic keeps what has long been in ClickHouse.
const LedgerRetentionDays = 30

func (c *Config) layout() schemas.TopicLayout {
	return schemas.TopicLayout{
		Prefix: c.Kafka.TopicPrefix, Partitions: cmp.Or(c.Partitions, 4), Replicas: cmp.Or(c.Replicas, 1),
		LedgerRetentionDays: LedgerRetentionDays,
	}
}
