package loadgen

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// Ack is a promise that a server made: the event with this body is stored, under this id.
type Ack struct {
	// ID is the event's UUID in its text form, as the server answered it.
	ID string
	// SHA256 is of the event's JSON as it was sent.
	SHA256 [32]byte
	// At is when the answer was read, by the client's clock.
	At time.Time
}

// AckLog is a file with one line for each acknowledged event: "<id> <64 hex SHA-256> <RFC 3339 time>". A line is
// handed to the operating system before the client counts the event, so the log outlives a kill of this process,
// though not a power cut. Safe for concurrent use.
type AckLog struct {
	mu   sync.Mutex
	file *os.File
	buf  []byte
}

// OpenAckLog opens the log at path for appending and creates it where there is none.
func OpenAckLog(path string) (*AckLog, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600) //nolint:gosec // the caller's file
	if err != nil {
		return nil, fmt.Errorf("opening acknowledgement log: %w", err)
	}
	return &AckLog{file: f}, nil
}

// Write appends acks with one write.
func (l *AckLog) Write(acks []Ack) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.buf[:0]
	for i := range acks {
		b = append(b, acks[i].ID...)
		b = append(b, ' ')
		b = hex.AppendEncode(b, acks[i].SHA256[:])
		b = append(b, ' ')
		b = acks[i].At.UTC().AppendFormat(b, time.RFC3339Nano)
		b = append(b, '\n')
	}
	l.buf = b
	if _, err := l.file.Write(b); err != nil {
		return fmt.Errorf("writing acknowledgement log: %w", err)
	}
	return nil
}

// Close closes the file.
func (l *AckLog) Close() error { return l.file.Close() }

// ReadAckLog calls yield for every line of the log at path, in order. A last line without its end was cut by a kill
// before its event was counted, and is left out.
func ReadAckLog(path string, yield func(Ack) error) error {
	f, err := os.Open(path) //nolint:gosec // the caller's file
	if err != nil {
		return fmt.Errorf("opening acknowledgement log: %w", err)
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 1<<16)
	for n := 1; ; n++ {
		line, err := r.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading acknowledgement log: %w", err)
		}
		ack, err := parseAck(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return fmt.Errorf("acknowledgement log %s, line %d: %w", path, n, err)
		}
		if err := yield(ack); err != nil {
			return err
		}
	}
}

func parseAck(line string) (Ack, error) {
	id, rest, _ := strings.Cut(line, " ")
	sum, at, ok := strings.Cut(rest, " ")
	if !ok || id == "" {
		return Ack{}, fmt.Errorf("not three words: %q", line)
	}
	ack := Ack{ID: id}
	if n, err := hex.Decode(ack.SHA256[:], []byte(sum[:min(len(sum), 64)])); err != nil || n != 32 || len(sum) != 64 {
		return Ack{}, fmt.Errorf("not a SHA-256: %q", sum)
	}
	var err error
	if ack.At, err = time.Parse(time.RFC3339Nano, at); err != nil {
		return Ack{}, fmt.Errorf("reading time: %w", err)
	}
	return ack, nil
}
