package ztunnel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"sync"

	"github.com/ambit-mesh/ambit/ztunnel/config"
	"github.com/ambit-mesh/ambit/ztunnel/dns"
	"github.com/ambit-mesh/ambit/ztunnel/hbone"
	"github.com/ambit-mesh/ambit/ztunnel/inpod"
	"github.com/ambit-mesh/ambit/ztunnel/mtls"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/proxy"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
)

// pod is what runs for one workload: a proxy and a DNS server, either of which
// may be nil.
type pod struct {
	name  string // "namespace/name"
	proxy *proxy.Proxy
	dns   *dns.Server
}

// startProxy starts what runs for a pod that the node agent has announced.
func (z *Ztunnel) startProxy(announced inpod.Pod) (inpod.Proxy, error) {
	p := z.newPod(workload.Info{Name: announced.Name, Namespace: announced.Namespace, ServiceAccount: announced.ServiceAccount}, announced.NetNS)
	if err := p.start(z.proxies); err != nil {
		return nil, err
	}
	return p, nil
}

// newPod makes what runs for a workload in a network namespace; nil is our own.
func (z *Ztunnel) newPod(info workload.Info, ns *netns.NS) *pod {
	p := &pod{name: info.Namespace + "/" + info.Name}
	if z.cfg.Proxy {
		p.proxy = proxy.New(z.proxyConfig(info, ns))
	}
	if z.cfg.DNS {
		p.dns = dns.New(z.dnsConfig(info, ns))
	}
	return p
}

func (z *Ztunnel) proxyConfig(info workload.Info, ns *netns.NS) proxy.Config {
	c := z.cfg
	preserve := proxy.Auto
	if c.PreserveSource != nil {
		preserve = proxy.Off
		if *c.PreserveSource {
			preserve = proxy.On
		}
	}
	p := proxy.Config{
		Pod: info, NetNS: ns, Store: z.store, Certificate: z.identities.Get, Resolve: resolve,
		Metrics: z.metrics, Access: z.lines.Access, Log: z.part("proxy"),
		Network: c.Network, Mark: c.PacketMark, IPv4Only: !c.IPv6, ReusePort: c.PortReuse && c.Mode == config.Shared,
		PreserveSource: preserve, ResponseBaggage: c.ResponseBaggage, KeepAlive: c.KeepAlive, UserTimeout: c.UserTimeout, DrainTimeout: c.DrainTimeout,
		HBONE: hbone.Config{
			StreamWindow: c.StreamWindow, ConnWindow: c.ConnWindow, MaxFrameSize: c.FrameSize, IdleTimeout: c.PoolIdle, Grace: c.DrainTimeout,
		},
		PoolStreams: c.MaxStreams,
		SOCKS5:      c.Socks5, NoLocalhostAppTunnel: !c.AppTunnelLocal, PolicyInfo: c.AuthzInfo,
		TLS: mtls.Policy{TLS12: c.TLS12, PQC: c.PQC},
	}
	if z.revocations != nil {
		p.Revoked, p.RevocationsChanged = z.revocations.Check, z.revocations.Changed
	}
	if z.demand != nil {
		p.Demand = z.demand.Address
	}
	return p
}

func (z *Ztunnel) dnsConfig(info workload.Info, ns *netns.NS) dns.Config {
	c := z.cfg
	d := dns.Config{
		Pod: info, NetNS: ns, Store: z.store, Metrics: z.dnsMetrics, Log: z.part("dns"),
		Addresses: c.DNSAddresses, ClusterDomain: c.ClusterDomain, PreferredNamespace: c.PreferredNamespace, Resolvers: z.resolv.Servers,
		Mark: c.PacketMark, IPv4Only: !c.IPv6, ReusePort: c.PortReuse && c.Mode == config.Shared,
	}
	if c.Mode == config.Dedicated {
		d.Search = append([]string{}, z.resolv.Search...) // none is not "as in Kubernetes"
	}
	return d
}

// start begins both or none.
func (p *pod) start(ctx context.Context) error {
	if p.proxy != nil {
		if err := p.proxy.Start(ctx); err != nil {
			return err
		}
	}
	if p.dns != nil {
		if err := p.dns.Start(ctx); err != nil {
			if p.proxy != nil {
				p.proxy.Stop()
			}
			return fmt.Errorf("dns: %w", err)
		}
	}
	return nil
}

// Stop implements [inpod.Proxy].
func (p *pod) Stop() { p.end((*proxy.Proxy).Stop, (*dns.Server).Stop) }

// Drain implements [inpod.Drainer].
func (p *pod) Drain() { p.end((*proxy.Proxy).Drain, (*dns.Server).Drain) }

// end ends both at the same time, and returns when both have.
func (p *pod) end(proxied func(*proxy.Proxy), served func(*dns.Server)) {
	var both sync.WaitGroup
	if p.dns != nil {
		both.Go(func() { served(p.dns) })
	}
	if p.proxy != nil {
		proxied(p.proxy)
	}
	both.Wait()
}

// resolve looks a hostname up with the resolver of ztunnel's own namespace.
func resolve(ctx context.Context, hostname string) ([]netip.Addr, error) {
	return net.DefaultResolver.LookupNetIP(ctx, "ip", hostname)
}

// resolvConf reads the resolver's configuration of our own namespace, once.
func resolvConf() (dns.ResolvConf, error) {
	f, err := os.Open("/etc/resolv.conf")
	if errors.Is(err, fs.ErrNotExist) {
		return dns.ResolvConf{}, nil
	}
	if err != nil {
		return dns.ResolvConf{}, err
	}
	defer func() { _ = f.Close() }() // it was only read
	c, err := dns.ParseResolvConf(f)
	if err != nil {
		return dns.ResolvConf{}, fmt.Errorf("/etc/resolv.conf: %w", err)
	}
	return c, nil
}
