package cluster

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/ambit-mesh/ambit/install/images"
)

// Images that every node has.
const (
	pauseImage   = "docker.io/ambit-cluster/pause:1"
	corednsImage = "docker.io/ambit-cluster/coredns:1"
)

// imagesPart is the part that is made of others: archives of the images that a
// node imports when it starts.
const imagesPart = "images"

// makeImages writes the archives, if they are not there yet.
func makeImages(ctx context.Context, cacheDir, arch string, dirs map[string]string) (string, error) {
	h := sha256.Sum256(fmt.Appendf(nil, "%q %q", filepath.Base(dirs["pause"]), filepath.Base(dirs["coredns"])))
	target := filepath.Join(cacheDir, fmt.Sprintf("%s-%x", imagesPart, h[:8]))
	if _, err := os.Stat(target); err == nil {
		return target, nil
	}
	dir, err := os.MkdirTemp(cacheDir, unfinished+imagesPart+"-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // it has its name by then, or the next build removes it
	for name, ref := range map[string]string{"pause": pauseImage, "coredns": corednsImage} {
		layout := filepath.Join(dir, name)
		path := "/usr/local/bin/" + name
		if err := images.Write(ctx, layout, ref, images.Variant{
			Arch:       arch,
			Files:      []images.File{{Path: path, Source: filepath.Join(dirs[name], name)}},
			Entrypoint: []string{path},
		}); err != nil {
			return "", fmt.Errorf("image %s: %w", ref, err)
		}
		if err := writeArchive(layout, filepath.Join(dir, name+".tar")); err != nil {
			return "", err
		}
		if err := os.RemoveAll(layout); err != nil {
			return "", err
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	if err := os.Rename(dir, target); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return target, nil
}

func writeArchive(layout, path string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(images.Tar(layout, file), file.Close())
}

// Load puts images into every node's container runtime: directories with an OCI
// image layout, or archives of one.
func (c *Cluster) Load(ctx context.Context, paths ...string) error {
	if c.record.Nodes == 0 {
		return fmt.Errorf("cluster %s has no nodes that an image could be loaded into", c.record.Name)
	}
	results := make(chan error)
	for _, node := range machines(c.record.Nodes)[1:] {
		go func() {
			for _, path := range paths {
				if err := c.loadInto(ctx, node, path); err != nil {
					results <- fmt.Errorf("load %s into %s: %w", path, node.name(), err)
					return
				}
			}
			results <- nil
		}()
	}
	var all error
	for range c.record.Nodes {
		all = errors.Join(all, <-results)
	}
	return all
}

// loadInto streams an image to a node.
func (c *Cluster) loadInto(ctx context.Context, node machine, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	command := c.CommandContext(ctx, node.name(), append(importCommand(), "-")...)
	var said tail
	command.Stdout, command.Stderr = &said, &said
	if info.IsDir() {
		stdin, err := command.StdinPipe()
		if err != nil {
			return err
		}
		if err := command.Start(); err != nil {
			return err
		}
		err = errors.Join(images.Tar(path, stdin, runtime.GOARCH), stdin.Close())
		return said.explain(errors.Join(command.Wait(), err))
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	command.Stdin = file
	return said.explain(command.Run())
}

// tail keeps the end of what is written to it.
type tail struct{ kept []byte }

const tailSize = 2000

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p...)
	if len(t.kept) > tailSize {
		t.kept = t.kept[len(t.kept)-tailSize:]
	}
	return len(p), nil
}

// explain adds what was written to an error.
func (t *tail) explain(err error) error {
	if err == nil || len(t.kept) == 0 {
		return err
	}
	return fmt.Errorf("%w: %s", err, t.kept)
}
