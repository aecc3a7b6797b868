package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

// The plugin's requests to the agent: POST with an event as JSON.
const (
	pathAdd      = "/cmdadd"
	pathDel      = "/cmddel"
	maxEventSize = 1 << 20
)

// event says what the container runtime did with a pod.
type event struct {
	NetNS        string       `json:"netns"`
	PodName      string       `json:"podName"`
	PodNamespace string       `json:"podNamespace"`
	PodUID       string       `json:"podUID"`
	IPs          []netip.Addr `json:"ips,omitempty"`
}

func parseEvent(data []byte) (record, error) {
	var ev event
	if err := json.Unmarshal(data, &ev); err != nil {
		return record{}, err
	}
	rec := record{UID: ev.PodUID, Name: ev.PodName, Namespace: ev.PodNamespace, NetNS: ev.NetNS, IPs: ev.IPs}
	if rec.NetNS == "" {
		return record{}, errors.New("no network namespace")
	}
	return rec, rec.validate()
}

// serveEvents answers the plugin.
func (a *Agent) serveEvents(ctx context.Context) error {
	if err := os.MkdirAll(a.cfg.RunDir, 0o755); err != nil {
		return err
	}
	path := filepath.Join(a.cfg.RunDir, mesh.CNIAgentSocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	ln.SetUnlinkOnClose(false) // by then the path may be a successor's
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+pathAdd, a.handle(a.add))
	mux.HandleFunc("POST "+pathDel, a.handle(a.del))
	server := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	a.up(&a.plugUp)
	return server.Serve(ln)
}

// handle decodes an event, and answers 200 or the error's text.
func (a *Agent) handle(do func(context.Context, record) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxEventSize))
		var rec record
		if err == nil {
			rec, err = parseEvent(data)
		}
		status := http.StatusOK
		if err != nil {
			status = http.StatusBadRequest
		} else if err = do(r.Context(), rec); err != nil {
			status = http.StatusInternalServerError
			a.cfg.Log.Warn("plugin call refused", "path", r.URL.Path, "pod", rec.Namespace+"/"+rec.Name, "error", err)
		}
		a.metrics.answered(status)
		if err != nil {
			http.Error(w, err.Error(), status)
		}
	}
}

// add learns a pod's namespace and returns when the pod may start: when it is not to be
// captured, or is captured and known to ztunnel.
func (a *Agent) add(ctx context.Context, rec record) error {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.AddTimeout)
	defer cancel()
	result := make(chan error, 1)
	a.post(func() { a.remember(rec, result) })
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
	case <-a.done:
		return errors.New("the agent ends")
	}
	a.post(func() {
		if e := a.entries[rec.UID]; e != nil && e.waiters[result] {
			delete(e.waiters, result)
			result <- a.giveUp(e)
		}
	})
	select {
	case err := <-result:
		return err
	case <-a.done:
		return errors.New("the agent ends")
	}
}

// remember takes the record and lets result wait for the pod.
func (a *Agent) remember(rec record, result chan error) {
	e := a.entry(rec.UID)
	rec.NetNS = a.hostPath(rec.NetNS)
	ns, err := openPodNS(rec.NetNS, rec.IPs)
	if err != nil {
		err = fmt.Errorf("network namespace: %w", err)
		if e.reachable() {
			result <- err
			return
		}
		// A pod outside the mesh does not need it, and others are told in the end.
		rec.NetNS, rec.Enrolled, rec.MigrateWasOff = "", e.record.Enrolled, e.record.MigrateWasOff
	} else {
		defer func() { _ = ns.Close() }()
		a.assign(e, &rec, ns)
	}
	if err := a.records.save(rec); err != nil {
		result <- fmt.Errorf("pod record: %w", err)
		return
	}
	e.record, e.recorded, e.deleted, e.lost = rec, true, false, false
	e.stopTimer()
	e.failures, e.err = 0, err
	if e.waiters == nil {
		e.waiters = map[chan error]bool{}
	}
	e.waiters[result] = true
	a.reconcile(e)
}

// assign makes the namespace the pod's, whoever had it: what an address out of date has
// led to goes from one pod to the other with the rules in it.
func (a *Agent) assign(e *entry, rec *record, ns *netns.NS) {
	same := e.ns != nil && e.ns.Same(ns)
	for _, other := range a.entries {
		if !other.holds(ns) {
			continue
		}
		rec.Enrolled = rec.Enrolled || other.record.Enrolled
		rec.MigrateWasOff = rec.MigrateWasOff || other.record.MigrateWasOff
		if other != e {
			a.cfg.Log.Warn("namespace belongs to another pod", "pod", e.name(), "taken_from", other.name(), "namespace", ns.String())
			a.withdraw(other)
		}
	}
	if same {
		return
	}
	a.abandon(e)
	if rec.Enrolled {
		e.stage = stageProgrammed // at worst; to be verified
	}
}

// withdraw takes the pod's namespace from it.
func (a *Agent) withdraw(e *entry) {
	e.recorded, e.record.Enrolled, e.record.MigrateWasOff = false, false, false
	if err := a.records.remove(e.uid); err != nil {
		a.cfg.Log.Warn("pod record not removed", "pod", e.name(), "error", err)
	}
	if e.ns != nil { // handed to a ztunnel or programmed
		a.metrics.reconciled("delete")
		a.sendDel(e)
		a.abandon(e)
	}
	a.reconcile(e)
}

// abandon forgets a namespace that is no more, though the pod may get another.
func (a *Agent) abandon(e *entry) {
	for _, s := range a.sessions {
		delete(s.acked, e.uid)
	}
	e.close()
	e.stage, e.verified = stageNone, false
}

// hostPath is where a path that the container runtime sees is for the agent.
func (a *Agent) hostPath(path string) string {
	if rest, ok := strings.CutPrefix(path, "/proc/"); ok && a.cfg.ProcDir != "" {
		return filepath.Join(a.cfg.ProcDir, rest)
	}
	return path
}

// giveUp says why a pod could not start in time, and leaves it to be reconciled.
func (a *Agent) giveUp(e *entry) error {
	switch {
	case !a.isSynced:
		return errors.New("the agent does not know the pods of this node yet")
	case !e.known:
		return fmt.Errorf("pod %s with uid %s is not known to be on this node; maybe the agent's watch is behind", e.name(), e.uid)
	case e.err != nil:
		return e.err
	case len(a.sessions) == 0:
		return errors.New("no ztunnel is connected; maybe ztunnel does not run on this node")
	}
	return errors.New("ztunnel has not acknowledged the pod")
}

// del forgets a pod's namespace. One that was replaced meanwhile stays.
func (a *Agent) del(_ context.Context, rec record) error {
	a.post(func() {
		e := a.entries[rec.UID]
		path := a.hostPath(rec.NetNS)
		if e != nil && e.recorded && (e.record.NetNS == path || e.ns != nil && leadsTo(path, e.ns)) {
			e.deleted = true
			a.withdraw(e)
		}
	})
	return nil
}
