package netns

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// so6OriginalDst is IP6T_SO_ORIGINAL_DST, which x/sys/unix does not name.
const so6OriginalDst = 80

// OriginalDst is where the peer of a redirected connection wanted to go: what the
// kernel's connection tracking remembers, else the connection's local address. An
// IPv4 address is never returned in its IPv6-mapped form.
func OriginalDst(c *net.TCPConn) netip.AddrPort {
	local := addrPort(c.LocalAddr())
	rc, err := c.SyscallConn()
	if err != nil {
		return local
	}
	original := local
	_ = rc.Control(func(fd uintptr) { // a closed connection keeps its local address
		if local.Addr().Is4() {
			original = originalDst4(int(fd), local)
		} else {
			original = originalDst6(int(fd), local)
		}
	})
	return original
}

func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// originalDst4 reads a sockaddr_in through a type of x/sys/unix that is big enough:
// family, port and address are its first eight bytes.
func originalDst4(fd int, local netip.AddrPort) netip.AddrPort {
	m, err := unix.GetsockoptIPv6Mreq(fd, unix.SOL_IP, unix.SO_ORIGINAL_DST)
	if err != nil {
		return local
	}
	b := m.Multiaddr
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:4]))
}

// originalDst6 reads a sockaddr_in6, with which the type starts.
func originalDst6(fd int, local netip.AddrPort) netip.AddrPort {
	m, err := unix.GetsockoptIPv6MTUInfo(fd, unix.SOL_IPV6, so6OriginalDst)
	if err != nil {
		return local
	}
	var port [2]byte
	binary.NativeEndian.PutUint16(port[:], m.Addr.Port) // the field is in network order
	return netip.AddrPortFrom(netip.AddrFrom16(m.Addr.Addr), binary.BigEndian.Uint16(port[:]))
}
