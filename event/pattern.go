package event

import (
	"errors"
	"strings"
	"unicode/utf8"
)

// MaxPatternBytes bounds a pattern.
const MaxPatternBytes = 1024

// Pattern matches whole texts, as in deployment.*, *.deleted or *secret*: an asterisk stands for any run of characters,
// dots included and the empty run too; everything else stands for itself, case and all. It is the only matcher: filters
// and alert rules use it in memory, queries through Like.
type Pattern struct {
	// parts are what stands between the asterisks: one more than there are of these.
	parts []string
}

// ErrPattern is what CompilePattern returns.
var ErrPattern = errors.New("a pattern is 1 to 1024 bytes of UTF-8 text")

// CompilePattern reads a pattern.
func CompilePattern(s string) (Pattern, error) {
	if s == "" || len(s) > MaxPatternBytes || !utf8.ValidString(s) {
		return Pattern{}, ErrPattern
	}
	return Pattern{parts: strings.Split(s, "*")}, nil
}

// Match reports whether the pattern stands for s. It takes the first place for each part, which is enough because an
// asterisk follows it: time is at most len(s) times the pattern's length.
func (p Pattern) Match(s string) bool {
	last := len(p.parts) - 1
	if last <= 0 {
		return last == 0 && s == p.parts[0]
	}
	s, ok := strings.CutPrefix(s, p.parts[0])
	if !ok {
		return false
	}
	for _, part := range p.parts[1:last] {
		_, after, found := strings.Cut(s, part)
		if !found {
			return false
		}
		s = after
	}
	return strings.HasSuffix(s, p.parts[last])
}

// Exact returns the only text that the pattern stands for, where it has no asterisk.
func (p Pattern) Exact() (string, bool) {
	if len(p.parts) != 1 {
		return "", false
	}
	return p.parts[0], true
}

// Like returns the same pattern for ClickHouse's LIKE: percent for any run, and a backslash before what LIKE would take
// for more than itself.
func (p Pattern) Like() string {
	like := strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`, `*`, `%`)
	return like.Replace(strings.Join(p.parts, "*"))
}
