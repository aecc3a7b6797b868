package dns_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/apis/mesh"
	api "github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/ztunnel/dns"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/netns/netnstest"
	"github.com/ambit-mesh/ambit/ztunnel/redirect"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
	"github.com/ambit-mesh/ambit/ztunnel/workload/workloadtest"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

// bed is a captured pod with ztunnel's DNS server, and plain resolvers in other pods.
type bed struct {
	t       testing.TB
	pod     *netnstest.Pod
	store   *workload.Store
	metrics *telemetry.DNSMetrics
	log     lockedBuffer
	server  *dns.Server
}

// own is the message of the captured pod.
var own = &api.Workload{
	Uid: "c//Pod/shop/client", Name: "client", Namespace: "shop", ServiceAccount: "default", CanonicalName: "client", CanonicalRevision: "v1",
}

func service(hostname string, vips ...string) *api.Service {
	s := &api.Service{Namespace: "shop", Hostname: hostname}
	for _, vip := range vips {
		s.Addresses = append(s.Addresses, workloadtest.VIP(vip))
	}
	return s
}

// newBed starts the server in a pod of which istiod has told these messages.
func newBed(tb testing.TB, messages ...proto.Message) *bed {
	tb.Helper()
	b := &bed{t: tb, pod: netnstest.NewPod(tb), store: workload.NewStore("", ""), metrics: telemetry.NewDNSMetrics()}
	workloadtest.Apply(tb, b.store, messages...)
	b.server = b.start(nil)
	return b
}

func (b *bed) start(change func(*dns.Config)) *dns.Server {
	b.t.Helper()
	cfg := dns.Config{
		Pod: workload.Info{Name: "client", Namespace: "shop", ServiceAccount: "default"}, NetNS: b.pod.NS,
		Store: b.store, Metrics: b.metrics, Log: slog.New(slog.NewTextHandler(&b.log, nil)),
		Mark: mesh.MarkZtunnel, ReusePort: true,
	}
	if change != nil {
		change(&cfg)
	}
	s := dns.New(cfg)
	if err := s.Start(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(s.Stop)
	return s
}

func (b *bed) capture() {
	b.t.Helper()
	if err := redirect.Apply(b.pod.NS.File(), redirect.Options{DNS: true}); err != nil {
		b.t.Fatal(err)
	}
}

// lockedBuffer is a log that may be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

// resolver answers at port 53 of its pod whatever it is told to answer.
type resolver struct {
	*netnstest.Pod
	answer func(msg []byte, tcp bool) [][]byte
	hasty  chan struct{} // closes connections after one answer, and says so

	mu    sync.Mutex
	asked [][]byte
	ports map[uint16]bool
	ids   map[uint16]bool
}

func (b *bed) resolver(answer func(msg []byte, tcp bool) [][]byte) *resolver {
	b.t.Helper()
	r := &resolver{Pod: netnstest.NewPod(b.t), answer: answer, ports: map[uint16]bool{}, ids: map[uint16]bool{}}
	for _, a := range []netip.Addr{r.Addr, r.Addr6} {
		if a.IsValid() {
			r.listen(b.t, netip.AddrPortFrom(a, 53))
		}
	}
	return r
}

func (r *resolver) listen(tb testing.TB, at netip.AddrPort) {
	tb.Helper()
	c, err := r.NS.ListenUDP(at, netns.ListenOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	l, err := r.NS.Listen(at, netns.ListenOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		buffer := make([]byte, 65535)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return
			}
			for _, out := range r.say(bytes.Clone(buffer[:n]), from, false) {
				_, _ = c.WriteToUDPAddrPort(out, from)
			}
		}
	})
	serving.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer func() { _ = c.Close() }()
				for {
					msg, err := readTCP(c)
					if err != nil {
						return
					}
					for _, out := range r.say(msg, netip.AddrPort{}, true) {
						if writeTCP(c, out) != nil {
							return
						}
					}
					if r.hasty != nil {
						_ = c.Close()
						r.hasty <- struct{}{}
						return
					}
				}
			})
		}
	})
	tb.Cleanup(func() {
		_, _ = c.Close(), l.Close()
		serving.Wait()
	})
}

func (r *resolver) say(msg []byte, from netip.AddrPort, tcp bool) [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, bytes.Clone(msg))
	r.ports[from.Port()] = true
	if len(msg) > 1 {
		r.ids[binary.BigEndian.Uint16(msg)] = true
	}
	return r.answer(msg, tcp)
}

// heard returns what was asked since the last time.
func (r *resolver) heard() [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer func() { r.asked = nil }()
	return r.asked
}

// address answers every question about a name with one address.
func address(ip string) func([]byte, bool) [][]byte {
	return func(msg []byte, _ bool) [][]byte {
		m := new(miekg.Msg)
		if m.Unpack(msg) != nil || len(m.Question) != 1 {
			return nil
		}
		r := new(miekg.Msg).SetReply(m)
		r.Answer = []miekg.RR{&miekg.A{Hdr: miekg.RR_Header{Name: m.Question[0].Name, Rrtype: miekg.TypeA, Class: 1, Ttl: 7}, A: net.ParseIP(ip)}}
		out, err := r.Pack()
		if err != nil {
			return nil
		}
		return [][]byte{out}
	}
}

func silent([]byte, bool) [][]byte { return nil }

func readTCP(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

func writeTCP(w io.Writer, b []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	return err
}

const patience = 10 * time.Second

// client is a socket of a program, which may ask several resolvers.
type client struct {
	*net.UDPConn
	t testing.TB
}

func (b *bed) client(ns *netns.NS, addr string) client {
	b.t.Helper()
	c, err := ns.ListenUDP(netip.MustParseAddrPort(addr), netns.ListenOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = c.Close() })
	return client{c, b.t}
}

// ask sends a message and returns the answer, which has to come from whom was asked.
func (c client) ask(to netip.AddrPort, msg []byte) []byte {
	c.t.Helper()
	b, err := c.exchange(to, msg)
	if err != nil {
		c.t.Errorf("ask %s: %v", to, err)
	}
	return b
}

var errWrongSource = errors.New("answered by another address")

func (c client) exchange(to netip.AddrPort, msg []byte) ([]byte, error) {
	if _, err := c.WriteToUDPAddrPort(msg, to); err != nil {
		return nil, err
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 65535)
	n, from, err := c.ReadFromUDPAddrPort(b)
	if from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port()); err == nil && from != to {
		err = errWrongSource
	}
	return b[:n], err
}

func (b *bed) dial(ns *netns.NS, to netip.AddrPort) *net.TCPConn {
	b.t.Helper()
	c, err := ns.Dial(b.t.Context(), to, netns.DialOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = c.Close() })
	return c
}

// askTCP sends messages over one connection, at once, and returns as many answers.
func (b *bed) askTCP(ns *netns.NS, to netip.AddrPort, answers int, messages ...[]byte) [][]byte {
	b.t.Helper()
	c := b.dial(ns, to)
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	for _, m := range messages {
		if err := writeTCP(c, m); err != nil {
			b.t.Fatal(err)
		}
	}
	var out [][]byte
	for range answers {
		m, err := readTCP(c)
		if err != nil {
			b.t.Errorf("answer %d of %s: %v", len(out), to, err)
			break
		}
		out = append(out, m)
	}
	return out
}

func at53(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 53) }

func question(name string, kind uint16, change ...func(*miekg.Msg)) []byte {
	m := new(miekg.Msg).SetQuestion(miekg.Fqdn(name), kind)
	m.Id = 4711
	for _, c := range change {
		c(m)
	}
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

// said is what an answer says: its code and its records, sorted.
func said(t *testing.T, b []byte) string {
	t.Helper()
	m := new(miekg.Msg)
	if err := m.Unpack(b); err != nil {
		t.Errorf("answer %x: %v", b, err)
		return ""
	}
	var records []string
	for _, rr := range m.Answer {
		_, data, _ := strings.Cut(strings.TrimPrefix(rr.String(), rr.Header().String()), "\t")
		records = append(records, strings.TrimSpace(miekg.TypeToString[rr.Header().Rrtype]+" "+strings.TrimPrefix(rr.String(), rr.Header().String())+data))
	}
	slices.Sort(records)
	return strings.Join(append([]string{miekg.RcodeToString[m.Rcode]}, records...), " ")
}
