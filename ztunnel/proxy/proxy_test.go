package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/ambit-mesh/ambit/apis/security"
	"github.com/ambit-mesh/ambit/apis/spiffe"
	api "github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/ztunnel/hbone"
	"github.com/ambit-mesh/ambit/ztunnel/identity/identitytest"
	"github.com/ambit-mesh/ambit/ztunnel/mtls"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/workload/workloadtest"
)

// pair is a mesh of a client web and a server shop that echoes on 8080.
func pair(t *testing.T) (w *world, web, shop *pod) {
	t.Helper()
	w = newWorld(t)
	web, shop = w.pod("web"), w.pod("shop")
	w.apply(web.message(), shop.message())
	shop.serve(8080, echo)
	return w, web, shop
}

// policy is an Authorization of namespace shop with one rule of one match.
func policy(name string, action security.Action, scope security.Scope, m *security.Match) *security.Authorization {
	return &security.Authorization{
		Name: name, Namespace: "shop", Action: action, Scope: scope,
		Rules: []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{m}}}}},
	}
}

func principal(id string) *security.Match {
	return &security.Match{Principals: []*security.StringMatch{{MatchType: &security.StringMatch_Exact{Exact: id}}}}
}

// strict is what istiod makes of PeerAuthentication STRICT.
func strict() *security.Authorization {
	return policy("istio_converted_static_strict", security.Action_DENY, security.Scope_WORKLOAD_SELECTOR, &security.Match{
		NotPrincipals: []*security.StringMatch{{MatchType: &security.StringMatch_Presence{Presence: &emptypb.Empty{}}}},
	})
}

func TestTunnelBetweenPods(t *testing.T) {
	_, web, shop := pair(t)
	c := web.dial(shop.addr(8080))
	ping(t, c)
	// Half-close travels through the tunnel: the echo ends only after us.
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Errorf("read to the end: %v", err)
	}
	out, in := web.wantReason(telemetry.OK), shop.wantReason(telemetry.OK)
	if out.DstAddr != shop.addr(15008) || out.DstHBONEAddr != shop.addr(8080).String() {
		t.Errorf("next hop %s, authority %s", out.DstAddr, out.DstHBONEAddr)
	}
	for _, l := range []*telemetry.AccessLine{out, in} {
		if l.SrcIdentity != "spiffe://cluster.local/ns/web/sa/web" || l.DstIdentity != "spiffe://cluster.local/ns/shop/sa/shop" {
			t.Errorf("%s: identities %q and %q", l.Direction, l.SrcIdentity, l.DstIdentity)
		}
		if l.SrcWorkload != "web" || l.DstWorkload != "shop" || l.Sent != 6 || l.Received != 6 {
			t.Errorf("%s: %+v", l.Direction, l)
		}
	}
	if in.SrcAddr.Addr() != web.Addr {
		t.Errorf("client address %s, want %s", in.SrcAddr.Addr(), web.Addr)
	}
	for _, p := range []*pod{web, shop} {
		text := p.scrape()
		for _, want := range []string{
			`istio_tcp_connections_opened_total{`, `connection_security_policy="mutual_tls"`, `source_principal="spiffe://cluster.local/ns/web/sa/web"`,
			`istio_tcp_received_bytes_total{`, `istio_tcp_connections_closed_total{`,
		} {
			if !strings.Contains(text, want) {
				t.Errorf("%s: metrics lack %s", p.name, want)
			}
		}
	}
}

func (p *pod) scrape() string {
	w := httptest.NewRecorder()
	p.metrics.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	return w.Body.String()
}

func TestServiceAndPassthrough(t *testing.T) {
	w, web, shop := pair(t)
	key := "shop/shop.shop.svc.cluster.local"
	w.apply(
		&api.Service{
			Name: "shop", Namespace: "shop", Hostname: "shop.shop.svc.cluster.local",
			Addresses: []*api.NetworkAddress{workloadtest.VIP("10.96.0.7")}, Ports: []*api.Port{{ServicePort: 80, TargetPort: 8080}},
		},
		shop.message(func(m *api.Workload) { m.Services = map[string]*api.PortList{key: {}} }))
	c := web.dial(netip.MustParseAddrPort("10.96.0.7:80"))
	ping(t, c)
	_ = c.Close()
	for _, p := range []*pod{web, shop} {
		if l := p.wantReason(telemetry.OK); l.DstService != "shop.shop.svc.cluster.local" {
			t.Errorf("%s: service %q", p.name, l.DstService)
		}
	}
	// A port that the service lacks is refused, not passed through.
	wantClosed(t, web.dial(netip.MustParseAddrPort("10.96.0.7:81")))
	web.wantReason(telemetry.NoHealthyEndpoint)

	// A destination that the mesh does not know is reached as without it.
	unmeshed := w.pod("other")
	unmeshed.serve(9000, echo)
	c = web.dial(unmeshed.addr(9000))
	ping(t, c)
	_ = c.Close()
	if l := web.wantReason(telemetry.OK); l.DstAddr != unmeshed.addr(9000) || l.DstIdentity != "" || l.SrcIdentity != "" {
		t.Errorf("passthrough: %+v", l)
	}
}

func TestPolicyDenial(t *testing.T) {
	w, web, shop := pair(t)
	w.apply(policy("only-admin", security.Action_ALLOW, security.Scope_NAMESPACE, principal("cluster.local/ns/admin/sa/admin")))
	wantClosed(t, web.dial(shop.addr(8080)))
	out, in := web.wantReason(telemetry.PeerRefused), shop.wantReason(telemetry.PolicyDenied)
	if out.Err == nil || !strings.Contains(out.Err.Error(), "401") {
		t.Errorf("client's line: %v, want status 401", out.Err)
	}
	if in.Early || in.SrcIdentity != "spiffe://cluster.local/ns/web/sa/web" || !strings.Contains(in.Err.Error(), "no ALLOW policy matched") {
		t.Errorf("server's line: %+v", in)
	}
	if text := shop.scrape(); !strings.Contains(text, `response_flags="DENY"`) {
		t.Error("no series with response_flags DENY")
	}
	w.apply(policy("no-web", security.Action_DENY, security.Scope_NAMESPACE, principal("cluster.local/ns/web/sa/web")))
	wantClosed(t, web.dial(shop.addr(8080)))
	if in := shop.wantReason(telemetry.PolicyDenied); !strings.Contains(in.Err.Error(), "DENY policy shop/no-web, rule 0") {
		t.Errorf("server's line: %v", in.Err)
	}
}

func TestStrictRefusesPlaintext(t *testing.T) {
	w, web, shop := pair(t)
	outside := w.pod("other")
	c := outside.plain(shop, 8080)
	ping(t, c) // permissive
	_ = c.Close()
	if l := shop.wantReason(telemetry.OK); l.SrcIdentity != "" || l.DstIdentity != "" || l.DstAddr != shop.addr(8080) {
		t.Errorf("plaintext line: %+v", l)
	}
	w.apply(strict(), shop.message(func(m *api.Workload) { m.AuthorizationPolicies = []string{"shop/istio_converted_static_strict"} }))
	wantClosed(t, outside.plain(shop, 8080))
	shop.wantReason(telemetry.PolicyDenied)
	ping(t, web.dial(shop.addr(8080))) // inside the mesh
}

// tunnel opens a tunnel from web's address to a pod with web's certificate.
func (w *world) tunnel(web, to *pod) *hbone.Tunnel {
	w.t.Helper()
	conn, err := web.proxy.dialTunnel(w.t.Context(), poolKey{
		source: w.ca.ID("web", "web"), peers: w.ca.ID(to.name, to.name).String(), nextHop: to.addr(15008),
	})
	if err != nil {
		w.t.Fatalf("dial tunnel: %v", err)
	}
	tunnel, err := hbone.NewTunnel(conn, hbone.Config{})
	if err != nil {
		w.t.Fatalf("tunnel: %v", err)
	}
	w.t.Cleanup(func() { _ = tunnel.Close() })
	return tunnel
}

func TestConnectIsRefused(t *testing.T) {
	w, web, shop := pair(t)
	neighbour := w.pod("other")
	neighbour.serve(8080, echo)
	w.apply(neighbour.message())
	tunnel := w.tunnel(web, shop)
	for _, tc := range []struct {
		name, authority string
		status          int
		reason          telemetry.Reason
	}{
		{"another pod's address", neighbour.addr(8080).String(), 400, telemetry.IPMismatch},
		{"an address outside", "192.0.2.1:80", 400, telemetry.IPMismatch},
		{"no port", "shop", 400, telemetry.BadRequest},
		{"port out of range", "shop:70000", 400, telemetry.BadRequest},
		{"ztunnel's own port", shop.addr(15006).String(), 503, telemetry.SelfCall},
		{"unknown hostname", "nobody.example:80", 503, telemetry.UnknownDestination},
		{"nobody listens", shop.addr(81).String(), 503, telemetry.ConnectFailed},
	} {
		_, err := tunnel.Open(t.Context(), hbone.Request{Authority: tc.authority})
		status, ok := err.(*hbone.StatusError) //nolint:errorlint // not wrapped
		if !ok || status.Status != tc.status {
			t.Errorf("%s: answered by %v, want status %d", tc.name, err, tc.status)
		}
		l := shop.wantReason(tc.reason)
		if tc.reason == telemetry.IPMismatch && !strings.Contains(l.Err.Error(), shop.Addr.String()+" != ") {
			t.Errorf("%s: %v", tc.name, l.Err)
		}
	}
	s, err := tunnel.Open(t.Context(), hbone.Request{Authority: shop.addr(8080).String()})
	if err != nil {
		t.Fatalf("the pod's own address: %v", err)
	}
	if got := parseBaggage(header(s.Header(), "baggage")); got.Workload != "shop" || got.Namespace != "shop" {
		t.Errorf("response baggage %+v", got)
	}
	ping(t, s)
}

func TestHandshakeIsRefused(t *testing.T) {
	w := newWorld(t)
	foreign := identitytest.New(t, "cluster.local") // same names, another root
	stranger := foreign.Issue(w.ca.ID("web", "web"), time.Hour)
	own := w.certificate
	w.certificate = func(ctx context.Context, id spiffe.ID) (*mtls.Certificate, error) {
		if id.Namespace() == "web" {
			return stranger, nil
		}
		return own(ctx, id)
	}
	web, shop := w.pod("web"), w.pod("shop")
	w.apply(web.message(), shop.message())
	wantClosed(t, web.dial(shop.addr(8080)))
	web.wantReason(telemetry.TLSFailure)
	if l := shop.line(); !l.Early || l.Err == nil {
		t.Errorf("server's line: %+v", l)
	}
}

func TestWrongPeerIsNotTalkedTo(t *testing.T) {
	w, web, shop := pair(t)
	// istiod says that "shop" runs at the address where "shop" is, but as another account.
	w.apply(shop.message(func(m *api.Workload) {
		m.Uid, m.Name, m.ServiceAccount = "Kubernetes//Pod/shop/imposter", "imposter", "imposter"
	}),
		shop.message(func(m *api.Workload) { m.Addresses = nil }))
	wantClosed(t, web.dial(shop.addr(8080)))
	web.wantReason(telemetry.TLSFailure)
}

func TestLiveConnectionsAreReevaluated(t *testing.T) {
	w, web, shop := pair(t)
	other := w.pod("other")
	w.apply(other.message())
	denied, kept, plain := web.dial(shop.addr(8080)), other.dial(shop.addr(8080)), other.plain(shop, 8080)
	for _, c := range []net.Conn{denied, kept, plain} {
		ping(t, c)
	}
	w.apply(policy("no-web", security.Action_DENY, security.Scope_NAMESPACE, principal("cluster.local/ns/web/sa/web")))
	wantClosed(t, denied)
	if l := shop.wantReason(telemetry.PolicyChanged); l.SrcIdentity != "spiffe://cluster.local/ns/web/sa/web" {
		t.Errorf("closed %+v", l)
	}
	ping(t, kept)
	ping(t, plain)
	// The workload's own list of policies counts as well, once they are all here.
	w.apply(shop.message(func(m *api.Workload) { m.AuthorizationPolicies = []string{"shop/istio_converted_static_strict"} }))
	ping(t, plain)
	w.apply(strict())
	wantClosed(t, plain)
	shop.wantReason(telemetry.PolicyChanged)
	ping(t, kept)
}

// TestResetTravels: an application whose peer has given up must not take what it
// has received for the whole.
func TestResetTravels(t *testing.T) {
	_, web, shop := pair(t)
	accepted := make(chan *net.TCPConn, 1)
	shop.serve(9090, func(c *net.TCPConn) { accepted <- c })
	for _, serverResets := range []bool{true, false} {
		client := web.dial(shop.addr(9090))
		_, _ = io.WriteString(client, "x")
		server := <-accepted
		_ = server.SetDeadline(time.Now().Add(patience))
		_, _ = io.ReadFull(server, make([]byte, 1))
		resets, reads := client, server
		if serverResets {
			resets, reads = server, client
		}
		_, _ = io.WriteString(resets, "part")
		_, _ = io.ReadFull(reads, make([]byte, 4))
		_ = resets.SetLinger(0)
		_ = resets.Close()
		if _, err := reads.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("server resets %v: the other end reads %v, want a reset", serverResets, err)
		}
		_ = reads.Close()
	}
}

// TestOwnPortIsNoTarget: who connects to the outbound port itself must not make
// ztunnel connect to it, again and again.
func TestOwnPortIsNoTarget(t *testing.T) {
	w := newWorld(t)
	web := w.pod("web")
	w.apply(web.message(func(m *api.Workload) { m.TunnelProtocol = api.TunnelProtocol_NONE }))
	for _, port := range []uint16{15001, 15006} {
		c, err := web.NS.Dial(t.Context(), web.addr(port), noOptions)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		web.wantReason(telemetry.SelfCall)
		wantClosed(t, c)
		_ = c.Close()
	}
	if n := len(web.lines); n != 0 {
		t.Errorf("%d more connections", n)
	}
}

func TestUnreadablePolicyRefuses(t *testing.T) {
	w, web, shop := pair(t)
	allow := policy("some", security.Action_ALLOW, security.Scope_NAMESPACE, principal("cluster.local/ns/web/sa/web"))
	w.apply(allow)
	live := web.dial(shop.addr(8080))
	ping(t, live)
	r := workloadtest.Resource(t, policy("bad", 9, security.Scope_NAMESPACE, &security.Match{}))
	if rejected := w.store.ApplyAuthorizations([]*discoveryv3.Resource{r}, nil); len(rejected) != 1 {
		t.Errorf("rejected %v", rejected)
	}
	wantClosed(t, web.dial(shop.addr(8080)))
	if l := shop.wantReason(telemetry.PolicyInvalid); !strings.Contains(l.Err.Error(), "policy-invalid: policy shop/bad is not valid: unknown action 9") {
		t.Errorf("%v", l.Err)
	}
	ping(t, live) // only an actual deny ends what was allowed
	w.apply(policy("bad", security.Action_DENY, security.Scope_NAMESPACE, principal("cluster.local/ns/other/sa/other")))
	ping(t, web.dial(shop.addr(8080)))
}

func TestWaypointIsNeverBypassed(t *testing.T) {
	w, web, shop := pair(t)
	w.apply(&api.Service{
		Name: "shop", Namespace: "shop", Hostname: "shop.shop.svc.cluster.local",
		Addresses: []*api.NetworkAddress{workloadtest.VIP("10.96.0.7")}, Ports: []*api.Port{{ServicePort: 80, TargetPort: 8080}},
		Waypoint: workloadtest.ByHostname("shop", "waypoint.shop.svc.cluster.local"),
	},
		shop.message(func(m *api.Workload) { m.Services = map[string]*api.PortList{"shop/shop.shop.svc.cluster.local": {}} }))
	wantClosed(t, web.dial(netip.MustParseAddrPort("10.96.0.7:80")))
	web.wantReason(telemetry.WaypointUnavailable)
}

func TestConnectIsTriedAtAnotherEndpoint(t *testing.T) {
	w, web, shop := pair(t)
	key := "shop/shop.shop.svc.cluster.local"
	service := &api.Service{
		Name: "shop", Namespace: "shop", Hostname: "shop.shop.svc.cluster.local",
		Addresses: []*api.NetworkAddress{workloadtest.VIP("10.96.0.7")}, Ports: []*api.Port{{ServicePort: 80, TargetPort: 8080}},
	}
	member := func(m *api.Workload) { m.Services = map[string]*api.PortList{key: {}} }
	idle := w.pod("other") // its application does not listen
	w.apply(service, shop.message(member), idle.message(member))
	for range 20 {
		c := web.dial(netip.MustParseAddrPort("10.96.0.7:80"))
		ping(t, c)
		_ = c.Close()
		if l := web.wantReason(telemetry.OK); l.DstWorkload != "shop" {
			t.Errorf("served by %q", l.DstWorkload)
		}
	}
}
