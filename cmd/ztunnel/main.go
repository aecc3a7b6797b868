// Command ztunnel is the L4 proxy of one node, or of one workload. It is
// configured by its environment (spec/ztunnel.md §9.2, and its own --help) and
// called as charts call it:
//
//	ztunnel proxy ztunnel
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/ztunnel"
	"github.com/ambit-mesh/ambit/ztunnel/config"
)

func main() {
	if err := command().ExecuteContext(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "ztunnel:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "ztunnel",
		Short: "L4 proxy of an ambient mesh, one per node",
		Long: "ztunnel carries the connections of the node's enrolled pods, or of one workload, over mutual TLS.\n" +
			"It is configured by environment variables with the names that Istio's ztunnel uses [and their defaults]:\n\n" + config.Usage(),
		Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return run(cmd.Context()) },
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(
		&cobra.Command{
			Use: "proxy [ztunnel]", Short: "run the proxy; this is the default", Args: cobra.ArbitraryArgs,
			RunE: func(cmd *cobra.Command, _ []string) error { return run(cmd.Context()) },
		},
		&cobra.Command{
			Use: "version", Short: "print the version", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), ztunnel.Version())
				return err
			},
		},
	)
	return root
}

// run serves until SIGTERM or SIGINT, then drains; a second signal ends the
// process at once, as asked for.
func run(ctx context.Context) error {
	cfg, err := config.FromEnvironment()
	if err != nil {
		return fmt.Errorf("environment: %w", err)
	}
	ztunnel.Tune(cfg)
	z, err := ztunnel.New(cfg, os.Stdout)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, func() {
		again := make(chan os.Signal, 1)
		signal.Notify(again, syscall.SIGTERM, syscall.SIGINT)
		<-again
		os.Exit(0)
	})
	return z.Run(ctx)
}
