package control

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// Kinds of object on the config topic, the first part of a record's key. Kinds that a newer version adds are ignored.
const (
	kindWorkspace = "workspace"
	kindKey       = "key"
	kindRedaction = "redaction"
)

// object is the newest record of one Kafka key. It holds a workspace or an API key; a deleted one is kept for
// its version and, if it is an API key, because its text must not be used again. One that holds a redaction is only ever
// written: see Redactions.
type object struct {
	version   uint64
	changedAt time.Time
	changedBy string
	deleted   bool
	workspace *Workspace
	key       *Key
	redaction *Redaction
	// broken says why the newest version cannot be used. The object is refused then, not served as it was before: the
	// version that cannot be read may be the one that took a right away.
	broken error
}

// recordKey returns the Kafka key "<kind>/<32 hex workspace>/<32 hex id>".
func (o *object) recordKey() string {
	switch {
	case o.workspace != nil:
		return recordKey(kindWorkspace, o.workspace.ID, o.workspace.ID)
	case o.redaction != nil:
		return recordKey(kindRedaction, o.redaction.Workspace, o.redaction.Event)
	}
	return recordKey(kindKey, o.key.Workspace, o.key.ID)
}

func recordKey(kind string, workspace, id [16]byte) string {
	b := make([]byte, 0, len(kindWorkspace)+2*33)
	b = append(b, kind...)
	b = append(b, '/')
	b = hex.AppendEncode(b, workspace[:])
	b = append(b, '/')
	return string(hex.AppendEncode(b, id[:]))
}

// encode returns the record's value.
func (o *object) encode(s *sealer) ([]byte, error) {
	c := &recordpb.Config{
		Version:   o.version,
		ChangedAt: o.changedAt.UnixMicro(),
		ChangedBy: o.changedBy,
		Deleted:   o.deleted,
	}
	if r := o.redaction; r != nil {
		pb := &recordpb.Redaction{Workspace: r.Workspace[:], Event: r.Event[:], Paths: r.Paths, Redaction: r.ID[:]}
		if r.KeyDigest != ([16]byte{}) {
			pb.IdempotencyKeyDigest = r.KeyDigest[:]
		}
		c.Object = &recordpb.Config_Redaction{Redaction: pb}
	} else if w := o.workspace; w != nil {
		c.Object = &recordpb.Config_Workspace{Workspace: &recordpb.Workspace{
			Id:                      w.ID[:],
			Incarnation:             w.Incarnation[:],
			Name:                    w.Name,
			Lanes:                   w.Lanes,
			CreatedAt:               w.CreatedAt.UnixMicro(),
			SealedIdempotencySecret: s.seal(w.IdempotencySecret[:], secretIdentity(w)),
			Settings: &recordpb.Settings{
				KeepResourceIdEmpty: w.Settings.KeepResourceIDEmpty,
				RateLimitPerSecond:  w.Settings.RateLimit.PerSecond,
				RateLimitBurst:      uint32(w.Settings.RateLimit.Burst),
				SecretPolicy:        string(w.Settings.SecretPolicy),
			},
		}}
	} else {
		k := o.key
		pb := &recordpb.Key{
			Id:                 k.ID[:],
			Workspace:          k.Workspace[:],
			Name:               k.Name,
			Hash:               k.Hash[:],
			Hint:               k.Hint,
			CreatedAt:          k.CreatedAt.UnixMicro(),
			RateLimitPerSecond: k.RateLimit.PerSecond,
			RateLimitBurst:     uint32(k.RateLimit.Burst),
		}
		for _, scope := range k.Scopes {
			pb.Scopes = append(pb.Scopes, string(scope))
		}
		for _, cidr := range k.AllowedCIDRs {
			pb.AllowedCidrs = append(pb.AllowedCidrs, cidr.String())
		}
		if !k.ExpiresAt.IsZero() {
			pb.ExpiresAt = k.ExpiresAt.UnixMicro()
		}
		if k.First != ([32]byte{}) {
			pb.First = k.First[:]
		}
		for _, f := range k.Former {
			pb.Former = append(pb.Former, &recordpb.FormerSecret{Hash: f.Hash[:], Hint: f.Hint, Until: f.Until.UnixMicro()})
		}
		c.Object = &recordpb.Config_Key{Key: pb}
	}
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode config record: %w", err)
	}
	return value, nil
}

// secretIdentity binds a sealed idempotency secret to its workspace.
func secretIdentity(w *Workspace) string {
	return fmt.Sprintf("idempotency_secret/%x/%x", w.ID, w.Incarnation)
}

// decode reads a record. A nil object and a nil error mean a kind that this version does not know. An object with
// broken set is one of which only the version could be read.
func decode(key, value []byte, s *sealer) (*object, error) {
	kind, _, _ := bytes.Cut(key, []byte{'/'})
	if k := string(kind); k != kindWorkspace && k != kindKey {
		return nil, nil //nolint:nilnil // documented
	}
	var c recordpb.Config
	if err := proto.Unmarshal(value, &c); err != nil {
		return nil, fmt.Errorf("decode config record: %w", err)
	}
	if c.GetVersion() == 0 {
		return nil, errors.New("config record has no version")
	}
	o := &object{
		version:   c.GetVersion(),
		changedAt: timeOf(c.GetChangedAt()),
		changedBy: c.GetChangedBy(),
		deleted:   c.GetDeleted(),
	}
	switch {
	case c.GetWorkspace() != nil:
		o.workspace, o.broken = decodeWorkspace(c.GetWorkspace())
		if o.broken == nil && !o.deleted {
			o.broken = openSecret(o.workspace, c.GetWorkspace().GetSealedIdempotencySecret(), s)
		}
		if o.workspace != nil {
			o.workspace.Version = o.version
		}
	case c.GetKey() != nil:
		o.key, o.broken = decodeKey(c.GetKey())
		if o.key != nil {
			o.key.Version = o.version
		}
	default:
		o.broken = errors.New("config record holds no object")
	}
	if o.broken == nil && o.recordKey() != string(key) {
		o.broken = errors.New("config record is under the key of another object")
	}
	return o, nil
}

func decodeWorkspace(pb *recordpb.Workspace) (*Workspace, error) {
	if len(pb.GetId()) != 16 || len(pb.GetIncarnation()) != 16 || pb.GetLanes() == 0 {
		return nil, errors.New("workspace record has no valid id, incarnation or number of lanes")
	}
	w := &Workspace{
		ID:          [16]byte(pb.GetId()),
		Incarnation: [16]byte(pb.GetIncarnation()),
		Name:        pb.GetName(),
		Lanes:       pb.GetLanes(),
		CreatedAt:   timeOf(pb.GetCreatedAt()),
		Settings: Settings{
			KeepResourceIDEmpty: pb.GetSettings().GetKeepResourceIdEmpty(),
			RateLimit: Limit{
				PerSecond: pb.GetSettings().GetRateLimitPerSecond(),
				Burst:     int(pb.GetSettings().GetRateLimitBurst()),
			},
			SecretPolicy: event.SecretPolicy(pb.GetSettings().GetSecretPolicy()),
		},
	}
	if !w.Settings.SecretPolicy.Known() {
		return w, fmt.Errorf("workspace record has a secret policy that this version does not know: %q", w.Settings.SecretPolicy)
	}
	return w, nil
}

func openSecret(w *Workspace, sealed []byte, s *sealer) error {
	secret, err := s.open(sealed, secretIdentity(w))
	if err != nil {
		return fmt.Errorf("workspace %q: %w", w.Name, err)
	}
	if len(secret) != len(w.IdempotencySecret) {
		return fmt.Errorf("workspace %q: sealed secret has %d bytes", w.Name, len(secret))
	}
	w.IdempotencySecret = [32]byte(secret)
	return nil
}

func decodeKey(pb *recordpb.Key) (*Key, error) {
	if len(pb.GetId()) != 16 || len(pb.GetWorkspace()) != 16 || len(pb.GetHash()) != 32 {
		return nil, errors.New("key record has no valid id, workspace or hash")
	}
	k := &Key{
		ID:        [16]byte(pb.GetId()),
		Workspace: [16]byte(pb.GetWorkspace()),
		Name:      pb.GetName(),
		Hash:      [32]byte(pb.GetHash()),
		Hint:      pb.GetHint(),
		CreatedAt: timeOf(pb.GetCreatedAt()),
		ExpiresAt: timeOf(pb.GetExpiresAt()),
		RateLimit: Limit{PerSecond: pb.GetRateLimitPerSecond(), Burst: int(pb.GetRateLimitBurst())},
	}
	for _, scope := range pb.GetScopes() {
		k.Scopes = append(k.Scopes, Scope(scope))
	}
	for _, text := range pb.GetAllowedCidrs() {
		cidr, err := netip.ParsePrefix(text)
		if err != nil {
			return k, fmt.Errorf("key record: allowed address range: %w", err)
		}
		k.AllowedCIDRs = append(k.AllowedCIDRs, cidr)
	}
	switch len(pb.GetFirst()) {
	case 0:
	case len(k.First):
		k.First = [32]byte(pb.GetFirst())
	default:
		return k, errors.New("key record has no valid hash of its first text")
	}
	for _, f := range pb.GetFormer() {
		if len(f.GetHash()) != 32 || f.GetUntil() == 0 {
			return k, errors.New("key record has a former secret without a valid hash or end")
		}
		k.Former = append(k.Former, FormerSecret{Hash: [32]byte(f.GetHash()), Hint: f.GetHint(), Until: timeOf(f.GetUntil())})
	}
	return k, nil
}

// timeOf is the reverse of UnixMicro where 0 stands for no time.
func timeOf(micros int64) time.Time {
	if micros == 0 {
		return time.Time{}
	}
	return time.UnixMicro(micros).UTC()
}
