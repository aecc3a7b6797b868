// Package rbac answers one question: may this connection pass? It owns the L4
// authorization policies in the form in which they are evaluated, and their
// reading from the wire (istio.security.Authorization). Which policies apply to
// a destination is decided by package workload, what becomes of a refused
// connection by package proxy.
//
// Everything here is a pure function over immutable values and safe for
// concurrent use. Rules: spec/ztunnel.md §6.
package rbac

import (
	"net/netip"

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
	// Reason says in words what decided, for the access log.
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

const noAllow = "no ALLOW policy applies"

// Evaluate decides in the order of spec/ztunnel.md §6.2: a matching DENY policy
// refuses, no ALLOW policy at all allows, a matching ALLOW policy allows,
// anything else is refused. A policy that could not be read refuses after the
// DENY policies, whose verdict is certain.
func Evaluate(policies []*Policy, conn Conn) Verdict {
	var v Verdict
	if len(policies) == 0 {
		return Verdict{Allowed: true, Reason: noAllow}
	}
	c := newSubject(conn)
	v.DryRun = wouldDeny(v.DryRun, policies, c)
	for _, p := range policies {
		if p.Action != Deny || p.DryRun {
			continue
		}
		if rule, ok := p.match(c); ok {
			v.Policy, v.Rule, v.Reason = p.Key(), rule, "denied by DENY policy "+p.Key()+", rule "+itoa(rule)
			return v
		}
	}
	for _, p := range policies {
		if p.Invalid != "" && !p.DryRun {
			v.Policy, v.Invalid, v.Reason = p.Key(), true, "policy "+p.Key()+" is not valid: "+p.Invalid
			return v
		}
	}
	allows := 0
	for _, p := range policies {
		if p.Action != Allow || p.DryRun {
			continue
		}
		allows++
		if rule, ok := p.match(c); ok {
			v.Allowed, v.Policy, v.Rule = true, p.Key(), rule
			v.Reason = "allowed by ALLOW policy " + p.Key() + ", rule " + itoa(rule)
			return v
		}
	}
	if allows > 0 {
		v.Reason = "no ALLOW policy matched"
		return v
	}
	v.DryRun = wouldNotAllow(v.DryRun, policies, c)
	v.Allowed, v.Reason = true, noAllow
	return v
}

// wouldDeny appends the dry-run DENY policies that match.
func wouldDeny(found []Finding, policies []*Policy, c *subject) []Finding {
	for _, p := range policies {
		if p.Action != Deny || !p.DryRun {
			continue
		}
		if rule, ok := p.match(c); ok {
			found = append(found, Finding{Policy: p.Key(), Rule: rule, Action: Deny})
		}
	}
	return found
}

// wouldNotAllow appends a finding without a policy when there are dry-run ALLOW
// policies and none matches, else the one that does.
func wouldNotAllow(found []Finding, policies []*Policy, c *subject) []Finding {
	seen := false
	for _, p := range policies {
		if p.Action != Allow || !p.DryRun {
			continue
		}
		seen = true
		if rule, ok := p.match(c); ok {
			return append(found, Finding{Policy: p.Key(), Rule: rule, Action: Allow})
		}
	}
	if seen {
		found = append(found, Finding{Action: Deny})
	}
	return found
}
