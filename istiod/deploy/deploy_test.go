package deploy

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/apis/mesh"
)

var update = flag.Bool("update", false, "write the results below # Output of the files in testdata")

const outputMark = "# Output\n"

var options = Options{
	Image:         "ambit-mesh/waypoint:test",
	ClusterDomain: "cluster.local",
	ClusterID:     "Kubernetes",
	TrustDomain:   "cluster.local",
}

// TestWaypoint runs testdata/*.yaml: a Gateway and the ConfigMaps of its
// overlays above the mark, the objects or the error below.
func TestWaypoint(t *testing.T) {
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
			got := render(t, file, input)
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

func render(t *testing.T, file, input string) string {
	t.Helper()
	list, err := manifest.Parse(file, []byte(input))
	if err != nil {
		t.Fatal(err)
	}
	var gateway gatewayv1.Gateway
	o := options
	for _, object := range list {
		if object.Key.Kind == "Gateway" {
			if err := manifest.Decode(object, &gateway); err != nil {
				t.Fatal(err)
			}
			continue
		}
		var config corev1.ConfigMap
		if err := manifest.Decode(object, &config); err != nil {
			t.Fatal(err)
		}
		o.Overlays = append(o.Overlays, Overlay{Source: "ConfigMap " + config.Namespace + "/" + config.Name, Data: config.Data})
	}
	objects, err := Waypoint(&gateway, o)
	if err != nil {
		return "error: " + err.Error() + "\n"
	}
	var texts []string
	for _, object := range []runtime.Object{objects.ServiceAccount, objects.Deployment, objects.Service} {
		body, err := manifest.ToUnstructured(object)
		if err != nil {
			t.Fatal(err)
		}
		data, err := yaml.Marshal(body.Object)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, string(data))
	}
	return strings.Join(texts, "---\n")
}

func minimal() *gatewayv1.Gateway {
	g := &gatewayv1.Gateway{}
	g.Namespace, g.Name = "bookinfo", "waypoint"
	g.Spec.GatewayClassName = mesh.WaypointGatewayClass
	g.Spec.Listeners = []gatewayv1.Listener{{Name: "mesh", Port: 15008, Protocol: "HBONE"}}
	return g
}

func TestWaypointLeavesItsInputsAlone(t *testing.T) {
	g := minimal()
	g.Labels = map[string]string{"team": "a"}
	before := g.DeepCopy()
	overlay := Overlay{Source: "test", Data: map[string]string{"deployment": "metadata: {labels: {team: b}}\nspec: {template: {metadata: {labels: {team: c}}}}"}}
	o := options
	o.Overlays = []Overlay{overlay}
	if _, err := Waypoint(g, o); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, g); diff != "" {
		t.Errorf("Waypoint changed the Gateway:\n%s", diff)
	}
}

func TestWaypointRefusesOtherClasses(t *testing.T) {
	g := minimal()
	g.Spec.GatewayClassName = "istio"
	if _, err := Waypoint(g, options); err == nil {
		t.Error("Waypoint deploys a Gateway of class istio, want an error")
	}
}

func TestParametersRef(t *testing.T) {
	g := minimal()
	if name, err := ParametersRef(g); name != "" || err != nil {
		t.Errorf("ParametersRef without infrastructure = %q, %v; want none", name, err)
	}
	g.Spec.Infrastructure = &gatewayv1.GatewayInfrastructure{ParametersRef: &gatewayv1.LocalParametersReference{Kind: "ConfigMap", Name: "x"}}
	if name, err := ParametersRef(g); name != "x" || err != nil {
		t.Errorf("ParametersRef = %q, %v; want x", name, err)
	}
	g.Spec.Infrastructure.ParametersRef.Kind = "Secret"
	if _, err := ParametersRef(g); err == nil {
		t.Error("ParametersRef takes a Secret, want an error")
	}
}

// FuzzOverlay: whatever users write into a ConfigMap, there is an error or
// objects that still are the Gateway's.
func FuzzOverlay(f *testing.F) {
	f.Add("deployment", "spec: {replicas: 2}")
	f.Add("service", "spec: {ports: [{port: 15021, $patch: delete}]}")
	f.Add("serviceAccount", "$patch: replace")
	f.Add("deployment", "spec: {template: {spec: {$setElementOrder/containers: [{name: x}]}}}")
	f.Fuzz(func(t *testing.T, key, text string) {
		o := options
		o.Overlays = []Overlay{{Source: "fuzz", Data: map[string]string{key: text}}}
		objects, err := Waypoint(minimal(), o)
		if err != nil {
			return
		}
		if objects.Deployment.Name != "waypoint" || objects.Service.Namespace != "bookinfo" || objects.ServiceAccount.Kind != "ServiceAccount" {
			t.Errorf("overlay %q %q changed what identifies the objects", key, text)
		}
	})
}
