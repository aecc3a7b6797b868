// Package dns answers the questions that a pod's programs ask of their resolver: those
// about names that the mesh knows from the newest workload.Snapshot, and every other one
// by passing it on to the resolver that the pod asked, byte for byte, and its answer
// back. It keeps no cache and never says that a name does not exist: what the mesh does
// not know is for the resolver to say.
//
// One Server runs per pod, started and stopped by ztunnel.go beside the pod's proxy. Its
// sockets, those to the resolvers included, are in the pod's network namespace and carry
// ztunnel's mark, by which the rules of ztunnel/redirect leave them alone.
//
//	udp.go, tcp.go    the two transports
//	message.go        the wire format; pure
//	names.go          which service a name means; pure
//	answer.go         which addresses the service has for this client; pure
//	asked.go          which resolver the pod asked
//	forward.go        what the mesh does not know
//
// What one pod can make it hold is bounded: questions that wait, connections, and
// buffers only while there is something in them. Rules: spec/ztunnel.md §7; limits of
// upstream that are not ours: §12.1.
package dns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
)

// Config is what one pod's server needs.
type Config struct {
	// The pod as the node agent names it; never looked up by address.
	Pod workload.Info
	// NetNS is the pod's network namespace; nil is the process's own.
	NetNS *netns.NS

	Store   *workload.Store
	Metrics *telemetry.DNSMetrics // of the process
	Log     *slog.Logger

	// Addresses are where questions come to, none a wildcard; nil is port 15053 of both
	// loopback addresses, of which IPv6 may be missing.
	Addresses          []netip.AddrPort
	ClusterDomain      string // "" is cluster.local
	PreferredNamespace string // decides between services that are equal otherwise
	// Search are the domains that the pod's programs may have appended to a name; nil are
	// those of Kubernetes.
	Search []string
	// Resolvers are asked when the one that the pod asked cannot be found out.
	Resolvers []netip.AddrPort

	Mark      uint32 // on every packet
	IPv4Only  bool
	ReusePort bool
}

// Bounds of one pod, and timeouts of single steps.
const (
	maxWaiting     = 512     // questions by UDP that are not answered yet
	maxHeld        = 1 << 20 // bytes of these
	maxConnections = 128     // by TCP
	maxPipelined   = 128     // questions of one connection that a resolver has not answered

	resolverTimeout = 5 * time.Second // to connect, or to answer
	workloadTimeout = 5 * time.Second // for istiod to tell of the pod
	idleTimeout     = 5 * time.Second // of a connection on which nothing happens
)

// Server is a pod's running DNS proxy.
type Server struct {
	cfg     Config
	log     *slog.Logger
	names   *namer
	asked   asked
	clients netns.UDPClients // of resolvers

	packets   []*net.UDPConn
	listeners []*net.TCPListener
	waiting   chan struct{} // one element per question by UDP that waits
	held      atomic.Int64  // bytes of these questions
	conns     chan struct{} // one element per connection

	life     context.Context // ends when the server stops
	stopping context.CancelFunc
	working  sync.WaitGroup // who reads questions, and who answers them
}

// New returns a server that does nothing yet.
func New(cfg Config) *Server {
	cfg.ClusterDomain = cmp.Or(cfg.ClusterDomain, mesh.DefaultClusterDomain)
	s := &Server{
		cfg:     cfg,
		log:     cfg.Log.With(telemetry.KeyWorkload, cfg.Pod.Namespace+"/"+cfg.Pod.Name),
		names:   newNamer(&cfg),
		waiting: make(chan struct{}, maxWaiting),
		conns:   make(chan struct{}, maxConnections),
	}
	s.asked = asked{resolvers: cfg.Resolvers, log: s.log}
	s.clients.NS, s.clients.Mark = cfg.NetNS, cfg.Mark
	return s
}

// Start opens the pod's sockets and serves them until Stop, or until ctx ends. An error
// means that nothing runs.
func (s *Server) Start(ctx context.Context) error {
	if err := s.listen(); err != nil {
		s.close()
		return err
	}
	s.life, s.stopping = context.WithCancel(ctx)
	s.asked.open(s.cfg.NetNS)
	for _, c := range s.packets {
		s.working.Go(func() { s.serveUDP(c) })
	}
	for _, l := range s.listeners {
		s.working.Go(func() { s.serveTCP(l) })
	}
	context.AfterFunc(s.life, s.close) // also when ctx ends without Stop
	return nil
}

// listen opens both kinds of sockets at every address.
func (s *Server) listen() error {
	addresses, optional := s.cfg.Addresses, false
	if addresses == nil {
		addresses = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), mesh.PortDNS)}
		if !s.cfg.IPv4Only {
			addresses, optional = append(addresses, netip.AddrPortFrom(netip.IPv6Loopback(), mesh.PortDNS)), true
		}
	}
	o := netns.ListenOptions{Mark: s.cfg.Mark, ReusePort: s.cfg.ReusePort}
	for _, a := range addresses {
		if err := s.listenAt(a, o); err != nil {
			if optional && a.Addr().Is6() && missing(err) {
				continue // net.ipv6.conf.lo.disable_ipv6
			}
			return fmt.Errorf("dns: %w", err)
		}
	}
	return nil
}

func (s *Server) listenAt(a netip.AddrPort, o netns.ListenOptions) error {
	c, err := s.cfg.NetNS.ListenUDP(a, o)
	if err != nil {
		return err
	}
	s.packets = append(s.packets, c)
	l, err := s.cfg.NetNS.Listen(a, o)
	if err != nil {
		return err
	}
	s.listeners = append(s.listeners, l)
	return nil
}

// missing says whether the namespace has no such address.
func missing(err error) bool {
	return errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT)
}

// Drain takes no more questions, lets those that were asked be answered, which takes at
// most as long as a resolver may, then stops. Where another process shares the port, no
// question is lost on the way: what has come is read before its socket is closed.
func (s *Server) Drain() {
	ctx, cancel := context.WithTimeout(s.life, resolverTimeout)
	defer cancel()
	for _, c := range s.packets {
		if err := netns.LeaveReusePort(c); err != nil && !errors.Is(err, net.ErrClosed) {
			s.log.Warn("port not handed over, questions may be lost", telemetry.KeyError, err)
		}
		_ = c.SetReadDeadline(time.Now()) // ends its reader, which polls the rest
	}
	if _, err := s.cfg.NetNS.HandOver(ctx, s.listeners); err != nil {
		s.log.Warn("port not handed over, connections may be reset", telemetry.KeyError, err)
	}
	for _, l := range s.listeners {
		_ = l.Close()
	}
	ended := make(chan struct{})
	go func() { s.working.Wait(); close(ended) }() // ends with Stop below
	select {
	case <-ended:
	case <-ctx.Done():
	}
	s.Stop()
	<-ended
}

// Stop ends everything and returns when it has ended.
func (s *Server) Stop() {
	s.stopping()
	s.close()
	s.working.Wait()
	s.clients.Close()
	s.asked.close()
}

func (s *Server) close() {
	for _, l := range s.listeners {
		_ = l.Close()
	}
	for _, c := range s.packets {
		_ = c.Close()
	}
}

// workload returns the pod's own workload, or nil while istiod has not told us.
func (s *Server) workload(snapshot *workload.Snapshot) *workload.Workload {
	return snapshot.WorkloadByInfo(s.cfg.Pod.Name, s.cfg.Pod.Namespace, s.cfg.Pod.ServiceAccount)
}

// question is one question from its coming to its answer.
type question struct {
	query
	understood bool   // else there is only the header
	protocol   string // "udp" or "tcp"
}

// ask reads a message. It reports false for what nobody answers: no message, or an
// answer, to which an answer could go back and forth for ever.
func (s *Server) ask(protocol string, b []byte) (question, bool) {
	q := question{protocol: protocol}
	if len(b) < headerSize {
		return q, false
	}
	q.query, q.understood = readQuery(b)
	if q.flags&bitResponse != 0 {
		return q, false
	}
	s.cfg.Metrics.Asked(s.labels(&q))
	return q, true
}

// decision is what is done about a question.
type decision uint8

const (
	doForward decision = iota
	doAnswer
	doAwait // of the pod itself, then again
)

// decide says what the mesh answers, if it does.
func (s *Server) decide(q *question) (answer, decision) {
	if !q.ours() {
		return answer{}, doForward
	}
	snapshot := s.cfg.Store.Snapshot()
	m := s.names.find(snapshot, q.name)
	if m.service == nil {
		return answer{}, doForward
	}
	a := answer{alias: m.alias}
	if !familyAllowed(m, q.kind, s.cfg.IPv4Only) {
		s.report(q, telemetry.DNSOtherFamily, nil)
		return answer{}, doAnswer
	}
	client := s.workload(snapshot)
	if client == nil {
		return answer{}, doAwait
	}
	a.addrs = addresses(snapshot, m, q.kind, client)
	if len(a.addrs) == 0 {
		s.report(q, telemetry.DNSNoRecords, nil)
		return answer{}, doAnswer
	}
	s.report(q, telemetry.DNSSuccess, a.addrs)
	return a, doAnswer
}

// await waits for istiod to tell of the pod, and reports whether it did in time.
func (s *Server) await() bool {
	ctx, cancel := context.WithTimeout(s.life, workloadTimeout)
	defer cancel()
	return s.cfg.Store.Await(ctx, func(n *workload.Snapshot) bool { return s.workload(n) != nil }) == nil
}

// labels are those under which a question is counted.
func (s *Server) labels(q *question) telemetry.DNSLabels {
	l := telemetry.DNSLabels{Type: typeLabel(q), Protocol: q.protocol}
	if w := s.workload(s.cfg.Store.Snapshot()); w != nil {
		l.Service, l.Revision = w.CanonicalName, w.CanonicalRevision
	}
	return l
}

// report logs how a question ended.
func (s *Server) report(q *question, result string, endpoints []netip.Addr) {
	line := telemetry.DNSLine{
		Workload: s.cfg.Pod.Name, Namespace: s.cfg.Pod.Namespace,
		Type: typeName(q), Domain: q.name, Result: result, Endpoints: endpoints,
	}
	line.Log(s.life, s.cfg.Log)
}
