package main

import (
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/install/crds"
	"github.com/ambit-mesh/ambit/install/installer"
)

func install() *cobra.Command {
	var dryRun, reuse bool
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "install",
		Short: "Install the mesh, or upgrade it",
		Long: `install brings the mesh in a cluster to what this ambitctl contains and the values
say: the Gateway API where the cluster has none, the mesh's namespace, and the Helm
releases ambit-base, ambit-istiod, ambit-cni and ambit-ztunnel, one after the other,
each when the one before it works. To run it again is to upgrade.

Values are those of chart ambient: a section for each chart, and global ones;
"ambitctl manifest values" prints them all with their meaning. Values that an
earlier install was given and this one is not are back at their defaults, unless
--reuse-values is given.`,
		Example: `  ambitctl install
  ambitctl install --hub registry.example/mesh --tag 1.2
  ambitctl install --set istiod.replicaCount=2 --set cni.cniBinDir=/home/kubernetes/bin
  ambitctl install -f values.yaml --dry-run`,
		Args: cobra.NoArgs,
	}
	cluster, given := newCluster(c), newGiven(c)
	c.Flags().BoolVar(&dryRun, "dry-run", false, "ask the cluster and say what would be done, but do nothing")
	c.Flags().BoolVar(&reuse, "reuse-values", false, "keep values of the last install that are not given now")
	c.Flags().DurationVar(&timeout, "wait-timeout", 5*time.Minute, "how long each part may take to work; 0 does not wait")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if timeout < 0 {
			return errors.New("--wait-timeout: less than nothing")
		}
		values, err := given.values()
		if err != nil {
			return err
		}
		i, err := installer.New(installer.Config{
			Cluster: cluster.flags, Namespace: *cluster.flags.Namespace, Values: values, ReuseValues: reuse, Timeout: timeout,
			DryRun: dryRun, GatewayAPI: crds.GatewayAPI, Out: c.OutOrStdout(), Log: cluster.log(c.ErrOrStderr()),
		})
		if err != nil {
			return err
		}
		return i.Install(c.Context())
	}
	return c
}

// values joins files, then --hub and --tag, then assignments; later ones count.
func (g *given) values() (map[string]any, error) {
	var images []string
	if g.hub != "" {
		images = append(images, "global.hub="+g.hub)
	}
	if g.tag != "" {
		images = append(images, "global.tag="+g.tag)
	}
	return installer.ReadValues(installer.Given{Files: g.files, Set: g.set, SetString: append(images, g.setString...)})
}
