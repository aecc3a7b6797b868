// Package workloadtest fills a workload.Store in tests the way xDS does, from
// the messages of the wire. For tests only.
package workloadtest

import (
	"net/netip"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/apis/security"
	api "github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
)

// Resource wraps a message for xDS: a Workload, a Service or an Authorization.
func Resource(tb testing.TB, m proto.Message) *discoveryv3.Resource {
	tb.Helper()
	r := &discoveryv3.Resource{}
	url := mesh.TypeAddress
	switch v := m.(type) {
	case *api.Workload:
		r.Name, m = v.GetUid(), &api.Address{Type: &api.Address_Workload{Workload: v}}
	case *api.Service:
		r.Name, m = v.GetNamespace()+"/"+v.GetHostname(), &api.Address{Type: &api.Address_Service{Service: v}}
	case *security.Authorization:
		r.Name, url = v.GetNamespace()+"/"+v.GetName(), mesh.TypeAuthorization
	default:
		tb.Fatalf("%T is no resource", m)
	}
	data, err := proto.Marshal(m)
	if err != nil {
		tb.Fatalf("marshal %s: %v", r.GetName(), err)
	}
	r.Resource = &anypb.Any{TypeUrl: url, Value: data}
	return r
}

// Apply gives messages to a store, addresses in one response and policies in
// another. A rejection fails the test.
func Apply(tb testing.TB, s *workload.Store, messages ...proto.Message) {
	tb.Helper()
	var addresses, policies []*discoveryv3.Resource
	for _, m := range messages {
		if _, ok := m.(*security.Authorization); ok {
			policies = append(policies, Resource(tb, m))
		} else {
			addresses = append(addresses, Resource(tb, m))
		}
	}
	if len(addresses) > 0 {
		accepted(tb, s.ApplyAddresses(addresses, nil))
	}
	if len(policies) > 0 {
		accepted(tb, s.ApplyAuthorizations(policies, nil))
	}
}

// Snapshot returns a snapshot that holds messages, on a node without a name.
func Snapshot(tb testing.TB, messages ...proto.Message) *workload.Snapshot {
	tb.Helper()
	s := workload.NewStore("", "")
	Apply(tb, s, messages...)
	return s.Snapshot()
}

func accepted(tb testing.TB, rejected map[string]error) {
	tb.Helper()
	for name, err := range rejected {
		tb.Errorf("%s rejected: %v", name, err)
	}
}

// IP returns the bytes of an address.
func IP(text string) []byte { return netip.MustParseAddr(text).AsSlice() }

// VIP returns an address on the default network.
func VIP(text string) *api.NetworkAddress { return &api.NetworkAddress{Address: IP(text)} }

// ByAddress and ByHostname refer to a waypoint on port 15008.
func ByAddress(ip string) *api.GatewayAddress {
	return &api.GatewayAddress{HboneMtlsPort: mesh.PortHBONE, Destination: &api.GatewayAddress_Address{Address: VIP(ip)}}
}

// ByHostname is described at ByAddress.
func ByHostname(namespace, hostname string) *api.GatewayAddress {
	return &api.GatewayAddress{HboneMtlsPort: mesh.PortHBONE, Destination: &api.GatewayAddress_Hostname{
		Hostname: &api.NamespacedHostname{Namespace: namespace, Hostname: hostname},
	}}
}
