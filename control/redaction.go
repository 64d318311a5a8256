package control

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/schemas/recordpb"
)

const (
	// maxRedactedPaths bounds one redaction; an event has no more fields.
	maxRedactedPaths = 100
	// maxReasonLen bounds the reason of a redaction, in characters.
	maxReasonLen = 1000
)

// EventID names an event of the installation.
type EventID struct{ Workspace, Event [16]byte }

// Redaction is what was redacted of an event. It is shared and never changed.
type Redaction struct {
	EventID
	// Paths are RFC 6901 pointers of all fields that were ever redacted, sorted.
	Paths []string
	// KeyDigest is that of the event's idempotency key (event.Workspace.KeyDigest), zero where it has none.
	KeyDigest [16]byte
	// ID is that of the redaction event which reports the last of them; zero in a record of before it was kept.
	ID [16]byte
	// ChangedAt is when that was.
	ChangedAt time.Time
	// Version is 1 for the first redaction of the event and rises by one with each that adds to it.
	Version uint64

	broken error
}

// Redactions says what must not be shown any more, and is live: a View owns it. The value of a redacted field stays in
// Kafka until its retention has passed, and in ClickHouse until the writer has rewritten the row; so whatever shows or
// sends the content of an event, today's readers and those to come (pages, single events, proofs, a live tail, streams
// and their replay, dead letters, exports, alerts), must pass it through Mask first, wherever it has it from.
//
// An event with an idempotency key and one path of 20 bytes takes about 300 bytes of memory. It may be used by several
// goroutines.
type Redactions struct {
	mu     sync.RWMutex
	of     map[EventID]*Redaction
	broken int
	// burned has the digests of the idempotency keys of redacted events, by workspace. Nothing is ever taken out.
	burned map[[16]byte]map[[16]byte]struct{}
	// came has the events in the order in which their redactions came, once for each version.
	came []EventID
}

func newRedactions() *Redactions {
	return &Redactions{of: map[EventID]*Redaction{}, burned: map[[16]byte]map[[16]byte]struct{}{}}
}

// Lookup returns what was redacted of an event, nil for nothing. The error says that something was, and that the record
// of it cannot be read.
func (r *Redactions) Lookup(id EventID) (*Redaction, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	switch found := r.of[id]; {
	case found == nil:
		return nil, nil //nolint:nilnil // documented
	case found.broken != nil:
		return nil, fmt.Errorf("redaction of event %s: %w", uuid.UUID(id.Event), found.broken)
	default:
		return found, nil
	}
}

// Burned reports whether an event of the workspace that was redacted had this idempotency key: whoever could use it again
// would learn from the id, or from the answer, whether a guess is what was erased. It costs next to nothing where the
// workspace has no such event.
func (r *Redactions) Burned(ws *Workspace, key string) bool {
	r.mu.RLock()
	none := len(r.burned[ws.ID]) == 0
	r.mu.RUnlock()
	if none {
		return false
	}
	digest := ws.ForEvents().KeyDigest(key)
	r.mu.RLock()
	defer r.mu.RUnlock()
	_, burned := r.burned[ws.ID][digest]
	return burned
}

// errUnmasked says nothing of what is wrong with the body: that might quote what is to be masked.
var errUnmasked = errors.New("the body of a redacted event cannot be read")

// Mask returns the body of an event without what was redacted of it, and the paths of that: the body itself where nothing
// was. Where something was and the record of it cannot be read, nothing is left but what cannot be redacted. The error
// says that the body cannot be read: it must not be shown at all.
func (r *Redactions) Mask(id EventID, body []byte) (masked []byte, redacted []string, err error) {
	redaction, err := r.Lookup(id)
	switch {
	case err != nil:
		all, _, err := (&event.Content{Body: body}).Fields()
		if err != nil {
			return nil, nil, fmt.Errorf("%w: event %s", errUnmasked, uuid.UUID(id.Event))
		}
		redacted = slices.DeleteFunc(all, event.Protected)
	case redaction == nil:
		return body, nil, nil
	default:
		redacted = redaction.Paths
	}
	if masked, err = event.Mask(body, redacted); err != nil {
		return nil, nil, fmt.Errorf("%w: event %s", errUnmasked, uuid.UUID(id.Event))
	}
	return masked, redacted, nil
}

// Since returns the events that have been redacted, or redacted further, since the view had seen n redactions, and how
// many it has seen now. An event may be among them more than once.
func (r *Redactions) Since(n int) (events []EventID, seen int) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return slices.Clone(r.came[n:]), len(r.came)
}

// count returns the number of redacted events, and of those whose redaction cannot be read.
func (r *Redactions) count() (redacted, broken int) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.of), r.broken
}

// redactedEvent returns the event that a record of the config topic with this key is about; false for a record of
// another kind.
func redactedEvent(key []byte) (id EventID, ok bool) {
	rest, ok := bytes.CutPrefix(key, []byte(kindRedaction+"/"))
	if !ok || len(rest) != 32+1+32 || rest[32] != '/' {
		return id, false
	}
	_, err := hex.Decode(id.Workspace[:], rest[:32])
	_, err2 := hex.Decode(id.Event[:], rest[33:])
	return id, err == nil && err2 == nil
}

// apply takes the next record about an event. No version of it takes anything back; a tombstone, which an operator may
// write over a record that cannot be read, removes it, but for the idempotency key that was burned.
func (r *Redactions) apply(id EventID, record *kgo.Record) (outcome, error) {
	if record.Value == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		if held := r.of[id]; held != nil && held.broken != nil {
			r.broken--
		}
		delete(r.of, id)
		return outcomeApplied, nil
	}
	next, err := decodeRedaction(id, record.Value)
	if err != nil {
		next = &Redaction{EventID: id, broken: err}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	held := r.of[id]
	if err == nil && held != nil && held.Version >= next.Version {
		return outcomeIgnored, nil
	}
	if held != nil && held.broken != nil {
		r.broken--
	}
	r.of[id] = next
	r.came = append(r.came, id)
	if next.KeyDigest != ([16]byte{}) {
		if r.burned[id.Workspace] == nil {
			r.burned[id.Workspace] = map[[16]byte]struct{}{}
		}
		r.burned[id.Workspace][next.KeyDigest] = struct{}{}
	}
	if err != nil {
		r.broken++
		return outcomeUndecodable, fmt.Errorf("config record at offset %d: %w", record.Offset, err)
	}
	return outcomeApplied, nil
}

func decodeRedaction(id EventID, value []byte) (*Redaction, error) {
	var c recordpb.Config
	if err := proto.Unmarshal(value, &c); err != nil {
		return nil, fmt.Errorf("decode config record: %w", err)
	}
	pb := c.GetRedaction()
	switch {
	case c.GetVersion() == 0 || len(pb.GetPaths()) == 0:
		return nil, errors.New("redaction record has no version or no paths")
	case !bytes.Equal(pb.GetWorkspace(), id.Workspace[:]) || !bytes.Equal(pb.GetEvent(), id.Event[:]):
		return nil, errors.New("redaction record is under the key of another event")
	case len(pb.GetRedaction()) != 0 && len(pb.GetRedaction()) != 16:
		return nil, errors.New("redaction record has no valid id of its event")
	case len(pb.GetIdempotencyKeyDigest()) != 0 && len(pb.GetIdempotencyKeyDigest()) != 16:
		return nil, errors.New("redaction record has no valid digest of an idempotency key")
	}
	r := &Redaction{EventID: id, Paths: pb.GetPaths(), Version: c.GetVersion(), ChangedAt: timeOf(c.GetChangedAt())}
	copy(r.ID[:], pb.GetRedaction())
	copy(r.KeyDigest[:], pb.GetIdempotencyKeyDigest())
	return r, nil
}

// Redactable is what a redaction has to know of the event that it is about.
type Redactable struct {
	EventID
	Lane uint32
	// IdempotencyKey is empty where the event has none, or where it can no longer be read because it was redacted itself.
	IdempotencyKey string
}

// RedactEvent says that the fields at paths (RFC 6901 pointers: /actor_id, /metadata/old_value) of an event must not be
// shown any more, and reports it as event.redacted, of kind redaction, in the lane of the event. When it returns nil both
// are durable; the ClickHouse writer erases the values when it comes to the redaction event. Fields that were redacted
// before are passed over, and where none is left nothing is written. The first redaction of an event burns its idempotency
// key (Redactions.Burned), and those after it keep it so.
//
// The caller makes sure that there is such an event with such fields. reason, 1 to 1,000 characters, stays
// readable for ever.
func (w *Writer) RedactEvent(
	ctx context.Context, by string, of Redactable, paths []string, reason string,
) (*Redaction, error) {
	if err := checkRedaction(paths, reason); err != nil {
		return nil, err
	}
	id := of.EventID
	var redaction *Redaction
	err := w.write(ctx, by, func(s *state) (*change, error) {
		ws := s.workspace(id.Workspace)
		if ws == nil {
			return nil, noWorkspace(id.Workspace)
		}
		if of.Lane >= ws.Lanes {
			return nil, fmt.Errorf("%w: lane %d of a workspace with %d", ErrInvalid, of.Lane, ws.Lanes)
		}
		old, err := s.redactions.Lookup(id)
		if err != nil {
			return nil, err
		}
		if old == nil {
			old = &Redaction{EventID: id}
		}
		added := slices.DeleteFunc(slices.Compact(slices.Sorted(slices.Values(paths))), func(path string) bool {
			return slices.Contains(old.Paths, path)
		})
		if redaction = old; len(added) == 0 {
			return nil, nil //nolint:nilnil // nothing to write
		}
		redaction = &Redaction{
			EventID: id, Version: old.Version + 1, Paths: slices.Sorted(slices.Values(slices.Concat(old.Paths, added))),
			KeyDigest: old.KeyDigest,
		}
		if redaction.KeyDigest == ([16]byte{}) && of.IdempotencyKey != "" {
			redaction.KeyDigest = ws.ForEvents().KeyDigest(of.IdempotencyKey)
		}
		return &change{
			object:    &object{version: redaction.Version, redaction: redaction},
			workspace: ws,
			event: report{
				Action: "event.redacted", Resource: "event", ResourceID: uuid.UUID(id.Event).String(),
				Metadata: map[string]any{"event_id": uuid.UUID(id.Event).String(), "paths": added, "reason": reason},
			},
			kind: recordpb.Kind_KIND_REDACTION,
			lane: &of.Lane,
		}, nil
	})
	if err != nil {
		return nil, err
	}
	return redaction, nil
}

func checkRedaction(paths []string, reason string) error {
	switch {
	case len(paths) == 0 || len(paths) > maxRedactedPaths:
		return invalid("paths", "1 to %d paths are redacted at a time, like /actor_id or /metadata/old_value", maxRedactedPaths)
	case !utf8.ValidString(reason) || strings.TrimSpace(reason) == "" || utf8.RuneCountInString(reason) > maxReasonLen:
		return invalid("reason", "a reason of 1 to %d characters is needed: it stays in the ledger", maxReasonLen)
	case event.HoldsSecret(reason):
		return invalid("reason", "it holds what looks like a secret, and would stay in the ledger: describe it instead")
	}
	for i, path := range paths {
		field := fmt.Sprintf("paths[%d]", i)
		switch {
		case event.Protected(path):
			return invalid(field, "%s cannot be redacted: without it the event means nothing", path)
		case !strings.HasPrefix(path, "/") || !utf8.ValidString(path):
			return invalid(field, "it is not a pointer to a field, like /actor_id or /metadata/old_value")
		}
	}
	return nil
}
