// Command cluster starts and uses real Kubernetes clusters on this machine, see
// package cluster.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/integration/cluster"
	"github.com/ambit-mesh/ambit/integration/cluster/nft"
)

// exitError carries the exit code of a command that ran inside.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func main() {
	if filepath.Base(os.Args[0]) == "nft" { // a machine's kube-proxy calls it
		if err := nft.Run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, nft.Explain(err))
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	if len(os.Args) > 1 && os.Args[1] == cluster.InitCommand {
		stop() // pid 1 has its own ways
		ctx = context.Background()
	}
	err := command().ExecuteContext(ctx)
	stop()
	var code exitError
	switch {
	case errors.As(err, &code):
		os.Exit(int(code))
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(os.Stderr, "cluster: interrupted")
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "cluster",
		Short: "A real Kubernetes of several nodes on this machine",
		Long: `A real Kubernetes of several nodes on this machine, built from Go modules:
API server, etcd, controller manager and scheduler, and nodes with kubelet,
kube-proxy, containerd and runc, each in namespaces of its own. It needs root,
Go and a C compiler; the first build takes a quarter of an hour on two
processors, later starts less than a minute.

  cluster up                          start two nodes (or say that they run)
  cluster load bin/images/istiod      put an image into all nodes
  cluster kubectl get pods -A         run kubectl
  export KUBECONFIG=$(cluster kubeconfig)
  cluster exec n1 bash                look into a node
  cluster down                        end it; nothing is left`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	name := root.PersistentFlags().String("name", defaultName(), "cluster's `NAME`, by which several live side by side; also from the environment's CLUSTER")
	root.AddCommand(upCommand(name), downCommand(name), statusCommand(name), kubeconfigCommand(name), kubectlCommand(name),
		execCommand(name), loadCommand(name), buildCommand(),
		&cobra.Command{
			Use: cluster.InitCommand, Hidden: true,
			RunE: func(c *cobra.Command, args []string) error { return cluster.Init(c.Context(), args) },
		},
		becomeCommand(),
	)
	return root
}

func becomeCommand() *cobra.Command {
	var program bool
	c := &cobra.Command{
		Use: cluster.ExecCommand, Hidden: true, Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			err := cluster.BecomeCommand(args, program)
			if errors.Is(err, exec.ErrNotFound) {
				fmt.Fprintln(os.Stderr, "cluster:", err)
				return exitError(127) // as a shell
			}
			return err
		},
	}
	c.Flags().BoolVar(&program, cluster.ExecProgram, false, "")
	return c
}

func defaultName() string {
	if name := os.Getenv("CLUSTER"); name != "" {
		return name
	}
	return cluster.DefaultName
}

// attached finds the cluster before the command runs.
func attached(name *string, run func(c *cobra.Command, k *cluster.Cluster, args []string) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		k, err := cluster.Attach(*name)
		if err != nil {
			return err
		}
		return run(c, k, args)
	}
}

func upCommand(name *string) *cobra.Command {
	var config cluster.Config
	c := &cobra.Command{
		Use:   "up",
		Short: "Start the cluster, and build it before if need be; return when it can be used",
		Long: `Start the cluster, and build it before if need be; return when it can be used.

One that is running already is left alone. What remains of one that was killed
is removed before. An interrupt takes everything down again.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			config.Name, config.Out = *name, c.OutOrStdout()
			if config.ControlPlaneOnly && !c.Flags().Changed("nodes") {
				config.Nodes = 0
			}
			began := time.Now()
			k, err := cluster.Up(c.Context(), config)
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "cluster %s is up after %.1f s; export KUBECONFIG=%s\n", *name, time.Since(began).Seconds(), k.Kubeconfig())
			return nil
		},
	}
	c.Flags().IntVar(&config.Nodes, "nodes", 2, "number of nodes")
	c.Flags().BoolVar(&config.ControlPlaneOnly, "control-plane-only", false, "only API server, etcd and controller manager; no pods can run")
	c.Flags().DurationVar(&config.Timeout, "timeout", 3*time.Minute, "how long the start may take, without the build")
	addBuildFlags(c, &config.CacheDir, &config.SourceDir)
	return c
}

func addBuildFlags(c *cobra.Command, cacheDir, sourceDir *string) {
	c.Flags().StringVar(cacheDir, "cache", "", "`DIR`ectory where binaries are kept (default ambit/cluster in $XDG_CACHE_HOME or ~/.cache)")
	c.Flags().StringVar(sourceDir, "source", "", "`DIR`ectory of the binaries' sources (default: integration/cluster/parts of this repository)")
}

func buildCommand() *cobra.Command {
	var config cluster.Config
	c := &cobra.Command{
		Use:   "build",
		Short: "Build what up would build, and start nothing",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			config.Out = c.OutOrStdout()
			return cluster.BuildAll(c.Context(), config)
		},
	}
	c.Flags().BoolVar(&config.ControlPlaneOnly, "control-plane-only", false, "only what a control plane without nodes needs")
	addBuildFlags(c, &config.CacheDir, &config.SourceDir)
	return c
}

func downCommand(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "End the cluster and remove all that it has, from whatever state",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			was, err := cluster.Down(c.Context(), *name, func(note string) { fmt.Fprintln(c.ErrOrStderr(), note) })
			if err != nil {
				return err
			}
			how := "is down"
			if !was {
				how = "is not there"
			}
			fmt.Fprintf(c.OutOrStdout(), "cluster %s %s\n", *name, how)
			return nil
		},
	}
}

func statusCommand(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Print machines, programs, nodes, and the pods that are not ready",
		Args:  cobra.NoArgs,
		RunE: attached(name, func(c *cobra.Command, k *cluster.Cluster, _ []string) error {
			return k.Status(c.Context(), c.OutOrStdout())
		}),
	}
}

func kubeconfigCommand(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "kubeconfig",
		Short: "Print the path of the administrator's kubeconfig",
		Args:  cobra.NoArgs,
		RunE: attached(name, func(c *cobra.Command, k *cluster.Cluster, _ []string) error {
			fmt.Fprintln(c.OutOrStdout(), k.Kubeconfig())
			return nil
		}),
	}
}

func kubectlCommand(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "kubectl [ARG...]",
		Short: "Run a kubectl of the cluster's version",
		Long:  "Run a kubectl of the cluster's version with the administrator's kubeconfig. Flags of cluster itself go before the word kubectl.",
		// They are kubectl's, but for a --name that comes before the word: cobra
		// hands over all of them.
		DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 1 && args[0] == "--name" {
				*name, args = args[1], args[2:]
			} else if len(args) > 0 && strings.HasPrefix(args[0], "--name=") {
				*name, args = strings.TrimPrefix(args[0], "--name="), args[1:]
			}
			k, err := cluster.Attach(*name)
			if err != nil {
				return err
			}
			environment := append(os.Environ(), "KUBECONFIG="+k.Kubeconfig())
			return fmt.Errorf("%s: %w", k.Kubectl(), syscall.Exec(k.Kubectl(), append([]string{"kubectl"}, args...), environment))
		},
	}
}

func execCommand(name *string) *cobra.Command {
	var local bool
	c := &cobra.Command{
		Use:   "exec [--local] NODE|cp COMMAND [ARG...]",
		Short: "Run a command in the namespaces of a node, or of the control plane",
		Long: `Run a command in the namespaces of a node (n1, n2, ...) or of the control plane
(cp). Its exit code is the command's. The cluster's binaries are on the PATH:

  cluster exec n1 ctr containers list
  cluster exec n1 bash

A node has the files of the host but for /run, /opt and /var. With --local the
command is a program of the host, wherever it is.`,
		Args: cobra.MinimumNArgs(2),
		RunE: attached(name, func(c *cobra.Command, k *cluster.Cluster, args []string) error {
			machine, command := args[0], args[1:]
			if len(command) > 1 && command[0] == "--" {
				command = command[1:]
			}
			var program *os.File
			if local {
				var err error
				if program, err = os.Open(command[0]); err != nil {
					return err
				}
				defer program.Close()
			}
			code, err := k.Exec(c.Context(), machine, command, program)
			if err != nil {
				return err
			}
			if code != 0 {
				return exitError(code)
			}
			return nil
		}),
	}
	c.Flags().BoolVar(&local, "local", false, "the command is a program of the host")
	c.Flags().SetInterspersed(false) // what follows the command is the command's
	return c
}

func loadCommand(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "load PATH...",
		Short: "Put images, OCI layout directories or archives, into all nodes",
		Args:  cobra.MinimumNArgs(1),
		RunE: attached(name, func(c *cobra.Command, k *cluster.Cluster, args []string) error {
			return k.Load(c.Context(), args...)
		}),
	}
}
