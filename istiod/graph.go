package istiod

import (
	"slices"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/collection"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/source"
	"github.com/ambit-mesh/ambit/istiod/translate"
)

// views are the collections derived from the objects, in order of dependency:
// first each kind by itself, then what follows from several. Every function is
// one call of model or translate, around which the dependencies are fetched.
type views struct {
	clusterDomain string
	cluster       bool // see platform.cluster

	// remembered are the host names of waypoints that have been ready in an
	// earlier life of istiod, by Gateway, until the Gateway goes. It is filled
	// before the source runs and then guarded by the graph's lock.
	remembered map[string]string

	warnings *collection.Input[warning] // by object, see report.go

	meshes     *collection.Derived[model.Mesh] // one item, key meshKey
	namespaces *collection.Derived[model.Namespace]
	nodes      *collection.Derived[model.Node]
	pods       *collection.Derived[model.Pod]
	services   *collection.Derived[model.Service]
	endpoints  *collection.Derived[model.Endpoints]
	policies   *collection.Derived[model.Policy]
	peers      *collection.Derived[model.PeerAuthentication]
	waypoints  *collection.Derived[model.Waypoint]
	members    *collection.Derived[model.Member] // of Services without a selector

	boundServices     *collection.Derived[model.BoundService]
	workloads         *collection.Derived[model.Workload]
	endpointWorkloads *collection.Derived[model.Workload]

	podsByNode           *collection.Index[model.Pod]
	servicesBySelector   *collection.Index[model.Service]
	endpointsByService   *collection.Index[model.Endpoints]
	membersByPod         *collection.Index[model.Member]
	policiesBySelector   *collection.Index[model.Policy]
	peersBySelector      *collection.Index[model.PeerAuthentication]
	workloadsByService   *collection.Index[model.Workload]
	endpointWorkloadsFor *collection.Index[model.Workload] // by service
}

const meshKey = "mesh"

// newViews makes the collections. Reads source.Objects, produces the values
// that the resources and statuses are made of.
func newViews(o *source.Objects, cfg Config) *views {
	v := &views{clusterDomain: cfg.ClusterDomain, remembered: map[string]string{}}
	v.warnings = newWarnings(o.Graph)
	v.single(o, cfg)
	v.joined(o)
	return v
}

func byName[T any](key func(T) string) collection.Options[T] {
	return collection.Options[T]{Key: key}
}

// optional returns the value in the form that Derive wants.
func optional[T any](value T, ok bool) []T {
	if !ok {
		return nil
	}
	return []T{value}
}

// single makes the collections that each project one kind.
func (v *views) single(o *source.Objects, cfg Config) {
	g := o.Graph
	once := collection.NewInput(g, "once", func(key string) string { return key }, nil)
	g.Update(func(tx *collection.Tx) { once.Set(tx, meshKey) })
	v.meshes = collection.Derive(g, "mesh", once, byName(func(model.Mesh) string { return meshKey }),
		func(c *collection.Context, _ string) []model.Mesh {
			config, _ := collection.Fetch(c, o.ConfigMaps, source.MeshConfigKey)
			system, _ := collection.Fetch(c, o.Namespaces, mesh.DefaultSystemNamespace)
			return []model.Mesh{newMesh(config, system, cfg)}
		})
	v.namespaces = collection.Derive(g, "namespaces", o.Namespaces, byName(func(n model.Namespace) string { return n.Name }),
		project(model.NewNamespace))
	v.nodes = collection.Derive(g, "nodes", o.Nodes, byName(func(n model.Node) string { return n.Name }),
		project(model.NewNode))
	v.pods = collection.Derive(g, "pods", o.Pods, byName(model.Pod.Key), project(model.NewPod))
	v.services = collection.Derive(g, "services", o.Services, byName(func(s model.Service) string { return s.Name.String() }),
		func(_ *collection.Context, s *coreService) []model.Service {
			return optional(model.NewService(s, v.clusterDomain))
		})
	v.endpoints = collection.Derive(g, "endpoints", o.EndpointSlices, byName(model.Endpoints.Key),
		func(_ *collection.Context, s *endpointSlice) []model.Endpoints {
			return optional(model.NewEndpoints(s))
		})
	v.policies = collection.Derive(g, "policies", o.AuthorizationPolicies, byName(model.Policy.Key), project(model.NewPolicy))
	v.peers = collection.Derive(g, "peer authentications", o.PeerAuthentications, byName(model.PeerAuthentication.Key),
		project(model.NewPeerAuthentication))
	v.index()
}

// project makes a Derive function of one that depends on nothing else.
func project[I, O any](f func(I) O) func(*collection.Context, I) []O {
	return func(_ *collection.Context, in I) []O { return []O{f(in)} }
}

func (v *views) index() {
	v.podsByNode = collection.NewIndex(v.pods, "node", func(p model.Pod) []string { return []string{p.Node} })
	v.servicesBySelector = collection.NewIndex(v.services, "selector", func(s model.Service) []string {
		if len(s.Selector) == 0 {
			return nil
		}
		return []string{model.SelectorIndex(s.Name.Namespace, s.Selector)}
	})
	v.endpointsByService = collection.NewIndex(v.endpoints, "service", func(e model.Endpoints) []string {
		return []string{e.Service.String()}
	})
	v.policiesBySelector = collection.NewIndex(v.policies, "selector", func(p model.Policy) []string {
		return []string{model.SelectorIndex(p.Name.Namespace, p.Selector)}
	})
	v.peersBySelector = collection.NewIndex(v.peers, "selector", func(p model.PeerAuthentication) []string {
		return []string{model.SelectorIndex(p.Name.Namespace, p.Selector)}
	})
}

// joined makes the collections that follow from several kinds.
func (v *views) joined(o *source.Objects) {
	g := o.Graph
	v.waypoints = collection.Derive(g, "waypoints", o.Gateways, byName(func(w model.Waypoint) string { return w.Name.String() }),
		func(c *collection.Context, gateway *gatewayObject) []model.Waypoint {
			class, _ := collection.Fetch(c, o.GatewayClasses, string(gateway.Spec.GatewayClassName))
			return []model.Waypoint{v.addressed(c, model.NewWaypoint(gateway, class), gateway.Status.Addresses)}
		})
	collection.Sink(o.Gateways, func(events []collection.Event[*gatewayObject]) {
		for _, event := range events {
			if event.New == nil {
				delete(v.remembered, event.Key)
			}
		}
	})
	v.members = collection.Derive(g, "members", v.endpoints, byName(model.Member.Key),
		func(c *collection.Context, e model.Endpoints) []model.Member {
			if s, ok := collection.Fetch(c, v.services, e.Service.String()); !ok || len(s.Selector) > 0 {
				return nil
			}
			return e.Members()
		})
	v.membersByPod = collection.NewIndex(v.members, "pod", func(m model.Member) []string { return []string{m.Pod.String()} })
	v.boundServices = collection.Derive(g, "bound services", v.services, byName(model.BoundService.Key),
		func(c *collection.Context, s model.Service) []model.BoundService {
			return []model.BoundService{translate.BindService(s, v.namespace(c, s.Name.Namespace), v.waypoint(c))}
		})
	v.workloads = collection.Derive(g, "workloads", v.pods, byName(func(w model.Workload) string { return w.UID }),
		func(c *collection.Context, p model.Pod) []model.Workload {
			return optional(translate.PodWorkload(p, v.podContext(c, p)))
		})
	v.endpointWorkloads = collection.Derive(g, "endpoint workloads", v.endpoints, byName(func(w model.Workload) string { return w.UID }),
		func(c *collection.Context, e model.Endpoints) []model.Workload {
			service, ok := collection.Fetch(c, v.services, e.Service.String())
			if !ok {
				return nil
			}
			return translate.EndpointWorkloads(e, translate.EndpointContext{Mesh: v.mesh(c), Service: service})
		})
	services := func(w model.Workload) []string {
		out := make([]string, 0, len(w.Services))
		for key := range w.Services {
			out = append(out, key)
		}
		return out
	}
	v.workloadsByService = collection.NewIndex(v.workloads, "service", services)
	v.endpointWorkloadsFor = collection.NewIndex(v.endpointWorkloads, "service", services)
}

// addressed gives a waypoint its address once its Service has a ready
// endpoint. It keeps it while the Gateway exists, so that a restart of its pods,
// or of istiod, does not take the waypoint away from what it guards.
//
// In a cluster it is the Gateway's own status that says it has been ready. That
// of a file says nothing: it came along with a manifest from elsewhere.
func (v *views) addressed(c *collection.Context, w model.Waypoint, reported []gatewayv1.GatewayStatusAddress) model.Waypoint {
	if w.Class != mesh.WaypointGatewayClass {
		return w
	}
	reached := w.WithAddress(v.clusterDomain)
	if v.remembered[w.Name.String()] == reached.Hostname || v.cluster && reports(reported, reached.Hostname) {
		return reached
	}
	for _, before := range collection.Previous[model.Waypoint](c) {
		if before.Ready() && before.Service == w.Service && before.Class == w.Class {
			return w.WithAddress(v.clusterDomain)
		}
	}
	if _, ok := collection.Fetch(c, v.services, w.Service.String()); !ok {
		return w
	}
	for _, endpoints := range collection.Lookup(c, v.endpointsByService, w.Service.String()) {
		if endpoints.Ready() {
			return w.WithAddress(v.clusterDomain)
		}
	}
	return w
}

func reports(addresses []gatewayv1.GatewayStatusAddress, hostname string) bool {
	return slices.ContainsFunc(addresses, func(a gatewayv1.GatewayStatusAddress) bool {
		return a.Type != nil && *a.Type == gatewayv1.HostnameAddressType && a.Value == hostname
	})
}

func (v *views) mesh(c *collection.Context) model.Mesh {
	m, _ := collection.Fetch(c, v.meshes, meshKey)
	return m
}

// namespace returns a namespace also when there is no object for it.
func (v *views) namespace(c *collection.Context, name string) model.Namespace {
	if n, ok := collection.Fetch(c, v.namespaces, name); ok {
		return n
	}
	return model.Namespace{Name: name}
}

func (v *views) waypoint(c *collection.Context) func(model.Name) (model.Waypoint, bool) {
	return func(name model.Name) (model.Waypoint, bool) { return collection.Fetch(c, v.waypoints, name.String()) }
}

// podContext fetches what concerns one pod, and little more.
func (v *views) podContext(c *collection.Context, p model.Pod) translate.PodContext {
	m := v.mesh(c)
	namespace := p.Name.Namespace
	node, _ := collection.Fetch(c, v.nodes, p.Node)
	out := translate.PodContext{
		Mesh: m, Namespace: v.namespace(c, namespace), Node: node, Waypoint: v.waypoint(c),
		Members:   collection.Lookup(c, v.membersByPod, p.Key()),
		MutualTLS: v.peersFor(c, namespace, m.RootNamespace),
	}
	for _, value := range model.SelectorValues(namespace, p.Labels) {
		out.Services = append(out.Services, collection.Lookup(c, v.servicesBySelector, value)...)
		out.Policies = append(out.Policies, collection.Lookup(c, v.policiesBySelector, value)...)
		out.MutualTLS = append(out.MutualTLS, collection.Lookup(c, v.peersBySelector, value)...)
	}
	for _, member := range out.Members {
		out.Services = append(out.Services, optional(collection.Fetch(c, v.services, member.Service.String()))...)
	}
	if namespace != m.RootNamespace {
		for _, value := range model.SelectorValues(m.RootNamespace, p.Labels) {
			out.Policies = append(out.Policies, collection.Lookup(c, v.policiesBySelector, value)...)
		}
	}
	return out
}

// peersFor returns the PeerAuthentications without a selector that reach a
// namespace.
func (v *views) peersFor(c *collection.Context, namespace, root string) []model.PeerAuthentication {
	out := collection.Lookup(c, v.peersBySelector, model.SelectorIndex(namespace, nil))
	if namespace != root {
		out = append(out, collection.Lookup(c, v.peersBySelector, model.SelectorIndex(root, nil))...)
	}
	return out
}
