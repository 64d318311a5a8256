package event

import (
	"bytes"
	"encoding/base64"
)

// alphabet is a set of characters that tokens are made of.
type alphabet uint8

const (
	digits  alphabet = 1 << iota
	lowHex           // a to f
	lowRest          // g to z
	upHex            // A to F
	upRest           // G to Z
	dashes           // - _
	base64s          // + / =
	dots             // . ~

	hexadecimal = digits | lowHex | upHex
	uppers      = digits | upHex | upRest
	alnum       = digits | lowHex | lowRest | upHex | upRest
	urlSafe     = alnum | dashes
	base64Text  = alnum | base64s
)

func (a alphabet) has(c byte) bool {
	switch {
	case c >= '0' && c <= '9':
		return a&digits != 0
	case c >= 'a' && c <= 'f':
		return a&lowHex != 0
	case c >= 'g' && c <= 'z':
		return a&lowRest != 0
	case c >= 'A' && c <= 'F':
		return a&upHex != 0
	case c >= 'G' && c <= 'Z':
		return a&upRest != 0
	case c == '-' || c == '_':
		return a&dashes != 0
	case c == '+' || c == '/' || c == '=':
		return a&base64s != 0
	case c == '.' || c == '~':
		return a&dots != 0
	}
	return false
}

// run returns how many characters of a text starts with, at most limit.
func (a alphabet) run(text []byte, limit int) int {
	n := 0
	for n < len(text) && n < limit && a.has(text[n]) {
		n++
	}
	return n
}

// rule tells one kind of secret from other text.
type rule struct {
	// name is what flags, errors and redacted values say.
	name string
	// anchors are texts that each secret of the kind has one of.
	anchors []string
	// inside: the secret starts before the anchor. Else no letter or digit stands before an anchor that starts with one.
	inside bool
	// After the anchor there are at least least characters of the alphabet and, unless it is 0, at most most.
	of          alphabet
	least, most int
	// also, where there is one, decides about text[start:end], an anchor that the above holds for.
	also func(text []byte, start, end int) bool
}

func (r *rule) matches(text []byte, start, end int) bool {
	if !r.inside && start > 0 && alnum.has(text[start]) && alnum.has(text[start-1]) {
		return false
	}
	limit := r.least
	if r.most > 0 {
		limit = r.most + 1
	}
	n := r.of.run(text[end:], limit)
	return n >= r.least && (r.most == 0 || n <= r.most) && (r.also == nil || r.also(text, start, end))
}

// rules follow the formats that issuers have published; docs/adr/0007-secret-scanner.md says how they are kept. Lengths
// are the shortest known or a little less: issuers lengthen their tokens.
var rules = [...]rule{ //nolint:gochecknoglobals // a table of constants
	// This product.
	{name: "immutable-api-key", anchors: []string{"imk_sk_"}, of: urlSafe | dots, least: 4},

	// Keys, tokens and connection strings of no one issuer.
	{name: "private-key", anchors: []string{"-----BEGIN "}, also: isPrivateKey},
	{name: "private-key", anchors: []string{"PuTTY-User-Key-File-"}, of: digits, least: 1},
	{name: "age-secret-key", anchors: []string{"AGE-SECRET-KEY-1"}, of: uppers, least: 50},
	{name: "jwt", anchors: []string{"eyJ"}, of: urlSafe, least: 10, also: isJWT},
	{name: "url-password", anchors: []string{"://"}, also: hasPassword},
	{name: "bearer-token", anchors: []string{"Bearer ", "bearer "}, of: urlSafe | base64s | dots, least: 20},
	{name: "basic-auth", anchors: []string{"Basic ", "basic "}, of: base64Text, least: 4, also: isBasicAuth},
	{name: "key-value", anchors: []string{"="}, also: isAssignment},
	{name: "key-value", anchors: []string{`":`}, also: isJSONMember},

	// Clouds.
	{name: "aws-access-key", anchors: []string{"AKIA", "ASIA", "ABIA", "ACCA"}, of: uppers, least: 16, most: 16},
	{name: "aws-bedrock-key", anchors: []string{"ABSK"}, of: base64Text, least: 100},
	{name: "alibaba-access-key", anchors: []string{"LTAI"}, of: alnum, least: 16, most: 26},
	{name: "azure-client-secret", anchors: []string{"Q~"}, inside: true, of: urlSafe | dots, least: 31, also: isAzureSecret},
	{name: "cloudflare-origin-key", anchors: []string{"v1.0-"}, of: digits | lowHex | dashes, least: 160},
	{name: "digitalocean-token", anchors: []string{"dop_v1_", "doo_v1_", "dor_v1_"}, of: hexadecimal, least: 64},
	{name: "google-api-key", anchors: []string{"AIza"}, of: urlSafe, least: 35},
	{name: "google-oauth", anchors: []string{"GOCSPX-", "ya29."}, of: urlSafe | dots, least: 24},
	{name: "heroku-api-key", anchors: []string{"HRKU-"}, of: urlSafe, least: 36},
	{name: "flyio-token", anchors: []string{"fo1_", "fm2_"}, of: urlSafe | base64s, least: 43},
	{name: "supabase-token", anchors: []string{"sbp_"}, of: hexadecimal, least: 40},
	{name: "planetscale-token", anchors: []string{"pscale_tkn_", "pscale_oauth_", "pscale_pw_"}, of: urlSafe | dots, least: 32},

	// Code, builds and packages.
	{name: "github-token", anchors: []string{"ghp_", "gho_", "ghu_", "ghs_", "ghr_"}, of: alnum, least: 36},
	{name: "github-token", anchors: []string{"github_pat_"}, of: urlSafe, least: 60},
	{
		name: "gitlab-token", of: urlSafe, least: 20, anchors: []string{
			"glpat-", "gldt-", "glrt-", "glptt-", "glft-", "glsoat-", "glcbt-", "glimt-", "glagent-", "gloas-", "glffct-", "GR1348941",
		},
	},
	{name: "atlassian-token", anchors: []string{"ATATT3", "ATCTT3"}, of: urlSafe | base64s, least: 80},
	{name: "bitbucket-password", anchors: []string{"ATBB"}, of: alnum, least: 32, most: 36},
	{name: "buildkite-token", anchors: []string{"bkua_"}, of: hexadecimal, least: 40},
	{name: "circleci-token", anchors: []string{"CCIPAT_"}, of: urlSafe, least: 40},
	{name: "clojars-token", anchors: []string{"CLOJARS_"}, of: alnum, least: 60},
	{name: "docker-token", anchors: []string{"dckr_pat_", "dckr_oat_"}, of: urlSafe, least: 20},
	{name: "artifactory-token", anchors: []string{"AKCp", "cmVmd"}, of: alnum, least: 59},
	{name: "npm-token", anchors: []string{"npm_"}, of: alnum, least: 36},
	{name: "nuget-api-key", anchors: []string{"oy2"}, of: digits | lowHex | lowRest, least: 43, most: 43},
	{name: "pypi-token", anchors: []string{"pypi-AgE"}, of: urlSafe, least: 50},
	{name: "rubygems-token", anchors: []string{"rubygems_"}, of: hexadecimal, least: 48},
	{name: "postman-api-key", anchors: []string{"PMAK-"}, of: hexadecimal | dashes, least: 50},
	{name: "sourcegraph-token", anchors: []string{"sgp_"}, of: urlSafe, least: 40},

	// Infrastructure and operations.
	{name: "databricks-token", anchors: []string{"dapi"}, of: digits | lowHex, least: 32, most: 32},
	{name: "doppler-token", anchors: []string{"dp.pt.", "dp.st.", "dp.ct.", "dp.sa."}, of: urlSafe | dots, least: 40},
	{name: "dynatrace-token", anchors: []string{"dt0c01."}, of: alnum | dots, least: 60},
	{name: "grafana-token", anchors: []string{"glc_", "glsa_", "eyJrIjoi"}, of: base64Text | dashes, least: 32},
	{name: "new-relic-key", anchors: []string{"NRAK-"}, of: uppers, least: 27},
	{name: "openshift-token", anchors: []string{"sha256~"}, of: urlSafe, least: 43},
	{name: "prefect-api-key", anchors: []string{"pnu_"}, of: alnum, least: 36},
	{name: "pulumi-token", anchors: []string{"pul-"}, of: digits | lowHex, least: 40, most: 40},
	{name: "scalingo-token", anchors: []string{"tk-us-"}, of: urlSafe, least: 40},
	{name: "sentry-token", anchors: []string{"sntrys_", "sntryu_"}, of: base64Text | dashes, least: 40},
	{name: "tailscale-key", anchors: []string{"tskey-"}, of: urlSafe, least: 20},
	{name: "terraform-token", anchors: []string{".atlasv1."}, inside: true, of: urlSafe, least: 60},
	{name: "vault-token", anchors: []string{"hvs.", "hvb.", "hvr."}, of: urlSafe, least: 24},
	{name: "onepassword-token", anchors: []string{"ops_eyJ"}, of: base64Text, least: 100},

	// Messages, mail and work.
	{
		name: "slack-token", of: alnum | dashes, least: 18,
		anchors: []string{"xoxa-", "xoxb-", "xoxc-", "xoxd-", "xoxe-", "xoxe.", "xoxo-", "xoxp-", "xoxr-", "xoxs-", "xapp-"},
	},
	{
		name: "webhook-url", of: urlSafe | base64s, least: 36,
		anchors: []string{"hooks.slack.com/", "discord.com/api/webhooks/", "discordapp.com/api/webhooks/", "webhook.office.com/webhookb2/"},
	},
	{name: "brevo-api-key", anchors: []string{"xkeysib-"}, of: alnum | dashes, least: 64},
	{name: "linear-api-key", anchors: []string{"lin_api_"}, of: alnum, least: 40},
	{name: "notion-token", anchors: []string{"ntn_"}, of: alnum, least: 40},
	{name: "readme-api-key", anchors: []string{"rdme_"}, of: alnum, least: 60},
	{name: "sendgrid-api-key", anchors: []string{"SG."}, of: urlSafe | dots, least: 60},
	{name: "twilio-api-key", anchors: []string{"SK"}, of: digits | lowHex, least: 32, most: 32},
	{name: "typeform-token", anchors: []string{"tfp_"}, of: urlSafe | dots, least: 40},

	// Money.
	{name: "stripe-key", anchors: []string{"sk_live_", "sk_test_", "rk_live_", "rk_test_"}, of: alnum, least: 16},
	{name: "webhook-secret", anchors: []string{"whsec_"}, of: base64Text, least: 24},
	{name: "square-token", anchors: []string{"sq0atp-", "sq0csp-"}, of: urlSafe, least: 22},
	{name: "shopify-token", anchors: []string{"shpat_", "shpca_", "shppa_", "shpss_"}, of: hexadecimal, least: 32},
	{name: "shippo-token", anchors: []string{"shippo_live_", "shippo_test_"}, of: hexadecimal, least: 40},
	{name: "easypost-api-key", anchors: []string{"EZAK", "EZTK"}, of: alnum, least: 54},

	// Models.
	{name: "anthropic-api-key", anchors: []string{"sk-ant-"}, of: urlSafe, least: 32},
	{name: "openai-api-key", anchors: []string{"sk-proj-", "sk-svcacct-", "sk-admin-"}, of: urlSafe, least: 40},
	{name: "openai-api-key", anchors: []string{"sk-"}, of: alnum, least: 40},
	{name: "huggingface-token", anchors: []string{"hf_", "api_org_"}, of: alnum, least: 30},
	{name: "groq-api-key", anchors: []string{"gsk_"}, of: alnum, least: 48},
	{name: "perplexity-api-key", anchors: []string{"pplx-"}, of: alnum, least: 40},
	{name: "replicate-token", anchors: []string{"r8_"}, of: alnum, least: 37},
}

// isPrivateKey reports whether a PEM or OpenPGP block is one of a private key.
func isPrivateKey(text []byte, _, end int) bool {
	label := text[end:min(end+40, len(text))]
	dashes := bytes.Index(label, []byte("-----"))
	return dashes > 0 && bytes.Contains(label[:dashes], []byte("PRIVATE KEY"))
}

// isJWT reports whether three segments of base64url stand there, from the beginning of the first: every run of them is
// looked at once, so that the time stays linear.
func isJWT(text []byte, start, end int) bool {
	const enough, limit = 10, 16 << 10
	if start > 0 && urlSafe.has(text[start-1]) {
		return false
	}
	for range 2 {
		end += urlSafe.run(text[end:], limit)
		if end == len(text) || text[end] != '.' {
			return false
		}
		end++
		if urlSafe.run(text[end:], enough) < enough {
			return false
		}
	}
	return true
}

// hasPassword reports whether a URL's authority, which starts at end, has a password.
func hasPassword(text []byte, _, end int) bool {
	authority := text[end:min(end+512, len(text))]
	if n := bytes.IndexAny(authority, "/?#\"'<>\\` \t\r\n"); n >= 0 {
		authority = authority[:n]
	}
	at := bytes.LastIndexByte(authority, '@')
	if at < 0 {
		return false
	}
	_, password, found := bytes.Cut(authority[:at], []byte(":"))
	return found && isSecretValue(namesPassword, password)
}

// isBasicAuth reports whether a user and a password are encoded there.
func isBasicAuth(text []byte, _, end int) bool {
	const limit = 512
	var decoded [limit]byte
	encoded := bytes.TrimRight(text[end:end+base64Text.run(text[end:], limit)], "=")
	n, err := base64.RawStdEncoding.Decode(decoded[:], encoded)
	colon := bytes.IndexByte(decoded[:n], ':')
	return err == nil && colon > 0 && colon < n-1
}

// isAzureSecret looks at what stands before Q~: three characters and a digit.
func isAzureSecret(text []byte, start, _ int) bool {
	return start >= 4 && digits.has(text[start-1]) && (urlSafe|dots).run(text[start-4:], 3) == 3
}

const (
	maxNameInText  = 64
	maxValueInText = 200
)

// isAssignment reports whether a sensitive name has a value, as in a connection string, a query string or a command:
// Password=x; &api_key=x, --token=x.
func isAssignment(text []byte, start, end int) bool {
	from := start
	for from > 0 && start-from < maxNameInText && (urlSafe | dots).has(text[from-1]) {
		from--
	}
	s := sensitivityOf(text[from:start])
	if s == namesNothing {
		return false
	}
	value := text[end:min(end+maxValueInText, len(text))]
	if len(value) == 0 || value[0] == '=' { // a comparison
		return false
	}
	if quote := value[0]; quote == '"' || quote == '\'' {
		value, _, _ = bytes.Cut(value[1:], []byte{quote})
	} else if n := bytes.IndexAny(value, "\"' ;&,<>\t\r\n"); n >= 0 {
		value = value[:n]
	}
	return isSecretValue(s, value)
}

// isJSONMember reports whether a sensitive name has a value in JSON that is text of its own.
func isJSONMember(text []byte, start, end int) bool {
	name := text[max(0, start-maxNameInText):start]
	open := bytes.LastIndexByte(name, '"')
	if open < 0 {
		return false
	}
	s := sensitivityOf(name[open+1:])
	if s == namesNothing {
		return false
	}
	value := bytes.TrimLeft(text[end:min(end+maxValueInText, len(text))], " \t\r\n")
	if len(value) == 0 || value[0] != '"' {
		return false
	}
	value, _, _ = bytes.Cut(value[1:], []byte{'"'})
	return isSecretValue(s, value)
}
