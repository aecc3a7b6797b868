package serve

import (
	"crypto/rand"
	"encoding/hex"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/backend"
	"github.com/ambit-mesh/ambit/waypoint/codec"
	"github.com/ambit-mesh/ambit/waypoint/config"
)

// requestID gives the request an x-request-id and an x-forwarded-proto when it
// has none, so that it can be followed through the mesh. x-forwarded-for is
// left as it is: the client is a pod, and its address is not a proxy's.
func (x *exchange) requestID() {
	if _, ok := codec.Get(x.req.Fields, "x-request-id"); !ok {
		x.req.Fields = append(x.req.Fields, codec.Field{Name: "x-request-id", Value: newID()})
	}
	if _, ok := codec.Get(x.req.Fields, "x-forwarded-proto"); !ok {
		x.req.Fields = append(x.req.Fields, codec.Field{Name: "x-forwarded-proto", Value: "http"})
	}
}

// newID returns a random UUID, RFC 9562 §5.4.
func newID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	var text [36]byte
	hex.Encode(text[0:8], id[0:4])
	hex.Encode(text[9:13], id[4:6])
	hex.Encode(text[14:18], id[6:8])
	hex.Encode(text[19:23], id[8:10])
	hex.Encode(text[24:36], id[10:16])
	text[8], text[13], text[18], text[23] = '-', '-', '-', '-'
	return string(text[:])
}

// record counts the request and writes its line.
func (x *exchange) record() {
	s := x.server
	took := time.Since(x.start)
	in, out := x.conn.Bytes()
	service := x.service()
	target := s.target(x.endpoint)
	h := s.cfg.Metrics.http(key{
		source: x.st.source, target: target, service: service.Hostname, code: x.status, flags: x.flags,
	}, service)
	h.requests.Inc()
	h.duration.Observe(float64(took) / float64(time.Millisecond))
	h.request.Observe(float64(in))
	h.respond.Observe(float64(out))
	if s.cfg.Access == nil {
		return
	}
	e := &Entry{
		Start: x.start, Method: x.req.Method, Path: x.req.Path, Protocol: "HTTP/1.1", Code: x.status, Flags: x.flags,
		Details: x.details, Failure: x.failure, BytesOut: x.content, Duration: took, Waited: -1, Authority: x.req.Authority,
		LocalAddr: x.local, ServerAddr: x.st.authority, ClientAddr: x.st.tunnel.remote,
	}
	if body := x.conn.Body(); body != nil {
		e.BytesIn = body.Bytes()
	}
	e.ForwardedFor, _ = codec.Get(x.req.Fields, "x-forwarded-for")
	e.UserAgent, _ = codec.Get(x.req.Fields, "user-agent")
	e.RequestID, _ = codec.Get(x.req.Fields, "x-request-id")
	if x.path != "" {
		e.Authority, e.Path = x.authority, x.path
	}
	if x.waited > 0 {
		e.Waited = x.waited
	}
	if x.rule != nil {
		e.Route = x.rule.Name
	}
	e.ends(x.st.source, target, x.endpoint, x.cluster)
	s.cfg.Access.Add(e)
}

func (x *exchange) service() config.Service {
	if x.listener != nil {
		return x.listener.Service
	}
	return config.Service{}
}

func (e *Entry) ends(source, target *Workload, endpoint *backend.Endpoint, cluster *backend.Cluster) {
	e.SourcePrincipal, e.DestinationPrincipal = source.Identity.String(), target.Identity.String()
	if endpoint != nil {
		e.Endpoint = endpoint.Addr.String()
	}
	if cluster != nil {
		e.Cluster = cluster.Name
	}
}

// record counts the end of a byte stream and writes its line.
func (b *bytes) record() {
	s := b.st.server
	target := s.target(b.endpoint)
	s.cfg.Metrics.tcp(b.st.source, target, b.listener.Service, b.flags).closed.Inc()
	if s.cfg.Access == nil {
		return
	}
	e := &Entry{
		Start: b.start, Flags: b.flags, Details: b.details, Failure: b.failure, Duration: time.Since(b.start), Waited: -1,
		BytesIn: b.counters.Sent.Load(), BytesOut: b.counters.Received.Load(), LocalAddr: b.local,
		ServerAddr: b.st.authority, ClientAddr: b.st.tunnel.remote,
	}
	e.ends(b.st.source, target, b.endpoint, b.cluster)
	s.cfg.Access.Add(e)
}
