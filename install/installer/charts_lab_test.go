package installer

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// The lab runs the same objects as the charts install: what it has is a part of
// what they have.
func TestAgreesWithTheLab(t *testing.T) {
	text, err := os.ReadFile("../../integration/lab/mesh.yaml")
	if err != nil {
		t.Fatal(err)
	}
	lab, err := decode(text)
	if err != nil {
		t.Fatal(err)
	}
	ours := rendered(t, nil, running...)
	for _, o := range lab {
		switch o.GetKind() {
		case "Namespace":
			if o.GetName() != system {
				t.Errorf("namespace %s", o.GetName())
			}
		case "ServiceAccount":
			as[corev1.ServiceAccount](t, ours, "ServiceAccount", o.GetName())
		case "Service":
			a, b := as[corev1.Service](t, lab, "Service", o.GetName()), as[corev1.Service](t, ours, "Service", o.GetName())
			for n := range b.Spec.Ports {
				b.Spec.Ports[n].Protocol = "" // the default
			}
			if !reflect.DeepEqual(a.Spec, b.Spec) {
				t.Errorf("service %s:\nlab    %+v\ncharts %+v", o.GetName(), a.Spec, b.Spec)
			}
		}
	}
	for _, w := range theWorkloads {
		a, _ := podSpec(t, lab, w.kind, w.name)
		b, _ := podSpec(t, ours, w.kind, w.name)
		comparePods(t, w.name, a, b)
	}
}

// labOnly are arguments and variables of the lab that stand for the API server
// and the kubelet.
var labOnly = []string{"--config-dir", "--state-dir", "--listen-address", "--jwks-file", "--jwt-issuer", "--jwt-audience", "POD_IP"}

func comparePods(t *testing.T, name string, lab, ours corev1.PodTemplateSpec) {
	t.Helper()
	for key, value := range lab.Labels {
		if ours.Labels[key] != value {
			t.Errorf("%s: label %s=%s of the lab is %q in the chart", name, key, value, ours.Labels[key])
		}
	}
	if lab.Spec.ServiceAccountName != ours.Spec.ServiceAccountName {
		t.Errorf("%s: account %s in the lab, %s in the chart", name, lab.Spec.ServiceAccountName, ours.Spec.ServiceAccountName)
	}
	if name != "ztunnel" && lab.Spec.HostNetwork != ours.Spec.HostNetwork { // the lab has no pod network for it
		t.Errorf("%s: host network %v in the lab, %v in the chart", name, lab.Spec.HostNetwork, ours.Spec.HostNetwork)
	}
	a, b := lab.Spec.Containers[0], ours.Spec.Containers[0]
	if a.Name != b.Name || a.Image != b.Image {
		t.Errorf("%s: container %s of %s in the lab, %s of %s in the chart", name, a.Name, a.Image, b.Name, b.Image)
	}
	for _, arg := range a.Args {
		flag, _, _ := strings.Cut(arg, "=")
		if !slices.Contains(labOnly, flag) && !slices.Contains(b.Args, arg) {
			t.Errorf("%s: the lab has argument %s, the chart has %v", name, arg, b.Args)
		}
	}
	theirs := environment(b)
	for key, value := range environment(a) {
		if !slices.Contains(labOnly, key) && theirs[key] != value {
			t.Errorf("%s: %s is %q in the lab, %q in the chart", name, key, value, theirs[key])
		}
	}
	for _, port := range a.Ports {
		if !slices.ContainsFunc(b.Ports, func(p corev1.ContainerPort) bool { return p.Name == port.Name && p.ContainerPort == port.ContainerPort }) {
			t.Errorf("%s: the lab has port %s %d, the chart has %v", name, port.Name, port.ContainerPort, b.Ports)
		}
	}
	if a.ReadinessProbe.HTTPGet != nil && !reflect.DeepEqual(a.ReadinessProbe.HTTPGet, b.ReadinessProbe.HTTPGet) {
		t.Errorf("%s: readiness is %v in the lab, %v in the chart", name, a.ReadinessProbe.HTTPGet, b.ReadinessProbe.HTTPGet)
	}
	for path, host := range hostPaths(lab) {
		if got := hostPaths(ours)[path]; got != host {
			t.Errorf("%s: %s is %s of the node in the lab, %s in the chart", name, path, host, got)
		}
	}
	for _, v := range lab.Spec.Volumes {
		for _, w := range ours.Spec.Volumes {
			if v.Name == w.Name && (v.ConfigMap != nil && v.ConfigMap.Name != w.ConfigMap.Name ||
				v.Projected != nil && v.Projected.Sources[0].ServiceAccountToken.Audience != w.Projected.Sources[0].ServiceAccountToken.Audience) {
				t.Errorf("%s: volume %s differs", name, v.Name)
			}
		}
	}
}
