package witness

import "testing"

// What one checkpoint costs a witness, the write to the disk included.
func BenchmarkCosign(b *testing.B) {
	key, vkey := logKey(b, testOrigin, 1)
	const size = 100_000
	l := newTestLog(key, size, size, "")
	w := start(b, Config{Dir: b.TempDir()}, mustTrust(b, vkey))
	b.Cleanup(w.stop)
	from := uint64(0)
	for b.Loop() {
		b.StopTimer()
		if from == size {
			b.Fatalf("it takes a log of more than %d entries, or less -benchtime", size)
		}
		body := l.request(b, from, from+1)
		b.StartTimer()
		if a := w.post(body); a.code != 200 {
			b.Fatalf("%+v", a)
		}
		from++
	}
}
