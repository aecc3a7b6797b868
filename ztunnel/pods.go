package ztunnel

import (
	"context"
	"net"
	"net/netip"

	"github.com/ambit-mesh/ambit/ztunnel/hbone"
	"github.com/ambit-mesh/ambit/ztunnel/inpod"
	"github.com/ambit-mesh/ambit/ztunnel/proxy"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
)

// startProxy starts the proxy of a pod that the node agent has announced.
func (z *Ztunnel) startProxy(pod inpod.Pod) (inpod.Proxy, error) {
	c := z.cfg
	preserve := proxy.Auto
	if c.PreserveSource != nil {
		preserve = proxy.Off
		if *c.PreserveSource {
			preserve = proxy.On
		}
	}
	p := proxy.New(proxy.Config{
		Pod:   workload.Info{Name: pod.Name, Namespace: pod.Namespace, ServiceAccount: pod.ServiceAccount},
		NetNS: pod.NetNS, Store: z.store, Certificate: z.identities.Get, Resolve: resolve,
		Metrics: z.metrics, Access: z.lines.Access, Log: z.part("proxy"),
		Network: c.Network, Mark: c.PacketMark, IPv4Only: !c.IPv6, ReusePort: c.PortReuse,
		PreserveSource: preserve, ResponseBaggage: c.ResponseBaggage, KeepAlive: c.KeepAlive, DrainTimeout: c.DrainTimeout,
		HBONE: hbone.Config{
			StreamWindow: c.StreamWindow, ConnWindow: c.ConnWindow, MaxFrameSize: c.FrameSize, IdleTimeout: c.PoolIdle, Grace: c.DrainTimeout,
		},
		PoolStreams: c.MaxStreams,
	})
	if err := p.Start(z.proxies); err != nil {
		return nil, err
	}
	return p, nil
}

// resolve looks a hostname up with the resolver of ztunnel's own namespace.
func resolve(ctx context.Context, hostname string) ([]netip.Addr, error) {
	return net.DefaultResolver.LookupNetIP(ctx, "ip", hostname)
}
