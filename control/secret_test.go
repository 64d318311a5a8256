package control

import (
	"crypto/sha256"
	"errors"
	"math"
	"strings"
	"testing"
)

func TestDrawSecret(t *testing.T) {
	if bits := secretDrawn * math.Log2(62); bits < 160 {
		t.Errorf("a drawn key has %.0f bits", bits)
	}
	const draws = 10_000
	seen := make(map[string]bool, draws)
	var counts [256]int
	for range draws {
		secret := drawSecret()
		if err := checkSecret(secret); err != nil {
			t.Fatal(err)
		}
		if seen[secret] {
			t.Fatal("drawn twice")
		}
		seen[secret] = true
		for _, c := range []byte(strings.TrimPrefix(secret, secretPrefix)) {
			counts[c]++
		}
	}
	// A byte taken modulo 62 would draw the first eight characters a quarter too often. Seven standard deviations are
	// one in 10^12.
	want := float64(draws*secretDrawn) / 62
	for _, c := range base62 {
		if got := float64(counts[c]); math.Abs(got-want) > 7*math.Sqrt(want) {
			t.Errorf("%q was drawn %.0f times, expected %.0f", c, got, want)
		}
		counts[c] = 0
	}
	if counts != [256]int{} {
		t.Error("a character outside of base62 was drawn")
	}
}

func TestCheckSecret(t *testing.T) {
	tests := []struct {
		secret string
		ok     bool
	}{
		{"imk_sk_demo", true},
		{"imk_sk_your-key.here_1~", true},
		{secretPrefix + strings.Repeat("x", 249), true},
		{secretPrefix + strings.Repeat("x", 250), false},
		{"imk_sk_abc", false},
		{"imk_sk_", false},
		{"", false},
		{"sk_imk_abcdefgh", false},
		{"IMK_SK_abcdefgh", false},
		{"imk_sk_abc defgh", false},
		{"imk_sk_abcdéfgh", false},
		{"imk_sk_abcd\n", false},
	}
	for _, test := range tests {
		err := checkSecret(test.secret)
		if (err == nil) != test.ok || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", test.secret, err)
		}
	}
}

func TestHint(t *testing.T) {
	for secret, want := range map[string]string{
		"imk_sk_demo":             "o",
		"imk_sk_12345678":         "78",
		"imk_sk_0123456789abcdef": "cdef",
		secretPrefix + strings.Repeat("x", 28) + "1234": "1234",
	} {
		if got := hintOf(secret); got != want {
			t.Errorf("hint of %s: %q, want %q", secret, got, want)
		}
	}
}

func TestHashSecret(t *testing.T) {
	for _, n := range []int{0, 1, 39, 255, 256, 257, 10_000} {
		text := strings.Repeat("k", n)
		if HashSecret(text) != sha256.Sum256([]byte(text)) {
			t.Errorf("%d bytes: not SHA-256 of the whole text", n)
		}
	}
}
