// Command images builds this repository's container images as OCI layouts on
// disk, without a container engine, and pushes them where wanted.
//
//	images                                    the mesh and the bookinfo sample, into bin/images
//	images --arch amd64 istiod waypoint       these two, for one architecture
//	images --set conformance                  what the Gateway API conformance suite runs
//	images --hub registry.example.com/team --tag v1 --push
//
// A layout can be loaded into the test cluster (bin/cluster load
// bin/images/istiod) and copied by skopeo, crane, oras or docker buildx.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"oras.land/oras-go/v2/registry/remote/credentials"

	"github.com/ambit-mesh/ambit/install/images"
)

type options struct {
	build images.Build
	sets  []string
	push  bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var o options
	c := &cobra.Command{
		Use:           "images [flags] [NAME...]",
		Short:         "Build container images as OCI layouts",
		Long:          "Build container images as OCI layouts. Without names and sets: the mesh and the bookinfo sample.\n\nImages:\n" + known(),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(c *cobra.Command, names []string) error {
			return o.run(c, names)
		},
	}
	flags := c.Flags()
	flags.StringVar(&o.build.Out, "out", "bin/images", "directory that gets a layout per image")
	flags.StringSliceVar(&o.build.Archs, "arch", images.Archs, "architectures")
	flags.StringVar(&o.build.Hub, "hub", "ambit-mesh", "what the names begin with: a registry, a team, or both")
	flags.StringVar(&o.build.Tag, "tag", "1", "tag of the names")
	flags.StringSliceVar(&o.sets, "set", nil, "sets of images: product, bookinfo, conformance")
	flags.BoolVar(&o.push, "push", false, "push to the registry in --hub; layers are compressed for it")
	return c
}

func known() string {
	var text strings.Builder
	for _, r := range images.Recipes {
		fmt.Fprintf(&text, "  %-22s %s\n", r.Name, r.Description)
	}
	return text.String()
}

func (o *options) run(c *cobra.Command, names []string) error {
	recipes, err := o.recipes(names)
	if err != nil {
		return err
	}
	if o.build.Root, err = root(c.Context()); err != nil {
		return err
	}
	o.build.Progress, o.build.Compress = c.ErrOrStderr(), o.push
	built, err := o.build.Run(c.Context(), recipes)
	if err != nil {
		return err
	}
	if o.push {
		if err := o.pushAll(c, built); err != nil {
			return err
		}
	}
	return table(c, built)
}

// recipes are the images that are asked for.
func (o *options) recipes(names []string) ([]images.Recipe, error) {
	var sets []images.Set
	for _, set := range o.sets {
		sets = append(sets, images.Set(set))
	}
	if len(names) == 0 && len(sets) == 0 {
		sets = []images.Set{images.Mesh, images.Bookinfo}
	}
	recipes, err := images.Select(names, sets)
	if err != nil || !o.push {
		return recipes, err
	}
	if first, _, _ := strings.Cut(o.build.Hub, "/"); !strings.ContainsAny(first, ".:") && first != "localhost" {
		return nil, fmt.Errorf("--push: the hub %q names no registry; registry.example.com/team does, and docker.io/%[1]s for Docker Hub", o.build.Hub)
	}
	for _, r := range recipes {
		if r.Reference != "" {
			return nil, fmt.Errorf("--push: %s has the fixed name %s, which is not ours to push", r.Name, r.Reference)
		}
	}
	return recipes, nil
}

// module is the module that this command belongs to.
const module = "github.com/ambit-mesh/ambit"

// root is the directory of the module, which the current directory must be in.
func root(ctx context.Context) (string, error) {
	output, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Path}} {{.Dir}}").Output()
	path, dir, _ := strings.Cut(strings.TrimSpace(string(output)), " ")
	if err != nil || path != module || dir == "" {
		return "", fmt.Errorf("run this in the repository: the current directory is not in Go module %s", module)
	}
	return dir, nil
}

func (o *options) pushAll(c *cobra.Command, built []images.Built) error {
	store, err := credentials.NewStoreFromDocker(credentials.StoreOptions{DetectDefaultNativeStore: true})
	if err != nil {
		return fmt.Errorf("credentials of docker: %w", err)
	}
	for _, image := range built {
		if _, err := images.Push(c.Context(), image.Dir, credentials.Credential(store)); err != nil {
			return err
		}
		fmt.Fprintln(c.ErrOrStderr(), "images: pushed", image.Reference)
	}
	return nil
}

// table prints what was built; with several platforms their sizes in order.
func table(c *cobra.Command, built []images.Built) error {
	out := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "IMAGE\tPLATFORMS\tMB\tDIGEST")
	for _, image := range built {
		var archs, sizes []string
		for _, p := range image.Platforms {
			archs = append(archs, p.Arch)
			sizes = append(sizes, fmt.Sprintf("%.1f", float64(p.Size)/1e6))
		}
		fmt.Fprintf(out, "%s\t%s\t%s\t%s\n", image.Reference, strings.Join(archs, ","), strings.Join(sizes, ","), image.Digest)
	}
	return out.Flush()
}
