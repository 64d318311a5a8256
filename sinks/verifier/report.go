package verifier

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
)

// faultKey tells one fault from another.
type faultKey struct {
	verdict     ledger.Verdict
	chain       ledger.ChainID
	placed      bool
	first, last uint64
	event       string
}

func keyOf(f *ledger.Fault) faultKey {
	k := faultKey{verdict: f.Verdict, event: f.EventID}
	if f.Chain != nil {
		k.chain = *f.Chain
	}
	if f.Sequence != nil {
		k.placed, k.first, k.last = true, *f.Sequence, *f.Sequence
	}
	if f.Last != nil {
		k.last = *f.Last
	}
	return k
}

// told are the faults that have been reported.
type told struct {
	most int
	keys map[faultKey]bool
	// runs are those of more than one leaf, by verdict and chain: a part of a chain may show the part of one only.
	runs map[faultKey][][2]uint64
	// placed are the chains with a fault whose place is known: that the root of all differs too is no news then.
	placed map[ledger.ChainID]bool
}

func newTold(most int) told {
	return told{most: most, keys: map[faultKey]bool{}, runs: map[faultKey][][2]uint64{}, placed: map[ledger.ChainID]bool{}}
}

// add returns false where the fault has been told, or where there is no room to keep that it is.
func (t *told) add(f *ledger.Fault) bool {
	k := keyOf(f)
	if t.keys[k] || len(t.keys) >= t.most || f.Chain != nil && !k.placed && t.placed[k.chain] {
		return false
	}
	if k.event == "" && k.placed {
		if t.covered(k) {
			return false
		}
		of := faultKey{verdict: k.verdict, chain: k.chain}
		t.runs[of] = append(t.runs[of], [2]uint64{k.first, k.last})
	}
	t.keys[k] = true
	if f.Chain != nil && k.placed {
		t.placed[k.chain] = true
	}
	return true
}

// covered says whether runs that were told have all leaves of a fault.
func (t *told) covered(k faultKey) bool {
	runs := t.runs[faultKey{verdict: k.verdict, chain: k.chain}]
	for first := k.first; ; {
		i := slices.IndexFunc(runs, func(r [2]uint64) bool { return r[0] <= first && first <= r[1] })
		if i < 0 {
			return false
		}
		if runs[i][1] >= k.last {
			return true
		}
		first = runs[i][1] + 1
	}
}

// report tells what has not been told: a metric, a line of the log and an event of the workspace for each, up to MaxEvents.
func (v *Verifier) report(ctx context.Context, a *anchor, findings []*finding) {
	slices.SortStableFunc(findings, func(a, b *finding) int { return compareFaults(keyOf(a.Fault), keyOf(b.Fault)) })
	n := 0
	more := map[ledger.ChainIdentity]int{} // by workspace
	left := 0
	for _, f := range findings {
		if !v.told.add(f.Fault) {
			continue
		}
		v.metrics.faults.WithLabelValues(string(f.Verdict)).Inc()
		if n++; n > v.cfg.MaxEvents {
			v.metrics.eventsLeftOut.Inc()
			left++
			if f.workspace != nil {
				w := *f.workspace
				w.Lane = 0
				more[w]++
			}
			continue
		}
		v.logger.LogAttrs(ctx, slog.LevelError, "verification failed: clickhouse does not hold what the ledger states", attrs(f.Fault)...)
		if f.workspace == nil || a == nil {
			v.metrics.eventsLeftOut.Inc()
			continue
		}
		v.produce(ctx, a, f.workspace, describe(f.Fault))
	}
	if left > 0 {
		v.logger.ErrorContext(ctx, "verification failed in more places", "faults", left)
	}
	if a == nil {
		return
	}
	for w, n := range more {
		v.produce(ctx, a, &w, &description{Resource: "workspace", ResourceID: fmt.Sprintf("%x", w.Workspace), Metadata: metadata{MoreFaults: n}})
	}
}

// compareFaults puts those of known place first, in the order of their sequences, and a run before its parts.
func compareFaults(a, b faultKey) int {
	if a.placed != b.placed && a.chain == b.chain {
		if a.placed {
			return -1
		}
		return 1
	}
	return cmp.Or(slices.Compare(a.chain[:], b.chain[:]), cmp.Compare(a.first, b.first), cmp.Compare(b.last, a.last))
}

func attrs(f *ledger.Fault) []slog.Attr {
	all := []slog.Attr{slog.String("verdict", string(f.Verdict))}
	if f.Chain != nil {
		all = append(all, slog.String("chain", fmt.Sprintf("%x", *f.Chain)))
	}
	if f.Sequence != nil {
		all = append(all, slog.Uint64("sequence", *f.Sequence))
	}
	if f.Last != nil {
		all = append(all, slog.Uint64("last", *f.Last))
	}
	if f.EventID != "" {
		all = append(all, slog.String("event_id", f.EventID))
	}
	return all
}

// description is the event that reports faults.
type description struct {
	Action     string   `json:"action"`
	Category   string   `json:"action_category"`
	ActorID    string   `json:"actor_id"`
	ActorType  string   `json:"actor_type"`
	Resource   string   `json:"resource"`
	ResourceID string   `json:"resource_id"`
	Metadata   metadata `json:"metadata"`
}

type metadata struct {
	Verdict    ledger.Verdict `json:"verdict,omitzero"`
	Sequence   *uint64        `json:"sequence,omitzero"`
	Last       *uint64        `json:"last,omitzero"`
	EventID    string         `json:"event_id,omitzero"`
	Detail     string         `json:"detail,omitzero"`
	MoreFaults int            `json:"more_faults,omitzero"`
}

// maxDetail is the most of a fault's detail in an event, in bytes.
const maxDetail = 250

func describe(f *ledger.Fault) *description {
	detail := f.Detail
	if len(detail) > maxDetail {
		detail = detail[:maxDetail]
	}
	return &description{
		Resource: "chain", ResourceID: fmt.Sprintf("%x", *f.Chain),
		Metadata: metadata{Verdict: f.Verdict, Sequence: f.Sequence, Last: f.Last, EventID: f.EventID, Detail: detail},
	}
}

// produce hands an event to the client, which tries until all in-sync replicas have it. Where that is out of the question the event is produced again at the
// next run.
func (v *Verifier) produce(ctx context.Context, a *anchor, of *ledger.ChainIdentity, d *description) {
	d.Action, d.Category, d.ActorID, d.ActorType = "ledger.verification_failed", "ledger", "immutable", "system"
	record, err := v.record(a, of, d)
	if err != nil {
		v.metrics.eventErrors.Inc()
		v.logger.ErrorContext(ctx, "event about a fault cannot be built", "error", err)
		return
	}
	v.send(ctx, record)
}

func (v *Verifier) record(a *anchor, of *ledger.ChainIdentity, d *description) (*kgo.Record, error) {
	body, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("encoding: %w", err)
	}
	ws := &event.Workspace{ID: of.Workspace, Incarnation: of.Incarnation, Lanes: of.Lanes}
	r, err := v.builder.Build(ws, event.Input{JSON: body, RecordedAt: time.Now()})
	if err != nil {
		return nil, err
	}
	return &kgo.Record{
		Topic: v.cfg.Kafka.Topic(schemas.TopicEvents), Partition: event.Partition(of.Workspace, r.Lane, int32(len(a.epoch.Epoch.Positions))),
		Key: r.Key, Value: r.Value, Timestamp: r.RecordedAt,
	}, nil
}

// send produces a record. It outlives the run, and no time-out of a run gives it up: what may have been written would be written twice then.
func (v *Verifier) send(ctx context.Context, record *kgo.Record) {
	ctx = context.WithoutCancel(ctx)
	v.client.TryProduce(ctx, record, func(record *kgo.Record, err error) {
		if err == nil {
			v.metrics.events.Inc()
			return
		}
		v.metrics.eventErrors.Inc()
		v.logger.ErrorContext(ctx, "event about a fault was not written", "error", err)
		v.unsent.put(record)
	})
}

// producerOptions: a record is acknowledged by all in-sync replicas, and retried for as long as it takes.
func producerOptions(cfg *Config) []kgo.Opt {
	return []kgo.Opt{
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerLinger(0),
		kgo.MaxBufferedRecords(10 * cfg.MaxEvents),
	}
}
