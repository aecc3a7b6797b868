// Command ambit-cni is the node agent and, when a container runtime calls it, the CNI
// plugin that asks the agent. See ztunnel/cni.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/ztunnel/cni"
	"github.com/ambit-mesh/ambit/ztunnel/cni/installer"
	"github.com/ambit-mesh/ambit/ztunnel/redirect"
)

type flags struct {
	node, configDir, stateDir string
	kubeconfig, daemonSet     string
	runDir, zdsSocket         string
	procDir, netNSDir         string
	binDir, confDir           string
	healthAddress             string
	metricsAddress            string
	logLevel                  string
	systemNamespace           string
	excluded                  []string
	dns                       bool
}

func main() {
	if os.Getenv("CNI_COMMAND") != "" {
		cni.PluginMain()
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "ambit-cni:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var f flags
	c := &cobra.Command{
		Use:   "ambit-cni",
		Short: "Enrol the pods of a node in the mesh",
		Long: `ambit-cni is the node agent of the mesh. It installs itself as a chained CNI plugin,
follows the labels of the node's pods and namespaces, programs the redirection of
each enrolled pod and hands its network namespace to ztunnel.

It runs in the host's network namespace. On SIGTERM it leaves everything as it is if
its DaemonSet still exists and selects the node, or if that cannot be found out, and
removes everything otherwise.

With --config-dir and --state-dir it reads manifests in the place of an API server,
and installs no plugin.`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(c *cobra.Command, _ []string) error { return run(c.Context(), f) },
	}
	c.AddCommand(&cobra.Command{
		Use:   "uninstall",
		Short: "Remove what an agent that was killed left on this node",
		Long: `uninstall removes the CNI plugin, the redirection in every pod that an agent enrolled,
and the host rules, and restores the container runtime's network configuration.
Connections that are redirected are cut. It needs no API server; the annotation
` + mesh.AnnotationRedirection + ` of the pods stays.

It is run on the node itself, as root, where the agent has installed the program:

  /opt/cni/bin/ambit-cni uninstall

With directories other than the usual ones, say which, as the chart's values do.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return uninstall(c.Context(), f) },
	})
	fs := c.PersistentFlags()
	fs.StringVar(&f.runDir, "run-dir", mesh.CNIAgentRunDir, "directory of the plugin's socket and of pod records, the same on the host")
	fs.StringVar(&f.zdsSocket, "zds-socket", mesh.ZDSSocketPath, "socket to which ztunnel connects")
	fs.StringVar(&f.procDir, "proc-dir", hostPath("/proc"), "the host's /proc, where pods' processes are looked for")
	fs.StringVar(&f.netNSDir, "netns-dir", "/var/run/netns", "where the container runtime names network namespaces, the same on the host")
	fs.StringVar(&f.binDir, "cni-bin-dir", hostPath("/opt/cni/bin"), "the container runtime's directory of CNI plugins")
	fs.StringVar(&f.confDir, "cni-conf-dir", hostPath("/etc/cni/net.d"), "the container runtime's directory of network configurations")
	fs.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	fs = c.Flags()
	fs.StringVar(&f.node, "node-name", os.Getenv("NODE_NAME"), "name of this node, default $NODE_NAME")
	fs.StringVar(&f.kubeconfig, "kubeconfig", "", "how to reach the API server, empty = as a pod of the cluster does")
	fs.StringVar(&f.daemonSet, "daemonset", "ambit-cni", "name of the agent's own DaemonSet, in the system namespace")
	fs.StringVar(&f.configDir, "config-dir", "", "directory of the user's manifests, in the place of an API server")
	fs.StringVar(&f.stateDir, "state-dir", "", "directory of generated objects and statuses, with --config-dir")
	fs.StringVar(&f.healthAddress, "health-address", fmt.Sprintf(":%d", mesh.PortCNIAgentHealth), "address of /healthz and /readyz, empty = off")
	fs.StringVar(&f.metricsAddress, "metrics-address", "", "address of /metrics, empty = off")
	fs.StringVar(&f.systemNamespace, "system-namespace", mesh.DefaultSystemNamespace, "namespace of the mesh's own pods")
	fs.StringSliceVar(&f.excluded, "exclude-namespaces", []string{"kube-system"}, "namespaces whose pods are never captured")
	fs.BoolVar(&f.dns, "dns-capture", false, "redirect what pods ask of resolvers to ztunnel, unless their annotation "+mesh.AnnotationDNSCapture+" says otherwise")
	return c
}

// hostPath is where the agent's container has a directory of the host, or where the host
// has it when this is the host.
func hostPath(path string) string {
	if _, err := os.Stat("/host/proc"); err != nil {
		return path
	}
	return "/host" + path
}

// kubeletUID is the user that kubelets run as, and probe pods as.
const kubeletUID = 0

func run(ctx context.Context, f flags) error {
	log, err := f.logger()
	if err != nil {
		return err
	}
	switch {
	case f.node == "":
		return errors.New("--node-name or $NODE_NAME is needed")
	case (f.configDir == "") != (f.stateDir == ""):
		return errors.New("--config-dir and --state-dir are needed together")
	case f.configDir != "" && f.kubeconfig != "":
		return errors.New("--config-dir and --kubeconfig exclude each other")
	}
	if f.configDir != "" {
		return runDirectory(ctx, log, f)
	}
	return runCluster(ctx, log, f)
}

func (f flags) logger() (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.logLevel)); err != nil {
		return nil, fmt.Errorf("--log-level: %w", err)
	}
	return slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: level})), nil
}

// config is what both kinds of agents have in common.
func (f flags) config(log *slog.Logger, host *redirect.Host) cni.Config {
	return cni.Config{
		Exempt:    host.Exempt,
		Scope:     cni.Scope{SystemNamespace: f.systemNamespace, ExcludedNamespaces: f.excluded},
		DNS:       f.dns,
		RunDir:    f.runDir,
		ZDSSocket: f.zdsSocket,
		Log:       log,
	}
}

func runDirectory(ctx context.Context, log *slog.Logger, f flags) error {
	cfg := f.config(log, &redirect.Host{Prober: kubeletUID})
	dir := cni.NewDir(log, f.node, f.configDir, f.stateDir)
	cfg.Source, cfg.Annotate = dir, dir.Annotate
	agent := cni.New(cfg)
	return serveAll(ctx, f, agent, agent.Run)
}

func runCluster(ctx context.Context, log *slog.Logger, f flags) error {
	klog.SetSlogLogger(log) // client-go's
	api, err := cni.KubeConfig(f.kubeconfig)
	if err != nil {
		return fmt.Errorf("no way to the API server: %w", err)
	}
	source, err := cni.NewKubernetes(log, f.node, types.NamespacedName{Namespace: f.systemNamespace, Name: f.daemonSet}, api)
	if err != nil {
		return err
	}
	host := &redirect.Host{Prober: kubeletUID}
	cfg := f.config(log, host)
	cfg.Source, cfg.Annotate = source, source.Annotate
	cfg.Find, cfg.ProcDir = f.finder(log).Find, f.procDir
	var plugin *installer.Installer
	cfg.Installed = func() bool { return plugin.Installed() }
	agent := cni.New(cfg)
	plugin = f.installer(log, agent.Installing())
	node := cni.Cluster{
		Agent: agent, Installer: plugin, Host: host, Log: log, Wanted: source.Wanted,
	}
	return serveAll(ctx, f, agent, node.Run)
}

func (f flags) finder(log *slog.Logger) cni.Finder {
	return cni.Finder{ProcDir: f.procDir, NetNSDir: f.netNSDir, Log: log}
}

func (f flags) installer(log *slog.Logger, result func(bool)) *installer.Installer {
	return installer.New(installer.Config{
		BinDir: f.binDir, ConfDir: f.confDir, Log: log, Result: result,
		Entry: installer.Entry{RunDir: f.runDir, Excluded: f.excluded},
	})
}

func uninstall(ctx context.Context, f flags) error {
	log, err := f.logger()
	if err != nil {
		return err
	}
	return errors.Join(
		f.installer(log, nil).Uninstall(),
		cni.Purge(ctx, log, f.runDir, f.zdsSocket, f.procDir, f.finder(log).Find),
		(&redirect.Host{}).Remove(),
	)
}

// serveAll runs the agent and its HTTP servers, which end after it.
func serveAll(ctx context.Context, f flags, agent *cni.Agent, run func(context.Context) error) error {
	group, inner := errgroup.WithContext(context.WithoutCancel(ctx))
	serving, stop := context.WithCancel(inner)
	group.Go(func() error {
		defer stop()
		both, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(inner, cancel)()
		return run(both)
	})
	serve(serving, group, f.healthAddress, agent.Health())
	serve(serving, group, f.metricsAddress, agent.Metrics())
	return group.Wait()
}

// serve serves HTTP on the address, unless it is empty, until ctx is done.
func serve(ctx context.Context, group *errgroup.Group, address string, h http.Handler) {
	if address == "" {
		return
	}
	server := &http.Server{Addr: address, Handler: h, ReadHeaderTimeout: 5 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	group.Go(func() error {
		defer stop()
		if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
}
