package redirect

import (
	"github.com/vishvananda/netlink"
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
	redirected := answers != f.Forward.DstPort || !f.Reverse.SrcIP.Equal(f.Forward.DstIP)
	return redirected && (answers == mesh.PortOutbound || answers == mesh.PortInboundPlain)
}
