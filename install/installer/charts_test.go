package installer

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/install/charts"
	"github.com/ambit-mesh/ambit/install/crds"
)

const system = "istio-system"

// edge is values that change as much as can be changed.
const edge = `
global:
  hub: registry.example:5000/mesh
  tag: 12345678
  imagePullPolicy: Always
  imagePullSecrets: [one, two]
  logging: {level: debug}
  multiCluster: {clusterName: east}
  network: blue
  proxy: {clusterDomain: corp.example}
  priorityClassName: important
istiod:
  tag: "1.20"
  replicaCount: 3
  pdb: {minAvailable: 1}
  autoscaleEnabled: true
  autoscaleMax: 7
  env: {GOMEMLIMIT: 1GiB, GOGC: 50}
  meshConfig: {trustDomain: corp.example, rootNamespace: policies}
  waypointImage: registry.example/wp@sha256:0000000000000000000000000000000000000000000000000000000000000000
  nodeSelector: {disk: ssd}
  affinity: {nodeAffinity: {}}
  tolerations: [{key: a, operator: Exists}]
  topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: istiod}}}]
  podLabels: {team: mesh}
  podAnnotations: {note: "yes"}
  serviceAnnotations: {note: "yes"}
  serviceAccountAnnotations: {note: "yes"}
cni:
  cniBinDir: /home/kubernetes/bin
  cniConfDir: /var/lib/cni/net.d
  cniNetnsDir: /var/run/docker/netns
  excludeNamespaces: [kube-system, other]
  ambient: {dnsCapture: false}
  logLevel: error
  updateStrategy: {type: OnDelete, rollingUpdate: null}
  resources: {limits: {memory: 1Gi}}
ztunnel:
  image: registry.example/z:9
  logAsJson: true
  logLevel: info,hbone:debug
  xdsAddress: istiod.example:15012
  env: {HTTP2_FRAME_SIZE: 65536, ENABLE_ORIG_SRC: true}
  updateStrategy: {rollingUpdate: {maxSurge: 0, maxUnavailable: 10%}}
`

func parse(t *testing.T, text string) map[string]any {
	t.Helper()
	var out map[string]any
	if err := yaml.Unmarshal([]byte(text), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// rendered returns the objects of the given charts, or of all.
func rendered(t *testing.T, values map[string]any, only ...string) []*unstructured.Unstructured {
	t.Helper()
	manifest, err := Render(t.Context(), system, values, only...)
	if err != nil {
		t.Fatal(err)
	}
	objects, err := decode(manifest)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

// as converts the one object of that kind and name.
func as[T any](t *testing.T, objects []*unstructured.Unstructured, kind, name string) T {
	t.Helper()
	var out T
	for _, o := range objects {
		if o.GetKind() == kind && o.GetName() == name {
			if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(o.Object, &out, true); err != nil {
				t.Fatalf("%s %s: %v", kind, name, err)
			}
			return out
		}
	}
	t.Fatalf("no %s %s", kind, name)
	return out
}

func podSpec(t *testing.T, objects []*unstructured.Unstructured, kind, name string) (corev1.PodTemplateSpec, int64) {
	t.Helper()
	if kind == kindDeployment {
		d := as[appsv1.Deployment](t, objects, kind, name)
		return d.Spec.Template, *d.Spec.Template.Spec.TerminationGracePeriodSeconds
	}
	d := as[appsv1.DaemonSet](t, objects, kind, name)
	return d.Spec.Template, *d.Spec.Template.Spec.TerminationGracePeriodSeconds
}

// running are the charts that run something: the definitions of base are many.
var running = []string{"istiod", "cni", "ztunnel"}

// theWorkloads are what the charts run.
var theWorkloads = []workload{{kind: kindDeployment, name: "istiod"}, {kind: kindDaemonSet, name: "ambit-cni"}, {kind: kindDaemonSet, name: "ztunnel"}}

func TestEveryValueSetRenders(t *testing.T) {
	for name, text := range map[string]string{"defaults": "{}", "edge": edge} {
		t.Run(name, func(t *testing.T) {
			seen := map[string]bool{}
			for _, o := range rendered(t, parse(t, text)) {
				id := o.GetKind() + "/" + o.GetNamespace() + "/" + o.GetName()
				if seen[id] {
					t.Errorf("%s is there twice", id)
				}
				seen[id] = true
				if _, clusterWide := map[string]bool{kindCRD: true, "ClusterRole": true, "ClusterRoleBinding": true}[o.GetKind()]; !clusterWide && o.GetNamespace() != system {
					t.Errorf("%s is not in %s", id, system)
				}
				if o.GetKind() != kindCRD && o.GetLabels()["app.kubernetes.io/part-of"] != "ambit" {
					t.Errorf("%s: labels %v do not say that it is of ambit", id, o.GetLabels())
				}
			}
		})
	}
}

func TestEdgeValuesArrive(t *testing.T) {
	objects := rendered(t, parse(t, edge), running...)
	istiod, _ := podSpec(t, objects, kindDeployment, "istiod")
	agent, _ := podSpec(t, objects, kindDaemonSet, "ambit-cni")
	proxy, _ := podSpec(t, objects, kindDaemonSet, "ztunnel")
	want := func(what string, got, want any) {
		t.Helper()
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s is %v, want %v", what, got, want)
		}
	}
	want("image of istiod, own tag and the global hub", istiod.Spec.Containers[0].Image, "registry.example:5000/mesh/istiod:1.20")
	want("image of ambit-cni, whose tag looks like a number", agent.Spec.Containers[0].Image, "registry.example:5000/mesh/ambit-cni:12345678")
	want("image of ztunnel, whole reference", proxy.Spec.Containers[0].Image, "registry.example/z:9")
	want("pull secrets", agent.Spec.ImagePullSecrets, []corev1.LocalObjectReference{{Name: "one"}, {Name: "two"}})
	want("priority of istiod", istiod.Spec.PriorityClassName, "important")
	want("label of istiod's pod", istiod.Labels["team"], "mesh")
	want("annotation of istiod's pod", istiod.Annotations["note"], "yes")
	env := environment(proxy.Spec.Containers[0])
	want("network", env["NETWORK"], "blue")
	want("cluster", env["CLUSTER_ID"], "east")
	want("xDS address", env["XDS_ADDRESS"], "istiod.example:15012")
	want("CA address", env["CA_ADDRESS"], "https://istiod.istio-system.svc:15012")
	want("log levels", env["RUST_LOG"], "info,hbone:debug")
	want("log format", env["LOG_FORMAT"], "json")
	want("further environment", env["ENABLE_ORIG_SRC"]+" "+env["HTTP2_FRAME_SIZE"], "true 65536")
	want("trusted accounts", environment(istiod.Spec.Containers[0])["CA_TRUSTED_NODE_ACCOUNTS"], "istio-system/ztunnel")
	want("memory limit of Go", environment(istiod.Spec.Containers[0])["GOMEMLIMIT"], "1GiB")
	for _, arg := range []string{
		"--cluster-domain=corp.example", "--cluster-id=east", "--network=blue", "--log-level=debug",
		"--waypoint-image=registry.example/wp@sha256:0000000000000000000000000000000000000000000000000000000000000000",
	} {
		want("istiod has "+arg, slices.Contains(istiod.Spec.Containers[0].Args, arg), true)
	}
	want("domain of the cluster", env["CLUSTER_DOMAIN"], "corp.example")
	for _, arg := range []string{"--log-level=error", "--netns-dir=/var/run/docker/netns", "--exclude-namespaces=kube-system,other", "--dns-capture=false"} {
		want("ambit-cni has "+arg, slices.Contains(agent.Spec.Containers[0].Args, arg), true)
	}
	want("host paths of ambit-cni", hostPaths(agent), map[string]string{
		"/host/opt/cni/bin": "/home/kubernetes/bin", "/host/etc/cni/net.d": "/var/lib/cni/net.d", "/var/run/docker/netns": "/var/run/docker/netns",
		"/host/proc": "/proc", "/host/proc/sys/net": "/proc/sys/net", "/var/run/ambit-cni": "/var/run/ambit-cni", "/var/run/ztunnel": "/var/run/ztunnel",
	})
	deployment := as[appsv1.Deployment](t, objects, kindDeployment, "istiod")
	want("replicas, which the autoscaler decides", deployment.Spec.Replicas == nil, true)
	config := as[corev1.ConfigMap](t, objects, "ConfigMap", "istio")
	want("mesh configuration", parse(t, config.Data["mesh"]), map[string]any{"trustDomain": "corp.example", "rootNamespace": "policies"})
	daemon := as[appsv1.DaemonSet](t, objects, kindDaemonSet, "ambit-cni")
	want("strategy", daemon.Spec.UpdateStrategy, appsv1.DaemonSetUpdateStrategy{Type: appsv1.OnDeleteDaemonSetStrategyType})
}

func environment(c corev1.Container) map[string]string {
	out := map[string]string{}
	for _, e := range c.Env {
		out[e.Name] = e.Value
		if e.ValueFrom != nil && e.ValueFrom.FieldRef != nil {
			out[e.Name] = "field " + e.ValueFrom.FieldRef.FieldPath
		}
	}
	return out
}

// hostPaths are the directories of the node that the pod's first container
// sees, by where it sees them.
func hostPaths(pod corev1.PodTemplateSpec) map[string]string {
	out := map[string]string{}
	for _, m := range pod.Spec.Containers[0].VolumeMounts {
		for _, v := range pod.Spec.Volumes {
			if v.Name == m.Name && v.HostPath != nil {
				out[m.MountPath] = v.HostPath.Path
			}
		}
	}
	return out
}

func TestContainersAreContained(t *testing.T) {
	may := map[string][]corev1.Capability{
		"istiod":    nil,
		"ztunnel":   {"NET_ADMIN", "NET_RAW", "SYS_ADMIN"},
		"ambit-cni": {"DAC_OVERRIDE", "NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE"},
	}
	for _, text := range []string{"{}", edge} {
		objects := rendered(t, parse(t, text), running...)
		for _, w := range theWorkloads {
			pod, grace := podSpec(t, objects, w.kind, w.name)
			if grace != 30 {
				t.Errorf("%s: grace period %d s", w.name, grace)
			}
			if len(pod.Spec.Containers) != 1 || len(pod.Spec.InitContainers) != 0 {
				t.Errorf("%s has more than one container", w.name)
			}
			if pod.Spec.HostPID || pod.Spec.HostIPC || pod.Spec.HostNetwork != (w.name == "ambit-cni") {
				t.Errorf("%s shares more of the node than it needs", w.name)
			}
			c := pod.Spec.Containers[0]
			if c.ReadinessProbe == nil {
				t.Errorf("%s has no readiness probe", w.name)
			}
			if (c.LivenessProbe == nil) != (w.name == "ztunnel") {
				t.Errorf("%s: liveness probe %v; only ztunnel must not be restarted", w.name, c.LivenessProbe)
			}
			if len(c.Resources.Requests) == 0 && len(c.Resources.Limits) == 0 {
				t.Errorf("%s has no resources", w.name)
			}
			s := c.SecurityContext
			if s == nil || s.Capabilities == nil || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
				t.Fatalf("%s does not drop all capabilities", w.name)
			}
			added := slices.Sorted(slices.Values(s.Capabilities.Add))
			if !slices.Equal(added, may[w.name]) {
				t.Errorf("%s has capabilities %v, want %v", w.name, added, may[w.name])
			}
			if s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem || s.Privileged != nil && *s.Privileged {
				t.Errorf("%s can write to its root, or is privileged", w.name)
			}
			seccomp := s.SeccompProfile
			if seccomp == nil {
				seccomp = pod.Spec.SecurityContext.SeccompProfile
			}
			if seccomp == nil || seccomp.Type != corev1.SeccompProfileTypeRuntimeDefault {
				t.Errorf("%s has seccomp profile %v", w.name, seccomp)
			}
			if w.name == "istiod" {
				if p := pod.Spec.SecurityContext; p == nil || p.RunAsNonRoot == nil || !*p.RunAsNonRoot || *s.AllowPrivilegeEscalation {
					t.Errorf("istiod may become root")
				}
			}
		}
	}
}

func TestPermissionsAreNamed(t *testing.T) {
	objects := rendered(t, nil, running...)
	secrets := 0
	for _, o := range objects {
		if o.GetKind() != "ClusterRole" && o.GetKind() != "Role" {
			continue
		}
		role := as[rbacv1.ClusterRole](t, objects, o.GetKind(), o.GetName())
		for _, rule := range role.Rules {
			all := slices.Concat(rule.APIGroups, rule.Resources, rule.Verbs)
			if slices.ContainsFunc(all, func(s string) bool { return strings.Contains(s, "*") }) || len(rule.NonResourceURLs) > 0 {
				t.Errorf("%s %s: wildcard in %+v", o.GetKind(), o.GetName(), rule)
			}
			for _, resource := range []string{"secrets", "pods/exec", "serviceaccounts/token", "clusterroles", "roles", "clusterrolebindings", "rolebindings", "nodes/proxy"} {
				if !slices.Contains(rule.Resources, resource) {
					continue
				}
				named := len(rule.ResourceNames) > 0 || slices.Equal(rule.Verbs, []string{"create"})
				if resource != "secrets" || o.GetKind() != "Role" || !named {
					t.Errorf("%s %s grants %v of %s", o.GetKind(), o.GetName(), rule.Verbs, resource)
				}
				secrets++
			}
		}
	}
	if secrets == 0 {
		t.Error("no rule grants istiod its own key: this test looks at nothing")
	}
}

func TestUnknownValuesAreRefused(t *testing.T) {
	for _, text := range []string{
		"istio: {}", "global: {hubb: x}", "istiod: {replicas: 1}", "istiod: {meshConfig: {accessLogFile: /dev/stdout}}",
		"istiod: {env: {PILOT_ENABLE_AMBIENT: true}}", "cni: {ambient: {enabled: true}}", "cni: {cniBinDir: relative}",
		"ztunnel: {resources: {limit: {}}}", "base: {validationURL: x}", "istiod: {resources: {requests: {cpu: [1]}}}",
		"global: {istioNamespace: other}", "cni: {logLevel: loud}", "istiod: {global: {nothing: 1}}", "ztunnel: 3",
		// What a chart writes itself, a value would write a second time.
		"istiod: {podLabels: {app: x}}", "istiod: {podAnnotations: {prometheus.io/port: '1'}}", "ztunnel: {env: {NETWORK: x}}",
		"ztunnel: {podLabels: {istio.io/dataplane-mode: ambient}}",
		"istiod: {meshConfig: {trustDomain: Example.org}}", "istiod: {meshConfig: {trustDomain: 'spiffe://x'}}",
	} {
		if _, err := Render(t.Context(), system, parse(t, text)); err == nil {
			t.Errorf("values %s are accepted", text)
		}
	}
}

// Every value has a default and a comment, and the schema knows every default.
func TestValuesAreDocumented(t *testing.T) {
	for _, p := range append(parts, part{chart: umbrella}) {
		text, err := charts.FS.ReadFile(path.Join(p.chart, "values.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		schema := map[string]any{}
		raw, err := charts.FS.ReadFile(path.Join(p.chart, "values.schema.json"))
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(raw, &schema); err != nil {
			t.Fatal(err)
		}
		properties := schema["properties"].(map[string]any)
		values := parse(t, string(text))
		if got, want := slices.Sorted(maps.Keys(values)), slices.Sorted(maps.Keys(properties)); !slices.Equal(got, want) {
			t.Errorf("chart %s: values.yaml has %v, the schema has %v", p.chart, got, want)
		}
		if !strings.HasPrefix(string(text), "# Values of ") {
			t.Errorf("chart %s: values.yaml does not say what it is", p.chart)
		}
	}
}

// The umbrella installs what the four install, and so do values from manifest
// values.
func TestUmbrellaIsTheFour(t *testing.T) {
	c, err := load(umbrella)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"defaults": "{}", "edge": edge} {
		rel, err := render(t.Context(), c, "ambit", system, parse(t, text))
		if err != nil {
			t.Fatal(err)
		}
		one, err := decode([]byte(rel.Manifest))
		if err != nil {
			t.Fatal(err)
		}
		four := rendered(t, parse(t, text))
		got, want := byID(one), byID(four)
		if !slices.Equal(slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want))) {
			t.Fatalf("%s: the umbrella has\n%v\nthe four have\n%v", name, slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
		}
		for id := range want {
			for _, field := range []string{"spec", "rules", "subjects", "roleRef", "data"} {
				if strings.HasPrefix(id, kindDeployment) || strings.HasPrefix(id, kindDaemonSet) {
					continue // their pods' labels name the release; see below
				}
				if !reflect.DeepEqual(got[id][field], want[id][field]) {
					t.Errorf("%s: %s of %s differs", name, field, id)
				}
			}
		}
		for _, w := range theWorkloads {
			a, _ := podSpec(t, one, w.kind, w.name)
			b, _ := podSpec(t, four, w.kind, w.name)
			if !reflect.DeepEqual(a.Spec, b.Spec) {
				t.Errorf("%s: pod of %s differs", name, w.name)
			}
		}
	}
	for _, link := range parts {
		target, err := os.Readlink(path.Join("../charts/ambient/charts", link.chart))
		if err != nil || target != "../../"+link.chart {
			t.Errorf("chart ambient does not link to %s: %q, %v", link.chart, target, err)
		}
	}
}

func byID(objects []*unstructured.Unstructured) map[string]map[string]any {
	out := map[string]map[string]any{}
	for _, o := range objects {
		out[o.GetKind()+" "+o.GetName()] = o.Object
	}
	return out
}

func TestPrintedValuesCanBeGiven(t *testing.T) {
	text, err := Values()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := byID(rendered(t, parse(t, text))), byID(rendered(t, nil)); !reflect.DeepEqual(got, want) {
		t.Error("an install with the printed values differs from one without values")
	}
}

func TestDefinitionsCanBeLeftOut(t *testing.T) {
	all := names(rendered(t, nil), kindCRD)
	if len(all) < 10 {
		t.Fatalf("only %d definitions", len(all))
	}
	values := parse(t, fmt.Sprintf("base: {base: {excludedCRDs: [%s]}}", all[0]))
	if got := names(rendered(t, values), kindCRD); !slices.Equal(got, all[1:]) {
		t.Errorf("without %s there are %v", all[0], got)
	}
	values = parse(t, fmt.Sprintf("base: {base: {excludedCRDs: [%s]}}", strings.Join(all, ", ")))
	if got := names(rendered(t, values), kindCRD); len(got) > 0 {
		t.Errorf("without all there are %v", got)
	}
	if got := names(rendered(t, parse(t, "base: {base: {enableCRDTemplates: false}}")), kindCRD); len(got) > 0 {
		t.Errorf("without any there are %v", got)
	}
	for _, o := range rendered(t, nil) {
		if o.GetKind() == kindCRD && o.GetAnnotations()["helm.sh/resource-policy"] != "keep" {
			t.Errorf("%s would go with its release, and all objects of its kind", o.GetName())
		}
	}
}

func TestOtherNamespacesAreRefused(t *testing.T) {
	for _, chart := range running {
		_, err := Render(t.Context(), "elsewhere", nil, chart)
		if err == nil || !strings.Contains(err.Error(), "works in namespace istio-system only, not in elsewhere") {
			t.Errorf("chart %s: %v", chart, err)
		}
	}
}

// istiod waits for ever for a kind of the mesh that the cluster has and that it
// may not read, and writes the status of every one of Istio's.
func TestIstiodMayReadEveryKind(t *testing.T) {
	role := as[rbacv1.ClusterRole](t, rendered(t, nil, "istiod"), "ClusterRole", "istiod")
	may := func(group, resource string, verbs ...string) bool {
		return slices.ContainsFunc(role.Rules, func(r rbacv1.PolicyRule) bool {
			return slices.Contains(r.APIGroups, group) && slices.Contains(r.Resources, resource) && len(r.ResourceNames) == 0 &&
				!slices.ContainsFunc(verbs, func(v string) bool { return !slices.Contains(r.Verbs, v) })
		})
	}
	for _, name := range append(definitionNames(t, crds.Istio), definitionNames(t, gatewayBundle(t))...) {
		plural, group, _ := strings.Cut(name, ".")
		if !may(group, plural, "get", "list", "watch") {
			t.Errorf("istiod may not read %s", name)
		}
		if group != gatewayGroup && !may(group, plural+"/status", "patch", "update") {
			t.Errorf("istiod may not write the status of %s", name)
		}
	}
}

func definitionNames(t *testing.T, manifest []byte) []string {
	t.Helper()
	objects, err := decode(manifest)
	if err != nil {
		t.Fatal(err)
	}
	return names(objects, kindCRD)
}

// gatewayBundle is what the build copies, read where it copies it from.
func gatewayBundle(t *testing.T) []byte {
	t.Helper()
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api").Output()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), "config/crd/standard/*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no definitions in %s: %v", dir, err)
	}
	var out bytes.Buffer
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		out.WriteString("---\n")
		out.Write(text)
	}
	return out.Bytes()
}

func TestHelpersAreTheSame(t *testing.T) {
	var first []byte
	for _, chart := range []string{"istiod", "cni", "ztunnel"} {
		text, err := charts.FS.ReadFile(chart + "/templates/_helpers.tpl")
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = text
		} else if !slices.Equal(first, text) {
			t.Errorf("_helpers.tpl of %s differs from that of istiod", chart)
		}
	}
}
