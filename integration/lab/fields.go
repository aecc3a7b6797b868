package lab

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/apis/manifest"
)

// fieldSet says which fields of an object the lab honours: nil means the value
// as a whole, otherwise the fields in it; "*" stands for each element of a list.
type fieldSet map[string]fieldSet

var handlerFields = fieldSet{
	"httpGet":             {"path": nil, "port": nil, "scheme": nil, "httpHeaders": nil},
	"tcpSocket":           {"port": nil},
	"initialDelaySeconds": nil, "periodSeconds": nil, "timeoutSeconds": nil, "failureThreshold": nil, "successThreshold": nil,
}

var podFields = fieldSet{
	"serviceAccountName": nil, "serviceAccount": nil, "automountServiceAccountToken": nil,
	"hostNetwork": nil, "dnsPolicy": nil, "nodeName": nil, "hostname": nil, "subdomain": nil,
	"restartPolicy": nil, "terminationGracePeriodSeconds": nil,
	"containers": {"*": {
		"name": nil, "image": nil, "imagePullPolicy": nil, "command": nil, "args": nil, "workingDir": nil, "ports": nil,
		"env": {"*": {"name": nil, "value": nil, "valueFrom": {"fieldRef": nil}}},
		"volumeMounts": {"*": {
			"name": nil, "mountPath": nil, "readOnly": nil, "mountPropagation": nil,
		}},
		"readinessProbe": handlerFields,
		"lifecycle":      {"preStop": {"sleep": nil}},
	}},
	"volumes": {"*": {
		"name":      nil,
		"emptyDir":  {},
		"hostPath":  nil,
		"configMap": {"name": nil, "items": nil, "optional": nil, "defaultMode": nil},
		"projected": {"defaultMode": nil, "sources": {"*": {
			"serviceAccountToken": nil,
			"configMap":           {"name": nil, "items": nil, "optional": nil},
		}}},
	}},
}

// unsupportedFields names the fields of the pod in the object that the lab does
// not honour, sorted.
func unsupportedFields(o manifest.Object) []string {
	path := "spec"
	value, _ := o.Body.Object["spec"].(map[string]any)
	switch o.Key.Kind {
	case "Pod":
	case "Deployment", "DaemonSet":
		template, _ := value["template"].(map[string]any)
		value, _ = template["spec"].(map[string]any)
		path = "spec.template.spec"
	default:
		return nil
	}
	found := unsupported(path, value, podFields, map[string]struct{}{})
	if policy := value["dnsPolicy"]; policy == string(corev1.DNSDefault) || policy == string(corev1.DNSNone) {
		found[path+".dnsPolicy"] = struct{}{} // every pod asks the lab's server
	}
	return slices.Sorted(maps.Keys(found))
}

// unsupported adds the paths below value that the set has not.
func unsupported(path string, value any, honoured fieldSet, found map[string]struct{}) map[string]struct{} {
	if honoured == nil {
		return found
	}
	switch value := value.(type) {
	case map[string]any:
		for name, field := range value {
			fields, ok := honoured[name]
			if !ok && !isEmpty(field) {
				found[path+"."+name] = struct{}{}
			}
			if ok {
				unsupported(path+"."+name, field, fields, found)
			}
		}
	case []any:
		for i, element := range value {
			at := fmt.Sprintf("%s[%d]", path, i)
			if m, ok := element.(map[string]any); ok && m["name"] != nil {
				at = strings.TrimSuffix(at, fmt.Sprintf("[%d]", i)) + fmt.Sprintf("[%v]", m["name"])
			}
			unsupported(at, element, honoured["*"], found)
		}
	}
	return found
}

// isEmpty says whether a value says nothing.
func isEmpty(value any) bool {
	switch value := value.(type) {
	case nil:
		return true
	case map[string]any:
		return len(value) == 0
	case []any:
		return len(value) == 0
	}
	return false
}
