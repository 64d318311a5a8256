package ingest

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/go-json-experiment/json/jsontext"

	"getimmutable.dev/immutable/internal/httpserver"
)

// cutJSON returns what splitJSON does, for a batch whose framing is {"events":[...]} to the letter, or false. It finds
// where each event ends by its brackets and quotes alone, at an eighth of the cost: what it returns for a body that is
// not JSON is wrong in at least one event, which the gate then refuses.
func cutJSON(body []byte, limit int) ([][]byte, bool) {
	rest := skipSpace(body)
	for _, part := range [...]string{"{", `"events"`, ":", "["} {
		if !bytes.HasPrefix(rest, []byte(part)) {
			return nil, false
		}
		rest = skipSpace(rest[len(part):])
	}
	events := make([][]byte, 0, min(limit, 1+len(body)/256))
	for len(events) < limit {
		size := objectSize(rest)
		if size == 0 {
			return nil, false
		}
		events = append(events, rest[:size])
		rest = skipSpace(rest[size:])
		if len(rest) == 0 {
			return nil, false
		}
		if rest[0] == ']' {
			rest = skipSpace(rest[1:])
			return events, len(rest) > 0 && rest[0] == '}' && len(skipSpace(rest[1:])) == 0
		}
		if rest[0] != ',' {
			return nil, false
		}
		rest = skipSpace(rest[1:])
	}
	return nil, false
}

// objectSize returns the size of the object that text begins with, or 0 where none does or it does not end.
func objectSize(text []byte) int {
	if len(text) == 0 || text[0] != '{' {
		return 0
	}
	depth := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return i + 1
			}
		case '"':
			for i++; ; i++ {
				end := bytes.IndexByte(text[i:], '"')
				if end < 0 {
					return 0
				}
				escapes := i + end
				for escapes > i && text[escapes-1] == '\\' {
					escapes--
				}
				i += end
				if (i-escapes)%2 == 0 {
					break
				}
			}
		}
	}
	return 0
}

func skipSpace(text []byte) []byte {
	for len(text) > 0 && (text[0] == ' ' || text[0] == '\n' || text[0] == '\t' || text[0] == '\r') {
		text = text[1:]
	}
	return text
}

// splitJSON returns the events of a batch {"events":[...]} as parts of body, in order, between 1 and limit of them. One
// pass finds where each ends; that names are unique and strings are Unicode is left to the gate that every event goes
// through, so that a breach is that event's own.
func splitJSON(body []byte, limit int) ([][]byte, error) {
	dec := jsontext.NewDecoder(bytes.NewBuffer(body),
		jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if dec.PeekKind() != '{' {
		if _, err := dec.ReadValue(); err != nil {
			return nil, syntaxError(dec, err)
		}
		return nil, httpserver.ValidationFailed(`A batch is an object {"events":[...]}.`)
	}
	if _, err := dec.ReadToken(); err != nil {
		return nil, syntaxError(dec, err)
	}
	var events [][]byte
	seen := false
	for dec.PeekKind() == '"' {
		token, err := dec.ReadToken()
		if err != nil {
			return nil, syntaxError(dec, err)
		}
		name := token.String()
		switch {
		case name != "events":
			// The rest must still be JSON for this to be the thing to complain of.
			if err := finish(dec); err != nil {
				return nil, err
			}
			return nil, invalid(name, `is not a field of a batch, which has one: events`)
		case seen:
			if err := finish(dec); err != nil {
				return nil, err
			}
			return nil, invalid(name, "is there twice")
		}
		seen = true
		if events, err = splitArray(dec, body, limit); err != nil {
			return nil, err
		}
	}
	if err := finish(dec); err != nil {
		return nil, err
	}
	if len(events) == 0 {
		return nil, invalid("events", fmt.Sprintf("must hold 1 to %d events", limit))
	}
	return events, nil
}

func splitArray(dec *jsontext.Decoder, body []byte, limit int) ([][]byte, error) {
	if dec.PeekKind() != '[' {
		if _, err := dec.ReadValue(); err != nil {
			return nil, syntaxError(dec, err)
		}
		return nil, invalid("events", "must be an array of events")
	}
	if _, err := dec.ReadToken(); err != nil {
		return nil, syntaxError(dec, err)
	}
	events := make([][]byte, 0, min(limit, 1+len(body)/256))
	for dec.PeekKind() != ']' {
		value, err := dec.ReadValue()
		if err != nil {
			return nil, syntaxError(dec, err)
		}
		if len(events) == limit {
			return nil, invalid("events", fmt.Sprintf("must hold 1 to %d events", limit))
		}
		// The decoder's own slice is valid until its next read only.
		end := dec.InputOffset()
		events = append(events, body[end-int64(len(value)):end])
	}
	if _, err := dec.ReadToken(); err != nil {
		return nil, syntaxError(dec, err)
	}
	return events, nil
}

// finish reads to the end of the input, which must be the end of one JSON value.
func finish(dec *jsontext.Decoder) error {
	for {
		if _, err := dec.ReadToken(); err != nil {
			return syntaxError(dec, err)
		}
		if dec.StackDepth() > 0 {
			continue
		}
		_, err := dec.ReadToken()
		if errors.Is(err, io.EOF) {
			return nil
		}
		return syntaxError(dec, err)
	}
}

// splitLines returns the events of an NDJSON batch, one a line, as parts of body, between 1 and limit of them. Blank
// lines separate nothing and count for nothing; the last line needs no end.
func splitLines(body []byte, limit int) ([][]byte, error) {
	events := make([][]byte, 0, min(limit, 1+len(body)/256))
	for line := range bytes.Lines(body) {
		line = bytes.Trim(line, " \t\r\n")
		if len(line) == 0 {
			continue
		}
		if len(events) == limit {
			return nil, linesError(limit)
		}
		events = append(events, line)
	}
	if len(events) == 0 {
		return nil, linesError(limit)
	}
	return events, nil
}

func linesError(limit int) error {
	return httpserver.ValidationFailed(fmt.Sprintf("A batch holds 1 to %d events, one a line.", limit))
}

// syntaxError says where the batch stops being JSON, and quotes none of it.
func syntaxError(dec *jsontext.Decoder, err error) error {
	offset := dec.InputOffset()
	if e, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		offset = e.ByteOffset
	}
	return malformed(fmt.Sprintf("The batch is not valid JSON: see byte %d.", offset))
}
