package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/ambit-mesh/ambit/ztunnel/rbac"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
)

// ruling is what a connection was allowed by.
type ruling struct{ policies rbac.Policies }

// authorize judges a connection to the pod by the policies of now. While a
// policy that the pod's workload names is missing, only a DENY counts; the
// connection is held for the rest, then refused.
func (p *Proxy) authorize(ctx context.Context, from client, c rbac.Conn) (ruling, error) {
	r, missing, err := p.judge(ctx, p.cfg.Store.Snapshot(), c)
	if err != nil || len(missing) == 0 {
		return r, err
	}
	waited := p.held.during(ctx, from, p.held.Policy, func(ctx context.Context) error {
		return p.cfg.Store.Await(ctx, func(s *workload.Snapshot) bool {
			r, missing, err = p.judge(ctx, s, c)
			return err != nil || len(missing) == 0
		})
	})
	var refused *telemetry.Refusal
	switch {
	case errors.As(waited, &refused):
		return r, refused
	case waited != nil:
		return r, &telemetry.Refusal{
			Reason: telemetry.PolicyMissing, Err: fmt.Errorf("policy %s has not arrived", strings.Join(missing, ", ")),
			Policy: &telemetry.PolicyRef{Missing: missing},
		}
	}
	return r, err
}

// judge evaluates once. The error is a refusal that stands whatever is missing.
func (p *Proxy) judge(ctx context.Context, s *workload.Snapshot, c rbac.Conn) (ruling, []string, error) {
	w := p.workload(s)
	if w == nil {
		return ruling{}, nil, &telemetry.Refusal{Reason: telemetry.UnknownSource, Err: errors.New("the pod's workload is gone")}
	}
	policies, missing := s.PoliciesFor(w)
	v := rbac.Evaluate(policies, c)
	p.logVerdict(ctx, &v, c)
	if !v.Allowed && (len(missing) == 0 || v.Policy != "") {
		return ruling{}, missing, denial(&v)
	}
	return ruling{policies}, missing, nil
}

// denial is the refusal of a verdict.
func denial(v *rbac.Verdict) *telemetry.Refusal {
	reason := telemetry.PolicyDenied
	if v.Invalid {
		reason = telemetry.PolicyInvalid
	}
	ref := &telemetry.PolicyRef{Policy: v.Policy, Rule: v.Rule}
	for _, n := range v.Closest {
		ref.Closest = append(ref.Closest, telemetry.NearPolicy(n))
	}
	return &telemetry.Refusal{Reason: reason, Err: errors.New(v.Reason), Policy: ref}
}

// logVerdict tells what policies decide, and what those would that are not
// enforced.
func (p *Proxy) logVerdict(ctx context.Context, v *rbac.Verdict, c rbac.Conn) {
	level := slog.LevelDebug
	if p.cfg.PolicyInfo {
		level = slog.LevelInfo
	}
	if !p.log.Enabled(ctx, level) {
		return
	}
	for _, f := range v.DryRun {
		p.log.Log(ctx, level, "dry-run policy would decide", telemetry.KeyPolicy, f.Policy, "rule", f.Rule, "action", f.Action.String(),
			"source", c.Source.String(), telemetry.KeyIdentity, c.Identity.String())
	}
	p.log.Log(ctx, level, "policy decision", "allowed", v.Allowed, "why", v.String(),
		"source", c.Source.String(), "destination", c.Destination.String(), telemetry.KeyIdentity, c.Identity.String())
}

// enter registers an allowed connection, and reviews it once if what allowed it
// has changed since: a change after this finds it in the table.
func (p *Proxy) enter(c *connection, judged ruling) (leave func()) {
	p.table.add(c)
	s := p.cfg.Store.Snapshot()
	if policies, complete := p.policies(s); complete && !policies.Same(&judged.policies) {
		p.review(s, c)
	}
	return func() { p.table.drop(c) }
}

// policies returns what connections to the pod are judged by, and whether that
// is complete: its workload known and every policy that it names here.
func (p *Proxy) policies(s *workload.Snapshot) (rbac.Policies, bool) {
	w := p.workload(s)
	if w == nil {
		return rbac.Policies{}, false
	}
	policies, missing := s.PoliciesFor(w)
	return policies, len(missing) == 0
}

// watchPolicies closes live connections that the policies of now refuse. While
// they are not complete the last verdict stands.
func (p *Proxy) watchPolicies() {
	var last rbac.Policies
	for {
		changed := p.cfg.Store.Changed()
		s := p.cfg.Store.Snapshot()
		if policies, complete := p.policies(s); complete && !policies.Same(&last) {
			last = policies
			p.table.each(func(c *connection) { p.review(s, c) })
		}
		select {
		case <-changed:
		case <-p.life.Done():
			return
		}
	}
}

// review closes a connection that a complete policy set denies.
func (p *Proxy) review(s *workload.Snapshot, c *connection) {
	if !c.judged {
		return
	}
	_, missing, err := p.judge(p.life, s, c.rbac)
	var refused *telemetry.Refusal
	if len(missing) == 0 && errors.As(err, &refused) && refused.Reason == telemetry.PolicyDenied {
		c.close(&telemetry.Refusal{Reason: telemetry.PolicyChanged, Err: refused.Err, Policy: refused.Policy})
	}
}

// MissingPolicies returns the policies that the pod's workload names and that
// have not arrived: until they do, new connections to the pod are refused.
func (p *Proxy) MissingPolicies() []string {
	s := p.cfg.Store.Snapshot()
	w := p.workload(s)
	if w == nil {
		return nil
	}
	_, missing := s.PoliciesFor(w)
	return missing
}

// Refusals returns the last connections that were refused or have failed.
func (p *Proxy) Refusals() []telemetry.Refused { return p.refusals.List() }
