// Package witness is a small witness of root logs: C2SP tlog-witness. It cosigns a checkpoint only if that continues the one
// that it cosigned before, and keeps what it cosigned before the signature leaves, so that it never states two histories.
// It belongs on a machine that the log's operator does not control.
package witness
