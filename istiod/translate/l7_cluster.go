package translate

import (
	"cmp"
	"slices"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// connectTimeout is MeshConfig's default, spec/control-plane.md §5.9.
const connectTimeout = 10 * time.Second

// Clusters returns the clusters of one port of a service: that of all endpoints
// and then one for each subset. It is nil for UDP.
func Clusters(svc model.Service, port model.ServicePort, subsets []Subset) []*clusterv3.Cluster {
	if port.Protocol == model.L7UDP {
		return nil
	}
	out := []*clusterv3.Cluster{cluster(ClusterName(svc.Hostname, port.Port, ""))}
	for _, subset := range subsets {
		out = append(out, cluster(ClusterName(svc.Hostname, port.Port, subset.Name)))
	}
	return out
}

func cluster(name string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: fromADS()},
		ConnectTimeout:       durationpb.New(connectTimeout),
		LbPolicy:             clusterv3.Cluster_LEAST_REQUEST,
	}
}

// LoadAssignments returns the endpoints of the clusters that Clusters returns,
// in the same order, whatever order the endpoints come in. Those that are not
// ready are left out unless the service publishes them.
func LoadAssignments(svc model.Service, port model.ServicePort, subsets []Subset, endpoints []model.L7Endpoint) []*endpointv3.ClusterLoadAssignment {
	if port.Protocol == model.L7UDP {
		return nil
	}
	usable := make([]model.L7Endpoint, 0, len(endpoints))
	for _, e := range endpoints {
		if e.Address.IsValid() && (e.Ready || svc.PublishNotReady) {
			usable = append(usable, e)
		}
	}
	slices.SortStableFunc(usable, func(a, b model.L7Endpoint) int {
		return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Port, b.Port), cmp.Compare(a.WorkloadUID, b.WorkloadUID))
	})
	out := []*endpointv3.ClusterLoadAssignment{loadAssignment(ClusterName(svc.Hostname, port.Port, ""), usable, nil)}
	for _, subset := range subsets {
		out = append(out, loadAssignment(ClusterName(svc.Hostname, port.Port, subset.Name), usable, subset.Labels))
	}
	return out
}

func loadAssignment(name string, endpoints []model.L7Endpoint, labels map[string]string) *endpointv3.ClusterLoadAssignment {
	out := &endpointv3.ClusterLoadAssignment{ClusterName: name}
	var list []*endpointv3.LbEndpoint
	for _, e := range endpoints {
		if hasLabels(e.Labels, labels) {
			list = append(list, lbEndpoint(e))
		}
	}
	if len(list) > 0 {
		out.Endpoints = []*endpointv3.LocalityLbEndpoints{{LbEndpoints: list}}
	}
	return out
}

func hasLabels(have, want map[string]string) bool {
	for name, value := range want {
		if got, present := have[name]; !present || got != value {
			return false
		}
	}
	return true
}

func lbEndpoint(e model.L7Endpoint) *endpointv3.LbEndpoint {
	health := corev3.HealthStatus_HEALTHY
	if !e.Ready {
		health = corev3.HealthStatus_UNHEALTHY
	}
	ids := &structpb.ListValue{}
	for _, id := range slices.Sorted(slices.Values(e.SPIFFEIDs)) {
		ids.Values = append(ids.Values, structpb.NewStringValue(id))
	}
	return &endpointv3.LbEndpoint{
		HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
			Address: socketAddress(e.Address, e.Port),
		}},
		HealthStatus:        health,
		LoadBalancingWeight: wrapperspb.UInt32(cmp.Or(e.Weight, 1)),
		Metadata: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
			mesh.EndpointMetadata: {Fields: map[string]*structpb.Value{
				mesh.EndpointMetadataProtocol:  structpb.NewStringValue(e.Protocol),
				mesh.EndpointMetadataSPIFFEIDs: structpb.NewListValue(ids),
				mesh.EndpointMetadataWorkload:  structpb.NewStringValue(e.WorkloadUID),
			}},
		}},
	}
}

// Subset is a part of a service's endpoints.
type Subset struct {
	Name   string
	Labels map[string]string
}
