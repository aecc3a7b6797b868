package translate

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// ListenerName returns the name of the Listener and of the RouteConfiguration
// of one port of a service.
func ListenerName(svc model.Service, port model.ServicePort) string {
	return svc.Hostname + ":" + strconv.FormatUint(uint64(port.Port), 10)
}

// ClusterName returns the name of a Cluster and of its load assignment. An
// empty subset means all endpoints.
func ClusterName(hostname string, port uint32, subset string) string {
	return "outbound|" + strconv.FormatUint(uint64(port), 10) + "|" + subset + "|" + hostname
}

// Reference is a destination that a RouteConfiguration names.
type Reference struct {
	Hostname string
	Port     uint32
	Subset   string // empty = all endpoints
}

func (r Reference) compare(other Reference) int {
	return cmp.Or(cmp.Compare(r.Hostname, other.Hostname), cmp.Compare(r.Port, other.Port), cmp.Compare(r.Subset, other.Subset))
}

// References returns the destinations that the routes point to, sorted, each
// once, whether or not such a service exists. A nil configuration has none.
func References(routes *routev3.RouteConfiguration) []Reference {
	var list []Reference
	add := func(cluster string) {
		if r, ok := parseClusterName(cluster); ok {
			list = append(list, r)
		}
	}
	for _, host := range routes.GetVirtualHosts() {
		for _, route := range host.GetRoutes() {
			action := route.GetRoute()
			if action.GetCluster() != "" {
				add(action.GetCluster())
			}
			for _, weighted := range action.GetWeightedClusters().GetClusters() {
				add(weighted.GetName())
			}
		}
	}
	slices.SortFunc(list, Reference.compare)
	return slices.Compact(list)
}

func parseClusterName(name string) (Reference, bool) {
	parts := strings.SplitN(name, "|", 4)
	if len(parts) != 4 || parts[0] != "outbound" {
		return Reference{}, false
	}
	port, err := strconv.ParseUint(parts[1], 10, 16)
	if err != nil {
		return Reference{}, false
	}
	return Reference{Hostname: parts[3], Port: uint32(port), Subset: parts[2]}, true
}
