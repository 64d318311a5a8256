package ledger

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// disclosed returns testBody without its old_value, and what is stored beside it.
func disclosed(t *testing.T) (body string, stored []byte, all []Disclosure) {
	t.Helper()
	fields, err := Fields(nil, []byte(testBody))
	if err != nil {
		t.Fatal(err)
	}
	all = Disclose([16]byte{7}, fields, []string{"/metadata/old_value"})
	if stored, err = EncodeDisclosure(all); err != nil {
		t.Fatal(err)
	}
	return strings.Replace(testBody, `,"old_value":"4711"`, "", 1), stored, all
}

func TestStoredDisclosure(t *testing.T) {
	body, text, all := disclosed(t)
	if strings.Contains(string(text), "usr_1") || strings.Contains(string(text), "4711") {
		t.Errorf("it holds a value: %s", text)
	}
	stored, err := ParseDisclosure(text)
	if err != nil {
		t.Fatal(err)
	}
	joined, err := JoinDisclosure(stored, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(all, joined); diff != "" {
		t.Errorf("joined (-want +got):\n%s", diff)
	}
	want, n, err := RecomputeBodyRoot([16]byte{7}, []byte(testBody))
	if err != nil {
		t.Fatal(err)
	}
	leaf := BundleLeaf{Disclosure: joined}
	if root, fields, err := leaf.bodyRoot(); err != nil || root != want || fields != n {
		t.Errorf("body root %x over %d fields (%v), want %x over %d", root, fields, err, want, n)
	}
}

func TestDisclosureOfAnotherBody(t *testing.T) {
	body, text, _ := disclosed(t)
	stored, err := ParseDisclosure(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, body string
		want       error
		also       string
	}{
		{"an erased field is back", testBody, ErrDisclosure, `"/metadata/old_value", which was erased`},
		{"a field is missing", strings.Replace(body, `,"actor_id":"usr_1"`, "", 1), ErrDisclosure, `lacks "/actor_id"`},
		{"all fields from one on are missing", `{"action":"config.updated"}`, ErrDisclosure, `lacks "/actor_id"`},
		{"a field more in between", strings.Replace(body, `"metadata"`, `"actor_name":"x","metadata"`, 1), ErrDisclosure, `another field before it`},
		{"a field more at the end", strings.Replace(body, `Z"}`, `Z","version":1}`, 1), ErrDisclosure, `"/version", which it does not know`},
		{"not canonical", body + " ", ErrNotCanonical, "byte"},
		{"empty", "", ErrNotCanonical, "byte"},
	} {
		if _, err := JoinDisclosure(stored, []byte(tc.body)); !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.also) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func TestDisclosureThatIsNone(t *testing.T) {
	_, text, _ := disclosed(t)
	stored := string(text)
	for name, text := range map[string]string{
		"empty":          "",
		"no array":       `{}`,
		"white space":    stored + "\n",
		"cut off":        stored[:len(stored)-1],
		"upper case":     strings.Replace(stored, `"salt":"`, `"salt":"A`, 1),
		"unknown member": strings.Replace(stored, `"path"`, `"at":1,"path"`, 1),
		"with a value":   strings.Replace(stored, `"salt"`, `"value":"1","salt"`, 1),
		"neither":        `[{"path":"/a"}]`,
		"both": `[{"path":"/a","salt":"00000000000000000000000000000000","commitment":` +
			`"0000000000000000000000000000000000000000000000000000000000000000"}]`,
		"out of order": `[{"path":"/b","salt":"00000000000000000000000000000000"},{"path":"/a","salt":"00000000000000000000000000000000"}]`,
	} {
		if got, err := ParseDisclosure([]byte(text)); !errors.Is(err, ErrDisclosure) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func FuzzParseDisclosure(f *testing.F) {
	f.Add([]byte(`[{"path":"/a","salt":"00000000000000000000000000000000"}]`), []byte(`{"a":1}`))
	f.Add([]byte(`[]`), []byte(`{}`))
	f.Fuzz(func(t *testing.T, text, body []byte) {
		stored, err := ParseDisclosure(text)
		if err != nil {
			return
		}
		if again, err := EncodeDisclosure(stored); err != nil || string(again) != string(text) {
			t.Errorf("%q is encoded as %q: %v", text, again, err)
		}
		all, err := JoinDisclosure(stored, body)
		if err != nil {
			return
		}
		fields, err := Fields(nil, body)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range all {
			if d.Value == nil {
				continue
			}
			if string(fields[0].Path) != d.Path || string(fields[0].Value) != *d.Value {
				t.Errorf("%s is %s, the body has %s of %s", d.Path, *d.Value, fields[0].Path, fields[0].Value)
			}
			fields = fields[1:]
		}
		if len(fields) > 0 {
			t.Errorf("fields left: %s", fields[0].Path)
		}
	})
}
