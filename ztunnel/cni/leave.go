package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/redirect"
)

// maxClearFailures is how often the annotation of a pod is tried to be removed while the
// agent leaves: its permissions may be gone already.
const maxClearFailures = 3

// Leave takes every pod out of the mesh, as if no label asked for it, and returns when
// all are out or ctx is done, then with the number of those that are not. The agent has
// to be running, and enrols nobody any more.
func (a *Agent) Leave(ctx context.Context) error {
	a.post(func() {
		a.leaving = true
		for _, e := range a.entries {
			e.stopTimer()
			e.failures, e.err = 0, nil
			a.reconcile(e)
		}
		a.checkLeft()
	})
	select {
	case <-a.left:
		return nil
	case <-a.done:
		return errors.New("pods not released: the agent has ended")
	case <-ctx.Done():
		return fmt.Errorf("pods not released in time: %w", context.Cause(ctx))
	}
}

// checkLeft ends Leave when no pod is enrolled.
func (a *Agent) checkLeft() {
	if !a.leaving {
		return
	}
	for _, e := range a.entries {
		if e.busy || e.stage != stageNone || e.exempted != nil || e.annotation != "" {
			return
		}
	}
	select {
	case <-a.left:
	default:
		close(a.left)
	}
}

// Purge removes at once whatever an agent that is gone has left: the redirection of
// every pod that its records name, and the records and sockets. Connections that are
// redirected do not survive it. find may be nil.
func Purge(ctx context.Context, log *slog.Logger, runDir, zdsSocket, procDir string, find Find) error {
	recs := records{dir: filepath.Join(runDir, "pods")}
	all, err := recs.load(log)
	errs := []error{err}
	spaces, lost := map[string]*netns.NS{}, []Pod(nil)
	for _, rec := range all {
		if !rec.Enrolled {
			continue
		}
		ns, err := openPodNS(rec.NetNS, rec.IPs)
		if err != nil {
			log.Info("namespace of an enrolled pod is lost", "pod", rec.Namespace+"/"+rec.Name, "error", err)
			lost = append(lost, Pod{UID: rec.UID, Name: rec.Name, Namespace: rec.Namespace, IPs: rec.IPs})
			continue
		}
		spaces[rec.UID] = ns
	}
	if find != nil && len(lost) > 0 {
		for uid, f := range find(ctx, lost) {
			spaces[uid] = f.NS
		}
	}
	for _, rec := range all {
		err := error(nil)
		if ns := spaces[rec.UID]; ns != nil { // else it has gone
			err = errors.Join(rec.purge(ns, procDir), ns.Close())
		}
		if err == nil {
			err = recs.remove(rec.UID)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("pod %s/%s: %w", rec.Namespace, rec.Name, err))
		}
	}
	for _, path := range []string{filepath.Join(runDir, mesh.CNIAgentSocket), zdsSocket} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err // records that are left are for the next attempt
	}
	return os.RemoveAll(recs.dir)
}

// purge removes the redirection from the pod's namespace.
func (r record) purge(ns *netns.NS, procDir string) error {
	if r.MigrateWasOff {
		setMigrate(procDir, ns, "1", "0")
	}
	return redirect.Remove(ns.File())
}
