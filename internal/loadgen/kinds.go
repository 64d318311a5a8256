package loadgen

import "strconv"

// kind is a family of events. metadata appends the members of the metadata object in canonical order.
type kind struct {
	percent  int
	actions  []string
	resource string
	actor    *actorType
	targets  bool
	metadata func(g *Generator, b []byte, resource uint64) []byte
}

type actorType struct {
	name, prefix           string
	hasSession, hasAddress bool
}

// Tables that nothing writes to.
var (
	actorTypes = []actorType{
		{name: "engineer", prefix: "eng_", hasSession: true, hasAddress: true},
		{name: "ci_system", prefix: "ci_"},
		{name: "engineer", prefix: "eng_", hasSession: true},
	}
	vault  = &actorType{name: "secret_manager", prefix: "system_vault_"}
	pager  = &actorType{name: "alerting", prefix: "system_pagerduty_"}
	scaler = &actorType{name: "autoscaler", prefix: "system_scaler_"}

	actorNames = []string{
		"GitHub Actions", "Priya Sharma", "HashiCorp Vault", "PagerDuty", "Søren Kjær", "Chinedu Okafor", "田中 美咲",
		"Maria da Conceição", "deploy-bot", "Łukasz Wiśniewski", "Anna Müller", "O'Brien, Pat", "release 🚀 train",
	}
	serviceNames = []string{
		"api-gateway", "worker-service", "admin-panel", "checkout", "billing", "search", "notifications", "identity",
		"inventory", "pricing", "recommendations", "media-transcoder", "ledger-export", "webhook-relay", "feature-flags",
	}
	environments = []string{"production", "production", "production", "staging", "development"}
	regions      = []string{"us-east-1", "eu-west-1", "ap-southeast-2"}
	configKeys   = []string{
		"rate_limit.requests_per_minute", "cache.ttl_seconds", "db.pool.max_connections", "retry.max_attempts",
		"feature.new_checkout", "tls.min_version", "queue.visibility_timeout",
	}
	changeReasons = []string{
		"Scaling for product launch traffic", "Follow-up of the post-mortem", "Réduction des coûts — trimestre 3",
		"Temporary, to be taken back on Monday", "Requested by \\\"Trust & Safety\\\"",
	}
	titles = []string{
		"API latency spike — p99 > 5s", "Disk almost full on db-primary-3", "Elevated 5xx rate in checkout",
		"Replication lag above 30 s", "証明書の有効期限切れ間近",
	}
	severities = []string{"critical", "high", "medium", "low"}
	roles      = []string{"admin", "viewer", "deployer", "billing"}

	kinds = []kind{
		{
			percent: 35, resource: "service", metadata: deployment,
			actions: []string{"deployment.started", "deployment.succeeded", "deployment.failed", "deployment.rollback"},
		},
		{percent: 30, resource: "service", metadata: configChange, actions: []string{"config.changed"}},
		{percent: 8, resource: "secret", actor: vault, metadata: rotation, actions: []string{"secret.rotated"}},
		{
			percent: 7, resource: "incident", actor: pager, metadata: incident,
			actions: []string{"incident.created", "incident.acknowledged", "incident.resolved"},
		},
		{percent: 12, resource: "service", actor: scaler, metadata: scaling, actions: []string{"service.scaled"}},
		{
			percent: 8, resource: "group", targets: true, metadata: access,
			actions: []string{"access.granted", "access.revoked"},
		},
	}
)

// appendMember appends `"name":"value",`; value is written as it is.
func appendMember(b []byte, name, value string) []byte {
	b = append(b, '"')
	b = append(b, name...)
	b = append(b, `":"`...)
	b = append(b, value...)
	return append(b, `",`...)
}

func appendNumber(b []byte, name string, value uint64) []byte {
	b = append(b, '"')
	b = append(b, name...)
	b = append(b, `":`...)
	b = strconv.AppendUint(b, value, 10)
	return append(b, ',')
}

func appendVersion(b []byte, name string, value uint64) []byte {
	b = append(b, '"')
	b = append(b, name...)
	b = append(b, `":"v2.`...)
	b = strconv.AppendUint(b, value, 10)
	return append(b, `.0",`...)
}

func (g *Generator) appendServices(b []byte, resource uint64) []byte {
	b = append(b, `"affected_services":["`...)
	b = appendResourceID(b, "service", resource)
	if g.rand.IntN(2) == 0 {
		b = append(b, `","`...)
		b = append(b, pick(g, serviceNames)...)
	}
	return append(b, `"],`...)
}

func deployment(g *Generator, b []byte, _ uint64) []byte {
	version := g.rand.Uint64N(90)
	b = appendMember(b, "deployer", "deploy-bot")
	b = appendMember(b, "environment", pick(g, environments))
	b = appendMember(b, "git_branch", "main")
	b = append(b, `"git_sha":"`...)
	b = g.appendHex(b)
	b = append(b, `",`...)
	b = appendVersion(b, "git_tag", version+1)
	b = appendNumber(b, "pr_number", 1_000+g.rand.Uint64N(9_000))
	b = appendVersion(b, "previous_version", version)
	b = appendMember(b, "region", pick(g, regions))
	return b[:len(b)-1]
}

func configChange(g *Generator, b []byte, _ uint64) []byte {
	value := 1 + g.rand.Uint64N(5_000)
	b = appendMember(b, "change_reason", pick(g, changeReasons))
	b = appendMember(b, "config_key", pick(g, configKeys))
	b = appendMember(b, "environment", pick(g, environments))
	b = append(b, `"jira_ticket":"OPS-`...)
	b = strconv.AppendUint(b, 1_000+g.rand.Uint64N(9_000), 10)
	b = append(b, `","new_value":"`...)
	b = strconv.AppendUint(b, value*2, 10)
	b = append(b, `","old_value":"`...)
	b = strconv.AppendUint(b, value, 10)
	return append(b, '"')
}

func rotation(g *Generator, b []byte, resource uint64) []byte {
	version := g.rand.Uint64N(400)
	b = g.appendServices(b, resource)
	b = appendNumber(b, "new_version", version+1)
	b = appendNumber(b, "previous_version", version)
	b = appendMember(b, "rotation_reason", "scheduled_90day")
	b = appendMember(b, "secret_type", "database_credential")
	return b[:len(b)-1]
}

func incident(g *Generator, b []byte, resource uint64) []byte {
	b = g.appendServices(b, resource)
	b = append(b, `"on_call":"eng_`...)
	b = strconv.AppendUint(b, g.actors.Uint64(), 10)
	b = append(b, `",`...)
	b = appendMember(b, "severity", pick(g, severities))
	b = appendMember(b, "title", pick(g, titles))
	b = append(b, `"triggered_by":"datadog_monitor_`...)
	b = strconv.AppendUint(b, 10_000+g.rand.Uint64N(90_000), 10)
	return append(b, '"')
}

func scaling(g *Generator, b []byte, _ uint64) []byte {
	from := 1 + g.rand.Uint64N(40)
	b = append(b, `"cpu_utilisation":`...)
	b = strconv.AppendFloat(b, float64(1+g.rand.IntN(99))/100, 'f', -1, 64)
	b = append(b, `,"dry_run":false,`...)
	b = appendMember(b, "environment", pick(g, environments))
	b = appendNumber(b, "from_replicas", from)
	b = append(b, `"limits":{"max":64,"min":1},`...)
	b = appendMember(b, "reason", "target utilisation exceeded for 5 minutes")
	b = appendNumber(b, "to_replicas", from+1+g.rand.Uint64N(8))
	return b[:len(b)-1]
}

func access(g *Generator, b []byte, _ uint64) []byte {
	b = append(b, `"approver":"eng_`...)
	b = strconv.AppendUint(b, g.actors.Uint64(), 10)
	b = append(b, `","expires_in_hours":`...)
	b = strconv.AppendUint(b, 1+g.rand.Uint64N(72), 10)
	b = append(b, `,"mfa":true,`...)
	b = appendMember(b, "role", pick(g, roles))
	b = append(b, `"ticket":"SEC-`...)
	b = strconv.AppendUint(b, 1_000+g.rand.Uint64N(9_000), 10)
	return append(b, '"')
}
