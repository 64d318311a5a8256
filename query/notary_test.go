package query

import (
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/internal/notarytest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// notary is a test's notary, and the writer of what it publishes into ClickHouse.
type notary struct {
	*notarytest.Notary
	rig *rig
}

func (r *rig) newNotary() *notary {
	r.tb.Helper()
	n := &notary{notarytest.New("example.com/ledger"), r}
	n.Start = epoch
	n.commit(n.Rotate(r.tb)...)
	return n
}

// commit publishes records of one transaction, and writes those of the topic checkpoints into ClickHouse.
func (n *notary) commit(records ...*kgo.Record) {
	n.rig.tb.Helper()
	for _, rec := range records {
		if rec.Topic == schemas.TopicCheckpoints {
			n.rig.writeLog(rec)
		}
	}
	notarytest.Commit(n.rig.tb, n.rig.kafka, records...)
}

// writeLog writes a record of the topic checkpoints into ClickHouse.
func (r *rig) writeLog(rec *kgo.Record) {
	r.tb.Helper()
	ctx := r.tb.Context()
	if rec.Key[0] == 'e' {
		var e recordpb.LogEntry
		if err := proto.Unmarshal(rec.Value, &e); err != nil {
			r.tb.Fatal(err)
		}
		parsed, err := ledger.ParseEntry(e.GetEntry())
		if err != nil {
			r.tb.Fatal(err)
		}
		kind := "epoch"
		if parsed.Key != nil {
			kind = "key"
		}
		r.exec(ctx, "INSERT INTO root_log VALUES (?, ?, ?, ?, ?, ?)", parsed.Index, string(e.GetHash()), string(e.GetNode()), kind,
			parsed.Time, string(e.GetEntry()))
		return
	}
	var c recordpb.SignedCheckpoint
	if err := proto.Unmarshal(rec.Value, &c); err != nil {
		r.tb.Fatal(err)
	}
	r.exec(ctx, "INSERT INTO checkpoints VALUES (?, ?, ?, ?, ?, ?)", c.GetSize(), string(c.GetRoot()), string(c.GetNote()),
		uint16(c.GetWitnesses()), c.GetQuorum(), time.UnixMicro(c.GetPublishedAt()))
}

// sign enters an epoch of these chains and signs it, and waits until proofs are made of it.
func (n *notary) sign(changed []notarytest.Chain, witnesses ...note.Signer) {
	n.rig.tb.Helper()
	n.commit(n.Epoch(n.rig.tb, changed...)...)
	n.commit(n.Checkpoint(n.rig.tb, witnesses...))
	n.await()
}

// await waits until proofs are made of the newest epoch.
func (n *notary) await() {
	n.rig.tb.Helper()
	n.rig.eventually(fmt.Sprintf("proofs are made at size %d", n.Log.Size), func() bool {
		at, _, err := n.rig.service.roots.chainsOf([16]byte{})
		return err == nil && at.checkpoint.size == n.Log.Size
	})
}

func (n *notary) trust(tb testing.TB) *ledger.Trust {
	tb.Helper()
	trust, err := ledger.ParseTrust([]byte(n.VerifierKey()))
	if err != nil {
		tb.Fatal(err)
	}
	return trust
}
