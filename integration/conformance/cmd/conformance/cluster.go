package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/ambit-mesh/ambit/integration/conformance"
)

const (
	meshNamespace = "istio-system"
	istiod        = "istiod"
)

var (
	// meshImages are what the mesh consists of, suiteImages what the suite's
	// manifests of a mesh name: layouts in bin/images.
	meshImages  = []string{"istiod", "ztunnel", "ambit-cni", "waypoint"}
	suiteImages = []string{"echo-advanced"}
)

// bed is the cluster with the mesh on it, ready for the suite.
type bed struct {
	options
	out        io.Writer
	kubeconfig string
	client     kubernetes.Interface
	installed  bool // by this run
}

// prepare starts the cluster when absent, installs the mesh when absent, and
// deletes what an earlier run may have left. On an error nothing is left to be
// put away but the cluster.
func prepare(ctx context.Context, opts options, out io.Writer) (*bed, error) {
	b := &bed{options: opts, out: out, kubeconfig: opts.kubeconfig}
	if b.kubeconfig == "" {
		if err := b.startCluster(ctx); err != nil {
			return nil, err
		}
	}
	config, err := clientcmd.BuildConfigFromFlags("", b.kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	if b.client, err = kubernetes.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("%s: %w", b.kubeconfig, err)
	}
	if err := b.deleteNamespaces(ctx); err != nil {
		return nil, err
	}
	if opts.kubeconfig != "" {
		return b, nil
	}
	if err := b.install(ctx); err != nil {
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupWait)
		defer cancel()
		return nil, errors.Join(err, b.putAway(cleanup))
	}
	return b, nil
}

func (b *bed) startCluster(ctx context.Context) error {
	if err := b.program(ctx, "cluster", "--name", b.name, "up"); err != nil {
		return err
	}
	path, err := exec.CommandContext(ctx, filepath.Join(b.bin, "cluster"), "--name", b.name, "kubeconfig").Output()
	if err != nil {
		return fmt.Errorf("cluster kubeconfig: %w", err)
	}
	b.kubeconfig = string(bytes.TrimSpace(path))
	return b.load(ctx, suiteImages)
}

// load brings images of bin/images to all nodes.
func (b *bed) load(ctx context.Context, images []string) error {
	args := []string{"--name", b.name, "load"}
	for _, image := range images {
		args = append(args, filepath.Join(b.bin, "images", image))
	}
	return b.program(ctx, "cluster", args...)
}

// install installs the mesh unless istiod is there.
func (b *bed) install(ctx context.Context) error {
	deployment, err := b.client.AppsV1().Deployments(meshNamespace).Get(ctx, istiod, metav1.GetOptions{})
	if err == nil {
		fmt.Fprintf(b.out, "conformance: testing the mesh that is installed, since %s ago (bin/ambitctl uninstall to test what is built now)\n",
			time.Since(deployment.CreationTimestamp.Time).Round(time.Second))
		return nil
	}
	if !apierrors.IsNotFound(err) {
		return err
	}
	if err := b.load(ctx, meshImages); err != nil {
		return err
	}
	b.installed = true
	return b.program(ctx, "ambitctl", "install", "--kubeconfig", b.kubeconfig)
}

// putAway deletes the suite's namespaces and the mesh if this run installed it.
func (b *bed) putAway(ctx context.Context) error {
	errs := []error{b.deleteNamespaces(ctx)}
	if b.installed && !b.keep {
		errs = append(errs, b.program(ctx, "ambitctl", "uninstall", "-y", "--kubeconfig", b.kubeconfig))
	}
	return errors.Join(errs...)
}

// deleteNamespaces returns when the suite's namespaces are gone, with the
// waypoints in them.
func (b *bed) deleteNamespaces(ctx context.Context) error {
	namespaces := b.client.CoreV1().Namespaces()
	for _, name := range conformance.Namespaces {
		if err := namespaces.Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	for _, name := range conformance.Namespaces {
		err := wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, cleanupWait, true, func(ctx context.Context) (bool, error) {
			_, err := namespaces.Get(ctx, name, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return true, nil
			}
			return false, err
		})
		if err != nil {
			return fmt.Errorf("namespace %s is not gone, which its status may explain: %w", name, err)
		}
	}
	return nil
}

// program runs a program of bin, whose output is its progress.
func (b *bed) program(ctx context.Context, name string, args ...string) error {
	fmt.Fprintf(b.out, "$ bin/%s %s\n", name, strings.Join(args, " "))
	command := exec.CommandContext(ctx, filepath.Join(b.bin, name), args...)
	command.Dir = b.root
	command.Stdout, command.Stderr = b.out, os.Stderr
	command.Cancel = func() error { return command.Process.Signal(os.Interrupt) }
	command.WaitDelay = interruptWait
	if err := command.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", name, args[len(args)-1], err)
	}
	return nil
}
