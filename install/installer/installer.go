// Package installer puts the mesh into a cluster and takes it out again, as the
// Helm releases that helm would make of the embedded charts: what this package
// has installed, helm lists, upgrades and uninstalls, and the other way round.
//
// Beyond what Helm does it installs the Gateway API where it is absent, says
// while it waits what it waits for, takes the parts out in the order in which
// nodes can clean up, and removes what the running mesh has made. Values are
// those of chart ambient: one section for each chart, and global ones.
//
// Only cmd/ambitctl calls it. An Installer serves one call at a time.
package installer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/cli/values"
	"helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/strvals"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
)

// part is one chart and the release that it is installed as.
type part struct {
	chart, release string
}

// parts are in the order in which they are installed.
var parts = []part{
	{"base", "ambit-base"},
	{"istiod", "ambit-istiod"},
	{"cni", "ambit-cni"},
	{"ztunnel", "ambit-ztunnel"},
}

// What the installer has made outside of releases carries this label.
const (
	labelManagedBy = "app.kubernetes.io/managed-by"
	managedByUs    = "ambitctl"
)

// Config is all that an Installer needs.
type Config struct {
	// Cluster finds and authenticates to the API server.
	Cluster genericclioptions.RESTClientGetter
	// Namespace is where the releases and all of the mesh's parts are.
	Namespace string
	// Values of chart ambient.
	Values map[string]any
	// ReuseValues keeps what earlier installs were given and Values does not say.
	ReuseValues bool
	// Timeout is how long each part may take to become ready, or to go; 0 does
	// not wait for readiness.
	Timeout time.Duration
	// DryRun changes nothing: it says what would be done.
	DryRun bool
	// GatewayAPI are the Gateway API's definitions, or why there are none.
	GatewayAPI func() ([]byte, error)
	// Out gets progress, one line for each thing that happens.
	Out io.Writer
	// Log gets Helm's own log.
	Log *slog.Logger
}

// Installer installs and uninstalls the mesh in one cluster.
type Installer struct {
	cfg       Config
	kube      kubernetes.Interface
	dynamic   dynamic.Interface
	metadata  metadata.Interface
	discovery discovery.CachedDiscoveryInterface
	mapper    meta.ResettableRESTMapper
	started   time.Time
	every     time.Duration // between looks at what is waited for
}

// New connects to the cluster.
func New(cfg Config) (*Installer, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	rest, err := cfg.Cluster.ToRESTConfig()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	if raw, err := cfg.Cluster.ToRawKubeConfigLoader().RawConfig(); err == nil && len(raw.Clusters) == 0 && strings.Contains(rest.Host, "localhost:8080") {
		return nil, errors.New("no cluster is named: there is no kubeconfig; say which with --kubeconfig or $KUBECONFIG")
	}
	i := &Installer{cfg: cfg, started: time.Now(), every: time.Second}
	if i.kube, err = kubernetes.NewForConfig(rest); err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	if i.dynamic, err = dynamic.NewForConfig(rest); err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	if i.metadata, err = metadata.NewForConfig(rest); err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	if i.discovery, err = cfg.Cluster.ToDiscoveryClient(); err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	mapper, err := cfg.Cluster.ToRESTMapper()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	resettable, ok := mapper.(meta.ResettableRESTMapper)
	if !ok {
		return nil, errors.New("the client's REST mapper cannot learn new kinds")
	}
	i.mapper = resettable
	return i, nil
}

// say writes one line of progress.
func (i *Installer) say(format string, args ...any) {
	fmt.Fprintf(i.cfg.Out, format+"\n", args...)
}

// Helm's own name owns the fields of what we apply, so that helm and ambitctl may
// take turns on a release without a conflict.
func init() { kube.ManagedFieldsManager = "helm" }

// helm returns the configuration of Helm's actions in a namespace.
func (i *Installer) helm(namespace string) (*action.Configuration, error) {
	c := action.NewConfiguration(action.ConfigurationSetLogger(i.cfg.Log.Handler()))
	if err := c.Init(i.cfg.Cluster, namespace, "secrets"); err != nil {
		return nil, fmt.Errorf("helm: %w", err)
	}
	return c, nil
}

// reach finds out whether there is an API server, so that the first error says
// so and not what could not be done without one.
func (i *Installer) reach(ctx context.Context) error {
	version, err := i.discovery.ServerVersion()
	if err != nil {
		return fmt.Errorf("the cluster cannot be reached: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	i.say("cluster: Kubernetes %s", version.GitVersion)
	return nil
}

// Given is where values come from.
type Given struct {
	Files          []string // YAML; - is standard input
	Set, SetString []string // name=value
}

// ReadValues merges files, then text assignments, then others; later ones
// count.
func ReadValues(g Given) (map[string]any, error) {
	out, err := (&values.Options{ValueFiles: g.Files}).MergeValues(nil)
	if err != nil {
		return nil, fmt.Errorf("values: %w", err)
	}
	for _, text := range g.SetString {
		if err := strvals.ParseIntoString(text, out); err != nil {
			return nil, fmt.Errorf("value %q: %w", text, err)
		}
	}
	for _, text := range g.Set {
		if err := strvals.ParseInto(text, out); err != nil {
			return nil, fmt.Errorf("value %q: %w", text, err)
		}
	}
	return out, nil
}
