package config

import (
	"net/netip"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/apis/mesh"
)

// Dump returns the effective configuration for the config dump, without
// anything secret (spec/ztunnel.md App. B.1).
func (c *Config) Dump() map[string]any {
	d := map[string]any{
		"proxyMode": strings.ToUpper(string(c.Mode[:1])) + string(c.Mode[1:]), "proxy": c.Proxy,
		"localNode": c.NodeName, "network": c.Network, "clusterId": c.ClusterID, "clusterDomain": c.ClusterDomain,
		"xdsAddress": c.XDSAddress, "xdsRootCert": c.XDSRoot, "altXdsHostname": c.XDSAltName, "xdsOnDemand": c.XDSOnDemand, "xdsHeaders": names(c.XDSHeaders),
		"caAddress": c.CAAddress, "caRootCert": c.CARoot, "altCaHostname": c.CAAltName, "caHeaders": names(c.CAHeaders),
		"auth": c.auth(), "localXdsPath": c.LocalPath,
		"secretTtl": duration(c.SecretTTL), "inpodUds": c.ZDSSocket, "packetMark": c.PacketMark, "inpodPortReuse": c.PortReuse,
		"requireOriginalSource": c.PreserveSource, "ipv6Enabled": c.IPv6, "enableResponseBaggage": c.ResponseBaggage,
		"localhostAppTunnel": c.AppTunnelLocal, "authzPolicyInfoLogging": c.AuthzInfo,
		"dnsProxy": c.DNS, "dnsProxyAddr": c.DNSAddresses, "preferedServiceNamespace": c.PreferredNamespace,
		"tls12Enabled": c.TLS12, "pqc": c.PQC, "crlPath": c.CRLPath,
		"windowSize": c.StreamWindow, "connectionWindowSize": c.ConnWindow, "frameSize": c.FrameSize,
		"poolMaxStreamsPerConn": c.MaxStreams, "poolUnusedReleaseTimeout": duration(c.PoolIdle),
		"selfTerminationDeadline": duration(c.DrainTimeout), "numWorkerThreads": c.Threads, "logLevel": c.LogLevel, "logFormat": c.LogFormat,
		"socketConfig": map[string]any{
			"keepaliveEnabled": c.KeepAlive.Enable, "keepaliveTime": duration(c.KeepAlive.Idle), "keepaliveInterval": duration(c.KeepAlive.Interval),
			"keepaliveRetries": c.KeepAlive.Count, "userTimeoutEnabled": c.UserTimeout > 0,
		},
		"proxyMetadata": c.Metadata, "ignoredVariables": append([]string{}, c.Ignored...),
		"adminAddr": address(netip.AddrFrom4([4]byte{127, 0, 0, 1}), c.AdminPort), "statsAddr": c.wildcard(c.MetricsPort), "readinessAddr": c.wildcard(c.ReadinessPort),
		"inboundAddr": c.wildcard(mesh.PortHBONE), "inboundPlaintextAddr": c.wildcard(mesh.PortInboundPlain), "outboundAddr": c.wildcard(mesh.PortOutbound),
		"illegalPorts": []int{mesh.PortOutbound, mesh.PortInboundPlain, mesh.PortHBONE},
	}
	if c.Mode == Dedicated {
		d["proxyWorkloadInformation"] = map[string]string{
			"name": c.Workload.Name, "namespace": c.Workload.Namespace, "serviceAccount": c.Workload.ServiceAccount,
		}
	}
	if c.SelfProxy() {
		d["ztunnelWorkload"] = map[string]string{"name": c.PodName, "namespace": c.PodNamespace, "serviceAccount": c.ServiceAccount}
		d["ztunnelIdentity"] = "spiffe://" + c.TrustDomain + "/ns/" + c.PodNamespace + "/sa/" + c.ServiceAccount
	}
	return d
}

// auth says how we tell istiod who we are.
func (c *Config) auth() string {
	switch {
	case c.TokenPath != "":
		return c.TokenPath
	case c.Token != "":
		return c.Token.String()
	}
	return "none"
}

func (c *Config) wildcard(port uint16) string {
	if c.IPv6 {
		return address(netip.IPv6Unspecified(), port)
	}
	return address(netip.IPv4Unspecified(), port)
}

func address(ip netip.Addr, port uint16) string { return netip.AddrPortFrom(ip, port).String() }

// names returns the headers with their values hidden.
func names(headers map[string]Secret) map[string]string {
	out := map[string]string{}
	for name, value := range headers {
		out[name] = value.String()
	}
	return out
}

// duration is the shape of durations in the config dump.
func duration(d time.Duration) map[string]int64 {
	return map[string]int64{"secs": int64(d / time.Second), "nanos": int64(d % time.Second)}
}
