package plan

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	api "github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
	"github.com/ambit-mesh/ambit/ztunnel/workload/workloadtest"
)

const domain = ".ns.svc.cluster.local"

// pod is an HBONE workload ns/name; a service name makes it an endpoint.
func pod(name, ip string, edit ...func(*api.Workload)) *api.Workload {
	w := &api.Workload{Uid: "c//Pod/ns/" + name, Name: name, Namespace: "ns", ServiceAccount: name, TunnelProtocol: api.TunnelProtocol_HBONE, Node: "n1"}
	if ip != "" {
		w.Addresses = [][]byte{workloadtest.IP(ip)}
	}
	for _, f := range edit {
		f(w)
	}
	return w
}

func plaintext(w *api.Workload) { w.TunnelProtocol = api.TunnelProtocol_NONE }

func in(service string, ports ...*api.Port) func(*api.Workload) {
	return func(w *api.Workload) {
		if w.Services == nil {
			w.Services = map[string]*api.PortList{}
		}
		w.Services["ns/"+service+domain] = &api.PortList{Ports: ports}
	}
}

func through(gw *api.GatewayAddress) func(*api.Workload) {
	return func(w *api.Workload) { w.Waypoint = gw }
}

// service is ns/name with a virtual address and port 80 → 8080.
func service(name, vip string, edit ...func(*api.Service)) *api.Service {
	s := &api.Service{Name: name, Namespace: "ns", Hostname: name + domain, Ports: []*api.Port{{ServicePort: 80, TargetPort: 8080}}}
	if vip != "" {
		s.Addresses = []*api.NetworkAddress{workloadtest.VIP(vip)}
	}
	for _, f := range edit {
		f(s)
	}
	return s
}

func waypointService(name, vip string, edit ...func(*api.Service)) *api.Service {
	return service(name, vip, append(edit, func(s *api.Service) { s.Ports = []*api.Port{{ServicePort: 15008, TargetPort: 15008}} })...)
}

func proxyTunnel(port uint32) func(*api.Workload) {
	return func(w *api.Workload) {
		w.ApplicationTunnel = &api.ApplicationTunnel{Protocol: api.ApplicationTunnel_PROXY, Port: port}
	}
}

func passthrough(s *api.Service) {
	s.LoadBalancing = &api.LoadBalancing{Mode: api.LoadBalancing_PASSTHROUGH, HealthPolicy: api.LoadBalancing_ALLOW_ALL}
}

func by(gw *api.GatewayAddress) func(*api.Service) { return func(s *api.Service) { s.Waypoint = gw } }

const me = "10.0.0.1"

func summary(p Plan, err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return fmt.Sprintf("error %d: %s", e.Problem, e.Detail)
	}
	s := p.Protocol.String() + " " + p.NextHop.String()
	if p.Resolve != "" {
		s += " resolve " + p.Resolve
	}
	if p.Authority != "" {
		s += " for " + p.Authority
	}
	for _, id := range p.Peers {
		s += " peer " + id.ServiceAccount()
	}
	if p.Service != nil {
		s += " service " + p.Service.Name
	}
	if p.Waypoint {
		s += " waypoint"
	}
	if p.Inner != nil {
		s += " inside for " + p.Inner.Authority
		for _, id := range p.Inner.Peers {
			s += " peer " + id.ServiceAccount()
		}
	}
	return s
}

func TestOutbound(t *testing.T) {
	for _, tc := range []struct {
		name   string
		mesh   []proto.Message
		target string
		want   string
	}{
		{"unknown destination", nil, "192.0.2.1:80", "TCP 192.0.2.1:80"},
		{"self call", nil, "127.0.0.1:15001", "error 0: 127.0.0.1:15001 is a port of ztunnel"},
		{"loopback", nil, "127.0.0.1:80", "TCP 127.0.0.1:80"},
		{"plaintext workload", []proto.Message{pod("b", "10.0.0.2", plaintext)}, "10.0.0.2:80", "TCP 10.0.0.2:80"},
		{"workload", []proto.Message{pod("b", "10.0.0.2")}, "10.0.0.2:80", "HBONE 10.0.0.2:15008 for 10.0.0.2:80 peer b"},
		{"workload v6", []proto.Message{pod("b", "fd00::2")}, "[fd00::2]:80", "HBONE [fd00::2]:15008 for [fd00::2]:80 peer b"},
		{"host network", []proto.Message{pod("b", "10.0.0.2", func(w *api.Workload) { w.NetworkMode = api.NetworkMode_HOST_NETWORK })}, "10.0.0.2:80", "TCP 10.0.0.2:80"},
		{"workload of another network at the same address", []proto.Message{pod("b", "10.0.0.2", func(w *api.Workload) { w.Network = "far" })}, "10.0.0.2:80", "TCP 10.0.0.2:80"},
		{
			"workload waypoint by address",
			[]proto.Message{pod("b", "10.0.0.2", through(workloadtest.ByAddress("10.0.0.9"))), pod("wp", "10.0.0.9")},
			"10.0.0.2:80", "HBONE 10.0.0.9:15008 for 10.0.0.2:80 peer wp waypoint",
		},
		{
			"workload waypoint unknown",
			[]proto.Message{pod("b", "10.0.0.2", through(workloadtest.ByAddress("10.0.0.9")))},
			"10.0.0.2:80", "error 5: waypoint /10.0.0.9 is not known",
		},
		{
			"source is the waypoint",
			[]proto.Message{pod("b", "10.0.0.2", through(workloadtest.ByAddress(me)))},
			"10.0.0.2:80", "HBONE 10.0.0.2:15008 for 10.0.0.2:80 peer b",
		},
		{
			"same account as the waypoint, another address",
			[]proto.Message{
				pod("b", "10.0.0.2", through(workloadtest.ByAddress("10.0.0.9"))), pod("wp", "10.0.0.9", func(w *api.Workload) { w.ServiceAccount = "me" }),
			},
			"10.0.0.2:80", "HBONE 10.0.0.9:15008 for 10.0.0.2:80 peer me waypoint",
		},
		{
			"service",
			[]proto.Message{service("s", "10.96.0.1"), pod("b", "10.0.0.2", in("s"))},
			"10.96.0.1:80", "HBONE 10.0.0.2:15008 for 10.0.0.2:8080 peer b service s",
		},
		{
			"service, plaintext endpoint",
			[]proto.Message{service("s", "10.96.0.1"), pod("b", "10.0.0.2", plaintext, in("s"))},
			"10.96.0.1:80", "TCP 10.0.0.2:8080 service s",
		},
		{"service with names of its own", []proto.Message{service("s", "10.96.0.1", func(s *api.Service) {
			s.SubjectAltNames = []string{"spiffe://cluster.local/ns/ns/sa/alt", "not an id"}
		}), pod("b", "10.0.0.2", in("s"))}, "10.96.0.1:80", "HBONE 10.0.0.2:15008 for 10.0.0.2:8080 peer alt peer b service s"},
		{"service, port of the endpoint", []proto.Message{
			service("s", "10.96.0.1", func(s *api.Service) { s.Ports[0].TargetPort = 0 }),
			pod("b", "10.0.0.2", in("s", &api.Port{ServicePort: 80, TargetPort: 9090})),
		}, "10.96.0.1:80", "HBONE 10.0.0.2:15008 for 10.0.0.2:9090 peer b service s"},
		{
			"service, port of nobody",
			[]proto.Message{service("s", "10.96.0.1", func(s *api.Service) { s.Ports[0].TargetPort = 0 }), pod("b", "10.0.0.2", in("s"))},
			"10.96.0.1:80", "error 4: service ns/s.ns.svc.cluster.local has no healthy endpoint for port 80 (1 known: 1 without the port)",
		},
		{
			"service, undefined port",
			[]proto.Message{service("s", "10.96.0.1"), pod("b", "10.0.0.2", in("s"))},
			"10.96.0.1:81", "error 4: service ns/s.ns.svc.cluster.local has no port 81",
		},
		{
			"empty service",
			[]proto.Message{service("s", "10.96.0.1")},
			"10.96.0.1:80", "error 4: service ns/s.ns.svc.cluster.local has no healthy endpoint for port 80 (0 known)",
		},
		{
			"unhealthy endpoint",
			[]proto.Message{service("s", "10.96.0.1"), pod("b", "10.0.0.2", in("s"), func(w *api.Workload) { w.Status = api.WorkloadStatus_UNHEALTHY })},
			"10.96.0.1:80", "error 4: service ns/s.ns.svc.cluster.local has no healthy endpoint for port 80 (1 known: 1 not healthy)",
		},
		{
			"unhealthy endpoint allowed",
			[]proto.Message{service("s", "10.96.0.1", func(s *api.Service) {
				s.LoadBalancing = &api.LoadBalancing{HealthPolicy: api.LoadBalancing_ALLOW_ALL}
			}), pod("b", "10.0.0.2", in("s"), func(w *api.Workload) { w.Status = api.WorkloadStatus_UNHEALTHY })},
			"10.96.0.1:80", "HBONE 10.0.0.2:15008 for 10.0.0.2:8080 peer b service s",
		},
		{
			"capacity 0",
			[]proto.Message{service("s", "10.96.0.1"), pod("b", "10.0.0.2", in("s"), func(w *api.Workload) { w.Capacity = wrapperspb.UInt32(0) })},
			"10.96.0.1:80", "error 4: service ns/s.ns.svc.cluster.local has no healthy endpoint for port 80 (1 known: 1 without capacity)",
		},
		{"service waypoint by hostname", []proto.Message{
			service("s", "10.96.0.1", by(workloadtest.ByHostname("ns", "wp"+domain))), pod("b", "10.0.0.2", in("s")),
			waypointService("wp", "10.96.0.9"), pod("w1", "10.0.0.9", in("wp")),
		}, "10.96.0.1:80", "HBONE 10.0.0.9:15008 for 10.96.0.1:80 peer w1 service s waypoint"},
		{"service waypoint by address", []proto.Message{
			service("s", "10.96.0.1", by(workloadtest.ByAddress("10.96.0.9"))), pod("b", "10.0.0.2", in("s")),
			waypointService("wp", "10.96.0.9"), pod("w1", "10.0.0.9", in("wp")),
		}, "10.96.0.1:80", "HBONE 10.0.0.9:15008 for 10.96.0.1:80 peer w1 service s waypoint"},
		{"service waypoint by hostname of a workload", []proto.Message{
			service("s", "10.96.0.1", by(workloadtest.ByHostname("ns", "wp.example"))),
			pod("w1", "10.0.0.9", func(w *api.Workload) { w.Hostname = "wp.example" }),
		}, "10.96.0.1:80", "HBONE 10.0.0.9:15008 for 10.96.0.1:80 peer w1 service s waypoint"},
		{
			"service waypoint without endpoints",
			[]proto.Message{
				service("s", "10.96.0.1", by(workloadtest.ByHostname("ns", "wp"+domain))), pod("b", "10.0.0.2", in("s")),
				waypointService("wp", "10.96.0.9"),
			},
			"10.96.0.1:80",
			"error 5: waypoint ns/wp.ns.svc.cluster.local cannot be reached: service ns/wp.ns.svc.cluster.local has no healthy endpoint for port 15008 (0 known)",
		},
		{
			"waypoint service without the port",
			[]proto.Message{
				service("s", "10.96.0.1", by(workloadtest.ByHostname("ns", "wp"+domain))),
				service("wp", "10.96.0.9"), pod("w1", "10.0.0.9", in("wp")),
			},
			"10.96.0.1:80",
			"error 5: waypoint ns/wp.ns.svc.cluster.local cannot be reached: service ns/wp.ns.svc.cluster.local has no healthy endpoint for port 15008 (1 known: 1 without the port)",
		},
		{
			"service-addressed traffic skips the workload's waypoint",
			[]proto.Message{
				service("s", "10.96.0.1"),
				pod("b", "10.0.0.2", in("s"), through(workloadtest.ByAddress("10.0.0.9"))), pod("wp", "10.0.0.9"),
			},
			"10.96.0.1:80", "HBONE 10.0.0.2:15008 for 10.0.0.2:8080 peer b service s",
		},
		{"waypoint of a waypoint is not followed", []proto.Message{
			service("s", "10.96.0.1", by(workloadtest.ByAddress("10.0.0.9"))),
			pod("wp", "10.0.0.9", through(workloadtest.ByAddress("10.0.0.8"))), pod("x", "10.0.0.8"),
		}, "10.96.0.1:80", "HBONE 10.0.0.9:15008 for 10.96.0.1:80 peer wp service s waypoint"},
		{"passthrough service", []proto.Message{service("s", "10.96.0.1", passthrough)}, "10.96.0.1:443", "TCP 10.96.0.1:443 service s"},
		{
			"passthrough service with waypoint",
			[]proto.Message{service("s", "10.96.0.1", passthrough, by(workloadtest.ByAddress("10.0.0.9"))), pod("wp", "10.0.0.9")},
			"10.96.0.1:443", "HBONE 10.0.0.9:15008 for 10.96.0.1:443 peer wp service s waypoint",
		},
		{
			"hostname workload",
			[]proto.Message{service("s", "10.96.0.1"), pod("b", "", plaintext, in("s"), func(w *api.Workload) { w.Hostname = "b.example" })},
			"10.96.0.1:80", "TCP invalid AddrPort resolve b.example service s",
		},
		{
			"endpoint without an address beside one with",
			[]proto.Message{service("s", "10.96.0.1"), pod("a", "", in("s")), pod("b", "10.0.0.2", in("s"))},
			"10.96.0.1:80", "HBONE 10.0.0.2:15008 for 10.0.0.2:8080 peer b service s",
		},
		{
			"endpoint of a family that the service does not have",
			[]proto.Message{
				service("s", "10.96.0.1", func(s *api.Service) { s.IpFamilies = api.IPFamilies_IPV4_ONLY }), pod("a", "fd00::2", in("s")), pod("b", "10.0.0.2", in("s")),
			},
			"10.96.0.1:80", "HBONE 10.0.0.2:15008 for 10.0.0.2:8080 peer b service s",
		},
		{
			"host network endpoint",
			[]proto.Message{service("s", "10.96.0.1"), pod("b", "192.0.2.7", plaintext, in("s"), func(w *api.Workload) { w.NetworkMode = api.NetworkMode_HOST_NETWORK })},
			"10.96.0.1:80", "TCP 192.0.2.7:8080 service s",
		},
		{
			"waypoint that has a hostname only",
			[]proto.Message{
				service("s", "10.96.0.1", by(workloadtest.ByHostname("ns", "wp.example"))), pod("wp", "", func(w *api.Workload) { w.Hostname = "wp.example" }),
			},
			"10.96.0.1:80", "HBONE invalid AddrPort resolve wp.example for 10.96.0.1:80 peer wp service s waypoint",
		},
		{
			"source is a waypoint of the service, another is drawn",
			[]proto.Message{service("s", "10.96.0.1", by(workloadtest.ByAddress(me)), func(s *api.Service) {
				s.WeightedWaypoints = []*api.WeightedWaypoint{{Destination: workloadtest.ByAddress("10.0.0.9"), Weight: 1}}
			}), pod("b", "10.0.0.2", in("s")), pod("wp", "10.0.0.9")},
			"10.96.0.1:80", "HBONE 10.0.0.2:15008 for 10.0.0.2:8080 peer b service s",
		},
		{
			"sandwiched waypoint whose service has no port",
			[]proto.Message{
				service("s", "10.96.0.1", by(workloadtest.ByHostname("ns", "wp"+domain))), service("wp", "10.96.0.9", func(s *api.Service) { s.Ports = nil }),
				pod("w0", "10.0.0.8", in("wp")), pod("w1", "10.0.0.9", in("wp"), proxyTunnel(15088)),
			},
			"10.96.0.1:80", "HBONE 10.0.0.9:15008 for 10.96.0.1:80 peer w1 service s waypoint",
		},
		{
			"waypoint by address that the client does not see",
			[]proto.Message{
				service("s", "10.96.0.1", by(workloadtest.ByAddress("10.96.0.9"))), pod("b", "10.0.0.2", in("s")),
				waypointService("wp", "10.96.0.9", func(s *api.Service) { s.Namespace, s.Visibility = "other", api.Service_NAMESPACE }),
			},
			"10.96.0.1:80", "error 5: waypoint /10.96.0.9 is not known",
		},
		{
			"waypoint by hostname that the client does not see",
			[]proto.Message{
				service("s", "10.96.0.1", by(workloadtest.ByHostname("other", "wp"+domain))), pod("b", "10.0.0.2", in("s")),
				waypointService("wp", "", func(s *api.Service) { s.Namespace, s.Visibility = "other", api.Service_NAMESPACE }),
				pod("w1", "10.0.0.9", func(w *api.Workload) { w.Services = map[string]*api.PortList{"other/wp" + domain: {}} }),
			},
			"10.96.0.1:80", "HBONE 10.0.0.9:15008 for 10.96.0.1:80 peer w1 service s waypoint",
		},
		{
			"canonical of two services at an address",
			[]proto.Message{
				service("s", "10.96.0.1", func(s *api.Service) { s.Namespace = "n1" }),
				service("t", "10.96.0.1", func(s *api.Service) { s.Namespace, s.Canonical = "n2", true }),
				pod("b", "10.0.0.2", func(w *api.Workload) { w.Services = map[string]*api.PortList{"n2/t" + domain: {}} }),
			},
			"10.96.0.1:80", "HBONE 10.0.0.2:15008 for 10.0.0.2:8080 peer b service t",
		},
		{
			"other family than dialled",
			[]proto.Message{service("s", "10.96.0.1"), pod("b", "fd00::2", in("s"))},
			"10.96.0.1:80", "HBONE [fd00::2]:15008 for [fd00::2]:8080 peer b service s",
		},
		{
			"service of one family",
			[]proto.Message{
				service("s", "10.96.0.1", func(s *api.Service) { s.IpFamilies = api.IPFamilies_IPV6_ONLY }),
				pod("b", "10.0.0.2", in("s"), func(w *api.Workload) { w.Addresses = append(w.Addresses, workloadtest.IP("fd00::2")) }),
			},
			"10.96.0.1:80", "HBONE [fd00::2]:15008 for [fd00::2]:8080 peer b service s",
		},
		{"invisible service", []proto.Message{service("s", "10.96.0.1", func(s *api.Service) {
			s.Namespace, s.Visibility = "other", api.Service_NAMESPACE
		})}, "10.96.0.1:80", "TCP 10.96.0.1:80"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := workloadtest.Snapshot(t, append(tc.mesh, pod("me", me))...)
			got := summary(Outbound(s, request(s, tc.target)))
			if got != tc.want {
				t.Errorf("%s\ngot  %s\nwant %s", tc.target, got, tc.want)
			}
		})
	}
}

func request(s *workload.Snapshot, target string) Request {
	return Request{Source: s.WorkloadByInfo("me", "ns", "me"), SourceIP: netip.MustParseAddr(me), Target: netip.MustParseAddrPort(target)}
}

func TestInbound(t *testing.T) {
	own := pod("me", me, in("s", &api.Port{ServicePort: 81, TargetPort: 9090}))
	for _, tc := range []struct {
		name, authority string
		mesh            []proto.Message
		local           func(*api.Workload)
		want            string
	}{
		{"own address", me + ":80", nil, nil, me + ":80"},
		{"another address", "10.0.0.2:80", nil, nil, "2: 10.0.0.1 != 10.0.0.2"},
		{"another address, known", "10.0.0.2:80", []proto.Message{pod("b", "10.0.0.2")}, nil, "2: 10.0.0.1 != 10.0.0.2"},
		{"mapped own address", "[::ffff:10.0.0.1]:80", nil, nil, me + ":80"},
		{"hostname", "s" + domain + ":80", []proto.Message{service("s", "10.96.0.1")}, nil, me + ":8080 service s"},
		{"hostname, port of the endpoint", "s" + domain + ":81", []proto.Message{service("s", "10.96.0.1")}, nil, me + ":9090 service s"},
		{"hostname, unknown port", "s" + domain + ":82", []proto.Message{service("s", "10.96.0.1")}, nil, "3: service ns/s.ns.svc.cluster.local does not map port 82"},
		{"unknown hostname", "t:80", nil, nil, `3: hostname "t" is not known`},
		{"we are the waypoint of a service", "10.96.0.2:80", []proto.Message{service("t", "10.96.0.2", by(workloadtest.ByHostname("ns", "s"+domain))), waypointService("s", "")}, nil, me + ":80"},
		{"we are its weighted waypoint", "10.96.0.2:80", []proto.Message{waypointService("s", ""), service("t", "10.96.0.2", func(s *api.Service) {
			s.WeightedWaypoints = []*api.WeightedWaypoint{{Destination: workloadtest.ByHostname("ns", "s"+domain), Weight: 1}}
		})}, nil, me + ":80"},
		{"we are the waypoint of a workload", "10.0.0.2:80", []proto.Message{pod("b", "10.0.0.2", through(workloadtest.ByAddress(me)))}, nil, me + ":80"},
		{"another is the waypoint", "10.96.0.2:80", []proto.Message{service("t", "10.96.0.2", by(workloadtest.ByAddress("10.0.0.9"))), pod("wp", "10.0.0.9")}, nil, "2: 10.0.0.1 != 10.96.0.2"},
		{"application tunnel", "10.96.0.2:80", nil, func(w *api.Workload) { w.ApplicationTunnel = &api.ApplicationTunnel{Port: 7070} }, me + ":7070"},
		{"application tunnel with PROXY", "10.96.0.2:80", nil, proxyTunnel(15088), me + ":15088 proxy 10.96.0.2:80"},
		{"PROXY without a port of its own", me + ":80", nil, proxyTunnel(0), me + ":80 proxy " + me + ":80"},
		{"PROXY for a hostname", "s" + domain + ":80", []proto.Message{service("s", "10.96.0.1")}, proxyTunnel(15088), me + ":15088 service s proxy 10.96.0.1:80"},
		{"PROXY for a hostname, port that nobody maps", "s" + domain + ":82", []proto.Message{service("s", "10.96.0.1")}, proxyTunnel(15088), me + ":15088 service s proxy 10.96.0.1:82"},
		{
			"PROXY for a hostname, our network and IPv4 first", "s" + domain + ":80",
			[]proto.Message{service("s", "fd00::1", func(s *api.Service) {
				far := workloadtest.VIP("10.97.0.1")
				far.Network = "far"
				s.Addresses = append(s.Addresses, far, workloadtest.VIP("10.96.0.1"))
			})},
			proxyTunnel(15088), me + ":15088 service s proxy 10.96.0.1:80",
		},
		{
			"PROXY for a hostname without an address", "s" + domain + ":80",
			[]proto.Message{service("s", "")},
			proxyTunnel(15088),
			"3: service ns/s.ns.svc.cluster.local has no virtual address to tell the application",
		},
		{"application tunnel to a port of ztunnel", "10.96.0.2:80", nil, proxyTunnel(15001), "0: 15001 is a port of ztunnel"},
		{"we are its waypoint of weight 0", "10.96.0.2:80", []proto.Message{waypointService("s", ""), service("t", "10.96.0.2", func(s *api.Service) {
			s.WeightedWaypoints = []*api.WeightedWaypoint{{Destination: workloadtest.ByHostname("ns", "s"+domain)}}
		})}, nil, me + ":80"},
		{"we are its waypoint, though others have the weight", "10.96.0.2:80", []proto.Message{
			service("t", "10.96.0.2", by(workloadtest.ByAddress(me)), func(s *api.Service) {
				s.WeightedWaypoints = []*api.WeightedWaypoint{{Destination: workloadtest.ByAddress("10.0.0.9"), Weight: 1}}
			}),
		}, nil, me + ":80"},
		{"we are the waypoint of an invisible service", "10.96.0.2:80", []proto.Message{
			service("t", "10.96.0.2", by(workloadtest.ByAddress(me)), func(s *api.Service) { s.Namespace, s.Visibility = "other", api.Service_NAMESPACE }),
		}, nil, me + ":80"},
		{"we are the waypoint of a range", "10.96.7.2:80", []proto.Message{
			service("t", "", by(workloadtest.ByAddress(me)), func(s *api.Service) {
				bits := uint32(16)
				s.Addresses = []*api.NetworkAddress{{Address: workloadtest.IP("10.96.0.0"), Length: &bits}}
			}),
		}, nil, me + ":80"},
		{"own port", me + ":15008", nil, nil, "0: 15008 is a port of ztunnel"},
		{"no port", me, nil, nil, `1: authority "10.0.0.1" is not host:port`},
		{"no host", ":80", nil, nil, `1: authority ":80" is not host:port`},
		{"empty", "", nil, nil, `1: authority "" is not host:port`},
		{"port 0", "s:0", nil, nil, `1: authority "s:0" has no valid port`},
		{"port 0 of an address", me + ":0", nil, nil, `1: authority "10.0.0.1:0" has no valid port`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			local := proto.CloneOf(own)
			if tc.local != nil {
				tc.local(local)
			}
			s := workloadtest.Snapshot(t, append(tc.mesh, local)...)
			d, err := Inbound(s, Arrival{Local: s.WorkloadByInfo("me", "ns", "me"), Connected: netip.MustParseAddrPort(me + ":15008"), Authority: tc.authority})
			got := d.Target.String()
			if d.Service != nil {
				got += " service " + d.Service.Name
			}
			if d.Proxy {
				got += " proxy " + d.ProxyTarget.String()
			}
			if e, ok := errors.AsType[*Error](err); ok {
				got = fmt.Sprintf("%d: %s", e.Problem, e.Detail)
			}
			if got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestPassthrough(t *testing.T) {
	if err := Passthrough(netip.MustParseAddrPort("10.0.0.1:80"), 0); err != nil {
		t.Error(err)
	}
	if err := Passthrough(netip.MustParseAddrPort("10.0.0.1:15006"), 0); err == nil {
		t.Error("a connection to ztunnel's own port passes")
	}
}

func TestServiceOf(t *testing.T) {
	s := workloadtest.Snapshot(t, service("a", "10.96.0.1"), service("b", "10.96.0.2"), service("c", "10.96.0.3"), pod("me", me, in("a"), in("b")))
	w := s.WorkloadByInfo("me", "ns", "me")
	resolved := s.Service(workload.ServiceKey{Namespace: "ns", Hostname: "b" + domain})
	for _, tc := range []struct {
		port     uint16
		said     string
		resolved *workload.Service
		want     string
	}{
		{8080, "", nil, "a"},
		{8080, "b" + domain, nil, "b"},
		{8080, "c" + domain, nil, "a"},
		{9999, "", nil, ""},
		{9999, "b" + domain, nil, "b"},
		{9999, "", resolved, "b"},
		{9999, "a" + domain, resolved, "a"},
	} {
		got := ServiceOf(s, w, tc.port, tc.said, tc.resolved)
		if (got == nil && tc.want != "") || (got != nil && got.Name != tc.want) {
			t.Errorf("port %d, said %q: %v, want %q", tc.port, tc.said, got, tc.want)
		}
	}
}

func FuzzAuthority(f *testing.F) {
	for _, seed := range []string{"10.0.0.1:80", "[::1]:80", "host:80", "[fe80::1%eth0]:1", ":", "[:80"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, authority string) {
		s := workloadtest.Snapshot(t, pod("me", me))
		d, err := Inbound(s, Arrival{Local: s.WorkloadByInfo("me", "ns", "me"), Connected: netip.MustParseAddrPort(me + ":15008"), Authority: authority})
		if err == nil && (d.Target.Addr().String() != me || !strings.Contains(authority, ":")) {
			t.Errorf("%q is delivered to %s", authority, d.Target)
		}
	})
}
