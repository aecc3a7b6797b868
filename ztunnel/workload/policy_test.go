package workload_test

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/ambit-mesh/ambit/apis/security"
	"github.com/ambit-mesh/ambit/apis/spiffe"
	api "github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/ztunnel/rbac"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
	"github.com/ambit-mesh/ambit/ztunnel/workload/workloadtest"
)

// policy is an authorization policy for accounts of namespace web.
func policy(namespace, name string, scope security.Scope, action security.Action, accounts ...string) *security.Authorization {
	m := &security.Match{}
	for _, a := range accounts {
		m.ServiceAccounts = append(m.ServiceAccounts, &security.ServiceAccountMatch{Namespace: "web", ServiceAccount: a})
	}
	return &security.Authorization{Namespace: namespace, Name: name, Scope: scope, Action: action, Rules: []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{m}}}}}}
}

// judge is what a proxy does with a connection: with a policy missing, only a
// DENY counts. complete is false when the connection must wait.
func judge(s *workload.Snapshot, c rbac.Conn) (allowed, complete bool, policies rbac.Policies) {
	policies, missing := s.PoliciesFor(s.WorkloadByInfo("a", "ns", "sa"))
	v := rbac.Evaluate(policies, c)
	return v.Allowed, len(missing) == 0 || (!v.Allowed && v.Policy != ""), policies
}

// configuration is one state of what istiod wants.
type configuration struct {
	policy *security.Authorization // nil: none
	denies map[string]bool         // accounts, of those that the namespace allows
}

// TestSelectorPolicyUnderLoad creates, changes and deletes a policy that a
// workload names a thousand times, the workload's message first or the policy's,
// while connections are opened. Each verdict must be that of a state between the
// one before the connection came and the one after it was judged; no live
// connection may be closed that every state allows.
func TestSelectorPolicyUnderLoad(t *testing.T) {
	const cycles = 1000
	selector := func(accounts ...string) configuration {
		c := configuration{policy: policy("ns", "p", security.Scope_WORKLOAD_SELECTOR, security.Action_DENY, accounts...), denies: map[string]bool{}}
		for _, a := range accounts {
			c.denies[a] = true
		}
		return c
	}
	cycle := []configuration{{}, selector("evil"), selector("evil", "x"), selector("evil")}
	at := func(step int64) configuration { return cycle[step%int64(len(cycle))] }

	store := workload.NewStore("", "")
	workloadtest.Apply(t, store, pod("a", "10.0.0.1"), policy("ns", "base", security.Scope_NAMESPACE, security.Action_ALLOW, "good", "evil", "x"))
	// The step whose messages have all been applied, and the one under way.
	var stable, next atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var load sync.WaitGroup
	var judged, held atomic.Int64
	client := func(account string) rbac.Conn {
		id, err := spiffe.New("cluster.local", "web", account)
		if err != nil {
			t.Fatal(err)
		}
		return rbac.Conn{Source: netip.MustParseAddr("10.0.0.9"), Destination: netip.MustParseAddrPort("10.0.0.1:80"), Identity: id}
	}
	open := func(account string, c rbac.Conn) {
		from := stable.Load()
		var allowed bool
		err := store.Await(ctx, func(s *workload.Snapshot) bool {
			var complete bool
			if allowed, complete, _ = judge(s, c); !complete {
				held.Add(1)
			}
			return complete
		})
		if err != nil {
			return // the test is over
		}
		judged.Add(1)
		for step := from; step <= next.Load(); step++ {
			if allowed == (account != "stranger" && !at(step).denies[account]) {
				return
			}
		}
		t.Errorf("%s: allowed %v, by no state from %d to %d", account, allowed, from, next.Load())
	}
	for _, account := range []string{"good", "evil", "x", "stranger"} {
		c := client(account)
		load.Go(func() {
			for ctx.Err() == nil {
				open(account, c)
			}
		})
	}
	// A live connection is judged again when what it was judged by has changed.
	load.Go(func() {
		c := client("good")
		var last rbac.Policies
		for {
			changed := store.Changed()
			if s := store.Snapshot(); true {
				allowed, complete, policies := judge(s, c)
				if !policies.Same(&last) && complete && !allowed {
					t.Error("a live connection is closed")
				}
				last = policies
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	})
	for step := int64(1); step < cycles*int64(len(cycle)); step++ {
		next.Store(step)
		to := at(step)
		address := func() {
			workloadtest.Apply(t, store, pod("a", "10.0.0.1", func(w *api.Workload) {
				if to.policy != nil {
					w.AuthorizationPolicies = []string{"ns/p"}
				}
			}))
		}
		authorization := func() {
			if to.policy == nil {
				store.ApplyAuthorizations(nil, []string{"ns/p"})
			} else {
				workloadtest.Apply(t, store, to.policy)
			}
		}
		if step/int64(len(cycle))%2 == 0 {
			address()
			authorization()
		} else {
			authorization()
			address()
		}
		stable.Store(step)
		for account := range map[string]bool{"good": true, "evil": true, "x": true} {
			if allowed, complete, _ := judge(store.Snapshot(), client(account)); !complete || allowed == to.denies[account] {
				t.Fatalf("step %d: %s: allowed %v, complete %v", step, account, allowed, complete)
			}
		}
	}
	stop()
	load.Wait()
	if judged.Load() == 0 {
		t.Error("no connection was judged meanwhile")
	}
	t.Logf("%d connections judged, %d times one was held", judged.Load(), held.Load())
}

// TestPoliciesSayWhetherTheyChanged: what a live connection was judged by is the
// same until something that applies to its workload changes.
func TestPoliciesSayWhetherTheyChanged(t *testing.T) {
	named := func(names ...string) *api.Workload {
		return pod("a", "10.0.0.1", func(w *api.Workload) { w.AuthorizationPolicies = names })
	}
	deny := func(ns, name string, scope security.Scope) *security.Authorization {
		return policy(ns, name, scope, security.Action_DENY, "evil")
	}
	store := workload.NewStore("", "")
	workloadtest.Apply(t, store, named("ns/p"), deny("ns", "p", security.Scope_WORKLOAD_SELECTOR), deny("ns", "q", security.Scope_WORKLOAD_SELECTOR))
	for _, step := range []struct {
		name   string
		change func()
		same   bool
	}{
		{"the workload is sent again", func() { workloadtest.Apply(t, store, named("ns/p")) }, true},
		{"another workload comes", func() { workloadtest.Apply(t, store, pod("b", "10.0.0.2")) }, true},
		{"a policy of another namespace comes", func() { workloadtest.Apply(t, store, deny("other", "p", security.Scope_NAMESPACE)) }, true},
		{"a policy that others name comes", func() { workloadtest.Apply(t, store, deny("ns", "r", security.Scope_WORKLOAD_SELECTOR)) }, true},
		{"the workload's list changes", func() { workloadtest.Apply(t, store, named("ns/p", "ns/q")) }, false},
		{"the workload's list shrinks", func() { workloadtest.Apply(t, store, named("ns/q")) }, false},
		{"a named policy changes", func() { workloadtest.Apply(t, store, deny("ns", "q", security.Scope_WORKLOAD_SELECTOR)) }, false},
		{"a named policy goes", func() { store.ApplyAuthorizations(nil, []string{"ns/q"}) }, false},
		{"a policy of the namespace comes", func() { workloadtest.Apply(t, store, deny("ns", "here", security.Scope_NAMESPACE)) }, false},
		{"a global policy comes", func() { workloadtest.Apply(t, store, deny("root", "all", security.Scope_GLOBAL)) }, false},
		{"a global policy goes", func() { store.ApplyAuthorizations(nil, []string{"root/all"}) }, false},
		{"something unknown goes", func() { store.ApplyAuthorizations(nil, []string{"root/all"}) }, true},
	} {
		before := store.Snapshot()
		was, _ := before.PoliciesFor(before.WorkloadByInfo("a", "ns", "sa"))
		step.change()
		after := store.Snapshot()
		is, _ := after.PoliciesFor(after.WorkloadByInfo("a", "ns", "sa"))
		if got := is.Same(&was); got != step.same {
			t.Errorf("%s: same %v, want %v", step.name, got, step.same)
		}
	}
}

// TestOnePolicyTwiceInOneResponse: the last one counts.
func TestOnePolicyTwiceInOneResponse(t *testing.T) {
	store := workload.NewStore("", "")
	for i, account := range []string{"x", "evil"} {
		workloadtest.Apply(t, store, pod("a", "10.0.0.1"), policy("ns", "p", security.Scope_NAMESPACE, security.Action_DENY, "nobody"),
			policy("ns", "p", security.Scope_GLOBAL, security.Action_DENY, "nobody"), policy("ns", "p", security.Scope_NAMESPACE, security.Action_DENY, account))
		policies, _ := store.Snapshot().PoliciesFor(store.Snapshot().WorkloadByInfo("a", "ns", "sa"))
		var got []string
		for p := range policies.All {
			got = append(got, fmt.Sprint(p.Key(), p.Rules[0][0][0].ServiceAccounts))
		}
		if want := fmt.Sprintf("[ns/p[{web %s}]]", account); fmt.Sprint(got) != want {
			t.Errorf("round %d: %v, want %s", i, got, want)
		}
	}
}
