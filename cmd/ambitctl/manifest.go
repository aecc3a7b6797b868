package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/install/crds"
	"github.com/ambit-mesh/ambit/install/installer"
)

func manifest() *cobra.Command {
	c := &cobra.Command{
		Use:   "manifest",
		Short: "Print what install would apply, without a cluster",
		Args:  cobra.NoArgs,
	}
	c.AddCommand(generate(), printValues(), gatewayAPI())
	return c
}

func generate() *cobra.Command {
	var namespace string
	var only []string
	c := &cobra.Command{
		Use:   "generate",
		Short: "Print the mesh's manifests",
		Long: `generate prints the manifests of the mesh, in the order in which they are to be
applied. The Gateway API is not among them; see "ambitctl manifest gateway-api".`,
		Example: `  ambitctl manifest generate --component istiod --set istiod.replicaCount=2`,
		Args:    cobra.NoArgs,
	}
	given := newGiven(c)
	c.Flags().StringVarP(&namespace, "namespace", "n", mesh.DefaultSystemNamespace, "namespace of the mesh's own parts")
	c.Flags().StringSliceVar(&only, "component", nil, "only base, istiod, cni or ztunnel; may be given again")
	c.RunE = func(c *cobra.Command, _ []string) error {
		values, err := given.values()
		if err != nil {
			return err
		}
		out, err := installer.Render(c.Context(), namespace, values, only...)
		if err != nil {
			return err
		}
		_, err = c.OutOrStdout().Write(out)
		return err
	}
	return c
}

func printValues() *cobra.Command {
	return &cobra.Command{
		Use:   "values",
		Short: "Print all values that install takes, with their meaning and defaults",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			out, err := installer.Values()
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(c.OutOrStdout(), out)
			return err
		},
	}
}

func gatewayAPI() *cobra.Command {
	return &cobra.Command{
		Use:   "gateway-api",
		Short: "Print the definitions of the Gateway API, standard channel",
		Long: `gateway-api prints the definitions that install applies to a cluster without any.
For those who install with helm:

  ambitctl manifest gateway-api | kubectl apply --server-side -f -`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			out, err := crds.GatewayAPI()
			if err != nil {
				return err
			}
			_, err = c.OutOrStdout().Write(out)
			return err
		},
	}
}
