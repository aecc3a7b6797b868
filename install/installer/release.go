package installer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"helm.sh/helm/v4/pkg/action"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/release/common"
	release "helm.sh/helm/v4/pkg/release/v1"
	"helm.sh/helm/v4/pkg/storage/driver"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// annotationPart is on our charts and says which one it is; Istio's have
	// the same names.
	annotationPart = "ambit.io/part"
	// history is how many revisions of a release are kept.
	history = 10
	// interrupted is how old a pending release is when nobody works on it any
	// more: to write the objects takes seconds.
	interrupted = 2 * time.Minute
)

// installed returns the latest revision of each release of our charts in the
// mesh's namespace, by the chart's name.
func (i *Installer) installed(ctx context.Context) (map[string]*release.Release, error) {
	names, err := i.releaseNames(ctx, i.cfg.Namespace, "secrets")
	if err != nil {
		return nil, fmt.Errorf("releases in %s: %w", i.cfg.Namespace, err)
	}
	out := map[string]*release.Release{}
	for _, name := range names {
		last, err := i.last(i.cfg.Namespace, name)
		if err != nil {
			return nil, err
		}
		if last == nil || last.Chart == nil || last.Chart.Metadata == nil {
			continue
		}
		chart := last.Chart.Metadata.Annotations[annotationPart]
		if chart == "" {
			continue
		}
		if other := out[chart]; other != nil {
			return nil, fmt.Errorf("chart %s is installed twice, as releases %s and %s; uninstall one of them with helm", chart, other.Name, last.Name)
		}
		out[chart] = last
	}
	return out, nil
}

// releaseNames returns the names of all Helm releases in a namespace that are
// stored in these resources, without reading what is in them. Which one Helm
// uses its user says by HELM_DRIVER; we use Secrets.
func (i *Installer) releaseNames(ctx context.Context, namespace string, stores ...string) ([]string, error) {
	var out []string
	for _, store := range stores {
		list, err := i.metadata.Resource(resource("", store)).Namespace(namespace).List(ctx, metav1.ListOptions{LabelSelector: "owner=helm"})
		if err != nil {
			return nil, err
		}
		for _, o := range list.Items {
			out = append(out, o.Labels["name"])
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// last returns the latest revision of a release, nil when there is none.
func (i *Installer) last(namespace, name string) (*release.Release, error) {
	cfg, err := i.helm(namespace)
	if err != nil {
		return nil, err
	}
	last, err := cfg.Releases.Last(name)
	switch {
	case errors.Is(err, driver.ErrReleaseNotFound):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("release %s in %s: %w", name, namespace, err)
	}
	return typed(last)
}

func typed(made any) (*release.Release, error) {
	rel, ok := made.(*release.Release)
	if !ok {
		return nil, fmt.Errorf("helm returned a %T", made)
	}
	return rel, nil
}

// request is one chart to be installed.
type request struct {
	chart         *chart.Chart
	name          string
	namespace     string
	values        map[string]any
	takeOwnership bool
	before        *release.Release // nil: not installed yet
}

// apply installs or upgrades, without waiting for anything to become ready. It
// returns the release and whether it is new.
func (i *Installer) apply(ctx context.Context, r request) (rel *release.Release, fresh bool, err error) {
	cfg, err := i.helm(r.namespace)
	if err != nil {
		return nil, false, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("release %s: %w", r.name, explain(err))
		}
	}()
	if r.before != nil {
		if r.before, err = i.recover(cfg, r.before); err != nil {
			return nil, false, err
		}
	}
	dry := action.DryRunNone
	if i.cfg.DryRun {
		dry = action.DryRunServer
	}
	var made any
	if r.before == nil {
		install := action.NewInstall(cfg)
		install.ReleaseName, install.Namespace = r.name, r.namespace
		install.WaitStrategy, install.Timeout = kube.HookOnlyStrategy, i.patience()
		install.TakeOwnership, install.ForceConflicts = r.takeOwnership, r.takeOwnership
		install.DryRunStrategy = dry
		made, err = install.RunWithContext(ctx, r.chart, r.values)
	} else {
		upgrade := action.NewUpgrade(cfg)
		upgrade.Namespace, upgrade.MaxHistory = r.namespace, history
		upgrade.WaitStrategy, upgrade.Timeout = kube.HookOnlyStrategy, i.patience()
		upgrade.TakeOwnership, upgrade.ForceConflicts = r.takeOwnership, r.takeOwnership
		upgrade.ResetValues, upgrade.ResetThenReuseValues = !i.cfg.ReuseValues, i.cfg.ReuseValues
		upgrade.DryRunStrategy = dry
		made, err = upgrade.RunWithContext(ctx, r.name, r.chart, r.values)
	}
	if err != nil {
		return nil, false, err
	}
	rel, err = typed(made)
	return rel, r.before == nil, err
}

// recover makes a release that somebody left half done one that can be worked
// on. It returns what is then the latest revision, nil when there is none.
func (i *Installer) recover(cfg *action.Configuration, last *release.Release) (*release.Release, error) {
	switch status := last.Info.Status; {
	case status == common.StatusUninstalling || status == common.StatusUninstalled:
		if i.cfg.DryRun {
			return nil, nil
		}
		i.say("  release %s: its uninstall was interrupted, finishing it", last.Name)
		return nil, i.remove(cfg, last.Name)
	case !status.IsPending():
		return last, nil
	}
	changed := last.Info.LastDeployed
	if age := time.Since(changed); age < interrupted {
		return nil, fmt.Errorf("somebody else has been working on it for %s; if not, try again in %s",
			age.Round(time.Second), (interrupted - age).Round(time.Second))
	}
	if i.cfg.DryRun {
		return last, nil
	}
	i.say("  release %s: %s of %s was interrupted, starting again", last.Name, last.Info.Status, changed.Format(time.RFC3339))
	if _, err := cfg.Releases.Delete(last.Name, last.Version); err != nil {
		return nil, err
	}
	return i.last(last.Namespace, last.Name)
}

// remove uninstalls a release and does not wait for its objects to go.
func (i *Installer) remove(cfg *action.Configuration, name string) error {
	uninstall := action.NewUninstall(cfg)
	uninstall.WaitStrategy, uninstall.Timeout = kube.HookOnlyStrategy, i.patience()
	uninstall.IgnoreNotFound = true
	_, err := uninstall.Run(name)
	if errors.Is(err, driver.ErrReleaseNotFound) {
		return nil // somebody else was faster
	}
	return err
}

// patience is how long one step may take.
func (i *Installer) patience() time.Duration {
	if i.cfg.Timeout > 0 {
		return i.cfg.Timeout
	}
	return 5 * time.Minute
}

// explain adds to an error of Helm what can be done about it.
func explain(err error) error {
	text := err.Error()
	switch {
	case strings.Contains(text, "invalid ownership metadata"):
		return fmt.Errorf("%w\nSomething else has installed this object, maybe Istio or kubectl; remove it there first", err)
	case strings.Contains(text, "conflict with"), strings.Contains(text, "Apply failed with"):
		return fmt.Errorf("%w\nSomebody has edited this object by hand; set the same by values, or undo the edit", err)
	case strings.Contains(text, "additional properties"):
		return fmt.Errorf("%w\nThe values that exist, with their meaning: ambitctl manifest values", err)
	}
	return err
}
