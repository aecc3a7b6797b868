package translate

import (
	"net/netip"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// Names that Envoy's configuration gives to its filters.
const (
	filterRouter   = "envoy.filters.http.router"
	filterTCPProxy = "envoy.filters.network.tcp_proxy"
)

// Listener returns the listener of one port of a service: how a waypoint finds
// the service and its port, by address or by name, and how it reads the bytes.
// A port whose protocol is not declared has both an api_listener for requests
// and a filter chain for anything else. It is nil for UDP. A headless service
// has no address here.
func Listener(svc model.Service, port model.ServicePort) *listenerv3.Listener {
	if port.Protocol == model.L7UDP {
		return nil
	}
	name := ListenerName(svc, port)
	out := &listenerv3.Listener{
		Name: name,
		Metadata: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
			mesh.ServiceMetadata: {Fields: map[string]*structpb.Value{
				mesh.ServiceMetadataName:      structpb.NewStringValue(svc.Name.Name),
				mesh.ServiceMetadataNamespace: structpb.NewStringValue(svc.Name.Namespace),
				mesh.ServiceMetadataHostname:  structpb.NewStringValue(svc.Hostname),
			}},
		}},
	}
	for i, vip := range svc.Addresses {
		address := socketAddress(vip, port.Port)
		if i == 0 {
			out.Address = address
		} else {
			out.AdditionalAddresses = append(out.AdditionalAddresses, &listenerv3.AdditionalAddress{Address: address})
		}
	}
	if port.Protocol.Routable() {
		out.ApiListener = &listenerv3.ApiListener{ApiListener: mustAny(httpConnectionManager(name))}
	}
	if port.Protocol.Opaque() {
		out.FilterChains = []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name: filterTCPProxy,
			ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: mustAny(&tcpproxyv3.TcpProxy{
				StatPrefix:       name,
				ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: ClusterName(svc.Hostname, port.Port, "")},
			})},
		}}}}
	}
	return out
}

func httpConnectionManager(name string) *hcmv3.HttpConnectionManager {
	return &hcmv3.HttpConnectionManager{
		StatPrefix: name,
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
			RouteConfigName: name,
			ConfigSource:    fromADS(),
		}},
		HttpFilters: []*hcmv3.HttpFilter{{
			Name:       filterRouter,
			ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: mustAny(&routerv3.Router{})},
		}},
	}
}

// fromADS says that a resource comes on the stream that this one came on.
func fromADS() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
}

func socketAddress(addr netip.Addr, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       addr.String(),
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}
