package scenario

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/ambit-mesh/ambit/integration/bed"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

// names: what pods ask of their resolvers, captured by the rules of ambit-cni.
var names = []scenario{
	{"DNS", []string{"ISTIO_META_DNS_CAPTURE=true", "RUST_LOG=info,dns=debug"}, dnsAnswers},
	{"DNS hand-over", []string{"ISTIO_META_DNS_CAPTURE=true"}, dnsHandOver},
}

// asker is a captured pod whose look-ups are captured, too.
func (w *world) asker() *bed.Pod {
	return w.add(0, bed.PodOptions{Name: "client", Namespace: "shop", DNS: true})
}

// resolver makes a pod that answers every question with one address, whatever it is.
func (w *world) resolver(node int, name, says string) *bed.Pod {
	w.Helper()
	p := w.plainPod(node, name)
	c, err := p.NetNS().ListenUDP(at(p.Addr, 53), netns.ListenOptions{})
	w.must(err)
	l, err := p.NetNS().Listen(at(p.Addr, 53), netns.ListenOptions{})
	w.must(err)
	for _, s := range []*dns.Server{{PacketConn: c}, {Listener: l}} {
		s.Handler = dns.HandlerFunc(func(out dns.ResponseWriter, q *dns.Msg) {
			m := new(dns.Msg).SetReply(q)
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.ParseIP(says)}}
			_ = out.WriteMsg(m) // who asked asks again
		})
		ended := make(chan struct{})
		go func() {
			_ = s.ActivateAndServe() // ends when its socket is closed
			close(ended)
		}()
		w.Cleanup(func() {
			_, _ = c.Close(), l.Close()
			<-ended
		})
	}
	return p
}

// resolve asks a resolver from a pod and returns the first address.
func (w *world) resolve(from, resolver *bed.Pod, network, name string) (netip.Addr, error) {
	var c net.Conn
	var err error
	if network == "tcp" {
		c, err = from.Dial(w.ctx, at(resolver.Addr, 53))
	} else {
		clients := netns.UDPClients{NS: from.NetNS()}
		c, err = clients.Dial(at(resolver.Addr, 53))
	}
	if err != nil {
		return netip.Addr{}, err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(15 * time.Second)); err != nil {
		return netip.Addr{}, err
	}
	conn := &dns.Conn{Conn: c}
	if err := conn.WriteMsg(new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)); err != nil {
		return netip.Addr{}, err
	}
	m, err := conn.ReadMsg()
	if err != nil {
		return netip.Addr{}, err
	}
	for _, rr := range m.Answer {
		if a, ok := rr.(*dns.A); ok {
			ip, _ := netip.AddrFromSlice(a.A.To4())
			return ip, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("no address: %s", m)
}

// dnsAnswers: names of the mesh lead into the mesh, other names are whose resolver the
// pod asked.
func dnsAnswers(w *world) {
	from, to := w.asker(), w.pod(1, "server")
	first, second := w.resolver(0, "first", "192.0.2.1"), w.resolver(1, "second", "192.0.2.2")
	w.serve(to, 8080)
	w.service("cart", "10.96.0.7", to)
	w.tell()
	for _, network := range []string{"udp", "tcp"} {
		for _, want := range []struct {
			resolver   *bed.Pod
			name, addr string
		}{
			{first, "www.example.com", "192.0.2.1"},
			{second, "www.example.com", "192.0.2.2"},
			{first, "cart.shop.svc.cluster.local", "10.96.0.7"},
			{second, "cart", "10.96.0.7"},
		} {
			got, err := w.resolve(from, want.resolver, network, want.name)
			if err != nil || got.String() != want.addr {
				w.Errorf("%s over %s from %s: got %s, %v, want %s", want.name, network, want.resolver.Name, got, err, want.addr)
			}
		}
	}
	vip, err := w.resolve(from, first, "udp", "cart.shop")
	w.must(err)
	got, err := w.ask(from, at(vip, 80))
	if err != nil || got.pod != "server" {
		w.Errorf("the service by its name: got %v, %v", got, err)
	}
	w.awaitLine(0, "over HBONE", func(l line) bool { return l.DstService == "cart.shop.svc.cluster.local" && l.DstHBONE != "" })
	text, err := w.ztunnels[0].Get(w.ctx, "http://127.0.0.1:15020/metrics")
	w.must(err)
	for _, sample := range []string{
		`istio_dns_requests_total{request_protocol="udp",request_query_type="a"`, `istio_dns_upstream_requests_total{request_protocol="tcp",request_query_type="a"`,
	} {
		if !strings.Contains(text, sample) {
			w.Errorf("metrics lack %s", sample)
		}
	}
	log, err := w.ztunnels[0].Log()
	w.must(err)
	if !strings.Contains(log, `"scope":"dns","message":"dns query"`) || strings.Contains(log, "not known which resolver") {
		w.Error("the log lacks the questions, or says that resolvers are not known")
	}
}

// dnsHandOver: one ztunnel follows another while the pod asks without a pause; no
// question is lost.
func dnsHandOver(w *world) {
	from := w.asker()
	r := w.resolver(1, "resolver", "192.0.2.1")
	w.service("cart", "10.96.0.7")
	w.tell()
	stop, ended := make(chan struct{}), make(chan error, 2)
	asked := make(chan struct{}, 1)
	for _, name := range []string{"cart", "www.example.com"} {
		go func() {
			var errs []error
			for {
				select {
				case <-stop:
					ended <- errors.Join(errs...)
					return
				default:
				}
				if _, err := w.resolve(from, r, "udp", name); err != nil {
					errs = append(errs, fmt.Errorf("%s: %w", name, err))
				}
				select {
				case asked <- struct{}{}:
				default:
				}
			}
		}()
	}
	some := func() {
		for range 30 {
			<-asked
		}
	}
	some()
	old := w.ztunnels[0]
	z, err := w.nodes[0].StartZtunnel(w.ctx, w.binary, w.env...)
	w.must(err)
	w.ztunnels[0] = z
	some()
	w.must(old.Stop(w.ctx))
	some()
	close(stop)
	for range cap(ended) {
		if err := <-ended; err != nil {
			w.Errorf("lost: %v", err)
		}
	}
}
