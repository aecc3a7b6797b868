package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/install/installer"
)

func version() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the versions of ambitctl and of the charts in it",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			charts, err := installer.Version()
			if err != nil {
				return err
			}
			program, revision := "(devel)", ""
			if info, ok := debug.ReadBuildInfo(); ok {
				program = info.Main.Version
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" {
						revision = ", revision " + s.Value
					}
				}
			}
			fmt.Fprintf(c.OutOrStdout(), "ambitctl %s%s (%s)\ncharts %s\n", program, revision, runtime.Version(), charts)
			return nil
		},
	}
}
