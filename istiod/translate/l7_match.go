package translate

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"
)

// maxRegex is the longest expression that is taken, spec/control-plane.md §5.1.
const maxRegex = 1024

// anyRequest matches every request.
func anyRequest() *routev3.RouteMatch {
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
}

// match translates one entry of a VirtualService's match list. The error says
// what cannot be matched: such an entry is left out whole, because matching
// without the condition would catch requests that are not meant.
func match(m *networking.HTTPMatchRequest) (*routev3.RouteMatch, *fieldError) {
	out := anyRequest()
	if err := matchURI(out, m); err != nil {
		return nil, err
	}
	for _, pseudo := range []struct {
		field, header string
		value         *networking.StringMatch
	}{{"scheme", ":scheme", m.Scheme}, {"method", ":method", m.Method}, {"authority", ":authority", m.Authority}} {
		if pseudo.value == nil {
			continue
		}
		header, err := matchHeader(pseudo.header, pseudo.value)
		if err != nil {
			return nil, err.at(pseudo.field)
		}
		out.Headers = append(out.Headers, header)
	}
	for _, name := range slices.Sorted(maps.Keys(m.Headers)) {
		header, err := matchHeader(name, m.Headers[name])
		if err != nil {
			return nil, err.at("headers[" + name + "]")
		}
		out.Headers = append(out.Headers, header)
	}
	for _, name := range slices.Sorted(maps.Keys(m.WithoutHeaders)) {
		header, err := matchHeader(name, m.WithoutHeaders[name])
		if err != nil {
			return nil, err.at("withoutHeaders[" + name + "]")
		}
		header.InvertMatch = true
		// An absent header counts as the empty string, which the value may
		// exclude or not, spec/control-plane.md §5.1.
		header.TreatMissingHeaderAsEmpty = header.GetStringMatch() != nil
		out.Headers = append(out.Headers, header)
	}
	for _, name := range slices.Sorted(maps.Keys(m.QueryParams)) {
		parameter, err := matchQuery(name, m.QueryParams[name])
		if err != nil {
			return nil, err.at("queryParams[" + name + "]")
		}
		out.QueryParameters = append(out.QueryParameters, parameter)
	}
	return out, nil
}

func matchURI(out *routev3.RouteMatch, m *networking.HTTPMatchRequest) *fieldError {
	switch uri := m.Uri.GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		out.PathSpecifier = &routev3.RouteMatch_Path{Path: uri.Exact}
	case *networking.StringMatch_Prefix:
		out.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: uri.Prefix}
	case *networking.StringMatch_Regex:
		expression, err := regex(uri.Regex)
		if err != nil {
			return err.at("uri")
		}
		out.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: expression}
		return nil
	}
	if m.IgnoreUriCase {
		out.CaseSensitive = wrapperspb.Bool(false)
	}
	return nil
}

// matchHeader treats a nil or empty value, and the expression "*", as presence.
func matchHeader(name string, value *networking.StringMatch) (*routev3.HeaderMatcher, *fieldError) {
	if strings.HasPrefix(name, "@") {
		return nil, &fieldError{message: "matching on claims of a token is not supported yet"}
	}
	if name == "" {
		return nil, &fieldError{message: "the name is empty"}
	}
	out := &routev3.HeaderMatcher{Name: strings.ToLower(name)}
	text, err := stringMatch(value)
	if err != nil {
		return nil, err
	}
	if text == nil {
		out.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}
	} else {
		out.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: text}
	}
	return out, nil
}

func matchQuery(name string, value *networking.StringMatch) (*routev3.QueryParameterMatcher, *fieldError) {
	out := &routev3.QueryParameterMatcher{Name: name}
	text, err := stringMatch(value)
	if err != nil {
		return nil, err
	}
	if text == nil {
		out.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_PresentMatch{PresentMatch: true}
	} else {
		out.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_StringMatch{StringMatch: text}
	}
	return out, nil
}

// stringMatch returns nil when any value will do.
func stringMatch(value *networking.StringMatch) (*matcherv3.StringMatcher, *fieldError) {
	switch v := value.GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		return exactly(v.Exact), nil
	case *networking.StringMatch_Prefix:
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: v.Prefix}}, nil
	case *networking.StringMatch_Regex:
		if v.Regex == "*" {
			return nil, nil
		}
		expression, err := regex(v.Regex)
		if err != nil {
			return nil, err
		}
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: expression}}, nil
	}
	return nil, nil
}

func exactly(text string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: text}}
}

// regex checks the expression here: one that the waypoint cannot compile would
// make it refuse the routes of every object of this service.
func regex(expression string) (*matcherv3.RegexMatcher, *fieldError) {
	if len(expression) > maxRegex {
		return nil, &fieldError{message: fmt.Sprintf("regular expression is longer than %d characters", maxRegex)}
	}
	// The waypoint matches the whole value. An expression is to be complete by
	// itself and to stay so inside a group.
	for _, text := range []string{expression, `\A(?:` + expression + `)\z`} {
		if _, err := regexp.Compile(text); err != nil {
			return nil, &fieldError{message: err.Error()}
		}
	}
	return &matcherv3.RegexMatcher{Regex: expression}, nil
}

// fieldError is what is wrong with a field; its path is relative to whoever
// returns it.
type fieldError struct{ path, message string }

// at puts the parent's field before the path.
func (e *fieldError) at(parent string) *fieldError {
	switch {
	case e.path == "":
		e.path = parent
	case strings.HasPrefix(e.path, "["):
		e.path = parent + e.path
	default:
		e.path = parent + "." + e.path
	}
	return e
}
