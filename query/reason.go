package query

import (
	"bytes"
	"slices"
	"strings"
	"unicode"

	"github.com/go-json-experiment/json/jsontext"
)

// minRepeated is the length in bytes from which a word in a reason is no coincidence, and in characters of a run that has a
// digit.
const minRepeated = 4

// whatRepeats is the rule of repeats, for whoever wrote the reason.
const whatRepeats = "repeats a value that is to be erased, or a part of one, and would stay in the ledger: describe it instead. A part is " +
	"a word of four letters or more, a word with a digit in it, and four letters and digits in a row of which one is a digit."

// repeats reports whether a reason has in it what is to be erased, or a part of that. Texts and numbers count, at any depth; names of
// members, true and false do not. Upper and lower case are the same. Of a value there must not be in the reason
//
//   - a word, which is letters and digits in a row, of four bytes or more, be it inside another word;
//   - a shorter word with a digit in it, as a word;
//   - four letters and digits of which one is a digit, and all of its letters and digits if they have four bytes or more: in a row, whatever
//     else is between them, as in 47-11.
func repeats(reason string, erased []jsontext.Value) bool {
	reason = strings.ToLower(reason)
	words, squeezed := wordsOf(reason), squeeze(reason)
	runs := map[[minRepeated]rune]bool{}
	for run := range runsWithDigit(squeezed) {
		runs[run] = true
	}
	return slices.ContainsFunc(erased, func(json jsontext.Value) bool {
		return slices.ContainsFunc(textsAndNumbers(json), func(value string) bool {
			value = strings.ToLower(value)
			for _, word := range wordsOf(value) {
				if len(word) >= minRepeated && strings.Contains(reason, word) || hasDigit(word) && slices.Contains(words, word) {
					return true
				}
			}
			whole := squeeze(value)
			if len(string(whole)) >= minRepeated && strings.Contains(string(squeezed), string(whole)) {
				return true
			}
			for run := range runsWithDigit(whole) {
				if runs[run] {
					return true
				}
			}
			return false
		})
	})
}

// textsAndNumbers returns the texts and numbers in a value.
func textsAndNumbers(value jsontext.Value) (all []string) {
	dec := jsontext.NewDecoder(bytes.NewReader(value))
	for {
		parent, read := dec.StackIndex(dec.StackDepth())
		token, err := dec.ReadToken()
		if err != nil {
			return all // the end: what is stored was canonical, or Fields has said so
		}
		isName := parent == '{' && read%2 == 0
		if k := token.Kind(); !isName && (k == '"' || k == '0') {
			all = append(all, token.String())
		}
	}
}

func ofWord(r rune) bool { return unicode.IsLetter(r) || unicode.IsNumber(r) || unicode.IsMark(r) }

func wordsOf(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return !ofWord(r) })
}

func hasDigit(text string) bool { return strings.ContainsFunc(text, unicode.IsNumber) }

// squeeze returns the letters and digits of a text.
func squeeze(text string) []rune {
	return slices.DeleteFunc([]rune(text), func(r rune) bool { return !ofWord(r) })
}

// runsWithDigit yields the runs of four characters that have a digit.
func runsWithDigit(text []rune) func(yield func([minRepeated]rune) bool) {
	return func(yield func([minRepeated]rune) bool) {
		for i := range len(text) - minRepeated + 1 {
			if run := [minRepeated]rune(text[i:]); slices.ContainsFunc(run[:], unicode.IsNumber) && !yield(run) {
				return
			}
		}
	}
}
