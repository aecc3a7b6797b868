package translate

import (
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
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

var updateL7 = flag.Bool("update-l7", false, "write the results below # Output of the files in testdata/l7")

const outputMark = "# Output\n"

// l7Options is the first document of a case: which service is looked at, and
// what of the result is shown.
type l7Options struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Service           string   `json:"service"` // namespace/name
	WaypointNamespace string   `json:"waypointNamespace,omitempty"`
	Show              []string `json:"show"` // listener, routes, references, clusters, endpoints, notices
}

func (o *l7Options) DeepCopyObject() runtime.Object { copied := *o; return &copied }

// l7Case is the decoded input of a case.
type l7Case struct {
	options  l7Options
	services map[string]model.Service
	pods     []*corev1.Pod
	routes   RouteInputs
	subsets  SubsetInputs
	rules    []*networkingv1.DestinationRule
}

// TestL7 runs testdata/l7/*.yaml: manifests above the mark, messages below.
// go test ./istiod/translate -run TestL7 -update-l7 writes the results.
func TestL7(t *testing.T) {
	files, err := filepath.Glob("testdata/l7/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases in testdata/l7 (error %v)", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			input, want, _ := strings.Cut(string(data), outputMark)
			got := loadL7(t, file, input).render(t)
			if *updateL7 {
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

func loadL7(t *testing.T, file, input string) *l7Case {
	t.Helper()
	objects, err := manifest.Parse(file, []byte(input))
	if err != nil {
		t.Fatal(err)
	}
	c := &l7Case{services: map[string]model.Service{}}
	for _, object := range objects {
		c.add(t, object)
	}
	c.routes.ClusterDomain, c.subsets.ClusterDomain = mesh.DefaultClusterDomain, mesh.DefaultClusterDomain
	c.routes.WaypointNamespace, c.subsets.WaypointNamespace = c.options.WaypointNamespace, c.options.WaypointNamespace
	c.subsets.RootNamespace, c.subsets.DestinationRules = mesh.DefaultSystemNamespace, c.rules
	c.routes.Service = func(hostname string) (model.Service, bool) {
		svc, ok := c.services[hostname]
		return svc, ok
	}
	c.routes.HasSubset = func(hostname, subset string) bool {
		return slices.ContainsFunc(Subsets(c.services[hostname], c.subsets), func(s Subset) bool { return s.Name == subset })
	}
	return c
}

func (c *l7Case) add(t *testing.T, object manifest.Object) {
	t.Helper()
	decode := func(into runtime.Object) {
		t.Helper()
		if err := manifest.Decode(object, into); err != nil {
			t.Fatal(err)
		}
	}
	switch object.Key.Kind {
	case "Options":
		decode(&c.options)
	case "Service":
		var s corev1.Service
		decode(&s)
		svc, ok := model.NewService(&s, mesh.DefaultClusterDomain)
		if !ok {
			t.Fatalf("%s is no service of the mesh", object.Key)
		}
		c.services[svc.Hostname] = svc
	case "Pod":
		var p corev1.Pod
		decode(&p)
		c.pods = append(c.pods, &p)
	case "VirtualService":
		var vs networkingv1.VirtualService
		decode(&vs)
		c.routes.VirtualServices = append(c.routes.VirtualServices, &vs)
	case "DestinationRule":
		var rule networkingv1.DestinationRule
		decode(&rule)
		c.rules = append(c.rules, &rule)
	case "HTTPRoute":
		var route gatewayv1.HTTPRoute
		decode(&route)
		c.routes.HTTPRoutes = append(c.routes.HTTPRoutes, &route)
	default:
		t.Fatalf("%s:%d: cases have no objects of kind %s", object.File, object.Line, object.Key.Kind)
	}
}

// endpoints plays istiod's part: pods that the selector of the service chooses.
func (c *l7Case) endpoints(svc model.Service, port model.ServicePort) []model.L7Endpoint {
	var out []model.L7Endpoint
	for _, pod := range c.pods {
		if pod.Namespace != svc.Name.Namespace || len(svc.Selector) == 0 || !hasLabels(pod.Labels, svc.Selector) {
			continue
		}
		e := model.L7Endpoint{
			Address:     netip.MustParseAddr(pod.Status.PodIP),
			Port:        port.TargetPort,
			Ready:       pod.Status.Phase == corev1.PodRunning,
			Labels:      pod.Labels,
			Protocol:    mesh.EndpointProtocolTCP,
			WorkloadUID: "Kubernetes//Pod/" + pod.Namespace + "/" + pod.Name,
		}
		if pod.Annotations[mesh.AnnotationRedirection] == mesh.RedirectionEnabled {
			e.Protocol = mesh.EndpointProtocolHBONE
			e.SPIFFEIDs = []string{"spiffe://cluster.local/ns/" + pod.Namespace + "/sa/" + pod.Spec.ServiceAccountName}
		}
		out = append(out, e)
	}
	return out
}

func (c *l7Case) render(t *testing.T) string {
	t.Helper()
	namespace, name, _ := strings.Cut(c.options.Service, "/")
	svc, ok := c.services[model.L7Hostname(namespace, name, mesh.DefaultClusterDomain)]
	if !ok {
		t.Fatalf("service %q of the options is not in the file", c.options.Service)
	}
	var out []any
	for _, port := range svc.Ports {
		out = append(out, c.renderPort(t, svc, port))
	}
	result := map[string]any{"ports": out}
	if slices.Contains(c.options.Show, "notices") {
		result["notices"] = c.ownNotices()
	}
	data, err := yaml.Marshal(result)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func (c *l7Case) ownNotices() []string {
	var lists [][]model.Notice
	for _, vs := range c.routes.VirtualServices {
		lists = append(lists, VirtualServiceNotices(vs, mesh.DefaultClusterDomain))
	}
	for _, route := range c.routes.HTTPRoutes {
		lists = append(lists, HTTPRouteNotices(route, mesh.DefaultClusterDomain))
	}
	for _, rule := range c.rules {
		lists = append(lists, DestinationRuleNotices(rule))
	}
	return noticeTexts(model.MergeNotices(lists...))
}

func noticeTexts(list []model.Notice) []string {
	out := []string{}
	for _, n := range list {
		out = append(out, n.Object.String()+": "+n.Field+": "+n.Message)
	}
	return out
}

func (c *l7Case) renderPort(t *testing.T, svc model.Service, port model.ServicePort) map[string]any {
	t.Helper()
	routes, notices := Routes(svc, port, c.routes)
	subsets := Subsets(svc, c.subsets)
	out := map[string]any{"port": port.Port}
	for _, what := range c.options.Show {
		switch what {
		case "listener":
			out[what] = messages(t, Listener(svc, port))[0]
		case "routes":
			if routes != nil {
				out[what] = messages(t, routes)[0]
			}
		case "references":
			texts := []string{}
			for _, r := range References(routes) {
				texts = append(texts, ClusterName(r.Hostname, r.Port, r.Subset))
			}
			out[what] = texts
		case "clusters":
			out[what] = messages(t, Clusters(svc, port, subsets)...)
		case "endpoints":
			out[what] = messages(t, LoadAssignments(svc, port, subsets, c.endpoints(svc, port))...)
		case "notices":
			out[what] = noticeTexts(notices)
		default:
			t.Fatalf("options: nothing is called %q", what)
		}
	}
	return out
}

// messages prints protos as JSON values. protojson's spacing is random on
// purpose, decoded values are not.
func messages[M proto.Message](t *testing.T, list ...M) []any {
	t.Helper()
	out := []any{}
	for _, m := range list {
		data, err := protojson.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var value any
		if err := json.Unmarshal(data, &value); err != nil {
			t.Fatal(err)
		}
		out = append(out, value)
	}
	return out
}
