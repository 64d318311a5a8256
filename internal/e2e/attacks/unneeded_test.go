package attacks

// Reasons why no test can fail without a check.
const (
	another   = "what it refuses is refused right after it as well"
	bound     = "it bounds memory: what is beyond it is found all the same"
	cannot    = "it cannot come true with what is called before it"
	stated    = "a chain without faults is as the newest epoch states it"
	listed    = "what leads to it is listed already, and decides"
	explained = "another finding names the leaf all the same"
)

// unneeded are checks without which nothing that a test can show is another, by name, and why.
func unneeded() map[string]string {
	return map[string]string{
		"ledger/bundle.go Leaf: err != nil (2)":                                      another,
		"ledger/bundle.go commitment: err != nil":                                    "a text that cannot be read has no fields",
		"ledger/bundle.go parseUUID: err != nil":                                     another,
		"ledger/bundle.go redaction: l.Body == \"\"":                                 another,
		"ledger/chainjudge.go take: r.Sequence == v.held.Sequence && r.same(v.held)": "twin finds it as well",
		"ledger/chainjudge.go twin: len(l.rows) > maxOptions":                        bound,
		"ledger/chainjudge.go judge: r.content.err != nil":                           explained,
		"ledger/chainverify.go linked: r.content.err == nil":                         explained,
		"ledger/chainverify.go linked: r.stored != Hash{}":                           "no leaf has the hash zero",
		"ledger/chainverify.go reach: v.head.Size == m.Size":                         "only missing leaves lead beyond a mark, and then no root is known",
		"ledger/checkpoint.go ParseCheckpoint: err != nil (2)":                       another,
		"ledger/checkpoint.go ParseCheckpoint: lines[3] != \"\"":                     cannot,
		"ledger/disclosure.go ParseDisclosure: d.Value != nil":                       another,
		"ledger/disclosure.go ParseDisclosure: err != nil":                           another,
		"ledger/disclosure.go ParseDisclosure: err != nil (2)":                       cannot,
		"ledger/map.go VerifyAbsent: bit(&o.Key, i) != bit(&key, i)":                 "the path of a leaf that is elsewhere leads to another root",
		"ledger/rootlog.go Encode: err != nil":                                       cannot,
		"ledger/rootlog.go ParseEntry: err != nil":                                   another,
		"ledger/rootlog.go ParseEntry: err != nil (2)":                               another,
		"ledger/rootlog.go ParseEntry: err != nil (3)":                               another,
		"ledger/rootlog.go ParseEntry: err != nil (4)":                               another,
		"ledger/witness.go count: sig.Name == w.Name()":                              "the name is part of what the hash is of",
		"ledger/witness.go count: !cosigned[w.Verifier]":                             "a note's signatures of one key are one",
		"ledger/trust.go Open: len(logs) == 0":                                       another,
		"ledger/trust.go group: err != nil":                                          another,
		"ledger/trust.go madeBefore: err == nil":                                     another,
		"verify/api.go once: e != \"\" && e != \"identity\"":                         another,
		"ledger/logfork.go encodeEvidence: err != nil":                               cannot,
		"verify/history.go remembered: is != nil":                                    stated,
		"verify/history.go remembered: is.Size == c.Size":                            stated,
		"verify/history.go remembered: is.Root == c.Root":                            stated,
		"verify/history.go openQuietly: err != nil (2)":                              another,
		"verify/memory.go updateMemory: err != nil (3)":                              "no test fills the disk",
		"verify/pages.go nodeOf: len(text) > maxNodeDigits":                          explained,
		"verify/part.go subtrees: err != nil":                                        another,
		"verify/report.go finish: codes[ExitTampered]":                               listed,
		"verify/rootlog.go checkNode: h.unread != nil":                               explained,
		"verify/tail.go checkTail: len(rows) > maxTail":                              "no test has a million leaves that no epoch covers",
		"verify/tail.go is: protobuf.Unmarshal(value, s) == nil":                     "a record that cannot be read is of no chain",
		"verify/rootlog.go takeEntry: !p.manyKeys":                                   "no test rotates a key a thousand times",
		"verify/api.go lines: s.Err() != nil":                                        "an answer that breaks off lacks its last line",
		"verify/api.go once: err != nil":                                             cannot,
		"verify/api.go wholeLines: atEOF && len(data) > 0":                           "an answer that breaks off lacks its last line",
		"verify/chains.go remembered: m.Known":                                       "a chain without faults has a root at each of its marks",
		"verify/chains.go remembered: m.Size > chains[r.id].Size":                    "marks rise",
		"verify/epochs.go holds: count == v.epochs[epoch].Epoch.Chains":              "a map of another number of chains has another root",
		"verify/gaps.go has: at/64 < uint64(len(g.bits))":                            cannot,
		"verify/gaps.go check: g.tooMany":                                            "no test has four billion records",
		"verify/gaps.go check: total > 0 && len(g.dead) > maxDead":                   "no test has a million dead letters",
		"verify/report.go finish: r.Checkpoint == nil":                               listed,
		"verify/memory.go check: c.Origin != origin":                                 another,
		"verify/rows.go slice: err != nil":                                           explained,
	}
}
