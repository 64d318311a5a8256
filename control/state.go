package control

import (
	"bytes"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"
)

// state is what the records of the config topic say, from its beginning up to next. One goroutine owns it.
type state struct {
	// sealer is nil where nothing but redactions is read.
	sealer  *sealer
	objects map[string]*object
	// redactions may be many, and are shared with those who look them up: they are no objects.
	redactions *Redactions
	// stale says that objects has changed since it was last reset.
	stale bool
	// next is the offset behind the last record or transaction marker seen.
	next int64
}

func newState(s *sealer) *state {
	return &state{sealer: s, objects: map[string]*object{}, redactions: newRedactions()}
}

// outcome of one record, for the metric.
type outcome string

const (
	outcomeApplied     outcome = "applied"
	outcomeIgnored     outcome = "ignored"
	outcomeUndecodable outcome = "undecodable"
)

// apply takes the next record. An error is about this record only: the state has moved past it.
func (s *state) apply(r *kgo.Record) (outcome, error) {
	s.next = r.Offset + 1
	if r.Attrs.IsControl() {
		return outcomeIgnored, nil
	}
	if id, ok := redactedEvent(r.Key); ok {
		return s.redactions.apply(id, r)
	}
	if s.sealer == nil {
		return outcomeIgnored, nil
	}
	if r.Value == nil {
		delete(s.objects, string(r.Key))
		s.stale = true
		return outcomeApplied, nil
	}
	o, err := decode(r.Key, r.Value, s.sealer)
	if err != nil {
		return outcomeUndecodable, fmt.Errorf("config record at offset %d: %w", r.Offset, err)
	}
	if o == nil {
		return outcomeIgnored, nil
	}
	if held := s.objects[string(r.Key)]; held != nil && held.version >= o.version {
		return outcomeIgnored, nil
	}
	s.objects[string(r.Key)] = o
	s.stale = true
	if o.broken != nil {
		return outcomeUndecodable, fmt.Errorf("config record at offset %d: %w", r.Offset, o.broken)
	}
	return outcomeApplied, nil
}

// workspace returns a workspace that is there and can be read, or nil.
func (s *state) workspace(id [16]byte) *Workspace {
	if o := s.objects[recordKey(kindWorkspace, id, id)]; o.usable() {
		return o.workspace
	}
	return nil
}

// key returns a key that is there and can be read, or nil.
func (s *state) key(workspace, id [16]byte) *Key {
	if o := s.objects[recordKey(kindKey, workspace, id)]; o.usable() {
		return o.key
	}
	return nil
}

// usable is false for nil.
func (o *object) usable() bool { return o != nil && !o.deleted && o.broken == nil }

// broken returns the error of one object that cannot be read.
func (s *state) broken() error {
	for _, o := range s.objects {
		if o.broken != nil && !o.deleted {
			return o.broken
		}
	}
	return nil
}

// snapshot lists what is there.
func (s *state) snapshot() *Snapshot {
	var snap Snapshot
	there := map[[16]byte]bool{}
	for _, o := range s.objects {
		if o.usable() && o.workspace != nil {
			snap.Workspaces = append(snap.Workspaces, o.workspace)
			there[o.workspace.ID] = true
		}
	}
	for _, o := range s.objects {
		if o.usable() && o.key != nil && there[o.key.Workspace] {
			snap.Keys = append(snap.Keys, o.key)
		}
	}
	sortWorkspaces(snap.Workspaces)
	sortKeys(snap.Keys)
	return &snap
}

// isRecord reports whether r is the record w, as far as Kafka does not add to it.
func isRecord(r, w *kgo.Record) bool {
	return w != nil && bytes.Equal(r.Key, w.Key) && bytes.Equal(r.Value, w.Value)
}
