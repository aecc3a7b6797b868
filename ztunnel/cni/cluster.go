package cni

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ambit-mesh/ambit/ztunnel/cni/installer"
	"github.com/ambit-mesh/ambit/ztunnel/redirect"
)

// How long a node may take to find out that the agent is removed, and to let its pods go
// on without the mesh: together less than a pod's usual 30 s of grace.
const (
	askFor   = 4 * time.Second
	askEvery = 500 * time.Millisecond
	leaveFor = 15 * time.Second
)

// Cluster is the agent of a Kubernetes node: Agent, and what it changes on the node
// itself.
type Cluster struct {
	Agent     *Agent
	Installer *installer.Installer
	Host      *redirect.Host
	// Wanted says whether the node is to have an agent.
	Wanted func(context.Context) (bool, error)
	Log    *slog.Logger
	// AskFor is how long to go on asking when that cannot be said; 0 = 4 s.
	AskFor time.Duration
}

// Run works until ctx is done. Then it finds out what that means. When the agent is
// restarted or replaced, everything stays as it is: pods go on, and new pods wait for the
// next agent, because the plugin fails without one. When it is removed, the node is left
// as it was before.
func (c Cluster) Run(ctx context.Context) error {
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	install, stopInstalling := context.WithCancel(inner)
	defer stopInstalling()
	group, inner := errgroup.WithContext(inner)
	group.Go(func() error { return c.Agent.Run(inner) })
	installed := make(chan struct{})
	group.Go(func() error {
		defer close(installed)
		return c.install(install)
	})
	removed := false
	group.Go(func() error {
		defer cancel()
		select {
		case <-inner.Done():
			return nil
		case <-ctx.Done():
		}
		if removed = c.removed(inner); removed {
			stopInstalling()
			<-installed
			c.leave(inner)
		}
		return nil
	})
	err := group.Wait()
	if !removed {
		return err
	}
	// Of the process's end only the kubelet is left to decide.
	return errors.Join(err, c.purge(context.WithoutCancel(ctx)))
}

// install runs the installer once pods can be added: from then on each new pod of the
// node needs an answer.
func (c Cluster) install(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-c.Agent.serving:
	}
	if err := c.Installer.Run(ctx); err != nil {
		return fmt.Errorf("install CNI plugin: %w", err)
	}
	return nil
}

// removed says whether the agent ends because its node is to have none. Nobody who can
// say so is asked for long, and then it is taken for a restart: to let pods out of the
// mesh by mistake is worse than to keep them in it. What is left then on a node whose
// agent was removed, ambit-cni uninstall removes.
func (c Cluster) removed(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(c.AskFor, askFor))
	defer cancel()
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		wanted, err := c.Wanted(ctx)
		if err == nil {
			c.Log.Info("agent ends", "removed", !wanted)
			return !wanted
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			c.Log.Warn("agent ends, and its DaemonSet could not be asked for: everything stays as it is", "error", err)
			return false
		}
	}
}

// leave undoes, as long as the agent runs, what it did: first the plugin, so that new
// pods do not need the agent, then the pods.
func (c Cluster) leave(ctx context.Context) {
	if err := c.Installer.Uninstall(); err != nil {
		c.Log.Warn("CNI plugin not removed", "error", err)
	}
	ctx, cancel := context.WithTimeout(ctx, leaveFor)
	defer cancel()
	if err := c.Agent.Leave(ctx); err != nil {
		c.Log.Warn("redirected connections are cut", "error", err)
	}
}

// purge undoes the rest when the agent has ended.
func (c Cluster) purge(ctx context.Context) error {
	cfg := c.Agent.cfg
	return errors.Join(
		Purge(ctx, cfg.Log, cfg.RunDir, cfg.ZDSSocket, cfg.ProcDir, cfg.Find),
		c.Host.Remove(),
	)
}
