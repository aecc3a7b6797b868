// Package deploy makes the Kubernetes objects that run a waypoint: the
// ServiceAccount, Deployment and Service of a Gateway.
//
// It is pure: Waypoint turns a Gateway and options into typed objects, with
// their kinds set, and whoever calls it applies them. It decides neither
// whether a Gateway is to be deployed (istiod/gateway) nor what its status says.
// The rules are those of spec/control-plane.md §6.2; the container is ours.
package deploy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/apis/mesh"
)

// Annotations of a Gateway that change how it is deployed.
const (
	annotationName           = "gateway.istio.io/name-override"
	annotationServiceAccount = "gateway.istio.io/service-account"
	annotationServiceType    = "networking.istio.io/service-type"
)

// Options is what all waypoints of a mesh have in common.
type Options struct {
	Image           string // as a container names it
	ClusterDomain   string
	ClusterID       string
	TrustDomain     string
	Network         string
	SystemNamespace string // where istiod is

	// Overlays are applied in order: first that of the class, then the
	// Gateway's own.
	Overlays []Overlay
}

// Overlay is a ConfigMap whose entries are patches of the objects.
type Overlay struct {
	Source string            // for errors: "ConfigMap namespace/name"
	Data   map[string]string // deployment, service, serviceAccount -> strategic merge patch in YAML
}

// Objects are what runs a waypoint.
type Objects struct {
	ServiceAccount *corev1.ServiceAccount
	Deployment     *appsv1.Deployment
	Service        *corev1.Service
}

// ParametersRef returns the name of the ConfigMap in the Gateway's namespace
// that holds its overlay; empty when it has none. The error is a reference to
// anything else.
func ParametersRef(g *gatewayv1.Gateway) (string, error) {
	if g.Spec.Infrastructure == nil || g.Spec.Infrastructure.ParametersRef == nil {
		return "", nil
	}
	ref := g.Spec.Infrastructure.ParametersRef
	if ref.Group != "" || ref.Kind != "ConfigMap" {
		return "", fmt.Errorf("spec.infrastructure.parametersRef: kind %q in group %q is not a ConfigMap", ref.Kind, ref.Group)
	}
	return ref.Name, nil
}

// Waypoint returns the objects that run a Gateway of class istio-waypoint. The
// error is the user's: a name or an overlay that cannot be used.
func Waypoint(g *gatewayv1.Gateway, o Options) (Objects, error) {
	if class := g.Spec.GatewayClassName; class != mesh.WaypointGatewayClass {
		return Objects{}, fmt.Errorf("gateways of class %s are not deployed", class)
	}
	w := newWaypoint(g, o)
	if problems := validation.IsDNS1035Label(w.name); len(problems) > 0 {
		return Objects{}, fmt.Errorf("name %q cannot be that of a Service: %s", w.name, strings.Join(problems, "; "))
	}
	if problems := validation.IsDNS1123Subdomain(w.account); len(problems) > 0 {
		return Objects{}, fmt.Errorf("name %q cannot be that of a ServiceAccount: %s", w.account, strings.Join(problems, "; "))
	}
	if problems := validation.IsValidLabelValue(g.Name); len(problems) > 0 {
		return Objects{}, fmt.Errorf("name %q cannot be the value of a label: %s", g.Name, strings.Join(problems, "; "))
	}
	objects := Objects{ServiceAccount: w.serviceAccount(), Deployment: w.deployment(), Service: w.service()}
	for _, overlay := range o.Overlays {
		if err := overlay.apply(&objects); err != nil {
			return Objects{}, fmt.Errorf("%s: %w", overlay.Source, err)
		}
	}
	return objects, nil
}

// waypoint is one Gateway on its way to objects.
type waypoint struct {
	options     Options
	gateway     *gatewayv1.Gateway
	name        string
	account     string
	labels      map[string]string // of every object
	annotations map[string]string
}

func newWaypoint(g *gatewayv1.Gateway, o Options) waypoint {
	w := waypoint{options: o, gateway: g, labels: map[string]string{}, annotations: map[string]string{}}
	w.name = cmp.Or(g.Annotations[annotationName], g.Name)
	w.account = cmp.Or(g.Annotations[annotationServiceAccount], w.name)
	w.options.ClusterDomain = cmp.Or(o.ClusterDomain, mesh.DefaultClusterDomain)
	w.options.SystemNamespace = cmp.Or(o.SystemNamespace, mesh.DefaultSystemNamespace)
	w.inherit()
	w.labels[mesh.LabelGatewayName] = g.Name
	w.labels[mesh.LabelGatewayClassName] = string(g.Spec.GatewayClassName)
	w.labels[mesh.LabelGatewayManaged] = mesh.ManagedMeshController
	return w
}

// inherit takes the labels and annotations that the user wants on the objects:
// those of spec.infrastructure, or else the Gateway's own.
func (w *waypoint) inherit() {
	labels, annotations := w.gateway.Labels, w.gateway.Annotations
	if infrastructure := w.gateway.Spec.Infrastructure; infrastructure != nil {
		if infrastructure.Labels != nil {
			labels = plain(infrastructure.Labels)
		}
		if infrastructure.Annotations != nil {
			annotations = plain(infrastructure.Annotations)
		}
	}
	for name, value := range labels {
		if !strings.HasPrefix(name, gatewayv1.GroupName+"/") {
			w.labels[name] = value
		}
	}
	for name, value := range annotations {
		switch {
		case strings.HasPrefix(name, gatewayv1.GroupName+"/"), strings.HasPrefix(name, "gateway.istio.io/"):
		case name == corev1.LastAppliedConfigAnnotation, name == annotationServiceType:
		default:
			w.annotations[name] = value
		}
	}
}

func plain[K, V ~string](m map[K]V) map[string]string {
	out := make(map[string]string, len(m))
	for name, value := range m {
		out[string(name)] = string(value)
	}
	return out
}

func (w waypoint) meta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name:        name,
		Namespace:   w.gateway.Namespace,
		Labels:      maps.Clone(w.labels),
		Annotations: maps.Clone(w.annotations),
		OwnerReferences: []metav1.OwnerReference{{
			APIVersion: gatewayv1.GroupVersion.String(),
			Kind:       "Gateway",
			Name:       w.gateway.Name,
			UID:        w.gateway.UID,
		}},
	}
}

func (w waypoint) selector() map[string]string {
	return map[string]string{mesh.LabelGatewayName: w.gateway.Name}
}

func (w waypoint) serviceAccount() *corev1.ServiceAccount {
	return &corev1.ServiceAccount{
		APIVersion: "v1",
		Kind:       "ServiceAccount",
		ObjectMeta: w.meta(w.account),
	}
}

func (w waypoint) service() *corev1.Service {
	dual := corev1.IPFamilyPolicyPreferDualStack
	out := &corev1.Service{
		APIVersion: "v1",
		Kind:       "Service",
		ObjectMeta: w.meta(w.name),
		Spec: corev1.ServiceSpec{
			Type:           corev1.ServiceTypeClusterIP,
			IPFamilyPolicy: &dual,
			Selector:       w.selector(),
			Ports:          w.servicePorts(),
		},
	}
	if kind := w.gateway.Annotations[annotationServiceType]; kind != "" {
		out.Spec.Type = corev1.ServiceType(kind)
	}
	if out.Annotations[mesh.AnnotationTrafficDistribution] == "" {
		out.Annotations[mesh.AnnotationTrafficDistribution] = "PreferClose"
	}
	return out
}

// servicePorts are one for each number among the listeners, besides the one for
// readiness.
func (w waypoint) servicePorts() []corev1.ServicePort {
	status := "tcp"
	out := []corev1.ServicePort{{
		Name: "status-port", Protocol: corev1.ProtocolTCP, Port: mesh.PortReadiness,
		TargetPort: intstr.FromInt32(mesh.PortReadiness), AppProtocol: &status,
	}}
	for i := range w.gateway.Spec.Listeners {
		listener := &w.gateway.Spec.Listeners[i]
		known := func(p corev1.ServicePort) bool { return p.Port == listener.Port }
		if slices.ContainsFunc(out, known) {
			continue
		}
		protocol := strings.ToLower(string(listener.Protocol))
		out = append(out, corev1.ServicePort{
			Name: portName(string(listener.Name), out), Protocol: corev1.ProtocolTCP, Port: listener.Port,
			TargetPort: intstr.FromInt32(listener.Port), AppProtocol: &protocol,
		})
	}
	return out
}

// portName makes a port's name of a listener's: dots are not allowed in it, and
// neither is a name that another port has.
func portName(listener string, taken []corev1.ServicePort) string {
	const longest = validation.DNS1123LabelMaxLength
	base := strings.ReplaceAll(listener, ".", "-")
	name := strings.Trim(base[:min(len(base), longest)], "-")
	for n := 2; slices.ContainsFunc(taken, func(p corev1.ServicePort) bool { return p.Name == name }); n++ {
		suffix := "-" + strconv.Itoa(n)
		name = base[:min(len(base), longest-len(suffix))] + suffix
	}
	return name
}
