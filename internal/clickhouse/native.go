package clickhouse

import (
	"context"
	"fmt"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/clickhouse-go/v2"
)

// Dial connects a client that reads or writes whole columns, to the first of the DSN's addresses that answers. Of the DSN's settings it takes
// none. Close it.
func Dial(ctx context.Context, cfg Config, clientName string) (*ch.Client, error) {
	opts, err := cfg.Options()
	if err != nil {
		return nil, err
	}
	native := NativeOptions(opts, clientName)
	for _, addr := range opts.Addr {
		native.Address = addr
		var client *ch.Client
		if client, err = ch.Dial(ctx, native); err == nil {
			return client, nil
		}
	}
	return nil, fmt.Errorf("connecting to clickhouse: %w", err)
}

// NativeOptions are those of such a client, but for the address and the DSN's settings.
func NativeOptions(opts *clickhouse.Options, clientName string) ch.Options {
	return ch.Options{
		Database: opts.Auth.Database, User: opts.Auth.Username, Password: opts.Auth.Password, TLS: opts.TLS,
		DialTimeout: opts.DialTimeout, HandshakeTimeout: opts.DialTimeout, ClientName: clientName, Compression: compression(opts.Compression),
	}
}

// compression takes over what the DSN says; without a word there is none, which is the fastest on a short way.
func compression(c *clickhouse.Compression) ch.Compression {
	if c == nil {
		return ch.CompressionDisabled
	}
	switch c.Method {
	case clickhouse.CompressionLZ4:
		return ch.CompressionLZ4
	case clickhouse.CompressionLZ4HC:
		return ch.CompressionLZ4HC
	case clickhouse.CompressionZSTD:
		return ch.CompressionZSTD
	default:
		return ch.CompressionDisabled
	}
}
