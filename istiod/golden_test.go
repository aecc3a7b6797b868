package istiod

import (
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/apis/mesh"
	securityapi "github.com/ambit-mesh/ambit/apis/security"
	workloadapi "github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/istiod/collection"
	"github.com/ambit-mesh/ambit/istiod/source"
	"github.com/ambit-mesh/ambit/istiod/xds"
)

var update = flag.Bool("update", false, "write the results below # Output of the files in testdata/graph")

const outputMark = "# Output\n"

// TestGraph runs testdata/graph/*.yaml: manifests above the mark; below, what
// ztunnels are sent and what the objects' statuses say.
// go test ./istiod -run TestGraph -update writes the results.
func TestGraph(t *testing.T) {
	files, err := filepath.Glob("testdata/graph/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases in testdata/graph (error %v)", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			input, want, _ := strings.Cut(string(data), outputMark)
			got := translated(t, file, input)
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

// translated runs manifests through the graph, one batch, nothing started.
func translated(t *testing.T, file, input string) string {
	t.Helper()
	objects, err := manifest.Parse(file, []byte(input))
	if err != nil {
		t.Fatal(err)
	}
	into := source.NewObjects(collection.NewGraph())
	dir, err := source.NewDir(source.DirConfig{Objects: into, Report: func(r source.Report) {
		for _, o := range r.Invalid {
			t.Errorf("invalid input: %s", message(o))
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	v := newViews(into, Config{ClusterDomain: mesh.DefaultClusterDomain})
	l := newL7Views(into, v)
	resources := map[string]xds.Resource{}
	for _, from := range v.workloadResources(into.Graph) {
		collection.Sink(from, func(events []collection.Event[xds.Resource]) {
			for _, event := range events {
				resources[event.Key] = *event.New
			}
		})
	}
	statuses := map[string]statement{}
	for _, from := range l.statements(into, v.deployments(into, "waypoint")) {
		collection.Sink(from, func(events []collection.Event[statement]) {
			for _, event := range events {
				statuses[event.Key] = *event.New
			}
		})
	}
	dir.Load(t.Context(), manifest.Change{File: file, Set: objects})
	var out strings.Builder
	for _, key := range slices.Sorted(maps.Keys(resources)) {
		out.WriteString(render(t, resources[key]))
	}
	for _, key := range slices.Sorted(maps.Keys(statuses)) {
		for _, c := range statuses[key].status.Conditions {
			if !strings.HasPrefix(key, "istio.io/gateway-controller") { // those have goldens of their own
				out.WriteString("# " + statuses[key].object.String() + ": " + c.Type + "=" + string(c.Status) + " " + c.Reason + ": " + c.Message + "\n")
			}
		}
	}
	return out.String()
}

func render(t *testing.T, r xds.Resource) string {
	t.Helper()
	var message proto.Message = &workloadapi.Address{}
	if r.TypeURL == mesh.TypeAuthorization {
		message = &securityapi.Authorization{}
	}
	if err := proto.Unmarshal(r.Body.GetValue(), message); err != nil {
		t.Fatal(err)
	}
	data, err := protojson.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(data) {
		t.Fatalf("%s is no JSON", data)
	}
	text, err := yaml.JSONToYAML(data)
	if err != nil {
		t.Fatal(err)
	}
	head := "---\n# " + r.Name
	if len(r.Aliases) > 0 {
		head += ", also " + strings.Join(r.Aliases, " ")
	}
	return head + "\n" + string(text)
}
