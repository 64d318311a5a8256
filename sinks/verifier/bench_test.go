package verifier

import (
	"testing"
	"time"
)

// BenchmarkRun verifies 50,000 leaves of one chain, and then a run that has nothing new but the epoch.
func BenchmarkRun(b *testing.B) {
	const leaves = 50_000
	r := newRig(b, Config{HistoryLeaves: 1, NewestLeaves: leaves, SliceLeaves: 2048}).opened()
	c := r.chain(1, 0, 1)
	r.ledger.Events(c, leaves-1)
	r.epoch()
	r.write()
	b.Run("newest", func(b *testing.B) {
		for b.Loop() {
			r.seen[c.ID] = sound{size: 1}
			r.once()
		}
		b.ReportMetric(float64(leaves)*float64(b.N)/b.Elapsed().Seconds(), "leaves/s")
	})
	b.Run("anchor", func(b *testing.B) {
		for b.Loop() {
			if _, err := r.anchors.read(b.Context(), r.admin); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("log", func(b *testing.B) {
		a, err := r.anchors.read(b.Context(), r.admin)
		if err != nil {
			b.Fatal(err)
		}
		one := newRun(r.Verifier, a)
		defer one.close()
		for b.Loop() {
			if _, _, err := one.parts.RootLog(b.Context(), a.log.Size, a.log.Root(), time.Now()); err != nil {
				b.Fatal(err)
			}
		}
	})
}
