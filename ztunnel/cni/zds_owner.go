package cni

import (
	"slices"

	"github.com/ambit-mesh/ambit/apis/zds"
)

// The owner's side of the sessions: everything here runs in the Agent's goroutine.

// join makes s the newest ztunnel and sends it the snapshot: every pod that has rules.
func (a *Agent) join(s *session) {
	a.sessions = append(a.sessions, s)
	a.metrics.connected(len(a.sessions))
	pods := 0
	for _, e := range a.entries {
		switch {
		case e.stage == stageNone || e.gone():
			continue
		case e.ns == nil:
			s.push(request{message: keepMessage(e.uid), done: func(error) {}})
		default:
			s.push(a.addRequest(s, e, func(error) {}))
		}
		pods++
	}
	s.push(request{message: snapshotMessage(), done: func(err error) {
		if err != nil {
			return // the session's end is logged
		}
		a.post(func() {
			s.ready = true
			for _, e := range a.entries {
				a.reconcile(e) // what the snapshot did not hold, or ztunnel refused
			}
		})
	}})
	a.cfg.Log.Info("ztunnel connected", "sessions", len(a.sessions), "pods", pods)
}

// part forgets s.
func (a *Agent) part(s *session, why error) {
	a.sessions = slices.DeleteFunc(a.sessions, func(other *session) bool { return other == s })
	a.metrics.connected(len(a.sessions))
	a.cfg.Log.Warn("ztunnel disconnected", "error", why, "sessions", len(a.sessions))
	for _, e := range a.entries {
		a.reconcile(e)
	}
}

// addRequest hands the pod to s; then runs in the owner.
func (a *Agent) addRequest(s *session, e *entry, then func(error)) request {
	generation := e.generation
	return request{
		message: &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Add{Add: &zds.AddWorkload{
			Uid:          e.uid,
			WorkloadInfo: &zds.WorkloadInfo{Name: e.pod.Name, Namespace: e.pod.Namespace, ServiceAccount: e.pod.ServiceAccount},
		}}},
		file: e.ns.File(),
		done: func(err error) {
			a.post(func() {
				if err == nil && e.generation == generation {
					s.acked[e.uid] = true
				}
				then(err)
			})
		},
	}
}

// send hands the pod to the newest ztunnel.
func (a *Agent) send(e *entry) {
	if _, err := e.open(); err != nil {
		a.finish(e, outcome{"enrol", e.generation, err}, nil)
		return
	}
	s, generation := a.sessions[len(a.sessions)-1], e.generation
	e.busy = true
	queued := s.push(a.addRequest(s, e, func(err error) {
		a.finish(e, outcome{"enrol", generation, err}, func() {
			a.cfg.Log.Debug("ztunnel serves the pod", "pod", e.name(), "uid", e.uid)
		})
	}))
	if !queued {
		a.finish(e, outcome{"enrol", generation, errSession}, nil)
	}
}

// sendDel tells every ztunnel; one that cannot be told ends its connection and gets a
// snapshot without the pod when it comes back.
func (a *Agent) sendDel(e *entry) {
	for _, s := range a.sessions {
		delete(s.acked, e.uid)
		s.push(request{
			message: &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Del{Del: &zds.DelWorkload{Uid: e.uid}}},
			done: func(err error) {
				if err != nil {
					a.cfg.Log.Warn("pod not deleted from ztunnel", "uid", e.uid, "error", err)
				}
			},
		})
	}
}

func keepMessage(uid string) *zds.WorkloadRequest {
	return &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Keep{Keep: &zds.KeepWorkload{Uid: uid}}}
}

func snapshotMessage() *zds.WorkloadRequest {
	return &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_SnapshotSent{SnapshotSent: &zds.SnapshotSent{}}}
}
