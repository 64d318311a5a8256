package ingest

// recent is a map of bounded size that forgets what was not used lately: two generations, the older of which is dropped
// whole when the younger is full. It holds between half of and all the last size entries used. The caller locks.
type recent[K comparable, V any] struct {
	half       int // entries in a full generation
	young, old map[K]V
}

func newRecent[K comparable, V any](size int) *recent[K, V] {
	return &recent[K, V]{half: max(1, size/2), young: make(map[K]V)}
}

func (r *recent[K, V]) get(k K) (V, bool) {
	if v, ok := r.young[k]; ok {
		return v, true
	}
	v, ok := r.old[k]
	if ok {
		r.put(k, v)
	}
	return v, ok
}

func (r *recent[K, V]) put(k K, v V) {
	if _, ok := r.young[k]; !ok && len(r.young) >= r.half {
		r.old, r.young = r.young, make(map[K]V, r.half)
	}
	r.young[k] = v
}
