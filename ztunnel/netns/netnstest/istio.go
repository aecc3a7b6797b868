package netnstest

import (
	"encoding/binary"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/apis/mesh"
)

// IstioDNS makes the rules in the pod that Istio's agent makes for DNS over UDP: a plain
// redirection, and a zone of connection tracking for what ztunnel asks
// (spec/control-plane.md §8.5).
func IstioDNS(tb testing.TB, p *Pod) {
	tb.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(int(p.NS.File().Fd())))
	must(tb, "nftables", err)
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "istio-ambient"})
	word := func(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
	port := func(offset uint32) []expr.Any {
		return []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0, 53}},
		}
	}
	mark := func(op expr.CmpOp) []expr.Any {
		return []expr.Any{
			&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: word(mesh.MarkMask), Xor: word(0)},
			&expr.Cmp{Op: op, Register: 1, Data: word(mesh.MarkZtunnel)},
		}
	}
	zone := []expr.Any{&expr.Immediate{Register: 1, Data: binary.NativeEndian.AppendUint16(nil, 1)}, &expr.Ct{Key: expr.CtKeyZONE, Register: 1, SourceRegister: true}}
	redir := []expr.Any{&expr.Immediate{Register: 1, Data: []byte{mesh.PortDNS >> 8, mesh.PortDNS & 0xff}}, &expr.Redir{RegisterProtoMin: 1}}
	for _, r := range []struct {
		name     string
		kind     nftables.ChainType
		hook     *nftables.ChainHook
		priority *nftables.ChainPriority
		exprs    [][]expr.Any
	}{
		{"nat-output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest, [][]expr.Any{port(2), mark(expr.CmpOpNeq), redir}},
		{"raw-output", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityRaw, [][]expr.Any{port(2), mark(expr.CmpOpEq), zone}},
		{"raw-prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, [][]expr.Any{port(0), mark(expr.CmpOpNeq), zone}},
	} {
		chain := c.AddChain(&nftables.Chain{Table: table, Name: r.name, Type: r.kind, Hooknum: r.hook, Priority: r.priority})
		var all []expr.Any
		for _, e := range r.exprs {
			all = append(all, e...)
		}
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: all})
	}
	must(tb, "rules", c.Flush())
}
