package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	formatsnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
)

// ErrTrust is wrapped by the errors of a trust file that cannot be read.
var ErrTrust = errors.New("invalid trust file")

// Trust is what a verifier was told out of band: whose checkpoints it believes, and which witnesses must have seen them.
type Trust struct {
	logs      []*logKey
	witnesses []Witness
	quorum    group
}

// group is met by at least min of its members.
type group struct {
	min int
	// members are witnesses, by their key, or groups.
	members []member
}

type member struct {
	witness note.Verifier // nil: group
	group   *group
}

// maxTrustLines bounds what a trust file can make a verifier do.
const maxTrustLines = 1000

// ParseTrust reads a policy of the C2SP tlog-policy specification, or one line with the vkey of a log, which is the policy
// of that log and no witness. A log's key is of type Ed25519, and several lines may name one log. A witness's key
// is of type Ed25519 cosignature or ML-DSA-44 cosignature (C2SP tlog-cosignature). Its errors wrap ErrTrust and
// name the line.
func ParseTrust(text []byte) (*Trust, error) {
	p := trustParser{named: map[string]member{}, keys: map[string]bool{}, members: map[string]bool{}}
	number := 0
	for line := range bytes.Lines(text) {
		number++
		words := strings.FieldsFunc(strings.TrimSuffix(string(line), "\n"), func(c rune) bool { return c == ' ' || c == '\t' })
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		err := p.line(words)
		if err == nil && number > maxTrustLines {
			err = fmt.Errorf("more than %d lines", maxTrustLines)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: line %d: %w", ErrTrust, number, err)
		}
	}
	switch {
	case len(p.logs) == 0:
		return nil, fmt.Errorf("%w: it names no log: want a line 'log VKEY', or the VKEY alone", ErrTrust)
	case p.quorum == nil && !p.bare:
		return nil, fmt.Errorf("%w: want a line 'quorum NAME', or 'quorum none'", ErrTrust)
	case p.quorum == nil:
		p.quorum = &group{}
	}
	return &Trust{logs: p.logs, witnesses: p.witnesses, quorum: *p.quorum}, nil
}

type trustParser struct {
	logs      []*logKey
	witnesses []Witness
	named     map[string]member
	keys      map[string]bool // public keys that have been named
	members   map[string]bool // names that are in a group
	quorum    *group
	bare      bool // a vkey alone was read
}

func (p *trustParser) line(words []string) error {
	switch keyword := words[0]; {
	case len(words) == 1 && strings.Count(keyword, "+") >= 2 && len(p.logs) == 0:
		p.bare = true
		return p.log(keyword)
	case p.bare:
		return errors.New("a vkey alone must be the only line")
	case keyword == "log" && (len(words) == 2 || len(words) == 3):
		return p.log(words[1])
	case keyword == "witness" && (len(words) == 3 || len(words) == 4):
		return p.witness(words[1], words[2], words[3:])
	case keyword == "group" && len(words) >= 4:
		return p.group(words[1], words[2], words[3:])
	case keyword == "quorum" && len(words) == 2:
		return p.setQuorum(words[1])
	default:
		return fmt.Errorf("%.40q: want 'log VKEY [URL]', 'witness NAME VKEY [URL]', 'group NAME K|any|all NAME...' or 'quorum NAME'",
			strings.Join(words, " "))
	}
}

// once refuses a public key that has been named: it would count twice.
func (p *trustParser) once(vkey string) error {
	public := publicKey(vkey)
	if p.keys[public] {
		return fmt.Errorf("the key of %.200q is there already", vkey)
	}
	p.keys[public] = true
	return nil
}

func (p *trustParser) log(vkey string) error {
	k, err := newLogKey(vkey)
	if err != nil {
		return err
	}
	p.logs = append(p.logs, k)
	return p.once(vkey)
}

func (p *trustParser) witness(name, vkey string, url []string) error {
	v, err := NewWitnessVerifier(vkey)
	if err != nil {
		return err
	}
	p.witnesses = append(p.witnesses, Witness{Verifier: v, Label: name, URL: strings.Join(url, "")})
	if err := p.once(vkey); err != nil {
		return err
	}
	return p.name(name, member{witness: v})
}

func (p *trustParser) name(name string, m member) error {
	if _, ok := p.named[name]; ok || name == "none" {
		return fmt.Errorf("name %.80q is taken", name)
	}
	p.named[name] = m
	return nil
}

func (p *trustParser) group(name, threshold string, members []string) error {
	var g group
	switch threshold {
	case "any":
		g.min = 1
	case "all":
		g.min = len(members)
	default:
		n, err := strconv.Atoi(threshold)
		if err != nil || strconv.Itoa(n) != threshold || n < 1 || n > len(members) {
			return fmt.Errorf("threshold %.20q: want any, all, or 1 to %d", threshold, len(members))
		}
		g.min = n
	}
	for _, name := range members {
		m, ok := p.named[name]
		if !ok {
			return fmt.Errorf("%.80q is not the name of a witness or group in a line before it", name)
		}
		if p.members[name] {
			return fmt.Errorf("%.80q is in a group already: it would count twice", name)
		}
		p.members[name] = true
		g.members = append(g.members, m)
	}
	return p.name(name, member{group: &g})
}

func (p *trustParser) setQuorum(name string) error {
	m, ok := p.named[name]
	switch {
	case p.quorum != nil:
		return errors.New("there is a quorum already")
	case name == "none":
		p.quorum = &group{}
	case !ok:
		return fmt.Errorf("%.80q is not the name of a witness or group in a line before it", name)
	default:
		p.quorum = &group{min: 1, members: []member{m}}
	}
	return nil
}

func (g *group) met(signed map[note.Verifier]bool) bool {
	n := 0
	for _, m := range g.members {
		if m.witness != nil && signed[m.witness] || m.group != nil && m.group.met(signed) {
			n++
		}
	}
	return n >= g.min
}

// Witnessed says whether the quorum asks for any witness: only then is a log tamper-evident against its own operator.
func (t *Trust) Witnessed() bool { return t.quorum.min > 0 }

// Opened is a checkpoint that is believed.
type Opened struct {
	Checkpoint
	// Signed is the note, and Key NAME+HASH of the log's key that signed it.
	Signed []byte
	Key    string
	// Witnesses are NAME+HASH of those whose cosignatures are valid.
	Witnesses []string
	// Seen is the latest time since when enough witnesses have cosigned it, by their clocks; zero where the quorum asks for none. A witness does not cosign what is
	// older than what it has seen: so nothing newer was witnessed then.
	Seen time.Time
}

// Open checks a signed checkpoint: that a believed key of its log has signed it, which is in keys' range where keys knows
// it, and that the quorum of witnesses has. A cosignature without a time, or from after now plus five minutes, does not count. The fault is
// InvalidProof, WrongKey, KeyOutOfRange or QuorumNotMet.
func (t *Trust) Open(signed []byte, keys KeyHistory, now time.Time) (*Opened, *Fault) {
	c, err := ParseCheckpoint(signed)
	if err != nil {
		return nil, &Fault{Verdict: InvalidProof, Detail: err.Error()}
	}
	logs := keys.extend(t.logsOf(c.Origin))
	if len(logs) == 0 {
		return nil, &Fault{Verdict: WrongKey, Detail: fmt.Sprintf("the trust file names no key of log %q", c.Origin)}
	}
	all := make([]note.Verifier, 0, len(t.witnesses)+len(logs))
	for _, w := range t.witnesses {
		all = append(all, w)
	}
	for _, k := range logs {
		all = append(all, k)
	}
	n, err := note.Open(signed, note.VerifierList(all...))
	if err != nil {
		return nil, &Fault{Verdict: WrongKey, Detail: fmt.Sprintf("checkpoint of size %d: %v", c.Size, err)}
	}
	o := &Opened{Checkpoint: *c, Signed: signed}
	var outside error
	for _, sig := range n.Sigs {
		for _, k := range logs {
			if sig.Name != k.Name() || sig.Hash != k.KeyHash() {
				continue
			}
			if err := keys.inRange(k, c.Size); err != nil {
				outside = err
			} else {
				o.Key = keyID(k)
			}
		}
	}
	var quorum bool
	o.Witnesses, o.Seen, quorum = t.count(n.Sigs, now)
	switch {
	case o.Key == "" && outside != nil:
		return nil, &Fault{Verdict: KeyOutOfRange, Detail: outside.Error()}
	case o.Key == "":
		return nil, &Fault{Verdict: WrongKey, Detail: fmt.Sprintf("checkpoint of size %d: only witnesses have signed it", c.Size)}
	case !quorum:
		return nil, &Fault{
			Verdict: QuorumNotMet,
			Detail:  fmt.Sprintf("checkpoint of size %d: %d witnesses of the trust file have signed it", c.Size, len(o.Witnesses)),
		}
	}
	return o, nil
}

// WithoutQuorum is the same trust, but that no witness needs to have signed: what a log itself has signed convicts it all the
// same.
func (t *Trust) WithoutQuorum() *Trust {
	without := *t
	without.quorum = group{}
	return &without
}

// MaxClockSkew is how far the clock of whoever made a leaf, an epoch or a cosignature may be ahead.
const MaxClockSkew = 5 * time.Minute

// madeBefore says whether a cosignature has a time, which is limit at the latest.
func madeBefore(sig note.Signature, limit time.Time) bool {
	at, err := formatsnote.CoSigV1Timestamp(sig)
	return err == nil && at.Unix() > 0 && !at.After(limit)
}

func (t *Trust) logsOf(origin string) (keys []*logKey) {
	for _, k := range t.logs {
		if k.Name() == origin {
			keys = append(keys, k)
		}
	}
	return keys
}
