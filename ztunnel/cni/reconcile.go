package cni

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/ztunnel/redirect"
)

// reconcile does the next step for the pod, unless one is under way or is to be tried
// later. It is called after every change of what the step depends on.
func (a *Agent) reconcile(e *entry) {
	if !a.isSynced || e.busy {
		return
	}
	a.note(e)
	f := a.facts(e)
	a.answerWaiters(e, f)
	next := decide(f)
	switch {
	case next == actNone:
		a.clean(e)
		a.checkLeft()
	case next == actFind:
		a.miss(e)
	case next == actForget:
		a.forget(e)
	case e.stop != nil && next == e.delayed:
		// Its timer will come.
	default:
		e.last = next
		a.act(e, next)
	}
}

// answerWaiters ends the calls that have what they wait for.
func (a *Agent) answerWaiters(e *entry, f facts) {
	done := f.stage == stageProgrammed && f.verified && f.acked
	if e.known && (!f.wanted || done) {
		e.reply(nil)
	}
}

// note logs what an operator should know about the pod's labels, once.
func (a *Agent) note(e *entry) {
	note := ""
	if e.known {
		note = a.cfg.Scope.captures(e.pod).note
	}
	if note != "" && note != e.noted {
		a.cfg.Log.Warn("pod is not captured", "pod", e.name(), "reason", note)
	}
	e.noted = note
}

// clean drops what nobody asks for any more.
func (a *Agent) clean(e *entry) {
	if e.recorded && e.gone() && !e.known {
		e.recorded = false
		if err := a.records.remove(e.uid); err != nil {
			a.cfg.Log.Warn("pod record not removed", "pod", e.name(), "error", err)
		}
	}
	if !e.known && !e.recorded && len(e.waiters) == 0 {
		e.close()
		delete(a.entries, e.uid)
	}
}

// forget tells every ztunnel that the pod is gone. Its rules go with its namespace.
func (a *Agent) forget(e *entry) {
	a.metrics.reconciled("delete")
	a.cfg.Log.Info("pod is gone", "pod", e.name(), "uid", e.uid)
	a.sendDel(e)
	a.leave(e)
	a.reconcile(e)
}

// leave is the end of a pod's enrolment.
func (a *Agent) leave(e *entry) {
	e.close()
	e.stage, e.verified, e.failures, e.err = stageNone, false, 0, nil
	e.record.Enrolled, e.record.MigrateWasOff = false, false
	if e.recorded {
		if err := a.records.save(e.record); err != nil {
			a.cfg.Log.Warn("pod record not written", "pod", e.name(), "error", err)
		}
	}
}

// act starts the step beside the owner.
func (a *Agent) act(e *entry, next action) {
	switch next {
	case actProgram:
		a.program(e)
	case actSend:
		a.send(e)
	case actExempt:
		a.exempt(e, e.addresses())
	case actUnexempt:
		a.exempt(e, nil)
	case actEnable:
		a.annotate(e, mesh.RedirectionEnabled)
	case actClear:
		a.annotate(e, "")
	case actRelease:
		a.release(e)
	case actDrain:
		a.drain(e)
	case actNone, actForget, actFind:
	}
}

// program makes the rules. That the pod is enrolled is written down first, so that no
// rules are left that nobody knows of.
func (a *Agent) program(e *entry) {
	ns, err := e.open()
	if err == nil && !e.record.Enrolled {
		e.record.Enrolled = true
		err = a.records.save(e.record)
	}
	if err != nil {
		a.finish(e, outcome{"enrol", e.generation, err}, nil)
		return
	}
	var migrateOn bool
	options := a.options(e)
	a.do(e, "enrol", func(context.Context) error {
		if err := redirect.Apply(ns.File(), options); err != nil {
			return err
		}
		migrateOn = setMigrate(a.cfg.ProcDir, ns, "0", "1")
		return nil
	}, func() {
		e.stage, e.verified = stageProgrammed, options == a.options(e) // the annotation may have changed
		a.metrics.reconciled("add")
		a.cfg.Log.Info("pod enrolled", "pod", e.name(), "uid", e.uid)
		if migrateOn {
			e.record.MigrateWasOff = true
			if err := a.records.save(e.record); err != nil {
				a.cfg.Log.Warn("pod record not written", "pod", e.name(), "error", err)
			}
		}
	})
}

// options are those with which the pod's rules are made.
func (a *Agent) options(e *entry) redirect.Options {
	return redirect.Options{DNS: e.pod.capturesDNS(a.cfg.DNS)}
}

func (a *Agent) annotate(e *entry, value string) {
	pod, last := e.pod, a.leaving && e.failures >= maxClearFailures
	a.do(e, "annotate", func(ctx context.Context) error {
		err := a.cfg.Annotate(ctx, pod, value)
		if err != nil && last {
			a.cfg.Log.Warn("annotation stays, the next agent will see to it", "pod", pod.Namespace+"/"+pod.Name, "error", err)
			return nil
		}
		return err
	}, func() {
		e.annotation = value
		if value == "" && e.stage == stageReleased {
			a.later(e, actDrain, drainDelay)
		}
		a.cfg.Log.Info("pod annotated", "pod", e.name(), "redirection", value)
	})
}

// release lets new connections go directly from now on.
func (a *Agent) release(e *entry) {
	ns, err := e.open()
	if err != nil {
		a.finish(e, outcome{"release", e.generation, err}, nil)
		return
	}
	a.do(e, "release", func(context.Context) error {
		return redirect.Release(ns.File())
	}, func() {
		e.stage = stageReleased
		if e.annotation == "" {
			a.later(e, actDrain, drainDelay)
		}
		a.metrics.reconciled("remove")
		a.cfg.Log.Info("pod released", "pod", e.name(), "uid", e.uid)
	})
}

// errDraining says that redirected connections are still open.
var errDraining = errors.New("redirected connections are open")

// drain ends the enrolment when the last redirected connection has ended, and looks
// again later when it has not.
func (a *Agent) drain(e *entry) {
	ns, migrateWasOff := e.ns, e.record.MigrateWasOff
	a.do(e, "drain", func(context.Context) error {
		n, err := redirect.Connections(ns.File())
		if err != nil {
			return err
		}
		if n > 0 {
			return errDraining
		}
		if migrateWasOff {
			setMigrate(a.cfg.ProcDir, ns, "1", "0")
		}
		return redirect.Remove(ns.File())
	}, func() {
		a.sendDel(e)
		a.leave(e)
		a.cfg.Log.Info("pod left the mesh", "pod", e.name(), "uid", e.uid)
	})
}

// outcome is how an operation that was begun in a generation of the namespace ended.
type outcome struct {
	what       string
	generation int
	err        error
}

// do runs op beside the owner and then, in the owner, success. op must not touch e.
func (a *Agent) do(e *entry, what string, op func(context.Context) error, success func()) {
	e.busy = true
	generation := e.generation
	a.work.Go(func() {
		err := op(a.ctx)
		a.post(func() { a.finish(e, outcome{what, generation, err}, success) })
	})
}

// finish takes the outcome of an operation and goes on, at once or later.
func (a *Agent) finish(e *entry, o outcome, success func()) {
	e.busy = false
	if e.generation != o.generation {
		a.reconcile(e) // it was about a namespace that is gone
		return
	}
	err := o.err
	if err != nil {
		err = fmt.Errorf("%s %s: %w", o.what, e.name(), err)
	}
	e.stopTimer()
	e.err = err
	if err == nil {
		e.failures = 0
		success()
		a.reconcile(e)
		return
	}
	wait := drainInterval
	if !errors.Is(err, errDraining) {
		e.failures++
		wait = e.backoff()
		a.cfg.Log.Warn("pod not reconciled", "pod", e.name(), "error", err, "retry_in", wait)
		if !errors.Is(err, errSession) {
			e.reply(err) // the runtime tries the whole pod again, with its own back-off
		}
	}
	a.later(e, e.last, wait)
	a.reconcile(e)
}

// later holds one action back for a while; another one is not held up by it.
func (a *Agent) later(e *entry, what action, wait time.Duration) {
	e.stopTimer()
	e.delayed = what
	turn := e.turn
	e.stop = a.cfg.AfterFunc(wait, func() {
		a.post(func() {
			if e.turn != turn {
				return // stopped when it had fired already
			}
			e.stop = nil
			a.reconcile(e)
		})
	})
}
