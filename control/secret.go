package control

import (
	"crypto/rand"
	"crypto/sha256"
	"strings"
)

// API key texts (docs/design/api.md, Authentication).
const (
	secretPrefix = "imk_sk_"
	// secretDrawn is the number of base62 characters of a drawn text: 190 bits.
	secretDrawn = 32
	// A chosen text has 4 to 249 characters after the prefix; the short ones exist for guides and tests.
	secretMinChosen = 4
	secretMaxLen    = 256
	secretHintLen   = 4
)

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// HashSecret returns the SHA-256 of an API key's whole text, as Key.Hash holds it.
func HashSecret(secret string) [32]byte {
	var stack [secretMaxLen]byte
	if len(secret) <= len(stack) {
		return sha256.Sum256(stack[:copy(stack[:], secret)])
	}
	return sha256.Sum256([]byte(secret))
}

// drawSecret returns the text of a new key.
func drawSecret() string {
	text := make([]byte, 0, len(secretPrefix)+secretDrawn)
	text = append(text, secretPrefix...)
	var random [2 * secretDrawn]byte
	for {
		rand.Read(random[:])
		for _, b := range random {
			// 248 is the largest multiple of 62 in a byte: the rest would favour the first characters.
			if b >= 248 {
				continue
			}
			text = append(text, base62[b%62])
			if len(text) == cap(text) {
				return string(text)
			}
		}
	}
}

// checkSecret checks a chosen text.
func checkSecret(secret string) error {
	rest, ok := strings.CutPrefix(secret, secretPrefix)
	switch {
	case !ok:
		return invalid("secret", "an API key starts with %s", secretPrefix)
	case len(rest) < secretMinChosen || len(secret) > secretMaxLen:
		return invalid("secret", "an API key has %d to %d characters after %s",
			secretMinChosen, secretMaxLen-len(secretPrefix), secretPrefix)
	case strings.ContainsFunc(rest, func(r rune) bool { return !strings.ContainsRune(base62+"-._~", r) }):
		return invalid("secret", "an API key has letters, digits and -._~ only")
	}
	return nil
}

// hintOf returns the end of a text: four characters, fewer where they would tell more than a quarter of it.
func hintOf(secret string) string {
	return secret[len(secret)-min(secretHintLen, (len(secret)-len(secretPrefix))/4):]
}
