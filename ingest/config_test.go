package ingest

import (
	"strings"
	"testing"
	"time"

	"getimmutable.dev/immutable/internal/kafka"
)

func TestConfig(t *testing.T) {
	good := Config{Kafka: kafka.Config{Brokers: []string{"127.0.0.1:9092"}}, Partitions: 12}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*Config){
		"no broker":            func(c *Config) { c.Kafka.Brokers = nil },
		"partitions":           func(c *Config) { c.Partitions = 0 },
		"max bodies bytes":     func(c *Config) { c.MaxBodiesBytes = 1 << 20 },
		"max buffered records": func(c *Config) { c.MaxBufferedRecords = 9_999 },
		"max buffered bytes":   func(c *Config) { c.MaxBufferedBytes = -1 },
		"body timeout":         func(c *Config) { c.BodyTimeout = time.Hour },
		"produce timeout":      func(c *Config) { c.ProduceTimeout = 5 * time.Second },
		"linger":               func(c *Config) { c.Linger = -time.Second },
		"idempotency keys":     func(c *Config) { c.IdempotencyKeys = -1 },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}
