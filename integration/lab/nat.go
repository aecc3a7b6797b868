package lab

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// vip is one port of one cluster IP and who answers there.
type vip struct {
	address   netip.AddrPort
	protocol  uint8 // unix.IPPROTO_TCP or IPPROTO_UDP
	endpoints []netip.AddrPort
}

// Base chains of a node's table. Rules of the nat chains are met by the first
// packet of a connection only.
const (
	natTable       = "lab-services"
	chainServices  = "services"  // jumped to in prerouting and output
	chainNoBackend = "nobackend" // in forward and output, type filter
	// hairpinMark marks a packet of a pod that got itself as endpoint: its source
	// must change, as a pod does not take packets from its own address.
	hairpinMark uint32 = 0x4000
)

// natRule is a rule in our own words, so that what is programmed can be read in
// a test. Zero fields match everything.
type natRule struct {
	chain    string
	from, to netip.Addr
	protocol uint8
	port     uint16
	oneOf    uint32 // matches one time in so many, at random

	// What is done, one of:
	jump   string
	dnat   netip.AddrPort
	mark   bool
	reject bool
}

func (r natRule) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s:", r.chain)
	if r.from.IsValid() {
		fmt.Fprintf(&b, " from %s", r.from)
	}
	if r.to.IsValid() {
		fmt.Fprintf(&b, " to %s", r.to)
	}
	if r.protocol != 0 {
		fmt.Fprintf(&b, " %s %d", map[uint8]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}[r.protocol], r.port)
	}
	if r.oneOf > 1 {
		fmt.Fprintf(&b, " one of %d", r.oneOf)
	}
	switch {
	case r.jump != "":
		b.WriteString(" goto " + r.jump)
	case r.dnat.IsValid():
		b.WriteString(" dnat " + r.dnat.String())
	case r.mark:
		b.WriteString(" mark hairpin")
	case r.reject:
		b.WriteString(" reject")
	}
	return b.String()
}

// natRules says how cluster IPs become endpoints. With n endpoints, the first
// takes one connection of n, the next one of the n-1 cases that are left, and
// so on: every endpoint is as likely.
func natRules(vips []vip) []natRule {
	sorted := slices.Clone(vips)
	slices.SortFunc(sorted, func(a, b vip) int {
		return cmp.Or(a.address.Compare(b.address), cmp.Compare(a.protocol, b.protocol))
	})
	var rules []natRule
	for i, v := range sorted {
		at := natRule{chain: chainServices, to: v.address.Addr(), protocol: v.protocol, port: v.address.Port()}
		if len(v.endpoints) == 0 {
			at.chain, at.reject = chainNoBackend, true
			rules = append(rules, at)
			continue
		}
		service := fmt.Sprintf("service-%d", i)
		at.jump = service
		rules = append(rules, at)
		for j, endpoint := range v.endpoints {
			target := fmt.Sprintf("%s-%d", service, j)
			rules = append(
				rules,
				natRule{chain: service, oneOf: uint32(len(v.endpoints) - j), jump: target},
				natRule{chain: target, from: endpoint.Addr(), mark: true},
				natRule{chain: target, protocol: v.protocol, dnat: endpoint},
			)
		}
	}
	return rules
}

// nat is the service table of one node.
type nat struct {
	ns      *os.File
	current []string // chains for services that exist now
	rules   []natRule
	base    bool
}

// set programs the rules in one transaction; connections that exist stay.
func (n *nat) set(rules []natRule) error {
	if n.base && slices.Equal(rules, n.rules) {
		return nil
	}
	c, err := nftables.New(nftables.WithNetNSFd(int(n.ns.Fd())))
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: natTable})
	chain := func(name string) *nftables.Chain { return c.AddChain(&nftables.Chain{Name: name, Table: table}) }
	services, noBackend := chain(chainServices), chain(chainNoBackend)
	c.FlushChain(services)
	c.FlushChain(noBackend)
	if !n.base {
		addBaseChains(c, table)
	}
	for _, old := range n.current {
		c.FlushChain(&nftables.Chain{Name: old, Table: table})
	}
	var names []string
	for _, rule := range rules {
		for _, name := range []string{rule.chain, rule.jump} {
			if name != "" && name != chainServices && name != chainNoBackend && !slices.Contains(names, name) {
				names = append(names, name)
				chain(name)
			}
		}
	}
	for _, old := range n.current {
		if !slices.Contains(names, old) {
			c.DelChain(&nftables.Chain{Name: old, Table: table})
		}
	}
	for _, rule := range rules {
		c.AddRule(&nftables.Rule{Table: table, Chain: &nftables.Chain{Name: rule.chain, Table: table}, Exprs: rule.exprs()})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("program cluster IPs: %w", err)
	}
	n.base, n.rules, n.current = true, rules, names
	return nil
}

func addBaseChains(c *nftables.Conn, table *nftables.Table) {
	add := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority, exprs ...expr.Any) {
		base := c.AddChain(&nftables.Chain{Name: name, Table: table, Type: kind, Hooknum: hook, Priority: priority})
		c.AddRule(&nftables.Rule{Table: table, Chain: base, Exprs: exprs})
	}
	jump := func(to string) expr.Any { return &expr.Verdict{Kind: expr.VerdictJump, Chain: to} }
	add("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, jump(chainServices))
	add("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest, jump(chainServices))
	add("forward-filter", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, jump(chainNoBackend))
	add("output-filter", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityFilter, jump(chainNoBackend))
	mark := binaryutil.NativeEndian.PutUint32(hairpinMark)
	add("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource,
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mark, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: mark},
		&expr.Masq{},
	)
}

// Offsets into an IPv4 header, RFC 791 section 3.1.
const (
	offsetSource      = 12
	offsetDestination = 16
)

func (r natRule) exprs() []expr.Any {
	var e []expr.Any
	address := func(offset uint32, a netip.Addr) {
		if a.IsValid() {
			e = append(e,
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()})
		}
	}
	address(offsetSource, r.from)
	address(offsetDestination, r.to)
	if r.protocol != 0 {
		e = append(e,
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{r.protocol}})
	}
	if r.port != 0 { // the destination port is at the same place in TCP and UDP
		e = append(e,
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, r.port)})
	}
	if r.oneOf > 1 {
		e = append(e,
			&expr.Numgen{Register: 1, Modulus: r.oneOf, Type: unix.NFT_NG_RANDOM},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)})
	}
	switch {
	case r.jump != "":
		e = append(e, &expr.Verdict{Kind: expr.VerdictGoto, Chain: r.jump})
	case r.dnat.IsValid():
		e = append(e,
			&expr.Immediate{Register: 1, Data: r.dnat.Addr().AsSlice()},
			&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, r.dnat.Port())},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2})
	case r.mark:
		mark := binaryutil.NativeEndian.PutUint32(hairpinMark)
		keep := binaryutil.NativeEndian.PutUint32(^hairpinMark)
		e = append(e,
			&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: keep, Xor: mark},
			&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true})
	case r.reject:
		e = append(e, &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3}) // port unreachable: "connection refused"
	}
	return e
}
