package event

// Names of the members of an event's body, in RFC 8785 order, which is also the byte order of their paths. A
// producer may send resource and actor as objects instead: {type, id, name} and {id, name, type}. It may not send flags.
const (
	FieldAction         = "action"
	FieldActionCategory = "action_category"
	FieldActorID        = "actor_id"
	FieldActorName      = "actor_name"
	FieldActorType      = "actor_type"
	FieldFlags          = "flags"
	FieldIdempotencyKey = "idempotency_key"
	FieldIPAddress      = "ip_address"
	FieldMetadata       = "metadata"
	FieldOccurredAt     = "occurred_at"
	FieldResource       = "resource"
	FieldResourceID     = "resource_id"
	FieldResourceName   = "resource_name"
	FieldSessionID      = "session_id"
	FieldTargets        = "targets"
	FieldTenantID       = "tenant_id"
	FieldUserAgent      = "user_agent"
	FieldVersion        = "version"
)

// field numbers the members of a body, in the order of their names.
type field uint8

const (
	action field = iota
	actionCategory
	actorID
	actorName
	actorType
	flags
	idempotencyKey
	ipAddress
	metadata
	occurredAt
	resource
	resourceID
	resourceName
	sessionID
	targets
	tenantID
	userAgent
	version
	numFields
)

func (f field) name() string {
	return [numFields]string{
		FieldAction, FieldActionCategory, FieldActorID, FieldActorName, FieldActorType, FieldFlags,
		FieldIdempotencyKey, FieldIPAddress, FieldMetadata, FieldOccurredAt, FieldResource, FieldResourceID, FieldResourceName,
		FieldSessionID, FieldTargets, FieldTenantID, FieldUserAgent, FieldVersion,
	}[f]
}

// fieldNamed returns the field that a member of an event is, or false where a producer may send none of that name.
func fieldNamed(name []byte) (field, bool) {
	switch string(name) {
	case FieldAction:
		return action, true
	case FieldActionCategory:
		return actionCategory, true
	case FieldActorID:
		return actorID, true
	case FieldActorName:
		return actorName, true
	case FieldActorType:
		return actorType, true
	case FieldIdempotencyKey:
		return idempotencyKey, true
	case FieldIPAddress:
		return ipAddress, true
	case FieldMetadata:
		return metadata, true
	case FieldOccurredAt:
		return occurredAt, true
	case FieldResource:
		return resource, true
	case FieldResourceID:
		return resourceID, true
	case FieldResourceName:
		return resourceName, true
	case FieldSessionID:
		return sessionID, true
	case FieldTargets:
		return targets, true
	case FieldTenantID:
		return tenantID, true
	case FieldUserAgent:
		return userAgent, true
	case FieldVersion:
		return version, true
	}
	return 0, false
}

// knownFields lists what a producer may send, for messages.
const knownFields = "action, action_category, actor (or actor_id, actor_name, actor_type), idempotency_key, ip_address, " +
	"metadata, occurred_at, resource, resource_id, resource_name, session_id, targets, tenant_id, user_agent, version"
