package ledger

// RecomputeRoot returns the body root of what a leaf shows of its content, body and seed or a disclosure, and the number of fields
// under it. Its errors wrap ErrNotCanonical where the content is not canonical.
func (l *BundleLeaf) RecomputeRoot() (Hash, int, error) { return l.bodyRoot() }
