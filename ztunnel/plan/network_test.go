package plan

import (
	"errors"
	"net/netip"
	"testing"

	"google.golang.org/protobuf/proto"

	api "github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/ztunnel/workload/workloadtest"
)

func network(name string) func(*api.Workload) { return func(w *api.Workload) { w.Network = name } }

// behind puts a workload on the network "far", behind a gateway on port 15009.
func behind(gw *api.GatewayAddress) func(*api.Workload) {
	return func(w *api.Workload) {
		w.Network = "far"
		if gw != nil {
			gw = proto.CloneOf(gw)
			gw.HboneMtlsPort = 15009
		}
		w.NetworkGateway = gw
	}
}

func farAddress(ip string) *api.GatewayAddress {
	gw := workloadtest.ByAddress(ip)
	gw.GetAddress().Network = "far"
	return gw
}

func names(accounts ...string) func(*api.Service) {
	return func(s *api.Service) {
		for _, a := range accounts {
			s.SubjectAltNames = append(s.SubjectAltNames, "spiffe://cluster.local/ns/ns/sa/"+a)
		}
	}
}

func gatewayService(name, vip string, edit ...func(*api.Service)) *api.Service {
	return service(name, vip, append(edit, func(s *api.Service) {
		s.Ports = []*api.Port{{ServicePort: 15009, TargetPort: 15008}}
		for _, a := range s.GetAddresses() {
			a.Network = "far"
		}
	})...)
}

func TestOtherNetworks(t *testing.T) {
	const inside = " inside for s" + domain + ":80 peer alt"
	for _, tc := range []struct {
		name   string
		mesh   []proto.Message
		target string
		want   string
	}{
		{
			"gateway by address of a workload",
			[]proto.Message{service("s", "10.96.0.1", names("alt")), pod("remote", "", in("s"), behind(farAddress("192.0.2.9"))), pod("gw", "192.0.2.9", network("far"))},
			"10.96.0.1:80", "HBONE 192.0.2.9:15009 for s" + domain + ":80 peer gw service s" + inside,
		},
		{
			"gateway by address of a service",
			[]proto.Message{
				service("s", "10.96.0.1", names("alt")), pod("remote", "", in("s"), behind(farAddress("192.0.2.1"))),
				gatewayService("gw", "192.0.2.1", names("gwalt")), pod("gw1", "192.0.2.9", network("far"), in("gw")),
			},
			"10.96.0.1:80", "HBONE 192.0.2.9:15008 for s" + domain + ":80 peer gwalt peer gw1 service s" + inside,
		},
		{
			"gateway by hostname of a service",
			[]proto.Message{
				service("s", "10.96.0.1", names("alt")), pod("remote", "", in("s"), behind(workloadtest.ByHostname("ns", "gw"+domain))),
				gatewayService("gw", ""), pod("gw1", "192.0.2.9", network("far"), in("gw")),
			},
			"10.96.0.1:80", "HBONE 192.0.2.9:15008 for s" + domain + ":80 peer gw1 service s" + inside,
		},
		{
			"gateway by hostname of a workload that has a hostname only",
			[]proto.Message{
				service("s", "10.96.0.1", names("alt")), pod("remote", "", in("s"), behind(workloadtest.ByHostname("ns", "gw.example"))),
				pod("gw", "", network("far"), func(w *api.Workload) { w.Hostname = "gw.example" }),
			},
			"10.96.0.1:80", "HBONE invalid AddrPort resolve gw.example for s" + domain + ":80 peer gw service s" + inside,
		},
		{
			"waypoint behind a gateway",
			[]proto.Message{
				service("s", "10.96.0.1", names("alt"), by(workloadtest.ByHostname("ns", "wp"+domain))), waypointService("wp", ""),
				pod("w1", "", in("wp"), behind(farAddress("192.0.2.9"))), pod("gw", "192.0.2.9", network("far")),
			},
			"10.96.0.1:80", "HBONE 192.0.2.9:15009 for s" + domain + ":80 peer gw service s waypoint" + inside,
		},
		{
			"port that the service does not define",
			[]proto.Message{service("s", "10.96.0.1", names("alt")), pod("remote", "", in("s"), behind(farAddress("192.0.2.9"))), pod("gw", "192.0.2.9", network("far"))},
			"10.96.0.1:81", "error 4: service ns/s.ns.svc.cluster.local has no port 81",
		},
		{
			"no gateway named",
			[]proto.Message{service("s", "10.96.0.1", names("alt")), pod("remote", "10.1.0.1", in("s"), behind(nil))},
			"10.96.0.1:80", `error 7: service ns/s.ns.svc.cluster.local: workload c//Pod/ns/remote is on network "far" and names no gateway`,
		},
		{
			"neither address nor gateway",
			[]proto.Message{service("s", "10.96.0.1", names("alt")), pod("remote", "", in("s"), behind(nil))},
			"10.96.0.1:80", "error 4: service ns/s.ns.svc.cluster.local has no healthy endpoint for port 80 (1 known: 1 without an address)",
		},
		{
			"gateway unknown",
			[]proto.Message{service("s", "10.96.0.1", names("alt")), pod("remote", "", in("s"), behind(farAddress("192.0.2.9")))},
			"10.96.0.1:80", `error 7: gateway far/192.0.2.9 of network "far" is not known`,
		},
		{
			"gateway without endpoints",
			[]proto.Message{
				service("s", "10.96.0.1", names("alt")), pod("remote", "", in("s"), behind(workloadtest.ByHostname("ns", "gw"+domain))), gatewayService("gw", ""),
			},
			"10.96.0.1:80", `error 7: gateway ns/gw.ns.svc.cluster.local of network "far" cannot be reached: ` +
				`service ns/gw.ns.svc.cluster.local has no healthy endpoint for port 15009 (0 known)`,
		},
		{
			"nobody may answer",
			[]proto.Message{
				service("s", "10.96.0.1", func(s *api.Service) { s.SubjectAltNames = []string{"not an id"} }),
				pod("remote", "", in("s"), behind(farAddress("192.0.2.9"))), pod("gw", "192.0.2.9", network("far")),
			},
			"10.96.0.1:80", `error 7: service ns/s.ns.svc.cluster.local names no identity that may answer for it on network "far"`,
		},
		{
			"workload's own waypoint on another network",
			[]proto.Message{pod("b", "10.0.0.2", through(workloadtest.ByHostname("ns", "wp"+domain))), waypointService("wp", ""), pod("w1", "10.1.0.9", in("wp"), behind(nil))},
			"10.0.0.2:80", `error 6: 10.0.0.2:80 leads to workload c//Pod/ns/w1 on network "far"; on another network only services can be reached`,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := workloadtest.Snapshot(t, append(tc.mesh, pod("me", me))...)
			if got := summary(Outbound(s, request(s, tc.target))); got != tc.want {
				t.Errorf("%s\ngot  %s\nwant %s", tc.target, got, tc.want)
			}
		})
	}
}

// TestFailoverToAnotherNetwork prefers endpoints of the own network, and goes to
// the other when the own ones have been tried.
func TestFailoverToAnotherNetwork(t *testing.T) {
	s := workloadtest.Snapshot(t, pod("me", me), pod("near", "10.0.0.2", in("s")), pod("remote", "", in("s"), behind(farAddress("192.0.2.1"))),
		service("s", "10.96.0.1", names("alt"), balance(api.LoadBalancing_FAILOVER, api.LoadBalancing_NETWORK)),
		gatewayService("gw", "192.0.2.1"), pod("gw1", "192.0.2.8", network("far"), in("gw")), pod("gw2", "192.0.2.9", network("far"), in("gw")))
	q := request(s, "10.96.0.1:80")
	var got []string
	for {
		p, err := Outbound(s, q)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, p.Workload.Name)
		q.Tried = p.Tries(q.Tried)
		if !p.Retriable {
			break
		}
	}
	if len(got) != 3 || got[0] != "near" || got[1] == got[2] {
		t.Errorf("tried %v, want near and then both gateways", got)
	}
}

func TestLookedUpHostname(t *testing.T) {
	hostname := func(w *api.Workload) { w.Hostname = "b.example" }
	for _, tc := range []struct {
		name string
		mesh []proto.Message
		want string
		uid  string
		port uint16
	}{
		{"plaintext", []proto.Message{service("s", "10.96.0.1"), pod("b", "", plaintext, in("s"), hostname)}, "TCP 192.0.2.1:8080 service s", "c//Pod/ns/b", 8080},
		{"HBONE", []proto.Message{service("s", "10.96.0.1"), pod("b", "", in("s"), hostname)}, "HBONE 192.0.2.1:15008 for 192.0.2.1:8080 peer b service s", "c//Pod/ns/b", 8080},
		{
			"waypoint",
			[]proto.Message{service("s", "10.96.0.1", by(workloadtest.ByHostname("ns", "b.example"))), pod("b", "", hostname)},
			"HBONE 192.0.2.1:15008 for 10.96.0.1:80 peer b service s waypoint", "c//Pod/ns/b", 15008,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := workloadtest.Snapshot(t, append(tc.mesh, pod("me", me))...)
			p, err := Outbound(s, request(s, "10.96.0.1:80"))
			if err != nil {
				t.Fatal(err)
			}
			if p.Resolve != "b.example" || p.NextHop.Addr().IsValid() {
				t.Errorf("resolve %q, next hop %s", p.Resolve, p.NextHop)
			}
			p = p.At(netip.MustParseAddr("192.0.2.1"))
			if got := summary(p, nil); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
			if uid, port := p.Endpoint(); uid != tc.uid || port != tc.port {
				t.Errorf("endpoint %s %d, want %s %d", uid, port, tc.uid, tc.port)
			}
		})
	}
}

// TestUnknown: what is missing is named so that it can be asked for.
func TestUnknown(t *testing.T) {
	for _, tc := range []struct {
		mesh []proto.Message
		want string
	}{
		{[]proto.Message{service("s", "10.96.0.1", by(workloadtest.ByAddress("10.0.0.9")))}, "/10.0.0.9"},
		{[]proto.Message{service("s", "10.96.0.1", by(workloadtest.ByHostname("ns", "wp.example")))}, "ns/wp.example"},
		{[]proto.Message{service("s", "10.96.0.1", names("alt")), pod("remote", "", in("s"), behind(farAddress("192.0.2.9")))}, "far/192.0.2.9"},
		{[]proto.Message{service("s", "10.96.0.1")}, ""},
	} {
		s := workloadtest.Snapshot(t, append(tc.mesh, pod("me", me))...)
		_, err := Outbound(s, request(s, "10.96.0.1:80"))
		if e, ok := errors.AsType[*Error](err); !ok || e.Unknown != tc.want {
			t.Errorf("error %+v, want %q to be unknown", err, tc.want)
		}
	}
}
