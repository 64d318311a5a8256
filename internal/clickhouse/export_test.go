package clickhouse

import (
	"context"
	"io/fs"
	"log/slog"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

func MigrateFiles(ctx context.Context, conn driver.Conn, files fs.FS, logger *slog.Logger) error {
	migrations, err := load(files)
	if err != nil {
		return err
	}
	return migrate(ctx, conn, migrations, logger)
}

func CheckSchemaFiles(ctx context.Context, conn driver.Conn, files fs.FS) error {
	migrations, err := load(files)
	if err != nil {
		return err
	}
	return check(ctx, conn, migrations)
}

func Statements(files fs.FS) ([]string, error) {
	migrations, err := load(files)
	var all []string
	for _, m := range migrations {
		all = append(all, m.statements...)
	}
	return all, err
}
