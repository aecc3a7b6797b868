package config

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/ambit-mesh/ambit/waypoint/codec"
	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

func compileRoutes(m *routev3.RouteConfiguration) (*route.Table, error) {
	if err := only(m, "", "name", "virtual_hosts", "validate_clusters"); err != nil {
		return nil, err
	}
	if len(m.GetVirtualHosts()) != 1 {
		return nil, fmt.Errorf("virtual_hosts: %d are not supported, want 1", len(m.GetVirtualHosts()))
	}
	host := m.GetVirtualHosts()[0]
	if err := only(host, "virtual_hosts[0]", "name", "domains", "routes"); err != nil {
		return nil, err
	}
	if !slices.Equal(host.GetDomains(), []string{"*"}) {
		return nil, fmt.Errorf("virtual_hosts[0].domains %q are not supported, want *", host.GetDomains())
	}
	table := &route.Table{Name: m.GetName()}
	for i, r := range host.GetRoutes() {
		rule, err := compileRoute(r, fmt.Sprintf("virtual_hosts[0].routes[%d]", i))
		if err != nil {
			return nil, err
		}
		table.Rules = append(table.Rules, rule)
	}
	return table, nil
}

func compileRoute(m *routev3.Route, at string) (*route.Rule, error) {
	err := only(m, at, "name", "match", "route", "redirect", "direct_response", "metadata", "stat_prefix",
		"request_headers_to_add", "request_headers_to_remove", "response_headers_to_add", "response_headers_to_remove")
	if err != nil {
		return nil, err
	}
	rule := &route.Rule{Name: m.GetName()}
	if rule.Match, err = compileMatch(m.GetMatch(), at+".match"); err != nil {
		return nil, err
	}
	if rule.Request, err = compileHeader(m.GetRequestHeadersToAdd(), m.GetRequestHeadersToRemove(), at+".request_headers"); err != nil {
		return nil, err
	}
	if rule.Response, err = compileHeader(m.GetResponseHeadersToAdd(), m.GetResponseHeadersToRemove(), at+".response_headers"); err != nil {
		return nil, err
	}
	switch action := m.GetAction().(type) {
	case *routev3.Route_Route:
		err = compileAction(rule, action.Route, at+".route")
	case *routev3.Route_Redirect:
		rule.Redirect, err = compileRedirect(action.Redirect, at+".redirect")
	case *routev3.Route_DirectResponse:
		rule.Direct, err = compileDirect(action.DirectResponse, at+".direct_response")
	default:
		err = fmt.Errorf("%s has no action", at)
	}
	return rule, err
}

func compileAction(rule *route.Rule, m *routev3.RouteAction, at string) error {
	if err := only(m, at, "cluster", "weighted_clusters", "timeout", "retry_policy", "cluster_not_found_response_code",
		"host_rewrite_literal", "path_rewrite", "prefix_rewrite", "regex_rewrite"); err != nil {
		return err
	}
	// Istio's meaning, not Envoy's default of 15 s: istiod always says.
	rule.Timeout = m.GetTimeout().AsDuration()
	var err error
	if rule.Retry, err = compileRetry(m.GetRetryPolicy(), at+".retry_policy"); err != nil {
		return err
	}
	switch m.GetClusterNotFoundResponseCode() {
	case routev3.RouteAction_SERVICE_UNAVAILABLE:
	case routev3.RouteAction_NOT_FOUND:
		rule.Missing = 404
	case routev3.RouteAction_INTERNAL_SERVER_ERROR:
		rule.Missing = 500
	}
	rule.Rewrite.Host = m.GetHostRewriteLiteral()
	if err := written(codec.ValidHost, at+".host_rewrite_literal", rule.Rewrite.Host); err != nil {
		return err
	}
	if rule.Rewrite.Path, err = compileRewrite(m.GetPathRewrite(), m.GetPrefixRewrite(), m.GetRegexRewrite(), at); err != nil {
		return err
	}
	if name := m.GetCluster(); name != "" {
		rule.Targets = route.NewTargets(route.Target{Cluster: name, Weight: 1})
		return nil
	}
	rule.Turn = route.NewSequence(rand.Uint64())
	rule.Targets, err = compileWeighted(m.GetWeightedClusters(), at)
	return err
}

func compileWeighted(m *routev3.WeightedCluster, at string) (*route.Targets, error) {
	if m == nil {
		return nil, fmt.Errorf("%s names no cluster", at)
	}
	at += ".weighted_clusters"
	if err := only(m, at, "clusters"); err != nil {
		return nil, err
	}
	var list []route.Target
	var total uint64
	for i, c := range m.GetClusters() {
		at := fmt.Sprintf("%s.clusters[%d]", at, i)
		err := only(c, at, "name", "weight", "host_rewrite_literal", "request_headers_to_add", "request_headers_to_remove",
			"response_headers_to_add", "response_headers_to_remove")
		if err != nil {
			return nil, err
		}
		target := route.Target{Cluster: c.GetName(), Weight: c.GetWeight().GetValue(), Host: c.GetHostRewriteLiteral()}
		if err := written(codec.ValidHost, at+".host_rewrite_literal", target.Host); err != nil {
			return nil, err
		}
		if target.Request, err = compileHeader(c.GetRequestHeadersToAdd(), c.GetRequestHeadersToRemove(), at+".request_headers"); err != nil {
			return nil, err
		}
		if target.Response, err = compileHeader(c.GetResponseHeadersToAdd(), c.GetResponseHeadersToRemove(), at+".response_headers"); err != nil {
			return nil, err
		}
		total += uint64(target.Weight)
		list = append(list, target)
	}
	if total == 0 {
		return nil, fmt.Errorf("%s: no cluster with a weight", at)
	}
	return route.NewTargets(list...), nil
}

func compileRetry(m *routev3.RetryPolicy, at string) (route.Retry, error) {
	var r route.Retry
	if m == nil {
		return r, nil
	}
	if err := only(m, at, "retry_on", "num_retries", "per_try_timeout", "retriable_status_codes", "retry_back_off",
		"retry_host_predicate", "host_selection_retry_max_attempts"); err != nil {
		return r, err
	}
	if err := r.ParseRetryOn(m.GetRetryOn()); err != nil {
		return r, fmt.Errorf("%s: %w", at, err)
	}
	r.Attempts = 1
	if n := m.GetNumRetries(); n != nil {
		r.Attempts = int(min(n.GetValue(), 100))
	}
	r.PerTry = m.GetPerTryTimeout().AsDuration()
	for _, code := range m.GetRetriableStatusCodes() {
		r.Statuses = append(r.Statuses, int(code))
	}
	r.Base = m.GetRetryBackOff().GetBaseInterval().AsDuration()
	r.Most = m.GetRetryBackOff().GetMaxInterval().AsDuration()
	for i, p := range m.GetRetryHostPredicate() {
		// Another endpoint is taken anyway when there is one.
		if p.GetName() != "envoy.retry_host_predicates.previous_hosts" {
			return r, fmt.Errorf("%s.retry_host_predicate[%d]: %s is not supported", at, i, p.GetName())
		}
	}
	return r, nil
}

func compileRedirect(m *routev3.RedirectAction, at string) (*filter.Redirect, error) {
	if err := only(m, at, "https_redirect", "scheme_redirect", "host_redirect", "port_redirect", "path_redirect",
		"prefix_rewrite", "regex_rewrite", "response_code", "strip_query"); err != nil {
		return nil, err
	}
	codes := map[routev3.RedirectAction_RedirectResponseCode]int{
		routev3.RedirectAction_MOVED_PERMANENTLY: 301, routev3.RedirectAction_FOUND: 302, routev3.RedirectAction_SEE_OTHER: 303,
		routev3.RedirectAction_TEMPORARY_REDIRECT: 307, routev3.RedirectAction_PERMANENT_REDIRECT: 308,
	}
	d := &filter.Redirect{
		Status: codes[m.GetResponseCode()], Scheme: m.GetSchemeRedirect(), Host: m.GetHostRedirect(), Port: m.GetPortRedirect(),
		Path: m.GetPathRedirect(), StripQuery: m.GetStripQuery(),
	}
	err := errors.Join(written(codec.ValidHost, at+".host_redirect", d.Host),
		written(codec.ValidHost, at+".scheme_redirect", d.Scheme), written(codec.ValidTarget, at+".path_redirect", d.Path))
	if err != nil {
		return nil, err
	}
	if d.Rewrite, err = compileRewrite("", m.GetPrefixRewrite(), m.GetRegexRewrite(), at); err != nil {
		return nil, err
	}
	if m.GetHttpsRedirect() {
		d.Scheme = "https"
	}
	if d.Status == 0 {
		return nil, fmt.Errorf("%s.response_code is not known", at)
	}
	return d, nil
}

func compileDirect(m *routev3.DirectResponseAction, at string) (*route.Direct, error) {
	if err := only(m, at, "status", "body"); err != nil {
		return nil, err
	}
	if m.GetStatus() < 200 || m.GetStatus() > 599 {
		return nil, fmt.Errorf("%s.status %d is not a final status", at, m.GetStatus())
	}
	d := &route.Direct{Status: int(m.GetStatus())}
	if m.GetBody() != nil {
		if err := only(m.GetBody(), at+".body", "inline_string", "inline_bytes"); err != nil {
			return nil, err
		}
		d.Body = m.GetBody().GetInlineString() + string(m.GetBody().GetInlineBytes())
	}
	return d, nil
}

// compileRewrite returns nil when no part is set.
func compileRewrite(whole, prefix string, re *matcherv3.RegexMatchAndSubstitute, at string) (*filter.PathRewrite, error) {
	if err := errors.Join(written(codec.ValidTarget, at+".path_rewrite", whole), written(codec.ValidTarget, at+".prefix_rewrite", prefix),
		written(codec.ValidTarget, at+".regex_rewrite.substitution", re.GetSubstitution())); err != nil {
		return nil, err
	}
	at += ".regex_rewrite"
	if re == nil {
		if whole == "" && prefix == "" {
			return nil, nil
		}
		return &filter.PathRewrite{Whole: whole, Prefix: prefix}, nil
	}
	if err := only(re, at, "pattern", "substitution"); err != nil {
		return nil, err
	}
	if err := only(re.GetPattern(), at+".pattern", "regex", "google_re2"); err != nil {
		return nil, err
	}
	out, err := filter.NewRegexRewrite(re.GetPattern().GetRegex(), re.GetSubstitution())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	return out, nil
}

// literal resolves the doubled percent signs of a header value. Values that
// Envoy would compute are refused.
func literal(value string) (string, error) {
	if strings.Contains(strings.ReplaceAll(value, "%%", ""), "%") {
		return "", errors.New("values with %COMMANDS% are not supported")
	}
	if !codec.ValidValue(value) {
		return "", errors.New("has a control character")
	}
	return strings.ReplaceAll(value, "%%", "%"), nil
}

// written refuses a text that would break out of the place in a head to which
// it is written.
func written(valid func(string) bool, at, text string) error {
	if !valid(text) {
		return fmt.Errorf("%s: %q has a character that it must not have", at, text)
	}
	return nil
}
