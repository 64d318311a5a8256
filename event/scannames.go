package event

import (
	"bytes"
	"unicode/utf8"
)

// sensitivity is what a name says about its value.
type sensitivity uint8

const (
	namesNothing sensitivity = iota
	// namesThing: a token or key that the event is about. What it is called stands there more often than itself.
	namesThing
	// namesKey: a token or key.
	namesKey
	// namesPassword: it may be any text.
	namesPassword
)

// sensitivityOf tells a sensitive name by how it ends: dbPassword, DB_PASSWORD_2, stripe.api-key, old_token_value, but
// not password_policy, token_count, secret_path or key_id. Case, and all that is no letter or digit, make no difference.
func sensitivityOf(name []byte) sensitivity {
	var folded [32]byte // the end of name
	n := len(folded)
	for i := len(name) - 1; i >= 0 && n > 0; i-- {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
			n--
			folded[n] = c
		case c >= 'A' && c <= 'Z':
			n--
			folded[n] = c | 0x20
		case c == ']' || c >= utf8.RuneSelf:
			return namesNothing // Not a name: [REDACTED:github-token], say.
		}
	}
	return sensitivityOfFolded(folded[n:])
}

func sensitivityOfFolded(name []byte) sensitivity {
	for len(name) > 0 && (digits.has(name[len(name)-1]) || name[len(name)-1] == 's') {
		name = name[:len(name)-1]
	}
	if len(name) < 3 {
		return namesNothing
	}
	ends := func(s string) bool { return len(name) >= len(s) && string(name[len(name)-len(s):]) == s }
	switch string(name[len(name)-3:]) {
	case "ord":
		if ends("password") {
			return namesPassword
		}
	case "swd":
		if ends("passwd") {
			return namesPassword
		}
	case "pwd":
		if len(name) > len("pwd") { // By itself it is the working directory.
			return namesPassword
		}
	case "ase":
		if ends("passphrase") {
			return namesPassword
		}
		if ends("base") && len(name) > len("base") { // base64
			return sensitivityOfFolded(name[:len(name)-len("base")])
		}
	case "ode":
		if ends("passcode") {
			return namesPassword
		}
	case "ret":
		if ends("secret") {
			return namesKey
		}
	case "ken":
		if ends("token") {
			return namesKey
		}
	case "key":
		for _, kind := range [...]string{
			"api", "private", "secret", "access", "account", "shared", "encryption", "decryption", "signing", "master", "auth",
			"storage", "license", "ssh", "hmac",
		} {
			if rest := name[:len(name)-3]; len(rest) >= len(kind) && string(rest[len(rest)-len(kind):]) == kind {
				return namesKey
			}
		}
	case "ial":
		if ends("credential") {
			return namesKey
		}
	case "ing", "str":
		if ends("connectionstring") || ends("connectionstr") || ends("connstring") || ends("connstr") {
			return namesKey
		}
	case "ion":
		if ends("authorization") {
			return namesKey
		}
	case "lue", "old", "new", "ent", "ous", "ext":
		for _, word := range [...]string{"value", "old", "new", "current", "previou", "plaintext", "text"} {
			if ends(word) {
				return sensitivityOfFolded(name[:len(name)-len(word)])
			}
		}
	}
	return namesNothing
}

// namesAnother reports whether the value of a member with this name says what its neighbours are values of:
// {"config_key": "db.password", "old_value": ...}.
func namesAnother(name []byte) bool {
	switch string(name) {
	case "config_key", "configKey", "config", "config_name", "key", "name", "path", "field", "field_name", "property", "attribute",
		"setting", "setting_key", "setting_name", "parameter", "parameter_name", "param", "variable", "variable_name", "var",
		"env", "env_var", "option":
		return true
	}
	return false
}

// isValueName reports whether a member with this name is a value of what its neighbour names, or what the object is the
// value of names.
func isValueName(name []byte) bool {
	switch string(name) {
	case "value", "old_value", "new_value", "oldValue", "newValue", "previous_value", "previousValue", "current_value", "currentValue",
		"old", "new", "previous", "current", "before", "after", "from", "to", "data":
		return true
	}
	return false
}

// isSecretValue reports whether text, under a sensitive name, is a secret itself, and not a stand-in, a reference to one,
// a state, a number or what the secret is called.
func isSecretValue(s sensitivity, text []byte) bool {
	text = bytes.TrimSpace(text)
	switch {
	case s == namesNothing || len(text) == 0 || isMasked(text) || isReference(text) || isState(text):
		return false
	case s == namesPassword:
		return !isNumber(text, 3) && text[0] != '/' && text[0] != '~'
	}
	words := countWords(text)
	switch {
	case isNumber(text, len(text)), bytes.IndexByte(text, ' ') >= 0:
		return false
	case words > 1 && bytes.ContainsAny(text, "/_"): // database_credential, production/database/primary
		return false
	}
	return s != namesThing || words == 0
}

// isMasked tells ***, ****1234, •••, xxxx, [REDACTED:x], <hidden>.
func isMasked(text []byte) bool {
	if bytes.Contains(text, []byte("***")) || bytes.Contains(text, []byte("•••")) || bytes.Contains(text, []byte("…")) {
		return true
	}
	switch first, last := text[0], text[len(text)-1]; {
	case first == '[' && last == ']', first == '<' && last == '>', first == '(' && last == ')':
		return true
	}
	return bytes.Count(text, text[:1]) == len(text)
}

// isReference tells where a secret is from the secret: vault:secret/x, arn:aws:..., ${X}, $X, {{ x }}, op://x, ENC[x]. A
// password in a URL has a rule of its own.
func isReference(text []byte) bool {
	for _, start := range [...]string{
		"${", "$(", "{{", "<%", "ENC[", "projects/", "secret/", "secrets/", "ref+", "ssh-rsa ", "ssh-ed25519 ", "ecdsa-sha2-",
	} {
		if bytes.HasPrefix(text, []byte(start)) {
			return true
		}
	}
	if text[0] == '$' && len(text) > 1 && (uppers|dashes).run(text[1:], len(text)) == len(text)-1 {
		return true
	}
	scheme, rest, found := bytes.Cut(text, []byte{':'})
	if !found {
		return false
	}
	if bytes.HasPrefix(rest, []byte("//")) {
		return true
	}
	switch string(bytes.ToLower(scheme)) {
	case "vault", "arn", "ssm", "aws-ssm", "secretsmanager", "aws-sm", "gcp-sm", "sm", "kms", "op", "env", "file", "ref", "keyvault",
		"azure-kv", "akv", "kv", "k8s", "kubernetes", "sops", "secret", "secrets", "secretref", "doppler", "conjur", "sha256", "sha512":
		return true
	}
	return false
}

// isState tells what has become of a secret from the secret.
func isState(text []byte) bool {
	if len(text) > 12 {
		return false
	}
	switch string(bytes.ToLower(text)) {
	case "true", "false", "yes", "no", "on", "off", "null", "nil", "none", "n/a", "na", "undefined", "unknown", "empty", "set", "unset",
		"present", "absent", "missing", "new", "old", "added", "created", "changed", "updated", "modified", "rotated", "reset",
		"renewed", "generated", "expired", "revoked", "removed", "deleted", "cleared", "enabled", "disabled", "active", "inactive",
		"valid", "invalid", "required", "optional", "default", "hidden", "masked", "redacted", "filtered", "sensitive", "encrypted",
		"scheduled", "manual", "auto", "automatic":
		return true
	}
	return false
}

// isNumber reports whether text is a number of at most so many characters.
func isNumber(text []byte, most int) bool {
	if len(text) > most {
		return false
	}
	for i, c := range text {
		if !digits.has(c) && c != '.' && (i > 0 || c != '-') {
			return false
		}
	}
	return true
}

// countWords returns of how many words of small letters and short numbers text is made, as names are: stripe-2024,
// database_credential. It returns 0 where there is anything else in it.
func countWords(text []byte) int {
	words := 0
	for len(text) > 0 {
		n := (lowHex | lowRest).run(text, len(text))
		if n == 0 {
			n = digits.run(text, 5)
		}
		if n == 0 || digits.has(text[0]) && n == 5 || n < len(text) && bytes.IndexByte([]byte("_-./:"), text[n]) < 0 {
			return 0
		}
		words++
		text = text[min(n+1, len(text)):]
	}
	return words
}
