package workload_test

import (
	"encoding/json"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/apis/security"
	api "github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/ztunnel/workload/workloadtest"
)

// TestDump compares the config dump with the shape that Istio's has, spec
// App. B.1: what is set is shown under its name, what is not is left out.
func TestDump(t *testing.T) {
	text := func(kind string) *security.StringMatch {
		switch kind {
		case "prefix":
			return &security.StringMatch{MatchType: &security.StringMatch_Prefix{Prefix: "a"}}
		case "suffix":
			return &security.StringMatch{MatchType: &security.StringMatch_Suffix{Suffix: "b"}}
		case "presence":
			return &security.StringMatch{MatchType: &security.StringMatch_Presence{Presence: &emptypb.Empty{}}}
		}
		return &security.StringMatch{MatchType: &security.StringMatch_Exact{Exact: "c"}}
	}
	both := []*security.StringMatch{text("exact"), text("prefix"), text("suffix"), text("presence")}
	ip := []*security.Address{{Address: []byte{10, 0, 0, 1}, Length: 24}, {Address: workloadtest.IP("fd00::1"), Length: 128}}
	accounts := []*security.ServiceAccountMatch{{Namespace: "n", ServiceAccount: "s"}}
	bits := uint32(24)
	for _, tc := range []struct {
		name string
		mesh []proto.Message
		part string // of the dump
		want string
	}{
		{
			"workload, as little as there can be",
			[]proto.Message{&api.Workload{Uid: "u", Name: "n", Namespace: "ns"}},
			"workloads",
			`[{"uid":"u","name":"n","namespace":"ns","workloadIps":[],"protocol":"TCP","networkMode":"Standard","trustDomain":"cluster.local","serviceAccount":"default",` +
				`"workloadType":"deployment","clusterId":"Kubernetes","status":"Healthy","capacity":1}]`,
		},
		{
			"workload, everything",
			[]proto.Message{&api.Workload{
				Uid: "u", Name: "n", Namespace: "ns", Addresses: [][]byte{{10, 0, 0, 1}, workloadtest.IP("fd00::1")}, Network: "net", TunnelProtocol: api.TunnelProtocol_HBONE,
				TrustDomain: "td", ServiceAccount: "sa", Waypoint: workloadtest.ByAddress("10.0.0.9"), Node: "node", CanonicalName: "cn", CanonicalRevision: "v1",
				WorkloadType: api.WorkloadType_CRONJOB, WorkloadName: "wn", NativeTunnel: true, AuthorizationPolicies: []string{"ns/p"}, Status: api.WorkloadStatus_UNHEALTHY,
				ClusterId: "c", NetworkGateway: workloadtest.ByHostname("ns", "gw.example"), Hostname: "h", Services: map[string]*api.PortList{"ns/b.example": {}, "ns/a.example": {}},
				ApplicationTunnel: &api.ApplicationTunnel{Protocol: api.ApplicationTunnel_PROXY, Port: 15088}, Locality: &api.Locality{Region: "r", Zone: "z", Subzone: "s"},
				NetworkMode: api.NetworkMode_HOST_NETWORK, Capacity: wrapperspb.UInt32(0),
			}},
			"workloads",
			`[{"uid":"u","name":"n","namespace":"ns","workloadIps":["10.0.0.1","fd00::1"],"hostname":"h","network":"net","protocol":"HBONE","networkMode":"HostNetwork",` +
				`"trustDomain":"td","serviceAccount":"sa","workloadName":"wn","workloadType":"cronjob","canonicalName":"cn","canonicalRevision":"v1","node":"node","nativeTunnel":true,` +
				`"clusterId":"c","status":"Unhealthy","capacity":0,"authorizationPolicies":["ns/p"],"services":["ns/a.example","ns/b.example"],` +
				`"locality":{"region":"r","zone":"z","subzone":"s"},"waypoint":{"destination":"/10.0.0.9","hboneMtlsPort":15008},` +
				`"networkGateway":{"destination":"ns/gw.example","hboneMtlsPort":15008},"applicationTunnel":{"protocol":"PROXY","port":15088}}]`,
		},
		{
			"service, as little as there can be",
			[]proto.Message{&api.Service{Namespace: "ns", Hostname: "h"}},
			"services",
			`[{"name":"","namespace":"ns","hostname":"h","vips":[],"ports":{},"endpoints":{},"canonical":false,"visibility":"Public"}]`,
		},
		{
			"service, everything",
			[]proto.Message{&api.Service{
				Name: "s", Namespace: "ns", Hostname: "h", Addresses: []*api.NetworkAddress{workloadtest.VIP("10.96.0.1"), {Network: "n", Address: []byte{10, 97, 0, 0}, Length: &bits}},
				Ports: []*api.Port{{ServicePort: 80, TargetPort: 8080}}, SubjectAltNames: []string{"spiffe://td/ns/a/sa/b", "odd"}, Waypoint: workloadtest.ByHostname("ns", "wp"),
				LoadBalancing: &api.LoadBalancing{
					Mode: api.LoadBalancing_FAILOVER, HealthPolicy: api.LoadBalancing_ALLOW_ALL,
					RoutingPreference: []api.LoadBalancing_Scope{api.LoadBalancing_NETWORK, api.LoadBalancing_REGION, api.LoadBalancing_ZONE, api.LoadBalancing_SUBZONE, api.LoadBalancing_NODE, api.LoadBalancing_CLUSTER},
				},
				IpFamilies: api.IPFamilies_DUAL, Canonical: true, Visibility: api.Service_NAMESPACE,
				WeightedWaypoints: []*api.WeightedWaypoint{{Destination: workloadtest.ByAddress("10.0.0.9"), Weight: 7}},
			}, pod("a", "10.0.0.1", func(w *api.Workload) {
				w.Services = map[string]*api.PortList{"ns/h": {Ports: []*api.Port{{ServicePort: 80, TargetPort: 9090}}}}
				w.Status = api.WorkloadStatus_UNHEALTHY
			})},
			"services",
			`[{"name":"s","namespace":"ns","hostname":"h","vips":["/10.96.0.1"],"cidrVips":[{"network":"n","cidr":"10.97.0.0/24"}],"ports":{"80":8080},` +
				`"endpoints":{"c//Pod/ns/a":{"workloadUid":"c//Pod/ns/a","port":{"80":9090},"status":"Unhealthy"}},"subjectAltNames":["spiffe://td/ns/a/sa/b","odd"],` +
				`"waypoint":{"destination":"ns/wp","hboneMtlsPort":15008},"weightedWaypoints":[{"destination":{"destination":"/10.0.0.9","hboneMtlsPort":15008},"weight":7}],` +
				`"loadBalancer":{"routingPreferences":["Network","Region","Zone","Subzone","Node","Cluster"],"mode":"Failover","healthPolicy":"AllowAll"},` +
				`"ipFamilies":"Dual","canonical":true,"visibility":"Namespace"}]`,
		},
		{
			"services in order",
			[]proto.Message{service("b", "x", ""), service("a", "y", ""), service("a", "x", "")},
			"services",
			`[{"name":"x","namespace":"a","hostname":"x.example","vips":[],"ports":{"80":8080},"endpoints":{},"canonical":false,"visibility":"Public"},` +
				`{"name":"x","namespace":"b","hostname":"x.example","vips":[],"ports":{"80":8080},"endpoints":{},"canonical":false,"visibility":"Public"},` +
				`{"name":"y","namespace":"a","hostname":"y.example","vips":[],"ports":{"80":8080},"endpoints":{},"canonical":false,"visibility":"Public"}]`,
		},
		{"endpoints that wait for their service", []proto.Message{pod("a", "10.0.0.1", in("ns/h"))}, "stagedServices", `{"ns/h":{"c//Pod/ns/a":{"workloadUid":"c//Pod/ns/a","port":{},"status":"Healthy"}}}`},
		{
			"policies",
			[]proto.Message{
				&security.Authorization{Namespace: "z", Name: "p", Scope: security.Scope_WORKLOAD_SELECTOR, Action: security.Action_DENY, DryRun: true},
				&security.Authorization{Namespace: "a", Name: "g"},
				&security.Authorization{Namespace: "a", Name: "p", Scope: security.Scope_NAMESPACE, Rules: []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{{
					Namespaces: both, NotNamespaces: both[:1], Principals: both[1:2], NotPrincipals: both[3:], SourceIps: ip, NotSourceIps: ip[:1], DestinationIps: ip[1:], NotDestinationIps: ip[:1],
					DestinationPorts: []uint32{80}, NotDestinationPorts: []uint32{81, 82}, ServiceAccounts: accounts, NotServiceAccounts: accounts,
				}}}}}}},
			},
			"policies",
			`[{"name":"g","namespace":"a","scope":"Global","action":"Allow","rules":[],"dryRun":false},` +
				`{"name":"p","namespace":"a","scope":"Namespace","action":"Allow","rules":[[[{"namespaces":[{"Exact":"c"},{"Prefix":"a"},{"Suffix":"b"},{"Presence":[]}],"notNamespaces":[{"Exact":"c"}],` +
				`"principals":[{"Prefix":"a"}],"notPrincipals":[{"Presence":[]}],"serviceAccounts":[{"namespace":"n","serviceAccount":"s"}],"notServiceAccounts":[{"namespace":"n","serviceAccount":"s"}],` +
				`"sourceIps":["10.0.0.0/24","fd00::1/128"],"notSourceIps":["10.0.0.0/24"],"destinationIps":["fd00::1/128"],"notDestinationIps":["10.0.0.0/24"],` +
				`"destinationPorts":[80],"notDestinationPorts":[81,82]}]]],"dryRun":false},` +
				`{"name":"p","namespace":"z","scope":"WorkloadSelector","action":"Deny","rules":[],"dryRun":true}]`,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			raw, err := json.Marshal(workloadtest.Snapshot(t, tc.mesh...).Dump())
			if err != nil {
				t.Fatal(err)
			}
			parts := map[string]json.RawMessage{}
			if err := json.Unmarshal(raw, &parts); err != nil {
				t.Fatal(err)
			}
			if got := string(parts[tc.part]); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}
