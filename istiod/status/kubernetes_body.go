package status

import (
	"maps"
	"reflect"
	"slices"
	"strconv"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/json"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// ourTypes are the conditions that nobody but us writes. Those of Gateways and
// GatewayClasses have the same types whoever writes them.
var ourTypes = []string{
	ConditionWaypointBound, ConditionZtunnelAccepted, ConditionWaypointAccepted, ConditionReconciled, model.ConditionFieldsHonoured,
}

func ourType(c metav1.Condition) bool { return slices.Contains(ourTypes, c.Type) }

func ourParent(p gatewayv1.RouteParentStatus) bool {
	return p.ControllerName == mesh.GatewayControllerName
}

// saysOurs reports whether there is something in b that only we say.
func (b body) saysOurs() bool {
	return slices.ContainsFunc(b.Conditions, ourType) || slices.ContainsFunc(b.Parents, ourParent)
}

// satisfies reports whether b says what is wanted, and nothing else that only we
// say. It cannot tell for a Gateway of which nothing is wanted.
func (b body) satisfies(w Wanted) bool {
	want := w.merge()
	if w.empty() && len(b.Conditions) > 0 && !b.saysOurs() && b.gateway {
		return false
	}
	extra := func(c metav1.Condition) bool {
		return ourType(c) && meta.FindStatusCondition(want.Conditions, c.Type) == nil
	}
	unwanted := func(p gatewayv1.RouteParentStatus) bool {
		return ourParent(p) && !slices.ContainsFunc(want.Parents, func(o gatewayv1.RouteParentStatus) bool { return sameParent(p, o) })
	}
	return b.contains(want) && len(b.Listeners) == len(want.Listeners) && len(b.Addresses) == len(want.Addresses) &&
		len(b.SupportedFeatures) == len(want.SupportedFeatures) &&
		!slices.ContainsFunc(b.Conditions, extra) && !slices.ContainsFunc(b.Parents, unwanted)
}

// contains reports whether b says all that want does, at whatever time.
func (b body) contains(want body) bool {
	if !hasConditions(b.Conditions, want.Conditions) {
		return false
	}
	for _, p := range want.Parents {
		i := slices.IndexFunc(b.Parents, func(o gatewayv1.RouteParentStatus) bool { return sameParent(p, o) })
		if i < 0 || len(b.Parents[i].Conditions) != len(p.Conditions) || !hasConditions(b.Parents[i].Conditions, p.Conditions) {
			return false
		}
	}
	for _, l := range want.Listeners {
		i := slices.IndexFunc(b.Listeners, func(o gatewayv1.ListenerStatus) bool { return o.Name == l.Name })
		if i < 0 || b.Listeners[i].AttachedRoutes != l.AttachedRoutes || !hasConditions(b.Listeners[i].Conditions, l.Conditions) ||
			!sameJSON(b.Listeners[i].SupportedKinds, l.SupportedKinds) {
			return false
		}
	}
	if len(want.Addresses) > 0 && !sameJSON(b.Addresses, want.Addresses) {
		return false
	}
	return !slices.ContainsFunc(want.SupportedFeatures, func(f gatewayv1.SupportedFeature) bool { return !slices.Contains(b.SupportedFeatures, f) })
}

func hasConditions(list, want []metav1.Condition) bool {
	return !slices.ContainsFunc(want, func(c metav1.Condition) bool {
		b := meta.FindStatusCondition(list, c.Type)
		return b == nil || b.Status != c.Status || b.Reason != c.Reason || b.Message != c.Message || b.ObservedGeneration != c.ObservedGeneration
	})
}

func sameParent(a, b gatewayv1.RouteParentStatus) bool {
	return a.ControllerName == b.ControllerName && sameJSON(a.ParentRef, b.ParentRef)
}

func sameJSON(a, b any) bool { return text(a) == text(b) }

// newerThan reports whether one of the conditions in b that are wanted otherwise
// was written for a later version of the object: then want is out of date.
func (b body) newerThan(want body) bool {
	later := func(list, want []metav1.Condition) bool {
		return slices.ContainsFunc(want, func(c metav1.Condition) bool {
			there := meta.FindStatusCondition(list, c.Type)
			return there != nil && there.ObservedGeneration > c.ObservedGeneration && c.ObservedGeneration > 0
		})
	}
	if later(b.Conditions, want.Conditions) {
		return true
	}
	for _, p := range want.Parents {
		for _, o := range b.Parents {
			if sameParent(p, o) && later(o.Conditions, p.Conditions) {
				return true
			}
		}
	}
	return false
}

// apart returns what each writer says by itself, without the conditions that
// another one, first by name, says already.
func (w Wanted) apart() map[string]body {
	out := map[string]body{}
	said := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(w.Writers)) {
		own := Wanted{Writers: map[string]Status{name: w.Writers[name]}}.merge()
		own.Conditions = slices.DeleteFunc(own.Conditions, func(c metav1.Condition) bool { return said[c.Type] })
		for _, c := range own.Conditions {
			said[c.Type] = true
		}
		out[name] = own
	}
	return out
}

// into puts our part into the status of live. It reports whether that changes
// anything.
func (b body) into(live *unstructured.Unstructured, how shape, now metav1.Time) (changed bool, err error) {
	status, _, err := unstructured.NestedMap(live.Object, "status")
	if err != nil {
		return false, err
	}
	if status == nil {
		status = map[string]any{}
	}
	field, ours := "conditions", func(part map[string]any) (string, bool) {
		name, _ := part["type"].(string)
		return name, slices.Contains(ourTypes, name)
	}
	if how == parents {
		field, ours = "parents", func(part map[string]any) (string, bool) {
			return text(part["parentRef"]), part["controllerName"] == mesh.GatewayControllerName
		}
	}
	b.keepTimes(decode(live), now)
	wanted, err := b.unstructured()
	if err != nil {
		return false, err
	}
	before, _ := status[field].([]any)
	want, _ := wanted[field].([]any)
	after := replaceOurs(before, want, ours)
	if reflect.DeepEqual(before, after) || len(before)+len(after) == 0 {
		return false, nil
	}
	status[field] = after
	return true, unstructured.SetNestedMap(live.Object, status, "status")
}

// replaceOurs returns the list with our parts as they are wanted: those that
// stay where they are, those of others untouched.
func replaceOurs(list, want []any, ours func(part map[string]any) (name string, ours bool)) []any {
	left := map[string]any{}
	for _, part := range want {
		if part, ok := part.(map[string]any); ok {
			name, _ := ours(part)
			left[name] = part
		}
	}
	out := []any{}
	for _, part := range list {
		fields, ok := part.(map[string]any)
		if name, mine := ours(fields); ok && mine {
			part = left[name]
			delete(left, name)
		}
		if part != nil {
			out = append(out, part)
		}
	}
	for _, part := range want {
		if part, ok := part.(map[string]any); ok {
			if name, _ := ours(part); left[name] != nil {
				out = append(out, part)
			}
		}
	}
	return out
}

// unstructured returns b as the API server wants it: one who says nothing says
// nothing, not an empty list.
func (b body) unstructured() (map[string]any, error) {
	data, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	var out map[string]any
	return out, json.Unmarshal(data, &out)
}

// normal makes the numbers of conditions numbers: Istio writes them as text.
func normal(status map[string]any) {
	list, _ := status["conditions"].([]any)
	for _, part := range list {
		fields, ok := part.(map[string]any)
		if !ok {
			continue
		}
		if text, ok := fields["observedGeneration"].(string); ok {
			if n, err := strconv.ParseInt(text, 10, 64); err == nil {
				fields["observedGeneration"] = n
			} else {
				delete(fields, "observedGeneration")
			}
		}
	}
}
