// Package schemas holds the contracts between the services and with the outside: Kafka topics and records, ClickHouse
// tables, the HTTP API. It imports nothing of Immutable's.
package schemas

import "embed"

//go:generate sh -c "../node_modules/@bufbuild/buf-linux-x64/bin/buf generate --template buf.gen.yaml ."

// Migrations holds the ClickHouse migrations, clickhouse/NNNN_name.sql, applied in the order of their numbers.
// Statements end with a semicolon at the end of a line. A file that has been released never changes.
//
//go:embed clickhouse/*.sql
var Migrations embed.FS

// OpenAPI is the HTTP API's own statement, in OpenAPI 3.1 YAML.
//
//go:embed openapi.yaml
var OpenAPI []byte
