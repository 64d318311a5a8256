package localkafka

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// kfake's files, as its persist.go describes them: a folder for each partition, in it segments named by their first
// offset, NNN.dat of plain record batches and NNN.idx with 15 bytes for each batch; and logs of framed JSON.
const (
	indexEntryBytes  = 15
	frameHeaderBytes = 10 // u32le length of what follows the CRC, u32le CRC-32C of that, u16le version
	persistVersion   = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli) //nolint:gochecknoglobals // a table of constants

// repair makes the files of a log in dir what they would be had the last process ended between two requests instead of
// within one. kfake reads a log that was closed properly the same before and after.
//
//  1. Tails: the last batch of a segment and its index entry are two writes. Where only the first was made, kfake would
//     give later batches the wrong entries; nobody was told of that batch, and it goes. Likewise what follows the last
//     whole entry of groups.log and pids.log, behind which kfake would append and never read again.
//  2. Open transactions: each gets the marker that ends it in every partition that lacks it. The one that was last to be
//     committed is committed, with its group's offsets; all others are aborted, as kfake would, which however forgets
//     about it and takes their records for committed at the start after the next crash.
func repair(dir string, last *decision) error {
	for _, name := range []string{"groups.log", "pids.log"} {
		if err := cutFrames(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	partitions, err := os.ReadDir(filepath.Join(dir, "partitions"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a new log
	}
	if err != nil {
		return fmt.Errorf("listing partitions: %w", err)
	}
	var tails []*tail
	committed, aborted := false, false
	for _, p := range partitions {
		t, err := readTail(filepath.Join(dir, "partitions", p.Name()))
		if err != nil {
			return fmt.Errorf("partition %s: %w", p.Name(), err)
		}
		if t == nil {
			continue
		}
		tails = append(tails, t)
		if last != nil {
			state := t.stateOf(last)
			// A decision is carried out if the transaction is there: kfake has begun to, or was about to.
			committed = committed || state == txnCommitted || state == txnOpen
			aborted = aborted || state == txnAborted
		}
	}
	// The broker may have refused it: the producer was fenced, or too late. Then it has begun to abort.
	commit := committed && !aborted
	for _, t := range tails {
		for _, producer := range t.open() {
			err := t.end(producer, commit && producer.id == last.ProducerID && producer.epoch == last.ProducerEpoch)
			if err != nil {
				return fmt.Errorf("ending a transaction in %s: %w", t.dir, err)
			}
		}
	}
	if !commit {
		return nil
	}
	return appendOffsets(filepath.Join(dir, "groups.log"), last.Offsets)
}

// frames returns the payloads of the whole entries of a framed log and how many bytes they take.
func frames(raw []byte) (entries [][]byte, valid int) {
	for {
		rest := raw[valid:]
		if len(rest) < frameHeaderBytes {
			return entries, valid
		}
		n := int(binary.LittleEndian.Uint32(rest))
		if n < 2 || len(rest) < 8+n || crc32.Checksum(rest[8:8+n], castagnoli) != binary.LittleEndian.Uint32(rest[4:]) {
			return entries, valid
		}
		entries = append(entries, rest[frameHeaderBytes:8+n])
		valid += 8 + n
	}
}

func cutFrames(path string) error {
	raw, err := os.ReadFile(path) //nolint:gosec // a file of ours
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading a log: %w", err)
	}
	if _, valid := frames(raw); valid < len(raw) {
		return truncate(path, int64(valid))
	}
	return nil
}

// appendOffsets commits offsets in groups.log once more: the entry that was there before says the same, or less.
func appendOffsets(path string, offsets []offset) error {
	if len(offsets) == 0 {
		return nil
	}
	now := time.Now().UnixMilli()
	var buf []byte
	for _, o := range offsets {
		text, err := json.Marshal(map[string]any{
			"type": "commit", "g": o.Group, "t": o.Topic, "p": o.Partition, "o": o.Offset, "e": o.LeaderEpoch,
			"m": o.Metadata, "lc": now,
		})
		if err != nil {
			return fmt.Errorf("encoding an offset: %w", err)
		}
		frame := binary.LittleEndian.AppendUint16(nil, persistVersion)
		frame = append(frame, text...)
		buf = binary.LittleEndian.AppendUint32(buf, uint32(len(frame)))
		buf = binary.LittleEndian.AppendUint32(buf, crc32.Checksum(frame, castagnoli))
		buf = append(buf, frame...)
	}
	return appendTo(path, buf)
}

// tail is what a partition's last segments hold.
type tail struct {
	dir     string
	base    int64   // of the last segment
	batches []batch // of the last tailSegments segments, in order
}

// tailSegments is how many segments of a partition are searched for a transaction. One is enough unless the transaction
// filled a segment and began the next.
const tailSegments = 2

// producer is who runs a transaction; in each epoch one.
type producer struct {
	id    int64
	epoch int16
}

// batch is a record batch without its records.
type batch struct {
	end           int64 // in the file
	nextOffset    int64
	producer      producer
	leaderEpoch   int32
	transactional bool
	control       bool
	commit        bool // for a control batch
}

// readTail reads the last segments of a partition, after it has cut what a crash left at the end of the very last one.
// It returns nil for a partition without records.
func readTail(dir string) (*tail, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("listing segments: %w", err)
	}
	var bases []int64
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".dat"); ok {
			base, err := strconv.ParseInt(name, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("segment %s: %w", e.Name(), err)
			}
			bases = append(bases, base)
		}
	}
	if len(bases) == 0 {
		return nil, nil //nolint:nilnil // no records, no tail
	}
	slices.Sort(bases)
	t := &tail{dir: dir, base: bases[len(bases)-1]}
	for _, base := range bases[max(0, len(bases)-tailSegments):] {
		batches, err := readSegment(filepath.Join(dir, strconv.FormatInt(base, 10)), base == t.base)
		if err != nil {
			return nil, fmt.Errorf("segment %d: %w", base, err)
		}
		t.batches = append(t.batches, batches...)
	}
	return t, nil
}

// readSegment returns the batches of the segment path.dat; with cut, after truncating it and its index to the batches
// that are whole and have an index entry.
func readSegment(path string, cut bool) ([]batch, error) {
	f, err := os.Open(path + ".dat") //nolint:gosec // a file of ours
	if err != nil {
		return nil, fmt.Errorf("opening: %w", err)
	}
	defer func() { _ = f.Close() }() // only read
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("opening: %w", err)
	}
	var batches []batch
	for at := int64(0); ; {
		b, err := readBatch(f, at, info.Size())
		if err != nil {
			return nil, err
		}
		if b == nil {
			break
		}
		batches = append(batches, *b)
		at = b.end
	}
	if !cut {
		return batches, nil
	}
	index, err := os.Stat(path + ".idx")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("opening the index: %w", err)
	}
	var indexBytes int64
	if err == nil {
		indexBytes = index.Size()
	}
	whole := len(batches)
	if whole > 0 && !checksumHolds(f, batches) {
		whole-- // a power cut left a hole in it
	}
	// One entry may be missing. More are not: each batch is synced with its entry before the next is written.
	if int64(whole) == indexBytes/indexEntryBytes+1 {
		whole--
	}
	batches = batches[:whole]
	var datBytes int64
	if whole > 0 {
		datBytes = batches[whole-1].end
	}
	if datBytes < info.Size() {
		if err := truncate(path+".dat", datBytes); err != nil {
			return nil, err
		}
	}
	if want := int64(whole) * indexEntryBytes; want < indexBytes {
		if err := truncate(path+".idx", want); err != nil {
			return nil, err
		}
	}
	return batches, nil
}

// Positions in a record batch, https://kafka.apache.org/documentation/#recordbatch.
const (
	posLength          = 8
	posLeaderEpoch     = 12
	posCRC             = 17
	posAttributes      = 21
	posLastOffsetDelta = 23
	posProducerID      = 43
	posProducerEpoch   = 51
	batchHeaderBytes   = 61
	maxControlBytes    = 1 << 10

	attrTransactional = 1 << 4
	attrControl       = 1 << 5
)

// readBatch returns the batch at a position, nil where the file ends within it.
func readBatch(f io.ReaderAt, at, size int64) (*batch, error) {
	var h [batchHeaderBytes]byte
	if at+batchHeaderBytes > size {
		return nil, nil //nolint:nilnil // the end
	}
	if _, err := f.ReadAt(h[:], at); err != nil {
		return nil, fmt.Errorf("reading a batch: %w", err)
	}
	be := binary.BigEndian
	b := &batch{
		end:         at + posLeaderEpoch + int64(int32(be.Uint32(h[posLength:]))),
		nextOffset:  int64(be.Uint64(h[:])) + int64(be.Uint32(h[posLastOffsetDelta:])) + 1,
		leaderEpoch: int32(be.Uint32(h[posLeaderEpoch:])),
		producer: producer{
			id:    int64(be.Uint64(h[posProducerID:])),
			epoch: int16(be.Uint16(h[posProducerEpoch:])),
		},
		transactional: be.Uint16(h[posAttributes:])&attrTransactional != 0,
		control:       be.Uint16(h[posAttributes:])&attrControl != 0,
	}
	if b.end < at+batchHeaderBytes || b.end > size {
		return nil, nil //nolint:nilnil // the end
	}
	if !b.control || b.end-at > maxControlBytes {
		return b, nil
	}
	records := make([]byte, b.end-at-batchHeaderBytes)
	if _, err := f.ReadAt(records, at+batchHeaderBytes); err != nil {
		return nil, fmt.Errorf("reading a batch: %w", err)
	}
	var record kmsg.Record
	var key kmsg.ControlRecordKey
	if record.ReadFrom(records) == nil && key.ReadFrom(record.Key) == nil {
		b.commit = key.Type == kmsg.ControlRecordKeyTypeCommit
	}
	return b, nil
}

// checksumHolds says whether the last batch is what was written. Those before it were synced.
func checksumHolds(f io.ReaderAt, batches []batch) bool {
	var at int64
	if n := len(batches); n > 1 {
		at = batches[n-2].end
	}
	raw := make([]byte, batches[len(batches)-1].end-at)
	if _, err := f.ReadAt(raw, at); err != nil {
		return false
	}
	return crc32.Checksum(raw[posAttributes:], castagnoli) == binary.BigEndian.Uint32(raw[posCRC:])
}

type txnState int

const (
	txnAbsent txnState = iota
	txnOpen
	txnCommitted
	txnAborted
)

// stateOf says what has become of a transaction in this partition.
func (t *tail) stateOf(d *decision) txnState {
	state := txnAbsent
	for _, b := range t.batches {
		if b.producer.id != d.ProducerID {
			continue
		}
		switch {
		case b.control && state == txnOpen && b.commit:
			state = txnCommitted
		case b.control && state == txnOpen:
			state = txnAborted
		case !b.control && b.transactional && b.producer.epoch == d.ProducerEpoch:
			state = txnOpen
		}
	}
	return state
}

// open returns the producers whose transactions have records but no marker here.
func (t *tail) open() []producer {
	var open []producer
	for _, b := range t.batches {
		switch {
		case b.control: // a marker may carry a later epoch than the records
			open = slices.DeleteFunc(open, func(p producer) bool { return p.id == b.producer.id })
		case b.transactional && !slices.Contains(open, b.producer):
			open = append(open, b.producer)
		}
	}
	return open
}

// end writes the marker that ends a transaction, as kfake would have.
func (t *tail) end(producer producer, commit bool) error {
	final := t.batches[len(t.batches)-1]
	key := kmsg.ControlRecordKey{Type: kmsg.ControlRecordKeyTypeAbort}
	if commit {
		key.Type = kmsg.ControlRecordKeyTypeCommit
	}
	marker := kmsg.EndTxnMarker{}
	record := kmsg.Record{Key: key.AppendTo(nil), Value: marker.AppendTo(nil)}
	record.Length = int32(len(record.AppendTo(nil)) - 1) // whose varint is one byte
	now := time.Now().UnixMilli()
	b := kmsg.RecordBatch{
		FirstOffset: final.nextOffset, PartitionLeaderEpoch: final.leaderEpoch, Magic: 2,
		Attributes: attrTransactional | attrControl, FirstTimestamp: now, MaxTimestamp: now,
		ProducerID: producer.id, ProducerEpoch: producer.epoch, FirstSequence: -1, NumRecords: 1,
		Records: record.AppendTo(nil),
	}
	raw := b.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[posLength:], uint32(len(raw)-posLeaderEpoch))
	binary.BigEndian.PutUint32(raw[posCRC:], crc32.Checksum(raw[posAttributes:], castagnoli))

	// Version, low byte of the CRC of what follows it, leader epoch, time stamp (kfake derives it anew), flags.
	index := make([]byte, indexEntryBytes)
	index[0] = persistVersion
	binary.LittleEndian.PutUint32(index[2:], uint32(final.leaderEpoch))
	binary.LittleEndian.PutUint64(index[6:], uint64(now))
	index[1] = byte(crc32.Checksum(index[2:], castagnoli))

	path := filepath.Join(t.dir, strconv.FormatInt(t.base, 10))
	if err := appendTo(path+".dat", raw); err != nil {
		return err
	}
	t.batches = append(t.batches, batch{
		nextOffset: final.nextOffset + 1, producer: producer, leaderEpoch: final.leaderEpoch, transactional: true,
		control: true, commit: commit,
	})
	return appendTo(path+".idx", index)
}

// appendTo returns when b is at the end of the file, on disk.
func appendTo(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600) //nolint:gosec // a file of ours
	if err != nil {
		return fmt.Errorf("opening a log: %w", err)
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("appending to %s: %w", path, err)
	}
	return nil
}

func truncate(path string, size int64) error {
	if err := os.Truncate(path, size); err != nil {
		return fmt.Errorf("cutting off a torn tail: %w", err)
	}
	return nil
}
