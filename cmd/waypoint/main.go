// Command waypoint is the L7 proxy of a Gateway of class istio-waypoint. It is
// configured by environment variables with ztunnel's names, as the Deployment
// sets them; arguments such as "proxy waypoint" are accepted and mean nothing.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/waypoint"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/xds"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "waypoint:", err)
		stop()
		os.Exit(1)
	}
}

func command() *cobra.Command {
	level := env("LOG_LEVEL", "info")
	cmd := &cobra.Command{
		Use:           "waypoint [proxy waypoint]",
		Short:         "L7 proxy of an ambient mesh",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := fromEnvironment(level)
			if err != nil {
				return err
			}
			if os.Getenv("GOGC") == "" {
				debug.SetGCPercent(200)
			}
			w, err := waypoint.New(cfg)
			if err != nil {
				return err
			}
			return w.Run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&level, "log-level", level, "log level: debug, info, warn, error, or scope:level,…")
	return cmd
}

func env(name, otherwise string) string {
	if value, ok := os.LookupEnv(name); ok {
		return value
	}
	return otherwise
}

func fromEnvironment(level string) (waypoint.Config, error) {
	istiod := fmt.Sprintf("https://%s.%s.svc:%d", mesh.ServiceIstiod, mesh.DefaultSystemNamespace, mesh.PortXDS)
	root := env("XDS_ROOT_CA", mesh.RootCertPath)
	xdsConfig := xds.DialConfig{
		Address: env("XDS_ADDRESS", istiod), RootCertPath: root, TokenPath: env("AUTH_TOKEN", mesh.TokenPath),
		ClusterID: env("CLUSTER_ID", mesh.DefaultClusterID), AltHostname: env("ALT_XDS_HOSTNAME", ""),
	}
	ca := xdsConfig
	ca.Address, ca.RootCertPath, ca.AltHostname = env("CA_ADDRESS", xdsConfig.Address), env("CA_ROOT_CA", root), env("ALT_CA_HOSTNAME", "")
	cfg := waypoint.Config{
		PodName: env("POD_NAME", ""), Namespace: env("POD_NAMESPACE", ""), ServiceAccount: env("SERVICE_ACCOUNT", ""),
		Node: env("NODE_NAME", ""), TrustDomain: env("TRUST_DOMAIN", mesh.DefaultTrustDomain), ClusterID: xdsConfig.ClusterID,
		Network: env("NETWORK", ""), InstanceIP: env("INSTANCE_IP", ""), Version: env("ISTIO_META_ISTIO_VERSION", ""),
		XDS: xdsConfig, CA: ca,
	}
	cfg.Default()
	var missing []error
	for name, value := range map[string]string{
		"POD_NAME": cfg.PodName, "POD_NAMESPACE": cfg.Namespace, "SERVICE_ACCOUNT": cfg.ServiceAccount, "INSTANCE_IP": cfg.InstanceIP,
	} {
		if value == "" {
			missing = append(missing, fmt.Errorf("%s is not set", name))
		}
	}
	var err error
	if cfg.TTL, err = time.ParseDuration(env("SECRET_TTL", "24h")); err != nil {
		missing = append(missing, fmt.Errorf("SECRET_TTL: %w", err))
	}
	format, err := telemetry.ParseFormat(env("LOG_FORMAT", ""))
	if err != nil {
		missing = append(missing, err)
	}
	levels, err := telemetry.NewLevels(level)
	if err != nil {
		missing = append(missing, err)
	}
	if err := errors.Join(missing...); err != nil {
		return cfg, err
	}
	if env("ACCESS_LOG", "on") != "off" {
		cfg.Access, cfg.AccessJSON = os.Stdout, format == telemetry.JSON
	}
	cfg.Log = telemetry.NewLogger(os.Stderr, format, levels)
	return cfg, nil
}
