package event

import (
	"math"
	"strconv"
)

// RFC 8785 (JCS): the one form of a JSON value that is stored, hashed and shown.

// appendCanonical appends the canonical form of node i.
func (t *tape) appendCanonical(dst []byte, i int) []byte {
	n := &t.nodes[i]
	switch n.kind {
	case '"':
		return appendString(dst, t.bytes(n.text), n.plain)
	case '{':
		dst = append(dst, '{')
		for k, m := range t.order[n.members.start:n.members.end] {
			if k > 0 {
				dst = append(dst, ',')
			}
			dst = t.appendName(dst, m)
			dst = t.appendCanonical(dst, m)
		}
		return append(dst, '}')
	case '[':
		dst = append(dst, '[')
		for c := range t.children(i) {
			if c > i+1 {
				dst = append(dst, ',')
			}
			dst = t.appendCanonical(dst, c)
		}
		return append(dst, ']')
	default:
		return append(dst, t.bytes(n.text)...)
	}
}

// appendName appends the name of member i and a colon.
func (t *tape) appendName(dst []byte, i int) []byte {
	dst = appendString(dst, t.bytes(t.nodes[i].name), t.nodes[i].namePlain)
	return append(dst, ':')
}

// appendString appends a string as RFC 8785, section 3.2.2.2, writes it; plain says that nothing needs an escape.
func appendString(dst, text []byte, plain bool) []byte {
	dst = append(dst, '"')
	if plain {
		dst = append(dst, text...)
		return append(dst, '"')
	}
	const digits = "0123456789abcdef"
	for _, c := range text {
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c >= 0x20:
			dst = append(dst, c)
		case c == '\b':
			dst = append(dst, '\\', 'b')
		case c == '\t':
			dst = append(dst, '\\', 't')
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c == '\f':
			dst = append(dst, '\\', 'f')
		case c == '\r':
			dst = append(dst, '\\', 'r')
		default:
			dst = append(dst, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		}
	}
	return append(dst, '"')
}

// compareNames orders two UTF-8 strings by their UTF-16 code units (RFC 8785, section 3.2.3). That is byte order but
// for one thing: characters of the supplementary planes (four bytes, 0xF0 and above) come before U+E000 to U+FFFF
// (0xEE and 0xEF), because their surrogates are smaller.
func compareNames(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		x, y := a[i], b[i]
		if x == y {
			continue
		}
		if x >= 0xEE && y >= 0xEE && (x >= 0xF0) != (y >= 0xF0) {
			return int(y) - int(x)
		}
		return int(x) - int(y)
	}
	return len(a) - len(b)
}

// isShortInteger reports whether a JSON number is its own canonical form at a glance: at most 15 digits and no more.
func isShortInteger(raw []byte) bool {
	digits := raw
	if digits[0] == '-' {
		digits = digits[1:]
	}
	if len(digits) > 15 || len(raw) > 1 && digits[0] == '0' {
		return false
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// maxDigits is how many significant digits the shortest form of a double can have.
const maxDigits = 17

// decimal is 0.d1d2d3... times 10^point, without leading and trailing zeros; no digits stand for zero.
type decimal struct {
	digits [maxDigits]byte
	n      int
	point  int
}

// parseDecimal reads a JSON number without its sign; false where it has more than maxDigits significant digits.
func parseDecimal(raw []byte) (decimal, bool) {
	var d decimal
	fraction, zeros := false, 0 // zeros: read since the last other digit
	for i, c := range raw {
		switch c {
		case '.':
			fraction = true
			continue
		case 'e', 'E':
			// Atoi returns the nearest int where there are too many digits: as far beyond any double as the clamp.
			exponent, _ := strconv.Atoi(string(raw[i+1:]))
			d.point += max(math.MinInt32, min(exponent, math.MaxInt32))
			return d, true
		case '0':
			if d.n > 0 {
				zeros++
			} else if fraction {
				d.point--
			}
		default:
			if d.n+zeros >= maxDigits {
				return d, false
			}
			for range zeros {
				d.digits[d.n] = '0'
				d.n++
			}
			zeros = 0
			d.digits[d.n] = c
			d.n++
		}
		if !fraction && d.n > 0 {
			d.point++
		}
	}
	return d, true
}

// appendNumber appends a JSON number as ECMAScript writes the double it stands for (RFC 8785, section 3.2.2.3). It
// reports false where that is another number than raw says, or none.
func appendNumber(dst, raw []byte) ([]byte, bool) {
	negative := raw[0] == '-'
	if negative {
		raw = raw[1:]
	}
	d, ok := parseDecimal(raw)
	if !ok {
		return dst, false
	}
	if d.n == 0 {
		return append(dst, '0'), true
	}
	// Any double is between 10^-324 and 10^309.
	if d.point < -330 || d.point > 310 {
		return dst, false
	}
	var stack [32]byte
	text := append(stack[:0], "0."...)
	text = append(text, d.digits[:d.n]...)
	text = append(text, 'e')
	text = strconv.AppendInt(text, int64(d.point), 10)
	f, err := strconv.ParseFloat(string(text), 64)
	if err != nil {
		return dst, false
	}
	shortest, ok := parseDecimal(strconv.AppendFloat(stack[:0], f, 'e', -1, 64))
	if !ok || shortest != d {
		return dst, false
	}
	if negative {
		dst = append(dst, '-')
	}
	return d.append(dst), true
}

// append lays the digits out as ECMAScript's Number::toString does.
func (d *decimal) append(dst []byte) []byte {
	digits := d.digits[:d.n]
	zeros := func(n int) {
		for range n {
			dst = append(dst, '0')
		}
	}
	switch {
	case d.point >= d.n && d.point <= 21:
		dst = append(dst, digits...)
		zeros(d.point - d.n)
	case d.point > 0 && d.point <= 21:
		dst = append(dst, digits[:d.point]...)
		dst = append(dst, '.')
		dst = append(dst, digits[d.point:]...)
	case d.point > -6 && d.point <= 0:
		dst = append(dst, "0."...)
		zeros(-d.point)
		dst = append(dst, digits...)
	default:
		dst = append(dst, digits[0])
		if d.n > 1 {
			dst = append(dst, '.')
			dst = append(dst, digits[1:]...)
		}
		dst = append(dst, 'e')
		if d.point > 0 {
			dst = append(dst, '+')
		}
		dst = strconv.AppendInt(dst, int64(d.point-1), 10)
	}
	return dst
}
