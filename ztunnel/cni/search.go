package cni

import (
	"context"
	"time"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

// Find looks for the namespaces of pods, by UID. Those that it cannot find are absent.
type Find func(ctx context.Context, pods []Pod) map[string]Found

// Found is a pod's namespace, which the receiver closes.
type Found struct {
	NS   *netns.NS
	Path string // under which it can be opened as long as it exists; may be empty
}

const (
	searchMin = 100 * time.Millisecond
	searchMax = 10 * time.Second
	// maxMisses is how often the namespace of a pod is looked for that is to leave.
	maxMisses = 5
)

// search is one look at the node for all pods that need it; it belongs to the owner.
type search struct {
	running  bool
	fresh    bool   // a pod was added since the last one began
	failures int    // in a row
	stop     func() // of the timer that is set; nil without
}

// findable says whether looking for the pod's namespace may help: it runs, in one of
// its own.
func (a *Agent) findable(e *entry, wanted bool) bool {
	return a.cfg.Find != nil && !e.reachable() && e.known && !e.deleted && !e.gone() &&
		!e.pod.HostNetwork && len(e.pod.IPs) > 0 && (wanted || e.misses < maxMisses)
}

// suspect takes a pod that says that it is enrolled, though nobody has written it down,
// for one: the run directory may have been lost. It is called before e.know.
func (a *Agent) suspect(e *entry, p Pod) {
	if a.cfg.Find != nil && !e.seen && !e.recorded && p.Annotations[mesh.AnnotationRedirection] == mesh.RedirectionEnabled {
		e.stage = stageProgrammed
		e.record = record{UID: p.UID, Name: p.Name, Namespace: p.Namespace, Enrolled: true}
	}
}

// miss has the pod's namespace looked for, together with all others that are missed in
// this turn of the owner.
func (a *Agent) miss(e *entry) {
	if e.lost {
		return
	}
	e.lost = true
	if a.search.fresh {
		return
	}
	a.search.fresh = true
	if !a.search.running {
		a.work.Go(func() { a.post(a.look) })
	}
}

// look starts a search.
func (a *Agent) look() {
	if a.search.running {
		return
	}
	if a.search.stop != nil {
		a.search.stop()
		a.search.stop = nil
	}
	var pods []Pod
	for _, e := range a.entries {
		if e.lost = e.lost && decide(a.facts(e)) == actFind; e.lost {
			pods = append(pods, e.pod)
		}
	}
	if a.search.fresh {
		a.search.failures = 0
	}
	a.search.fresh = false
	if len(pods) == 0 {
		return
	}
	a.search.running = true
	a.work.Go(func() {
		found := a.cfg.Find(a.ctx, pods)
		if !a.post(func() { a.found(pods, found) }) {
			for _, f := range found {
				_ = f.NS.Close()
			}
		}
	})
}

// found takes what a search for the pods has found, and looks again later for the rest.
func (a *Agent) found(pods []Pod, found map[string]Found) {
	a.search.running = false
	missing := 0
	for _, p := range pods {
		e, f := a.entries[p.UID], found[p.UID]
		wanted := e != nil && decide(a.facts(e)) == actFind
		if f.NS != nil && (!wanted || a.held(f.NS)) {
			_ = f.NS.Close() // the second, because the pod's address is out of date
			f.NS = nil
		}
		switch {
		case !wanted:
		case f.NS != nil:
			a.adopt(e, f)
		default:
			e.misses++
			missing++
			a.cfg.Log.Warn("network namespace of a pod not found", "pod", e.name(), "uid", e.uid, "addresses", e.pod.IPs)
		}
		if e != nil {
			a.reconcile(e)
		}
	}
	switch {
	case a.search.fresh:
		a.look()
	case missing > 0:
		a.search.failures++
		wait := searchMin
		for range min(a.search.failures-1, 20) {
			wait = min(2*wait, searchMax)
		}
		a.search.stop = a.cfg.AfterFunc(wait, func() { a.post(a.look) })
	}
}

// adopt takes a namespace that was found as if the container runtime had told it.
func (a *Agent) adopt(e *entry, f Found) {
	e.ns, e.lost, e.misses = f.NS, false, 0
	e.record.UID, e.record.Name, e.record.Namespace = e.uid, e.pod.Name, e.pod.Namespace
	e.record.NetNS, e.record.IPs = f.Path, e.pod.IPs
	e.recorded = true
	if err := a.records.save(e.record); err != nil {
		a.cfg.Log.Warn("pod record not written", "pod", e.name(), "error", err)
	}
	a.cfg.Log.Info("namespace found", "pod", e.name(), "uid", e.uid, "path", f.Path)
}
