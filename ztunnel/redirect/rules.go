package redirect

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/apis/mesh"
)

var table = &nftables.Table{Family: nftables.TableFamilyINet, Name: "ambit"}

// chain is a base chain with its rules in order; the first match decides.
type chain struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority *nftables.ChainPriority
	rules    []rule
}

// rule is a match and a verdict, and the comment under which it is listed.
type rule struct {
	comment string
	exprs   []expr.Any
}

// A match or a verdict is a list of expressions; join puts them into one rule.
func join(parts ...[]expr.Any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func captureRules(o Options) []chain {
	inbound := []rule{}
	outbound := []rule{}
	for _, a := range []netip.Addr{netip.MustParseAddr(mesh.ProbeSourceIPv4), netip.MustParseAddr(mesh.ProbeSourceIPv6)} {
		inbound = append(inbound, rule{"probe", join(tcp(), source(a), accept())})
		outbound = append(outbound, rule{"probe answer", join(tcp(), destination(a), accept())})
	}
	if o.DNS {
		outbound = append(outbound, captureDNS()...)
	}
	outbound = append(outbound,
		rule{"connection of ztunnel", join(tcp(), mark(expr.CmpOpEq, mesh.MarkConnection), accept())})
	for _, notLoopback := range [][]expr.Any{notLoopback4(), notLoopback6()} {
		inbound = append(inbound, rule{"capture inbound", join(
			tcp(), notLoopback, port(expr.CmpOpNeq, mesh.PortHBONE), mark(expr.CmpOpNeq, mesh.MarkZtunnel), opening(), redirectTo(mesh.PortInboundPlain))})
		outbound = append(outbound, rule{"pod to itself", join(viaLoopback(), notLoopback, accept())})
	}
	for _, notLoopback := range [][]expr.Any{notLoopback4(), notLoopback6()} {
		outbound = append(outbound, rule{"capture outbound", join(
			tcp(), notLoopback, mark(expr.CmpOpNeq, mesh.MarkZtunnel), opening(), redirectTo(mesh.PortOutbound))})
	}
	all := append(chains(inbound, outbound), guard())
	if o.DNS {
		all = append(all, untracked()...)
	}
	return all
}

// guard drops what opens a connection from outside and was not redirected. To connection
// tracking the packet may belong to a flow that is there already, made by a bare ACK that
// somebody sent before, and then the rules of translation are not asked. The price: who
// opens a connection anew from the port of one that is older than the rules is dropped
// until tracking has forgotten that one.
func guard() chain {
	var rules []rule
	for _, a := range []netip.Addr{netip.MustParseAddr(mesh.ProbeSourceIPv4), netip.MustParseAddr(mesh.ProbeSourceIPv6)} {
		rules = append(rules, rule{"probe", join(tcp(), source(a), accept())})
	}
	rules = append(rules, rule{"opened past ztunnel", join(
		tcp(), notFromLoopback(), port(expr.CmpOpNeq, mesh.PortHBONE), port(expr.CmpOpNeq, mesh.PortInboundPlain), // which stays as it is
		mark(expr.CmpOpNeq, mesh.MarkZtunnel), opening(), notTranslated(), count(), drop())})
	return chain{
		name: "guard", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting,
		priority: new(*nftables.ChainPriorityNATDest + 10), rules: rules,
	}
}

const portDomain = 53 // of resolvers

// captureDNS redirects questions. A resolver that the pod reaches over loopback is its
// own, and asks others in turn.
func captureDNS() []rule {
	return []rule{
		{"capture DNS over UDP", join(
			udp(), notViaLoopback(), port(expr.CmpOpEq, portDomain), mark(expr.CmpOpNeq, mesh.MarkZtunnel), redirectTo(mesh.PortDNS))},
		{"capture DNS over TCP", join(
			tcp(), notViaLoopback(), port(expr.CmpOpEq, portDomain), mark(expr.CmpOpNeq, mesh.MarkZtunnel), opening(), redirectTo(mesh.PortDNS))},
	}
}

// untracked keeps ztunnel's own questions to resolvers, and the answers, out of connection
// tracking. A port that the pod asked from a moment ago may be ztunnel's now, and the
// flow's translation outlives the socket; and an answer alone would open a flow that the
// pod's next question belongs to, which would not be captured then.
func untracked() []chain {
	return []chain{
		{
			name: "untrack-prerouting", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting, priority: nftables.ChainPriorityRaw,
			rules: []rule{{"answer of a resolver", join(udp(), sourcePort(portDomain), mark(expr.CmpOpNeq, mesh.MarkZtunnel), notrack())}},
		},
		{
			name: "untrack-output", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookOutput, priority: nftables.ChainPriorityRaw,
			rules: []rule{{"question of ztunnel", join(udp(), port(expr.CmpOpEq, portDomain), mark(expr.CmpOpEq, mesh.MarkZtunnel), notrack())}},
		},
	}
}

// releaseRules refer to connection tracking, without which the kernel would stop
// translating the connections that were redirected.
func releaseRules() []chain {
	keep := []rule{{"released", join(established(), accept())}}
	return chains(keep, keep)
}

// chains are the four chains: the marks are the same always.
func chains(inbound, outbound []rule) []chain {
	return []chain{
		{
			name: "mark-prerouting", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting, priority: nftables.ChainPriorityMangle,
			rules: []rule{{"remember ztunnel's connection", join(mark(expr.CmpOpEq, mesh.MarkZtunnel), setConnectionMark(mesh.MarkConnection))}},
		},
		{
			name: "mark-output", kind: nftables.ChainTypeRoute, hook: nftables.ChainHookOutput, priority: nftables.ChainPriorityMangle,
			rules: []rule{{"route answers to ztunnel", join(connectionMark(mesh.MarkConnection), restoreMark())}},
		},
		{
			name: "capture-prerouting", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPrerouting, priority: nftables.ChainPriorityNATDest,
			rules: inbound,
		},
		{
			name: "capture-output", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookOutput, priority: nftables.ChainPriorityNATDest,
			rules: outbound,
		},
	}
}

// Register 1 is used by every expression in turn.
const reg = 1

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func compare(load expr.Any, op expr.CmpOp, data []byte) []expr.Any {
	return []expr.Any{load, &expr.Cmp{Op: op, Register: reg, Data: data}}
}

// compareMasked compares load&mask.
func compareMasked(load expr.Any, mask []byte, op expr.CmpOp, data []byte) []expr.Any {
	return []expr.Any{
		load,
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask))},
		&expr.Cmp{Op: op, Register: reg, Data: data},
	}
}

func payload(base expr.PayloadBase, offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: length}
}

func tcp() []expr.Any { return protocol(unix.IPPROTO_TCP) }
func udp() []expr.Any { return protocol(unix.IPPROTO_UDP) }

func protocol(number byte) []expr.Any {
	return compare(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}, expr.CmpOpEq, []byte{number})
}

func ipVersion(nfproto byte) []expr.Any {
	return compare(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg}, expr.CmpOpEq, []byte{nfproto})
}

// Offsets of the addresses in the IP headers, of the ports in the TCP and UDP headers, and
// of the flags in the TCP header.
const (
	source4, destination4 = 12, 16
	source6, destination6 = 8, 24
	portSource            = 0
	portDestination       = 2
	tcpFlags              = 13
)

func source(a netip.Addr) []expr.Any      { return address(a, source4, source6) }
func destination(a netip.Addr) []expr.Any { return address(a, destination4, destination6) }

func address(a netip.Addr, offset4, offset6 uint32) []expr.Any {
	a = a.Unmap()
	if a.Is4() {
		return join(ipVersion(unix.NFPROTO_IPV4), compare(payload(expr.PayloadBaseNetworkHeader, offset4, 4), expr.CmpOpEq, a.AsSlice()))
	}
	return join(ipVersion(unix.NFPROTO_IPV6), compare(payload(expr.PayloadBaseNetworkHeader, offset6, 16), expr.CmpOpEq, a.AsSlice()))
}

func notLoopback4() []expr.Any {
	return join(ipVersion(unix.NFPROTO_IPV4),
		compareMasked(payload(expr.PayloadBaseNetworkHeader, destination4, 4), []byte{255, 0, 0, 0}, expr.CmpOpNeq, []byte{127, 0, 0, 0}))
}

func notLoopback6() []expr.Any {
	return join(ipVersion(unix.NFPROTO_IPV6),
		compare(payload(expr.PayloadBaseNetworkHeader, destination6, 16), expr.CmpOpNeq, netip.IPv6Loopback().AsSlice()))
}

// port matches the destination's port.
func port(op expr.CmpOp, number uint16) []expr.Any {
	return compare(payload(expr.PayloadBaseTransportHeader, portDestination, 2), op, binary.BigEndian.AppendUint16(nil, number))
}

func sourcePort(number uint16) []expr.Any {
	return compare(payload(expr.PayloadBaseTransportHeader, portSource, 2), expr.CmpOpEq, binary.BigEndian.AppendUint16(nil, number))
}

// opening matches the initial SYN alone: fin, rst and ack are not set.
func opening() []expr.Any {
	const fin, syn, rst, ack = 0x01, 0x02, 0x04, 0x10
	return compareMasked(payload(expr.PayloadBaseTransportHeader, tcpFlags, 1), []byte{fin | syn | rst | ack}, expr.CmpOpEq, []byte{syn})
}

func viaLoopback() []expr.Any     { return loopback(expr.MetaKeyOIFNAME, expr.CmpOpEq) }
func notViaLoopback() []expr.Any  { return loopback(expr.MetaKeyOIFNAME, expr.CmpOpNeq) }
func notFromLoopback() []expr.Any { return loopback(expr.MetaKeyIIFNAME, expr.CmpOpNeq) }

func loopback(key expr.MetaKey, op expr.CmpOp) []expr.Any {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, "lo")
	return compare(&expr.Meta{Key: key, Register: reg}, op, name)
}

func mark(op expr.CmpOp, m uint32) []expr.Any {
	return compareMasked(&expr.Meta{Key: expr.MetaKeyMARK, Register: reg}, native(mesh.MarkMask), op, native(m))
}

func connectionMark(m uint32) []expr.Any {
	return compareMasked(&expr.Ct{Key: expr.CtKeyMARK, Register: reg}, native(mesh.MarkMask), expr.CmpOpEq, native(m))
}

// setConnectionMark changes the masked bits only.
func setConnectionMark(m uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: native(^mesh.MarkMask), Xor: native(m)},
		&expr.Ct{Key: expr.CtKeyMARK, Register: reg, SourceRegister: true},
	}
}

func restoreMark() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: reg},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg, SourceRegister: true},
	}
}

func established() []expr.Any {
	states := native(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
	return compareMasked(&expr.Ct{Key: expr.CtKeySTATE, Register: reg}, states, expr.CmpOpNeq, native(0))
}

func redirectTo(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: reg, Data: binary.BigEndian.AppendUint16(nil, port)},
		&expr.Redir{RegisterProtoMin: reg},
	}
}

func notrack() []expr.Any { return []expr.Any{&expr.Notrack{}} }

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }
