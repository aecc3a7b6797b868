package scenario

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/apis/security"
	"github.com/ambit-mesh/ambit/integration/bed"
)

// policies: who may connect, and what becomes of who is connected.
var policies = []scenario{
	{"policy refuses", nil, policyRefuses},
	{"policies live", nil, policiesLive},
	{"policy of a workload", nil, workloadPolicy},
}

func principal(p *bed.Pod) []*security.Rule {
	name := strings.TrimPrefix(identity(p), "spiffe://")
	return []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{{
		Principals: []*security.StringMatch{{MatchType: &security.StringMatch_Exact{Exact: name}}},
	}}}}}}
}

func policyRefuses(w *world) {
	friend, stranger, plain, server := w.pod(0, "friend"), w.pod(0, "stranger"), w.plainPod(0, "plain"), w.pod(1, "server")
	w.serve(server, 8080)
	w.policies = append(w.policies, &security.Authorization{
		Name: "friends", Namespace: "shop", Scope: security.Scope_NAMESPACE, Action: security.Action_ALLOW, Rules: principal(friend),
	})
	w.tell()
	if got, err := w.ask(friend, at(server.Addr, 8080)); err != nil || got.pod != "server" {
		w.Errorf("friend: %v, %v", got, err)
	}
	for _, p := range []*bed.Pod{stranger, plain} {
		if got, err := w.ask(p, at(server.Addr, 8080)); err == nil {
			w.Errorf("%s is answered %v", p.Name, got)
		}
		l := w.awaitLine(1, "refusal of "+p.Name, func(l line) bool { return l.Direction == "inbound" && isFrom(l, p.Addr) && l.Error != "" })
		if !strings.Contains(l.Error, "shop/friends") {
			w.Errorf("%s: the reason %q does not name the policy that came closest", p.Name, l.Error)
		}
	}
	w.awaitLine(0, "401 at the client", func(l line) bool {
		return l.Direction == "outbound" && isFrom(l, stranger.Addr) && strings.Contains(l.Error, "401")
	})
	as, err := w.bed.Certificate("shop", "outside")
	w.must(err)
	if _, err := w.open(plain, as, at(server.Addr, 15008), at(server.Addr, 8080).String()); status(err) != 401 {
		w.Errorf("CONNECT of a stranger: %v, want status 401", err)
	}
}

// policiesLive: a policy that comes ends the connections that it forbids, and
// no others; when it goes, they may come again.
func policiesLive(w *world) {
	one, two, server := w.pod(0, "one"), w.pod(0, "two"), w.pod(1, "server")
	w.serve(server, 8080)
	w.tell()
	open := map[*bed.Pod]*client{}
	for _, p := range []*bed.Pod{one, two} {
		c, err := w.dial(p, at(server.Addr, 8080))
		w.must(err)
		_, err = c.ask()
		w.must(err)
		open[p] = c
	}
	w.policies = []*security.Authorization{{
		Name: "not-one", Namespace: "shop", Scope: security.Scope_NAMESPACE, Action: security.Action_DENY, Rules: principal(one),
	}}
	w.tell()
	if open[one].lines.Scan() { // returns when the connection has been closed
		w.Errorf("one hears %q", open[one].lines.Text())
	}
	l := w.awaitLine(1, "the connection that was ended", func(l line) bool { return isFrom(l, one.Addr) && l.Error != "" })
	if !strings.Contains(l.Error, "shop/not-one") {
		w.Errorf("reason %q", l.Error)
	}
	if _, err := open[two].ask(); err != nil {
		w.Errorf("two, which is not forbidden anything: %v", err)
	}
	w.policies = nil
	w.tell()
	if _, err := w.ask(one, at(server.Addr, 8080)); err != nil {
		w.Errorf("one, when the policy has gone: %v", err)
	}
}

// workloadPolicy: a policy that only a workload names, through its whole life,
// again and again: nobody is wrongly let in or shut out.
func workloadPolicy(w *world) {
	client, server, other := w.pod(0, "client"), w.pod(1, "server"), w.pod(1, "other")
	w.serve(server, 8080)
	w.serve(other, 8080)
	m := w.workload(server)
	for i := range 5 {
		name := fmt.Sprintf("deny-%d", i)
		w.policies = []*security.Authorization{{
			Name: name, Namespace: "shop", Scope: security.Scope_WORKLOAD_SELECTOR, Action: security.Action_DENY, Rules: principal(client),
		}}
		m.AuthorizationPolicies = []string{"shop/" + name}
		w.tell()
		if got, err := w.ask(client, at(server.Addr, 8080)); err == nil {
			w.Errorf("%s: answered %v", name, got)
		}
		if _, err := w.ask(client, at(other.Addr, 8080)); err != nil {
			w.Errorf("%s: a workload that does not name it: %v", name, err)
		}
		w.policies = slices.Clone(w.policies[:0])
		m.AuthorizationPolicies = nil
		w.tell()
		if _, err := w.ask(client, at(server.Addr, 8080)); err != nil {
			w.Errorf("after %s: %v", name, err)
		}
	}
}
