package translate

import (
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// rankMatch translates a match of an HTTPRoute and says how specific it is.
func rankMatch(m *gatewayv1.HTTPRouteMatch) (rankedRoute, *fieldError) {
	match := anyRequest()
	out := rankedRoute{route: &routev3.Route{Match: match}, kind: pathPrefix, length: 1, method: m.Method != nil}
	if err := rankPath(&out, m.Path); err != nil {
		return rankedRoute{}, err.at("path.value")
	}
	if m.Method != nil {
		match.Headers = append(match.Headers, stringHeader(":method", exactly(string(*m.Method))))
	}
	// Only the first entry of a name counts (Gateway API, HTTPRouteMatch).
	seen := map[string]bool{}
	for i := range m.Headers {
		name := strings.ToLower(string(m.Headers[i].Name))
		if seen[name] {
			continue
		}
		seen[name] = true
		isRegex := m.Headers[i].Type != nil && *m.Headers[i].Type == gatewayv1.HeaderMatchRegularExpression
		value, err := exactOrRegex(m.Headers[i].Value, isRegex)
		if err != nil {
			return rankedRoute{}, err.at(at("headers", i) + ".value")
		}
		match.Headers = append(match.Headers, stringHeader(name, value))
	}
	out.headers = len(seen)
	seen = map[string]bool{}
	for i := range m.QueryParams {
		name := string(m.QueryParams[i].Name)
		if seen[name] {
			continue
		}
		seen[name] = true
		isRegex := m.QueryParams[i].Type != nil && *m.QueryParams[i].Type == gatewayv1.QueryParamMatchRegularExpression
		value, err := exactOrRegex(m.QueryParams[i].Value, isRegex)
		if err != nil {
			return rankedRoute{}, err.at(at("queryParams", i) + ".value")
		}
		match.QueryParameters = append(match.QueryParameters, &routev3.QueryParameterMatcher{
			Name:                         name,
			QueryParameterMatchSpecifier: &routev3.QueryParameterMatcher_StringMatch{StringMatch: value},
		})
	}
	out.queries = len(seen)
	return out, nil
}

// rankPath: a prefix ends at a slash, /foo matches /foo and /foo/bar but not
// /foobar.
func rankPath(out *rankedRoute, path *gatewayv1.HTTPPathMatch) *fieldError {
	kind, value := pathOf(path)
	match := out.route.Match
	switch kind {
	case gatewayv1.PathMatchExact:
		out.kind, out.length = pathExact, 0
		match.PathSpecifier = &routev3.RouteMatch_Path{Path: value}
	case gatewayv1.PathMatchRegularExpression:
		expression, err := regex(value)
		if err != nil {
			return err
		}
		out.kind, out.length = pathRegex, 0
		match.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: expression}
	case gatewayv1.PathMatchPathPrefix:
		prefix := strings.TrimRight(value, "/")
		out.length = len(prefix)
		switch {
		case strings.ContainsAny(prefix, "?#"):
			return &fieldError{message: "a path contains neither ? nor #"}
		case prefix != "":
			match.PathSpecifier = &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: prefix}
		}
	default:
		return &fieldError{message: "path matches of type " + string(kind) + " are not supported"}
	}
	return nil
}

func pathOf(path *gatewayv1.HTTPPathMatch) (gatewayv1.PathMatchType, string) {
	kind, value := gatewayv1.PathMatchPathPrefix, "/"
	if path != nil && path.Type != nil {
		kind = *path.Type
	}
	if path != nil && path.Value != nil {
		value = *path.Value
	}
	return kind, value
}

func stringHeader(name string, value *matcherv3.StringMatcher) *routev3.HeaderMatcher {
	return &routev3.HeaderMatcher{
		Name:                 name,
		HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: value},
	}
}

func exactOrRegex(value string, isRegex bool) (*matcherv3.StringMatcher, *fieldError) {
	if !isRegex {
		return exactly(value), nil
	}
	expression, err := regex(value)
	if err != nil {
		return nil, err
	}
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: expression}}, nil
}
