package proxy

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/ambit-mesh/ambit/apis/security"
	api "github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
)

// TestSelectorPolicyChurn: a policy of shop's own list is created, changed and
// removed a thousand times while connections are opened, the policy arriving
// before the list that names it and after it, by turns. It always refuses other
// and never web: no connection of web fails, live ones included, and from the
// moment at which the policy is whole none of other passes.
func TestSelectorPolicyChurn(t *testing.T) {
	w := newWorld(t)
	silent := func(c *Config) { c.Access = func(*telemetry.AccessLine) {} }
	web, shop, other := w.pod("web", silent), w.pod("shop", silent), w.pod("other", silent)
	w.apply(web.message(), shop.message(), other.message())
	shop.serve(8080, echo)
	live, livePlain := web.dial(shop.addr(8080)), web.plain(shop, 8080)
	ping(t, live)
	ping(t, livePlain)

	var load sync.WaitGroup
	var epoch atomic.Int64 // odd while the policy is whole
	stop := make(chan struct{})
	var passed, refused atomic.Int64
	problems := make(chan error, 16)
	run := func(open func() *net.TCPConn, check func(sure bool, err error) error) {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				before := epoch.Load()
				c := open()
				err := tryPing(c)
				_ = c.Close()
				if err := check(before%2 == 1 && epoch.Load() == before, err); err != nil {
					problems <- err
					return
				}
			}
		})
	}
	allowed := func(_ bool, err error) error {
		if err != nil {
			return fmt.Errorf("wrongly failed: %w", err)
		}
		passed.Add(1)
		return nil
	}
	forbidden := func(sure bool, err error) error {
		if err != nil {
			refused.Add(1)
		} else if sure {
			return errors.New("wrongly allowed")
		}
		return nil
	}
	run(func() *net.TCPConn { return web.dial(shop.addr(8080)) }, allowed)
	run(func() *net.TCPConn { return web.plain(shop, 8080) }, allowed)
	run(func() *net.TCPConn { return other.dial(shop.addr(8080)) }, forbidden)

	const name = "shop/sel"
	named := shop.message(func(m *api.Workload) { m.AuthorizationPolicies = []string{name} })
	bare := shop.message()
	deny := func(more ...string) *security.Authorization {
		m := principal("cluster.local/ns/other/sa/other")
		for _, id := range more {
			m.Principals = append(m.Principals, principal(id).Principals...)
		}
		return policy("sel", security.Action_DENY, security.Scope_WORKLOAD_SELECTOR, m)
	}
	remove := func() {
		if rejected := w.store.ApplyAuthorizations([]*discoveryv3.Resource{}, []string{name}); len(rejected) > 0 {
			t.Errorf("remove: %v", rejected)
		}
	}
	probe := func(round int) {
		c := other.dial(shop.addr(8080))
		if err := tryPing(c); err == nil {
			t.Errorf("round %d: wrongly allowed", round)
		}
		_ = c.Close()
	}
	for round := range 1000 {
		policyFirst := round%2 == 0
		if policyFirst {
			w.apply(deny())
			w.apply(named)
		} else {
			w.apply(named)
			w.apply(deny())
		}
		epoch.Add(1)
		if round%10 == 0 {
			probe(round)
		}
		w.apply(deny("cluster.local/ns/nobody/sa/nobody"))
		if round%10 == 1 {
			probe(round)
		}
		epoch.Add(1)
		if policyFirst {
			w.apply(bare)
			remove()
		} else {
			remove()
			w.apply(bare)
		}
		select {
		case err := <-problems:
			t.Fatalf("round %d: %v", round, err)
		default:
		}
	}
	close(stop)
	load.Wait()
	select {
	case err := <-problems:
		t.Error(err)
	default:
	}
	for _, c := range []net.Conn{live, livePlain} {
		_ = c.SetDeadline(time.Now().Add(patience)) // the one of its beginning has passed
		ping(t, c)
	}
	t.Logf("%d connections passed, %d of the other were refused", passed.Load(), refused.Load())
	if passed.Load() == 0 || refused.Load() == 0 {
		t.Error("there was no load")
	}
	if n := len(shop.proxy.MissingPolicies()); n != 0 {
		t.Errorf("%d policies are missing", n)
	}
}

// TestDrainKeepsJudging: policies end connections of a proxy that is draining.
func TestDrainKeepsJudging(t *testing.T) {
	w, web, shop := pair(t)
	c := web.dial(shop.addr(8080))
	ping(t, c)
	drained := make(chan struct{})
	go func() { defer close(drained); shop.proxy.Drain() }()
	<-shop.proxy.draining.Done()
	ping(t, c)
	w.apply(policy("no-web", security.Action_DENY, security.Scope_NAMESPACE, principal("cluster.local/ns/web/sa/web")))
	wantClosed(t, c)
	l := shop.wantReason(telemetry.PolicyChanged)
	if ref := l.Err.(*telemetry.Refusal).Policy; ref == nil || ref.Policy != "shop/no-web" { //nolint:errorlint // it is one
		t.Errorf("policy of %v: %+v", l.Err, ref)
	}
	<-drained
}

// TestMissingPolicyIsTold: which policies are awaited, and the refusal in parts.
func TestMissingPolicyIsTold(t *testing.T) {
	w := newWorld(t)
	w.hold = Hold{Policy: 1}
	web, shop := w.pod("web"), w.pod("shop")
	w.apply(web.message(), shop.message(func(m *api.Workload) { m.AuthorizationPolicies = []string{"shop/late"} }))
	if got := shop.proxy.MissingPolicies(); len(got) != 1 || got[0] != "shop/late" {
		t.Errorf("missing %v", got)
	}
	wantClosed(t, web.dial(shop.addr(8080)))
	shop.wantReason(telemetry.PolicyMissing)
	w.apply(policy("late", security.Action_ALLOW, security.Scope_WORKLOAD_SELECTOR, principal("cluster.local/ns/admin/sa/admin")))
	wantClosed(t, web.dial(shop.addr(8080)))
	shop.wantReason(telemetry.PolicyDenied)
	refusals := shop.proxy.Refusals()
	if len(refusals) != 2 {
		t.Fatalf("%d refusals: %+v", len(refusals), refusals)
	}
	if p := refusals[0].Policy; refusals[0].Reason != "policy-missing" || p == nil || len(p.Missing) != 1 {
		t.Errorf("%+v", refusals[0])
	}
	if p := refusals[1].Policy; p == nil || len(p.Closest) != 1 || p.Closest[0].Policy != "shop/late" || p.Closest[0].Unmet == "" {
		t.Errorf("%+v", refusals[1])
	}
}
