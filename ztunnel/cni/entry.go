package cni

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

// entry is what the owner knows of one pod.
type entry struct {
	uid string

	pod   Pod
	known bool // the source has it now
	seen  bool // the source had it, or an earlier agent's record says so

	record   record
	recorded bool // the container runtime has told its namespace, or it was found
	deleted  bool // the container runtime has taken its namespace away
	lost     bool // its namespace is to be looked for
	misses   int  // times that it was looked for in vain

	ns         *netns.NS // open while the pod is enrolled
	generation int       // of ns: what was begun in another does not count
	stage      stage
	verified   bool
	annotation string       // as seen or last written
	noted      string       // what was logged about the pod's labels
	exempted   []netip.Addr // the addresses whose probes pass; nil = none

	busy     bool   // an operation runs
	err      error  // of the last operation
	failures int    // in a row
	last     action // begun last
	stop     func() // of the timer that is set; nil without
	turn     int    // of the timer; one of an older turn that fires late is ignored
	delayed  action // what the timer holds back
	waiters  map[chan error]bool
}

// know takes what the source says of the pod. When that changes what is wanted, no
// back-off of what was wanted before holds it up.
func (e *entry) know(p Pod, scope Scope) {
	if e.known && scope.captures(e.pod).captured != scope.captures(p).captured {
		e.stopTimer()
		e.failures, e.err = 0, nil
	}
	if e.known && e.pod.Annotations[mesh.AnnotationDNSCapture] != p.Annotations[mesh.AnnotationDNSCapture] {
		e.verified = false // the rules have to be others
	}
	e.pod, e.known, e.seen = p, true, true
	e.annotation = p.Annotations[mesh.AnnotationRedirection]
}

func (e *entry) name() string {
	if e.pod.Name != "" {
		return e.pod.Namespace + "/" + e.pod.Name
	}
	return e.record.Namespace + "/" + e.record.Name
}

func (e *entry) gone() bool {
	if e.known {
		return e.pod.Ended
	}
	return e.seen || !e.recorded
}

// reachable says whether the namespace is open or can be opened.
func (e *entry) reachable() bool { return e.ns != nil || e.recorded && e.record.NetNS != "" }

// addresses of the pod, in order, from whoever knows them.
func (e *entry) addresses() []netip.Addr {
	all := slices.Concat(e.record.IPs, e.pod.IPs)
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// facts of the pod.
func (a *Agent) facts(e *entry) facts {
	var s *session
	if len(a.sessions) > 0 {
		s = a.sessions[len(a.sessions)-1]
	}
	sessions := a.sessions
	wanted := !a.leaving && e.known && a.cfg.Scope.captures(e.pod).captured
	return facts{
		wanted:     wanted,
		gone:       e.gone(),
		reachable:  e.reachable(),
		findable:   a.findable(e, wanted),
		exposed:    a.cfg.Exempt != nil && !slices.Equal(e.exempted, e.addresses()),
		exempted:   e.exempted != nil,
		stage:      e.stage,
		verified:   e.verified,
		connected:  s != nil && s.ready,
		acked:      s != nil && s.acked[e.uid],
		served:     slices.ContainsFunc(sessions, func(s *session) bool { return s.acked[e.uid] }),
		annotation: e.annotation,
	}
}

// open opens the namespace that the container runtime named. One that is not the pod's
// any more is lost.
func (e *entry) open() (*netns.NS, error) {
	if e.ns != nil {
		return e.ns, nil
	}
	ns, err := openPodNS(e.record.NetNS, e.addresses())
	if err != nil {
		e.record.NetNS = ""
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	e.ns = ns
	return ns, nil
}

// close gives up the namespace and the timer.
func (e *entry) close() {
	if e.ns != nil {
		_ = e.ns.Close()
		e.ns = nil
	}
	e.generation++
	e.stopTimer()
}

func (e *entry) stopTimer() {
	e.turn++
	if e.stop != nil {
		e.stop()
		e.stop = nil
	}
}

// reply answers every call that waits for the pod.
func (e *entry) reply(err error) {
	for w := range e.waiters {
		w <- err
	}
	e.waiters = nil
}

// backoff doubles with every failure in a row.
func (e *entry) backoff() time.Duration {
	d := retryMin
	for range min(e.failures-1, 20) {
		d = min(2*d, retryMax)
	}
	return d
}
