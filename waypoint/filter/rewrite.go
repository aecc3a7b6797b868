package filter

import (
	"regexp"
	"strings"

	"github.com/ambit-mesh/ambit/waypoint/codec"
)

// Rewrite changes the authority and the path of a request before it is sent
// on. At most one of the ways to change the path is set.
type Rewrite struct {
	Host string
	Path *PathRewrite
}

// PathRewrite changes a path; the query stays.
type PathRewrite struct {
	Whole  string         // replaces the path
	Prefix string         // replaces what the rule matched
	Regex  *regexp.Regexp // each match is replaced by With
	With   string         // in the syntax of regexp.Expand
}

// NewRegexRewrite compiles a pattern and its substitution, in which \1 stands
// for a group and \\ for a backslash.
func NewRegexRewrite(pattern, substitution string) (*PathRewrite, error) {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return nil, err
	}
	var with strings.Builder
	for i := 0; i < len(substitution); i++ {
		c := substitution[i]
		switch {
		case c == '$':
			with.WriteString("$$")
		case c == '\\' && i+1 < len(substitution) && substitution[i+1] >= '0' && substitution[i+1] <= '9':
			i++
			with.WriteString("${" + substitution[i:i+1] + "}")
		case c == '\\' && i+1 < len(substitution):
			i++
			with.WriteByte(substitution[i])
		default:
			with.WriteByte(c)
		}
	}
	return &PathRewrite{Regex: re, With: with.String()}, nil
}

// Apply changes a request. matched is the part of the path that the rule
// matched.
func (w *Rewrite) Apply(r *codec.Request, matched string) {
	if w.Host != "" {
		r.Authority = w.Host
	}
	if w.Path == nil || r.Path == "*" {
		return
	}
	path := w.Path.apply(r.PathOnly(), matched)
	if i := strings.IndexByte(r.Path, '?'); i >= 0 {
		path += r.Path[i:]
	}
	r.Path = path
}

func (p *PathRewrite) apply(path, matched string) string {
	switch {
	case p.Regex != nil:
		path = p.Regex.ReplaceAllString(path, p.With)
	case p.Whole != "":
		path = p.Whole
	default:
		path = p.Prefix + path[min(len(matched), len(path)):]
	}
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	return path
}
