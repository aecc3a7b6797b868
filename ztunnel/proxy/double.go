package proxy

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/ztunnel/hbone"
	"github.com/ambit-mesh/ambit/ztunnel/plan"
	"github.com/ambit-mesh/ambit/ztunnel/relay"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
)

// innerLinger is how long a tunnel inside a tunnel stays open after its only
// stream has ended, so that what is on its way arrives.
const innerLinger = time.Second

// innerKey is one connection to another network. A pointer to it is the key of
// its tunnel, so that none is shared.
type innerKey struct {
	from caller
	to   *plan.Plan
}

// openInner connects to a service on another network: through a tunnel to the
// gateway, pooled as all are, goes one of its own, which the gateway cannot read
// (spec/ztunnel.md §2.5.5).
func (p *Proxy) openInner(ctx context.Context, from caller, to *plan.Plan) (relay.Half, error) {
	fields := append(requestHeader(from.workload, from.src, to.Service), hbone.Field{Name: headerNetwork, Value: p.cfg.Network})
	stream, err := p.inner.Open(ctx, &innerKey{from, to}, hbone.Request{Authority: to.Inner.Authority, Header: fields})
	if err != nil {
		return nil, tunnelError(err)
	}
	return stream, nil
}

// dialInner opens a stream through the gateway and secures what is in it, for the
// pool of inner tunnels.
func (p *Proxy) dialInner(ctx context.Context, k *innerKey) (net.Conn, error) {
	source := k.from.workload
	cert, err := p.cfg.Certificate(ctx, source.Identity)
	if err != nil {
		return nil, &telemetry.Refusal{Reason: telemetry.IdentityUnavailable, Err: err}
	}
	outer, err := p.pool.Open(ctx, newPoolKey(source.Identity, k.from.src.Addr(), k.to), hbone.Request{
		Authority: k.to.Authority, Header: requestHeader(source, k.from.src, k.to.Service),
	})
	if err != nil {
		return nil, tunnelError(err)
	}
	conn, err := p.secure(ctx, outer, cert, k.to.Inner.Peers)
	if err != nil {
		return nil, p.handshakeError(telemetry.Outbound, fmt.Errorf("%s through gateway %s: %w", k.to.Inner.Authority, k.to.NextHop, err))
	}
	return conn, nil
}

// behind fills in what the workload behind a gateway says of itself, which
// istiod may not have told us; the address and the identity stay the gateway's.
func (r *record) behind(l *telemetry.Labels, stream *hbone.Stream) {
	text := header(stream.Header(), mesh.HeaderBaggage)
	if text == "" {
		return
	}
	said := parseBaggage(text)
	said.Principal = l.Destination.Principal
	l.Destination = said
	r.line.DstWorkload, r.line.DstNamespace, r.line.DstCluster = said.CanonicalService, said.Namespace, said.Cluster
}
