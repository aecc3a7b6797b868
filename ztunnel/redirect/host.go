package redirect

import (
	"fmt"
	"net/netip"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/apis/mesh"
)

// The rules in the host's namespace by which a pod recognises the node's probes: a
// connection from a socket of the prober to an enrolled pod gets mesh.ProbeSourceIPv4
// or IPv6 as its source, which the pod's own rules let pass. spec/control-plane.md §8.6.
//
// What recognises a probe, and why nothing else is taken for one:
//   - a socket of this namespace with the prober's user id sent it. What kube-proxy or a
//     CNI plugin forwards and masquerades has no socket here: the kernel drops the
//     reference to the sender's when a packet enters a namespace, and nft_meta checks that
//     a socket's namespace is the packet's.
//   - it was sent to the pod's own address. A connection of the host to a Service, which
//     was translated, is an ordinary client's.
//   - nothing that arrives from anywhere may have the reserved source already.
//
// The chains run before those of others that translate sources, because the first
// translation of a connection is the only one.

var hostTable = &nftables.Table{Family: nftables.TableFamilyINet, Name: "ambit-host"}

// Priorities of the host's chains: before any other rule, and before the usual source
// translation (100).
var (
	beforeAll  = new(*nftables.ChainPriorityRaw - 10)
	beforeSNAT = new(*nftables.ChainPriorityNATSource - 10)
)

const (
	hostSet4 = "pods4"
	hostSet6 = "pods6"
)

// Host exempts the node's probes. It programs the namespace of the process, which must
// be the host's. It is safe for concurrent use.
type Host struct {
	// Prober is the user id that the probing process has: the kubelet's, root.
	Prober uint32

	mu sync.Mutex
}

// Exempt makes the probes of exactly these pods recognisable, in one transaction.
func (h *Host) Exempt(pods []netip.Addr) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("host rules: %w", err)
	}
	chains := hostChains(h.Prober)
	same, err := programmed(c, hostTable, chains)
	if err != nil {
		return fmt.Errorf("host rules: %w", err)
	}
	sets := []*nftables.Set{
		{Table: hostTable, Name: hostSet4, KeyType: nftables.TypeIPAddr},
		{Table: hostTable, Name: hostSet6, KeyType: nftables.TypeIP6Addr},
	}
	if !same {
		c.AddTable(hostTable) // so that deleting cannot fail
		c.DelTable(hostTable)
		c.AddTable(hostTable)
		for _, s := range sets {
			if err := c.AddSet(s, nil); err != nil {
				return fmt.Errorf("host rules: %w", err)
			}
		}
		addChains(c, hostTable, chains)
	}
	for i, elements := range elements(pods) {
		c.FlushSet(sets[i])
		if err := c.SetAddElements(sets[i], elements); err != nil {
			return fmt.Errorf("host rules: %w", err)
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("host rules: %w", unsupportedErrno(err, "table "+hostTable.Name))
	}
	return nil
}

// Remove takes away everything that Exempt made.
func (h *Host) Remove() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("host rules: %w", err)
	}
	c.AddTable(hostTable) // so that deleting cannot fail
	c.DelTable(hostTable)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove host rules: %w", err)
	}
	return nil
}

// elements are those of the two sets, each once.
func elements(pods []netip.Addr) (sets [2][]nftables.SetElement) {
	seen := map[netip.Addr]bool{}
	for _, a := range pods {
		a = a.Unmap().WithZone("")
		if seen[a] || !a.IsValid() {
			continue
		}
		seen[a] = true
		i := 0
		if a.Is6() {
			i = 1
		}
		sets[i] = append(sets[i], nftables.SetElement{Key: a.AsSlice()})
	}
	return sets
}

func hostChains(prober uint32) []chain {
	var forged, probes []rule
	for _, family := range []struct {
		source  netip.Addr
		set     string
		nfproto byte
		offset  uint32
		length  uint32
	}{
		{netip.MustParseAddr(mesh.ProbeSourceIPv4), hostSet4, unix.NFPROTO_IPV4, destination4, 4},
		{netip.MustParseAddr(mesh.ProbeSourceIPv6), hostSet6, unix.NFPROTO_IPV6, destination6, 16},
	} {
		forged = append(forged, rule{"the probes' source is nobody else's", join(source(family.source), count(), drop())})
		probes = append(probes, rule{"probe", join(
			tcp(), ipVersion(family.nfproto),
			[]expr.Any{
				payload(expr.PayloadBaseNetworkHeader, family.offset, family.length),
				&expr.Lookup{SourceRegister: reg, SetName: family.set},
			},
			socketOwner(prober), notTranslated(), translateSource(family.source, family.nfproto))})
	}
	return []chain{
		{name: "forged", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting, priority: beforeAll, rules: forged},
		{name: "probes", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPostrouting, priority: beforeSNAT, rules: probes},
	}
}

// socketOwner matches packets of a socket here that belongs to the user. Loading the
// key ends the rule for a packet without such a socket.
func socketOwner(uid uint32) []expr.Any {
	return compare(&expr.Meta{Key: expr.MetaKeySKUID, Register: reg}, expr.CmpOpEq, native(uid))
}

// notTranslated matches connections that go where they were sent to.
func notTranslated() []expr.Any {
	const destinationTranslated = 1 << 5 // IPS_DST_NAT, linux/netfilter/nf_conntrack_common.h
	return compareMasked(&expr.Ct{Key: expr.CtKeySTATUS, Register: reg}, native(destinationTranslated), expr.CmpOpEq, native(0))
}

func translateSource(a netip.Addr, nfproto byte) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: reg, Data: a.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: uint32(nfproto), RegAddrMin: reg},
	}
}

func count() []expr.Any { return []expr.Any{&expr.Counter{}} }

func drop() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }
