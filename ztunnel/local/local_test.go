package local_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/ztunnel/local"
	"github.com/ambit-mesh/ambit/ztunnel/rbac"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
)

// example is that of spec/ztunnel.md App. B.2, and what else there is.
const example = `
workloads:
- uid: c1//Pod/shop/cart-0
  name: cart-0
  namespace: shop
  serviceAccount: cart
  workloadIps: ["10.1.0.7", "fd00::7"]
  protocol: HBONE
  node: node-a
  services: {"shop/cart.shop.svc.cluster.local": {80: 8080}}
  authorizationPolicies: [shop/only-frontend]
  locality: {region: r, zone: z, subzone: s}
  waypoint: {destination: shop/waypoint.shop.svc.cluster.local, hboneMtlsPort: 15008}
  networkGateway: {destination: other/192.0.2.1, hboneMtlsPort: 15009}
  applicationTunnel: {protocol: PROXY, port: 15088}
  capacity: 0
  status: Unhealthy
  networkMode: HostNetwork
  workloadType: pod
- {uid: c1//Pod/web/a, name: a, namespace: web, workloadIps: [10.1.0.8], services: {}}
services:
- name: cart
  namespace: shop
  hostname: cart.shop.svc.cluster.local
  vips: ["/10.96.0.20", "net/fd00::20"]
  cidrVips: [{network: "", cidr: 10.97.0.0/16}]
  ports: {80: 8080, "443": 0}
  subjectAltNames: ["spiffe://cluster.local/ns/x/sa/y"]
  waypoint: {destination: /10.96.0.21, hboneMtlsPort: 15008}
  weightedWaypoints: [{destination: {destination: /10.96.0.21, hboneMtlsPort: 15008}, weight: 3}]
  loadBalancer: {mode: Failover, healthPolicy: AllowAll, routingPreferences: [Network, Region, Zone, Subzone, Node, Cluster]}
  ipFamilies: Dual
  canonical: true
  visibility: Namespace
policies:
- name: only-frontend
  namespace: shop
  scope: Namespace
  action: Allow
  dryRun: false
  rules: [[[{principals: [{Exact: cluster.local/ns/web/sa/frontend}]}]]]
- name: many
  namespace: shop
  scope: WorkloadSelector
  action: Deny
  dryRun: true
  rules:
  - - - namespaces: [{Prefix: a}]
        notNamespaces: [{Suffix: b}]
        notPrincipals: [{Presence: []}]
        serviceAccounts: [{namespace: n, serviceAccount: s}]
        notServiceAccounts: [{namespace: n, serviceAccount: t}]
        sourceIps: [10.0.0.0/8, 192.0.2.1]
        notSourceIps: [10.1.0.0/16]
        destinationIps: ["fd00::/8"]
        notDestinationIps: ["::1"]
        destinationPorts: [80]
        notDestinationPorts: [81]
`

func dump(t *testing.T, d workload.Dump) string {
	t.Helper()
	text, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestSet(t *testing.T) {
	store := workload.NewStore("node-a", "")
	source := local.NewSource(store, "here")
	if err := source.Set([]byte(example)); err != nil {
		t.Fatal(err)
	}
	s := store.Snapshot()
	cart := s.Workload("c1//Pod/shop/cart-0")
	if cart == nil || cart.Identity.String() != "spiffe://cluster.local/ns/shop/sa/cart" || cart.Protocol != workload.HBONE || cart.Capacity != 0 || cart.Healthy ||
		!cart.HostNetwork || cart.ClusterID != "here" || len(cart.Addresses) != 2 || !cart.AppTunnel.Proxy || cart.Waypoint.String() != "shop/waypoint.shop.svc.cluster.local" || cart.WorkloadType != "pod" ||
		cart.NetworkGateway.String() != "other/192.0.2.1" || cart.Locality != (workload.Locality{Region: "r", Zone: "z", Subzone: "s"}) {
		t.Errorf("cart: %+v", cart)
	}
	web := s.ByIP("", netip.MustParseAddr("10.1.0.8"))
	if web == nil || web.Identity.ServiceAccount() != "default" || web.Protocol != workload.TCP || !web.Healthy || web.Capacity != 1 {
		t.Errorf("web: %+v", web)
	}
	svc := s.ServiceByVIP("", netip.MustParseAddr("10.96.0.20"), "shop")
	if svc == nil || len(svc.Ports) != 2 || len(svc.Peers) != 1 || !svc.Canonical || !svc.Private || svc.Families != workload.DualStack ||
		svc.Balance.Mode != workload.Failover || !svc.Balance.AllowAll || len(svc.Balance.Preferences) != 6 || len(svc.Weighted) != 1 || len(svc.CIDRs) != 1 {
		t.Errorf("service: %+v", svc)
	}
	if endpoints := s.Endpoints(workload.ServiceKey{Namespace: "shop", Hostname: "cart.shop.svc.cluster.local"}); len(endpoints) != 1 {
		t.Errorf("endpoints %v", endpoints)
	}
	if p := s.Policy("shop/only-frontend"); p == nil || p.Scope != rbac.ScopeNamespace || p.Rules[0][0][0].Principals[0].Value != "cluster.local/ns/web/sa/frontend" {
		t.Errorf("policy %+v", p)
	}
	const many = `"rules":[[[{"namespaces":[{"Prefix":"a"}],"notNamespaces":[{"Suffix":"b"}],"notPrincipals":[{"Presence":[]}],` +
		`"serviceAccounts":[{"namespace":"n","serviceAccount":"s"}],"notServiceAccounts":[{"namespace":"n","serviceAccount":"t"}],` +
		`"sourceIps":["10.0.0.0/8","192.0.2.1/32"],"notSourceIps":["10.1.0.0/16"],"destinationIps":["fd00::/8"],"notDestinationIps":["::1/128"],` +
		`"destinationPorts":[80],"notDestinationPorts":[81]}]]],"dryRun":true`
	if text, _ := json.Marshal(s.Policy("shop/many")); !strings.Contains(string(text), many) {
		t.Errorf("policy: %s", text)
	}
	if got, want := dump(t, source.Dump()), dump(t, s.Dump()); got != want {
		t.Errorf("static part of the dump:\n%s\nof the store:\n%s", got, want)
	}
}

// TestChanges: what changes is applied, what is gone goes, what others have put
// into the store stays, and a document that is broken in any way changes
// nothing.
func TestChanges(t *testing.T) {
	store := workload.NewStore("", "")
	other, source := local.NewSource(store, ""), local.NewSource(store, "")
	if err := other.Set([]byte(`workloads: [{uid: theirs, name: theirs, namespace: ns, services: {}}]`)); err != nil {
		t.Fatal(err)
	}
	if err := source.Set([]byte(example)); err != nil {
		t.Fatal(err)
	}
	good := dump(t, source.Dump())
	for what, text := range map[string]string{
		"syntax":                  "workloads: [",
		"unknown key":             "workload: []",
		"unknown key inside":      "workloads: [{uid: a, namespace: n, services: {}, ips: []}]",
		"two documents":           "workloads: []\n---\nworkloads: []",
		"no services":             "workloads: [{uid: a, namespace: n}]",
		"no dryRun":               "policies: [{name: a, namespace: n, scope: Global, action: Deny}]",
		"no action":               "policies: [{name: a, namespace: n, scope: Global, dryRun: false}]",
		"twice":                   "services: [{namespace: n, hostname: h}, {namespace: n, hostname: h}]",
		"bad address":             "workloads: [{uid: a, namespace: n, services: {}, workloadIps: [x]}]",
		"bad VIP":                 "services: [{namespace: n, hostname: h, vips: [10.0.0.1]}]",
		"bad port":                "services: [{namespace: n, hostname: h, ports: {http: 80}}]",
		"port out of range":       "services: [{namespace: n, hostname: h, ports: {80: 70000}}]",
		"ports no map":            "services: [{namespace: n, hostname: h, ports: [80]}]",
		"bad range":               "services: [{namespace: n, hostname: h, cidrVips: [{cidr: 10.0.0.0/33}]}]",
		"bad mode":                "services: [{namespace: n, hostname: h, loadBalancer: {mode: Random}}]",
		"bad preference":          "services: [{namespace: n, hostname: h, loadBalancer: {routingPreferences: [\"-\"]}}]",
		"bad protocol":            "workloads: [{uid: a, namespace: n, services: {}, protocol: TLS}]",
		"bad gateway":             "workloads: [{uid: a, namespace: n, services: {}, waypoint: {destination: x}}]",
		"endpoints":               "services: [{namespace: n, hostname: h, endpoints: {a: {}}}]",
		"refused by the store":    "workloads: [{namespace: n, services: {}}]",
		"a match of two kinds":    "policies: [{name: a, namespace: n, scope: Global, action: Deny, dryRun: false, rules: [[[{principals: [{Exact: a, Prefix: b}]}]]]}]",
		"a match of none":         "policies: [{name: a, namespace: n, scope: Global, action: Deny, dryRun: false, rules: [[[{principals: [{}]}]]]}]",
		"a prefix that is broken": "policies: [{name: a, namespace: n, scope: Global, action: Deny, dryRun: false, rules: [[[{sourceIps: [10.0.0.0/x]}]]]}]",
	} {
		before := store.Snapshot()
		if err := source.Set([]byte(text)); err == nil {
			t.Errorf("%s: no error", what)
		}
		if store.Snapshot() != before || dump(t, source.Dump()) != good {
			t.Errorf("%s: something has changed", what)
		}
	}

	// A new port, no policy, one workload less.
	err := source.Set([]byte(`{"workloads": [{"uid": "c1//Pod/web/a", "name": "a", "namespace": "web", "workloadIps": ["10.1.0.8"],
		"services": {"shop/cart.shop.svc.cluster.local": {"80": 8081}}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	s := store.Snapshot()
	var uids []string
	for _, w := range s.Dump().Workloads {
		uids = append(uids, w.UID)
	}
	if got := fmt.Sprint(uids, s.Dump().Policies, s.Dump().Services); got != "[c1//Pod/web/a theirs] [] []" {
		t.Errorf("left: %s", got)
	}
	if e := s.Endpoints(workload.ServiceKey{Namespace: "shop", Hostname: "cart.shop.svc.cluster.local"}); len(e) != 1 || e[0].Ports[0].Target != 8081 {
		t.Errorf("endpoints %+v", e)
	}
	if err := source.Set(nil); err != nil || len(store.Snapshot().Dump().Workloads) != 1 {
		t.Errorf("an empty document: %v, %d workloads", err, len(store.Snapshot().Dump().Workloads))
	}
}

// TestDumpCanBeLoaded: what a ztunnel shows of its policies and services, another can load.
func TestDumpCanBeLoaded(t *testing.T) {
	source := local.NewSource(workload.NewStore("", ""), "")
	if err := source.Set([]byte(example)); err != nil {
		t.Fatal(err)
	}
	d := source.Dump()
	for i := range d.Services {
		d.Services[i].Endpoints = nil // workloads say it
	}
	text, err := json.Marshal(map[string]any{"services": d.Services, "policies": d.Policies})
	if err != nil {
		t.Fatal(err)
	}
	again := local.NewSource(workload.NewStore("", ""), "")
	if err := again.Set(text); err != nil {
		t.Fatal(err)
	}
	services, _ := json.Marshal(d.Policies)
	reread, _ := json.Marshal(again.Dump().Policies)
	if string(services) != string(reread) {
		t.Errorf("policies:\n%s\nread again:\n%s", services, reread)
	}
}

func FuzzSet(f *testing.F) {
	f.Add([]byte(example))
	f.Add([]byte("services: [{namespace: n, hostname: h, ports: &a {1: 2}, x: *a}]"))
	f.Fuzz(func(_ *testing.T, text []byte) {
		source := local.NewSource(workload.NewStore("", ""), "")
		if source.Set(text) == nil {
			_ = source.Set(nil)
		}
	})
}
