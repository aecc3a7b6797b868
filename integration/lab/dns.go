package lab

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
)

// dnsTTL is how long an answer may be kept, in seconds: Kubernetes' default.
const dnsTTL = 5

// zone is what the names of the cluster mean, as Kubernetes' "DNS-Based Service
// Discovery" says
// (https://github.com/kubernetes/dns/blob/master/docs/specification.md). It is
// immutable. Names are lower case and end in a dot.
type zone struct {
	addresses map[string][]netip.Addr
	targets   map[string][]target // SRV
	aliases   map[string]string   // CNAME
}

// target is where an SRV record points to.
type target struct {
	name string
	port uint16
}

const zoneSuffix = "." + ClusterDomain + "."

// newZone builds the zone from Services and pods.
func newZone(backends []backend, pods []*pod) *zone {
	z := &zone{addresses: map[string][]netip.Addr{}, targets: map[string][]target{}, aliases: map[string]string{}}
	for _, b := range backends {
		name := strings.ToLower(b.name().Name + "." + b.name().Namespace + ".svc" + zoneSuffix)
		switch {
		case b.service.Spec.Type == corev1.ServiceTypeExternalName:
			z.aliases[name] = dns.Fqdn(strings.ToLower(b.service.Spec.ExternalName))
		case b.headless():
			z.addHeadless(name, b)
		case b.address.IsValid():
			z.addresses[name] = []netip.Addr{b.address}
			for _, p := range b.service.Spec.Ports {
				z.addTarget(name, p.Name, string(p.Protocol), target{name, uint16(p.Port)})
			}
		}
	}
	for _, p := range pods {
		if p.hasAddress && !p.finished() {
			z.addresses[dashed(p.address)+"."+p.namespace+".pod"+zoneSuffix] = []netip.Addr{p.address}
		}
	}
	return z
}

func (z *zone) addHeadless(name string, b backend) {
	for _, e := range b.endpoints {
		if !e.ready {
			continue
		}
		host := dashed(e.address)
		if e.hostname != "" {
			host = strings.ToLower(e.hostname)
		}
		host += "." + name
		if !slices.Contains(z.addresses[name], e.address) {
			z.addresses[name] = append(z.addresses[name], e.address)
		}
		z.addresses[host] = append(z.addresses[host], e.address)
		for _, p := range e.ports {
			z.addTarget(name, p.name, string(p.protocol), target{host, uint16(p.port)})
		}
	}
}

func (z *zone) addTarget(name, port, protocol string, t target) {
	if protocol == "" {
		protocol = "tcp"
	}
	if port == "" {
		return
	}
	service := "_" + strings.ToLower(port) + "._" + strings.ToLower(protocol) + "." + name
	if !slices.Contains(z.targets[service], t) {
		z.targets[service] = append(z.targets[service], t)
	}
}

func dashed(a netip.Addr) string { return strings.ReplaceAll(a.String(), ".", "-") }

// answer answers one question. The order of addresses changes, so that clients
// that take the first spread.
func (z *zone) answer(q dns.Question) (answers, extra []dns.RR, code int) {
	name := strings.ToLower(q.Name)
	header := func(name string, kind uint16) dns.RR_Header {
		return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: dnsTTL}
	}
	if alias, ok := z.aliases[name]; ok {
		answers = append(answers, &dns.CNAME{Hdr: header(q.Name, dns.TypeCNAME), Target: alias})
		if _, again := z.aliases[alias]; again || q.Qtype == dns.TypeCNAME { // one step; aliases may form a ring
			return answers, nil, dns.RcodeSuccess
		}
		// Resolvers of C libraries ask no second question.
		more, extra, _ := z.answer(dns.Question{Name: alias, Qtype: q.Qtype, Qclass: q.Qclass})
		return append(answers, more...), extra, dns.RcodeSuccess
	}
	addresses, isHost := z.addresses[name]
	targets, isService := z.targets[name]
	switch {
	case !isHost && !isService:
		return nil, nil, dns.RcodeNameError
	case q.Qtype == dns.TypeA:
		for _, i := range rand.Perm(len(addresses)) {
			answers = append(answers, &dns.A{Hdr: header(q.Name, dns.TypeA), A: addresses[i].AsSlice()})
		}
	case q.Qtype == dns.TypeSRV:
		for _, t := range targets {
			answers = append(answers, &dns.SRV{Hdr: header(q.Name, dns.TypeSRV), Weight: 1, Port: t.port, Target: t.name})
			for _, a := range z.addresses[t.name] {
				extra = append(extra, &dns.A{Hdr: header(t.name, dns.TypeA), A: a.AsSlice()})
			}
		}
	}
	return answers, extra, dns.RcodeSuccess
}

// dnsServer answers for the cluster. It knows nothing else and asks nobody.
type dnsServer struct {
	zone    atomic.Pointer[zone]
	servers []*dns.Server
}

// newDNSServer takes the address, so that nothing can ask before.
func newDNSServer(address netip.AddrPort) (*dnsServer, error) {
	s := &dnsServer{}
	s.zone.Store(&zone{})
	packets, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(address))
	if err != nil {
		return nil, fmt.Errorf("dns: %w", err)
	}
	streams, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(address))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("dns: %w", err), packets.Close())
	}
	handler := dns.HandlerFunc(s.serve)
	s.servers = []*dns.Server{{PacketConn: packets, Handler: handler}, {Listener: streams, Handler: handler}}
	return s, nil
}

func (s *dnsServer) set(z *zone) { s.zone.Store(z) }

// run serves until ctx ends.
func (s *dnsServer) run(ctx context.Context) error {
	ended := make(chan error, len(s.servers))
	for _, server := range s.servers {
		go func() { ended <- server.ActivateAndServe() }()
	}
	stop := context.AfterFunc(ctx, func() {
		for _, server := range s.servers {
			_ = server.ShutdownContext(ctx)
		}
	})
	defer stop()
	var err error
	for range s.servers {
		err = errors.Join(err, <-ended)
	}
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("dns: %w", err)
}

func (s *dnsServer) serve(w dns.ResponseWriter, request *dns.Msg) {
	_ = w.WriteMsg(s.reply(request, w.RemoteAddr().Network() == "udp")) // the client asks again
}

// reply answers a message.
func (s *dnsServer) reply(request *dns.Msg, datagram bool) *dns.Msg {
	m := new(dns.Msg).SetReply(request)
	if len(request.Question) != 1 || request.Question[0].Qclass != dns.ClassINET {
		m.Rcode = dns.RcodeNotImplemented
		return m
	}
	m.RecursionAvailable = true
	m.Answer, m.Extra, m.Rcode = s.zone.Load().answer(request.Question[0])
	ours := strings.HasSuffix("."+strings.ToLower(request.Question[0].Name), zoneSuffix)
	m.Authoritative = ours
	if ours && len(m.Answer) == 0 {
		m.Ns = []dns.RR{&dns.SOA{
			Hdr: dns.RR_Header{Name: zoneSuffix[1:], Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: dnsTTL},
			Ns:  "ns.dns" + zoneSuffix, Mbox: "hostmaster" + zoneSuffix, Serial: 1,
			Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: dnsTTL,
		}}
	}
	if datagram {
		size := dns.MinMsgSize
		if o := request.IsEdns0(); o != nil {
			m.SetEdns0(1232, false)
			size = max(size, min(int(o.UDPSize()), 1232))
		}
		m.Truncate(size)
	}
	return m
}
