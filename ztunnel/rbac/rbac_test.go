package rbac

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/ambit-mesh/ambit/apis/security"
	"github.com/ambit-mesh/ambit/apis/spiffe"
)

func identity(tb testing.TB, text string) spiffe.ID {
	tb.Helper()
	id, err := spiffe.Parse(text)
	if err != nil {
		tb.Fatal(err)
	}
	return id
}

func plaintext() Conn {
	return Conn{Source: netip.MustParseAddr("10.0.0.1"), Destination: netip.MustParseAddrPort("10.0.0.2:80")}
}

func withIdentity(tb testing.TB) Conn {
	tb.Helper()
	c := plaintext()
	c.Identity = identity(tb, "spiffe://td/ns/web/sa/front")
	return c
}

func exact(v string) []StringMatch { return []StringMatch{{Exact, v}} }

func one(m Match) []Rule { return []Rule{{{m}}} }

func TestMatchKinds(t *testing.T) {
	known, unknown := withIdentity(t), plaintext()
	cidr := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	for _, tc := range []struct {
		name           string
		match          Match
		known, unknown bool // does it match with identity, without
	}{
		{"namespace", Match{Namespaces: exact("web")}, true, false},
		{"namespace empty equals no identity", Match{Namespaces: exact("")}, false, true},
		{"other namespace", Match{Namespaces: exact("db")}, false, false},
		{"not namespace", Match{NotNamespaces: exact("web")}, false, true},
		{"principal", Match{Principals: exact("td/ns/web/sa/front")}, true, false},
		{"principal with scheme never", Match{Principals: exact("spiffe://td/ns/web/sa/front")}, false, false},
		{"principal suffix", Match{Principals: []StringMatch{{Suffix, "/sa/front"}}}, true, false},
		{"principal prefix", Match{Principals: []StringMatch{{Prefix, "td/"}}}, true, false},
		{"principal presence", Match{Principals: []StringMatch{{Kind: Presence}}}, true, false},
		{"strict", Match{NotPrincipals: []StringMatch{{Kind: Presence}}}, false, true},
		{"account", Match{ServiceAccounts: []ServiceAccount{{"web", "front"}}}, true, false},
		{"account of other namespace", Match{ServiceAccounts: []ServiceAccount{{"db", "front"}}}, false, false},
		{"not account", Match{NotServiceAccounts: []ServiceAccount{{"web", "front"}}}, false, true},
		{"source", Match{SourceIPs: cidr("10.0.0.0/24")}, true, true},
		{"not source", Match{NotSourceIPs: cidr("10.0.0.1/32")}, false, false},
		{"source v6", Match{SourceIPs: cidr("::/0")}, false, false},
		{"destination", Match{DestinationIPs: cidr("10.0.0.2/32")}, true, true},
		{"not destination", Match{NotDestinationIPs: cidr("10.0.0.2/32")}, false, false},
		{"port", Match{DestinationPorts: []uint16{1, 80}}, true, true},
		{"not port", Match{NotDestinationPorts: []uint16{80}}, false, false},
		{"two kinds, one misses", Match{Namespaces: exact("web"), DestinationPorts: []uint16{81}}, false, false},
		{"positive and negative", Match{SourceIPs: cidr("10.0.0.0/24"), NotSourceIPs: cidr("10.0.0.1/32")}, false, false},
		{"nothing named", Match{}, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := &Policy{Namespace: "n", Name: "p", Action: Deny, Rules: one(tc.match)}
			if got := !Evaluate(Of(p), known).Allowed; got != tc.known {
				t.Errorf("with identity: match = %v, want %v", got, tc.known)
			}
			if got := !Evaluate(Of(p), unknown).Allowed; got != tc.unknown {
				t.Errorf("without identity: match = %v, want %v", got, tc.unknown)
			}
		})
	}
}

func TestNesting(t *testing.T) {
	c := withIdentity(t)
	hit, miss := Match{DestinationPorts: []uint16{80}}, Match{DestinationPorts: []uint16{81}}
	for _, tc := range []struct {
		name  string
		rules []Rule
		rule  int // -1: no match
	}{
		{"no rules", nil, -1},
		{"rule without clauses", []Rule{{}}, 0},
		{"clause without matches", []Rule{{{}}}, 0},
		{"match without anything", []Rule{{{Match{}}}}, -1},
		{"or of matches", []Rule{{{miss, hit}}}, 0},
		{"and of clauses", []Rule{{{hit}, {miss}}}, -1},
		{"or of rules", []Rule{{{miss}}, {{miss}}, {{hit}}}, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			subject := newSubject(c, nil)
			got, ok := (&Policy{Rules: tc.rules}).match(&subject)
			if !ok {
				got = -1
			}
			if got != tc.rule {
				t.Errorf("rule %d, want %d", got, tc.rule)
			}
		})
	}
}

func TestOrder(t *testing.T) {
	c := withIdentity(t)
	policy := func(name string, a Action, dry, matches bool) *Policy {
		port := uint16(81)
		if matches {
			port = 80
		}
		return &Policy{Namespace: "n", Name: name, Action: a, DryRun: dry, Rules: one(Match{DestinationPorts: []uint16{port}})}
	}
	for _, tc := range []struct {
		name     string
		policies []*Policy
		want     Verdict
	}{
		{"none", nil, Verdict{Allowed: true, Reason: "no ALLOW policy applies"}},
		{
			"deny beats allow",
			[]*Policy{policy("a", Allow, false, true), policy("d", Deny, false, true)},
			Verdict{Policy: "n/d", Reason: "denied by DENY policy n/d, rule 0"},
		},
		{
			"deny misses, allow hits",
			[]*Policy{policy("d", Deny, false, false), policy("a", Allow, false, true)},
			Verdict{Allowed: true, Policy: "n/a", Reason: "allowed by ALLOW policy n/a, rule 0"},
		},
		{"deny misses", []*Policy{policy("d", Deny, false, false)}, Verdict{Allowed: true, Reason: "no ALLOW policy applies"}},
		{"allow misses", []*Policy{policy("a", Allow, false, false)}, Verdict{
			Reason: "no ALLOW policy matched; closest: n/a rule 0 (destinationPorts)", Closest: []Near{{"n/a", 0, "destinationPorts"}},
		}},
		{"allow without rules", []*Policy{{Namespace: "n", Name: "a"}}, Verdict{
			Reason: "no ALLOW policy matched; closest: n/a (no rules)", Closest: []Near{{"n/a", -1, "no rules"}},
		}},
		{
			"dry allow beside an enforced one",
			[]*Policy{policy("a", Allow, false, true), policy("b", Allow, true, true), policy("c", Allow, true, false)},
			Verdict{Allowed: true, Policy: "n/a", Reason: "allowed by ALLOW policy n/a, rule 0", DryRun: []Finding{{Policy: "n/b", Action: Allow}}},
		},
		{
			"dry allow misses beside an enforced one",
			[]*Policy{policy("a", Allow, false, true), policy("c", Allow, true, false)},
			Verdict{Allowed: true, Policy: "n/a", Reason: "allowed by ALLOW policy n/a, rule 0"},
		},
		{
			"dry deny beside a deny",
			[]*Policy{policy("d", Deny, false, true), policy("e", Deny, true, true), policy("f", Allow, true, false)},
			Verdict{Policy: "n/d", Reason: "denied by DENY policy n/d, rule 0", DryRun: []Finding{{Policy: "n/e", Action: Deny}}},
		},
		{
			"dry allow matches, none enforced",
			[]*Policy{policy("a", Allow, true, true)},
			Verdict{Allowed: true, Reason: "no ALLOW policy applies", DryRun: []Finding{{Policy: "n/a", Action: Allow}}},
		},
		{
			"the first by name decides",
			[]*Policy{policy("b", Deny, false, true), policy("a", Deny, false, true)},
			Verdict{Policy: "n/a", Reason: "denied by DENY policy n/a, rule 0"},
		},
		{
			"not readable",
			[]*Policy{{Namespace: "n", Name: "x", Action: Deny, Invalid: "broken"}, policy("a", Allow, false, true)},
			Verdict{Policy: "n/x", Invalid: true, Reason: "policy n/x is not valid: broken"},
		},
		{
			"not readable, dry-run",
			[]*Policy{{Namespace: "n", Name: "x", Action: Deny, Invalid: "broken", DryRun: true}, policy("a", Allow, false, true)},
			Verdict{Allowed: true, Policy: "n/a", Reason: "allowed by ALLOW policy n/a, rule 0"},
		},
		{
			"dry deny",
			[]*Policy{policy("d", Deny, true, true)},
			Verdict{Allowed: true, Reason: "no ALLOW policy applies", DryRun: []Finding{{Policy: "n/d", Action: Deny}}},
		},
		{
			"dry allow misses",
			[]*Policy{policy("a", Allow, true, false)},
			Verdict{Allowed: true, Reason: "no ALLOW policy applies", DryRun: []Finding{{Action: Deny}}},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := Evaluate(Of(tc.policies...), c)
			if v.Allowed && v.Reason != "" {
				t.Errorf("a reason for a connection that passes: %q", v.Reason)
			}
			v.Reason = v.String()
			got, _ := json.Marshal(v)
			want, _ := json.Marshal(tc.want)
			if string(got) != string(want) {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

func TestUnreadableEntriesErrToTheSafeSide(t *testing.T) {
	bad := []*security.Address{{Address: []byte{1, 2, 3}, Length: 8}}
	wild := []*security.StringMatch{{}}
	good := []*security.StringMatch{{MatchType: &security.StringMatch_Exact{Exact: "web"}}}
	for _, tc := range []struct {
		name  string
		match *security.Match
	}{
		{"address", &security.Match{SourceIps: bad}},
		{"prefix too long", &security.Match{DestinationIps: []*security.Address{{Address: []byte{10, 0, 0, 2}, Length: 33}}}},
		{"variant", &security.Match{Principals: wild}},
		{"negative address", &security.Match{NotSourceIps: bad}},
		{"negative beside positive", &security.Match{Namespaces: good, NotNamespaces: wild}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, action := range []security.Action{security.Action_ALLOW, security.Action_DENY} {
				p, err := Parse(&security.Authorization{
					Name: "p", Namespace: "n", Action: action,
					Rules: []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{tc.match}}}}},
				})
				if err != nil {
					t.Fatal(err)
				}
				if v := Evaluate(Of(p), withIdentity(t)); v.Allowed {
					t.Errorf("%v policy let the connection pass: %s", action, v.Reason)
				}
			}
		})
	}
	p, err := Parse(&security.Authorization{Name: "p", Action: security.Action_DENY, Rules: []*security.Rule{{Clauses: []*security.Clause{{
		Matches: []*security.Match{{Namespaces: []*security.StringMatch{{MatchType: &security.StringMatch_Exact{Exact: "db"}}}, NotNamespaces: wild}},
	}}}}})
	if err != nil {
		t.Fatal(err)
	}
	if v := Evaluate(Of(p), withIdentity(t)); !v.Allowed {
		t.Errorf("a readable positive list was skipped: %s", v.Reason)
	}
}

func TestParseRejects(t *testing.T) {
	for want, a := range map[string]*security.Authorization{
		"unknown action 7": {Name: "p", Action: 7},
		"unknown scope 9":  {Name: "p", Scope: 9},
		"has no name":      {},
	} {
		if _, err := Parse(a); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

func TestDump(t *testing.T) {
	p := &Policy{Namespace: "shop", Name: "only", Scope: ScopeNamespace, Rules: one(Match{
		Principals: exact("td/ns/web/sa/front"), NotPrincipals: []StringMatch{{Kind: Presence}},
		SourceIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, DestinationPorts: []uint16{80},
		ServiceAccounts: []ServiceAccount{{"a", "b"}},
	})}
	got, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"name":"only","namespace":"shop","scope":"Namespace","action":"Allow","rules":[[[{"principals":[{"Exact":"td/ns/web/sa/front"}],` +
		`"notPrincipals":[{"Presence":[]}],"serviceAccounts":[{"namespace":"a","serviceAccount":"b"}],"sourceIps":["10.0.0.0/8"],"destinationPorts":[80]}]]],"dryRun":false}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func FuzzUnmarshal(f *testing.F) {
	seed, _ := proto.Marshal(&security.Authorization{Name: "p", Namespace: "n", Rules: []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{{
		Principals:    []*security.StringMatch{{MatchType: &security.StringMatch_Presence{Presence: &emptypb.Empty{}}}},
		NotSourceIps:  []*security.Address{{Address: []byte{10, 0, 0, 1}, Length: 32}},
		NotNamespaces: []*security.StringMatch{{}},
	}}}}}}})
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Unmarshal(data)
		if err != nil {
			return
		}
		other := *p
		other.key, other.Name, other.Rules = "", p.Name+"2", append([]Rule{}, p.Rules...)
		slices.Reverse(other.Rules)
		for _, c := range []Conn{plaintext(), withIdentity(t)} {
			allowed, policy, rule := reference([]*Policy{p, &other}, c)
			v := Evaluate(Of(p, &other), c)
			if v.Allowed != allowed || v.Policy != policy || v.Rule != rule {
				t.Errorf("allowed %v by %q rule %d, want %v by %q rule %d", v.Allowed, v.Policy, v.Rule, allowed, policy, rule)
			}
			if v.Allowed == (v.Reason != "") {
				t.Errorf("allowed %v, reason %q", v.Allowed, v.Reason)
			}
		}
		if _, err := json.Marshal(p); err != nil {
			t.Fatal(err)
		}
	})
}
