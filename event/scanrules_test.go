package event

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// What looks like a secret below is put together from parts, so that nobody's scanner takes these files for a leak.

func mixed(n int) string { return strings.Repeat("aB3dE5gH7jK9", n/12+1)[:n] }
func hexes(n int) string { return strings.Repeat("0a1b2c3d4e5f", n/12+1)[:n] }
func caps(n int) string  { return strings.Repeat("Q7ZX2KMB", n/8+1)[:n] }

// good are secrets, each of which is told by the rule; bad are near misses, which are told by none.
var ruleCases = []struct {
	rule      string
	good, bad []string
}{
	{"immutable-api-key", []string{"imk_" + "sk_" + mixed(27), "key imk_" + "sk_demo."}, []string{"imk_" + "sk_…abcd", "imk_" + "sk_", "ximk_" + "sk_demo"}},
	{
		"private-key",
		[]string{"-----BEGIN " + "PRIVATE KEY-----\nMIIE", "x\n-----BEGIN RSA " + "PRIVATE KEY-----", "-----BEGIN PGP " + "PRIVATE KEY BLOCK-----", "PuTTY-User-" + "Key-File-3: ssh-ed25519"},
		[]string{"-----BEGIN PUBLIC KEY-----\nMIIE", "-----BEGIN CERTIFICATE-----", "-----BEGIN ", "-----BEGIN a long text about a PRIVATE KEY and more-----", "PuTTY-User-Key-File"},
	},
	{"age-secret-key", []string{"AGE-SECRET-" + "KEY-1" + caps(58)}, []string{"AGE-SECRET-" + "KEY-1" + caps(40), "age1" + hexes(58)}},
	{
		"jwt",
		[]string{"eyJ" + "hbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0In0." + mixed(43), "token eyJ" + mixed(20) + "." + mixed(20) + "." + mixed(20) + " end"},
		[]string{"eyJ" + mixed(40), "eyJ" + mixed(40) + "." + mixed(40), "eyJ" + mixed(20) + "." + mixed(5) + "." + mixed(40), "x-eyJ" + mixed(20) + "." + mixed(20) + "." + mixed(20)},
	},
	{
		"url-password",
		[]string{"postgres://app:" + "hunter2@db:5432/x", "see redis://:" + "p4ss@cache", "https://u:" + "a:b@c@example.org/?q#f"},
		[]string{
			"https://example.org:8443/a@b", "postgres://app@db/x", "postgres://app:@db/x", "postgres://app:***@db/x", "https://key@sentry.example/1",
			"postgres://app:${DB_PASSWORD}@db/x", "postgres://app:[REDACTED]@db/x", "http://u:xxxxx@h", "://", "a://b:c", "https://u\n:p@h",
		},
	},
	{"bearer-token", []string{"Authorization: Bearer " + mixed(32), "bearer " + mixed(20)}, []string{"Bearer authentication", "Bearer token was not sent", "forbearer " + mixed(20)}},
	{"basic-auth", []string{"Basic dXNlcjpw" + "YXNz", "-H 'Authorization: basic YTpi" + "Yg=='"}, []string{"Basic authentication", "Basic dXNlcm5hbWU=", "Basic dXNlcjo=", "Basic "}},
	{
		"key-value",
		[]string{
			"Server=db;User Id=sa;Pass" + "word=Tr0ub4dor;", "?a=b&api_key=" + mixed(8), "run --token=" + mixed(8), "DB_PASS" + "WORD='two words'",
			"AccountKey=" + mixed(86) + "==", "X-Amz-Credential=" + caps(20) + "/2026", `{"password":"hunter2"}`, `{"a":1, "apiKey": "` + mixed(8) + `"}`,
		},
		[]string{
			"a=b", "password=", "password= hunter2", "password=***", "password=${DB}", "password=$DB_PASS", "max_tokens=4096", "token=refresh_token", "token=true",
			"token==x1", "=", "secret_path=a1", "x=" + mixed(40), "passwordpolicy=Strong1", `{"password":""}`, `{"password": null}`, `{"password":"[REDACTED]"}`,
			`{"token":"refresh_token"}`, `{"note":"x1"}`, `password":"x1`, `":`, `{"password":`,
		},
	},
	{"aws-access-key", []string{"AK" + "IA" + caps(16), "id: AS" + "IA" + caps(16) + ".", "AB" + "IA" + caps(16), "AC" + "CA" + caps(16)}, []string{"AK" + "IA" + caps(15), "AK" + "IA" + caps(17), "X" + "AK" + "IA" + caps(16), "ASIA", "asia-southeast1"}},
	{"aws-bedrock-key", []string{"AB" + "SK" + mixed(120) + "="}, []string{"AB" + "SK" + mixed(60)}},
	{"alibaba-access-key", []string{"LT" + "AI" + mixed(20)}, []string{"LT" + "AI" + mixed(10), "LT" + "AI" + mixed(40)}},
	{"azure-client-secret", []string{"aB~8" + "Q~" + mixed(34)}, []string{"aB~x" + "Q~" + mixed(34), "8" + "Q~" + mixed(34), "aB~8" + "Q~" + mixed(20)}},
	{"cloudflare-origin-key", []string{"v1.0-" + hexes(24) + "-" + hexes(146)}, []string{"v1.0-" + hexes(24), "v1.0-rc1"}},
	{"digitalocean-token", []string{"do" + "p_v1_" + hexes(64), "do" + "o_v1_" + hexes(64), "do" + "r_v1_" + hexes(64)}, []string{"do" + "p_v1_" + hexes(63)}},
	{"google-api-key", []string{"AI" + "za" + mixed(35)}, []string{"AI" + "za" + mixed(34)}},
	{"google-oauth", []string{"GOC" + "SPX-" + mixed(28), "ya" + "29." + mixed(60)}, []string{"GOC" + "SPX-" + mixed(20), "ya29", "maya" + "29." + mixed(60)}},
	{"heroku-api-key", []string{"HR" + "KU-AA" + mixed(58), "HR" + "KU-" + "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"}, []string{"HR" + "KU-" + mixed(20)}},
	{"flyio-token", []string{"fo" + "1_" + mixed(43), "fm" + "2_" + mixed(120) + "=="}, []string{"fo" + "1_" + mixed(20)}},
	{"supabase-token", []string{"sb" + "p_" + hexes(40)}, []string{"sb" + "p_" + hexes(39)}},
	{"planetscale-token", []string{"pscale" + "_tkn_" + mixed(43), "pscale" + "_oauth_" + mixed(32), "pscale" + "_pw_" + mixed(32)}, []string{"pscale" + "_tkn_" + mixed(31)}},
	{
		"github-token",
		[]string{
			"gh" + "p_" + mixed(36), "gh" + "o_" + mixed(36), "gh" + "u_" + mixed(36), "gh" + "s_" + mixed(36), "gh" + "r_" + mixed(76),
			"https://gh" + "p_" + mixed(36) + "@github.com/a/b", "github" + "_pat_" + mixed(22) + "_" + mixed(59),
		},
		[]string{"gh" + "p_" + mixed(35), "agh" + "p_" + mixed(36), "github" + "_pat_" + mixed(30), "gh" + "x_" + mixed(36)},
	},
	{
		"gitlab-token",
		[]string{
			"gl" + "pat-" + mixed(20), "gl" + "dt-" + mixed(20), "gl" + "rt-" + mixed(20), "gl" + "ptt-" + hexes(40), "gl" + "ft-" + mixed(20), "gl" + "soat-" + mixed(20),
			"gl" + "cbt-0_" + mixed(20), "gl" + "imt-" + mixed(25), "gl" + "agent-" + mixed(50), "gl" + "oas-" + hexes(64), "gl" + "ffct-" + mixed(20), "GR" + "1348941" + mixed(20),
		},
		[]string{"gl" + "pat-" + mixed(19), "gl" + "pat " + mixed(20)},
	},
	{"atlassian-token", []string{"ATA" + "TT3" + mixed(186), "ATC" + "TT3" + mixed(186)}, []string{"ATA" + "TT3" + mixed(60)}},
	{"bitbucket-password", []string{"AT" + "BB" + mixed(32)}, []string{"AT" + "BB" + mixed(20), "AT" + "BB" + mixed(60)}},
	{"buildkite-token", []string{"bk" + "ua_" + hexes(40)}, []string{"bk" + "ua_" + hexes(20)}},
	{"circleci-token", []string{"CCI" + "PAT_" + mixed(22) + "_" + hexes(40)}, []string{"CCI" + "PAT_" + mixed(22)}},
	{"clojars-token", []string{"CLO" + "JARS_" + hexes(60)}, []string{"CLO" + "JARS_" + hexes(50)}},
	{"docker-token", []string{"dckr" + "_pat_" + mixed(27), "dckr" + "_oat_" + mixed(27)}, []string{"dckr" + "_pat_" + mixed(15)}},
	{"artifactory-token", []string{"AK" + "Cp" + mixed(69), "cm" + "Vmd" + mixed(59)}, []string{"AK" + "Cp" + mixed(50), "cm" + "Vmd" + mixed(40)}},
	{"npm-token", []string{"np" + "m_" + mixed(36)}, []string{"np" + "m_" + mixed(35), "np" + "m_install"}},
	{"nuget-api-key", []string{"oy" + "2" + hexes(43)}, []string{"oy" + "2" + hexes(42), "oy" + "2" + hexes(44), "toy" + "2" + hexes(43)}},
	{"pypi-token", []string{"pypi-" + "AgEIcHlwaS5vcmc" + mixed(120)}, []string{"pypi-" + "AgEIcHlwaS5vcmc", "pypi-mirror"}},
	{"rubygems-token", []string{"rubygems" + "_" + hexes(48)}, []string{"rubygems" + "_" + hexes(47), "rubygems_mirror"}},
	{"postman-api-key", []string{"PM" + "AK-" + hexes(24) + "-" + hexes(34)}, []string{"PM" + "AK-" + hexes(24)}},
	{"sourcegraph-token", []string{"sg" + "p_" + hexes(16) + "_" + hexes(40)}, []string{"sg" + "p_" + hexes(16)}},
	{"databricks-token", []string{"da" + "pi" + hexes(32), "da" + "pi" + hexes(32) + "-2"}, []string{"da" + "pi" + hexes(31), "da" + "pi" + hexes(40), "dapi"}},
	{"doppler-token", []string{"dp" + ".pt." + mixed(43), "dp" + ".st.prd." + mixed(43), "dp" + ".ct." + mixed(43), "dp" + ".sa." + mixed(43)}, []string{"dp" + ".pt." + mixed(20)}},
	{"dynatrace-token", []string{"dt0" + "c01." + caps(24) + "." + caps(64)}, []string{"dt0" + "c01." + caps(24)}},
	{"grafana-token", []string{"gl" + "c_" + mixed(60) + "=", "gl" + "sa_" + mixed(32) + "_" + hexes(8), "eyJr" + "Ijoi" + mixed(70)}, []string{"gl" + "c_" + mixed(20), "eyJr" + "Ijoi" + mixed(20)}},
	{"new-relic-key", []string{"NR" + "AK-" + caps(27)}, []string{"NR" + "AK-" + caps(20)}},
	{"openshift-token", []string{"sha256" + "~" + mixed(43)}, []string{"sha256" + "~" + mixed(42), "sha256:" + hexes(64)}},
	{"prefect-api-key", []string{"pn" + "u_" + mixed(36)}, []string{"pn" + "u_" + mixed(20)}},
	{"pulumi-token", []string{"pu" + "l-" + hexes(40)}, []string{"pu" + "l-" + hexes(39), "pu" + "l-" + hexes(41)}},
	{"scalingo-token", []string{"tk-" + "us-" + mixed(48)}, []string{"tk-" + "us-" + mixed(20), "tk-us-east-1"}},
	{"sentry-token", []string{"sn" + "trys_" + mixed(100) + "_" + mixed(43), "sn" + "tryu_" + hexes(64)}, []string{"sn" + "tryu_" + hexes(20)}},
	{"tailscale-key", []string{"ts" + "key-auth-" + mixed(12) + "-" + mixed(32)}, []string{"ts" + "key-auth"}},
	{"terraform-token", []string{mixed(14) + ".atlas" + "v1." + mixed(67)}, []string{mixed(14) + ".atlas" + "v1." + mixed(20)}},
	{"vault-token", []string{"hv" + "s." + mixed(24), "hv" + "b." + mixed(138), "hv" + "r." + mixed(90)}, []string{"hv" + "s." + mixed(23), "xhv" + "s." + mixed(24)}},
	{"onepassword-token", []string{"ops" + "_eyJ" + mixed(250)}, []string{"ops" + "_eyJ" + mixed(50)}},
	{
		"slack-token",
		[]string{
			"xo" + "xb-123456789012-1234567890123-" + mixed(24), "xo" + "xp-1234567890-" + mixed(24), "xo" + "xa-2-" + mixed(24), "xo" + "xc-" + mixed(24), "xo" + "xd-" + mixed(24),
			"xo" + "xe-1-" + mixed(146), "xo" + "xe.xo" + "xp-1-" + mixed(160), "xo" + "xo-" + mixed(24), "xo" + "xr-" + mixed(24), "xo" + "xs-" + mixed(24), "xa" + "pp-1-A01-1-" + hexes(64),
		},
		[]string{"xo" + "xb-1234", "xo" + "xz-" + mixed(24), "foxo" + "xb-" + mixed(24)},
	},
	{
		"webhook-url",
		[]string{
			"https://hooks.slack.com" + "/services/T01234567/B01234567/" + mixed(24), "https://discord.com/api" + "/webhooks/123456789012345678/" + mixed(68),
			"https://discordapp.com/api" + "/webhooks/123456789012345678/" + mixed(68),
			"https://x.webhook.office.com" + "/webhookb2/0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9@0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9/IncomingWebhook/" + hexes(32),
		},
		[]string{"https://hooks.slack.com/services", "https://hooks.slack.com/docs/about-webhooks"},
	},
	{"brevo-api-key", []string{"xkey" + "sib-" + hexes(64) + "-" + mixed(16)}, []string{"xkey" + "sib-" + hexes(20)}},
	{"linear-api-key", []string{"lin" + "_api_" + mixed(40)}, []string{"lin" + "_api_" + mixed(39)}},
	{"notion-token", []string{"nt" + "n_" + mixed(46)}, []string{"nt" + "n_" + mixed(20)}},
	{"readme-api-key", []string{"rd" + "me_" + hexes(70)}, []string{"rd" + "me_" + hexes(20)}},
	{"sendgrid-api-key", []string{"S" + "G." + mixed(22) + "." + mixed(43)}, []string{"S" + "G." + mixed(22), "MS" + "G." + mixed(66)}},
	{"twilio-api-key", []string{"S" + "K" + hexes(32)}, []string{"S" + "K" + hexes(31), "S" + "K" + hexes(33), "AS" + "K" + hexes(32), "SKU-1234"}},
	{"typeform-token", []string{"tf" + "p_" + mixed(59)}, []string{"tf" + "p_" + mixed(20)}},
	{
		"stripe-key",
		[]string{"sk" + "_live_" + mixed(24), "sk" + "_test_" + mixed(24), "rk" + "_live_" + mixed(24), "rk" + "_test_" + mixed(99)},
		[]string{"sk" + "_live_" + mixed(15), "pk" + "_live_" + mixed(24), "task" + "_live_" + mixed(24), "sk" + "_live_****4242"},
	},
	{"webhook-secret", []string{"wh" + "sec_" + mixed(32), "wh" + "sec_" + mixed(43) + "="}, []string{"wh" + "sec_" + mixed(20)}},
	{"square-token", []string{"sq0" + "atp-" + mixed(22), "sq0" + "csp-" + mixed(43)}, []string{"sq0" + "atp-" + mixed(21), "sq0" + "idp-" + mixed(22)}},
	{"shopify-token", []string{"sh" + "pat_" + hexes(32), "sh" + "pca_" + hexes(32), "sh" + "ppa_" + hexes(32), "sh" + "pss_" + hexes(32)}, []string{"sh" + "pat_" + hexes(31)}},
	{"shippo-token", []string{"shippo" + "_live_" + hexes(40), "shippo" + "_test_" + hexes(40)}, []string{"shippo" + "_live_" + hexes(39)}},
	{"easypost-api-key", []string{"EZ" + "AK" + mixed(54), "EZ" + "TK" + mixed(54)}, []string{"EZ" + "AK" + mixed(53)}},
	{"anthropic-api-key", []string{"sk-" + "ant-api03-" + mixed(93) + "AA"}, []string{"sk-" + "ant-api03"}},
	{
		"openai-api-key",
		[]string{"sk-" + "proj-" + mixed(74), "sk-" + "svcacct-" + mixed(74), "sk-" + "admin-" + mixed(74), "sk-" + mixed(48)},
		[]string{"sk-" + "proj-" + mixed(20), "sk-" + mixed(39), "task-" + mixed(48), "sk-learn"},
	},
	{"huggingface-token", []string{"hf" + "_" + mixed(34), "api" + "_org_" + mixed(34)}, []string{"hf" + "_" + mixed(20)}},
	{"groq-api-key", []string{"gs" + "k_" + mixed(52)}, []string{"gs" + "k_" + mixed(20)}},
	{"perplexity-api-key", []string{"pp" + "lx-" + mixed(48)}, []string{"pp" + "lx-" + mixed(20)}},
	{"replicate-token", []string{"r" + "8_" + mixed(37)}, []string{"r" + "8_" + mixed(36), "ver" + "8_" + mixed(37)}},
}

func TestRules(t *testing.T) {
	tested := map[string]bool{}
	for _, tt := range ruleCases {
		t.Run(tt.rule, func(t *testing.T) {
			tested[tt.rule] = true
			for _, text := range tt.good {
				if got := secretIn([]byte(text)); got != tt.rule {
					t.Errorf("%q is told by rule %q", text, got)
				}
				if got := secretIn([]byte("\u00e9 " + text + "\n" + text)); got != tt.rule {
					t.Errorf("%q amid other text is told by rule %q", text, got)
				}
			}
			for _, text := range tt.bad {
				if got := secretIn([]byte(text)); got != "" {
					t.Errorf("%q is told by rule %q", text, got)
				}
			}
			if got := secretIn([]byte(redacted(tt.rule))); got != "" || isSecretValue(namesPassword, []byte(redacted(tt.rule))) {
				t.Errorf("what it leaves is told by rule %q", got)
			}
		})
	}
	for _, r := range rules {
		if !tested[r.name] {
			t.Errorf("rule %s has no case", r.name)
		}
		for _, anchor := range r.anchors {
			if !slices.ContainsFunc(ruleCases, func(c struct {
				rule      string
				good, bad []string
			},
			) bool {
				return c.rule == r.name && strings.Contains(strings.Join(c.good, "\n"), anchor)
			}) {
				t.Errorf("anchor %q of rule %s has no case", anchor, r.name)
			}
		}
	}
}

// The automaton finds what looking at every place for every anchor finds.
func TestAnchorIndex(t *testing.T) {
	if last := slices.Max(anchors().class[:]); last >= classes {
		t.Fatalf("%d classes, want at least %d", classes, last+1)
	}
	var parts []string
	for _, r := range rules {
		parts = append(parts, r.anchors...)
	}
	rapid.Check(t, func(t *rapid.T) {
		var text []byte
		for range rapid.IntRange(0, 6).Draw(t, "parts") {
			part := rapid.SampledFrom(parts).Draw(t, "part")
			text = append(text, part[:rapid.IntRange(0, len(part)).Draw(t, "length")]...)
			text = append(text, mixed(rapid.SampledFrom([]int{0, 1, 20, 40}).Draw(t, "tail"))...)
		}
		want := ""
		for end := 0; end <= len(text) && want == ""; end++ {
			for longest := end; longest > 0 && want == ""; longest-- {
				for _, r := range rules {
					if want == "" && slices.Contains(r.anchors, string(text[end-longest:end])) && r.matches(text, end-longest, end) {
						want = r.name
					}
				}
			}
		}
		if got := secretIn(text); got != want {
			t.Fatalf("%q: %q, want %q", text, got, want)
		}
	})
}

func TestSensitiveNames(t *testing.T) {
	for want, names := range map[sensitivity][]string{
		namesPassword: {
			"password", "Password", "dbPassword", "DB_PASSWORD_2", "db.password", "passwd", "user_pwd", "passphrase", "passwords", "old_password",
			"password_value", "passwordBase64", "spring.datasource.password", "/db/password", "password_new", "door passcode",
		},
		namesKey: {
			"secret", "client-secret", "clientSecret", "token", "auth_token", "accessToken", "api_key", "apikey", "X-API-Key", "private_key",
			"aws_secret_access_key", "access_key", "credentials", "connection_string", "ConnectionString", "connStr", "Authorization", "AccountKey",
			"signing_key", "old_token_value", "tokens",
		},
		namesNothing: {
			"", "a", "key", "config_key", "public_key", "monkey", "primary_key", "cache_key", "idempotency_key", "password_policy", "password_changed_at",
			"secret_path", "secret_type", "secret_name", "token_type", "token_count", "key_id", "access_key_id", "session_id", "environment", "region",
			"git_sha", "pwd", "author", "authorized_by", "new_value", "old", "base64", "2", redacted("github-token"), "pässword", "rate_limit.requests_per_minute",
		},
	} {
		for _, name := range names {
			if got := sensitivityOf([]byte(name)); got != want {
				t.Errorf("%q: %d, want %d", name, got, want)
			}
		}
	}
}
