// Command clustertest carries the thread of the demo onto a real Kubernetes: it
// installs the mesh into the test cluster with ambitctl, labels a namespace with
// kubectl, looks at the wire between the nodes, adds a waypoint and routes, and
// takes everything away again; what was on the nodes and in the API server
// before must be there after, and nothing else. Each step prints what a person
// would type, what happened, and ok or FAIL.
//
// It expects a running cluster of two nodes (make cluster-up) with the images
// loaded, and ends with "cluster-test: N passed, 0 failed".
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/integration/narrate"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		if !errors.Is(err, narrate.ErrFailed) {
			fmt.Fprintln(os.Stderr, "cluster-test:", err)
		}
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var keep bool
	c := &cobra.Command{
		Use:           "clustertest",
		Short:         "Show the mesh at work on the test cluster",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(c *cobra.Command, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return err
			}
			t := &test{Narrator: narrate.New("cluster-test", os.Stdout), programs: filepath.Dir(self)}
			return t.run(c.Context(), keep)
		},
	}
	c.Flags().BoolVar(&keep, "keep", false, "stop before the mesh and the samples are removed")
	c.AddCommand(&cobra.Command{
		Use:    "snapshot",
		Short:  "Print the state of this node that a mesh could leave behind, as JSON",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE:   func(c *cobra.Command, _ []string) error { return printSnapshot(c.OutOrStdout()) },
	})
	return c
}

// test is the running check.
type test struct {
	*narrate.Narrator
	programs   string // where cluster, ambitctl, lab and this program are
	nodes      []string
	curl       pod // the client in the mesh
	far        pod // a server on another node than curl
	farURL     string
	before     state
	kubeconfig string
	unmeshed   map[string]nodeState // of the nodes, with the samples and without the label
}

func (t *test) run(ctx context.Context, keep bool) error {
	for _, s := range t.story(keep) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// What comes later stands on it; a half-installed mesh shows nothing.
		if !t.Step(ctx, s.title, s.run) && s.needed {
			break
		}
	}
	if t.Failed() > 0 {
		t.tellWhatIsThere(ctx)
	}
	t.End()
	if t.Failed() > 0 {
		return narrate.ErrFailed
	}
	return nil
}

// tellWhatIsThere prints what one asks for first when a check has failed.
func (t *test) tellWhatIsThere(ctx context.Context) {
	for _, args := range [][]string{
		{"get", "pods", "-A", "-o", "wide"},
		{"get", "events", "-A", "--field-selector=type=Warning", "--sort-by=.lastTimestamp"},
		{"logs", "-n", "istio-system", "deployment/istiod", "--tail=30"},
		{"logs", "-n", "istio-system", "daemonset/ambit-cni", "--all-pods", "--prefix", "--tail=30"},
		{"logs", "-n", "istio-system", "daemonset/ztunnel", "--all-pods", "--prefix", "--tail=30"},
	} {
		t.Command("kubectl %v", args)
		text, err := t.kubectl(ctx, args...)
		if err != nil {
			text += err.Error()
		}
		t.Note("%s", text)
	}
}
