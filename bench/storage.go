package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// ledgerColumns of events are there for the ledger alone: without one, the table would not have them.
var ledgerColumns = []string{
	"chain", "sequence", "seed", "disclosure", "input_generation", "input_partition", "input_offset", "ledger_partition",
	"ledger_offset",
}

// database is the embedded ClickHouse of `up`, over HTTP.
type database struct {
	URL      string `json:"clickhouse_http"`
	User     string `json:"clickhouse_user"`
	Password string `json:"clickhouse_password"`
	Name     string `json:"database"`
}

// query returns the rows of an answer.
func (d *database) query(ctx context.Context, text string) ([][]any, error) {
	u := d.URL + "/?" + url.Values{"database": {d.Name}, "default_format": {"JSONCompact"}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u, strings.NewReader(text))
	if err != nil {
		return nil, err
	}
	req.SetBasicAuth(d.User, d.Password)
	status, body, err := do(req)
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("%s: %d %s", text, status, body)
	}
	var answer struct{ Data [][]any }
	if len(body) > 0 {
		err = json.Unmarshal(body, &answer)
	}
	return answer.Data, err
}

// storage prints the stored bytes of each event, by column, once all of them are in the tables and every table is merged
// into one part.
func storage(ctx context.Context, table io.Writer, data string, events int) error {
	text, err := os.ReadFile(filepath.Join(data, "up.json"))
	if err != nil {
		return err
	}
	d := new(database)
	if err := json.Unmarshal(text, d); err != nil {
		return err
	}
	if err := d.await(ctx, events); err != nil {
		return err
	}
	for _, name := range []string{"events", "leaves", "root_log", "checkpoints"} {
		if _, err := d.query(ctx, "OPTIMIZE TABLE "+name+" FINAL"); err != nil {
			return err
		}
	}
	rows, err := d.query(ctx, `SELECT table, name, toFloat64(data_compressed_bytes) FROM system.columns
		WHERE database = currentDatabase() AND table != 'schema_migrations'
		UNION ALL SELECT table, 'index ' || name, toFloat64(data_compressed_bytes) FROM system.data_skipping_indices
		WHERE database = currentDatabase() ORDER BY 1, 3 DESC`)
	if err != nil {
		return err
	}
	var plain, ledger, indexes float64
	var columns []string
	for _, r := range rows {
		of, name, size := r[0].(string), r[1].(string), r[2].(float64)/float64(events)
		switch {
		case strings.HasPrefix(name, "index "):
			indexes += size
		case of == "events" && !slices.Contains(ledgerColumns, name):
			plain += size
		default:
			ledger += size
		}
		if size >= 0.05 {
			columns = append(columns, fmt.Sprintf("%s.%s %.1f", of, name, size))
		}
	}
	row(table, "stored bytes an event: ledger and indexes, against the table without", fmt.Sprintf("+%.0f B", ledger+indexes),
		fmt.Sprintf("%.0f B", plain), "", "<= +100 B")
	row(table, "of these the indexes", fmt.Sprintf("+%.0f B", indexes), fmt.Sprintf("%.0f B", plain),
		fmt.Sprintf("+%.1f %%", 100*indexes/plain), "<= +10 %")
	fmt.Fprintf(os.Stderr, "bytes an event, by column: %s\n", strings.Join(columns, ", "))
	return nil
}

// await waits until the events are in the tables.
func (d *database) await(ctx context.Context, events int) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		rows, err := d.query(ctx, "SELECT toFloat64(count()) FROM events")
		if err != nil {
			return err
		}
		if len(rows) == 1 && rows[0][0].(float64) >= float64(events) {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.New("the events do not reach the tables")
		case <-tick.C:
		}
	}
}
