package config

import (
	"fmt"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/waypoint/backend"
)

type clusterSpec struct {
	service, subset, eds string
	random               bool
	connectTimeout       time.Duration
}

func compileCluster(m *clusterv3.Cluster) (clusterSpec, error) {
	var spec clusterSpec
	if err := only(m, "", "name", "alt_stat_name", "type", "eds_cluster_config", "connect_timeout", "lb_policy", "metadata"); err != nil {
		return spec, err
	}
	if m.GetType() != clusterv3.Cluster_EDS {
		return spec, fmt.Errorf("type %s is not supported", m.GetType())
	}
	switch m.GetLbPolicy() {
	case clusterv3.Cluster_ROUND_ROBIN, clusterv3.Cluster_LEAST_REQUEST:
	case clusterv3.Cluster_RANDOM:
		spec.random = true
	default:
		return spec, fmt.Errorf("lb_policy %s is not supported", m.GetLbPolicy())
	}
	eds := m.GetEdsClusterConfig()
	if err := only(eds, "eds_cluster_config", "eds_config", "service_name"); err != nil {
		return spec, err
	}
	if err := ads(eds.GetEdsConfig(), "eds_cluster_config.eds_config"); err != nil {
		return spec, err
	}
	spec.eds = eds.GetServiceName()
	if spec.eds == "" {
		spec.eds = m.GetName()
	}
	spec.connectTimeout = m.GetConnectTimeout().AsDuration()
	parts := strings.Split(m.GetName(), "|")
	if len(parts) != 4 {
		return spec, fmt.Errorf("name %q is not outbound|port|subset|hostname", m.GetName())
	}
	spec.subset, spec.service = parts[2], parts[3]
	return spec, nil
}

func compileEndpoints(m *endpointv3.ClusterLoadAssignment) ([]backend.Spec, error) {
	if err := only(m, "", "cluster_name", "endpoints"); err != nil {
		return nil, err
	}
	var specs []backend.Spec
	for i, locality := range m.GetEndpoints() {
		at := fmt.Sprintf("endpoints[%d]", i)
		if err := only(locality, at, "locality", "lb_endpoints"); err != nil {
			return nil, err
		}
		for j, e := range locality.GetLbEndpoints() {
			spec, err := compileEndpoint(e, fmt.Sprintf("%s.lb_endpoints[%d]", at, j))
			if err != nil {
				return nil, err
			}
			specs = append(specs, spec)
		}
	}
	return specs, nil
}

func compileEndpoint(e *endpointv3.LbEndpoint, at string) (backend.Spec, error) {
	var spec backend.Spec
	if err := only(e, at, "endpoint", "health_status", "metadata", "load_balancing_weight"); err != nil {
		return spec, err
	}
	if err := only(e.GetEndpoint(), at+".endpoint", "address", "hostname"); err != nil {
		return spec, err
	}
	addr, err := address(e.GetEndpoint().GetAddress(), at+".endpoint.address")
	if err != nil {
		return spec, err
	}
	spec.Addr = addr
	spec.Weight = e.GetLoadBalancingWeight().GetValue()
	switch e.GetHealthStatus() { //nolint:exhaustive // the others are not chosen
	case corev3.HealthStatus_UNKNOWN, corev3.HealthStatus_HEALTHY:
		spec.Healthy = true
	}
	return spec, endpointMetadata(&spec, e.GetMetadata().GetFilterMetadata()[mesh.EndpointMetadata], at+".metadata "+mesh.EndpointMetadata)
}

func endpointMetadata(spec *backend.Spec, m *structpb.Struct, at string) error {
	for name, value := range m.GetFields() {
		switch name {
		case mesh.EndpointMetadataProtocol:
			switch value.GetStringValue() {
			case mesh.EndpointProtocolHBONE:
				spec.HBONE = true
			case mesh.EndpointProtocolTCP:
			default:
				return fmt.Errorf("%s.%s: %v is not supported", at, name, value.AsInterface())
			}
		case mesh.EndpointMetadataSPIFFEIDs:
			for _, text := range value.GetListValue().GetValues() {
				id, err := spiffe.Parse(text.GetStringValue())
				if err != nil {
					return fmt.Errorf("%s.%s: %w", at, name, err)
				}
				spec.IDs = append(spec.IDs, id)
			}
		case mesh.EndpointMetadataWorkload:
			spec.Workload = value.GetStringValue()
		default:
			return fmt.Errorf("%s.%s is not supported", at, name)
		}
	}
	if m.GetFields()[mesh.EndpointMetadataProtocol] == nil {
		return fmt.Errorf("%s.%s is missing", at, mesh.EndpointMetadataProtocol)
	}
	return nil
}
