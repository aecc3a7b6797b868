package installer

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	release "helm.sh/helm/v4/pkg/release/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Install brings the mesh to what the charts and values say, whether it is
// installed already or not:
//
//  1. values are checked before anything is touched
//  2. the Gateway API, where it is absent
//  3. the namespace
//  4. each part in its order, and that it works before the next
func (i *Installer) Install(ctx context.Context) error {
	sections, err := sections(i.cfg.Values) // 1.
	if err != nil {
		return err
	}
	for _, p := range parts {
		c, err := load(p.chart)
		if err != nil {
			return err
		}
		if _, err := render(ctx, c, p.release, i.cfg.Namespace, sections[p.chart]); err != nil {
			return explain(err)
		}
	}
	if err := i.reach(ctx); err != nil {
		return err
	}
	present, err := i.installed(ctx)
	if err != nil {
		return err
	}
	if whole := present[umbrella]; whole != nil {
		return fmt.Errorf("the mesh is installed as one release, %s in %s: use helm upgrade for it, or ambitctl uninstall first", whole.Name, whole.Namespace)
	}
	if err := i.gatewayAPI(ctx); err != nil { // 2.
		return fmt.Errorf("gateway API: %w", err)
	}
	if err := i.namespace(ctx); err != nil { // 3.
		return fmt.Errorf("namespace %s: %w", i.cfg.Namespace, err)
	}
	for _, p := range parts { // 4.
		if err := i.install(ctx, p, sections[p.chart], present); err != nil {
			return err
		}
	}
	if i.cfg.DryRun {
		i.say("nothing has been changed")
		return nil
	}
	if i.cfg.Timeout == 0 {
		i.say("applied, and not waited for")
		return nil
	}
	i.say("installed in %s. To bring a namespace into the mesh:", time.Since(i.started).Round(time.Second))
	i.say("  kubectl label namespace <name> istio.io/dataplane-mode=ambient")
	return nil
}

// install applies one part and waits until it works.
func (i *Installer) install(ctx context.Context, p part, values map[string]any, present map[string]*release.Release) error {
	c, err := load(p.chart)
	if err != nil {
		return err
	}
	r := request{chart: c, name: p.release, namespace: i.cfg.Namespace, values: values}
	if r.before = present[p.chart]; r.before != nil {
		r.name, r.namespace = r.before.Name, r.before.Namespace
	}
	i.say("%s:", p.chart)
	if p.chart == "base" {
		r.takeOwnership = true // of definitions whose release is gone; the others are left out
		if r.values, err = i.leaveOut(ctx, r); err != nil {
			return err
		}
	}
	made, fresh, err := i.apply(ctx, r)
	if err != nil {
		return err
	}
	objects, err := decode([]byte(made.Manifest))
	if err != nil {
		return fmt.Errorf("release %s: %w", r.name, err)
	}
	switch {
	case i.cfg.DryRun:
		i.say("  release %s would be %s, %d objects", r.name, verb(fresh), len(objects))
		return nil
	default:
		i.say("  release %s %s, revision %d, %d objects", r.name, verb(fresh), made.Version, len(objects))
	}
	i.mapper.Reset() // the part may have brought new kinds
	if i.cfg.Timeout == 0 {
		return nil
	}
	return i.ready(ctx, p.chart, r.namespace, objects)
}

func verb(fresh bool) string {
	if fresh {
		return "installed"
	}
	return "upgraded"
}

// leaveOut adds to the values of chart base the definitions that somebody else
// has installed.
func (i *Installer) leaveOut(ctx context.Context, r request) (map[string]any, error) {
	_, foreign, err := i.definitions(ctx, map[owner]bool{{r.namespace, r.name}: true})
	if err != nil || len(foreign) == 0 {
		return r.values, err
	}
	owners := map[string]bool{}
	excluded := i.excluded(r)
	for _, d := range foreign {
		owners[d.owner.String()] = true
		if !slices.Contains(excluded, any(d.name)) {
			excluded = append(excluded, d.name)
		}
	}
	i.say("  %d of Istio's definitions are there already and are left as they are; they belong to %s",
		len(foreign), join(slices.Sorted(maps.Keys(owners))))
	out := map[string]any{}
	maps.Copy(out, r.values)
	base := map[string]any{}
	if given, ok := out["base"].(map[string]any); ok {
		maps.Copy(base, given)
	}
	base["excludedCRDs"] = excluded
	out["base"] = base
	return out, nil
}

// excluded are the definitions that the user leaves out: a list in the values of
// an upgrade replaces that of before.
func (i *Installer) excluded(r request) []any {
	values := []map[string]any{r.values}
	if i.cfg.ReuseValues && r.before != nil {
		values = append(values, r.before.Config)
	}
	for _, v := range values {
		base, _ := v["base"].(map[string]any)
		if given, ok := base["excludedCRDs"].([]any); ok {
			return slices.Clone(given)
		}
	}
	return []any{}
}

// namespace makes the mesh's namespace, marked as ours, unless it is there.
func (i *Installer) namespace(ctx context.Context) error {
	_, err := i.kube.CoreV1().Namespaces().Get(ctx, i.cfg.Namespace, metav1.GetOptions{})
	if err == nil || !apierrors.IsNotFound(err) {
		return err
	}
	if i.cfg.DryRun {
		i.say("namespace %s would be created", i.cfg.Namespace)
		return nil
	}
	_, err = i.kube.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{
		Name: i.cfg.Namespace,
		Labels: map[string]string{
			labelManagedBy: managedByUs,
			// ztunnel and ambit-cni program the node, which the other levels forbid.
			"pod-security.kubernetes.io/enforce": "privileged",
		},
	}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	if err == nil {
		i.say("namespace %s: created", i.cfg.Namespace)
	}
	return err
}
