package dns

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	miekg "github.com/miekg/dns"

	"github.com/ambit-mesh/ambit/ztunnel/workload"
	"github.com/ambit-mesh/ambit/ztunnel/workload/workloadtest"
)

// Messages are written and read by another implementation.

func ask(name string, kind uint16, change func(*miekg.Msg)) []byte {
	m := new(miekg.Msg).SetQuestion(name, kind)
	m.Id = 4711
	if change != nil {
		change(m)
	}
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

func edns(size uint16, do bool) func(*miekg.Msg) {
	return func(m *miekg.Msg) { m.SetEdns0(size, do) }
}

func TestReadQuery(t *testing.T) {
	cookie := func(m *miekg.Msg) {
		edns(1232, true)(m)
		m.IsEdns0().Option = append(m.IsEdns0().Option, &miekg.EDNS0_COOKIE{Code: miekg.EDNS0COOKIE, Cookie: "24a5ac1223344556"})
	}
	version := func(m *miekg.Msg) { edns(1232, false)(m); m.IsEdns0().SetVersion(1) }
	tsig := func(m *miekg.Msg) { m.SetTsig("key.", miekg.HmacSHA256, 300, 1) }
	for _, test := range []struct {
		what  string
		query []byte
		ours  bool
		name  string
		size  int
	}{
		{what: "A", query: ask("Cart.Shop.", miekg.TypeA, nil), ours: true, name: "cart.shop", size: 512},
		{what: "AAAA with EDNS", query: ask("cart.", miekg.TypeAAAA, edns(4096, true)), ours: true, name: "cart", size: 4096},
		{what: "small EDNS", query: ask("cart.", miekg.TypeA, edns(100, false)), ours: true, name: "cart", size: 512},
		{what: "large EDNS", query: ask("cart.", miekg.TypeA, edns(65535, false)), ours: true, name: "cart", size: 65507},
		{what: "options", query: ask("cart.", miekg.TypeA, cookie), ours: true, name: "cart", size: 1232},
		{what: "root", query: ask(".", miekg.TypeA, nil), ours: true, name: "", size: 512},
		{what: "another type", query: ask("cart.", miekg.TypeMX, nil), name: "cart", size: 512},
		{what: "another class", query: ask("cart.", miekg.TypeA, func(m *miekg.Msg) { m.Question[0].Qclass = miekg.ClassCHAOS }), name: "cart", size: 512},
		{what: "another opcode", query: ask("cart.", miekg.TypeA, func(m *miekg.Msg) { m.Opcode = miekg.OpcodeNotify }), name: "cart", size: 512},
		{what: "EDNS version 1", query: ask("cart.", miekg.TypeA, version), name: "cart", size: 512},
		{what: "signed", query: ask("cart.", miekg.TypeA, tsig), name: "cart", size: 512},
		{what: "bytes behind", query: append(ask("cart.", miekg.TypeA, nil), 0), name: "cart", size: 512},
		{what: "two questions", query: ask("cart.", miekg.TypeA, func(m *miekg.Msg) { m.Question = append(m.Question, m.Question[0]) }), size: 512},
		{what: "no question", query: ask("cart.", miekg.TypeA, func(m *miekg.Msg) { m.Question = nil }), size: 512},
		{what: "dot in a label", query: ask(`ca\.rt.`, miekg.TypeA, nil), size: 512},
		{what: "cut off", query: ask("cart.", miekg.TypeA, nil)[:20], size: 512},
		{what: "pointer", query: []byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1}, size: 512},
	} {
		q, _ := readQuery(test.query)
		if q.ours() != test.ours || q.name != test.name || q.limit() != test.size {
			t.Errorf("%s: got ours %v, name %q, limit %d; want %v, %q, %d", test.what, q.ours(), q.name, q.limit(), test.ours, test.name, test.size)
		}
	}
}

func many(n int) []netip.Addr {
	var out []netip.Addr
	for i := range n {
		out = append(out, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}))
	}
	return out
}

func unpack(t *testing.T, b []byte) *miekg.Msg {
	t.Helper()
	m := new(miekg.Msg)
	if err := m.Unpack(b); err != nil {
		t.Fatalf("answer %x cannot be read: %v", b, err)
	}
	return m
}

// lines are the parts of a message that a client looks at.
func lines(m *miekg.Msg) []string {
	out := []string{fmt.Sprintf("%d %s aa=%v tc=%v rd=%v ra=%v", m.Id, miekg.RcodeToString[m.Rcode], m.Authoritative, m.Truncated, m.RecursionDesired, m.RecursionAvailable)}
	for _, q := range m.Question {
		out = append(out, strings.TrimPrefix(q.String(), ";"))
	}
	for _, rr := range m.Answer {
		out = append(out, rr.String())
	}
	for _, rr := range m.Ns {
		out = append(out, "authority "+rr.String())
	}
	if o := m.IsEdns0(); o != nil {
		out = append(out, fmt.Sprintf("edns %d do=%v", o.UDPSize(), o.Do()))
	}
	return out
}

func TestReply(t *testing.T) {
	ip := netip.MustParseAddr
	for _, test := range []struct {
		what  string
		query []byte
		answer
		want []string
	}{
		{
			what: "address", query: ask("Cart.Shop.", miekg.TypeA, nil), addrs: []netip.Addr{ip("10.0.0.1")},
			want: []string{"4711 NOERROR aa=true tc=false rd=true ra=true", "Cart.Shop.\tIN\t A", "Cart.Shop.\t30\tIN\tA\t10.0.0.1"},
		},
		{
			what: "alias", query: ask("cart.shop.shop.svc.cluster.local.", miekg.TypeAAAA, edns(1232, true)), alias: len("cart.shop"), addrs: []netip.Addr{ip("fd00::1"), ip("fd00::2")},
			want: []string{
				"4711 NOERROR aa=true tc=false rd=true ra=true", "cart.shop.shop.svc.cluster.local.\tIN\t AAAA",
				"cart.shop.shop.svc.cluster.local.\t30\tIN\tCNAME\tcart.shop.", "cart.shop.\t30\tIN\tAAAA\tfd00::1", "cart.shop.\t30\tIN\tAAAA\tfd00::2", "edns 1232 do=true",
			},
		},
		{
			what: "no address", query: ask("cart.", miekg.TypeA, func(m *miekg.Msg) { m.RecursionDesired = false }),
			want: []string{"4711 NOERROR aa=true tc=false rd=false ra=true", "cart.\tIN\t A"},
		},
	} {
		q, ok := readQuery(test.query)
		if !ok {
			t.Fatalf("%s: not understood", test.what)
		}
		if d := cmp.Diff(test.want, lines(unpack(t, q.reply(test.answer, q.limit())))); d != "" {
			t.Errorf("%s (-want +got):\n%s", test.what, d)
		}
	}
}

func TestTruncation(t *testing.T) {
	for _, test := range []struct {
		what  string
		query []byte
		limit int
		count int
		cut   bool
	}{
		{"256 addresses in 512 bytes", ask("cart.", miekg.TypeA, nil), 512, 30, true},
		{"256 addresses in 1232 bytes", ask("cart.", miekg.TypeA, edns(1232, false)), 1232, 74, true},
		{"256 addresses over TCP", ask("cart.", miekg.TypeA, nil), maxMessage, 256, false},
	} {
		q, _ := readQuery(test.query)
		b := q.reply(answer{addrs: many(256)}, test.limit)
		m := unpack(t, b)
		if len(b) > test.limit || len(m.Answer) != test.count || m.Truncated != test.cut {
			t.Errorf("%s: got %d bytes, %d addresses, truncated %v; want at most %d, %d, %v", test.what, len(b), len(m.Answer), m.Truncated, test.limit, test.count, test.cut)
		}
	}
}

func TestAnsweredBy(t *testing.T) {
	response := func(name string, kind uint16, change func(*miekg.Msg)) []byte {
		return ask(name, kind, func(m *miekg.Msg) {
			m.Id, m.Response = 99, true
			if change != nil {
				change(m)
			}
		})
	}
	for _, test := range []struct {
		what string
		b    []byte
		want bool
	}{
		{"the answer", response("cart.", miekg.TypeA, nil), true},
		{"another spelling", response("CART.", miekg.TypeA, nil), true},
		{"another id", response("cart.", miekg.TypeA, func(m *miekg.Msg) { m.Id = 98 }), false},
		{"another name", response("evil.", miekg.TypeA, nil), false},
		{"another type", response("cart.", miekg.TypeAAAA, nil), false},
		{"a question", response("cart.", miekg.TypeA, func(m *miekg.Msg) { m.Response = false }), false},
		{"no question in it", response("cart.", miekg.TypeA, func(m *miekg.Msg) { m.Question = nil }), false},
		{"a refusal without the question", response("cart.", miekg.TypeA, func(m *miekg.Msg) { m.Question, m.Rcode = nil, miekg.RcodeFormatError }), true},
		{"too short", []byte{0, 99}, false},
	} {
		q, _ := readQuery(ask("cart.", miekg.TypeA, nil))
		if got := q.answeredBy(test.b, 99); got != test.want {
			t.Errorf("%s: taken %v, want %v", test.what, got, test.want)
		}
	}
}

// Whatever comes, what is answered here is what the other implementation reads in it, and
// the answer can be read.
func FuzzQuery(f *testing.F) {
	store := workload.NewStore("", "")
	workloadtest.Apply(f, store, world()...)
	known := store.Snapshot()
	client := known.WorkloadByInfo("client", "shop", "default")
	names := newNamer(&Config{Pod: workload.Info{Name: "client", Namespace: "shop"}, ClusterDomain: "cluster.local"})
	f.Add(ask("cart.shop.svc.cluster.local.", miekg.TypeA, nil), 3, uint8(0))
	f.Add(ask("Cart.Shop.shop.svc.cluster.local.", miekg.TypeAAAA, edns(1232, true)), 100, uint8(9))
	f.Add(ask("cart.", miekg.TypeMX, func(m *miekg.Msg) { m.SetTsig("key.", miekg.HmacSHA256, 300, 1) }), 1, uint8(0))
	for _, name := range []string{"db-0.db.shop.svc.cluster.local.", "a.wild.example.com.shop.svc.cluster.local.", ".", "db."} {
		f.Add(ask(name, miekg.TypeA, nil), 1, uint8(0))
	}
	f.Add([]byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1}, 1, uint8(0))
	f.Fuzz(func(t *testing.T, b []byte, n int, alias uint8) {
		before := bytes.Clone(b)
		q, ok := readQuery(b)
		if len(b) >= headerSize {
			if m := unpack(t, q.fail()); m.Rcode != miekg.RcodeServerFailure || !m.Response || m.Id != q.id {
				t.Errorf("failure %v", m)
			}
		}
		q.answeredBy(b, q.id)
		if !ok || !q.ours() {
			return
		}
		m := new(miekg.Msg)
		if err := m.Unpack(b); err != nil || len(m.Question) != 1 || m.Response || m.Opcode != miekg.OpcodeQuery {
			t.Fatalf("understood as %q, by another as %v, %v", q.name, m, err)
		}
		want := miekg.CanonicalName(m.Question[0].Name)
		if got := canonicalText(q.question); got != want || m.Question[0].Qtype != q.kind {
			t.Fatalf("understood as %q, by another as %q", got, want)
		}
		addrs := many(max(0, min(n, 300)))
		if q.kind == typeAAAA {
			addrs = []netip.Addr{netip.IPv6Loopback()}
		}
		a := answer{addrs: addrs}
		if i := strings.IndexByte(q.name, '.'); i > 0 && alias > 0 {
			a.alias = i
		}
		for _, limit := range []int{q.limit(), maxMessage} {
			out := q.reply(a, limit)
			r := unpack(t, out)
			if len(out) > limit || r.Id != m.Id || len(r.Question) != 1 || r.Question[0] != m.Question[0] || (len(r.Answer) < len(addrs)) != r.Truncated && a.alias == 0 {
				t.Errorf("answer of %d bytes, limit %d, to %v: %v", len(out), limit, m, r)
			}
		}
		if found := names.find(known, q.name); found.service != nil {
			a = answer{found.alias, addresses(known, found, q.kind, client)}
			for _, rr := range unpack(t, q.reply(a, maxMessage)).Answer {
				cname, ok := rr.(*miekg.CNAME)
				if ok && !strings.HasPrefix(strings.ToLower(m.Question[0].Name), strings.ToLower(cname.Target)) {
					t.Errorf("%q leads to %q", m.Question[0].Name, cname.Target)
				}
			}
		}
		if !bytes.Equal(before, b) {
			t.Error("the question was changed")
		}
	})
}

// canonicalText reads a name as the other implementation does.
func canonicalText(question []byte) string {
	name, _, err := miekg.UnpackDomainName(question, 0)
	if err != nil {
		return err.Error()
	}
	return miekg.CanonicalName(name)
}
