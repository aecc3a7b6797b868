//go:build cluster

package source

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
)

func policy(name, action string) string {
	return `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: ` + name + `, namespace: default}, spec: {action: ` + action + `}}`
}

func wantPolicies(w *watching, want ...string) func() error {
	return func() error {
		if got := names(w.objects); !slices.Equal(got, want) {
			return fmt.Errorf("policies %q, want %q", got, want)
		}
		return nil
	}
}

func (w *watching) wantState(kind, state string) func() error {
	return func() error {
		if got := w.state(kind); got.State != state {
			return fmt.Errorf("%s is %+v, want %s", kind, got, state)
		}
		return nil
	}
}

func TestClusterKindsComeAndGo(t *testing.T) {
	a := newAPI(t)
	w := a.watch(a.config)
	a.until("first load without any definition", func() error {
		if !w.isLoaded() {
			return errors.New("not loaded")
		}
		return nil
	})
	if got := w.state("AuthorizationPolicy"); got.State != StateAbsent {
		t.Fatalf("AuthorizationPolicy is %+v, want %s: this test needs an API server of its own", got, StateAbsent)
	}
	if _, ok := w.objects.Services.Get("default/kubernetes"); !ok {
		t.Error("service default/kubernetes is not there after the first load")
	}

	const plural, group = "authorizationpolicies", "security.istio.io"
	definition := a.apply(definitionText(plural, "AuthorizationPolicy", group, "v1"))
	a.until("the kind comes", w.wantState("AuthorizationPolicy", StateWatching))
	a.apply(policy("one", "DENY"))
	a.until("an object comes", wantPolicies(w, "one:DENY"))

	t.Run("a bad object keeps its last good version", func(t *testing.T) {
		a.apply(policy("one", "FORBID"))
		a.until("a report", func() error {
			if got := said(w, func(r Report) []Invalid { return r.Invalid }); len(got) != 1 || got[0].Key.Name != "one" || got[0].Generation != 2 || got[0].Field != "spec.action" {
				return fmt.Errorf("invalid %+v, want one of generation 2 at spec.action", got)
			}
			return nil
		})
		if err := wantPolicies(w, "one:DENY")(); err != nil {
			t.Error(err)
		}
		a.apply(policy("one", "AUDIT"))
		a.until("the mended object", wantPolicies(w, "one:AUDIT"))
		if got := said(w, func(r Report) []Invalid { return r.Invalid }); len(got) != 1 {
			t.Errorf("invalid: %+v, want nothing new", got)
		}
	})
	t.Run("an unknown field is a warning", func(t *testing.T) {
		o := a.apply(`{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: odd, namespace: default}, spec: {action: DENY, mood: bad}}`)
		a.until("a warning", func() error {
			if got := said(w, func(r Report) []Invalid { return r.Warnings }); len(got) != 1 || got[0].Field != "spec.mood" {
				return fmt.Errorf("warnings %+v, want one of spec.mood", got)
			}
			return nil
		})
		a.until("the object counts", wantPolicies(w, "odd:DENY", "one:AUDIT"))
		a.remove(o)
	})
	t.Run("a kind that is not read", func(t *testing.T) {
		a.apply(definitionText("telemetries", "Telemetry", "telemetry.istio.io", "v1"))
		a.apply(`{apiVersion: telemetry.istio.io/v1, kind: Telemetry, metadata: {name: some, namespace: default}}`)
		a.until("a report", func() error {
			if got := said(w, func(r Report) []Invalid { return r.Unread }); len(got) != 1 || got[0].Key.Kind != "Telemetry" {
				return fmt.Errorf("unread %+v, want the Telemetry", got)
			}
			return nil
		})
	})
	t.Run("the kind goes and comes back in an old version", func(t *testing.T) {
		a.until("the object counts", wantPolicies(w, "one:AUDIT"))
		a.remove(definition)
		a.until("the kind goes", w.wantState("AuthorizationPolicy", StateAbsent))
		a.until("its objects go", wantPolicies(w))
		a.apply(definitionText(plural, "AuthorizationPolicy", group, "v1beta1"))
		a.apply(strings.Replace(policy("two", "ALLOW"), "/v1,", "/v1beta1,", 1))
		a.until("an object of the old version", wantPolicies(w, "two:ALLOW"))
		if got := w.state("AuthorizationPolicy"); got.Version != "v1beta1" {
			t.Errorf("AuthorizationPolicy is %+v, want version v1beta1", got)
		}
	})
	t.Run("no version that is read", func(t *testing.T) {
		a.apply(definitionText("peerauthentications", "PeerAuthentication", group, "v9"))
		a.until("it is said", w.wantState("PeerAuthentication", StateFailing))
		fresh := a.watch(a.config)
		a.until("it is said", fresh.wantState("PeerAuthentication", StateFailing))
		a.until("everything else is read", fresh.wantState("AuthorizationPolicy", StateWatching))
		if fresh.isLoaded() {
			t.Error("the first load is done although policies cannot be read")
		}
	})
}

func TestClusterOutage(t *testing.T) {
	a := newAPI(t)
	a.apply(definitionText("authorizationpolicies", "AuthorizationPolicy", "security.istio.io", "v1"))
	gone := a.apply(policy("gone", "DENY"))
	a.apply(policy("stays", "DENY"))
	a.apply(policy("changes", "DENY"))

	config, line := a.through()
	w := a.watch(config)
	a.until("the API server is away", w.wantState("Service", StateFailing))
	if w.isLoaded() {
		t.Error("the first load is done without an API server")
	}
	line.mend()
	a.until("first load", wantPolicies(w, "changes:DENY", "gone:DENY", "stays:DENY"))

	line.cut()
	a.until("the API server is away", w.wantState("Service", StateFailing))
	a.remove(gone)
	a.apply(policy("new", "DENY"))
	a.apply(policy("changes", "ALLOW"))
	account := a.apply(`{apiVersion: v1, kind: ServiceAccount, metadata: {name: late, namespace: default}}`)
	if err := wantPolicies(w, "changes:DENY", "gone:DENY", "stays:DENY")(); err != nil {
		t.Errorf("what was known is kept: %v", err)
	}
	line.mend()
	a.until("what happened meanwhile", wantPolicies(w, "changes:ALLOW", "new:DENY", "stays:DENY"))
	a.until("a service account", func() error {
		if o, ok := w.objects.ServiceAccounts.Get("default/late"); !ok || o.UID != account.GetUID() {
			return errors.New("not there")
		}
		return nil
	})
	a.until("all is well", w.wantState("Service", StateWatching))
}

func TestClusterForbidden(t *testing.T) {
	a := newAPI(t)
	a.apply(definitionText("authorizationpolicies", "AuthorizationPolicy", "security.istio.io", "v1"))
	a.apply(policy("one", "DENY"))
	const role = `{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: ambit-source-test}, rules: [
  {apiGroups: [apiextensions.k8s.io], resources: [customresourcedefinitions], verbs: [get, list, watch]},
  {apiGroups: ["", apps, discovery.k8s.io], resources: [%s, nodes, configmaps, serviceaccounts, pods, services, deployments, endpointslices], verbs: [list, watch]},
  {apiGroups: [security.istio.io], resources: [%s], verbs: [list, watch]}]}`
	a.apply(fmt.Sprintf(role, "namespaces", "none"))
	a.apply(`{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: ambit-source-test},
  roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: ambit-source-test}, subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: limited}]}`)
	config := rest.CopyConfig(a.config)
	config.Impersonate = rest.ImpersonationConfig{UserName: "limited"}
	w := a.watch(config)
	a.until("it is said what is not permitted", func() error {
		got := w.state("AuthorizationPolicy")
		if got.State != StateFailing || !strings.Contains(got.Error, "istiod may not list authorizationpolicies.security.istio.io") {
			return fmt.Errorf("%+v", got)
		}
		return nil
	})
	a.until("the others are read", w.wantState("Service", StateWatching))
	if w.isLoaded() {
		t.Error("the first load is done although policies cannot be read")
	}
	a.apply(fmt.Sprintf(role, "namespaces", "authorizationpolicies"))
	a.until("with the permission", wantPolicies(w, "one:DENY"))
}
