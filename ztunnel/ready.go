package ztunnel

import (
	"fmt"

	"github.com/ambit-mesh/ambit/ztunnel/admin"
	"github.com/ambit-mesh/ambit/ztunnel/config"
)

// warm is closed once every source has told what it knows. A local document is
// in force before anything begins.
func (z *Ztunnel) warm() <-chan struct{} {
	if z.xds == nil {
		return closed
	}
	return z.xds.Warm()
}

var closed = func() <-chan struct{} { c := make(chan struct{}); close(c); return c }()

// pending lists what the process is not ready for, by the names of
// spec/ztunnel.md §1.4.
func (z *Ztunnel) pending() []admin.Task {
	var out []admin.Task
	select {
	case <-z.warm():
	default:
		out = append(out, admin.Task{Name: "state manager", Detail: "istiod at " + z.cfg.XDSAddress + " has not told everything: " + z.xdsDetail()})
	}
	if z.draining.Load() {
		out = append(out, admin.Task{Name: "proxy", Detail: "the process ends: nothing new is taken"})
	}
	if z.cfg.Mode == config.Shared {
		if !z.agent.Ready() {
			out = append(out, admin.Task{Name: "workload proxy manager", Detail: z.agent.Detail()})
		}
		return out
	}
	if z.own.serving.Load() {
		return out
	}
	if z.cfg.Proxy {
		out = append(out, admin.Task{Name: "proxy", Detail: "starts after the state manager"})
	}
	if z.cfg.DNS {
		out = append(out, admin.Task{Name: "dns proxy", Detail: "starts after the state manager"})
	}
	return out
}

func (z *Ztunnel) xdsDetail() string {
	s := z.xds.Stats()
	switch {
	case s.Connected:
		return "connected"
	case s.Err != nil:
		return s.Err.Error()
	}
	return "connecting"
}

// notes says what someone should look at although the process works.
func (z *Ztunnel) notes() []string {
	var out []string
	for _, f := range z.files {
		if err := f.err.Load(); err != nil {
			out = append(out, (*err).Error()+"; what it said before is in effect")
		}
	}
	if z.xds != nil && z.isWarm() && !z.xds.Stats().Connected {
		out = append(out, "istiod at "+z.cfg.XDSAddress+" is away, what it told is in effect: "+z.xdsDetail())
	}
	for _, p := range z.running() {
		if p.proxy == nil {
			continue
		}
		for _, name := range p.proxy.MissingPolicies() {
			out = append(out, fmt.Sprintf("%s: policy %s is named and has not arrived", p.name, name))
		}
	}
	return out
}

func (z *Ztunnel) isWarm() bool {
	select {
	case <-z.warm():
		return true
	default:
		return false
	}
}
