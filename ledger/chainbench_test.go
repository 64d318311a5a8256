package ledger

import (
	"crypto/sha256"
	"fmt"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
)

// benchBody has 16 fields in some 450 bytes.
func benchBody(n int) []byte {
	return fmt.Appendf(nil, `{"action":"config.updated","action_category":"config","actor_id":"usr_%06d","actor_name":"Ada Lovelace","actor_type":"user",`+
		`"ip_address":"10.0.0.17","metadata":{"environment":"production","new_value":"%d","old_value":"%04d","reason":"scheduled maintenance"},`+
		`"occurred_at":"2026-11-24T09:59:00.000000Z","resource":"service","resource_id":"svc_%04d","session_id":"ses_%08d","tenant_id":"tnt_1",`+
		`"user_agent":"Mozilla/5.0 (X11; Linux x86_64)"}`, n%97, n+1, n%10000, n%13, n%7)
}

// benchLeaves is a chain of n events with different bodies, as a store gives it.
func benchLeaves(tb testing.TB, n int) (ChainIdentity, []StoredLeaf) {
	tb.Helper()
	id := ChainIdentity{testWorkspace, testIncarnation, 0, 1}
	head := Head{Chain: id.Chain()}
	genesis := Genesis(id.Workspace, id.Incarnation, 0, 1, testStart.UnixMicro(), 0)
	hash, node := head.Append(&genesis)
	all := []StoredLeaf{{Leaf: genesis, Hash: hash, Node: node}}
	var hasher ContentHasher
	for i := range n {
		s := StoredLeaf{Body: benchBody(i), Leaf: Leaf{Kind: KindEvent, ID: [16]byte{byte(i), byte(i >> 8), byte(i >> 16)}, RecordedAt: testStart.UnixMicro() + int64(i), Offset: uint64(i)}}
		s.Seed = s.ID
		hasher.Digest(&s)
		s.BodyRoot, s.FieldCount, _ = s.ContentRoot()
		s.Hash, s.Node = head.Append(&s.Leaf)
		s.Previous = Hash{}
		all = append(all, s)
	}
	return id, all
}

// verifyBench is what one verification of a chain does, with its contents recomputed by this many goroutines.
func verifyBench(tb testing.TB, id ChainIdentity, leaves []StoredLeaf, workers int) {
	tb.Helper()
	v := NewChainVerifier(id, nil, func(f *Fault) { tb.Fatal(f) })
	for len(leaves) > 0 {
		part := leaves[:min(4096, len(leaves))]
		leaves = leaves[len(part):]
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				var hasher ContentHasher
				for i := w * len(part) / workers; i < (w+1)*len(part)/workers; i++ {
					hasher.Digest(&part[i])
				}
			})
		}
		wg.Wait()
		for i := range part {
			v.Add(&part[i])
		}
	}
	v.Close()
}

// processorTime is what this process has used of all cores: it counts where others are busy too.
func processorTime(tb testing.TB) time.Duration {
	tb.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// BenchmarkVerifyChain: bytes are those of bodies, seeds and leaf hashes, what a verifier reads.
func BenchmarkVerifyChain(b *testing.B) {
	id, leaves := benchLeaves(b, 20_000)
	bytes := 0
	for i := range leaves {
		bytes += len(leaves[i].Body) + 16 + 32 + LeafSize
	}
	for _, workers := range []int{1, 2} {
		b.Run(fmt.Sprintf("workers=%d", workers), func(b *testing.B) {
			b.SetBytes(int64(bytes))
			began := processorTime(b)
			for b.Loop() {
				verifyBench(b, id, leaves, workers)
			}
			b.ReportMetric(float64(b.N)*float64(len(leaves))/b.Elapsed().Seconds(), "leaves/s")
			b.ReportMetric(float64(processorTime(b)-began)/float64(b.N)/float64(len(leaves)), "cpu-ns/leaf")
		})
	}
	b.Run("sha256", func(b *testing.B) {
		text := make([]byte, bytes)
		b.SetBytes(int64(bytes))
		began := processorTime(b)
		for b.Loop() {
			sha256.Sum256(text)
		}
		b.ReportMetric(float64(processorTime(b)-began)/float64(b.N)/float64(len(leaves)), "cpu-ns/leaf")
	})
}

// TestChainMemory: what a verifier keeps does not grow with the chain.
func TestChainMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("takes more than a few seconds")
	}
	id, leaves := benchLeaves(t, 2000)
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	v := NewChainVerifier(id, nil, func(f *Fault) { t.Fatal(f) })
	head := Head{Chain: id.Chain()}
	var hasher ContentHasher
	before := uint64(0)
	for i := range 1_000_000 {
		s := leaves[min(i, 1)+i%1000]
		s.Offset = uint64(i)
		hasher.Digest(&s)
		if s.Kind != KindGenesis {
			s.BodyRoot, s.FieldCount, _ = s.ContentRoot()
		}
		s.Hash, s.Node = head.Append(&s.Leaf)
		v.Add(&s)
		if i == 10_000 {
			before = heap()
		}
	}
	v.Close()
	if after := heap(); after > before+1<<20 {
		t.Errorf("heap in use: %d bytes after 10,000 leaves, %d after 1,000,000", before, after)
	} else {
		t.Logf("heap in use: %d KiB after 10,000 leaves, %d KiB after 1,000,000", before>>10, after>>10)
	}
	if got := v.Counts().Size; got != 1_000_000 {
		t.Error(got)
	}
	runtime.KeepAlive(leaves)
}
