// Command ambitctl installs the ambit mesh into a cluster and takes it out
// again. It is for the machine of whoever operates the mesh; there is one file
// for each verb.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/rest"

	"github.com/ambit-mesh/ambit/apis/mesh"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "ambitctl:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "ambitctl",
		Short: "Install and operate the ambit mesh",
		Long: `ambitctl installs the ambit mesh into a Kubernetes cluster and takes it out again.

The cluster is the one that kubectl would talk to: --kubeconfig, $KUBECONFIG or
~/.kube/config, and --context of it.`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(install(), uninstall(), manifest(), version())
	return root
}

// cluster is the flags that say which cluster, and what is said of it.
type cluster struct {
	flags   *genericclioptions.ConfigFlags
	verbose bool
}

func newCluster(cmd *cobra.Command) *cluster {
	flags := cmd.Flags()
	c := &cluster{flags: genericclioptions.NewConfigFlags(true)}
	*c.flags.Namespace = mesh.DefaultSystemNamespace
	flags.StringVar(c.flags.KubeConfig, "kubeconfig", "", "file that says how to reach the cluster")
	flags.StringVar(c.flags.Context, "context", "", "context of that file to use")
	flags.StringVarP(c.flags.Namespace, "namespace", "n", mesh.DefaultSystemNamespace, "namespace of the mesh's own parts")
	flags.BoolVarP(&c.verbose, "verbose", "v", false, "log what Helm does")
	// One command asks for many objects in a row, once.
	c.flags.WithWrapConfigFn(func(config *rest.Config) *rest.Config {
		config.QPS, config.Burst = 100, 200
		return config
	})
	return c
}

// log returns where Helm's log goes.
func (c *cluster) log(out io.Writer) *slog.Logger {
	if !c.verbose {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// given is the flags that say with which values.
type given struct {
	files, set, setString []string
	hub, tag              string
}

func newGiven(cmd *cobra.Command) *given {
	flags := cmd.Flags()
	g := &given{}
	flags.StringArrayVarP(&g.files, "values", "f", nil, "file of values, - for standard input; may be given again")
	flags.StringArrayVar(&g.set, "set", nil, "one value, such as istiod.replicaCount=2; may be given again")
	flags.StringArrayVar(&g.setString, "set-string", nil, "one value that is text whatever it looks like")
	flags.StringVar(&g.hub, "hub", "", "registry of the images, short for --set-string global.hub=")
	flags.StringVar(&g.tag, "tag", "", "tag of the images, short for --set-string global.tag=")
	return g
}
