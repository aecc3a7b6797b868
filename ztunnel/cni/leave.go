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
	var lost []Pod
	for _, rec := range all {
		if rec.Enrolled && rec.NetNS == "" {
			lost = append(lost, Pod{UID: rec.UID, Name: rec.Name, Namespace: rec.Namespace, IPs: rec.IPs})
		}
	}
	found := map[string]Found{}
	if find != nil && len(lost) > 0 {
		found = find(ctx, lost)
	}
	for _, rec := range all {
		if err := rec.purge(found[rec.UID].NS, procDir); err != nil {
			errs = append(errs, fmt.Errorf("pod %s/%s: %w", rec.Namespace, rec.Name, err))
			continue
		}
		errs = append(errs, recs.remove(rec.UID))
	}
	for _, f := range found {
		errs = append(errs, f.NS.Close())
	}
	for _, path := range []string{filepath.Join(runDir, mesh.CNIAgentSocket), zdsSocket, recs.dir} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// purge removes the redirection from the pod's namespace, which may be gone.
func (r record) purge(ns *netns.NS, procDir string) error {
	if !r.Enrolled {
		return nil
	}
	if r.NetNS != "" {
		opened, err := netns.Open(r.NetNS)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		defer func() { _ = opened.Close() }()
		ns = opened
	}
	if ns == nil {
		return nil // no process and no name of it
	}
	if err := ns.Check(); err != nil {
		return err
	}
	if r.MigrateWasOff {
		setMigrate(procDir, ns, "1", "0")
	}
	return redirect.Remove(ns.File())
}
