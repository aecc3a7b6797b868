package ztunnel

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/ambit-mesh/ambit/ztunnel/proxy"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
)

// ownProxies are what runs in our own network namespace: in dedicated mode the
// workload's proxy, in shared mode the tunnels to our own pod.
type ownProxies struct {
	pod     atomic.Pointer[pod] // nil if there is none
	serving atomic.Bool
}

// openOwn makes the proxy of dedicated mode and opens its listeners, so that a
// port in use is an error at start.
func (z *Ztunnel) openOwn() error {
	w := z.cfg.Workload
	p := z.newPod(workload.Info{Name: w.Name, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount}, nil)
	if p.proxy != nil {
		if err := p.proxy.Listen(); err != nil {
			return err
		}
	}
	z.own.pod.Store(p)
	return nil
}

// closeOwn ends what openOwn has opened, if the workload was never served.
func (z *Ztunnel) closeOwn() {
	if p := z.own.pod.Load(); !z.own.serving.Load() && p.proxy != nil {
		p.proxy.Stop()
	}
}

// serveOwn is dedicated mode from the time when everything is known.
func (z *Ztunnel) serveOwn(ctx context.Context) error {
	p := z.own.pod.Load()
	if err := p.start(z.proxies); err != nil {
		return err
	}
	z.own.serving.Store(true)
	z.log.Info("workload served", telemetry.KeyWorkload, p.name)
	<-ctx.Done()
	p.Drain()
	return nil
}

// serveNode is shared mode from the time when everything is known.
func (z *Ztunnel) serveNode(ctx context.Context) error {
	ctx, end := context.WithCancel(ctx)
	var own sync.WaitGroup
	defer own.Wait()
	defer end()
	if z.cfg.SelfProxy() {
		if err := z.startSelf(); err != nil {
			return fmt.Errorf("tunnels to our own pod: %w", err)
		}
		own.Go(func() {
			<-ctx.Done()
			z.own.pod.Load().Drain()
		})
	}
	if err := z.agent.Run(ctx); err != nil {
		return fmt.Errorf("node agent: %w", err)
	}
	return nil
}

// startSelf serves HBONE to our own pod (spec/ztunnel.md §1.8), so that its
// metrics can be scraped through the mesh. Our own namespace is not redirected.
func (z *Ztunnel) startSelf() error {
	c := z.cfg
	p := z.proxyConfig(workload.Info{Name: c.PodName, Namespace: c.PodNamespace, ServiceAccount: c.ServiceAccount}, nil)
	p.InboundOnly, p.SOCKS5 = true, false
	self := &pod{name: c.PodNamespace + "/" + c.PodName, proxy: proxy.New(p)}
	if err := self.start(z.proxies); err != nil {
		return err
	}
	z.own.pod.Store(self)
	z.own.serving.Store(true)
	return nil
}

// running lists what runs now.
func (z *Ztunnel) running() []*pod {
	var out []*pod
	if z.own.serving.Load() {
		out = append(out, z.own.pod.Load())
	}
	if z.agent == nil {
		return out
	}
	for _, announced := range z.agent.Pods() {
		if p, ok := announced.Proxy.(*pod); ok {
			out = append(out, p)
		}
	}
	return out
}
