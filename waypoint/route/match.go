package route

import (
	"regexp"
	"strings"

	"github.com/ambit-mesh/ambit/waypoint/codec"
)

// Kind is how a Text compares.
type Kind uint8

// Kinds of comparison.
const (
	Any      Kind = iota // the zero Text matches everything
	Exact                // the whole value
	Prefix               // its beginning
	Suffix               // its end
	Contains             // some part of it
	Regex                // the whole value, RE2
)

// Text is a compiled comparison of one string.
type Text struct {
	kind  Kind
	value string
	fold  bool
	re    *regexp.Regexp
}

// NewText compiles a comparison. fold ignores the case of ASCII letters and is
// not for Regex.
func NewText(kind Kind, value string, fold bool) (Text, error) {
	t := Text{kind: kind, value: value, fold: fold}
	if kind == Regex {
		re, err := regexp.Compile(`\A(?:` + value + `)\z`)
		if err != nil {
			return Text{}, err
		}
		t.re = re
	}
	if fold {
		t.value = strings.ToLower(value)
	}
	return t, nil
}

// Matches compares.
func (t *Text) Matches(s string) bool {
	switch t.kind {
	case Any:
		return true
	case Exact:
		if t.fold {
			return strings.EqualFold(s, t.value)
		}
		return s == t.value
	case Prefix:
		if t.fold {
			return len(s) >= len(t.value) && strings.EqualFold(s[:len(t.value)], t.value)
		}
		return strings.HasPrefix(s, t.value)
	case Suffix:
		if t.fold {
			return len(s) >= len(t.value) && strings.EqualFold(s[len(s)-len(t.value):], t.value)
		}
		return strings.HasSuffix(s, t.value)
	case Contains:
		if t.fold {
			s = strings.ToLower(s)
		}
		return strings.Contains(s, t.value)
	case Regex:
		return t.re.MatchString(s)
	}
	return false
}

// Path compares the path without its query.
type Path struct {
	Text Text
	// Segments makes a prefix match whole path segments only: /a matches /a and
	// /a/b, not /ab.
	Segments bool
}

func (p *Path) matches(path string) bool {
	if !p.Text.Matches(path) {
		return false
	}
	return !p.Segments || len(path) == len(p.Text.value) || path[len(p.Text.value)] == '/'
}

// Matched returns the part of a path that a rule matched, which rewrites
// replace: the prefix, or all of what was compared whole.
func (p *Path) Matched(path string) string {
	if p.Text.kind == Prefix {
		return path[:min(len(p.Text.value), len(path))]
	}
	return path
}

// FieldMatch compares a header field, or a pseudo-header by its HTTP/2 name.
// Several fields of one name are compared as one value, joined by commas.
type FieldMatch struct {
	Name    string // lower case
	Present bool   // asks only whether it is there
	Absent  bool   // asks only whether it is not there
	Text    Text
	Invert  bool
	// MissingIsEmpty compares an absent field as an empty one; otherwise an absent
	// field does not match, inverted or not.
	MissingIsEmpty bool
}

func (m *FieldMatch) matches(r *codec.Request) bool {
	value, ok := m.value(r)
	switch {
	case m.Present:
		return ok != m.Invert
	case m.Absent:
		return ok == m.Invert
	case !ok && !m.MissingIsEmpty:
		return false
	}
	return m.Text.Matches(value) != m.Invert
}

func (m *FieldMatch) value(r *codec.Request) (string, bool) {
	if m.Name[0] != ':' {
		if m.Name == "host" {
			return r.Authority, true
		}
		return codec.Join(r.Fields, m.Name)
	}
	switch m.Name {
	case ":method":
		return r.Method, true
	case ":authority":
		return r.Authority, true
	case ":path":
		return r.Path, true
	case ":scheme":
		return r.Scheme, true
	}
	return "", false
}

// QueryMatch compares the first value of a query parameter, as it was sent.
type QueryMatch struct {
	Name    string
	Present bool
	Text    Text
}

func (m *QueryMatch) matches(query string) bool {
	for query != "" {
		var pair string
		pair, query, _ = strings.Cut(query, "&")
		name, value, _ := strings.Cut(pair, "=")
		if name == m.Name {
			return m.Present || m.Text.Matches(value)
		}
	}
	return false
}
