package netns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// listeners counts the listening TCP sockets of each address. The kernel is asked
// for nothing else: where it cannot be asked so (without its module tcp_diag),
// the table of all sockets is read, which takes long where there are many.
func (ns *NS) listeners() (map[netip.AddrPort]int, error) {
	count := map[netip.AddrPort]int{}
	err := ns.Do(func() error {
		for _, family := range [...]uint8{unix.AF_INET, unix.AF_INET6} {
			if err := diagnose(family, func(a netip.AddrPort) { count[a]++ }); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		return count, nil
	}
	return ns.listenersFromTable()
}

func (ns *NS) listenersFromTable() (map[netip.AddrPort]int, error) {
	count := map[netip.AddrPort]int{}
	err := ns.eachTCP(func(s tcpSocket) {
		if s.state == stateListen {
			count[s.Local]++
		}
	})
	return count, err
}

// Sizes and offsets of linux/inet_diag.h.
const (
	sizeofDiagRequest = 56 // struct inet_diag_req_v2
	sizeofDiagMessage = 72 // struct inet_diag_msg
	diagSourcePort    = 4
	diagSource        = 8
	diagListening     = 1 << 10 // of states: TCP_LISTEN
)

// diagnose calls f for every listening TCP socket of a family.
func diagnose(family uint8, f func(netip.AddrPort)) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer func() { _ = unix.Close(fd) }() // it has only been read from
	request := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+sizeofDiagRequest)
	binary.NativeEndian.PutUint32(request, unix.SizeofNlMsghdr+sizeofDiagRequest)
	binary.NativeEndian.PutUint16(request[4:], unix.SOCK_DIAG_BY_FAMILY)
	binary.NativeEndian.PutUint16(request[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	request = append(request, family, unix.IPPROTO_TCP, 0, 0)
	request = binary.NativeEndian.AppendUint32(request, diagListening)
	request = request[:cap(request)]
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	buffer := make([]byte, 16<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buffer, 0)
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		if done, err := parseDiagnosis(buffer[:n], f); done || err != nil {
			return err
		}
	}
}

var errDiagnosis = errors.New("inet_diag: malformed answer")

// parseDiagnosis reads the messages of one datagram, and reports whether the last
// one was among them.
func parseDiagnosis(b []byte, f func(netip.AddrPort)) (done bool, err error) {
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return true, errDiagnosis
		}
		body := b[unix.SizeofNlMsghdr:size]
		switch binary.NativeEndian.Uint16(b[4:]) {
		case unix.NLMSG_DONE:
			return true, nil
		case unix.NLMSG_ERROR:
			if len(body) < 4 {
				return true, errDiagnosis
			}
			return true, fmt.Errorf("inet_diag: %w", unix.Errno(-int32(binary.NativeEndian.Uint32(body))))
		case unix.SOCK_DIAG_BY_FAMILY:
			if len(body) < sizeofDiagMessage {
				return true, errDiagnosis
			}
			addr := netip.AddrFrom16([16]byte(body[diagSource:]))
			if body[0] == unix.AF_INET {
				addr = netip.AddrFrom4([4]byte(body[diagSource:]))
			}
			f(netip.AddrPortFrom(addr.Unmap(), binary.BigEndian.Uint16(body[diagSourcePort:])))
		}
		b = b[min((size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), len(b)):]
	}
	return false, nil
}
