package istiod

import (
	"cmp"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/source"
)

// Short names for the types of inputs.
type (
	coreService    = corev1.Service
	coreDeployment = appsv1.Deployment
	endpointSlice  = discoveryv1.EndpointSlice
	gatewayObject  = gatewayv1.Gateway
	gatewayClass   = gatewayv1.GatewayClass
)

// newMesh joins MeshConfig and flags. config and system may be nil.
func newMesh(config *corev1.ConfigMap, system *corev1.Namespace, cfg Config) model.Mesh {
	// The source has refused a ConfigMap that does not parse.
	parsed, _, err := source.ParseMeshConfig(config)
	if err != nil {
		parsed, _, _ = source.ParseMeshConfig(nil)
	}
	out := model.Mesh{
		TrustDomain:     parsed.TrustDomain,
		RootNamespace:   parsed.RootNamespace,
		ClusterDomain:   cmp.Or(cfg.ClusterDomain, mesh.DefaultClusterDomain),
		ClusterID:       cmp.Or(cfg.ClusterID, mesh.DefaultClusterID),
		SystemNamespace: mesh.DefaultSystemNamespace,
		Network:         cfg.Network,
	}
	if out.Network == "" && system != nil {
		out.Network = system.Labels["topology.istio.io/network"]
	}
	return out
}
