package proxy

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/ztunnel/plan"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
)

// deliver connects to the application of a CONNECT. One that wants the PROXY
// protocol is connected to at the loopback address, so that nobody else can tell
// it who the client is, and gets the header before anything else
// (spec/ztunnel.md §3.5, §3.6).
func (p *Proxy) deliver(ctx context.Context, d plan.Delivery, a arrival) (*net.TCPConn, error) {
	if !d.Proxy {
		return p.dialApp(ctx, d.Target, a.client.Addr())
	}
	var app *net.TCPConn
	var err error
	if p.cfg.NoLocalhostAppTunnel {
		app, err = p.dialApp(ctx, d.Target, a.client.Addr())
	} else {
		app, err = p.dialTCP(ctx, netip.AddrPortFrom(loopback(d.Target.Addr()), d.Target.Port()), netip.Addr{})
	}
	if err != nil {
		return nil, err
	}
	if _, err := app.Write(proxyHeader(a.client, d.ProxyTarget, a.peer)); err != nil {
		release(app)
		return nil, &telemetry.Refusal{Reason: telemetry.ConnectFailed, Err: fmt.Errorf("PROXY header: %w", err)}
	}
	return app, nil
}

func loopback(family netip.Addr) netip.Addr {
	if family.Is4() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}

// The PROXY protocol, version 2:
// https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt section 2.2.
const (
	proxySignature = "\r\n\r\n\x00\r\nQUIT\n"
	proxyCommand   = 0x21 // version 2, PROXY
	proxyTCP4      = 0x11 // AF_INET, STREAM
	proxyTCP6      = 0x21 // AF_INET6, STREAM
	proxyUnspec    = 0x00
	proxyIdentity  = 0xD0 // TLV: the client's SPIFFE id
)

// proxyHeader says who the client is and what it has asked for. Addresses of two
// families cannot be said in one header and are left out.
func proxyHeader(client, target netip.AddrPort, id spiffe.ID) []byte {
	src, dst := client.Addr().Unmap(), target.Addr().Unmap()
	family := byte(proxyUnspec)
	var body []byte
	if src.Is4() == dst.Is4() {
		family = proxyTCP6
		if src.Is4() {
			family = proxyTCP4
		}
		body = append(append(body, src.AsSlice()...), dst.AsSlice()...)
		body = binary.BigEndian.AppendUint16(body, client.Port())
		body = binary.BigEndian.AppendUint16(body, target.Port())
	}
	if !id.IsZero() {
		value := id.String()
		body = append(body, proxyIdentity)
		body = binary.BigEndian.AppendUint16(body, uint16(len(value)))
		body = append(body, value...)
	}
	header := append([]byte(proxySignature), proxyCommand, family)
	header = binary.BigEndian.AppendUint16(header, uint16(len(body)))
	return append(header, body...)
}
