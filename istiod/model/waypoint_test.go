package model

import (
	"testing"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"
)

// TestListenerAllows: a mistake in a waypoint's listener detaches nobody.
func TestListenerAllows(t *testing.T) {
	for name, c := range map[string]struct {
		spec string
		want Allowed
	}{
		"the listener's":              {`{gatewayClassName: istio-waypoint, listeners: [{protocol: HBONE, port: 15008, allowedRoutes: {namespaces: {from: All}}}]}`, Allowed{All: true}},
		"by default":                  {`{gatewayClassName: istio-waypoint, listeners: [{protocol: HBONE, port: 15008}]}`, Allowed{}},
		"nobody":                      {`{gatewayClassName: istio-waypoint, listeners: [{protocol: HBONE, port: 15008, allowedRoutes: {namespaces: {from: None}}}]}`, Allowed{None: true}},
		"beside another":              {`{gatewayClassName: istio-waypoint, listeners: [{protocol: HTTP, port: 80}, {protocol: HBONE, port: 15008, allowedRoutes: {namespaces: {from: All}}}]}`, Allowed{All: true}},
		"a wrong protocol":            {`{gatewayClassName: istio-waypoint, listeners: [{protocol: HBON, port: 15008, allowedRoutes: {namespaces: {from: All}}}]}`, Allowed{All: true}},
		"a wrong port":                {`{gatewayClassName: istio-waypoint, listeners: [{protocol: HBONE, port: 15080, allowedRoutes: {namespaces: {from: All}}}]}`, Allowed{All: true}},
		"no listener":                 {`{gatewayClassName: istio-waypoint}`, Allowed{}},
		"a Gateway that is none":      {`{gatewayClassName: other, listeners: [{protocol: HTTP, port: 80, allowedRoutes: {namespaces: {from: All}}}]}`, Allowed{}},
		"an ingress in front of some": {`{gatewayClassName: other, listeners: [{protocol: HBONE, port: 15008, allowedRoutes: {namespaces: {from: All}}}]}`, Allowed{All: true}},
	} {
		var g gatewayv1.Gateway
		if err := yaml.Unmarshal([]byte("{spec: "+c.spec+"}"), &g); err != nil {
			t.Fatal(err)
		}
		if got := listenerAllows(&g); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}
