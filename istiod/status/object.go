package status

import (
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/json"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/apis/manifest"
)

// apiVersion of the objects that istiod speaks about, and of those for files.
const (
	versionStable = "v1"
	versionFile   = "v1alpha1"
)

// body is the status of an object as it is stored. Kinds use what they have.
type body struct {
	Conditions []metav1.Condition               `json:"conditions,omitempty"`
	Parents    []gatewayv1.RouteParentStatus    `json:"parents,omitempty"`
	Listeners  []gatewayv1.ListenerStatus       `json:"listeners,omitempty"`
	Addresses  []gatewayv1.GatewayStatusAddress `json:"addresses,omitempty"`

	SupportedFeatures []gatewayv1.SupportedFeature `json:"supportedFeatures,omitempty"`

	gateway bool // of a Gateway or GatewayClass
}

// object returns what is to be stored. A condition whose status is that of the
// old object keeps its time.
func (w Wanted) object(key manifest.Key, old *unstructured.Unstructured, now time.Time) (*unstructured.Unstructured, error) {
	o := &unstructured.Unstructured{Object: map[string]any{}}
	o.SetKind(key.Kind)
	o.SetName(key.Name)
	if key.Namespace != "" {
		o.SetNamespace(key.Namespace)
	}
	if w.File != nil {
		o.SetAPIVersion(key.Group + "/" + versionFile)
		o.Object["file"], o.Object["error"] = w.File.File, w.File.Message
		return o, nil
	}
	version := versionStable
	if key.Group != "" {
		version = key.Group + "/" + version
	}
	o.SetAPIVersion(version)
	merged := w.merge()
	merged.keepTimes(decode(old), metav1.NewTime(now.Truncate(time.Second)))
	status, err := merged.unstructured()
	if err != nil {
		return nil, err
	}
	o.Object["status"] = status
	return o, nil
}

// Addresses returns those that the stored status of a Gateway reports.
func Addresses(o *unstructured.Unstructured) []gatewayv1.GatewayStatusAddress {
	return decode(o).Addresses
}

// decode reads what is stored; what it cannot read is as if it were not there.
func decode(o *unstructured.Unstructured) body {
	var out body
	if o == nil {
		return out
	}
	status, _ := o.Object["status"].(map[string]any)
	normal(status)
	data, err := json.Marshal(status)
	if err != nil || json.Unmarshal(data, &out) != nil {
		return body{}
	}
	return out
}

// merge joins what the writers say, in order of their names. Two writers do not
// share a type of condition; if they do, the first counts.
func (w Wanted) merge() body {
	var out body
	for _, name := range slices.Sorted(maps.Keys(w.Writers)) {
		s := w.Writers[name]
		for _, c := range s.Conditions {
			if meta.FindStatusCondition(out.Conditions, c.Type) == nil {
				out.Conditions = append(out.Conditions, c)
			}
		}
		for _, p := range s.Parents {
			p.Conditions = slices.Clone(p.Conditions)
			out.Parents = append(out.Parents, p)
		}
		for _, l := range s.Listeners {
			l.Conditions = slices.Clone(l.Conditions)
			out.Listeners = append(out.Listeners, l)
		}
		out.Addresses = append(out.Addresses, s.Addresses...)
		out.SupportedFeatures = append(out.SupportedFeatures, s.SupportedFeatures...)
		out.observe(s.Generation)
	}
	return out
}

// observe puts the generation into the conditions that have none.
func (b *body) observe(generation int64) {
	for _, list := range b.conditions() {
		for i := range list {
			if list[i].ObservedGeneration == 0 {
				list[i].ObservedGeneration = generation
			}
		}
	}
}

// conditions returns all lists of conditions.
func (b *body) conditions() [][]metav1.Condition {
	out := [][]metav1.Condition{b.Conditions}
	for i := range b.Parents {
		out = append(out, b.Parents[i].Conditions)
	}
	for i := range b.Listeners {
		out = append(out, b.Listeners[i].Conditions)
	}
	return out
}

func (b *body) keepTimes(old body, now metav1.Time) {
	keep(b.Conditions, old.Conditions, now)
	for i := range b.Parents {
		p := &b.Parents[i]
		same := slices.IndexFunc(old.Parents, func(o gatewayv1.RouteParentStatus) bool {
			return o.ControllerName == p.ControllerName && text(o.ParentRef) == text(p.ParentRef)
		})
		var before []metav1.Condition
		if same >= 0 {
			before = old.Parents[same].Conditions
		}
		keep(p.Conditions, before, now)
	}
	for i := range b.Listeners {
		l := &b.Listeners[i]
		same := slices.IndexFunc(old.Listeners, func(o gatewayv1.ListenerStatus) bool { return o.Name == l.Name })
		var before []metav1.Condition
		if same >= 0 {
			before = old.Listeners[same].Conditions
		}
		keep(l.Conditions, before, now)
	}
}

func text(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return string(data)
}

func keep(list, before []metav1.Condition, now metav1.Time) {
	for i := range list {
		c := &list[i]
		c.LastTransitionTime = now
		if b := meta.FindStatusCondition(before, c.Type); b != nil && b.Status == c.Status && !b.LastTransitionTime.IsZero() {
			c.LastTransitionTime = b.LastTransitionTime
		}
	}
}
