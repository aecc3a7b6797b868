package waypoint

import (
	"net/netip"
	"sync"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/waypoint/backend"
	"github.com/ambit-mesh/ambit/waypoint/serve"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
	"github.com/ambit-mesh/ambit/ztunnel/xds"
)

// directory describes workloads by address. It asks istiod for the addresses
// that are in use: those of peers with a connection and of endpoints.
type directory struct {
	store   *workload.Store
	network string
	client  *xds.Client

	mu        sync.Mutex
	users     map[netip.Addr]int
	byCluster map[string][]netip.Addr
}

func newDirectory(store *workload.Store, network string) *directory {
	return &directory{store: store, network: network, users: map[netip.Addr]int{}, byCluster: map[string][]netip.Addr{}}
}

func (d *directory) resource(ip netip.Addr) string { return d.network + "/" + ip.String() }

// Watch asks for the workload at an address until Forget.
func (d *directory) Watch(ip netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.watch(ip)
}

// Forget is the counterpart of Watch.
func (d *directory) Forget(ip netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forget(ip)
}

func (d *directory) watch(ip netip.Addr) {
	ip = ip.Unmap()
	d.users[ip]++
	if d.users[ip] == 1 {
		d.client.Subscribe(mesh.TypeAddress, d.resource(ip))
	}
}

func (d *directory) forget(ip netip.Addr) {
	ip = ip.Unmap()
	if d.users[ip]--; d.users[ip] > 0 {
		return
	}
	delete(d.users, ip)
	d.client.Unsubscribe(mesh.TypeAddress, d.resource(ip))
	_ = d.store.ApplyAddresses(nil, []string{d.resource(ip)}) // a removal is not refused
}

// endpoints follows the endpoints of a cluster.
func (d *directory) endpoints(cluster string, endpoints []*backend.Endpoint) {
	d.mu.Lock()
	defer d.mu.Unlock()
	before := d.byCluster[cluster]
	delete(d.byCluster, cluster)
	for _, e := range endpoints {
		d.watch(e.Addr.Addr())
		d.byCluster[cluster] = append(d.byCluster[cluster], e.Addr.Addr())
	}
	for _, ip := range before {
		d.forget(ip)
	}
}

// Changed is closed when the next answer is there.
func (d *directory) Changed() <-chan struct{} { return d.store.Changed() }

// Lookup describes the workload at an address.
func (d *directory) Lookup(ip netip.Addr) (serve.Workload, bool) {
	w := d.store.Snapshot().ByIP(d.network, ip.Unmap())
	if w == nil {
		return serve.Workload{}, false
	}
	return serve.Workload{
		Identity: w.Identity, Name: w.WorkloadName, Namespace: w.Namespace, Canonical: w.CanonicalName,
		Revision: w.CanonicalRevision, App: w.CanonicalName, Version: w.CanonicalRevision, Cluster: w.ClusterID,
	}, true
}
