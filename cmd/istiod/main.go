// Command istiod is the control plane of the mesh.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "istiod:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	cfg := istiod.Config{Port: mesh.PortXDS, TrustedNodeAccounts: trustedNodeAccounts(), PodName: os.Getenv("POD_NAME")}
	var level slog.Level
	cmd := &cobra.Command{
		Use:           "istiod",
		Short:         "The control plane: manifests in, configuration and certificates for proxies out",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level}))
			klog.SetSlogLogger(cfg.Log.With(slog.String("from", "client-go")))
			i, err := istiod.New(cfg)
			if err != nil {
				return err
			}
			return i.Run(cmd.Context())
		},
		Long: `istiod reads the cluster's objects, tells each proxy what it has to know over
xDS, and signs the proxies' certificates. As a pod it finds its cluster by
itself; elsewhere it needs --kubeconfig. With --config-dir it needs no cluster:
it reads a directory of manifests instead. Of several istiods in a cluster all
serve, and one writes statuses and generated objects.

Environment:
  POD_NAME                  name of istiod's own pod, for the lease of the one that writes
  CA_TRUSTED_NODE_ACCOUNTS  service accounts, as namespace/name separated by commas,
                            that may ask for the identities of the pods on their
                            own node (default istio-system/ztunnel)`,
	}
	flags := cmd.Flags()
	flags.StringVar(&cfg.Kubeconfig, "kubeconfig", "", "how to reach the cluster (default: the cluster that istiod is a pod of)")
	flags.StringVar(&cfg.ConfigDir, "config-dir", "", "directory of the user's manifests, in place of a cluster; only read")
	flags.StringVar(&cfg.StateDir, "state-dir", "", "directory where objects/ and status/ are kept; with --config-dir")
	flags.StringVar(&cfg.ListenAddress, "listen-address", "", "address on which everything is served (default: all; 127.0.0.1 with --config-dir)")
	flags.StringVar(&cfg.JWKSFile, "jwks-file", "", "JWKS file with the public keys that sign service-account tokens; with --config-dir")
	flags.StringVar(&cfg.JWTIssuer, "jwt-issuer", "", "issuer that tokens must name; with --config-dir")
	flags.StringVar(&cfg.JWTAudience, "jwt-audience", mesh.TokenAudience, "audience that tokens must name")
	flags.StringVar(&cfg.ClusterDomain, "cluster-domain", mesh.DefaultClusterDomain, "DNS domain of the cluster's services")
	flags.StringVar(&cfg.ClusterID, "cluster-id", mesh.DefaultClusterID, "name of the cluster in workload ids")
	flags.StringVar(&cfg.Network, "network", "", "network of workloads that name none (default: label topology.istio.io/network of the system namespace)")
	flags.StringVar(&cfg.WaypointImage, "waypoint-image", istiod.DefaultWaypointImage, "image of generated waypoints")
	flags.IntVar(&cfg.MonitoringPort, "monitoring-port", mesh.PortIstiodMonitor, "port of metrics, readiness and debug dumps")
	flags.TextVar(&level, "log-level", slog.LevelInfo, "least level that is logged: debug, info, warn or error")
	return cmd
}

func trustedNodeAccounts() []string {
	value := os.Getenv("CA_TRUSTED_NODE_ACCOUNTS")
	if value == "" {
		return []string{mesh.DefaultSystemNamespace + "/" + mesh.AccountZtunnel}
	}
	var out []string
	for account := range strings.SplitSeq(value, ",") {
		if account = strings.TrimSpace(account); account != "" {
			out = append(out, account)
		}
	}
	return out
}
