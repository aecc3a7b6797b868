package workload_test

import (
	"context"
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/apis/security"
	api "github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
	"github.com/ambit-mesh/ambit/ztunnel/workload/workloadtest"
)

func pod(name, ip string, edit ...func(*api.Workload)) *api.Workload {
	w := &api.Workload{Uid: "c//Pod/ns/" + name, Name: name, Namespace: "ns", ServiceAccount: "sa", Node: "n1", TunnelProtocol: api.TunnelProtocol_HBONE}
	if ip != "" {
		w.Addresses = [][]byte{workloadtest.IP(ip)}
	}
	for _, f := range edit {
		f(w)
	}
	return w
}

func service(namespace, name, vip string, edit ...func(*api.Service)) *api.Service {
	s := &api.Service{Name: name, Namespace: namespace, Hostname: name + ".example", Ports: []*api.Port{{ServicePort: 80, TargetPort: 8080}}}
	if vip != "" {
		s.Addresses = []*api.NetworkAddress{workloadtest.VIP(vip)}
	}
	for _, f := range edit {
		f(s)
	}
	return s
}

func canonical(s *api.Service) { s.Canonical = true }
func private(s *api.Service)   { s.Visibility = api.Service_NAMESPACE }

func cidr(ip string, bits uint32) func(*api.Service) {
	return func(s *api.Service) {
		s.Addresses = append(s.Addresses, &api.NetworkAddress{Address: workloadtest.IP(ip), Length: &bits})
	}
}

func in(keys ...string) func(*api.Workload) {
	return func(w *api.Workload) {
		w.Services = map[string]*api.PortList{}
		for _, k := range keys {
			w.Services[k] = &api.PortList{}
		}
	}
}

func uids(s *workload.Snapshot, ns, name string) string {
	var out []string
	for _, e := range s.Endpoints(workload.ServiceKey{Namespace: ns, Hostname: name + ".example"}) {
		out = append(out, e.Workload.Name)
	}
	return strings.Join(out, " ")
}

func TestRejectedResourcesKeepTheirPreviousValue(t *testing.T) {
	five := uint32(33)
	for _, tc := range []struct {
		name string
		m    proto.Message
		want string
	}{
		{"address length", pod("a", "", func(w *api.Workload) { w.Addresses = [][]byte{{1, 2, 3}} }), "address of 3 bytes"},
		{"service key", pod("a", "", in("noslash")), `service key "noslash" is not namespace/hostname`},
		{"service key with two slashes", pod("a", "", in("a/b/c")), `service key "a/b/c" is not namespace/hostname`},
		{"tunnel protocol", pod("a", "", func(w *api.Workload) { w.TunnelProtocol = 9 }), "unknown tunnel protocol 9"},
		{"legacy protocol", pod("a", "", func(w *api.Workload) { w.TunnelProtocol = api.TunnelProtocol_LEGACY_ISTIO_MTLS }), "LEGACY_ISTIO_MTLS is not supported"},
		{"status", pod("a", "", func(w *api.Workload) { w.Status = 7 }), "unknown status 7"},
		{"network mode", pod("a", "", func(w *api.Workload) { w.NetworkMode = 7 }), "unknown network mode 7"},
		{"application tunnel", pod("a", "", func(w *api.Workload) { w.ApplicationTunnel = &api.ApplicationTunnel{Protocol: 7} }), "unknown application tunnel protocol 7"},
		{"waypoint", pod("a", "", func(w *api.Workload) { w.Waypoint = &api.GatewayAddress{} }), "waypoint: no destination"},
		{"identity", pod("a", "", func(w *api.Workload) { w.ServiceAccount = "a/b" }), "service account"},
		{"uid", pod("a", "", func(w *api.Workload) { w.Uid = "" }), "no uid"},
		{"mode", service("ns", "s", "", func(s *api.Service) { s.LoadBalancing = &api.LoadBalancing{Mode: 9} }), "unknown load balancing mode 9"},
		{"scope", service("ns", "s", "", func(s *api.Service) {
			s.LoadBalancing = &api.LoadBalancing{RoutingPreference: []api.LoadBalancing_Scope{0}}
		}), "unknown routing preference 0"},
		{"families", service("ns", "s", "", func(s *api.Service) { s.IpFamilies = 9 }), "unknown ip families 9"},
		{"service port", service("ns", "s", "", func(s *api.Service) { s.Ports[0].ServicePort = 65616 }), "port 65616 is beyond 65535"},
		{"target port", pod("a", "", func(w *api.Workload) {
			w.Services = map[string]*api.PortList{"ns/s": {Ports: []*api.Port{{ServicePort: 80, TargetPort: 1 << 16}}}}
		}), "service ns/s: port 65536 is beyond 65535"},
		{"waypoint port", pod("a", "", func(w *api.Workload) {
			w.Waypoint = &api.GatewayAddress{Destination: workloadtest.ByAddress("10.0.0.9").GetDestination(), HboneMtlsPort: 80544}
		}), "waypoint: port 80544 is beyond 65535"},
		{"application tunnel port", pod("a", "", func(w *api.Workload) { w.ApplicationTunnel = &api.ApplicationTunnel{Port: 70000} }), "application tunnel: port 70000 is beyond 65535"},
		{"prefix", service("ns", "s", "", func(s *api.Service) {
			s.Addresses = []*api.NetworkAddress{{Address: []byte{10, 0, 0, 1}, Length: &five}}
		}), "too long"},
		{"weighted waypoint", service("ns", "s", "", func(s *api.Service) { s.WeightedWaypoints = []*api.WeightedWaypoint{{}} }), "weighted waypoint 0: no destination"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			store := workload.NewStore("", "")
			workloadtest.Apply(t, store, pod("a", "10.0.0.1"), service("ns", "s", "10.96.0.1"))
			r := workloadtest.Resource(t, tc.m)
			good := workloadtest.Resource(t, pod("b", "10.0.0.2"))
			rejected := store.ApplyAddresses([]*discoveryv3.Resource{r, good}, nil)
			if err := rejected[r.GetName()]; len(rejected) != 1 || err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("rejected %v, want %q", rejected, tc.want)
			}
			s := store.Snapshot()
			if s.ByIP("", netip.MustParseAddr("10.0.0.1")) == nil || s.ServiceByVIP("", netip.MustParseAddr("10.96.0.1"), "x") == nil {
				t.Error("the previous value is gone")
			}
			if s.ByIP("", netip.MustParseAddr("10.0.0.2")) == nil {
				t.Error("a valid resource of the same response was not applied")
			}
		})
	}
	for name, data := range map[string][]byte{"undecodable": {0xff}, "empty": nil} {
		r := &discoveryv3.Resource{Name: "x", Resource: &anypb.Any{Value: data}}
		if got := workload.NewStore("", "").ApplyAddresses([]*discoveryv3.Resource{r}, nil); got["x"] == nil {
			t.Errorf("%s bytes are accepted", name)
		}
	}
}

func TestUnknownTelemetryEnumsAreAccepted(t *testing.T) {
	s := workloadtest.Snapshot(t, pod("a", "10.0.0.1", func(w *api.Workload) { w.WorkloadType = 9 }),
		service("ns", "s", "10.96.0.1", func(s *api.Service) { s.Visibility = 9 }))
	if w := s.ByIP("", netip.MustParseAddr("10.0.0.1")); w.WorkloadType != "deployment" {
		t.Errorf("type %q", w.WorkloadType)
	}
	if s.ServiceByVIP("", netip.MustParseAddr("10.96.0.1"), "other").Private {
		t.Error("unknown visibility is not public")
	}
}

func TestOverlappingAddresses(t *testing.T) {
	ip := netip.MustParseAddr("10.0.0.1")
	entry := pod("entry", "10.0.0.1", func(w *api.Workload) { w.Uid = "c/networking.istio.io/WorkloadEntry/ns/entry" })
	plain := pod("plain", "10.0.0.1", func(w *api.Workload) { w.TunnelProtocol = api.TunnelProtocol_NONE })
	store := workload.NewStore("", "")
	for _, step := range []struct {
		add    proto.Message
		remove string
		want   string
	}{
		{add: entry, want: "entry"},
		{add: plain, want: "plain"},
		{add: pod("hbone", "10.0.0.1"), want: "hbone"},
		{add: pod("host", "10.0.0.1", func(w *api.Workload) { w.NetworkMode = api.NetworkMode_HOST_NETWORK }), want: "hbone"},
		{remove: "c//Pod/ns/hbone", want: "plain"},
		{remove: "c//Pod/ns/plain", want: "entry"},
		{remove: entry.GetUid(), want: ""},
	} {
		if step.add != nil {
			workloadtest.Apply(t, store, step.add)
		} else {
			store.ApplyAddresses(nil, []string{step.remove})
		}
		got := ""
		if w := store.Snapshot().ByIP("", ip); w != nil {
			got = w.Name
		}
		if got != step.want {
			t.Errorf("after +%v -%s: %q, want %q", step.add, step.remove, got, step.want)
		}
	}
	if w := store.Snapshot().ByIP("other", ip); w != nil {
		t.Errorf("found on another network: %v", w.UID)
	}
}

func TestEndpointsAreStagedAndFollowTheirService(t *testing.T) {
	store := workload.NewStore("", "")
	workloadtest.Apply(t, store, pod("b", "10.0.0.2", in("ns/s.example")), pod("a", "10.0.0.1", in("ns/s.example", "ns/t.example")))
	if d := store.Snapshot().Dump(); len(d.StagedServices["ns/s.example"]) != 2 || len(d.StagedServices["ns/t.example"]) != 1 {
		t.Errorf("staged %v", d.StagedServices)
	}
	workloadtest.Apply(t, store, service("ns", "s", "10.96.0.1"))
	if got := uids(store.Snapshot(), "ns", "s"); got != "a b" {
		t.Errorf("endpoints %q", got)
	}
	// A service that goes and returns finds its endpoints again.
	store.ApplyAddresses(nil, []string{"ns/s.example"})
	if store.Snapshot().ServiceByVIP("", netip.MustParseAddr("10.96.0.1"), "ns") != nil {
		t.Error("removed service has its address still")
	}
	workloadtest.Apply(t, store, service("ns", "s", "10.96.0.1"))
	workloadtest.Apply(t, store, pod("a", "10.0.0.1", in("ns/t.example")))
	if got := uids(store.Snapshot(), "ns", "s") + "|" + uids(store.Snapshot(), "ns", "t"); got != "b|a" {
		t.Errorf("endpoints %q", got)
	}
	// In one response: the workload moves, its old name is removed.
	old := store.Snapshot()
	store.ApplyAddresses([]*discoveryv3.Resource{workloadtest.Resource(t, pod("c", "10.0.0.2", in("ns/s.example")))}, []string{"c//Pod/ns/b", "unknown", "a/b/c"})
	if got := uids(store.Snapshot(), "ns", "s"); got != "c" {
		t.Errorf("endpoints %q", got)
	}
	if got := uids(old, "ns", "s"); got != "b" {
		t.Errorf("an older snapshot changed: %q", got)
	}
}

func TestServiceByVIP(t *testing.T) {
	for _, tc := range []struct {
		name     string
		services []proto.Message
		client   string
		want     string // namespace
	}{
		{"first wins", []proto.Message{service("a", "s", "10.96.0.1"), service("b", "s", "10.96.0.1")}, "x", "a"},
		{"canonical", []proto.Message{service("a", "s", "10.96.0.1"), service("b", "s", "10.96.0.1", canonical)}, "x", "b"},
		{"own namespace", []proto.Message{service("a", "s", "10.96.0.1", canonical), service("b", "s", "10.96.0.1")}, "b", "b"},
		{"invisible", []proto.Message{service("a", "s", "10.96.0.1", private), service("b", "s", "10.96.0.1")}, "x", "b"},
		{"visible at home", []proto.Message{service("a", "s", "10.96.0.1", private)}, "a", "a"},
		{"nobody visible", []proto.Message{service("a", "s", "10.96.0.1", private)}, "x", ""},
		{"update keeps the order", []proto.Message{service("a", "s", "10.96.0.1"), service("b", "s", "10.96.0.1"), service("a", "s", "10.96.0.1")}, "x", "a"},
		{"range", []proto.Message{service("a", "s", "", cidr("10.96.0.0", 16))}, "x", "a"},
		{"exact before range", []proto.Message{service("a", "s", "", cidr("10.96.0.0", 16)), service("b", "s", "10.96.0.1")}, "a", "b"},
		{"invisible exact, range", []proto.Message{service("a", "s", "", cidr("10.96.0.0", 16)), service("b", "s", "10.96.0.1", private)}, "x", "a"},
		{"longer range", []proto.Message{service("a", "s", "", cidr("10.96.0.0", 16)), service("b", "s", "", cidr("10.96.0.0", 24))}, "x", "b"},
		{"own namespace before longer range", []proto.Message{service("a", "s", "", cidr("10.96.0.0", 16)), service("b", "s", "", cidr("10.96.0.0", 24))}, "a", "a"},
		{"canonical range", []proto.Message{service("a", "s", "", cidr("10.96.0.0", 16)), service("b", "s", "", cidr("10.96.0.0", 16), canonical)}, "x", "b"},
		{"32 bits are exact", []proto.Message{service("a", "s", "", cidr("10.96.0.1", 32))}, "x", "a"},
		{"service moved away", []proto.Message{service("a", "s", "10.96.0.1", cidr("10.96.0.0", 16)), service("a", "s", "10.97.0.1")}, "x", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := ""
			if svc := workloadtest.Snapshot(t, tc.services...).ServiceByVIP("", netip.MustParseAddr("10.96.0.1"), tc.client); svc != nil {
				got = svc.Key.Namespace
			}
			if got != tc.want {
				t.Errorf("service of %q, want %q", got, tc.want)
			}
		})
	}
}

func TestByHostname(t *testing.T) {
	s := workloadtest.Snapshot(t, service("a", "s", ""), service("b", "s", "", canonical),
		pod("w", "", func(w *api.Workload) { w.Hostname = "w.example" }))
	for client, want := range map[string]string{"a": "a", "b": "b", "x": "b"} {
		if got := s.ServiceByHostname("s.example", client); got == nil || got.Key.Namespace != want {
			t.Errorf("client %s: %v, want %s", client, got, want)
		}
	}
	if s.WorkloadByHostname(workload.ServiceKey{Namespace: "ns", Hostname: "w.example"}) == nil {
		t.Error("workload not found by hostname")
	}
}

func TestLocalWorkloads(t *testing.T) {
	store := workload.NewStore("n1", "")
	workloadtest.Apply(t, store, pod("a", "10.0.0.1"), pod("b", "10.0.0.2", func(w *api.Workload) { w.Node = "n2" }),
		pod("c", "10.0.0.3", func(w *api.Workload) { w.TunnelProtocol, w.ServiceAccount = api.TunnelProtocol_NONE, "other" }))
	s := store.Snapshot()
	if s.WorkloadByInfo("a", "ns", "sa") == nil || s.WorkloadByInfo("b", "ns", "sa") != nil || s.WorkloadByInfo("a", "ns", "other") != nil {
		t.Error("local workloads are not those of the node")
	}
	ids := slices.Collect(maps.Keys(s.LocalIdentities()))
	if len(ids) != 1 || ids[0].String() != "spiffe://cluster.local/ns/ns/sa/sa" {
		t.Errorf("identities %v", ids)
	}
	store.ApplyAddresses(nil, []string{"c//Pod/ns/a"})
	if store.Snapshot().WorkloadByInfo("a", "ns", "sa") != nil {
		t.Error("removed workload is still local")
	}
}

func TestPoliciesFor(t *testing.T) {
	auth := func(ns, name string, scope security.Scope) *security.Authorization {
		return &security.Authorization{Namespace: ns, Name: name, Scope: scope}
	}
	store := workload.NewStore("", "")
	workloadtest.Apply(t, store, pod("a", "10.0.0.1", func(w *api.Workload) { w.AuthorizationPolicies = []string{"ns/named", "root/late"} }),
		auth("root", "all", security.Scope_GLOBAL), auth("ns", "here", security.Scope_NAMESPACE), auth("other", "there", security.Scope_NAMESPACE),
		auth("ns", "named", security.Scope_WORKLOAD_SELECTOR), auth("ns", "unnamed", security.Scope_WORKLOAD_SELECTOR))
	check := func(want, wantMissing string) {
		t.Helper()
		s := store.Snapshot()
		policies, missing := s.PoliciesFor(s.WorkloadByInfo("a", "ns", "sa"))
		var got []string
		for p := range policies.All {
			got = append(got, p.Key())
		}
		if g := strings.Join(got, " "); g != want || strings.Join(missing, " ") != wantMissing {
			t.Errorf("policies %q, missing %v; want %q, %q", g, missing, want, wantMissing)
		}
	}
	check("root/all ns/here ns/named", "root/late")
	before := store.Snapshot().PolicyVersion()
	workloadtest.Apply(t, store, auth("root", "late", security.Scope_WORKLOAD_SELECTOR))
	check("root/all ns/here ns/named root/late", "")
	if store.Snapshot().PolicyVersion() == before {
		t.Error("the version did not change")
	}
	// A policy that changes its scope leaves the old one.
	workloadtest.Apply(t, store, auth("ns", "here", security.Scope_WORKLOAD_SELECTOR))
	check("root/all ns/named root/late", "")
	store.ApplyAuthorizations(nil, []string{"root/all", "root/late", "unknown/x"})
	check("ns/named", "root/late")
	r := workloadtest.Resource(t, &security.Authorization{Namespace: "ns", Name: "named", Action: 9})
	if rejected := store.ApplyAuthorizations([]*discoveryv3.Resource{r}, nil); rejected["ns/named"] == nil {
		t.Error("an unknown action is accepted")
	}
	check("ns/named", "root/late")
}

func TestUnreadablePolicyStandsInItsScope(t *testing.T) {
	raw := func(name string, data []byte) *discoveryv3.Resource {
		return &discoveryv3.Resource{Name: name, Resource: &anypb.Any{Value: data}}
	}
	bad := func(ns, name string, scope security.Scope) *discoveryv3.Resource {
		return workloadtest.Resource(t, &security.Authorization{Namespace: ns, Name: name, Scope: scope, Action: 9})
	}
	store := workload.NewStore("", "")
	workloadtest.Apply(t, store, pod("a", "10.0.0.1", func(w *api.Workload) { w.AuthorizationPolicies = []string{"ns/named", "root/bytes"} }),
		&security.Authorization{Namespace: "ns", Name: "good", Scope: security.Scope_NAMESPACE})
	check := func(want, wantMissing string) {
		t.Helper()
		s := store.Snapshot()
		policies, missing := s.PoliciesFor(s.WorkloadByInfo("a", "ns", "sa"))
		var got []string
		for p := range policies.All {
			text := p.Key()
			if p.Invalid != "" {
				text += "!"
			}
			got = append(got, text)
		}
		if g := strings.Join(got, " "); g != want || strings.Join(missing, " ") != wantMissing {
			t.Errorf("policies %q, missing %v; want %q, %q", g, missing, want, wantMissing)
		}
	}
	check("ns/good", "ns/named root/bytes")
	before := store.Snapshot().PolicyVersion()
	rejected := store.ApplyAuthorizations([]*discoveryv3.Resource{
		bad("root", "all", security.Scope_GLOBAL), bad("other", "there", security.Scope_NAMESPACE), bad("ns", "named", security.Scope_WORKLOAD_SELECTOR),
		bad("ns", "unnamed", security.Scope_WORKLOAD_SELECTOR), raw("ns/bytes", []byte{0xff}), raw("root/bytes", []byte{0xff}),
		bad("ns", "good", security.Scope_NAMESPACE), raw("noslash", []byte{0xff}), raw("", []byte{0xff}), raw("/x", nil),
	}, nil)
	if len(rejected) != 10 {
		t.Errorf("rejected %v", rejected)
	}
	check("root/all! ns/good ns/bytes! ns/named! root/bytes!", "")
	if store.Snapshot().PolicyVersion() == before {
		t.Error("the version did not change")
	}
	// A readable version takes its place; so does a removal.
	workloadtest.Apply(t, store, &security.Authorization{Namespace: "root", Name: "all", Scope: security.Scope_GLOBAL})
	store.ApplyAuthorizations(nil, []string{"ns/bytes", "root/bytes"})
	check("root/all ns/good ns/named!", "root/bytes")
}

func TestAwait(t *testing.T) {
	store := workload.NewStore("", "")
	found := make(chan error, 1)
	go func() {
		found <- store.Await(t.Context(), func(s *workload.Snapshot) bool { return s.Workload("c//Pod/ns/z") != nil })
	}()
	for _, name := range []string{"x", "y", "z"} {
		workloadtest.Apply(t, store, pod(name, ""))
	}
	if err := <-found; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := store.Await(ctx, func(*workload.Snapshot) bool { return false }); err == nil {
		t.Error("no error although the context has ended")
	}
}

func TestAliasNames(t *testing.T) {
	store := workload.NewStore("", "")
	named := func(name string, m proto.Message) []*discoveryv3.Resource {
		r := workloadtest.Resource(t, m)
		r.Name = name
		return []*discoveryv3.Resource{r}
	}
	store.ApplyAddresses(named("/10.0.0.1", pod("a", "10.0.0.1")), nil)
	store.ApplyAddresses(named("/10.0.0.1", pod("b", "10.0.0.1")), nil) // the address went to another pod
	s := store.Snapshot()
	if s.Workload("c//Pod/ns/a") != nil || s.ByIP("", netip.MustParseAddr("10.0.0.1")).Name != "b" {
		t.Error("the former owner of the address is still there")
	}
	store.ApplyAddresses(nil, []string{"/10.0.0.1"})
	if store.Snapshot().Workload("c//Pod/ns/b") != nil {
		t.Error("removal by alias had no effect")
	}
}

func FuzzAddress(f *testing.F) {
	for _, m := range []proto.Message{pod("a", "10.0.0.1", in("ns/s.example")), service("ns", "s", "10.96.0.1", cidr("10.0.0.0", 8))} {
		var a api.Address
		switch m := m.(type) {
		case *api.Workload:
			a.Type = &api.Address_Workload{Workload: m}
		case *api.Service:
			a.Type = &api.Address_Service{Service: m}
		}
		data, _ := proto.Marshal(&a)
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		store := workload.NewStore("n1", "c")
		r := []*discoveryv3.Resource{{Name: "x", Resource: &anypb.Any{Value: data}}}
		store.ApplyAddresses(r, nil)
		store.ApplyAddresses(r, nil)
		if _, err := json.Marshal(store.Snapshot().Dump()); err != nil {
			t.Fatal(err)
		}
		store.ApplyAddresses(nil, []string{"x"})
		if d := store.Snapshot().Dump(); len(d.Workloads)+len(d.Services)+len(d.StagedServices) > 0 {
			t.Errorf("left after removal: %+v", d)
		}
	})
}
