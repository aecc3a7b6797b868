// Package mesh holds the names that every part of the mesh and its users agree
// on: ports, labels and annotations, header names, xDS type URLs and the paths
// and file names inside a pod. It contains constants only and imports nothing,
// so that a name exists once. Sources: spec/ztunnel.md §1.3 and
// spec/control-plane.md §1.1.
package mesh

// Ports, spec/ztunnel.md §1.3 and spec/control-plane.md §7.4.
const (
	PortAdmin          = 15000 // loopback: config dump, logging, pprof
	PortOutbound       = 15001 // in the pod: captured outbound connections
	PortInboundPlain   = 15006 // in the pod: captured plaintext connections
	PortHBONE          = 15008 // in the pod: mTLS tunnels
	PortXDS            = 15012 // istiod: xDS and CA over TLS
	PortIstiodMonitor  = 15014 // istiod: metrics and debug
	PortMetrics        = 15020 // metrics of ztunnel and waypoint
	PortReadiness      = 15021 // GET /healthz/ready
	PortDNS            = 15053 // in the pod: captured DNS questions
	PortCNIAgentHealth = 8000  // ambit-cni: /healthz and /readyz
)

// Packet and connection marks inside a pod's network namespace, spec/ztunnel.md
// App. C.
const (
	MarkZtunnel     uint32 = 0x539 // on every packet that ztunnel sends
	MarkConnection  uint32 = 0x111 // on connections from ztunnel to the application
	MarkMask        uint32 = 0xfff
	RouteTable             = 100
	RoutePriority          = 32764
	ProbeSourceIPv4        = "169.254.7.127"
	ProbeSourceIPv6        = "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"
)

// Labels.
const (
	LabelDataplaneMode        = "istio.io/dataplane-mode"
	LabelUseWaypoint          = "istio.io/use-waypoint"
	LabelUseWaypointNamespace = "istio.io/use-waypoint-namespace"
	LabelWaypointFor          = "istio.io/waypoint-for"
	LabelTunnel               = "networking.istio.io/tunnel"
	LabelCanonicalName        = "service.istio.io/canonical-name"
	LabelCanonicalRevision    = "service.istio.io/canonical-revision"
	LabelWorkloadName         = "service.istio.io/workload-name"
	LabelGatewayName          = "gateway.networking.k8s.io/gateway-name"
	LabelGatewayClassName     = "gateway.networking.k8s.io/gateway-class-name"
	LabelGatewayManaged       = "gateway.istio.io/managed"
	LabelConfig               = "istio.io/config"
)

// Values of labels.
const (
	DataplaneModeAmbient   = "ambient"
	DataplaneModeNone      = "none"
	WaypointNone           = "none"
	WaypointForService     = "service"
	WaypointForWorkload    = "workload"
	WaypointForAll         = "all"
	ManagedMeshController  = "istio.io-mesh-controller"
	TunnelHTTP             = "http"
	WaypointGatewayClass   = "istio-waypoint"
	MeshControllerName     = "istio.io/mesh-controller"
	GatewayControllerName  = "istio.io/gateway-controller"
	ProtocolHBONE          = "HBONE"
	RedirectionEnabled     = "enabled"
	RedirectionPending     = "pending"
	DefaultTrustDomain     = "cluster.local"
	DefaultClusterDomain   = "cluster.local"
	DefaultClusterID       = "Kubernetes"
	DefaultSystemNamespace = "istio-system"
)

// Annotations.
const (
	AnnotationRedirection         = "ambient.istio.io/redirection"
	AnnotationTrafficDistribution = "networking.istio.io/traffic-distribution"
	AnnotationSidecarStatus       = "sidecar.istio.io/status"
	AnnotationDNSCapture          = "ambient.istio.io/dns-capture" // "true" or "false": beats the agent's default
)

// xDS type URLs. The Envoy types have theirs in go-control-plane.
const (
	TypeAddress       = "type.googleapis.com/istio.workload.Address"
	TypeAuthorization = "type.googleapis.com/istio.security.Authorization"
)

// EndpointMetadata is the key of the filter metadata on every LbEndpoint that
// istiod sends to a waypoint, a Struct with the fields below.
const (
	EndpointMetadata          = "ambit.endpoint"
	EndpointMetadataProtocol  = "protocol"   // EndpointProtocolHBONE or EndpointProtocolTCP
	EndpointMetadataSPIFFEIDs = "spiffe_ids" // list of strings; any one may answer
	EndpointMetadataWorkload  = "workload"   // uid of the istio.workload.Workload
	EndpointProtocolHBONE     = "HBONE"
	EndpointProtocolTCP       = "TCP"

	// ServiceMetadata is the key of the filter metadata on every Listener that
	// istiod sends to a waypoint: which service the listener stands for.
	ServiceMetadata          = "ambit.service"
	ServiceMetadataName      = "name"
	ServiceMetadataNamespace = "namespace"
	ServiceMetadataHostname  = "hostname"
)

// The certificate authority's vocabulary, spec/control-plane.md §7.2.
const (
	ImpersonatedIdentity = "ImpersonatedIdentity" // metadata key of a certificate request
	TokenAudience        = "istio-ca"
	HeaderClusterID      = "clusterid"
)

// Headers of an HBONE CONNECT, spec/ztunnel.md §2.9.
const (
	HeaderBaggage     = "baggage"
	HeaderForwarded   = "forwarded"
	HeaderTraceparent = "traceparent"
)

// Paths inside the mesh's own pods, as the charts mount them.
const (
	TokenPath        = "/var/run/secrets/tokens/istio-token"
	RootCertPath     = "/var/run/secrets/istio/root-cert.pem"
	ZDSSocketPath    = "/var/run/ztunnel/ztunnel.sock"
	CNIAgentRunDir   = "/var/run/ambit-cni"
	CNIAgentSocket   = "pluginevent.sock" // in CNIAgentRunDir
	RootCertFile     = "root-cert.pem"
	RootCertConfig   = "istio-ca-root-cert" // ConfigMap in every namespace
	MeshConfigName   = "istio"              // ConfigMap in the system namespace
	MeshConfigKey    = "mesh"
	CASecretName     = "istio-ca-secret"
	CASecretCertKey  = "ca-cert.pem"
	CASecretKeyKey   = "ca-key.pem"
	ServiceIstiod    = "istiod"
	AccountZtunnel   = "ztunnel"
	NodeTypeZtunnel  = "ztunnel"
	NodeTypeWaypoint = "waypoint"
)
