package ledger

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// MarshalText implements encoding.TextMarshaler.
func (h Hash) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler. It takes what MarshalText writes and nothing else.
func (h *Hash) UnmarshalText(text []byte) error { return decodeHex(h[:], text, "hash") }

// MarshalText implements encoding.TextMarshaler.
func (c ChainID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, c[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler. It takes what MarshalText writes and nothing else.
func (c *ChainID) UnmarshalText(text []byte) error { return decodeHex(c[:], text, "chain id") }

// decodeHex fills to from lower-case hexadecimal of exactly that size.
func decodeHex(to, text []byte, what string) error {
	if len(text) != hex.EncodedLen(len(to)) || strings.ContainsAny(string(text), "ABCDEF") {
		return fmt.Errorf("%s %.80q: want %d bytes in lower-case hexadecimal", what, text, len(to))
	}
	if _, err := hex.Decode(to, text); err != nil {
		return fmt.Errorf("%s %q: %w", what, text, err)
	}
	return nil
}
