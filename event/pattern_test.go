package event

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestPattern(t *testing.T) {
	tests := []struct {
		pattern, text string
		want          bool
	}{
		{"deployment.*", "deployment.started", true},
		{"deployment.*", "deployment.", true},
		{"deployment.*", "deployment", false},
		{"deployment.*", "a.deployment.started", false},
		{"*.deleted", "a.b.deleted", true},
		{"*.deleted", "a.deleted.b", false},
		{"*", "", true},
		{"*", "a.b", true},
		{"a*b*c", "abc", true},
		{"a*b*c", "a-b-b-c", true},
		{"a*b*c", "acb", false},
		{"a*a", "a", false},
		{"a**a", "aa", true},
		{"*ab*ab*", "xabxabx", true},
		{"*ab*ab*", "xabx", false},
		{"a.b", "a.b", true},
		{"a.b", "a.bc", false},
		{"a.b", "A.b", false},
		{"a_b", "axb", false},
		{"a%", "ab", false},
		{"a?", "ab", false},
		{`a\*`, `a\b`, true},
		{"*é", "aé", true},
	}
	for _, tt := range tests {
		p, err := CompilePattern(tt.pattern)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Match(tt.text); got != tt.want {
			t.Errorf("%q matches %q = %t, want %t", tt.pattern, tt.text, got, tt.want)
		}
	}
	if (Pattern{}).Match("") {
		t.Error("the zero pattern matches")
	}
	for _, bad := range []string{"", "\xff", strings.Repeat("a", MaxPatternBytes+1)} {
		if _, err := CompilePattern(bad); err == nil {
			t.Errorf("%.20q compiles", bad)
		}
	}
}

func TestPatternLike(t *testing.T) {
	for pattern, want := range map[string]string{
		"a.*":     "a.%",
		"*":       "%",
		"a_b%c\\": `a\_b\%c\\`,
		"**":      "%%",
	} {
		p, err := CompilePattern(pattern)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Like(); got != want {
			t.Errorf("%q is LIKE %q, want %q", pattern, got, want)
		}
		exact, ok := p.Exact()
		if ok == strings.Contains(pattern, "*") || ok && exact != pattern {
			t.Errorf("%q is exactly %q, %t", pattern, exact, ok)
		}
	}
}

// matchGlob is the matcher by its definition, in exponential time.
func matchGlob(pattern, s []rune) bool {
	if len(pattern) == 0 {
		return len(s) == 0
	}
	if pattern[0] == '*' {
		return matchGlob(pattern[1:], s) || len(s) > 0 && matchGlob(pattern, s[1:])
	}
	return len(s) > 0 && s[0] == pattern[0] && matchGlob(pattern[1:], s[1:])
}

// matchLike is LIKE as SQL defines it.
func matchLike(like, s []rune) bool {
	if len(like) == 0 {
		return len(s) == 0
	}
	switch like[0] {
	case '%':
		return matchLike(like[1:], s) || len(s) > 0 && matchLike(like, s[1:])
	case '_':
		return len(s) > 0 && matchLike(like[1:], s[1:])
	case '\\':
		like = like[1:]
	}
	return len(s) > 0 && s[0] == like[0] && matchLike(like[1:], s[1:])
}

func FuzzPattern(f *testing.F) {
	for _, s := range [][2]string{{"a*b", "aab"}, {"*.x", "a.x"}, {`\_%*`, `\_%`}, {"*a*a*", "aaa"}, {"é*", "éa"}, {"a", "a"}} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, pattern, s string) {
		p, err := CompilePattern(pattern)
		if err != nil || len(s) > 14 || strings.Count(pattern, "*") > 5 || !utf8.ValidString(s) {
			t.Skip()
		}
		got := p.Match(s)
		if want := matchGlob([]rune(pattern), []rune(s)); got != want {
			t.Errorf("%q matches %q = %t, want %t", pattern, s, got, want)
		}
		if like := matchLike([]rune(p.Like()), []rune(s)); got != like {
			t.Errorf("%q matches %q = %t, LIKE %q = %t", pattern, s, got, p.Like(), like)
		}
		if exact, ok := p.Exact(); ok && (exact == s) != got {
			t.Errorf("%q is exactly %q and matches %q = %t", pattern, exact, s, got)
		}
	})
}
