package ingest

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/go-json-experiment/json/jsontext"

	"getimmutable.dev/immutable/internal/httpserver"
)

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
