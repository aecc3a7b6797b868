package proxy

import (
	"context"
	"net"

	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
)

// Drain ends gently, as when the process ends and the pod goes on
// (spec/ztunnel.md §1.9):
//
//  1. Where another process serves the pod's ports already, it gets what is new,
//     and what is on its way to us is accepted.
//  2. The listeners are closed, before peers are told to open no more streams.
//  3. Connections end by themselves, for as long as the configuration allows from
//     the call on; policies and revocations still apply to them.
//  4. Stop.
func (p *Proxy) Drain() {
	limit, cancel := context.WithTimeout(p.life, p.cfg.DrainTimeout)
	defer cancel()
	if p.cfg.ReusePort {
		listeners := make([]*net.TCPListener, len(p.listeners))
		for i, l := range p.listeners {
			listeners[i] = l.TCPListener
		}
		if _, err := p.cfg.NetNS.HandOver(limit, listeners); err != nil {
			p.log.Warn("listeners are closed without a successor", telemetry.KeyError, err)
		}
	}
	p.closeListeners()
	p.stopWork(errStopped)
	ended := make(chan struct{})
	go func() { p.running.Wait(); close(ended) }() // ends with Stop below
	select {
	case <-ended:
	case <-limit.Done():
	}
	p.Stop()
	<-ended
}

// Stop ends listeners and connections and returns when all has ended.
func (p *Proxy) Stop() {
	p.once.Do(func() {
		p.closeListeners()
		if p.stopping == nil { // never started
			return
		}
		p.stopping(errStopped)
		p.table.closeAll(&telemetry.Refusal{Reason: telemetry.Shutdown, Err: errStopped})
		_ = p.inner.Close() // every stream's own error has been reported
		_ = p.pool.Close()
	})
	p.running.Wait()
	p.watching.Wait()
}
