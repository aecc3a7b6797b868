package nft

import (
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// builder makes a rule out of its statements.
type builder struct {
	*reader
	rule *nftables.Rule
	sets []anonymous
}

// anonymous is a set that a rule brings along; it comes before the rule.
type anonymous struct {
	set      *nftables.Set
	elements []nftables.SetElement
	lookup   *expr.Lookup
}

// rule reads statements until the line ends.
func (r *reader) rule(rule *nftables.Rule) func(*nftables.Conn) error {
	b := &builder{reader: r, rule: rule}
	for !r.done() {
		b.statement()
	}
	return func(c *nftables.Conn) error {
		for _, a := range b.sets {
			if err := c.AddSet(a.set, a.elements); err != nil {
				return err
			}
			a.lookup.SetID, a.lookup.SetName = a.set.ID, a.set.Name
		}
		c.AddRule(b.rule)
		return nil
	}
}

func (b *builder) add(exprs ...expr.Any) { b.rule.Exprs = append(b.rule.Exprs, exprs...) }

// statement reads the next one, in the order of how often they occur.
func (b *builder) statement() {
	if verdict := b.verdict(); verdict != nil {
		b.add(verdict)
		return
	}
	switch {
	case b.take("comment"):
		b.rule.UserData = userdata.AppendString(b.rule.UserData, userdata.TypeComment, b.text())
	case b.take("ct", "state", "new"):
		b.flag(&expr.Ct{Key: expr.CtKeySTATE, Register: 1}, expr.CtStateBitNEW)
	case b.take("ct", "status", "dnat"):
		b.flag(&expr.Ct{Key: expr.CtKeySTATUS, Register: 1}, ipsDstNAT)
	case b.take("mark", "and"):
		mark := b.number()
		b.want("!=")
		b.want("0")
		b.flag(&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, mark)
	case b.take("mark", "set", "mark"):
		b.setMark()
	case b.take("fib"):
		source := b.take("saddr")
		if !source {
			b.want("daddr")
		}
		b.want("type")
		b.want("local")
		b.add(&expr.Fib{Register: 1, FlagSADDR: source, FlagDADDR: !source, ResultADDRTYPE: true},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)})
	case b.take("numgen", "random", "mod"):
		b.random()
		b.want("vmap")
		b.choice(nftables.TypeVerdict, func() nftables.SetElement { return nftables.SetElement{VerdictData: b.verdict()} })
	case b.take("dnat"):
		b.dnat()
	case b.take("masquerade"):
		b.add(&expr.Masq{FullyRandom: b.take("fully-random")})
	case b.take("reject"):
		b.reject()
	case b.take("update"):
		b.update()
	case b.take("counter", "name"):
		b.add(&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: b.text()})
	default:
		b.match()
	}
}

// ipsDstNAT is IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h.
const ipsDstNAT = 1 << 5

// flag demands that one of the bits that are loaded into register 1 is set.
func (b *builder) flag(load expr.Any, bits uint32) {
	b.add(load,
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)})
}

// setMark reads what is done to the packet's mark.
func (b *builder) setMark() {
	operation := b.next()
	bits := b.number()
	keep := ^uint32(0)
	switch operation {
	case "or":
		keep &^= bits
	case "xor":
	default:
		b.failf("operation %q is not understood", operation)
	}
	b.add(
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(keep), Xor: binaryutil.NativeEndian.PutUint32(bits),
		},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1})
}

// random loads a random number below the one that is read.
func (b *builder) random() {
	b.add(&expr.Numgen{Register: 1, Modulus: b.number(), Type: unix.NFT_NG_RANDOM})
}

// choice reads { 0 : ... , 1 : ... } and looks the number in register 1 up.
func (b *builder) choice(data nftables.SetDatatype, read func() nftables.SetElement) {
	set := &nftables.Set{
		Table: b.rule.Table, Anonymous: true, Constant: true, IsMap: true,
		KeyType: nftables.TypeInteger, DataType: data,
	}
	// "integer" is of any size.
	set.KeyType.Bytes = registerSize
	var elements []nftables.SetElement
	b.list(func() {
		key := b.number()
		b.want(":")
		element := read()
		if element.VerdictData == nil && element.Val == nil {
			b.failf("what follows number %d is not understood", key)
		}
		element.Key = binaryutil.NativeEndian.PutUint32(key)
		elements = append(elements, element)
	})
	lookup := &expr.Lookup{SourceRegister: 1, IsDestRegSet: true}
	if data != nftables.TypeVerdict {
		lookup.DestRegister = 1
	}
	b.lookup(lookup, set, elements)
}

// lookup adds a lookup in a set that the rule brings along.
func (b *builder) lookup(lookup *expr.Lookup, set *nftables.Set, elements []nftables.SetElement) {
	if len(elements) == 0 {
		b.failf("nothing is in the braces")
	}
	b.sets = append(b.sets, anonymous{set: set, elements: elements, lookup: lookup})
	b.add(lookup)
}

// dnat reads where a connection is to go: to one address and port, or to one of
// several.
func (b *builder) dnat() {
	if b.take("to") {
		word := b.next()
		to, err := netip.ParseAddrPort(word)
		if err != nil || to.Addr().Zone() != "" {
			b.failf("%q is no address and port", word)
			return
		}
		address := to.Addr().AsSlice()
		port := register(len(address))
		b.add(
			&expr.Immediate{Register: 1, Data: address},
			&expr.Immediate{Register: port, Data: binaryutil.BigEndian.PutUint16(to.Port())},
			nat(len(address), port))
		return
	}
	var data nftables.SetDatatype
	switch family := b.next(); family {
	case "ip":
		data = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	case "ip6":
		data = nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeInetService)
	default:
		b.failf("family %q is not understood", family)
		return
	}
	for _, word := range []string{"addr", ".", "port", "to", "numgen", "random", "mod"} {
		b.want(word)
	}
	b.random()
	b.want("map")
	size := int(data.Bytes)
	b.choice(data, func() nftables.SetElement {
		value := b.key()
		if len(value) != size {
			b.failf("address and port are %d bytes, want %d", len(value), size)
		}
		return nftables.SetElement{Val: value}
	})
	b.add(nat(size-registerSize, register(size-registerSize)))
}

// nat changes the destination to the address in register 1 and the port in the
// one given.
func nat(addressSize int, port uint32) *expr.NAT {
	family := uint32(unix.NFPROTO_IPV4)
	if addressSize == net6Size {
		family = unix.NFPROTO_IPV6
	}
	return &expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 1, RegProtoMin: port}
}

// Sizes of addresses.
const (
	net4Size = 4
	net6Size = 16
)

// register is the one that begins so many bytes after the first.
func register(offset int) uint32 {
	if offset == 0 {
		return unix.NFT_REG_1
	}
	return uint32(unix.NFT_REG32_00 + offset/registerSize)
}

// reject refuses as nft does by default: no such port.
func (b *builder) reject() {
	code := byte(3) // ICMP_PORT_UNREACH
	if b.rule.Table.Family == nftables.TableFamilyIPv6 {
		code = 4 // ICMPV6_PORT_UNREACH
	}
	b.add(&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: code})
}

// update reads the set that a packet's key is put into.
func (b *builder) update() {
	set := b.setName()
	b.want("{")
	b.loadKey()
	b.want("}")
	b.add(&expr.Dynset{SrcRegKey: 1, SetName: set, Operation: unix.NFT_DYNSET_OP_UPDATE})
}

// setName reads @NAME.
func (b *builder) setName() string {
	word := b.next()
	if len(word) < 2 || word[0] != '@' {
		b.failf("%q is not the name of a set", word)
		return ""
	}
	return word[1:]
}

// field is something in a packet that can be compared.
type field struct {
	words []string
	size  int
	load  func(register uint32) expr.Any
}

var fields = []field{
	addressField("ip", "saddr", 12, net4Size), addressField("ip", "daddr", 16, net4Size),
	addressField("ip6", "saddr", 8, net6Size), addressField("ip6", "daddr", 24, net6Size),
	{[]string{"meta", "l4proto"}, 1, func(register uint32) expr.Any {
		return &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register}
	}},
	{[]string{"th", "dport"}, 2, func(register uint32) expr.Any {
		return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
	}},
}

func addressField(family, name string, offset, size uint32) field {
	return field{[]string{family, name}, int(size), func(register uint32) expr.Any {
		return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}
	}}
}

// loadKey reads a field, or several with dots between, and loads them into
// registers from 1 on; it returns their size.
func (b *builder) loadKey() int {
	size := 0
	for {
		i := slices.IndexFunc(fields, func(f field) bool { return b.peek(f.words...) })
		if i < 0 {
			b.failf("%q is not understood", b.next())
			return 0
		}
		b.take(fields[i].words...)
		b.add(fields[i].load(register(size)))
		if !b.take(".") {
			return size + fields[i].size
		}
		size += (fields[i].size + registerSize - 1) &^ (registerSize - 1)
	}
}

// match reads fields and what they are to be: in a set, equal, in a range of
// addresses, or none of that.
func (b *builder) match() {
	size := b.loadKey()
	if b.take("vmap") {
		b.add(&expr.Lookup{SourceRegister: 1, SetName: b.setName(), IsDestRegSet: true})
		return
	}
	not := b.take("!=")
	switch {
	case b.done():
		b.failf("what it is compared with is missing")
	case b.peek("{"):
		b.inRanges(b.prefixes(), not, size)
	case b.tokens[0].text != "" && b.tokens[0].text[0] == '@':
		b.add(&expr.Lookup{SourceRegister: 1, SetName: b.setName(), Invert: not})
	case size == 1 || size == 2:
		b.compare(b.value(), not, size)
	default:
		b.inRanges([]netip.Prefix{b.prefix()}, not, size)
	}
}

func (b *builder) compare(value []byte, not bool, size int) {
	if len(value) != size {
		b.failf("a value of %d bytes is compared with a field of %d", len(value), size)
	}
	operation := expr.CmpOpEq
	if not {
		operation = expr.CmpOpNeq
	}
	b.add(&expr.Cmp{Op: operation, Register: 1, Data: value})
}

// inRanges demands that the address in register 1 is, or is not, in one of the
// ranges.
func (b *builder) inRanges(ranges []netip.Prefix, not bool, size int) {
	for _, p := range ranges {
		if p.Addr().BitLen() != 8*size {
			b.failf("%s is compared with a field of %d bytes", p, size)
			return
		}
	}
	if len(ranges) == 1 {
		p := ranges[0]
		if !p.IsSingleIP() {
			b.add(&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(size), Mask: mask(p), Xor: make([]byte, size)})
		}
		b.compare(p.Addr().AsSlice(), not, size)
		return
	}
	set := &nftables.Set{
		Table: b.rule.Table, Anonymous: true, Constant: true, Interval: true,
		KeyType: nftables.TypeIPAddr,
	}
	if size == net6Size {
		set.KeyType = nftables.TypeIP6Addr
	}
	b.lookup(&expr.Lookup{SourceRegister: 1, Invert: not}, set, intervals(ranges))
}
