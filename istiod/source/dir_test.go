package source

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/istiod/collection"
)

// rig is a Dir that is handed changes directly.
type rig struct {
	t       *testing.T
	dir     *Dir
	objects *Objects
	reports []Report
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, objects: NewObjects(collection.NewGraph())}
	dir, err := NewDir(DirConfig{Objects: r.objects, Report: func(report Report) { r.reports = append(r.reports, report) }})
	if err != nil {
		t.Fatal(err)
	}
	r.dir = dir
	return r
}

// load takes the manifests of a file and returns what is reported.
func (r *rig) load(text string, deleted ...manifest.Key) Report {
	r.t.Helper()
	var objects []manifest.Object
	if text != "" {
		var err error
		if objects, err = manifest.Parse("f.yaml", []byte(text)); err != nil {
			r.t.Fatal(err)
		}
	}
	r.dir.Load(r.t.Context(), manifest.Change{File: "f.yaml", Set: objects, Deleted: deleted})
	return r.reports[len(r.reports)-1]
}

func head(version, kind, meta string) string {
	return "apiVersion: " + version + "\nkind: " + kind + "\nmetadata: " + meta + "\n"
}

func TestInvalidObjectsNameTheField(t *testing.T) {
	const named = "{name: x, namespace: shop}"
	tests := []struct{ name, manifest, field, reason string }{
		{"unknown field of an Istio kind", head("security.istio.io/v1", "PeerAuthentication", named) + "spec: {mtls: {mod: STRICT}}", "spec.mtls.mod", "unknown field"},
		{"unknown field deep in a list", head("networking.istio.io/v1", "VirtualService", named) + "spec: {hosts: [a], http: [{rout: []}]}", "spec.http[0].rout", "unknown field"},
		{"a value that is none of the enumeration", head("security.istio.io/v1", "PeerAuthentication", named) + "spec: {mtls: {mode: STRONG}}", "spec.mtls.mode", "Unsupported value"},
		{"a value of the wrong type", head("networking.istio.io/v1", "DestinationRule", named) + "spec: {host: [a]}", "spec.host", "must be of type string"},
		{"a CEL rule", head("security.istio.io/v1", "PeerAuthentication", named) + `spec: {portLevelMtls: {"80": {mode: STRICT}}}`, "spec", "selector"},
		{"a required field", head("networking.istio.io/v1", "DestinationRule", named) + "spec: {}", "spec.host", "Required"},
		{"an old version, checked by its own schema", head("networking.istio.io/v1alpha3", "DestinationRule", named) + "spec: {host: a, subset: []}", "spec.subset", "unknown field"},
		{"a version that is not served", head("networking.istio.io/v2", "DestinationRule", named) + "spec: {host: a}", "apiVersion", "not served"},
		{"unknown field of a core kind", head("v1", "Service", named) + "spec: {port: [{port: 80}]}", "spec.port", "unknown field"},
		{"a port out of range", head("v1", "Service", named) + "spec: {ports: [{port: 70000}]}", "spec.ports[0].port", "not between"},
		{"an address that is none", head("v1", "Service", named) + "spec: {clusterIP: 10.0.0, ports: [{port: 80}]}", "spec.clusterIP", "not an IP address"},
		{"a name that is none", head("v1", "Service", "{name: 9X, namespace: shop}") + "spec: {ports: [{port: 80}]}", "metadata.name", "Invalid value"},
		{"a label that is none", head("v1", "Namespace", "{name: x, labels: {a: 'b c'}}"), "metadata.labels", "Invalid value"},
		{"unknown field of the Gateway API", head("gateway.networking.k8s.io/v1", "Gateway", named) + "spec: {gatewayClassName: a, listener: []}", "spec.listener", "unknown field"},
	}
	r := newRig(t)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			report := r.load(test.manifest)
			if len(report.Invalid) != 1 {
				t.Fatalf("%s: %d objects reported as invalid, want 1", test.name, len(report.Invalid))
			}
			got := report.Invalid[0]
			if got.Field != test.field || !strings.Contains(got.Reason, test.reason) || got.File != "f.yaml" || got.Line != 1 {
				t.Errorf("%s: reported %+v, want field %q and %q at f.yaml:1", test.name, got, test.field, test.reason)
			}
		})
	}
}

func TestLastGoodVersionStays(t *testing.T) {
	r := newRig(t)
	good := head("security.istio.io/v1beta1", "PeerAuthentication", "{name: x}") + "spec: {mtls: {mode: STRICT}}"
	key := manifest.Key{Group: "security.istio.io", Kind: "PeerAuthentication", Name: "x"}
	r.load(good)
	first, ok := r.objects.PeerAuthentications.Get("default/x")
	if !ok || first.APIVersion != "security.istio.io/v1" {
		t.Fatalf("object is %v (found %v), want it in namespace default, as v1", first, ok)
	}
	report := r.load(strings.Replace(good, "mode", "mood", 1) + "\n---\n" + head("v1", "Namespace", "{name: n}"))
	if len(report.Invalid) != 1 {
		t.Fatalf("invalid: %v, want one object", report.Invalid)
	}
	if now, _ := r.objects.PeerAuthentications.Get("default/x"); now != first {
		t.Error("the last good version is not there any more")
	}
	if _, ok := r.objects.Namespaces.Get("n"); !ok {
		t.Error("the neighbour of an invalid object was not taken")
	}
	if report := r.load(good); len(report.Valid) != 1 {
		t.Errorf("valid again: %v, want the object", report.Valid)
	}
	r.load(strings.Replace(good, "mode", "mood", 1))
	if report := r.load("", key); len(report.Valid) != 1 {
		t.Errorf("a deleted object is still invalid: %v", report)
	}
	if r.objects.PeerAuthentications.Len() != 0 {
		t.Error("a deleted object is still there")
	}
}

func TestEveryIstioKindHasASchema(t *testing.T) {
	r := newRig(t)
	for group, kind := range r.dir.kinds {
		if !strings.HasSuffix(group.group, ".istio.io") {
			continue
		}
		for _, version := range kind.versions {
			if schema, err := r.dir.schemas.parse(schemaKey{group, version}); schema == nil || err != nil {
				t.Errorf("%s %s: no schema (error %v)", group.kind, version, err)
			}
		}
	}
}

func TestDefaultsAreSet(t *testing.T) {
	r := newRig(t)
	report := r.load(head("networking.istio.io/v1", "VirtualService", "{name: x, namespace: shop}") +
		"spec: {hosts: [a], http: [{match: [{uri: {prefix: /}}], route: [{destination: {host: a}}]}]}")
	if len(report.Invalid) > 0 || r.objects.VirtualServices.Len() != 1 {
		t.Errorf("report %+v, want one object taken", report)
	}
}

func TestUnreadKindsAreReportedOnce(t *testing.T) {
	r := newRig(t)
	text := head("telemetry.istio.io/v1", "Telemetry", "{name: x, namespace: shop}")
	if got := r.load(text).Unread; len(got) != 1 {
		t.Errorf("first time: %v, want the object", got)
	}
	if got := r.load(text).Unread; len(got) != 0 {
		t.Errorf("second time: %v, want nothing", got)
	}
}

func TestBrokenFilesAreReportedAndMended(t *testing.T) {
	r := newRig(t)
	r.dir.Load(t.Context(), manifest.Change{File: "f.yaml", Err: &manifest.Error{File: "f.yaml", Line: 3, Reason: "no"}})
	if got := r.reports[0].Broken; len(got) != 1 || got[0] != (FileError{File: "f.yaml", Line: 3, Reason: "no"}) {
		t.Errorf("broken: %v", got)
	}
	if got := r.load("apiVersion: v1\nkind: Namespace\nmetadata: {name: n}\n").Mended; len(got) != 1 {
		t.Errorf("mended: %v, want the file", got)
	}
}

func TestMeshConfig(t *testing.T) {
	tests := []struct{ name, text, domain, root, unread, field string }{
		{"nothing", "", "cluster.local", "istio-system", "", ""},
		{"both keys", "trustDomain: a.b\nrootNamespace: root", "a.b", "root", "", ""},
		{"others", "b: 1\na: {c: d}", "cluster.local", "istio-system", "a b", ""},
		{"no YAML", "a: [", "", "", "", "data.mesh"},
		{"a list", "- a", "", "", "", "data.mesh"},
		{"wrong type", "trustDomain: 1", "", "", "", "data.mesh.trustDomain"},
		{"not a trust domain", "trustDomain: A/B", "", "", "", "data.mesh"},
		{"a key twice", "trustDomain: a\ntrustDomain: b", "", "", "", "data.mesh"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, unread, err := ParseMeshConfig(meshConfigMap(test.text))
			if test.field != "" {
				if path, _ := splitFieldOf(err); path != test.field {
					t.Errorf("%s: error %v names %q, want %q", test.name, err, path, test.field)
				}
				return
			}
			if err != nil || got != (MeshConfig{TrustDomain: test.domain, RootNamespace: test.root}) || strings.Join(unread, " ") != test.unread {
				t.Errorf("%s: %+v, unread %v, error %v", test.name, got, unread, err)
			}
		})
	}
}

func FuzzMeshConfig(f *testing.F) {
	f.Add("trustDomain: a\nrootNamespace: b")
	f.Add("{")
	f.Fuzz(func(t *testing.T, text string) {
		config, _, err := ParseMeshConfig(meshConfigMap(text))
		if err == nil && (config.TrustDomain == "" || config.RootNamespace == "") {
			t.Errorf("%q gives %+v without an error", text, config)
		}
	})
}

func TestRunFollowsTheDirectories(t *testing.T) {
	config, state := t.TempDir(), t.TempDir()
	write := func(dir, name, text string) {
		t.Helper()
		temporary := filepath.Join(dir, ".tmp")
		if err := os.WriteFile(temporary, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(temporary, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	service := func(ip string) string {
		return head("v1", "Service", "{name: a, namespace: shop}") + "spec: {clusterIP: " + ip + ", ports: [{port: 80}]}"
	}
	write(config, "a.yaml", service("10.96.0.1"))
	objects := NewObjects(collection.NewGraph())
	changes := make(chan string, 16)
	collection.Sink(objects.Services, func(events []collection.Event[*coreService]) {
		for _, event := range events {
			if event.New == nil {
				changes <- "gone"
			} else {
				changes <- (*event.New).Spec.ClusterIP
			}
		}
	})
	loaded := make(chan struct{})
	runInBackground(t, DirConfig{Objects: objects, Dirs: []string{config, state}, Loaded: func() { close(loaded) }})
	<-loaded
	want := func(what, ip string) {
		t.Helper()
		if got := <-changes; got != ip {
			t.Errorf("%s: service is now %s, want %s", what, got, ip)
		}
	}
	want("first load", "10.96.0.1")
	write(state, "a.yaml", service("10.96.0.2"))
	want("the state directory hides the configuration", "10.96.0.2")
	if err := os.Remove(filepath.Join(state, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	want("and no more", "10.96.0.1")
}
