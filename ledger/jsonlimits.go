package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/go-json-experiment/json/jsontext"
)

// ErrJSONLimit is wrapped by the errors of JSON that would take far more memory than its text has.
var ErrJSONLimit = errors.New("too much JSON")

// LimitJSON goes over JSON from elsewhere before it is decoded: no array may have more than elements, no object more than elements members, and
// the whole no more than values, where the name of a member, each end of an array and each of an object is one too. Three bytes of text can else
// become a leaf, and six the name of a member that is kept for a comparison. It keeps nothing; its errors wrap ErrJSONLimit, or are those of
// the syntax.
func LimitJSON(text []byte, elements, values int) error {
	d := jsontext.NewDecoder(bytes.NewBuffer(text), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	for n := 1; ; n++ {
		_, err := d.ReadToken()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if n > values {
			return fmt.Errorf("%w: more than %d values", ErrJSONLimit, values)
		}
		depth := d.StackDepth()
		kind, length := d.StackIndex(depth)
		if kind == jsontext.KindBeginObject {
			length /= 2
		}
		if depth > 0 && length > int64(elements) {
			return fmt.Errorf("%w: %.200q has more than %d elements", ErrJSONLimit, d.StackPointer().Parent(), elements)
		}
	}
}
