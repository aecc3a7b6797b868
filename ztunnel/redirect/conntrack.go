package redirect

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/apis/mesh"
)

// TCP states of connection tracking in which a connection may still carry data
// (enum tcp_conntrack in linux/netfilter/nf_conntrack_tcp.h); the kernel keeps closed
// ones for some time.
const (
	ctSynSent = 1
	ctLastAck = 6
)

func isOpen(f *netlink.ConntrackFlow) bool {
	tcp, ok := f.ProtoInfo.(*netlink.ProtoInfoTCP)
	return ok && f.Forward.Protocol == unix.IPPROTO_TCP && tcp.State >= ctSynSent && tcp.State <= ctLastAck
}

// isOurs recognises a redirected connection by the answering side's port, which is not
// the one asked for, and ztunnel's connections to the application by their mark.
func isOurs(f *netlink.ConntrackFlow) bool {
	if f.Mark&mesh.MarkMask == mesh.MarkConnection {
		return true
	}
	answers := f.Reverse.SrcPort
	return isTranslated(f) && (answers == mesh.PortOutbound || answers == mesh.PortInboundPlain || answers == mesh.PortDNS)
}

func isTranslated(f *netlink.ConntrackFlow) bool {
	return f.Reverse.SrcPort != f.Forward.DstPort || !f.Reverse.SrcIP.Equal(f.Forward.DstIP)
}

// questions are the flows of redirected DNS questions by UDP.
type questions struct{}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (questions) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	return f.Forward.Protocol == unix.IPPROTO_UDP && isTranslated(f) && f.Reverse.SrcPort == mesh.PortDNS
}

// forgetQuestions makes the kernel forget the flows of redirected questions. It would go
// on translating them for as long as something else has it track flows: a resolver
// library that uses a port twice would ask ztunnel, which is gone.
func forgetQuestions(fd int) error {
	return eachFamily(fd, func(h *netlink.Handle, family netlink.InetFamily) error {
		_, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, family, questions{})
		return err
	})
}

// eachFamily runs f with connection tracking of the namespace.
func eachFamily(fd int, f func(*netlink.Handle, netlink.InetFamily) error) error {
	h, err := netlink.NewHandleAt(netns.NsHandle(fd), unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer h.Close()
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		if err := f(h, family); err != nil {
			return fmt.Errorf("connection tracking: %w", err)
		}
	}
	return nil
}
