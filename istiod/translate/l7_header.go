package translate

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"golang.org/x/net/http/httpguts"
	networking "istio.io/api/networking/v1alpha3"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// headerChanges are changes to the header of a request or response. The values
// are Envoy's: a percent sign is written twice.
type headerChanges struct {
	add    []*corev3.HeaderValueOption
	remove []string
	host   string // replaces the authority; requests only
}

func (h *headerChanges) set(name, value string) {
	h.option(name, value, corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
}

func (h *headerChanges) append(name, value string) {
	h.option(name, value, corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD)
}

func (h *headerChanges) option(name, value string, action corev3.HeaderValueOption_HeaderAppendAction) {
	h.add = append(h.add, &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: strings.ToLower(name), Value: value},
		AppendAction: action,
	})
}

// requestHeaders translates set, add and remove of a VirtualService; to set the
// host is to rewrite the authority.
func (c vsCompiler) requestHeaders(ops *networking.Headers_HeaderOperations, field string) headerChanges {
	host := ""
	for _, name := range slices.Sorted(maps.Keys(ops.GetSet())) {
		if strings.EqualFold(name, ":authority") || strings.EqualFold(name, "host") {
			host = ops.Set[name]
		}
	}
	out := c.headerOperations(ops, field, host != "")
	out.host = host
	return out
}

func (c vsCompiler) responseHeaders(ops *networking.Headers_HeaderOperations, field string) headerChanges {
	return c.headerOperations(ops, field, false)
}

// headerOperations leaves out, and reports, what cannot be done.
func (c vsCompiler) headerOperations(ops *networking.Headers_HeaderOperations, field string, hostIsSet bool) headerChanges {
	var out headerChanges
	for _, name := range slices.Sorted(maps.Keys(ops.GetSet())) {
		if hostIsSet && (strings.EqualFold(name, ":authority") || strings.EqualFold(name, "host")) {
			continue
		}
		if problem := headerProblem(name, ops.Set[name]); problem != "" {
			c.unsupported(field+".set["+name+"]", problem)
			continue
		}
		out.set(name, ops.Set[name])
	}
	for _, name := range slices.Sorted(maps.Keys(ops.GetAdd())) {
		if problem := headerProblem(name, ops.Add[name]); problem != "" {
			c.unsupported(field+".add["+name+"]", problem)
			continue
		}
		out.append(name, ops.Add[name])
	}
	for i, name := range ops.GetRemove() {
		if problem := headerProblem(name, ""); problem != "" {
			c.unsupported(at(field+".remove", i), problem)
			continue
		}
		out.remove = append(out.remove, strings.ToLower(name))
	}
	return out
}

// modify adds the changes of a filter of an HTTPRoute, whose values are
// literal. It leaves out, and reports, what cannot be done.
func (c routeObject) modify(out *headerChanges, f *gatewayv1.HTTPHeaderFilter, field string) {
	change := func(list []gatewayv1.HTTPHeader, field string, apply func(name, value string)) {
		for i, header := range list {
			value := strings.ReplaceAll(header.Value, "%", "%%")
			if problem := headerProblem(string(header.Name), value); problem != "" {
				c.unsupported(at(field, i), problem)
				continue
			}
			apply(string(header.Name), value)
		}
	}
	change(f.Set, field+".set", out.set)
	change(f.Add, field+".add", out.append)
	for i, name := range f.Remove {
		if problem := headerProblem(name, ""); problem != "" {
			c.unsupported(at(field+".remove", i), problem)
			continue
		}
		out.remove = append(out.remove, strings.ToLower(name))
	}
}

// headerProblem says why a waypoint cannot change the header so, or nothing: it
// belongs to the connection, or the value has to be computed.
func headerProblem(name, value string) string {
	switch strings.ToLower(name) {
	case "host", "content-length", "transfer-encoding", "connection", "upgrade":
		return fmt.Sprintf("header %q belongs to the connection and cannot be changed", name)
	}
	switch {
	case strings.HasPrefix(name, ":"):
		return "pseudo-headers cannot be changed"
	case !httpguts.ValidHeaderFieldName(name):
		return fmt.Sprintf("%q is no name of a header", name)
	case !httpguts.ValidHeaderFieldValue(value):
		return "the value has characters that no header can have"
	case strings.Contains(strings.ReplaceAll(value, "%%", ""), "%"):
		return "values with %COMMANDS% are not supported yet (a literal percent sign is written twice)"
	}
	return ""
}
