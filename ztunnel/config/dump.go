package config

import "time"

// Dump returns the effective configuration for the config dump.
func (c *Config) Dump() map[string]any {
	return map[string]any{
		"localNode": c.NodeName, "network": c.Network, "clusterId": c.ClusterID,
		"xdsAddress": c.XDSAddress, "xdsRootCert": c.XDSRoot, "altXdsHostname": c.XDSAltName,
		"caAddress": c.CAAddress, "caRootCert": c.CARoot, "altCaHostname": c.CAAltName,
		"secretTtl": duration(c.SecretTTL), "inpodUds": c.ZDSSocket, "packetMark": c.PacketMark, "inpodPortReuse": c.PortReuse,
		"requireOriginalSource": c.PreserveSource, "ipv6Enabled": c.IPv6, "enableResponseBaggage": c.ResponseBaggage,
		"windowSize": c.StreamWindow, "connectionWindowSize": c.ConnWindow, "frameSize": c.FrameSize,
		"poolMaxStreamsPerConn": c.MaxStreams, "poolUnusedReleaseTimeout": duration(c.PoolIdle),
		"selfTerminationDeadline": duration(c.DrainTimeout), "logLevel": c.LogLevel, "logFormat": c.LogFormat,
		"proxyMetadata": c.Metadata, "ignoredVariables": append([]string{}, c.Ignored...),
	}
}

// duration is the shape of durations in the config dump.
func duration(d time.Duration) map[string]int64 {
	return map[string]int64{"secs": int64(d / time.Second), "nanos": int64(d % time.Second)}
}
