package installer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// repeat is how often a line is said again that has not changed.
const repeat = 30 * time.Second

// patient is how long a pod may start without a word about it.
const patient = 10 * time.Second

// answer is how long one look may take; it may outlast what is waited for.
const answer = 20 * time.Second

var crdResource = schema.GroupVersionResource{Group: apiextensionsv1.GroupName, Version: "v1", Resource: "customresourcedefinitions"}

// look says how far something is: nothing more to say when it is done.
type look func(ctx context.Context) (done bool, lines []string, err error)

// wait looks until it is done, and says what is new each time. The error of a
// wait that took too long holds the last lines.
func (i *Installer) wait(ctx context.Context, what string, look look) error {
	limit := i.patience()
	late := time.NewTimer(limit)
	defer late.Stop()
	tick := time.NewTicker(i.every)
	defer tick.Stop()
	start, said := time.Now(), time.Time{}
	var before, lines []string
	for {
		done, now, err := once(ctx, look)
		switch {
		case err == nil && done:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("%s: %w", what, context.Cause(ctx))
		case err != nil && permanent(err):
			return fmt.Errorf("%s: %w", what, err)
		case err != nil: // the API server may be restarting
			lines = []string{err.Error()}
		default:
			lines = now
		}
		if !slices.Equal(lines, before) || time.Since(said) >= repeat {
			for _, line := range lines {
				i.say("  %s: %s (%s)", what, line, time.Since(start).Round(time.Second))
			}
			before, said = lines, time.Now()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, context.Cause(ctx))
		case <-late.C:
			return &timeoutError{what: what, limit: limit, lines: lines}
		}
	}
}

func once(ctx context.Context, look look) (done bool, lines []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, answer)
	defer cancel()
	return look(ctx)
}

// timeoutError is that something was not done in time.
type timeoutError struct {
	what  string
	limit time.Duration
	lines []string
}

func (e *timeoutError) Error() string {
	return fmt.Sprintf("%s: not done after %s: %s", e.what, e.limit, strings.Join(e.lines, "; "))
}

// permanent reports whether to ask again is of no use.
func permanent(err error) bool {
	return apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) || apierrors.IsInvalid(err)
}

// ready waits until what a release has made works: definitions are known to the
// API server, workloads run.
func (i *Installer) ready(ctx context.Context, what, namespace string, objects []*unstructured.Unstructured) error {
	if definitions := names(objects, kindCRD); len(definitions) > 0 {
		err := i.wait(ctx, what, func(ctx context.Context) (bool, []string, error) { return i.established(ctx, definitions) })
		if err != nil {
			return err
		}
	}
	for _, kind := range []string{kindDeployment, kindDaemonSet} {
		for _, name := range names(objects, kind) {
			if err := i.running(ctx, workload{kind, namespace, name}); err != nil {
				return err
			}
		}
	}
	return nil
}

// running waits until a workload's pods are ready.
func (i *Installer) running(ctx context.Context, w workload) error {
	var last rollout
	var wrong []problem
	start := time.Now()
	err := i.wait(ctx, w.name, func(ctx context.Context) (bool, []string, error) {
		var err error
		if last, err = i.rollout(ctx, w); err != nil || last.done() {
			return err == nil, nil, err
		}
		if wrong, err = i.problems(ctx, w.namespace, last.selector); err != nil {
			return false, nil, err
		}
		lines := []string{last.String()}
		for _, p := range wrong {
			if !p.young || time.Since(start) > patient {
				lines = append(lines, p.String())
			}
		}
		return false, lines, nil
	})
	if late, ok := errors.AsType[*timeoutError](err); ok {
		return i.withLogs(ctx, w, late, wrong)
	}
	if err == nil {
		where := ""
		if w.kind == kindDaemonSet && last.wanted == 0 {
			where = ", because no node may run it"
		}
		i.say("  %s: %s%s (%s)", w.name, last, where, time.Since(start).Round(time.Second))
	}
	return err
}

// withLogs adds to the error what the pods' containers said last.
func (i *Installer) withLogs(ctx context.Context, w workload, late *timeoutError, wrong []problem) error {
	var text strings.Builder
	fmt.Fprintf(&text, "%s %s is not ready after %s", w.kind, w.name, late.limit)
	for _, line := range late.lines {
		fmt.Fprintf(&text, "\n  %s", line)
	}
	for _, p := range wrong {
		if !p.log {
			continue
		}
		if said := i.logs(ctx, w.namespace, p); said != "" {
			fmt.Fprintf(&text, "\n  last lines of pod %s, container %s:\n    %s", p.pod, p.container, strings.ReplaceAll(said, "\n", "\n    "))
		}
	}
	return errors.New(text.String())
}

// established looks whether the API server serves definitions.
func (i *Installer) established(ctx context.Context, names []string) (bool, []string, error) {
	ready := 0
	var lines []string
	for _, name := range names {
		object, err := i.dynamic.Resource(crdResource).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return false, nil, err
		}
		var crd apiextensionsv1.CustomResourceDefinition
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &crd); err != nil {
			return false, nil, err
		}
		for _, c := range crd.Status.Conditions {
			switch {
			case c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue:
				ready++
			case c.Type == apiextensionsv1.NamesAccepted && c.Status == apiextensionsv1.ConditionFalse:
				lines = append(lines, name+": "+c.Message)
			}
		}
	}
	if ready == len(names) {
		return true, nil, nil
	}
	return false, append([]string{fmt.Sprintf("%d of %d kinds are served", ready, len(names))}, lines...), nil
}
