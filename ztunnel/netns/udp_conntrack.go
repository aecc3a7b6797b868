package netns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrNotTracked says that connection tracking knows no such flow.
var ErrNotTracked = errors.New("flow is not tracked")

// Conntrack asks the connection tracking of one namespace. A datagram that was
// redirected tells nowhere what address it was sent to: there is no original destination
// to ask the socket for, and the control messages show where it arrived. The kernel's
// tracking knows, because it has to translate the answer back.
type Conntrack struct {
	mu       sync.Mutex // one question at a time
	file     *os.File
	sequence uint32
	buffer   [2048]byte // an answer takes some hundred
}

// Conntrack opens the connection tracking of ns. It needs CAP_NET_ADMIN there when it
// is asked.
func (ns *NS) Conntrack() (*Conntrack, error) {
	c := &Conntrack{}
	err := ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		c.file = os.NewFile(uintptr(fd), "netlink")
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("connection tracking: %w", err)
	}
	return c, nil
}

// Close gives up the descriptor.
func (c *Conntrack) Close() error { return c.file.Close() }

// OriginalUDP returns where the datagram was sent to that arrived from client at server:
// server itself when nothing was translated.
func (c *Conntrack) OriginalUDP(client, server netip.AddrPort) (netip.AddrPort, error) {
	client = netip.AddrPortFrom(client.Addr().Unmap().WithZone(""), client.Port())
	server = netip.AddrPortFrom(server.Addr().Unmap().WithZone(""), server.Port())
	c.mu.Lock()
	defer c.mu.Unlock()
	var to netip.AddrPort
	err := control(c.file, func(fd int) error {
		c.sequence++
		if err := unix.Sendto(fd, appendFlowQuestion(nil, c.sequence, server, client), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return os.NewSyscallError("sendto", err)
		}
		// The kernel has answered before sendto returns; what else is there belongs to a
		// question that was given up.
		for {
			n, _, err := unix.Recvfrom(fd, c.buffer[:], 0)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return os.NewSyscallError("recvfrom", err)
			}
			dst, sequence, err := parseFlowAnswer(c.buffer[:n])
			if sequence == c.sequence {
				to = dst
				return err
			}
		}
	})
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("connection tracking: %s to %s: %w", client, server, err)
	}
	return to, nil
}

// Attributes of a flow, from linux/netfilter/nfnetlink_conntrack.h.
const (
	ctaTupleOriginal = 1
	ctaTupleReply    = 2

	ctaTupleIP    = 1
	ctaTupleProto = 2

	ctaIPv4Source      = 1
	ctaIPv4Destination = 2
	ctaIPv6Source      = 3
	ctaIPv6Destination = 4

	ctaProtoNumber          = 1
	ctaProtoSourcePort      = 2
	ctaProtoDestinationPort = 3

	ctGet = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1 // IPCTNL_MSG_CT_GET
)

// appendFlowQuestion asks for the UDP flow whose answers go from one address to another.
func appendFlowQuestion(b []byte, sequence uint32, from, to netip.AddrPort) []byte {
	family, source, destination := byte(unix.AF_INET6), uint16(ctaIPv6Source), uint16(ctaIPv6Destination)
	if from.Addr().Is4() {
		family, source, destination = unix.AF_INET, ctaIPv4Source, ctaIPv4Destination
	}
	start := len(b)
	b = append(b, make([]byte, unix.SizeofNlMsghdr)...)
	b = append(b, family, unix.NFNETLINK_V0, 0, 0)
	b = nest(b, ctaTupleReply, func(b []byte) []byte {
		b = nest(b, ctaTupleIP, func(b []byte) []byte {
			b = attribute(b, source, from.Addr().AsSlice())
			return attribute(b, destination, to.Addr().AsSlice())
		})
		return nest(b, ctaTupleProto, func(b []byte) []byte {
			b = attribute(b, ctaProtoNumber, []byte{unix.IPPROTO_UDP})
			b = attribute(b, ctaProtoSourcePort, binary.BigEndian.AppendUint16(nil, from.Port()))
			return attribute(b, ctaProtoDestinationPort, binary.BigEndian.AppendUint16(nil, to.Port()))
		})
	})
	h := b[start:]
	binary.NativeEndian.PutUint32(h[0:], uint32(len(h)))
	binary.NativeEndian.PutUint16(h[4:], ctGet)
	binary.NativeEndian.PutUint16(h[6:], unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(h[8:], sequence)
	return b
}

func attribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofNlAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%unix.NLA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

func nest(b []byte, kind uint16, inner func([]byte) []byte) []byte {
	start := len(b)
	b = inner(attribute(b, kind|unix.NLA_F_NESTED, nil))
	binary.NativeEndian.PutUint16(b[start:], uint16(len(b)-start))
	return b
}

var errFlowAnswer = errors.New("answer of the kernel cannot be read")

// parseFlowAnswer reads one message: the original destination of a flow, or an error.
func parseFlowAnswer(b []byte) (to netip.AddrPort, sequence uint32, err error) {
	if len(b) < unix.SizeofNlMsghdr {
		return to, 0, errFlowAnswer
	}
	length, kind := binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint16(b[4:])
	sequence = binary.NativeEndian.Uint32(b[8:])
	if length < unix.SizeofNlMsghdr || uint64(length) > uint64(len(b)) {
		return to, sequence, errFlowAnswer
	}
	body := b[unix.SizeofNlMsghdr:length]
	if kind == unix.NLMSG_ERROR {
		return to, sequence, flowError(body)
	}
	const sizeofNfgenmsg = 4
	if kind>>8 != unix.NFNL_SUBSYS_CTNETLINK || len(body) < sizeofNfgenmsg {
		return to, sequence, errFlowAnswer
	}
	tuple := find(body[sizeofNfgenmsg:], ctaTupleOriginal)
	ip := find(tuple, ctaTupleIP)
	addr := find(ip, ctaIPv4Destination)
	if len(addr) == 0 {
		addr = find(ip, ctaIPv6Destination)
	}
	a, ok := netip.AddrFromSlice(addr)
	port := find(find(tuple, ctaTupleProto), ctaProtoDestinationPort)
	if !ok || len(port) != 2 {
		return to, sequence, errFlowAnswer
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(port)), sequence, nil
}

func flowError(body []byte) error {
	if len(body) < 4 {
		return errFlowAnswer
	}
	errno := unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
	if errno == unix.ENOENT {
		return ErrNotTracked
	}
	return os.NewSyscallError("get flow", errno)
}

// find returns the value of the first attribute of a kind, or nil.
func find(b []byte, kind uint16) []byte {
	for len(b) >= unix.SizeofNlAttr {
		length := int(binary.NativeEndian.Uint16(b))
		if length < unix.SizeofNlAttr || length > len(b) {
			return nil
		}
		if binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER) == kind {
			return b[unix.SizeofNlAttr:length]
		}
		b = b[min((length+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1), len(b)):]
	}
	return nil
}
