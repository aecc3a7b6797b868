package config

import (
	"fmt"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/ambit-mesh/ambit/waypoint/codec"
	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

func compileMatch(m *routev3.RouteMatch, at string) (route.Match, error) {
	var out route.Match
	if err := only(m, at, "prefix", "path", "safe_regex", "path_separated_prefix", "case_sensitive", "headers", "query_parameters"); err != nil {
		return out, err
	}
	fold := m.GetCaseSensitive() != nil && !m.GetCaseSensitive().GetValue()
	var err error
	switch path := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		out.Path.Text, err = route.NewText(route.Prefix, path.Prefix, fold)
	case *routev3.RouteMatch_Path:
		out.Path.Text, err = route.NewText(route.Exact, path.Path, fold)
	case *routev3.RouteMatch_SafeRegex:
		out.Path.Text, err = compileRegex(path.SafeRegex, at+".safe_regex")
	case *routev3.RouteMatch_PathSeparatedPrefix:
		out.Path.Segments = true
		out.Path.Text, err = route.NewText(route.Prefix, strings.TrimSuffix(path.PathSeparatedPrefix, "/"), fold)
	default:
		err = fmt.Errorf("%s names no path", at)
	}
	if err != nil {
		return out, err
	}
	for i, h := range m.GetHeaders() {
		f, err := compileField(h, fmt.Sprintf("%s.headers[%d]", at, i))
		if err != nil {
			return out, err
		}
		out.Fields = append(out.Fields, f)
	}
	for i, q := range m.GetQueryParameters() {
		at := fmt.Sprintf("%s.query_parameters[%d]", at, i)
		if err := only(q, at, "name", "string_match", "present_match"); err != nil {
			return out, err
		}
		match := route.QueryMatch{Name: q.GetName(), Present: q.GetPresentMatch() || q.GetQueryParameterMatchSpecifier() == nil}
		if q.GetStringMatch() != nil {
			if match.Text, err = compileText(q.GetStringMatch(), at+".string_match"); err != nil {
				return out, err
			}
		} else if !match.Present {
			return out, fmt.Errorf("%s.present_match false is not supported", at)
		}
		out.Query = append(out.Query, match)
	}
	return out, nil
}

func compileField(m *routev3.HeaderMatcher, at string) (route.FieldMatch, error) {
	f := route.FieldMatch{
		Name: strings.ToLower(m.GetName()), Invert: m.GetInvertMatch(), MissingIsEmpty: m.GetTreatMissingHeaderAsEmpty(),
	}
	if f.Name == "" {
		return f, fmt.Errorf("%s.name is missing", at)
	}
	err := only(m, at, "name", "invert_match", "treat_missing_header_as_empty", "present_match", "string_match")
	if err != nil {
		return f, err
	}
	switch by := m.GetHeaderMatchSpecifier().(type) {
	case nil:
		f.Present = true
	case *routev3.HeaderMatcher_PresentMatch:
		f.Present, f.Absent = by.PresentMatch, !by.PresentMatch
	case *routev3.HeaderMatcher_StringMatch:
		f.Text, err = compileText(by.StringMatch, at+".string_match")
	}
	return f, err
}

func compileText(m *matcherv3.StringMatcher, at string) (route.Text, error) {
	if err := only(m, at, "exact", "prefix", "suffix", "contains", "safe_regex", "ignore_case"); err != nil {
		return route.Text{}, err
	}
	switch by := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		return route.NewText(route.Exact, by.Exact, m.GetIgnoreCase())
	case *matcherv3.StringMatcher_Prefix:
		return route.NewText(route.Prefix, by.Prefix, m.GetIgnoreCase())
	case *matcherv3.StringMatcher_Suffix:
		return route.NewText(route.Suffix, by.Suffix, m.GetIgnoreCase())
	case *matcherv3.StringMatcher_Contains:
		return route.NewText(route.Contains, by.Contains, m.GetIgnoreCase())
	case *matcherv3.StringMatcher_SafeRegex:
		return compileRegex(by.SafeRegex, at+".safe_regex")
	}
	return route.Text{}, fmt.Errorf("%s has no pattern", at)
}

func compileRegex(m *matcherv3.RegexMatcher, at string) (route.Text, error) {
	if err := only(m, at, "regex", "google_re2"); err != nil {
		return route.Text{}, err
	}
	text, err := route.NewText(route.Regex, m.GetRegex(), false)
	if err != nil {
		return text, fmt.Errorf("%s: %w", at, err)
	}
	return text, nil
}

func compileHeader(add []*corev3.HeaderValueOption, remove []string, at string) (filter.Header, error) {
	var h filter.Header
	for i, o := range add {
		at := fmt.Sprintf("%s_to_add[%d]", at, i)
		if err := only(o, at, "header", "append_action"); err != nil {
			return h, err
		}
		if err := only(o.GetHeader(), at+".header", "key", "value"); err != nil {
			return h, err
		}
		c := filter.Change{Name: strings.ToLower(o.GetHeader().GetKey())}
		if err := changeable(c.Name); err != nil {
			return h, fmt.Errorf("%s: %w", at, err)
		}
		var err error
		if c.Value, err = literal(o.GetHeader().GetValue()); err != nil {
			return h, fmt.Errorf("%s.header.value: %w", at, err)
		}
		switch o.GetAppendAction() {
		case corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD:
			c.Mode = filter.Append
		case corev3.HeaderValueOption_ADD_IF_ABSENT:
			c.Mode = filter.AddIfAbsent
		case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD:
			c.Mode = filter.Overwrite
		case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS:
			c.Mode = filter.Replace
		}
		h.Set = append(h.Set, c)
	}
	for i, name := range remove {
		name = strings.ToLower(name)
		if err := changeable(name); err != nil {
			return h, fmt.Errorf("%s_to_remove[%d]: %w", at, i, err)
		}
		h.Remove = append(h.Remove, name)
	}
	return h, nil
}

// changeable refuses names that are not ordinary fields here.
func changeable(name string) error {
	if !codec.ValidName(name) {
		return fmt.Errorf("header %q is not supported", name)
	}
	return nil
}
