package config

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

func compileListener(m *listenerv3.Listener) (*listener, error) {
	if err := only(m, "", "name", "address", "additional_addresses", "metadata", "api_listener",
		"filter_chains", "stat_prefix", "traffic_direction"); err != nil {
		return nil, err
	}
	l := &listener{value: Listener{Name: m.GetName()}}
	if err := l.addresses(m); err != nil {
		return nil, err
	}
	if err := l.service(m.GetMetadata()); err != nil {
		return nil, err
	}
	if m.GetApiListener() == nil && len(m.GetFilterChains()) == 0 {
		return nil, errors.New("neither api_listener nor filter_chains is set")
	}
	if m.GetApiListener() != nil {
		if err := l.http(m.GetApiListener()); err != nil {
			return nil, err
		}
	}
	if len(m.GetFilterChains()) > 0 {
		if err := l.tcp(m.GetFilterChains()); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func (l *listener) addresses(m *listenerv3.Listener) error {
	if m.GetAddress() != nil {
		addr, err := address(m.GetAddress(), "address")
		if err != nil {
			return err
		}
		l.addrs = append(l.addrs, addr)
	}
	for i, a := range m.GetAdditionalAddresses() {
		at := fmt.Sprintf("additional_addresses[%d]", i)
		if err := only(a, at, "address"); err != nil {
			return err
		}
		addr, err := address(a.GetAddress(), at+".address")
		if err != nil {
			return err
		}
		l.addrs = append(l.addrs, addr)
	}
	return nil
}

func address(a *corev3.Address, at string) (netip.AddrPort, error) {
	socket := a.GetSocketAddress()
	if socket == nil {
		return netip.AddrPort{}, fmt.Errorf("%s.socket_address is missing", at)
	}
	at += ".socket_address"
	if err := only(socket, at, "protocol", "address", "port_value"); err != nil {
		return netip.AddrPort{}, err
	}
	ip, err := netip.ParseAddr(socket.GetAddress())
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%s.address: %w", at, err)
	}
	port := socket.GetPortValue()
	if port == 0 || port > 65535 || socket.GetProtocol() != corev3.SocketAddress_TCP {
		return netip.AddrPort{}, fmt.Errorf("%s is not a TCP port", at)
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(port)), nil
}

func (l *listener) service(m *corev3.Metadata) error {
	fields := m.GetFilterMetadata()[mesh.ServiceMetadata].GetFields()
	l.value.Service = Service{
		Name:      fields[mesh.ServiceMetadataName].GetStringValue(),
		Namespace: fields[mesh.ServiceMetadataNamespace].GetStringValue(),
		Hostname:  fields[mesh.ServiceMetadataHostname].GetStringValue(),
	}
	if l.value.Service.Hostname == "" {
		return fmt.Errorf("metadata %s.%s is missing", mesh.ServiceMetadata, mesh.ServiceMetadataHostname)
	}
	return nil
}

func (l *listener) http(api *listenerv3.ApiListener) error {
	const at = "api_listener"
	hcm := &hcmv3.HttpConnectionManager{}
	if err := open(api.GetApiListener(), at, hcm); err != nil {
		return err
	}
	if err := only(hcm, at, "stat_prefix", "rds", "http_filters", "codec_type", "upgrade_configs"); err != nil {
		return err
	}
	if t := hcm.GetCodecType(); t != hcmv3.HttpConnectionManager_AUTO && t != hcmv3.HttpConnectionManager_HTTP1 {
		return fmt.Errorf("%s.codec_type %s is not supported", at, t)
	}
	for i, u := range hcm.GetUpgradeConfigs() {
		if err := only(u, fmt.Sprintf("%s.upgrade_configs[%d]", at, i), "upgrade_type"); err != nil {
			return err
		}
		if u.GetUpgradeType() != "websocket" {
			return fmt.Errorf("%s.upgrade_configs[%d]: %q is not supported", at, i, u.GetUpgradeType())
		}
	}
	if len(hcm.GetHttpFilters()) != 1 {
		return fmt.Errorf("%s.http_filters: want the router and no other", at)
	}
	filter := hcm.GetHttpFilters()[0]
	if err := only(filter, at+".http_filters[0]", "name", "typed_config"); err != nil {
		return err
	}
	router := &routerv3.Router{}
	if err := open(filter.GetTypedConfig(), at+".http_filters[0]", router); err != nil {
		return err
	}
	if err := only(router, at+".http_filters[0]", "suppress_envoy_headers"); err != nil {
		return err
	}
	if hcm.GetRds().GetRouteConfigName() == "" {
		return fmt.Errorf("%s.rds.route_config_name is missing", at)
	}
	l.rds = hcm.GetRds().GetRouteConfigName()
	return ads(hcm.GetRds().GetConfigSource(), at+".rds.config_source")
}

func (l *listener) tcp(chains []*listenerv3.FilterChain) error {
	if len(chains) != 1 {
		return fmt.Errorf("filter_chains: %d chains are not supported, want 1", len(chains))
	}
	const at = "filter_chains[0]"
	if err := only(chains[0], at, "name", "filters"); err != nil {
		return err
	}
	if len(chains[0].GetFilters()) != 1 {
		return fmt.Errorf("%s.filters: want tcp_proxy and no other", at)
	}
	tcp := &tcpv3.TcpProxy{}
	if err := open(chains[0].GetFilters()[0].GetTypedConfig(), at+".filters[0]", tcp); err != nil {
		return err
	}
	if err := only(tcp, at+".filters[0]", "stat_prefix", "cluster", "weighted_clusters"); err != nil {
		return err
	}
	if name := tcp.GetCluster(); name != "" {
		l.value.TCP = route.NewTargets(route.Target{Cluster: name, Weight: 1})
		return nil
	}
	var list []route.Target
	var total uint64
	for i, c := range tcp.GetWeightedClusters().GetClusters() {
		if err := only(c, fmt.Sprintf("%s.filters[0].weighted_clusters[%d]", at, i), "name", "weight"); err != nil {
			return err
		}
		total += uint64(c.GetWeight())
		list = append(list, route.Target{Cluster: c.GetName(), Weight: c.GetWeight()})
	}
	if total == 0 {
		return fmt.Errorf("%s.filters[0]: no cluster with a weight", at)
	}
	l.value.TCP, l.value.Turn = route.NewTargets(list...), route.NewSequence(rand.Uint64())
	return nil
}
