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
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/ztunnel/cni"
)

type flags struct {
	node, configDir, stateDir string
	runDir, zdsSocket         string
	healthAddress             string
	metricsAddress            string
	logLevel                  string
	systemNamespace           string
	excluded, probeSources    []string
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
		Use:           "ambit-cni",
		Short:         "Enrol the pods of a node in the mesh",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(c *cobra.Command, _ []string) error { return run(c.Context(), f) },
	}
	fs := c.Flags()
	fs.StringVar(&f.node, "node-name", os.Getenv("NODE_NAME"), "name of this node, default $NODE_NAME")
	fs.StringVar(&f.configDir, "config-dir", "", "directory of the user's manifests")
	fs.StringVar(&f.stateDir, "state-dir", "", "directory of generated objects and statuses")
	fs.StringVar(&f.runDir, "run-dir", mesh.CNIAgentRunDir, "directory of the plugin's socket and of pod records")
	fs.StringVar(&f.zdsSocket, "zds-socket", mesh.ZDSSocketPath, "socket to which ztunnel connects")
	fs.StringVar(&f.healthAddress, "health-address", fmt.Sprintf(":%d", mesh.PortCNIAgentHealth), "address of /healthz and /readyz, empty = off")
	fs.StringVar(&f.metricsAddress, "metrics-address", "", "address of /metrics, empty = off")
	fs.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	fs.StringVar(&f.systemNamespace, "system-namespace", mesh.DefaultSystemNamespace, "namespace of the mesh's own pods")
	fs.StringSliceVar(&f.excluded, "exclude-namespaces", []string{"kube-system"}, "namespaces whose pods are never captured")
	fs.StringSliceVar(&f.probeSources, "probe-source", nil, "addresses from which the node probes its pods")
	return c
}

func run(ctx context.Context, f flags) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.logLevel)); err != nil {
		return fmt.Errorf("--log-level: %w", err)
	}
	log := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: level}))
	switch {
	case f.node == "":
		return errors.New("--node-name or $NODE_NAME is needed")
	case f.configDir == "" || f.stateDir == "":
		return errors.New("--config-dir and --state-dir are needed")
	}
	var probes []netip.Addr
	for _, s := range f.probeSources {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return fmt.Errorf("--probe-source: %w", err)
		}
		probes = append(probes, a)
	}
	dir := cni.NewDir(log, f.node, f.configDir, f.stateDir)
	agent := cni.New(cni.Config{
		Source:       dir,
		Annotate:     dir.Annotate,
		Scope:        cni.Scope{SystemNamespace: f.systemNamespace, ExcludedNamespaces: f.excluded},
		RunDir:       f.runDir,
		ZDSSocket:    f.zdsSocket,
		ProbeSources: probes,
		Log:          log,
	})
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return agent.Run(ctx) })
	serve(ctx, group, f.healthAddress, agent.Health())
	serve(ctx, group, f.metricsAddress, agent.Metrics())
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
