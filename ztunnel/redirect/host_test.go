package redirect_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/netns/netnstest"
	"github.com/ambit-mesh/ambit/ztunnel/redirect"
)

// host exempts the pods' addresses from probes of this process until the test ends.
func (b *bed) host(prober uint32, pods ...netip.Addr) *redirect.Host {
	b.t.Helper()
	h := &redirect.Host{Prober: prober}
	if err := h.Exempt(pods); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		if err := h.Remove(); err != nil {
			b.t.Error(err)
		}
	})
	return h
}

func TestProbesNeedNoZtunnel(t *testing.T) {
	families(t, func(t *testing.T, b *bed, addr func(*netnstest.Pod) netip.Addr) {
		t.Helper()
		server := addr(b.server)
		b.apply(b.server) // and nobody listens for what is captured
		source := mesh.ProbeSourceIPv4
		if server.Is6() {
			source = mesh.ProbeSourceIPv6
		}
		if c, err := (*netns.NS)(nil).Dial(t.Context(), netip.AddrPortFrom(server, appPort), netns.DialOptions{}); err == nil {
			_ = c.Close()
			t.Fatal("before: a connection of the node is not captured")
		}
		h := b.host(0, server)
		c := b.dial(nil, server)
		c.want("probe", "app "+source)
		c.echoes("probe")
		if err := h.Exempt(nil); err != nil {
			t.Fatal(err)
		}
		c.echoes("probe that is open when the pod leaves")
		b.ztunnel(b.server)
		b.dial(nil, server).want("when the pod has left", fmt.Sprintf("15006 %s", netip.AddrPortFrom(server, appPort)))
	})
}

func TestOnlyProbesAreExempt(t *testing.T) {
	families(t, func(t *testing.T, b *bed, addr func(*netnstest.Pod) netip.Addr) {
		t.Helper()
		client, server := addr(b.client), addr(b.server)
		node := netnstest.NodeAddr
		if server.Is6() {
			node = netnstest.NodeAddr6
		}
		captured := fmt.Sprintf("15006 %s", netip.AddrPortFrom(server, appPort))
		b.ztunnel(b.server)
		b.apply(b.server)
		h := b.host(0, server)

		b.dial(b.client, server).want("another pod", captured)
		b.masquerade(client)
		c := b.dial(b.client, server)
		c.want("another pod, masqueraded by the node", captured)
		c.want("another pod, masqueraded by the node", "app "+node.String())

		b.translate(node, server)
		b.dial(nil, node).want("the node to a service", captured)

		h.Prober = 12345
		if err := h.Exempt([]netip.Addr{server}); err != nil {
			t.Fatal(err)
		}
		b.dial(nil, server).want("another user's socket on the node", captured)
	})
}

func TestForgedProbe(t *testing.T) {
	families(t, func(t *testing.T, b *bed, addr func(*netnstest.Pod) netip.Addr) {
		t.Helper()
		server, source, rule := addr(b.server), netip.MustParseAddr(mesh.ProbeSourceIPv4), 0
		if server.Is6() {
			source, rule = netip.MustParseAddr(mesh.ProbeSourceIPv6), 1
		}
		b.apply(b.server)
		b.host(0, server)
		if n := dropped(t, rule); n != 0 {
			t.Fatalf("%d packets dropped before any was forged", n)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			c, err := b.client.NS.Dial(ctx, netip.AddrPortFrom(server, appPort), netns.DialOptions{Mark: mesh.MarkZtunnel, Source: source})
			if err == nil {
				_ = c.Close()
			}
			done <- err
		}()
		deadline := time.After(10 * time.Second)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for dropped(t, rule) == 0 {
			select {
			case <-tick.C:
			case <-deadline:
				t.Fatal("a forged packet was not dropped within 10 s")
			case err := <-done:
				t.Fatalf("forged connection: %v, want it to hang", err)
			}
		}
		cancel()
		if err := <-done; err == nil {
			t.Error("a forged connection was made")
		}
	})
}

func TestHostRulesTwiceAndRemove(t *testing.T) {
	before := hostState(t)
	h := &redirect.Host{}
	a4, a6 := netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("fd00::3")
	var states [][]string
	for _, pods := range [][]netip.Addr{{a4, a6, a4}, {a6, a4}, {a6}, {}, {a4, a6}} {
		if err := h.Exempt(pods); err != nil {
			t.Fatal(err)
		}
		states = append(states, hostState(t))
	}
	if !slices.Equal(states[0], states[1]) || !slices.Equal(states[0], states[4]) {
		t.Errorf("the same pods, but other rules: %q", states)
	}
	if slices.Equal(states[0], states[2]) || slices.Equal(states[2], states[3]) {
		t.Errorf("other pods, but the same rules: %q", states)
	}
	for range 2 {
		if err := h.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	if after := hostState(t); !slices.Equal(before, after) {
		t.Errorf("remove leaves nothing: got %q, want %q", after, before)
	}
}

// hostState lists the node's tables, rules with handles, and elements of sets.
func hostState(t *testing.T) []string {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	tables, err := c.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		lines = append(lines, "table "+table.Name)
		sets, err := c.GetSets(table)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range sets {
			elements, err := c.GetSetElements(s)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range elements {
				lines = append(lines, fmt.Sprintf("set %s %x", s.Name, e.Key))
			}
		}
	}
	chains, err := c.ListChains()
	if err != nil {
		t.Fatal(err)
	}
	for _, ch := range chains {
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rules {
			lines = append(lines, fmt.Sprintf("chain %s rule %d %s", ch.Name, r.Handle, r.UserData))
		}
	}
	slices.Sort(lines)
	return lines
}

// dropped counts the packets that the forged-source rule has dropped.
func dropped(t *testing.T, rule int) uint64 {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: "ambit-host"}
	rules, err := c.GetRules(table, &nftables.Chain{Table: table, Name: "forged"})
	if err != nil || len(rules) <= rule {
		t.Fatalf("rules of chain forged: %v, %v", rules, err)
	}
	for _, e := range rules[rule].Exprs {
		if n, ok := e.(*expr.Counter); ok {
			return n.Packets
		}
	}
	t.Fatal("the rule has no counter")
	return 0
}

// masquerade makes the node hide the pod, as kube-proxy and CNI plugins do.
func (b *bed) masquerade(client netip.Addr) {
	b.t.Helper()
	b.nodeRule(nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource,
		append(match(client, 12, 8), &expr.Masq{}))
}

// translate makes connections of the node to one address go to another.
func (b *bed) translate(from, to netip.Addr) {
	b.t.Helper()
	family := uint32(unix.NFPROTO_IPV4)
	if to.Is6() {
		family = unix.NFPROTO_IPV6
	}
	b.nodeRule(nftables.ChainHookOutput, nftables.ChainPriorityNATDest,
		append(match(from, 16, 24),
			&expr.Immediate{Register: 1, Data: to.AsSlice()},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 1}))
}

func match(a netip.Addr, offset4, offset6 uint32) []expr.Any {
	offset, version := offset4, byte(unix.NFPROTO_IPV4)
	if a.Is6() {
		offset, version = offset6, unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{version}},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, appPort)},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(len(a.AsSlice()))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()},
	}
}

// nodeRule adds a rule in a table of its own on the node until the test ends.
func (b *bed) nodeRule(hook *nftables.ChainHook, priority *nftables.ChainPriority, exprs []expr.Any) {
	b.t.Helper()
	c, err := nftables.New()
	if err != nil {
		b.t.Fatal(err)
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "node"})
	ch := c.AddChain(&nftables.Chain{Table: table, Name: fmt.Sprintf("hook-%d", *hook), Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: priority})
	c.AddRule(&nftables.Rule{Table: table, Chain: ch, Exprs: exprs})
	if err := c.Flush(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		c.AddTable(table)
		c.DelTable(table)
		if err := c.Flush(); err != nil {
			b.t.Error(err)
		}
	})
}
