package translate

import (
	"fmt"
	"regexp"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"golang.org/x/net/http/httpguts"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// routeFilters is what the filters of a rule or of a backend amount to.
type routeFilters struct {
	request  headerChanges
	response headerChanges
	redirect *routev3.RedirectAction
	rewrite  rewrite

	// refused: a filter cannot be applied and must not be passed over, so that
	// requests are answered with status 500.
	refused bool
}

// rewrite changes host and path of a request; at most one of the path's fields
// is set.
type rewrite struct {
	host   string
	path   string // the whole path
	prefix string
	regex  *matcherv3.RegexMatchAndSubstitute
}

func (r rewrite) apply(action *routev3.RouteAction) {
	if r.host != "" {
		action.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: r.host}
	}
	action.PathRewrite = r.path
	action.PrefixRewrite = r.prefix
	action.RegexRewrite = r.regex
}

// filters translates a list of filters. A nil match means those of a backend,
// where only the headers and the host can be changed.
func (c routeObject) filters(list []gatewayv1.HTTPRouteFilter, match *gatewayv1.HTTPRouteMatch, field string) routeFilters {
	var out routeFilters
	for i := range list {
		f := &list[i]
		filterField := at(field+".filters", i)
		switch {
		case f.Type == gatewayv1.HTTPRouteFilterRequestHeaderModifier && f.RequestHeaderModifier != nil:
			c.modify(&out.request, f.RequestHeaderModifier, filterField+".requestHeaderModifier")
		case f.Type == gatewayv1.HTTPRouteFilterResponseHeaderModifier && f.ResponseHeaderModifier != nil:
			c.modify(&out.response, f.ResponseHeaderModifier, filterField+".responseHeaderModifier")
		case f.Type == gatewayv1.HTTPRouteFilterRequestRedirect && f.RequestRedirect != nil && match != nil:
			redirect, err := c.redirectFilter(f.RequestRedirect, match)
			if err != nil {
				c.unsupported(filterField+".requestRedirect."+err.path, err.message+": requests are answered with status 500")
				out.refused = true
			}
			out.redirect = redirect
		case f.Type == gatewayv1.HTTPRouteFilterURLRewrite && f.URLRewrite != nil:
			c.rewriteFilter(&out, f.URLRewrite, match, filterField+".urlRewrite")
		case f.Type == gatewayv1.HTTPRouteFilterRequestMirror:
			c.unsupported(filterField, "mirroring is not supported yet")
		case f.Type == gatewayv1.HTTPRouteFilterCORS:
			c.unsupported(filterField, "answering CORS preflight requests is not supported yet")
		default:
			c.unsupported(filterField, fmt.Sprintf("filters of type %q are not supported here: requests are answered with status 500", f.Type))
			out.refused = true
		}
	}
	return out
}

// redirectFilter: without a port the location has that of its scheme, or else
// the port that the request came to (Gateway API, HTTPRequestRedirectFilter).
func (c routeObject) redirectFilter(f *gatewayv1.HTTPRequestRedirectFilter, match *gatewayv1.HTTPRouteMatch) (*routev3.RedirectAction, *fieldError) {
	status := 302
	if f.StatusCode != nil {
		status = *f.StatusCode
	}
	code, known := redirectCodes[status]
	if !known {
		return nil, &fieldError{path: "statusCode", message: fmt.Sprintf("status %d is not one of 301, 302, 303, 307, 308", status)}
	}
	out := &routev3.RedirectAction{ResponseCode: code, PortRedirect: c.port.Port}
	if f.Scheme != nil {
		out.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: *f.Scheme}
		out.PortRedirect = schemePort(*f.Scheme)
	}
	if f.Port != nil {
		out.PortRedirect = uint32(max(0, *f.Port))
	}
	if f.Hostname != nil {
		if !validHost(string(*f.Hostname)) {
			return nil, &fieldError{path: "hostname", message: "not a host name"}
		}
		out.HostRedirect = string(*f.Hostname)
	}
	path, err := pathModifier(f.Path, match)
	if err != nil {
		return nil, err.at("path")
	}
	switch {
	case path.path != "":
		out.PathRewriteSpecifier = &routev3.RedirectAction_PathRedirect{PathRedirect: path.path}
	case path.prefix != "":
		out.PathRewriteSpecifier = &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: path.prefix}
	case path.regex != nil:
		out.PathRewriteSpecifier = &routev3.RedirectAction_RegexRewrite{RegexRewrite: path.regex}
	}
	return out, nil
}

func (c routeObject) rewriteFilter(out *routeFilters, f *gatewayv1.HTTPURLRewriteFilter, match *gatewayv1.HTTPRouteMatch, field string) {
	if match == nil && f.Path != nil {
		c.unsupported(field+".path", "the path cannot be rewritten for a single backend: its share is answered with status 500")
		out.refused = true
		return
	}
	if f.Hostname != nil && !validHost(string(*f.Hostname)) {
		c.unsupported(field+".hostname", notRewritable)
		out.refused = true
		return
	}
	path, err := pathModifier(f.Path, match)
	if err != nil {
		c.unsupported(field+"."+err.at("path").path, err.message+": requests are answered with status 500")
		out.refused = true
		return
	}
	out.rewrite = path
	if f.Hostname != nil {
		out.rewrite.host = string(*f.Hostname)
	}
}

// pathModifier sets the fields of a rewrite that change the path.
func pathModifier(f *gatewayv1.HTTPPathModifier, match *gatewayv1.HTTPRouteMatch) (rewrite, *fieldError) {
	switch {
	case f == nil:
		return rewrite{}, nil
	case f.ReplaceFullPath != nil && !httpguts.ValidHeaderFieldValue(*f.ReplaceFullPath),
		f.ReplacePrefixMatch != nil && !httpguts.ValidHeaderFieldValue(*f.ReplacePrefixMatch):
		return rewrite{}, &fieldError{message: "the path has characters that no request can have"}
	case f.Type == gatewayv1.FullPathHTTPPathModifier && f.ReplaceFullPath != nil:
		return rewrite{path: "/" + strings.TrimLeft(*f.ReplaceFullPath, "/")}, nil
	case f.Type == gatewayv1.PrefixMatchHTTPPathModifier && f.ReplacePrefixMatch != nil:
		kind, value := pathOf(match.Path)
		if kind != gatewayv1.PathMatchPathPrefix {
			return rewrite{}, &fieldError{path: "replacePrefixMatch", message: "only the prefix of a path that was matched by prefix can be replaced"}
		}
		return replacePrefix(value, *f.ReplacePrefixMatch), nil
	}
	return rewrite{}, &fieldError{path: "type", message: fmt.Sprintf("path modifiers of type %q are not supported", f.Type)}
}

// replacePrefix keeps exactly one slash between the replacement and the rest of
// the path, whether or not either has one.
func replacePrefix(matched, replacement string) rewrite {
	matched, replacement = strings.TrimRight(matched, "/"), strings.TrimRight(replacement, "/")
	if matched != "" && replacement != "" {
		return rewrite{prefix: replacement}
	}
	// The slash after one of them is missing or doubled.
	return rewrite{regex: &matcherv3.RegexMatchAndSubstitute{
		Pattern:      &matcherv3.RegexMatcher{Regex: "^" + regexp.QuoteMeta(matched) + "/*"},
		Substitution: strings.ReplaceAll(replacement, `\`, `\\`) + "/",
	}}
}
