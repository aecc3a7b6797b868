package source

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// checkMeta validates name, namespace, labels and annotations.
func checkMeta(o metav1.Object, namespaced bool) error {
	root := field.NewPath("metadata")
	name := apivalidation.NameIsDNSSubdomain
	switch o.(type) {
	case *corev1.Namespace:
		name = apivalidation.NameIsDNSLabel
	case *corev1.Service:
		name = apivalidation.NameIsDNS1035Label
	}
	var problems field.ErrorList
	for _, reason := range name(o.GetName(), false) {
		problems = append(problems, field.Invalid(root.Child("name"), o.GetName(), reason))
	}
	if namespaced {
		for _, reason := range apivalidation.ValidateNamespaceName(o.GetNamespace(), false) {
			problems = append(problems, field.Invalid(root.Child("namespace"), o.GetNamespace(), reason))
		}
	}
	problems = append(problems, metav1validation.ValidateLabels(o.GetLabels(), root.Child("labels"))...)
	problems = append(problems, apivalidation.ValidateAnnotations(o.GetAnnotations(), root.Child("annotations"))...)
	return firstProblem(problems)
}

// checkCore validates what a strict decode of core kinds leaves open and
// istiod relies on.
func checkCore(o any) error {
	switch o := o.(type) {
	case *corev1.Service:
		return checkService(o)
	case *corev1.Pod:
		if err := checkNames(o); err != nil {
			return err
		}
		return checkAddresses("status.podIPs", podIPs(o))
	}
	return nil
}

// checkNames validates what becomes part of identities and of messages.
func checkNames(p *corev1.Pod) error {
	for path, name := range map[string]string{"spec.serviceAccountName": p.Spec.ServiceAccountName, "spec.nodeName": p.Spec.NodeName} {
		if problems := apivalidation.NameIsDNSSubdomain(name, false); name != "" && len(problems) > 0 {
			return &fieldError{path, fmt.Sprintf("%q: %s", name, strings.Join(problems, "; "))}
		}
	}
	return nil
}

func checkService(s *corev1.Service) error {
	if s.Spec.Type != corev1.ServiceTypeExternalName {
		ips := s.Spec.ClusterIPs
		if len(ips) == 0 {
			ips = []string{s.Spec.ClusterIP}
		}
		if err := checkAddresses("spec.clusterIP", ips); err != nil {
			return err
		}
	}
	for i, port := range s.Spec.Ports {
		path := fmt.Sprintf("spec.ports[%d]", i)
		if port.Port < 1 || port.Port > 65535 {
			return &fieldError{path + ".port", fmt.Sprintf("%d is not between 1 and 65535", port.Port)}
		}
		if target := port.TargetPort.IntVal; target < 0 || target > 65535 {
			return &fieldError{path + ".targetPort", fmt.Sprintf("%d is not between 1 and 65535", target)}
		}
		switch port.Protocol {
		case "", corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP:
		default:
			return &fieldError{path + ".protocol", fmt.Sprintf("%q is none of TCP, UDP, SCTP", port.Protocol)}
		}
	}
	return nil
}

func podIPs(p *corev1.Pod) []string {
	out := []string{p.Status.PodIP}
	for _, ip := range p.Status.PodIPs {
		out = append(out, ip.IP)
	}
	return out
}

func checkAddresses(path string, texts []string) error {
	for _, text := range texts {
		if text == "" || text == corev1.ClusterIPNone {
			continue
		}
		if _, err := netip.ParseAddr(text); err != nil {
			return &fieldError{path, fmt.Sprintf("%q is not an IP address", text)}
		}
	}
	return nil
}

// splitField takes the field's path out of an error, as far as it names one.
func splitField(err error) (path, reason string) {
	if where, ok := err.(*fieldError); ok { //nolint:errorlint // made here, never wrapped
		return where.field, where.reason
	}
	text := err.Error()
	if _, rest, ok := strings.Cut(text, `unknown field "`); ok {
		if name, _, ok := strings.Cut(rest, `"`); ok {
			return name, "unknown field"
		}
	}
	return "", text
}
