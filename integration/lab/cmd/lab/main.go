// Command lab starts and uses labs: clusters of network namespaces on this
// machine, see package lab.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/integration/lab"
)

// exitError carries the exit code of a command that ran inside.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	if len(os.Args) > 1 && os.Args[1] == lab.InitCommand {
		stop() // pid 1 has its own ways
		ctx = context.Background()
	}
	err := command().ExecuteContext(ctx)
	stop()
	var code exitError
	switch {
	case errors.As(err, &code):
		os.Exit(int(code))
	case err != nil:
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "lab",
		Short:         "A cluster of network namespaces on this machine",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	state := root.PersistentFlags().String("state", filepath.Join(os.TempDir(), fmt.Sprintf("ambit-lab-%d", os.Getuid())), "the lab's `DIR`ectory of state")
	root.AddCommand(upCommand(state), execCommand(state), statusCommand(state), downCommand(state), captureCommand(), probeCommand())
	root.AddCommand(
		&cobra.Command{
			Use: lab.InitCommand, Hidden: true, Args: cobra.NoArgs,
			RunE: func(c *cobra.Command, _ []string) error { return lab.Init(c.Context()) },
		},
		&cobra.Command{
			Use: lab.CheckCommand, Hidden: true, Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error { return lab.CheckInit() },
		},
	)
	return root
}

func upCommand(state *string) *cobra.Command {
	var o lab.Options
	var foreground bool
	c := &cobra.Command{
		Use:   "up DIR",
		Short: "Start a lab with the manifests in DIR; return when all pods are ready",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			o.ConfigDir, o.StateDir, o.Detach = args[0], *state, !foreground
			began := time.Now()
			l, err := lab.Start(c.Context(), o)
			if err != nil {
				return err
			}
			_, _ = fmt.Fprintf(c.OutOrStdout(), "lab is up after %s, pid %d, state in %s\n", time.Since(began).Round(time.Millisecond), l.PID(), l.StateDir())
			if !foreground {
				return nil
			}
			select {
			case <-l.Ended():
				return fmt.Errorf("lab has ended, see %s", filepath.Join(l.StateDir(), "lab.log"))
			case <-c.Context().Done():
			}
			// An interrupt at the terminal reaches the lab as well: it may be faster.
			err = l.Down(context.WithoutCancel(c.Context()))
			<-l.Ended()
			if errors.Is(err, lab.ErrNotRunning) {
				return nil
			}
			return err
		},
	}
	c.Flags().IntVar(&o.Nodes, "nodes", 2, "number of nodes")
	c.Flags().StringVar(&o.BinDir, "bin", ownDir(), "`DIR`ectory of the containers' binaries")
	c.Flags().BoolVar(&o.NoMesh, "no-mesh", false, "run no part of the mesh")
	c.Flags().StringToStringVar(&o.MeshEnv, "mesh-env", nil, "environment of ztunnel, `NAME=VALUE`")
	c.Flags().DurationVar(&o.Timeout, "timeout", time.Minute, "how long the start may take")
	c.Flags().BoolVar(&foreground, "foreground", false, "stay, and end the lab when interrupted")
	return c
}

// ownDir is where this binary lies, and its siblings most likely.
func ownDir() string {
	path, err := os.Executable()
	if err != nil {
		return "bin"
	}
	return filepath.Dir(path)
}

func execCommand(state *string) *cobra.Command {
	return &cobra.Command{
		Use:   "exec TARGET -- COMMAND [ARG...]",
		Short: "Run a command in NAMESPACE/POD, NAMESPACE/DEPLOYMENT or node/NAME",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			l, err := lab.Open(*state)
			if err != nil {
				return err
			}
			code, err := l.Exec(c.Context(), args[0], args[1:], lab.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
			if err != nil {
				return err
			}
			if code != 0 {
				return exitError(code)
			}
			return nil
		},
	}
}

func statusCommand(state *string) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Print nodes, pods and services",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			l, err := lab.Open(*state)
			if err != nil {
				return err
			}
			s, err := l.Status(c.Context())
			if err != nil {
				return err
			}
			return s.Write(c.OutOrStdout())
		},
	}
}

func downCommand(state *string) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "End the lab; return when nothing of it runs any more",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			l, err := lab.Open(*state)
			if err != nil {
				return err
			}
			return l.Down(c.Context())
		},
	}
}

func captureCommand() *cobra.Command {
	var name string
	var port uint16
	var limit time.Duration
	c := &cobra.Command{
		Use:   "capture",
		Short: "Print the TCP packets of an interface, one JSON object a line (run it by exec, inside)",
		Long:  "Print the TCP packets of an interface, one JSON object a line, until the standard input ends, or for a time.",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := context.WithCancel(c.Context())
			defer cancel()
			if limit > 0 {
				ctx, cancel = context.WithTimeout(ctx, limit)
				defer cancel()
			} else {
				go func() { // ends with the process at the latest
					_, _ = io.Copy(io.Discard, c.InOrStdin())
					cancel()
				}()
			}
			return lab.CaptureHere(ctx, c.OutOrStdout(), name, port)
		},
	}
	c.Flags().StringVarP(&name, "interface", "i", "eth0", "interface")
	c.Flags().Uint16Var(&port, "port", 0, "only packets from or to this port")
	c.Flags().DurationVar(&limit, "for", 0, "how long; 0 means until the standard input ends")
	return c
}

func probeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "probe",
		Short: "Try what the lab needs of this machine, and say what is refused",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := lab.Check(""); err != nil {
				return err
			}
			_, err := fmt.Fprintln(c.OutOrStdout(), "everything that the lab needs works here")
			return err
		},
	}
}
