package gateway

import (
	"encoding/json"
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/model"
)

var update = flag.Bool("update", false, "write the results below # Output of the files in testdata")

const outputMark = "# Output\n"

// testOptions is the first document of a case: what else there is in the mesh.
type testOptions struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Ready      []string          `json:"ready,omitempty"`      // namespace/name of Gateways with a ready endpoint
	Reported   []string          `json:"reported,omitempty"`   // addresses of all Gateways by now
	Parameters string            `json:"parameters,omitempty"` // why no Gateway can be deployed
	Waypoints  map[string]string `json:"waypoints,omitempty"`  // namespace/name of a Service -> name of its waypoint
}

func (o *testOptions) DeepCopyObject() runtime.Object { copied := *o; return &copied }

type testCase struct {
	options  testOptions
	services map[string]model.Service
	gateways map[model.Name]*gatewayv1.Gateway
	order    []runtime.Object // whose status is shown
}

// TestStatus runs testdata/*.yaml: manifests above the mark, the statuses of
// the Gateways, GatewayClasses and HTTPRoutes below, in their order.
func TestStatus(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases in testdata (error %v)", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			input, want, _ := strings.Cut(string(data), outputMark)
			got := load(t, file, input).render(t)
			if *update {
				if err := os.WriteFile(file, []byte(input+outputMark+got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: result differs (-want +got):\n%s", file, diff)
			}
		})
	}
}

func load(t *testing.T, file, input string) *testCase {
	t.Helper()
	objects, err := manifest.Parse(file, []byte(input))
	if err != nil {
		t.Fatal(err)
	}
	c := &testCase{services: map[string]model.Service{}, gateways: map[model.Name]*gatewayv1.Gateway{}}
	for _, object := range objects {
		var into runtime.Object
		switch object.Key.Kind {
		case "Options":
			into = &c.options
		case "Service":
			into = &corev1.Service{}
		case "Gateway":
			into = &gatewayv1.Gateway{}
		case "GatewayClass":
			into = &gatewayv1.GatewayClass{}
		case "HTTPRoute":
			into = &gatewayv1.HTTPRoute{}
		case "ServiceEntry":
			into = &networkingv1.ServiceEntry{}
		default:
			t.Fatalf("cases have no objects of kind %s", object.Key.Kind)
		}
		if err := manifest.Decode(object, into); err != nil {
			t.Fatal(err)
		}
		switch o := into.(type) {
		case *corev1.Service:
			svc, _ := model.NewService(o, mesh.DefaultClusterDomain)
			c.services[svc.Hostname] = svc
		case *gatewayv1.Gateway:
			c.gateways[model.Name{Namespace: o.Namespace, Name: o.Name}] = o
			c.order = append(c.order, o)
		case *gatewayv1.GatewayClass, *gatewayv1.HTTPRoute:
			c.order = append(c.order, into)
		}
	}
	return c
}

func (c *testCase) render(t *testing.T) string {
	t.Helper()
	var out []map[string]any
	add := func(name string, status any, ours bool) {
		if !ours {
			status = "not ours"
		}
		out = append(out, map[string]any{"object": name, "status": status})
	}
	for _, object := range c.order {
		switch o := object.(type) {
		case *gatewayv1.Gateway:
			status, ours := Status(c.inputs(o))
			add("Gateway "+o.Namespace+"/"+o.Name, status, ours)
			out[len(out)-1]["deployable"] = Deployable(o)
		case *gatewayv1.GatewayClass:
			status, ours := ClassStatus(o)
			add("GatewayClass "+o.Name, status, ours)
		case *gatewayv1.HTTPRoute:
			add("HTTPRoute "+o.Namespace+"/"+o.Name, HTTPRouteStatus(o, c.routeInputs()), true)
		}
	}
	data, err := yaml.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func (c *testCase) inputs(g *gatewayv1.Gateway) Inputs {
	in := Inputs{Gateway: g}
	if svc, ok := c.services[model.L7Hostname(g.Namespace, g.Name, mesh.DefaultClusterDomain)]; ok {
		in.Service = &svc
	}
	for _, name := range c.options.Ready {
		in.Ready = in.Ready || name == g.Namespace+"/"+g.Name
	}
	for _, value := range c.options.Reported {
		in.Reported = append(in.Reported, address(gatewayv1.HostnameAddressType, value))
	}
	if c.options.Parameters != "" {
		in.Parameters = errors.New(c.options.Parameters)
	}
	return in
}

func (c *testCase) routeInputs() RouteInputs {
	return RouteInputs{
		ClusterDomain: mesh.DefaultClusterDomain,
		Service: func(hostname string) (model.Service, bool) {
			svc, ok := c.services[hostname]
			return svc, ok
		},
		Gateway: func(name model.Name) (*gatewayv1.Gateway, bool) {
			g, ok := c.gateways[name]
			return g, ok
		},
		Waypoint: func(service model.Name) *model.Waypoint {
			name, ok := c.options.Waypoints[service.String()]
			if !ok {
				return nil
			}
			class, name, found := strings.Cut(name, ":")
			if !found {
				class, name = mesh.WaypointGatewayClass, class
			}
			return &model.Waypoint{Name: model.Name{Namespace: service.Namespace, Name: name}, Class: class}
		},
	}
}

func TestReportedAddressesStay(t *testing.T) {
	g := &gatewayv1.Gateway{}
	g.Namespace, g.Name = "a", "waypoint"
	g.Spec.GatewayClassName = mesh.WaypointGatewayClass
	g.Spec.Listeners = []gatewayv1.Listener{{Name: "mesh", Port: 15008, Protocol: "HBONE"}}
	svc := model.Service{Hostname: "waypoint.a.svc.cluster.local", Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.1")}}
	status, _ := Status(Inputs{Gateway: g, Service: &svc})
	if len(status.Addresses) != 0 {
		t.Errorf("a waypoint that never was ready has the addresses %v, want none", status.Addresses)
	}
	status, _ = Status(Inputs{Gateway: g, Service: &svc, Ready: true})
	if len(status.Addresses) != 2 {
		t.Fatalf("a ready waypoint has the addresses %v, want IP and host name", status.Addresses)
	}
	again, _ := Status(Inputs{Gateway: g, Service: &svc, Reported: status.Addresses})
	if diff := cmp.Diff(status.Addresses, again.Addresses); diff != "" {
		t.Errorf("a waypoint that restarts loses addresses:\n%s", diff)
	}
}

// FuzzStatus: no object, valid or not, makes a status fail.
func FuzzStatus(f *testing.F) {
	f.Add([]byte(`{"spec":{"gatewayClassName":"istio-waypoint","listeners":[{"name":"a","port":15008,"protocol":"HBONE","allowedRoutes":{"namespaces":{"from":"Selector","selector":{"matchExpressions":[{"key":"a","operator":"x"}]}}}}]}}`))
	f.Add([]byte(`{"spec":{"parentRefs":[{"name":"a","kind":"Service","group":""},{"name":"g"}],"rules":[{"backendRefs":[{"name":"x"}],"filters":[{"type":"y"}]}]}}`))
	f.Fuzz(func(_ *testing.T, data []byte) {
		var g gatewayv1.Gateway
		if json.Unmarshal(data, &g) == nil {
			Status(Inputs{Gateway: &g, Ready: true})
			Deployable(&g)
		}
		var class gatewayv1.GatewayClass
		if json.Unmarshal(data, &class) == nil {
			ClassStatus(&class)
		}
		var route gatewayv1.HTTPRoute
		if json.Unmarshal(data, &route) == nil {
			none := &testCase{}
			HTTPRouteStatus(&route, none.routeInputs())
		}
	})
}

// TestFeaturesAreSorted: the API wants them in the order of their names, each
// once.
func TestFeaturesAreSorted(t *testing.T) {
	if !slices.IsSorted(supported) || len(slices.Compact(slices.Clone(supported))) != len(supported) {
		t.Errorf("features %q are not sorted, or not distinct", supported)
	}
}
