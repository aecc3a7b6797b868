package status

import (
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/json"
)

// writers are all field managers of ours.
var writers = []string{WriterService, WriterZtunnelPolicy, WriterWaypointPolicy, WriterGateway, WriterValidation, WriterFields}

// owned are the parts of a status that a field manager has applied, by list:
// "conditions", "listeners" and "supportedFeatures" by the JSON of their keys,
// any other field under "".
type owned map[string]map[string]bool

// managersOf returns what each field manager has applied to the status.
func managersOf(o *unstructured.Unstructured) map[string]owned {
	out := map[string]owned{}
	for _, entry := range o.GetManagedFields() {
		if entry.Operation != metav1.ManagedFieldsOperationApply || entry.Subresource != "status" || entry.FieldsV1 == nil {
			continue
		}
		var fields struct {
			Status map[string]map[string]any `json:"f:status"`
		}
		if json.Unmarshal(entry.FieldsV1.GetRawBytes(), &fields) != nil {
			continue
		}
		parts := owned{}
		for field, keys := range fields.Status {
			list := map[string]bool{}
			for key := range keys {
				if name, isKey := strings.CutPrefix(key, "k:"); isKey {
					list[name] = true
				}
			}
			parts[strings.TrimPrefix(field, "f:")] = list
		}
		out[entry.Manager] = parts
	}
	return out
}

// exceeds reports whether a writer has applied more than it says now.
func (o owned) exceeds(says body) bool {
	left := map[string]map[string]bool{"conditions": {}, "listeners": {}, "supportedFeatures": {}}
	for _, c := range says.Conditions {
		left["conditions"][text(map[string]string{"type": c.Type})] = true
	}
	for _, l := range says.Listeners {
		left["listeners"][text(map[string]string{"name": string(l.Name)})] = true
	}
	for _, f := range says.SupportedFeatures {
		left["supportedFeatures"][text(map[string]string{"name": string(f.Name)})] = true
	}
	for field, keys := range o {
		if field == "addresses" && len(says.Addresses) == 0 {
			return true
		}
		for key := range keys {
			if list, byKey := left[field]; byKey && !list[key] {
				return true
			}
		}
	}
	return false
}
