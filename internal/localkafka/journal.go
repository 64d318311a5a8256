package localkafka

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// decision is a transaction that a client has asked to commit. kfake carries it out by writing a marker to each of its
// partitions, one after the other, and the group's offsets after them; a crash in between would leave it half done.
// Producer id and epoch name it: since KIP-890 every transaction has an epoch of its own.
type decision struct {
	ProducerID    int64    `json:"producer_id"`
	ProducerEpoch int16    `json:"producer_epoch"`
	Offsets       []offset `json:"offsets"`
}

// offset is one that a group commits with a transaction.
type offset struct {
	Group       string  `json:"group"`
	Topic       string  `json:"topic"`
	Partition   int32   `json:"partition"`
	Offset      int64   `json:"offset"`
	LeaderEpoch int32   `json:"leader_epoch"`
	Metadata    *string `json:"metadata"`
}

// maxJournalBytes is where the journal starts over. Only its last line matters: kfake ends one transaction at a time,
// and has written all of it before it takes the next request.
const maxJournalBytes = 1 << 20

const journalFile = "decisions.log"

// journal is a file with a line per decision: 8 hex digits of CRC-32, a space, JSON. It is used by kfake's only loop.
type journal struct {
	file *os.File
	// staged are the offsets of open transactions, by producer id. A transaction that is never ended leaves its few
	// behind until the producer's next.
	staged map[int64]*decision
	size   int64
}

// openJournal returns the journal and its last decision, nil where there is none.
func openJournal(dir string) (*journal, *decision, error) {
	path := filepath.Join(dir, journalFile)
	text, err := os.ReadFile(path) //nolint:gosec // a file of ours
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("reading the transaction journal: %w", err)
	}
	var last *decision
	valid := 0
	for line := range bytes.Lines(text) {
		d, ok := parseDecision(line)
		if !ok {
			break // the tail that a power cut tore; its transaction had not begun to end
		}
		last = d
		valid += len(line)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600) //nolint:gosec // a file of ours
	if err != nil {
		return nil, nil, fmt.Errorf("opening the transaction journal: %w", err)
	}
	return &journal{file: f, size: int64(valid), staged: make(map[int64]*decision)}, last, nil
}

func parseDecision(line []byte) (*decision, bool) {
	sum, text, ok := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte(" "))
	if !ok || !bytes.HasSuffix(line, []byte("\n")) || string(sum) != checksum(text) {
		return nil, false
	}
	d := new(decision)
	return d, json.Unmarshal(text, d) == nil
}

func checksum(b []byte) string { return fmt.Sprintf("%08x", crc32.ChecksumIEEE(b)) }

// stage takes in the offsets of an open transaction.
func (j *journal) stage(req *kmsg.TxnOffsetCommitRequest) {
	d := j.staged[req.ProducerID]
	if d == nil || d.ProducerEpoch != req.ProducerEpoch {
		d = &decision{ProducerID: req.ProducerID, ProducerEpoch: req.ProducerEpoch}
		j.staged[req.ProducerID] = d
	}
	for _, t := range req.Topics {
		for _, p := range t.Partitions {
			d.Offsets = append(d.Offsets, offset{
				Group: req.Group, Topic: t.Topic, Partition: p.Partition, Offset: p.Offset, LeaderEpoch: p.LeaderEpoch,
				Metadata: p.Metadata,
			})
		}
	}
}

// end forgets a transaction that is aborted, and writes down one that is committed: when it returns without an error,
// the decision is on disk, and a crash at any later moment is completed by repair at the next start.
func (j *journal) end(req *kmsg.EndTxnRequest) error {
	// Up to version 4 transactions of one producer share an epoch, so that a later one could be taken for this. Our
	// own clients are newer; a transaction of an older one can be torn.
	if !req.Commit || req.Version < 5 {
		delete(j.staged, req.ProducerID)
		return nil
	}
	d := j.staged[req.ProducerID]
	if d == nil || d.ProducerEpoch != req.ProducerEpoch {
		d = &decision{ProducerID: req.ProducerID, ProducerEpoch: req.ProducerEpoch}
	}
	text, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("encoding a decision: %w", err)
	}
	line := append([]byte(checksum(text)+" "), text...)
	line = append(line, '\n')
	if j.size+int64(len(line)) > maxJournalBytes {
		if err := j.file.Truncate(0); err != nil {
			return fmt.Errorf("starting the transaction journal over: %w", err)
		}
		j.size = 0
	}
	// A write that fails in part is overwritten by the next, since size does not move.
	if _, err := j.file.WriteAt(line, j.size); err != nil {
		return fmt.Errorf("writing to the transaction journal: %w", err)
	}
	if err := j.file.Sync(); err != nil {
		return fmt.Errorf("syncing the transaction journal: %w", err)
	}
	j.size += int64(len(line))
	delete(j.staged, req.ProducerID) // kept until here: the client may ask again
	return nil
}

func (j *journal) close() error { return j.file.Close() }
