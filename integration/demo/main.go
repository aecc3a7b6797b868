// Command demo shows the mesh at work on this machine: it brings up two nodes
// with the bookinfo sample in network namespaces, labels the namespace, and
// checks with its own eyes — captures of the wire, the proxies' dumps, logs and
// metrics — what becomes of the traffic. Each step prints what a person would
// type, what happened, and ok or FAIL.
//
// It ends with "demo: N passed, 0 failed" and leaves nothing running, unless
// it is told to keep the lab.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/integration/lab/scene"
	"github.com/ambit-mesh/ambit/integration/narrate"
)

func main() {
	var keep bool
	command := &cobra.Command{
		Use:   "demo",
		Short: "Show the mesh at work in network namespaces on this machine",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return run(c.Context(), narrate.New("demo", os.Stdout), keep)
		},
		SilenceUsage: true, SilenceErrors: true,
	}
	command.Flags().BoolVar(&keep, "keep", false, "keep the lab running at the end and say how to look around")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command.ExecuteContext(ctx)
	stop()
	if err != nil {
		if !errors.Is(err, narrate.ErrFailed) {
			fmt.Fprintln(os.Stderr, "demo:", err)
		}
		os.Exit(1)
	}
}

// demo is the running show.
type demo struct {
	*narrate.Narrator
	*scene.Scene
	nodes []string
}

func run(ctx context.Context, n *narrate.Narrator, keep bool) (err error) {
	programs, err := programDir()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "ambit-demo-")
	if err != nil {
		return err
	}
	d := &demo{Narrator: n}
	defer func() {
		if d.Scene != nil && keep {
			d.sayHowToLookAround(programs)
			return
		}
		err = errors.Join(err, d.cleanUp(context.WithoutCancel(ctx), dir))
	}()
	if !d.Step(ctx, "bookinfo on two nodes, and a mesh that nobody has joined yet", func(ctx context.Context) error {
		return d.up(ctx, scene.Options{
			Dir: dir, Bin: programs, Detach: keep,
			MeshEnv: map[string]string{"SECRET_TTL": certificateLife.String()},
		})
	}) {
		d.End()
		return narrate.ErrFailed
	}
	for _, s := range d.story() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		d.Step(ctx, s.title, s.run)
	}
	d.End()
	if d.Failed() > 0 {
		return narrate.ErrFailed
	}
	return nil
}

// programDir is where this program is, and all others with it.
func programDir() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	return filepath.Dir(self), nil
}

func (d *demo) cleanUp(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var err error
	if d.Scene != nil && d.Lab != nil {
		err = d.Lab.Down(ctx)
	}
	if d.Failed() > 0 {
		d.Note("what was seen is kept in %s", dir)
		return err
	}
	return errors.Join(err, os.RemoveAll(dir))
}

func (d *demo) sayHowToLookAround(programs string) {
	lab := filepath.Join(programs, "lab")
	d.Printf(`
The lab is still up. To look around:
  %[1]s status --state %[2]s
  %[1]s exec --state %[2]s bookinfo/curl -- client http://reviews:9080/reviews/0
  %[1]s exec --state %[2]s bookinfo/curl -- client -n 100 --summary http://reviews:9080/reviews/0
  %[1]s exec --state %[2]s node/n1 -- client http://localhost:15000/config_dump
  %[1]s exec --state %[2]s bookinfo/waypoint -- client http://localhost:15020/metrics
Edit a manifest in %[3]s and watch routes shift; logs are in %[2]s/logs,
and what istiod says about each object is in %[2]s/status. To end it:
  %[1]s down --state %[2]s
`, lab, d.State, d.Manifests)
}
