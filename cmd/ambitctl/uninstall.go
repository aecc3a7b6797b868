package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/install/crds"
	"github.com/ambit-mesh/ambit/install/installer"
)

func uninstall() *cobra.Command {
	var options installer.UninstallOptions
	var yes bool
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "uninstall",
		Short: "Take the mesh out of the cluster",
		Long: `uninstall removes the mesh from a cluster, whether ambitctl or helm has installed
it. The node agents go first: while ztunnel still serves they release their pods,
whose traffic goes on in plain text, and clean up their nodes. Then go ztunnel,
istiod and all that istiod has made, among it waypoints and the signing key of the
mesh's certificates; and the namespace, if ambitctl has made it and nothing else is
in it.

What users have written stays, and with it the definitions of its kinds. --purge
removes the definitions too: Istio's unless another release has them, and the
Gateway API's if ambitctl has installed them. All VirtualServices, Gateways,
AuthorizationPolicies and so on are then gone.`,
		Args: cobra.NoArgs,
	}
	cluster := newCluster(c)
	c.Flags().BoolVar(&options.Purge, "purge", false, "remove the definitions as well, and with them all objects of these kinds")
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	c.Flags().DurationVar(&timeout, "wait-timeout", 5*time.Minute, "how long each step may take")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if timeout <= 0 {
			return errors.New("--wait-timeout: must be more than nothing")
		}
		i, err := installer.New(installer.Config{
			Cluster: cluster.flags, Namespace: *cluster.flags.Namespace, Timeout: timeout,
			GatewayAPI: crds.GatewayAPI, Out: c.OutOrStdout(), Log: cluster.log(c.ErrOrStderr()),
		})
		if err != nil {
			return err
		}
		if !yes {
			options.Confirm = func(plan []string) (bool, error) { return ask(c.InOrStdin(), c.OutOrStdout(), plan) }
		}
		return i.Uninstall(c.Context(), options)
	}
	return c
}

// ask shows what will be removed and waits for yes.
func ask(in io.Reader, out io.Writer, plan []string) (bool, error) {
	fmt.Fprintf(out, "This removes:\n  %s\nGo on? [y/N] ", strings.Join(plan, "\n  "))
	answer, err := bufio.NewReader(in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	answer = strings.ToLower(strings.TrimSpace(answer))
	if answer == "" && errors.Is(err, io.EOF) {
		fmt.Fprintln(out)
		return false, errors.New("nobody can answer; -y agrees in advance")
	}
	return answer == "y" || answer == "yes", nil
}
