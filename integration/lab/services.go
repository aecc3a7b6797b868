package lab

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// clusterIPs gives Services their addresses.
type clusterIPs map[types.NamespacedName]netip.Addr

// assign decides the address of each Service that has one: what it asks for,
// else what it had, else one that its name leads to, so that the same manifests
// get the same addresses. It returns what it refused.
func (c clusterIPs) assign(services []*corev1.Service) []error {
	taken := map[netip.Addr]types.NamespacedName{dnsAddress: {Namespace: "the lab", Name: "DNS server"}}
	var refused []error
	var rest []types.NamespacedName
	known := map[types.NamespacedName]bool{}
	for _, s := range services {
		name := namespacedName(s.ObjectMeta)
		if s.Spec.Type == corev1.ServiceTypeExternalName || s.Spec.ClusterIP == corev1.ClusterIPNone {
			continue
		}
		known[name] = true
		if s.Spec.ClusterIP == "" {
			rest = append(rest, name)
			continue
		}
		address, err := netip.ParseAddr(s.Spec.ClusterIP)
		other, used := taken[address]
		switch {
		case err != nil || !serviceNetwork.Contains(address):
			refused = append(refused, fmt.Errorf("service %s: clusterIP %s is not in %s", name, s.Spec.ClusterIP, serviceNetwork))
			delete(c, name)
		case used:
			refused = append(refused, fmt.Errorf("service %s: clusterIP %s is taken by %s", name, address, other))
			delete(c, name)
		default:
			taken[address], c[name] = name, address
		}
	}
	for name := range c {
		if !known[name] {
			delete(c, name)
		}
	}
	for _, name := range rest {
		address, ok := c[name]
		if other, used := taken[address]; !ok || (used && other != name) {
			address = freeAddress(name, taken)
		}
		taken[address], c[name] = name, address
	}
	return refused
}

// freeAddress starts where the name's hash points to and takes the next free.
func freeAddress(name types.NamespacedName, taken map[netip.Addr]types.NamespacedName) netip.Addr {
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(name.String()))
	for i := hash.Sum32(); ; i++ {
		a := serviceNetwork.Addr().As4()
		binary.BigEndian.PutUint16(a[2:], uint16(i))
		address := netip.AddrFrom4(a)
		// The first and the last few are left for those who ask for them.
		if _, used := taken[address]; !used && i&0xffff > 0xff && i&0xffff < 0xfffe {
			return address
		}
	}
}

func namespacedName(m metav1.ObjectMeta) types.NamespacedName {
	return types.NamespacedName{Namespace: cmp.Or(m.Namespace, corev1.NamespaceDefault), Name: m.Name}
}

// endpointPort is a Service's port at one endpoint.
type endpointPort struct {
	name        string
	protocol    corev1.Protocol
	appProtocol string
	port        int32  // at the endpoint
	service     uint16 // of the Service
}

// endpoint is a pod, or an address that the user has listed, behind a Service.
type endpoint struct {
	address     netip.Addr
	pod         *pod // nil for a listed address
	hostname    string
	ready       bool
	terminating bool
	ports       []endpointPort
}

// backend is a Service with its address and endpoints.
type backend struct {
	service   *corev1.Service
	address   netip.Addr // invalid for a headless Service
	endpoints []endpoint
}

func (b backend) name() types.NamespacedName { return namespacedName(b.service.ObjectMeta) }

func (b backend) headless() bool { return b.service.Spec.ClusterIP == corev1.ClusterIPNone }

// selectEndpoints finds the pods behind a Service, sorted by name.
func selectEndpoints(s *corev1.Service, pods []*pod) []endpoint {
	if len(s.Spec.Selector) == 0 {
		return nil
	}
	selector := labels.SelectorFromSet(s.Spec.Selector)
	var found []endpoint
	for _, p := range pods {
		if p.namespace != namespacedName(s.ObjectMeta).Namespace || p.phase != corev1.PodRunning || !p.hasAddress || !selector.Matches(labels.Set(p.labels)) {
			continue
		}
		e := endpoint{address: p.address, pod: p, terminating: p.terminating, ready: p.ready()}
		if s.Spec.PublishNotReadyAddresses {
			e.ready = true
		}
		if p.spec.Subdomain == s.Name {
			e.hostname = p.spec.Hostname
		}
		for _, port := range s.Spec.Ports {
			if number := targetPort(port, p.spec); number != 0 {
				e.ports = append(e.ports, endpointPort{
					name: port.Name, protocol: cmp.Or(port.Protocol, corev1.ProtocolTCP), port: number,
					service: uint16(port.Port), appProtocol: dereference(port.AppProtocol),
				})
			}
		}
		found = append(found, e)
	}
	return found
}

// targetPort is the port of a Service at a pod, 0 if the pod has none of that
// name.
func targetPort(port corev1.ServicePort, spec corev1.PodSpec) int32 {
	if port.TargetPort.Type == intstr.Int {
		return cmp.Or(port.TargetPort.IntVal, port.Port)
	}
	return namedPort(spec.Containers, port.TargetPort.StrVal, cmp.Or(port.Protocol, corev1.ProtocolTCP))
}

func namedPort(containers []corev1.Container, name string, protocol corev1.Protocol) int32 {
	for _, container := range containers {
		for _, p := range container.Ports {
			if p.Name == name && cmp.Or(p.Protocol, corev1.ProtocolTCP) == protocol {
				return p.ContainerPort
			}
		}
	}
	return 0
}

// listedEndpoints takes the addresses that the user gave a Service without a
// selector.
func listedEndpoints(s *corev1.Service, listed []*discoveryv1.EndpointSlice) []endpoint {
	var found []endpoint
	for _, slice := range listed {
		for _, e := range slice.Endpoints {
			for _, text := range e.Addresses {
				address, err := netip.ParseAddr(text)
				if err != nil || !address.Is4() { // the lab's networks are IPv4
					continue
				}
				ready := e.Conditions.Ready == nil || *e.Conditions.Ready
				at := endpoint{address: address, hostname: dereference(e.Hostname), ready: ready}
				for _, port := range slice.Ports {
					for _, own := range s.Spec.Ports {
						if own.Name == dereference(port.Name) && port.Port != nil {
							at.ports = append(at.ports, endpointPort{
								name: own.Name, protocol: cmp.Or(own.Protocol, corev1.ProtocolTCP),
								port: *port.Port, service: uint16(own.Port),
							})
						}
					}
				}
				found = append(found, at)
			}
		}
	}
	return found
}

func dereference[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

// vips says what the nodes must translate.
func vips(backends []backend) []vip {
	var all []vip
	for _, b := range backends {
		if !b.address.IsValid() {
			continue
		}
		for _, port := range b.service.Spec.Ports {
			v := vip{address: netip.AddrPortFrom(b.address, uint16(port.Port))}
			switch cmp.Or(port.Protocol, corev1.ProtocolTCP) {
			case corev1.ProtocolTCP:
				v.protocol = unix.IPPROTO_TCP
			case corev1.ProtocolUDP:
				v.protocol = unix.IPPROTO_UDP
			default:
				continue // SCTP
			}
			for _, e := range b.endpoints {
				for _, p := range e.ports {
					if e.ready && p.service == v.address.Port() && p.protocol == cmp.Or(port.Protocol, corev1.ProtocolTCP) {
						v.endpoints = append(v.endpoints, netip.AddrPortFrom(e.address, uint16(p.port)))
					}
				}
			}
			all = append(all, v)
		}
	}
	return all
}

// endpointSlices describes the endpoints of a Service as Kubernetes does: one
// slice for each set of ports, as named ports may differ from pod to pod.
func endpointSlices(b backend) []*discoveryv1.EndpointSlice {
	bySet := map[string]*discoveryv1.EndpointSlice{}
	var order []string
	for _, e := range b.endpoints {
		if e.pod == nil {
			continue // the user's slice says it
		}
		var set strings.Builder
		for _, p := range e.ports {
			fmt.Fprintf(&set, "%s/%s/%d ", p.name, p.protocol, p.port)
		}
		slice := bySet[set.String()]
		if slice == nil {
			slice = newSlice(b, set.String(), e.ports)
			bySet[set.String()] = slice
			order = append(order, set.String())
		}
		slice.Endpoints = append(slice.Endpoints, sliceEndpoint(e, b.service.Spec.PublishNotReadyAddresses))
	}
	slices.Sort(order)
	var all []*discoveryv1.EndpointSlice
	for _, set := range order {
		all = append(all, bySet[set])
	}
	return all
}

func newSlice(b backend, set string, ports []endpointPort) *discoveryv1.EndpointSlice {
	name := b.name()
	slice := &discoveryv1.EndpointSlice{
		APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice",
		Namespace: name.Namespace, Name: name.Name + "-" + shortHash(set)[:5],
		Labels: map[string]string{
			discoveryv1.LabelServiceName: name.Name,
			discoveryv1.LabelManagedBy:   "endpointslice-controller.k8s.io",
		},
		OwnerReferences: []metav1.OwnerReference{{
			APIVersion: "v1", Kind: "Service", Name: name.Name, Controller: new(true), BlockOwnerDeletion: new(true),
			UID: types.UID(cmp.Or(string(b.service.UID), derivedUID("Service", name.Namespace, name.Name))),
		}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	if b.headless() {
		slice.Labels[corev1.IsHeadlessService] = ""
	}
	for _, p := range ports {
		port := discoveryv1.EndpointPort{Name: new(p.name), Protocol: new(p.protocol), Port: new(p.port)}
		if p.appProtocol != "" {
			port.AppProtocol = new(p.appProtocol)
		}
		slice.Ports = append(slice.Ports, port)
	}
	return slice
}

func sliceEndpoint(e endpoint, publishNotReady bool) discoveryv1.Endpoint {
	serving := publishNotReady || e.pod.containersReady()
	result := discoveryv1.Endpoint{
		Addresses:  []string{e.address.String()},
		Conditions: discoveryv1.EndpointConditions{Ready: new(e.ready), Serving: new(serving), Terminating: new(e.terminating)},
		NodeName:   new(e.pod.node.name),
		TargetRef: &corev1.ObjectReference{
			Kind: "Pod", Namespace: e.pod.namespace, Name: e.pod.name, UID: types.UID(e.pod.uid),
		},
	}
	if e.hostname != "" {
		result.Hostname = new(e.hostname)
	}
	return result
}

// shortHash is ten letters and digits that stand for the text, of the alphabet
// that Kubernetes uses in generated names.
func shortHash(text string) string {
	hash := fnv.New64a()
	_, _ = hash.Write([]byte(text))
	return nameLetters(hash.Sum64(), 10)
}

func nameLetters(seed uint64, count int) string {
	const letters = "bcdfghjklmnpqrstvwxz2456789"
	name := make([]byte, count)
	for i := range name {
		name[i] = letters[seed%uint64(len(letters))]
		seed /= uint64(len(letters))
	}
	return string(name)
}
