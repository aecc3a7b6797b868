package rbac

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/ambit-mesh/ambit/apis/spiffe"
)

// reference is Evaluate without an index, by the sentences of spec/ztunnel.md
// §6.2. It returns what decides.
func reference(policies []*Policy, conn Conn) (allowed bool, policy string, rule int) {
	slices.SortFunc(policies, compare)
	c := newSubject(conn, nil)
	for _, p := range policies {
		if at, ok := p.match(&c); ok && p.Action == Deny && !p.DryRun {
			return false, p.Key(), at
		}
	}
	allows := 0
	for _, p := range policies {
		if p.Action != Allow || p.DryRun {
			continue
		}
		allows++
		if at, ok := p.match(&c); ok {
			return true, p.Key(), at
		}
	}
	return allows == 0, "", 0
}

// draw makes random policies and connections of few values, so that they meet.
type draw struct{ *rand.Rand }

func (d draw) word() string { return string(rune('a' + d.IntN(3))) }

func (d draw) text(full func() string) StringMatch {
	s := full()
	switch d.IntN(6) {
	case 0:
		return StringMatch{Prefix, s[:d.IntN(len(s)+1)]}
	case 1:
		return StringMatch{Suffix, s[d.IntN(len(s)+1):]}
	case 2:
		return StringMatch{Kind: Presence}
	}
	return StringMatch{Exact, s}
}

func (d draw) principal() string { return "td/ns/" + d.word() + "/sa/" + d.word() }

func (d draw) ip() netip.Addr {
	if d.IntN(3) == 0 {
		return netip.AddrFrom16([16]byte{0xfd, 15: byte(d.IntN(4))})
	}
	return netip.AddrFrom4([4]byte{10, 0, 0, byte(d.IntN(4))})
}

func (d draw) prefix() netip.Prefix {
	ip := d.ip()
	return netip.PrefixFrom(ip, ip.BitLen()-d.IntN(4)).Masked()
}

// some fills in a list one time of four.
func some[T any](d draw, list *[]T, one func() T) {
	if d.IntN(4) > 0 {
		return
	}
	for range 1 + d.IntN(2) {
		*list = append(*list, one())
	}
}

func (d draw) match() Match {
	var m Match
	some(d, &m.Namespaces, func() StringMatch { return d.text(d.word) })
	some(d, &m.NotNamespaces, func() StringMatch { return d.text(d.word) })
	some(d, &m.Principals, func() StringMatch { return d.text(d.principal) })
	some(d, &m.NotPrincipals, func() StringMatch { return d.text(d.principal) })
	some(d, &m.ServiceAccounts, func() ServiceAccount { return ServiceAccount{d.word(), d.word()} })
	some(d, &m.SourceIPs, d.prefix)
	some(d, &m.NotSourceIPs, d.prefix)
	some(d, &m.DestinationIPs, d.prefix)
	some(d, &m.DestinationPorts, func() uint16 { return uint16(80 + d.IntN(3)) })
	if d.IntN(8) == 0 {
		m.unreadable = attribute(1 << d.IntN(5))
	}
	return m
}

func (d draw) policy(name string) *Policy {
	p := &Policy{Namespace: "n", Name: name, Action: Action(d.IntN(2)), DryRun: d.IntN(5) == 0}
	for range d.IntN(4) {
		var r Rule
		for range d.IntN(3) {
			var cl Clause
			for range d.IntN(3) {
				cl = append(cl, d.match())
			}
			r = append(r, cl)
		}
		p.Rules = append(p.Rules, r)
	}
	return p
}

func (d draw) conn(tb testing.TB) Conn {
	tb.Helper()
	c := Conn{Source: d.ip(), Destination: netip.AddrPortFrom(d.ip(), uint16(80+d.IntN(3)))}
	if d.IntN(4) > 0 {
		id, err := spiffe.New("td", d.word(), d.word())
		if err != nil {
			tb.Fatal(err)
		}
		c.Identity = id
	}
	return c
}

// TestIndexAgainstReference changes sets at random, from a few policies to
// hundreds, and compares every verdict with one that reads every policy.
func TestIndexAgainstReference(t *testing.T) {
	for _, size := range []int{3, 20, 400} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			d := draw{rand.New(rand.NewPCG(1, uint64(size)))}
			var set *Set
			live := map[string]*Policy{}
			for range 60 {
				var removed, added []*Policy
				for range 1 + d.IntN(max(2, size/20)) {
					name := fmt.Sprint(d.IntN(size))
					if slices.ContainsFunc(added, func(p *Policy) bool { return p.Name == name }) {
						continue
					}
					if old := live[name]; old != nil && !slices.Contains(removed, old) {
						removed = append(removed, old)
						delete(live, name)
						if d.IntN(3) == 0 {
							continue
						}
					}
					p := d.policy(name)
					live[name] = p
					added = append(added, p)
				}
				set = set.Edit(removed, added)
				var all []*Policy
				for _, p := range live {
					all = append(all, p)
				}
				if set.Len() != len(all) {
					t.Fatalf("%d policies, want %d", set.Len(), len(all))
				}
				for range 40 {
					c := d.conn(t)
					allowed, policy, rule := reference(all, c)
					v := Evaluate(Policies{Global: set}, c)
					if v.Allowed != allowed || v.Policy != policy || v.Rule != rule {
						t.Fatalf("%+v: allowed %v by %q rule %d, want %v by %q rule %d", c, v.Allowed, v.Policy, v.Rule, allowed, policy, rule)
					}
				}
			}
		})
	}
}

func TestDryRunFindsEveryPolicy(t *testing.T) {
	var policies []*Policy
	for i := range 100 {
		policies = append(policies, &Policy{Namespace: "n", Name: fmt.Sprintf("%03d", i), Action: Deny, DryRun: true, Rules: []Rule{
			{{Match{Namespaces: exact("other")}}}, {{Match{Namespaces: exact("web")}}}, {{Match{SourceIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}},
		}})
	}
	v := Evaluate(Of(policies...), withIdentity(t))
	if !v.Allowed || len(v.DryRun) != 100 {
		t.Fatalf("allowed %v, %d findings", v.Allowed, len(v.DryRun))
	}
	for i, f := range v.DryRun {
		if f.Policy != policies[i].Key() || f.Rule != 1 || f.Action != Deny {
			t.Errorf("finding %d: %+v", i, f)
		}
	}
}

func TestScopes(t *testing.T) {
	c := withIdentity(t)
	deny := func(name string) *Policy { return &Policy{Namespace: "n", Name: name, Action: Deny, Rules: []Rule{{}}} }
	named := func(policies ...*Policy) (p Policies) {
		for _, one := range policies {
			p.Name(one)
		}
		return p
	}
	six := []*Policy{{Name: "a"}, {Name: "b"}, {Name: "c"}, {Name: "d"}, {Name: "e"}, deny("z")}
	for _, tc := range []struct {
		name     string
		policies Policies
		want     string
	}{
		{"global first", Policies{Global: NewSet(deny("g")), Namespace: NewSet(deny("a"))}, "n/g"},
		{"namespace", Policies{Namespace: NewSet(deny("a"))}, "n/a"},
		{"named", named(deny("x"), deny("a")), "n/x"},
		{"many named", named(six...), "n/z"},
		{"named and not readable", named(&Policy{Namespace: "n", Name: "bad", Action: Deny, Invalid: "broken"}), "n/bad"},
		{"namespace not readable", Policies{Namespace: NewSet(&Policy{Namespace: "n", Name: "bad", Action: Deny, Invalid: "broken"})}, "n/bad"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if v := Evaluate(tc.policies, c); v.Allowed || v.Policy != tc.want {
				t.Errorf("allowed %v by %q, want a refusal by %q", v.Allowed, v.Policy, tc.want)
			}
		})
	}
}

func TestSame(t *testing.T) {
	a, b := &Policy{Name: "a"}, &Policy{Name: "a"}
	set := NewSet(a)
	with := func(set *Set, policies ...*Policy) (p Policies) {
		p.Namespace = set
		for _, one := range policies {
			p.Name(one)
		}
		return p
	}
	for _, tc := range []struct {
		name string
		a, b Policies
		want bool
	}{
		{"none", Policies{}, Policies{}, true},
		{"equal", with(set, a), with(set, a), true},
		{"sent again", with(set, a), with(set, b), false},
		{"one more", with(set), with(set, a), false},
		{"fifth differs", with(nil, a, a, a, a, a), with(nil, a, a, a, a, b), false},
		{"another set", with(set), with(NewSet(a)), false},
	} {
		if got := tc.a.Same(&tc.b); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestClosest(t *testing.T) {
	allow := func(name string, rules ...Rule) *Policy { return &Policy{Namespace: "n", Name: name, Rules: rules} }
	p := Policies{
		Global: NewSet(
			allow("port", Rule{{Match{Namespaces: exact("web")}}, {Match{DestinationPorts: []uint16{81}}}}),
			allow("both", Rule{{Match{Namespaces: exact("db"), DestinationPorts: []uint16{81}}}}),
			allow("second", Rule{{Match{Namespaces: exact("db"), DestinationPorts: []uint16{81}}}}, Rule{{Match{NotPrincipals: []StringMatch{{Kind: Presence}}}}}),
			&Policy{Namespace: "n", Name: "dry", DryRun: true, Rules: one(Match{DestinationPorts: []uint16{81}})},
		),
		Namespace: NewSet(allow("nothing"), allow("three", Rule{{Match{Namespaces: exact("db"), DestinationPorts: []uint16{81}, SourceIPs: []netip.Prefix{netip.MustParsePrefix("fd00::/8")}}}})),
	}
	v := Evaluate(p, withIdentity(t))
	want := "no ALLOW policy matched; closest: n/port rule 0 (destinationPorts), n/second rule 1 (notPrincipals), n/both rule 0 (namespaces destinationPorts)"
	if v.Reason != want {
		t.Errorf("got  %s\nwant %s", v.Reason, want)
	}
}

func TestAllowedCostsNoMemory(t *testing.T) {
	for _, n := range []int{1, 1000} {
		var policies []*Policy
		for i := range n {
			id := fmt.Sprint("td/ns/x/sa/", i)
			policies = append(policies, &Policy{Namespace: "n", Name: "deny-" + id, Action: Deny, Rules: one(Match{Principals: exact(id)}), key: "n/deny" + id},
				&Policy{Namespace: "n", Name: "allow-" + id, Rules: one(Match{Principals: exact("td/ns/web/sa/front")}), key: "n/allow" + id})
		}
		p := Policies{Global: NewSet(policies...), Namespace: NewSet(policies[:1]...)}
		p.Name(policies[1])
		c := withIdentity(t)
		if got := testing.AllocsPerRun(100, func() {
			if v := Evaluate(p, c); !v.Allowed {
				t.Error(v.Reason)
			}
		}); got != 0 {
			t.Errorf("%d policies: %v allocations", n, got)
		}
	}
}

// BenchmarkEvaluate is one evaluation where many policies apply, none of which
// matches: 10,000 global DENY policies of ten rules; then with one that cannot
// be found by what it names; then with as many changes as are kept beside the
// index. go test -bench Evaluate ./ztunnel/rbac
func BenchmarkEvaluate(b *testing.B) {
	deny := func(name string) *Policy {
		p := &Policy{Namespace: "n", Name: name, Action: Deny, key: "n/" + name}
		for j := range 10 {
			p.Rules = append(p.Rules, Rule{{Match{Principals: exact(fmt.Sprintf("td/ns/x/sa/%s-%d", name, j))}}})
		}
		return p
	}
	var policies []*Policy
	for i := range 10_000 {
		policies = append(policies, deny(fmt.Sprint(i)))
	}
	indexed := NewSet(policies...)
	unfound := indexed.Edit(nil, []*Policy{{Namespace: "n", Name: "m", Action: Deny, key: "n/m", Rules: one(Match{NotPrincipals: []StringMatch{{Kind: Presence}}})}})
	changed := indexed
	for i := range spare(10_000) / 2 {
		changed = changed.Edit(policies[i:i+1], []*Policy{deny(fmt.Sprint(i))})
	}
	c := withIdentity(b)
	for _, bm := range []struct {
		name string
		set  *Set
	}{{"10000", indexed}, {"10000-unfound", unfound}, {"10000-changed", changed}} {
		b.Run(bm.name, func(b *testing.B) {
			p := Policies{Global: bm.set}
			b.ReportAllocs()
			for b.Loop() {
				if !Evaluate(p, c).Allowed {
					b.Fatal("refused")
				}
			}
		})
	}
}

// BenchmarkEdit is the change of one of 10,000 policies.
func BenchmarkEdit(b *testing.B) {
	var policies []*Policy
	for i := range 10_000 {
		name := fmt.Sprint(i)
		policies = append(policies, &Policy{Namespace: "n", Name: name, Action: Deny, key: "n/" + name, Rules: one(Match{Principals: exact(name)})})
	}
	set := NewSet(policies...)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		old := policies[i%len(policies)]
		p := *old
		policies[i%len(policies)] = &p
		set = set.Edit([]*Policy{old}, []*Policy{&p})
	}
}
