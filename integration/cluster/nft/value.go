package nft

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Values are put into registers of 32 bits, as many as they fill; what is left
// of the last one is zero.
const registerSize = 4

// protocols are those that a Service can have.
var protocols = map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}

// types by the names that they have in commands.
var types = map[string]nftables.SetDatatype{
	"ipv4_addr":    nftables.TypeIPAddr,
	"ipv6_addr":    nftables.TypeIP6Addr,
	"inet_proto":   nftables.TypeInetProto,
	"inet_service": nftables.TypeInetService,
}

// value reads an address, a protocol or a port, whose form tells which it is.
func (r *reader) value() []byte {
	word := r.next()
	if p, ok := protocols[word]; ok {
		return []byte{p}
	}
	if port, err := strconv.ParseUint(word, 10, 16); err == nil {
		return binary.BigEndian.AppendUint16(nil, uint16(port))
	}
	address, err := netip.ParseAddr(word)
	if err != nil || address.Zone() != "" {
		r.failf("%q is no address, protocol or port", word)
		return nil
	}
	return address.AsSlice()
}

// key reads one value, or several with dots between.
func (r *reader) key() []byte {
	key := r.value()
	for r.take(".") {
		key = append(padded(key), r.value()...)
		if !r.peek(".") {
			key = padded(key)
		}
	}
	return key
}

func padded(value []byte) []byte {
	return append(value, make([]byte, -len(value)&(registerSize-1))...)
}

// number reads an unsigned number, in decimal or after 0x.
func (r *reader) number() uint32 {
	word := r.next()
	n, err := strconv.ParseUint(word, 0, 32)
	if err != nil {
		r.failf("%q is no number", word)
	}
	return uint32(n)
}

// datatype reads a type, or several with dots between.
func (r *reader) datatype() nftables.SetDatatype {
	var all []nftables.SetDatatype
	for {
		name := r.next()
		t, ok := types[name]
		if !ok {
			r.failf("type %q is not understood", name)
			return t
		}
		all = append(all, t)
		if !r.take(".") {
			break
		}
	}
	if len(all) == 1 {
		return all[0]
	}
	t, err := nftables.ConcatSetType(all...)
	if err != nil {
		r.failf("type: %v", err)
	}
	return t
}

// verdict reads what is to happen, if that is next.
func (r *reader) verdict() *expr.Verdict {
	for word, kind := range map[string]expr.VerdictKind{
		"accept": expr.VerdictAccept, "drop": expr.VerdictDrop, "continue": expr.VerdictContinue, "return": expr.VerdictReturn,
	} {
		if r.take(word) {
			return &expr.Verdict{Kind: kind}
		}
	}
	for word, kind := range map[string]expr.VerdictKind{"jump": expr.VerdictJump, "goto": expr.VerdictGoto} {
		if r.take(word) {
			return &expr.Verdict{Kind: kind, Chain: r.next()}
		}
	}
	return nil
}

// list reads entries in braces.
func (r *reader) list(entry func()) {
	r.want("{")
	for !r.done() && !r.take("}") {
		entry()
		if !r.take(",") {
			r.want("}")
			return
		}
	}
}

// prefixes reads addresses and ranges of them in braces.
func (r *reader) prefixes() []netip.Prefix {
	var all []netip.Prefix
	r.list(func() { all = append(all, r.prefix()) })
	return all
}

// prefix reads an address or a range.
func (r *reader) prefix() netip.Prefix {
	word := r.next()
	if !strings.Contains(word, "/") {
		address, err := netip.ParseAddr(word)
		if err != nil || address.Zone() != "" {
			r.failf("%q is no address", word)
			return netip.Prefix{}
		}
		return netip.PrefixFrom(address, address.BitLen())
	}
	prefix, err := netip.ParsePrefix(word)
	if err != nil {
		r.failf("%q is no range of addresses", word)
		return netip.Prefix{}
	}
	return prefix.Masked()
}

// intervals are the elements of a set of ranges: where one begins, and the
// first address after it. Ranges that touch become one.
func intervals(prefixes []netip.Prefix) []nftables.SetElement {
	prefixes = slices.Clone(prefixes)
	slices.SortFunc(prefixes, func(a, b netip.Prefix) int {
		return a.Addr().Compare(b.Addr())
	})
	var elements []nftables.SetElement
	for _, p := range prefixes {
		begin, end := p.Addr(), lastOf(p).Next()
		if n := len(elements); n > 0 {
			last := &elements[n-1]
			if !last.IntervalEnd { // it goes to the end of all addresses
				continue
			}
			if bytes.Compare(begin.AsSlice(), last.Key) <= 0 {
				if !end.IsValid() {
					elements = elements[:n-1]
				} else if bytes.Compare(end.AsSlice(), last.Key) > 0 {
					last.Key = end.AsSlice()
				}
				continue
			}
		} else if !begin.IsUnspecified() {
			// "The first element is always the end of what is not in the set."
			elements = append(elements, nftables.SetElement{Key: make([]byte, begin.BitLen()/8), IntervalEnd: true})
		}
		elements = append(elements, nftables.SetElement{Key: begin.AsSlice()})
		if end.IsValid() {
			elements = append(elements, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return elements
}

// lastOf is a range's last address.
func lastOf(p netip.Prefix) netip.Addr {
	address := p.Addr().AsSlice()
	for i, m := range mask(p) {
		address[i] |= ^m
	}
	last, _ := netip.AddrFromSlice(address)
	return last
}

// mask is a range's mask.
func mask(p netip.Prefix) []byte {
	m := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		m[i/8] |= 0x80 >> (i % 8)
	}
	return m
}
