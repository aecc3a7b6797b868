package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
)

// SOCKS version 5, https://www.rfc-editor.org/rfc/rfc1928: CONNECT without
// authentication. It is for tests and for clients that cannot be captured.

// portSOCKS is where the pod's own clients find it.
const portSOCKS = 15080

const (
	socksVersion      = 5
	socksNoAuth       = 0x00
	socksNoMethod     = 0xff
	socksConnect      = 0x01
	socksIPv4         = 0x01
	socksName         = 0x03
	socksIPv6         = 0x04
	socksOK           = 0x00
	socksUnreachable  = 0x04
	socksNotSupported = 0x07
	socksBadAddress   = 0x08
)

// socksRequest is what a client asks for: a name, or an address.
type socksRequest struct {
	name string
	addr netip.Addr
	port uint16
}

// socksError is a refusal and the code that tells the client.
type socksError struct {
	code byte
	text string
}

func (e *socksError) Error() string { return e.text }

// acceptSOCKS serves a connection of the pod that says itself where it goes.
func (p *Proxy) acceptSOCKS(conn *net.TCPConn) {
	_ = conn.SetDeadline(time.Now().Add(p.cfg.Handshake)) // it fails on a closed connection only
	target, err := p.socksTarget(conn)
	if err == nil {
		err = answerSOCKS(conn, socksOK)
	}
	if err != nil {
		release(conn)
		p.begin(telemetry.Outbound, remoteAddr(conn), localAddr(conn)).end(&telemetry.Refusal{Reason: telemetry.BadRequest, Err: fmt.Errorf("SOCKS: %w", err)})
		return
	}
	_ = conn.SetDeadline(time.Time{})
	p.outbound(conn, target)
}

// socksTarget reads the request and finds its address; the client has been told
// of an error.
func (p *Proxy) socksTarget(conn *net.TCPConn) (netip.AddrPort, error) {
	q, err := readSOCKS(conn)
	if err == nil && q.name != "" {
		q.addr, err = p.socksLookUp(q.name, localAddr(conn).Addr())
	}
	if refused, ok := errors.AsType[*socksError](err); ok {
		_ = answerSOCKS(conn, refused.code) // it is refused anyway
	}
	return netip.AddrPortFrom(q.addr, q.port), err
}

// socksLookUp returns the address of a service of the mesh, else what the
// resolver says.
func (p *Proxy) socksLookUp(name string, family netip.Addr) (netip.Addr, error) {
	if svc := p.cfg.Store.Snapshot().ServiceByHostname(name, p.cfg.Pod.Namespace); svc != nil && len(svc.VIPs) > 0 {
		return preferFamily(svc.VIPs, func(v workload.NetworkAddress) netip.Addr { return v.IP }, family), nil
	}
	if p.cfg.Resolve == nil {
		return netip.Addr{}, &socksError{socksUnreachable, fmt.Sprintf("name %q is not known", name)}
	}
	ctx, cancel := context.WithTimeout(p.life, p.cfg.Handshake)
	defer cancel()
	ips, err := p.cfg.Resolve(ctx, name)
	if err != nil || len(ips) == 0 {
		return netip.Addr{}, &socksError{socksUnreachable, fmt.Sprintf("name %q: %v", name, err)}
	}
	return preferFamily(ips, netip.Addr.Unmap, family), nil
}

func preferFamily[T any](all []T, addr func(T) netip.Addr, family netip.Addr) netip.Addr {
	for _, one := range all {
		if addr(one).Is4() == family.Is4() {
			return addr(one)
		}
	}
	return addr(all[0])
}

// readSOCKS reads the greeting, answers it, and reads the request.
func readSOCKS(conn io.ReadWriter) (socksRequest, error) {
	var b [256]byte
	if err := readTo(conn, b[:2]); err != nil {
		return socksRequest{}, err
	}
	if b[0] != socksVersion {
		return socksRequest{}, fmt.Errorf("version %d", b[0])
	}
	methods := b[:b[1]]
	if err := readTo(conn, methods); err != nil {
		return socksRequest{}, err
	}
	method := byte(socksNoMethod)
	for _, m := range methods {
		if m == socksNoAuth {
			method = socksNoAuth
		}
	}
	if _, err := conn.Write([]byte{socksVersion, method}); err != nil {
		return socksRequest{}, err
	}
	if method == socksNoMethod {
		return socksRequest{}, errors.New("the client wants to authenticate")
	}
	if err := readTo(conn, b[:4]); err != nil {
		return socksRequest{}, err
	}
	if b[0] != socksVersion || b[1] != socksConnect {
		return socksRequest{}, &socksError{socksNotSupported, fmt.Sprintf("version %d, command %d", b[0], b[1])}
	}
	return readSOCKSAddress(conn, b[3])
}

func readSOCKSAddress(conn io.Reader, kind byte) (q socksRequest, err error) {
	var b [256]byte
	size := 0
	switch kind {
	case socksIPv4:
		size = 4
	case socksIPv6:
		size = 16
	case socksName:
		if err := readTo(conn, b[:1]); err != nil {
			return q, err
		}
		size = int(b[0])
	default:
		return q, &socksError{socksBadAddress, fmt.Sprintf("address of type %d", kind)}
	}
	if err := readTo(conn, b[:size]); err != nil {
		return q, err
	}
	if kind == socksName {
		q.name = string(b[:size])
		if size == 0 || !plainASCII(q.name) {
			return q, &socksError{socksBadAddress, fmt.Sprintf("name %q", q.name)}
		}
		if ip, err := netip.ParseAddr(q.name); err == nil { // some clients send an address so
			q.name, q.addr = "", ip.Unmap().WithZone("")
		}
	} else {
		ip, _ := netip.AddrFromSlice(b[:size])
		q.addr = ip.Unmap()
	}
	if err := readTo(conn, b[:2]); err != nil {
		return q, err
	}
	q.port = binary.BigEndian.Uint16(b[:2])
	return q, nil
}

func readTo(r io.Reader, b []byte) error {
	_, err := io.ReadFull(r, b)
	return err
}

// answerSOCKS ends the handshake. The address that it names means nothing: the
// connection is not made yet.
func answerSOCKS(conn io.Writer, code byte) error {
	_, err := conn.Write([]byte{socksVersion, code, 0, socksIPv4, 0, 0, 0, 0, 0, 0})
	return err
}
