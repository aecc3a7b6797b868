// Command ztunnel is the L4 proxy of one node. It is configured by its
// environment (spec/ztunnel.md §9.2) and called as charts call it:
//
//	ztunnel proxy ztunnel
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
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
		Long:  "ztunnel carries the connections of the node's enrolled pods over mutual TLS.\nIt is configured by environment variables with the names that Istio's ztunnel uses.",
		Args:  cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
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
// process at once.
func run(ctx context.Context) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(200) // PERFORMANCE.md: the heap is small, its collection is not
	}
	cfg, err := config.FromEnvironment()
	if err != nil {
		return fmt.Errorf("environment: %w", err)
	}
	z, err := ztunnel.New(cfg, os.Stdout)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, stop) // the next signal has its default effect
	return z.Run(ctx)
}
