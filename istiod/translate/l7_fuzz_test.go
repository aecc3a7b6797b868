package translate

import (
	"encoding/json"
	"testing"

	"google.golang.org/protobuf/proto"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// FuzzRoutes: no object of a user, valid or not, stops the translation, leaves
// a route without match or action, or a service without a RouteConfiguration.
func FuzzRoutes(f *testing.F) {
	f.Add([]byte(`{"hosts":["web"],"http":[{"match":[{"uri":{"prefix":"/"},"headers":{"a":{}}}],"route":[{"destination":{"host":"web","subset":"v1"},"weight":1},{}]}]}`))
	f.Add([]byte(`{"hosts":["*.local"],"http":[null,{"match":[null],"redirect":{"uri":"x"}},{"directResponse":{}},{"rewrite":{},"route":[null]}]}`))
	f.Add([]byte(`{"parentRefs":[{"group":"","kind":"Service","name":"web"}],"rules":[{"matches":[{"path":{}}],"filters":[{"type":"URLRewrite","urlRewrite":{"path":{"type":"ReplacePrefixMatch","replacePrefixMatch":""}}}]}]}`))
	f.Add([]byte(`{"parentRefs":[{"group":"","kind":"Service","name":"web"}],"rules":[{"backendRefs":[{"name":"x","weight":-1},{"name":"y","port":99999}],"timeouts":{"request":"x"},"retry":{"attempts":-5,"codes":[-1]}}]}`))
	svc := model.Service{
		Name:     model.Name{Namespace: "a", Name: "web"},
		Hostname: "web.a.svc.cluster.local",
		Ports:    []model.ServicePort{{Name: "http", Port: 80, Protocol: model.L7HTTP}},
	}
	f.Fuzz(func(t *testing.T, spec []byte) {
		in := RouteInputs{
			ClusterDomain: mesh.DefaultClusterDomain,
			Service:       func(hostname string) (model.Service, bool) { return svc, hostname == svc.Hostname },
		}
		vs := &networkingv1.VirtualService{}
		vs.Namespace, vs.Name = "a", "fuzz"
		if json.Unmarshal(spec, &vs.Spec) == nil {
			in.VirtualServices = []*networkingv1.VirtualService{vs}
			VirtualServiceNotices(vs, mesh.DefaultClusterDomain)
		}
		route := &gatewayv1.HTTPRoute{}
		route.Namespace, route.Name = "a", "fuzz"
		if json.Unmarshal(spec, &route.Spec) == nil {
			in.HTTPRoutes = []*gatewayv1.HTTPRoute{route}
			HTTPRouteNotices(route, mesh.DefaultClusterDomain)
		}
		routes, _ := Routes(svc, svc.Ports[0], in)
		again, _ := Routes(svc, svc.Ports[0], in)
		if !proto.Equal(routes, again) {
			t.Error("the same inputs give different routes")
		}
		for _, r := range routes.GetVirtualHosts()[0].GetRoutes() {
			if r.GetMatch() == nil || r.GetAction() == nil || r.GetName() == "" {
				t.Errorf("incomplete route %v", r)
			}
		}
		if _, err := proto.Marshal(routes); err != nil {
			t.Errorf("routes cannot be sent: %v", err)
		}
		References(routes)
	})
}

// FuzzSubsets: no DestinationRule stops the translation.
func FuzzSubsets(f *testing.F) {
	f.Add([]byte(`{"host":"web","subsets":[{"name":"v1","labels":{"a":"b"}},null,{"name":"x|y"}],"trafficPolicy":{"tls":{}}}`))
	svc := model.Service{Name: model.Name{Namespace: "a", Name: "web"}, Hostname: "web.a.svc.cluster.local"}
	f.Fuzz(func(t *testing.T, spec []byte) {
		rule := &networkingv1.DestinationRule{}
		rule.Namespace, rule.Name = "a", "fuzz"
		if json.Unmarshal(spec, &rule.Spec) != nil {
			return
		}
		DestinationRuleNotices(rule)
		subsets := Subsets(svc, SubsetInputs{ClusterDomain: mesh.DefaultClusterDomain, DestinationRules: []*networkingv1.DestinationRule{rule}})
		for _, c := range Clusters(svc, model.ServicePort{Port: 80}, subsets) {
			if _, ok := parseClusterName(c.GetName()); !ok {
				t.Errorf("cluster name %q cannot be read", c.GetName())
			}
		}
	})
}

func TestReferencesOfNothing(t *testing.T) {
	if got := References(nil); got != nil {
		t.Errorf("References(nil) = %v, want none", got)
	}
}

func TestObjectsThatAreFoundTwiceCountOnce(t *testing.T) {
	c := loadL7(t, "twice", `
apiVersion: test/v1
kind: Options
metadata: {name: options}
service: a/web
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: a}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: vs, namespace: a}
spec:
  hosts: [web, "*.a.svc.cluster.local"]
  http: [{route: [{destination: {host: web}}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: route, namespace: a}
spec:
  parentRefs: [{group: "", kind: Service, name: web}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
`)
	c.routes.VirtualServices = append(c.routes.VirtualServices, c.routes.VirtualServices...)
	c.routes.HTTPRoutes = append(c.routes.HTTPRoutes, c.routes.HTTPRoutes...)
	svc := c.services["web.a.svc.cluster.local"]
	routes, _ := Routes(svc, svc.Ports[0], c.routes)
	if got := len(routes.GetVirtualHosts()[0].GetRoutes()); got != 2 {
		t.Errorf("one VirtualService and one HTTPRoute, each given twice, make %d routes, want 2", got)
	}
}
