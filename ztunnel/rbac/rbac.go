// Package rbac answers one question: may this connection pass? It owns the L4
// authorization policies in the form in which they are evaluated, their reading
// from the wire (istio.security.Authorization) and the index that finds those
// which can match a connection. Which policies apply to a destination is
// decided by package workload, what becomes of a refused connection by package
// proxy.
//
// Everything here is a pure function over immutable values and safe for
// concurrent use. Rules: spec/ztunnel.md §6.
package rbac

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/apis/spiffe"
)

// Conn is what a policy can see of a connection.
type Conn struct {
	Source      netip.Addr     // the TCP peer, never what a header claims
	Destination netip.AddrPort // the pod's address and the final port
	Identity    spiffe.ID      // of the verified TLS peer; zero for plaintext
}

// Verdict is the outcome of an evaluation and what decided it.
type Verdict struct {
	Allowed bool
	// Policy is the "namespace/name" of the policy that decided, empty when none
	// did: nothing applied, or no ALLOW policy matched.
	Policy string
	// Rule is the index of the rule of Policy that matched.
	Rule int
	// Invalid is set when Policy refuses because it could not be read.
	Invalid bool
	// Closest lists the ALLOW policies that came closest when none matched.
	Closest []Near
	// Reason says in words why a connection is refused, for the access log. It is
	// empty for one that is allowed, which is to cost no memory; see String.
	Reason string
	// DryRun lists what policies that are not enforced would have decided.
	DryRun []Finding
}

// Finding is what a dry-run policy would have done.
type Finding struct {
	Policy string // empty: no dry-run ALLOW policy matched
	Rule   int
	Action Action
}

// Near is an ALLOW policy that did not match and what of a connection would have
// to be different.
type Near struct {
	Policy string
	Rule   int    // the one that came closest; -1 without rules
	Unmet  string // the attributes that did not fit, as in the config dump
}

// String says in words what decided.
func (v *Verdict) String() string {
	switch {
	case !v.Allowed:
		return v.Reason
	case v.Policy == "":
		return "no ALLOW policy applies"
	}
	return "allowed by ALLOW policy " + v.Policy + ", rule " + strconv.Itoa(v.Rule)
}

// principalRoom is what a principal takes at most on the stack: 253 bytes of
// trust domain are allowed, 63 of namespace are usual.
const principalRoom = 160

// Evaluate decides in the order of spec/ztunnel.md §6.2:
//
//  1. dry-run DENY policies that match are noted;
//  2. a matching DENY policy refuses;
//  3. a policy that could not be read refuses: what it would have refused is not
//     known. It comes after the DENY policies, whose verdict is certain;
//  4. dry-run ALLOW policies that match are noted; where no ALLOW policy is
//     enforced and none of them matches, that the connection would be refused;
//  5. no ALLOW policy at all allows, a matching one allows, anything else is
//     refused.
//
// Of several policies that match, the one that decides is the first by scope
// (global, namespace, named), then by name.
func Evaluate(policies Policies, conn Conn) Verdict {
	var v Verdict
	if policies.Empty() {
		v.Allowed = true
		return v
	}
	var buffer [principalRoom]byte
	c := newSubject(conn, buffer[:])
	v.DryRun = policies.all(kind{Deny, true}, &c, nil)
	if p, rule := policies.first(kind{Deny, false}, &c); p != nil {
		v.Policy, v.Rule = p.Key(), rule
		v.Reason = "denied by DENY policy " + v.Policy + ", rule " + strconv.Itoa(rule)
		return v
	}
	if p := policies.unreadable(); p != nil {
		v.Policy, v.Invalid, v.Reason = p.Key(), true, "policy "+p.Key()+" is not valid: "+p.Invalid
		return v
	}
	restricted := policies.count(kind{Allow, false}) > 0
	if policies.count(kind{Allow, true}) > 0 {
		noted := len(v.DryRun)
		v.DryRun = policies.all(kind{Allow, true}, &c, v.DryRun)
		if len(v.DryRun) == noted && !restricted {
			v.DryRun = append(v.DryRun, Finding{Action: Deny})
		}
	}
	if !restricted {
		v.Allowed = true
		return v
	}
	if p, rule := policies.first(kind{Allow, false}, &c); p != nil {
		v.Allowed, v.Policy, v.Rule = true, p.Key(), rule
		return v
	}
	v.Closest = policies.closest(&c)
	v.Reason = noAllowMatched(v.Closest)
	return v
}

func noAllowMatched(closest []Near) string {
	var b strings.Builder
	b.WriteString("no ALLOW policy matched")
	for i, n := range closest {
		if i == 0 {
			b.WriteString("; closest: ")
		} else {
			b.WriteString(", ")
		}
		b.WriteString(n.Policy)
		if n.Rule >= 0 {
			b.WriteString(" rule " + strconv.Itoa(n.Rule))
		}
		b.WriteString(" (" + n.Unmet + ")")
	}
	return b.String()
}
